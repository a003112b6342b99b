//! Metadata and DescribeTopicPartitions: what topics there are, and who leads their partitions.

use super::{
    brokers,
    metadata_log::METADATA_TOPIC,
    topics::{OFFSETS_TOPIC, auto_create},
};
use crate::{
    core::Core,
    long_work::Work,
    meta::{self, META_GROUP},
};
use consensus::metadata::{Partition, Topic};
use net::{
    StrBytes, Uuid,
    errors::{self, ErrorCode},
    messages::{
        BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, MetadataRequest, MetadataResponse,
        TopicName,
        describe_topic_partitions_response::{
            Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
        },
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    produce::TopicRef,
};
use std::{collections::BTreeSet, rc::Rc, sync::Arc};
use wal::record::GroupId;

pub async fn metadata(core: &Rc<Core>, request: MetadataRequest, version: i16) -> MetadataResponse {
    let look = Look::new(core).await;
    let mut work = Work::on(core);
    // Version 0 asks for all topics by an empty list, later ones by null.
    let asked = request.topics.filter(|topics| version > 0 || !topics.is_empty());
    let topics = match asked {
        None => {
            let all: Vec<Arc<Topic>> = core.view(|view| view.topics().cloned().collect());
            let mut topics = Vec::with_capacity(all.len());
            for topic in all {
                topics.push(look.describe(&mut work, &topic).await);
            }
            topics
        }
        Some(asked) => {
            let may_create =
                core.config.auto_create_topics_enable && (version < 4 || request.allow_auto_topic_creation);
            let names: Vec<&str> =
                asked.iter().filter_map(|topic| topic.name.as_ref()).map(|name| name.0.as_str()).collect();
            if may_create && look.fresh {
                auto_create(core, &names).await;
            }
            let mut topics = Vec::with_capacity(asked.len());
            for topic in &asked {
                topics.push(look.find(&mut work, topic.name.as_ref(), topic.topic_id, may_create).await);
            }
            topics
        }
    };
    let brokers = brokers::alive(core).into_iter().map(|node| {
        MetadataResponseBroker::default()
            .with_node_id(BrokerId(node.id))
            .with_host(node.host)
            .with_port(i32::from(node.port))
            .with_rack(node.rack)
    });
    MetadataResponse::default()
        .with_brokers(brokers.collect())
        .with_cluster_id(Some(StrBytes::from_string(core.cluster_id.to_string())))
        .with_controller_id(brokers::controller(core))
        .with_topics(topics)
}

/// What one request is answered from.
struct Look<'a> {
    core: &'a Core,
    alive: BTreeSet<i32>,
    /// Whether the view may be told at all. If not, clients are told to ask again.
    fresh: bool,
}

impl<'a> Look<'a> {
    async fn new(core: &'a Rc<Core>) -> Self {
        let fresh = meta::may_read(core).await.is_ok();
        Self { core, alive: brokers::alive_ids(core).into_iter().collect(), fresh }
    }

    async fn find(
        &self,
        work: &mut Work<'_>,
        name: Option<&TopicName>,
        id: Uuid,
        may_create: bool,
    ) -> MetadataResponseTopic {
        let asked = name.map_or(TopicRef::Id(id), |name| TopicRef::Name(name.0.clone()));
        if let Some(topic) = self.core.find_topic(&asked) {
            return self.describe(work, &topic).await;
        }
        work.entry().await;
        let code = match name {
            Some(name) if consensus::metadata::check_topic_name(name.0.as_str()).is_err() => {
                ErrorCode::InvalidTopicException
            }
            _ if !self.fresh => ErrorCode::LeaderNotAvailable,
            None => ErrorCode::UnknownTopicId,
            // It could not be created in time: the client asks again.
            Some(_) if may_create => ErrorCode::LeaderNotAvailable,
            Some(_) => ErrorCode::UnknownTopicOrPartition,
        };
        MetadataResponseTopic::default().with_error_code(code.code()).with_name(name.cloned()).with_topic_id(id)
    }

