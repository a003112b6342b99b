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

/// Settings of brokers that were changed at run time: for one node, or for all that have none of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterConfig {
    /// By node (`None`: all) and name.
    pub(super) settings: BTreeMap<(Option<i32>, String), String>,
}

impl ClusterConfig {
    /// What was set for just this node, or just for all.
    pub fn get(&self, node: Option<i32>, name: &str) -> Option<&str> {
        self.settings.get(&(node, name.to_owned())).map(String::as_str)
    }

    /// What is in force on a node.
    pub fn in_force(&self, node: i32, name: &str) -> Option<&str> {
        self.get(Some(node), name).or_else(|| self.get(None, name))
    }
}
