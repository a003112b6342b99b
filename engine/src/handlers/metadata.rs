//! Metadata and DescribeTopicPartitions: the topics, and the leaders of their partitions.

use super::{
    cluster::brokers,
    metadata_log::METADATA_TOPIC,
    operations,
    topics::{auto_create, check_auto_create, collisions},
};
use crate::{
    cluster::{
        internal_topics,
        meta::{self, META_GROUP},
    },
    core::{Core, long_work::Work},
};
use consensus::metadata::{Partition, Topic};
use net::{
    StrBytes, Uuid,
    codec::produce::TopicRef,
    errors::{self, ErrorCode},
    messages::{
        BrokerId, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, MetadataRequest, MetadataResponse,
        TopicName,
        describe_topic_partitions_response::{
            Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
        },
        metadata_request::MetadataRequestTopic,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
};
use std::{collections::BTreeSet, rc::Rc, sync::Arc};

pub async fn metadata(core: &Rc<Core>, request: MetadataRequest, version: i16) -> MetadataResponse {
    let mut look = Look::new(core).await;
    look.tells_operations = request.include_topic_authorized_operations;
    let mut work = Work::on(core);
    // Version 0 asks for all topics with an empty list, later versions with null.
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
            let asked = distinct(asked, version);
            let names: Vec<&str> = asked
                .iter()
                .filter_map(|asked| match asked {
                    Asked::Name(name) => Some(name.0.as_str()),
                    Asked::Id(_) | Asked::IdTooEarly { .. } => None,
                })
                .collect();
            if may_create && look.fresh {
                auto_create(core, &names).await;
            }
            let mut topics = Vec::with_capacity(asked.len());
            for asked in asked {
                topics.push(look.find(&mut work, asked, may_create).await);
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
        .with_cluster_authorized_operations(operations::told(
            request.include_cluster_authorized_operations,
            operations::CLUSTER,
        ))
        .with_topics(topics)
}

/// The first version with topic ids. Versions 10 and 11 have the field, but must leave it empty (KIP-516).
const BY_ID_FROM: i16 = 12;

/// How the request names one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asked {
    Name(TopicName),
    Id(Uuid),
    /// By id, in a version that does not allow that.
    IdTooEarly {
        id: Uuid,
        name: Option<TopicName>,
    },
}

/// The topics that a request names, each once, as in Kafka. An id takes precedence over a name: Java's clients send
/// an empty name beside it.
fn distinct(topics: Vec<MetadataRequestTopic>, version: i16) -> Vec<Asked> {
    let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
    let asked = topics.into_iter().filter_map(|MetadataRequestTopic { topic_id: id, name, .. }| match name {
        Some(name) if id.is_nil() => names.insert(name.clone()).then_some(Asked::Name(name)),
        name => {
            let asked = if version < BY_ID_FROM { Asked::IdTooEarly { id, name } } else { Asked::Id(id) };
            ids.insert(id).then_some(asked)
        }
    });
    asked.collect()
}

/// The state from which one request is answered.
struct Look<'a> {
    core: &'a Core,
    alive: BTreeSet<i32>,
    /// Whether the view may be used. If not, clients are told to retry.
    fresh: bool,
    /// Whether topics carry their authorised operations.
    tells_operations: bool,
}

impl<'a> Look<'a> {
    async fn new(core: &'a Rc<Core>) -> Self {
        let fresh = meta::may_read(core).await.is_ok();
        Self { core, alive: brokers::alive_ids(core).into_iter().collect(), fresh, tells_operations: false }
    }

