//! The topic `__millrace_metadata`: the metadata's log, to be read by any consumer that names it.
//!
//! It is no topic of the metadata but the log itself: one partition, led by whoever leads the metadata, with a record for each committed
//! entry (`meta::log` says how they are rendered and from where on they are kept). Like Kafka's own metadata log it is not among
//! the topics that are listed. It can be read and nothing else.

use super::{cluster::brokers, refusal::Refusal};
use crate::{cluster::meta::META_GROUP, core::Core};
use consensus::metadata::{Partition, Topic};
use net::{Uuid, codec::produce::TopicRef, errors::ErrorCode};
use std::{collections::BTreeMap, sync::Arc};

pub const METADATA_TOPIC: &str = "__millrace_metadata";
/// The same in every cluster; no id that is drawn looks like it.
pub const METADATA_TOPIC_ID: Uuid = Uuid::from_bytes(*b"millracemetadata");

/// Whether a request means it.
pub fn is(topic: &TopicRef) -> bool {
    match topic {
        TopicRef::Name(name) => name.as_str() == METADATA_TOPIC,
        TopicRef::Id(id) => *id == METADATA_TOPIC_ID,
    }
}

/// As a topic that is described: all registered brokers hold it.
pub fn topic(core: &Core) -> Arc<Topic> {
    let replicas = brokers::all(core).into_iter().map(|node| node.id).collect();
    Arc::new(Topic {
        name: METADATA_TOPIC.into(),
        id: METADATA_TOPIC_ID,
        partitions: vec![Partition { group: META_GROUP.0, replicas, founders: Vec::new() }],
        configs: BTreeMap::new(),
        created_ms: 0,
    })
}

/// Why it is not created, changed or deleted.
pub fn refusal() -> Refusal {
    let message = format!("{METADATA_TOPIC} is the metadata's own log: it can be read, and nothing else");
    Refusal::new(ErrorCode::InvalidTopicException, message)
}

/// Refuses what would change it.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if name == METADATA_TOPIC { Err(refusal()) } else { Ok(()) }
}
