//! The topic `__millrace_metadata`: the metadata's log, for any consumer that names it.
//!
//! It is no topic of the metadata but the log itself. It has one partition, whose leader is the metadata leader,
//! and a record for each committed entry. `meta::log` defines the format of the records, and the entry from
//! which on they are kept. Like Kafka's own metadata log, it is not listed among the topics. It is read-only.

use super::{Core, brokers};
use consensus::metadata::{Partition, Topic};
use net::{Uuid, codec::produce::TopicRef};
use std::{collections::BTreeMap, sync::Arc};
use types::META_GROUP;

pub const METADATA_TOPIC: &str = "__millrace_metadata";
/// The same in every cluster. Random ids never look like it.
pub const METADATA_TOPIC_ID: Uuid = Uuid::from_bytes(*b"millracemetadata");

/// Whether a request names the metadata's log.
pub fn is(topic: &TopicRef) -> bool {
    match topic {
        TopicRef::Name(name) => name.as_str() == METADATA_TOPIC,
        TopicRef::Id(id) => *id == METADATA_TOPIC_ID,
    }
}

/// The log in the form of a topic. All registered brokers hold it.
pub fn topic(core: &Core) -> Arc<Topic> {
    let replicas = brokers::all(core).into_iter().map(|node| node.id).collect();
    Arc::new(Topic {
        name: METADATA_TOPIC.into(),
        id: METADATA_TOPIC_ID,
        partitions: vec![Partition { group: META_GROUP, replicas, founders: Vec::new() }],
        configs: BTreeMap::new(),
        created_ms: 0,
    })
}
