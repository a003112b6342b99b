//! Metadata: commands, the slices that apply them, and the views derived from them.
//!
//! | module | contents |
//! |---|---|
//! | `cluster` | brokers, cluster settings, and reports about partitions |
//! | `command` | commands, and their encoding in the log (FlatBuffers) |
//! | `room` | counts of replicas and partitions, and the check whether brokers have memory for more |
//! | `slice` | one slice of the keyspace: applies commands deterministically |
//! | `slice_answers` | recent answers of a slice, so that a retried request is applied once |
//! | `snapshot` | all slices at one index, as bytes |
//! | `query` | queries that a view answers |
//! | `view` | the view of all topics that each core builds from the slices' deltas |
//!
//! One core owns each slice. A topic's slice number is the CRC-32C of its name modulo [`SLICES`], a constant of the
//! cluster's format.

mod cluster;
mod command;
mod encoding;
mod names;
mod query;
mod room;
mod slice;
mod slice_answers;
mod snapshot;
mod view;

pub use cluster::{Broker, BrokerStatus, ClusterConfig, HostPort, LARGEST_ENTRY, PartitionLeader, Watermark};
pub use command::{
    Command, DecodeError, LeaderReport, Origin, Request, WatermarkReport, decode, decode_requests, encode,
    encode_requests,
};
pub use encoding::RestoreError;
pub use names::{NameError, check_topic_name};
pub use query::{
    ANSWERS_BYTES_MAX, Assignment, QUERIES_MAX, Query, QueryAnswer, decode_queries, decode_query_answers,
    encode_queries, encode_query_answers,
};
pub use room::{NoRoom, Placed};
pub use slice::{Applied, Delta, Outcome, Rejection, RequestResult, Slice};
pub use slice_answers::{ANSWERS_MAX, AskedTooLate, decode_results, encode_results};
pub use snapshot::{Joint, join, restore};
pub use view::View;

use std::{collections::BTreeMap, sync::Arc};
use types::{GroupId, SLICES, SliceId};
use uuid::Uuid;

/// The key of everything that belongs to no topic. No topic can have this name.
const CLUSTER_KEY: &str = "\0cluster";

/// The slice of everything that belongs to a topic.
pub fn slice_of_topic(name: &str) -> SliceId {
    SliceId((crc32c::crc32c(name.as_bytes()) % SLICES as u32) as u16)
}

/// The slice of everything that belongs to no topic.
pub fn slice_of_cluster() -> SliceId {
    slice_of_topic(CLUSTER_KEY)
}

/// One partition as the metadata knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its Raft group, the same on every replica. A group id is never reused.
    pub group: GroupId,
    /// The nodes that hold it. The preferred leader comes first.
    pub replicas: Vec<i32>,
    /// The first voters of its group: the peer ids that these nodes had when the partition was created.
    pub founders: Vec<u64>,
}

/// A topic. All views of all cores share it; a change creates a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: Arc<str>,
    pub id: Uuid,
    pub partitions: Vec<Partition>,
    /// Only the settings of this topic itself, without defaults.
    pub configs: BTreeMap<String, String>,
    /// The creation time, in ms since the epoch.
    pub created_ms: i64,
}

#[cfg(test)]
mod tests;