    async fn find(&self, work: &mut Work<'_>, asked: Asked, may_create: bool) -> MetadataResponseTopic {
        let found = match &asked {
            Asked::Name(name) => self.core.find_topic(&TopicRef::Name(name.0.clone())),
            Asked::Id(id) => self.core.find_topic(&TopicRef::Id(*id)),
            Asked::IdTooEarly { .. } => None,
        };
        if let Some(topic) = found {
            return self.describe(work, &topic).await;
        }
        work.entry().await;
        let code = match &asked {
            Asked::IdTooEarly { .. } => ErrorCode::InvalidRequest,
            Asked::Name(name)
                if consensus::metadata::check_topic_name(name.0.as_str()).is_err()
                    || internal_topics::reserved_for(name.0.as_str()).is_some() =>
            {
                ErrorCode::InvalidTopicException
            }
            _ if !self.fresh => ErrorCode::LeaderNotAvailable,
            Asked::Name(name) if may_create && collisions::check(self.core, name).is_err() => {
                ErrorCode::InvalidTopicException
            }
            Asked::Id(_) => ErrorCode::UnknownTopicId,
            Asked::Name(name) if may_create && check_auto_create(self.core, name).is_err() => {
                ErrorCode::PolicyViolation
            }
            // It could not be created in time, so the client retries.
            Asked::Name(_) if may_create => ErrorCode::LeaderNotAvailable,
            Asked::Name(_) => ErrorCode::UnknownTopicOrPartition,
        };
        let response = MetadataResponseTopic::default().with_error_code(code.code());
        match asked {
            Asked::Name(name) => response.with_name(Some(name)),
            Asked::Id(id) => response.with_name(None).with_topic_id(id),
            Asked::IdTooEarly { id, name } => response.with_name(Some(name.unwrap_or_default())).with_topic_id(id),
        }
    }

    async fn describe(&self, work: &mut Work<'_>, topic: &Topic) -> MetadataResponseTopic {
        work.entry().await;
        let response = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_string(topic.name.to_string()))))
            .with_topic_id(topic.id)
            .with_is_internal(*topic.name == *METADATA_TOPIC || internal_topics::find(&topic.name).is_some())
            .with_topic_authorized_operations(operations::told(self.tells_operations, operations::TOPIC));
        if !self.fresh {
            return response.with_error_code(ErrorCode::LeaderNotAvailable.code());
        }
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for (number, partition) in topic.partitions.iter().enumerate() {
            work.entry().await;
            let leader = self.core.leader_of(partition.group);
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
    /// The replicas in sync, as their leader reported, without those whose broker is gone since. A partition's only
    /// replica stays in sync, even while it is offline.
    fn in_sync(&self, partition: &Partition) -> Vec<i32> {
        if partition.replicas.len() == 1 {
            return partition.replicas.clone();
        }
        if partition.group == META_GROUP {
            // DescribeQuorum shows which of them lag.
            return partition.replicas.iter().copied().filter(|node| self.alive.contains(node)).collect();
        }
        let told = self.core.view(|view| view.leader(partition.group).map(|leader| leader.voters.clone()));
        told.unwrap_or_default().into_iter().filter(|node| self.alive.contains(node)).collect()
    }
}

/// Most partitions in one DescribeTopicPartitions answer, as in Kafka's `max.request.partition.size.limit`.
pub const DESCRIBED_PARTITIONS_MAX: i32 = 2000;

/// DescribeTopicPartitions (KIP-966): like Metadata, in pages.
pub async fn describe_partitions(
    core: &Rc<Core>,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let mut look = Look::new(core).await;
    // This API has no flag for them, so they are always included.
    look.tells_operations = true;
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
        let found = look.find(&mut work, Asked::Name(TopicName(name.clone())), false).await;
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
                .with_topic_authorized_operations(found.topic_authorized_operations)
                .with_partitions(page),
        );
        if end < total {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)).with_partition_index(end as i32));
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next_cursor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: Option<&'static str>, id: u128) -> MetadataRequestTopic {
        let name = name.map(|name| TopicName(StrBytes::from_static_str(name)));
        MetadataRequestTopic::default().with_name(name).with_topic_id(Uuid::from_u128(id))
    }

    #[test]
    fn topics_are_asked_for_by_id_or_by_name_each_once() {
        let name = |name| Asked::Name(TopicName(StrBytes::from_static_str(name)));
        let id = |id| Asked::Id(Uuid::from_u128(id));
        let asked = vec![
            topic(Some("b"), 0),
            topic(Some(""), 7),
            topic(None, 8),
            topic(Some("a"), 0),
            topic(Some("b"), 0),
            topic(Some("x"), 7),
            topic(Some(""), 0),
            topic(None, 0),
        ];
        assert_eq!(distinct(asked, 12), [name("b"), id(7), id(8), name("a"), name(""), id(0)]);
        let early = |id, name: Option<&'static str>| {
            let name = name.map(|name| TopicName(StrBytes::from_static_str(name)));
            Asked::IdTooEarly { id: Uuid::from_u128(id), name }
        };
        let asked = vec![topic(Some("a"), 0), topic(Some("b"), 7), topic(None, 0)];
        assert_eq!(distinct(asked, 11), [name("a"), early(7, Some("b")), early(0, None)]);
    }
}
