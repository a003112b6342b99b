//! Calls one broker before the cores run: connects to it and shakes hands.
//! Lives on: the main thread.

use consensus::wire::{self, Hello};
use net::peer::{
    BlockingPeer, Lane, PeerError,
    auth::{Handshake, Secret, nonce},
};
use std::{
    io,
    net::ToSocketAddrs,
    time::{Duration, Instant},
};

/// How long one connect, read or write may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// How long the handshake may take, and all that follows it.
pub(super) const CALL_MAX: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error("the name has no address")]
    NoAddress,
}

/// Returns the connection, and the other side's hello.
pub(super) fn call(hello: &Hello, secret: Option<Secret>, address: &str) -> Result<(BlockingPeer, Hello), CallError> {
    let addr = address.to_socket_addrs()?.next().ok_or(CallError::NoAddress)?;
    let mut peer = BlockingPeer::connect(addr, PATIENCE)?;
    peer.set_deadline(Instant::now() + CALL_MAX);
    let handshake = Handshake::caller(secret, Lane::Control, wire::encode_hello(hello), nonce());
    let theirs = wire::decode_hello(&peer.shake_hands(handshake, true)?)?;
    Ok((peer, theirs))
}