    async fn describe(&self, work: &mut Work<'_>, topic: &Topic) -> MetadataResponseTopic {
        work.entry().await;
        let response = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_string(topic.name.to_string()))))
            .with_topic_id(topic.id)
            .with_is_internal([OFFSETS_TOPIC, METADATA_TOPIC].contains(&&*topic.name));
        if !self.fresh {
            return response.with_error_code(ErrorCode::LeaderNotAvailable.code());
        }
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (number, partition) in topic.partitions.iter().enumerate() {
            work.entry().await;
            let leader = self.core.leader_of(GroupId(partition.group));
            let nodes: Vec<BrokerId> = partition.replicas.iter().copied().map(BrokerId).collect();
            let offline = nodes.iter().copied().filter(|node| !self.alive.contains(&node.0)).collect();
            let told = MetadataResponsePartition::default()
                .with_error_code(if leader.is_some() { errors::NONE } else { ErrorCode::LeaderNotAvailable.code() })
                .with_partition_index(number as i32)
                .with_leader_id(BrokerId(leader.map_or(-1, |leader| leader.node)))
                .with_leader_epoch(leader.map_or(-1, |leader| leader.epoch))
                .with_replica_nodes(nodes.clone())
                .with_isr_nodes(self.in_sync(partition).into_iter().map(BrokerId).collect())
                .with_offline_replicas(offline);
            partitions.push(told);
        }
        response.with_partitions(partitions)
    }
}

impl Look<'_> {
    /// The replicas in sync, as their leader reported, less those whose broker is gone since. A partition's only replica stays in sync,
    /// even while it is offline.
    fn in_sync(&self, partition: &Partition) -> Vec<i32> {
        if partition.replicas.len() == 1 {
            return partition.replicas.clone();
        }
        if partition.group == META_GROUP.0 {
            // Who of them lacks what, DescribeQuorum tells.
            return partition.replicas.iter().copied().filter(|node| self.alive.contains(node)).collect();
        }
        let told = self.core.view(|view| view.leader(partition.group).map(|leader| leader.voters.clone()));
        told.unwrap_or_default().into_iter().filter(|node| self.alive.contains(node)).collect()
    }
}

/// Partitions that one DescribeTopicPartitions answer tells at most, as Kafka's `max.request.partition.size.limit`.
const DESCRIBED_PARTITIONS_MAX: i32 = 2000;

/// DescribeTopicPartitions (KIP-966): like Metadata, in pages.
pub async fn describe_partitions(
    core: &Rc<Core>,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let look = Look::new(core).await;
    let mut work = Work::on(core);
    let mut left = request.response_partition_limit.clamp(1, DESCRIBED_PARTITIONS_MAX) as usize;
    let from = request.cursor.map(|cursor| (cursor.topic_name.0, cursor.partition_index.max(0) as usize));
    let mut names: Vec<StrBytes> = if request.topics.is_empty() {
        core.view(|view| view.topics().map(|topic| StrBytes::from_string(topic.name.to_string())).collect())
    } else {
        request.topics.into_iter().map(|topic| topic.name.0).collect()
    };
    names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    let mut topics = Vec::new();
    let mut next_cursor = None;
    for name in names.into_iter().filter(|name| from.as_ref().is_none_or(|(first, _)| name.as_str() >= first.as_str()))
    {
        let first = from.as_ref().filter(|(topic, _)| *topic == name).map_or(0, |(_, partition)| *partition);
        if left == 0 {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)));
            break;
        }
        let found = look.find(&mut work, Some(&TopicName(name.clone())), Uuid::nil(), false).await;
        let total = found.partitions.len();
        let page: Vec<_> = found
            .partitions
            .into_iter()
            .skip(first)
            .take(left)
            .map(|partition| {
                DescribeTopicPartitionsResponsePartition::default()
                    .with_error_code(partition.error_code)
                    .with_partition_index(partition.partition_index)
                    .with_leader_id(partition.leader_id)
                    .with_leader_epoch(partition.leader_epoch)
                    .with_replica_nodes(partition.replica_nodes)
                    .with_isr_nodes(partition.isr_nodes)
                    .with_eligible_leader_replicas(Some(Vec::new()))
                    .with_last_known_elr(Some(Vec::new()))
                    .with_offline_replicas(partition.offline_replicas)
            })
            .collect();
        left -= page.len();
        let end = first + page.len();
        topics.push(
            DescribeTopicPartitionsResponseTopic::default()
                .with_error_code(found.error_code)
                .with_name(found.name)
                .with_topic_id(found.topic_id)
                .with_is_internal(found.is_internal)
                .with_partitions(page),
        );
        if end < total {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)).with_partition_index(end as i32));
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next_cursor)
}
