//! Metadata and DescribeTopicPartitions: the topics, and the leaders of their partitions.

use super::{
    operations,
    topics::{auto_create, check_auto_create, collisions},
};
use crate::{
    cluster::{internal_topics, meta},
    core::{Core, brokers, metadata_topic::METADATA_TOPIC},
    long_work::Work,
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
use std::{
    cell::OnceCell,
    collections::BTreeSet,
    ops::{Bound, Range},
    rc::Rc,
};
use types::{LeaderEpoch, META_GROUP};

pub async fn metadata(core: &Rc<Core>, request: MetadataRequest, version: i16) -> MetadataResponse {
    let mut look = Look::new(core).await;
    look.tells_operations = request.include_topic_authorized_operations;
    let mut work = Work::on(core);
    // Version 0 asks for all topics with an empty list, later versions with null.
    let asked = request.topics.filter(|topics| version > 0 || !topics.is_empty());
    let topics = match asked {
        None => {
            let mut topics = Vec::new();
            let mut page = core.next_topics(Bound::Unbounded);
            while let Some(last) = page.last().map(|topic| topic.name.clone()) {
                for topic in page {
                    topics.push(look.describe(&mut work, &topic, 0..usize::MAX).await);
                }
                page = core.next_topics(Bound::Excluded(&last));
            }
            topics
        }
        Some(asked) => {
            let may_create =
                core.config.auto_create_topics_enable && (version < 4 || request.allow_auto_topic_creation);
            let asked = distinct(&mut work, asked, version).await;
            if may_create && look.fresh {
                auto_create(&mut work, asked.iter().filter_map(Asked::name)).await;
            }
            look.may_create = may_create;
            let mut topics = Vec::with_capacity(asked.len());
            for asked in asked {
                topics.push(look.find(&mut work, asked, 0..usize::MAX).await);
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

impl Asked {
    fn name(&self) -> Option<&str> {
        match self {
            Asked::Name(name) => Some(name.0.as_str()),
            Asked::Id(_) | Asked::IdTooEarly { .. } => None,
        }
    }
}

/// The names and ids of a request so far.
#[derive(Default)]
struct Named {
    names: BTreeSet<TopicName>,
    ids: BTreeSet<Uuid>,
}

impl Named {
    /// How the request names a topic; `None`: it has done so before. An id takes precedence over a name: Java's
    /// clients send an empty name beside it.
    fn take(&mut self, topic: MetadataRequestTopic, version: i16) -> Option<Asked> {
        let MetadataRequestTopic { topic_id: id, name, .. } = topic;
        match name {
            Some(name) if id.is_nil() => self.names.insert(name.clone()).then_some(Asked::Name(name)),
            name => {
                let asked = if version < BY_ID_FROM { Asked::IdTooEarly { id, name } } else { Asked::Id(id) };
                self.ids.insert(id).then_some(asked)
            }
        }
    }
}

/// The topics that a request names, each once, as in Kafka.
async fn distinct(work: &mut Work<'_, Core>, topics: Vec<MetadataRequestTopic>, version: i16) -> Vec<Asked> {
    let (mut named, mut asked) = (Named::default(), Vec::new());
    for topic in topics {
        work.entry().await;
        asked.extend(named.take(topic, version));
    }
    asked
}

/// The state from which one request is answered.
struct Look<'a> {
    core: &'a Core,
    alive: BTreeSet<i32>,
    /// Whether the view may be used. If not, clients are told to retry.
    fresh: bool,
    /// Whether topics carry their authorised operations.
    tells_operations: bool,
    /// Whether the request creates the topics that it names.
    may_create: bool,
    /// Whether brokers have memory for another topic. Looked up once.
    has_room: OnceCell<bool>,
}

impl<'a> Look<'a> {
    async fn new(core: &'a Rc<Core>) -> Self {
        let fresh = meta::may_read(core).await.is_ok();
        let alive = brokers::alive_ids(core).into_iter().collect();
        Self { core, alive, fresh, tells_operations: false, may_create: false, has_room: OnceCell::new() }
    }

    fn has_room(&self) -> bool {
        *self.has_room.get_or_init(|| check_auto_create(self.core).is_ok())
    }

    /// Finds a topic, and describes these partitions of it.
    async fn find(&self, work: &mut Work<'_, Core>, asked: Asked, partitions: Range<usize>) -> MetadataResponseTopic {
        let found = match &asked {
            Asked::Name(name) => self.core.find_topic(&TopicRef::Name(name.0.clone())),
            Asked::Id(id) => self.core.find_topic(&TopicRef::Id(*id)),
            Asked::IdTooEarly { .. } => None,
        };
        if let Some(topic) = found {
            return self.describe(work, &topic, partitions).await;
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
            Asked::Name(name) if self.may_create && collisions::check(self.core, name).is_err() => {
                ErrorCode::InvalidTopicException
            }
            Asked::Id(_) => ErrorCode::UnknownTopicId,
            Asked::Name(_) if self.may_create && !self.has_room() => ErrorCode::PolicyViolation,
            // It could not be created in time, so the client retries.
            Asked::Name(_) if self.may_create => ErrorCode::LeaderNotAvailable,
            Asked::Name(_) => ErrorCode::UnknownTopicOrPartition,
        };
        let response = MetadataResponseTopic::default().with_error_code(code.code());
        match asked {
            Asked::Name(name) => response.with_name(Some(name)),
            Asked::Id(id) => response.with_name(None).with_topic_id(id),
            Asked::IdTooEarly { id, name } => response.with_name(Some(name.unwrap_or_default())).with_topic_id(id),
        }
    }

    async fn describe(
        &self,
        work: &mut Work<'_, Core>,
        topic: &Topic,
        partitions: Range<usize>,
    ) -> MetadataResponseTopic {
        work.entry().await;
        let response = MetadataResponseTopic::default()
            .with_name(Some(TopicName(StrBytes::from_string(topic.name.to_string()))))
            .with_topic_id(topic.id)
            .with_is_internal(*topic.name == *METADATA_TOPIC || internal_topics::find(&topic.name).is_some())
            .with_topic_authorized_operations(operations::told(self.tells_operations, operations::TOPIC));
        if !self.fresh {
            return response.with_error_code(ErrorCode::LeaderNotAvailable.code());
        }
        let (first, count) = (partitions.start, partitions.len());
        let mut partitions = Vec::new();
        for (number, partition) in topic.partitions.iter().enumerate().skip(first).take(count) {
            work.entry().await;
            let leader = self.core.leader_of(partition.group);
            let nodes: Vec<BrokerId> = partition.replicas.iter().copied().map(BrokerId).collect();
            let offline = nodes.iter().copied().filter(|node| !self.alive.contains(&node.0)).collect();
            let told = MetadataResponsePartition::default()
                .with_error_code(if leader.is_some() { errors::NONE } else { ErrorCode::LeaderNotAvailable.code() })
                .with_partition_index(number as i32)
                .with_leader_id(BrokerId(leader.map_or(-1, |leader| leader.node)))
                .with_leader_epoch(leader.map_or(LeaderEpoch::NONE, |leader| leader.epoch).get())
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
    let mut names = BTreeSet::new();
    for topic in request.topics {
        work.entry().await;
        names.insert(topic.name.0);
    }
    if names.is_empty() {
        // Each topic has a partition, so one more than the page may have is enough.
        let first = from.as_ref().map_or(Bound::Unbounded, |(first, _)| Bound::Included(first.as_str()));
        let page = core.view(|view| view.topics_from(first).take(left + 1).cloned().collect::<Vec<_>>());
        names.extend(page.iter().map(|topic| StrBytes::from_string(topic.name.to_string())));
    }
    let mut topics = Vec::new();
    let mut next_cursor = None;
    for name in names {
        work.entry().await;
        if from.as_ref().is_some_and(|(first, _)| name.as_str() < first.as_str()) {
            continue;
        }
        let first = from.as_ref().filter(|(topic, _)| *topic == name).map_or(0, |(_, partition)| *partition);
        if left == 0 {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)));
            break;
        }
        let asked = Asked::Name(TopicName(name.clone()));
        let total = core.find_topic(&TopicRef::Name(name.clone())).map_or(0, |topic| topic.partitions.len());
        let found = look.find(&mut work, asked, first..first.saturating_add(left)).await;
        let end = first + found.partitions.len();
        // Without a view that may be used, each topic stands for one partition, so that the page has an end.
        left -= found.partitions.len().max(usize::from(!look.fresh));
        topics.push(in_page(found));
        if look.fresh && end < total {
            next_cursor = Some(Cursor::default().with_topic_name(TopicName(name)).with_partition_index(end as i32));
            break;
        }
    }
    DescribeTopicPartitionsResponse::default().with_topics(topics).with_next_cursor(next_cursor)
}

/// A topic in the form of DescribeTopicPartitions.
fn in_page(topic: MetadataResponseTopic) -> DescribeTopicPartitionsResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
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
    });
    DescribeTopicPartitionsResponseTopic::default()
        .with_error_code(topic.error_code)
        .with_topic_id(topic.topic_id)
        .with_is_internal(topic.is_internal)
        .with_topic_authorized_operations(topic.topic_authorized_operations)
        .with_partitions(partitions.collect())
        .with_name(topic.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct(topics: Vec<MetadataRequestTopic>, version: i16) -> Vec<Asked> {
        let mut named = Named::default();
        topics.into_iter().filter_map(|topic| named.take(topic, version)).collect()
    }

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
