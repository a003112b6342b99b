//! What the metadata says of brokers and of the cluster as a whole, and of partitions beside their topic.

use std::collections::BTreeMap;

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// A broker, as it registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    pub node: i32,
    /// Its peer id in every Raft group; another one means another disk.
    pub peer: u64,
    /// Of its process; later ones are larger.
    pub incarnation: u64,
    /// Where clients are served.
    pub kafka: HostPort,
    /// Where other brokers are.
    pub peer_addr: HostPort,
    pub cores: u16,
    pub rack: Option<String>,
    /// Of the program.
    pub version: String,
    pub status: BrokerStatus,
    /// The largest batch, in bytes, that the write-ahead ring of each of its cores takes. 0: its version does not say.
    pub largest_entry: u64,
    /// Replicas of partitions that its memory takes. 0: no limit, or its version does not say.
    pub replicas_max: u64,
    /// Partitions of the whole cluster whose metadata its memory takes. 0: as above.
    pub partitions_max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerStatus {
    Alive,
    /// The leader has not heard of it for a session: clients are not told of it.
    Fenced,
}

/// Who leads a partition, as its leader reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionLeader {
    pub term: u64,
    pub leader: i32,
    pub voters: Vec<i32>,
}

/// How far a partition has come, as its leader reported at most about a second ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    pub high_watermark: u64,
    pub log_start: u64,
    pub end_offset: u64,
}

/// The setting that holds the largest batch, in bytes, that any partition of the cluster takes. It only rises, and only as far as
/// the rings of all registered brokers allow: a follower that can't store what its leader has acknowledged could never follow again.
pub const LARGEST_ENTRY: &str = "largest.entry.bytes";

/// Settings of brokers that were changed at run time: for one node, or for all that have none of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// By node (`None`: all) and name.
    settings: BTreeMap<(Option<i32>, String), String>,
    /// What [`LARGEST_ENTRY`] says; 0 before anybody has set it.
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

    /// Sets a value, or takes it back. [`LARGEST_ENTRY`] keeps the larger of what it is and what it is set to.
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

    /// The largest batch, in bytes, that partitions take; `None` before any broker has said so.
    pub fn largest_entry(&self) -> Option<u64> {
        (self.largest_entry > 0).then_some(self.largest_entry)
    }

    /// What was set for just this node, or just for all.
    pub fn get(&self, node: Option<i32>, name: &str) -> Option<&str> {
        self.settings.get(&(node, name.to_owned())).map(String::as_str)
    }

    /// What is in force on a node.
    pub fn in_force(&self, node: i32, name: &str) -> Option<&str> {
        self.get(Some(node), name).or_else(|| self.get(None, name))
    }
}
