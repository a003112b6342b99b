//! Metadata about brokers and about the cluster as a whole, and the reports about partitions that are kept beside
//! their topic.

use std::collections::BTreeMap;
use types::Term;

/// An address that something listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// A broker, as it registered itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub node: i32,
    /// Its peer id in every Raft group. Another peer id means another disk.
    pub peer: u64,
    /// The number of its process. Later processes have larger numbers.
    pub incarnation: u64,
    /// The address for Kafka clients.
    pub kafka: HostPort,
    /// The address for other brokers.
    pub peer_addr: HostPort,
    pub cores: u16,
    pub rack: Option<String>,
    /// The version of the program.
    pub version: String,
    pub status: BrokerStatus,
    /// The largest batch, in bytes, that the write-ahead ring of each of its cores accepts. 0: its version does not
    /// report it.
    pub largest_entry: u64,
    /// The number of partition replicas that its memory allows. 0: no limit, or its version does not report it.
    pub replicas_max: u64,
    /// The number of partitions of the whole cluster whose metadata its memory allows. 0: as above.
    pub partitions_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerStatus {
    Alive,
    /// The metadata leader has not heard from the broker for a session timeout. Clients do not see it among the
    /// live brokers.
    Fenced,
}

/// The leader and voters of a partition, as its leader reported them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLeader {
    pub term: Term,
    pub leader: i32,
    pub voters: Vec<i32>,
}

/// The offsets of a partition, as its leader reported them at most about a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    pub high_watermark: u64,
    pub log_start: u64,
    pub end_offset: u64,
}

/// The setting that holds the largest batch, in bytes, that any partition of the cluster accepts. It only rises,
/// and only as far as the rings of all registered brokers allow. A follower that cannot store a batch which its
/// leader has acknowledged could never catch up.
pub const LARGEST_ENTRY: &str = "largest.entry.bytes";

/// Broker settings that were changed at run time: for one node, or for all nodes without a value of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// By node (`None`: all nodes) and name.
    settings: BTreeMap<(Option<i32>, String), String>,
    /// The value of [`LARGEST_ENTRY`]; 0 until it is set.
    largest_entry: u64,
}

impl FromIterator<((Option<i32>, String), String)> for ClusterConfig {
    fn from_iter<I: IntoIterator<Item = ((Option<i32>, String), String)>>(settings: I) -> Self {
        let mut config = Self::default();
        for ((node, name), value) in settings {
            config.set(node, &name, Some(&value));
        }
        config
    }
}

impl ClusterConfig {
    /// All settings, by node and name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&(Option<i32>, String), &String)> {
        self.settings.iter()
    }

    /// Sets a value, or removes it if `value` is `None`. [`LARGEST_ENTRY`] applies to all nodes and keeps the
    /// larger of its old and new values.
    pub(super) fn set(&mut self, node: Option<i32>, name: &str, value: Option<&str>) {
        let key = (node, name.to_owned());
        if name == LARGEST_ENTRY {
            self.largest_entry = self.largest_entry.max(value.and_then(|value| value.parse().ok()).unwrap_or(0));
            self.settings.insert((None, name.to_owned()), self.largest_entry.to_string());
            return;
        }
        match value {
            Some(value) => self.settings.insert(key, value.to_owned()),
            None => self.settings.remove(&key),
        };
    }

    /// The largest batch, in bytes, that partitions accept; `None` until it is set.
    pub fn largest_entry(&self) -> Option<u64> {
        (self.largest_entry > 0).then_some(self.largest_entry)
    }

    /// The value that was set for exactly this node, or (`None`) for all nodes.
    pub fn get(&self, node: Option<i32>, name: &str) -> Option<&str> {
        self.settings.get(&(node, name.to_owned())).map(String::as_str)
    }

    /// The value in force on a node: its own, else the one for all nodes.
    pub fn in_force(&self, node: i32, name: &str) -> Option<&str> {
        self.get(Some(node), name).or_else(|| self.get(None, name))
    }
}
