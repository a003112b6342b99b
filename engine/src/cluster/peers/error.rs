//! Why a connection between brokers failed.

use super::{strangers::STRANGERS_MAX, tools::TOOLS_MAX};
use consensus::wire;
use net::peer::PeerError;
use std::time::Duration;

/// Why a connection to or from a broker failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("'{address}' can't be resolved: {why}")]
    Unresolved { address: String, why: String },
    #[error(
        "{caller} belongs to the cluster {theirs}, this broker to {ours}; check the addresses in --seeds, or empty \
         the data directory of the broker that is to move"
    )]
    OtherCluster { theirs: String, ours: String, caller: String },
    #[error("the broker at {address} has the node id {node}, too; give each broker a --node-id of its own")]
    SameNode { node: i32, address: String },
    #[error(
        "peer {peer:#x}, a disk of broker {node}, was removed from the cluster; empty its data directory, and the \
         broker joins again"
    )]
    Removed { node: i32, peer: u64 },
    #[error("broker {node} has to wait: {max} connections of brokers are open (peer.max.connections)")]
    TooMany { node: i32, max: usize },
    #[error("{TOOLS_MAX} tools are connected; try again when one has disconnected")]
    TooManyTools,
    #[error("a tool was idle for {} s; it may connect again", .0.as_secs())]
    IdleTool(Duration),
    #[error("it did not authenticate before {STRANGERS_MAX} newer connections came")]
    GaveWay,
    #[error("it belongs to no cluster yet")]
    NoCluster,
    #[error("broker {found} answers there, not {expected}; check the addresses in --seeds")]
    OtherNode { found: i32, expected: i32 },
}

impl LinkError {
    /// Whether the error lasts until an operator changes something.
    pub(super) fn needs_a_hand(&self) -> bool {
        use LinkError::{OtherCluster, OtherNode, Peer, Removed, SameNode, Wire};
        match self {
            OtherCluster { .. } | SameNode { .. } | OtherNode { .. } | Removed { .. } | Wire(_) => true,
            Peer(error) => !matches!(error, PeerError::Io(_) | PeerError::Closed | PeerError::Cut),
            _ => false,
        }
    }
}
