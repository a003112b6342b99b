//! Metadata: commands, the slices that apply them, and the views derived from them.
//!
//! | module | is |
//! |---|---|
//! | `cluster` | brokers, settings of the cluster, reports of partitions |
//! | `command` | commands, and their form in the log (FlatBuffers) |
//! | `room` | how many replicas and partitions there are, and whether brokers have memory for more |
//! | `slice` | one slice of the keyspace: applies commands, deterministically |
//! | `slice_answers` | what a slice answered, so that a request that comes twice is applied once |
//! | `snapshot` | all slices at one index, as bytes |
//! | `query` | what is asked of views |
//! | `view` | what every core knows of all topics, from the slices' deltas |
//!
//! A slice is owned by one core; its number is the CRC-32C of the topic's name modulo [`SLICES`], a constant of the cluster's format.

mod cluster;
mod command;
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
pub use query::{
    ANSWERS_BYTES_MAX, Assignment, QUERIES_MAX, Query, QueryAnswer, decode_queries, decode_query_answers,
    encode_queries, encode_query_answers,
};
pub use room::{NoRoom, Placed};
pub use slice::{Applied, Delta, NameError, Outcome, Rejection, RequestResult, Slice, check_topic_name};
pub use slice_answers::{ANSWERS_MAX, AskedTooLate, decode_results, encode_results};
pub use snapshot::{Joint, join, restore};
pub use view::View;

use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// How many slices the keyspace is cut into; never changes in a cluster.
pub const SLICES: usize = 256;

/// The key of all that belongs to no topic. No topic can have this name.
const CLUSTER_KEY: &str = "\0cluster";

/// One of the [`SLICES`] parts of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId(pub u16);

impl SliceId {
    /// The slice of all that belongs to a topic.
    pub fn of_topic(name: &str) -> Self {
        Self((crc32c::crc32c(name.as_bytes()) % SLICES as u32) as u16)
    }

    /// The slice of what belongs to no topic.
    pub fn of_cluster() -> Self {
        Self::of_topic(CLUSTER_KEY)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..SLICES as u16).map(Self)
    }
}

/// One partition as the metadata knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its Raft group, on every replica. Never used again.
    pub group: u64,
    /// The nodes that hold it, the preferred leader first.
    pub replicas: Vec<i32>,
    /// The first voters of its group: the peers that these nodes were when it was made.
    pub founders: Vec<u64>,
}

/// A topic. Shared by all cores' views; a change makes a new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub name: Arc<str>,
    pub id: Uuid,
    pub partitions: Vec<Partition>,
    /// Only what was set for this topic.
    pub configs: BTreeMap<String, String>,
    /// In ms since the epoch.
    pub created_ms: i64,
}

#[cfg(test)]
mod bounds_tests;
#[cfg(test)]
mod room_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod speculation_tests;
#[cfg(test)]
mod tests;
