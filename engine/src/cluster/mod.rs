//! The cluster: how brokers found or join one, its metadata, and the connections between brokers.

pub mod bootstrap;
mod calling;
pub mod internal_topics;
pub mod meta;
pub mod node_id;
pub mod peers;
pub mod placement;
pub mod secret;

use crate::config::value::HostPort;

/// A broker's identity in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This broker's peer id in every group. It changes with a new disk.
    pub peer: u64,
    /// Identifies this process. Later processes of the broker have larger values.
    pub incarnation: u64,
    /// The metadata group's first voters.
    pub founding: Vec<u64>,
    /// The address at which other brokers reach this one.
    pub peer_addr: HostPort,
}
