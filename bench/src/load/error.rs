//! Why a connection of a load ended, or why an operation on it failed.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use consensus::wire::WireError;
use net::client::AnswerError;
use net::codec::response::EncodeError;
use net::errors::ErrorCode;
use net::peer::PeerError;
use net::records::record::ReadError;
use net::transport::conn::ConnError;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: SocketAddr, source: io::Error },
    #[error("cannot connect to {addr} within {patience:?}")]
    ConnectTimeout { addr: SocketAddr, patience: Duration },
    /// The peer port's greeting failed.
    #[error("{addr}: {source}")]
    Handshake { addr: SocketAddr, source: PeerError },
    #[error("no answer of {addr} within {patience:?}")]
    HandshakeTimeout { addr: SocketAddr, patience: Duration },
    #[error("the broker closed the connection")]
    Closed,
    #[error("not answered {} s after the end", .patience.as_secs())]
    Unanswered { patience: Duration },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Connection(#[from] ConnError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Records(#[from] ReadError),
    /// The broker rejected the request as a whole.
    #[error(transparent)]
    Refused(#[from] ErrorCode),
    #[error("partition {index}: {error}")]
    Partition { index: i32, error: ErrorCode },
    #[error("the answer names no topic")]
    NoTopic,
    #[error("a record has no stamp: another program writes to this topic; choose another --topic")]
    NoStamp,
}
