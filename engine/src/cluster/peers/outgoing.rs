//! One connection to another broker, on one lane. Frames only go out; only the hello and the end come in.

use super::{CONNECT_PATIENCE, LinkError, draw_nonce, in_time, resolve, within};
use crate::host::machine::{self, PeerConnection};
use bytes::Bytes;
use consensus::wire::{self, Frame, Hello, PeerMessage};
use net::{
    peer::{
        self, CARRIED_BYTES_MAX, Kind, Lane, PeerError,
        auth::{Handshake, Secret},
    },
    transport::conn::{self, FrameReader, FrameWriter},
};
use std::io;

pub(super) enum Outgoing {
    Tcp { reader: FrameReader, writer: FrameWriter },
    Simulated(Box<dyn PeerConnection>),
}

impl Outgoing {
    /// Connects and exchanges hellos. Returns the other side's hello.
    pub(super) async fn open(
        address: String,
        lane: Lane,
        me: &Hello,
        secret: Option<Secret>,
    ) -> Result<(Self, Hello), LinkError> {
        let handshake = Handshake::caller(secret, lane, wire::encode_hello(me), draw_nonce());
        if let Some(machine) = machine::installed() {
            let connected = in_time(CONNECT_PATIENCE, machine.connect(address, me.node, handshake)).await?;
            let (outgoing, there) = connected?;
            return Ok((Self::Simulated(outgoing), wire::decode_hello(&there)?));
        }
        let addr = resolve(address).await?;
        let stream = in_time(CONNECT_PATIENCE, conn::connect(addr)).await??;
        let (mut reader, mut writer) = peer::open(stream)?;
        let there = within(peer::shake_hands(handshake, true, &mut reader, &mut writer)).await??;
        Ok((Self::Tcp { reader, writer }, wire::decode_hello(&there)?))
    }

    /// Queues a frame.
    pub(super) fn push(&mut self, kind: Kind, lane: Lane, parts: Vec<Bytes>) {
        match self {
            Self::Tcp { writer, .. } => peer::push_parts(writer, kind, lane, parts),
            Self::Simulated(outgoing) => outgoing.push(kind, lane, parts),
        }
    }

    /// Sends the queued frames.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp { writer, .. } => writer.flush().await,
            Self::Simulated(outgoing) => outgoing.flush().await,
        }
    }

    /// Waits for the connection to end.
    pub(super) async fn ended(&mut self) -> PeerError {
        match self {
            Self::Tcp { reader, .. } => match peer::read(reader).await {
                Ok(None) => PeerError::Closed,
                Ok(Some(_)) => PeerError::NoBroker,
                Err(error) => error,
            },
            Self::Simulated(outgoing) => outgoing.ended().await,
        }
    }
}

/// Packs the messages into one frame, or into one frame each if together they are too large. A message too large for
/// any frame is dropped. Returns the frames and the number of messages in them.
pub(super) fn frames(to: i32, messages: &[PeerMessage]) -> (Vec<Frame>, usize) {
    let all = Frame::new(messages);
    if frame_bytes(&all) <= CARRIED_BYTES_MAX {
        return (vec![all], messages.len());
    }
    let mut frames: Vec<_> = messages.iter().map(|message| Frame::new(std::slice::from_ref(message))).collect();
    frames.retain(|frame| {
        let fits = frame_bytes(frame) <= CARRIED_BYTES_MAX;
        if !fits {
            tracing::error!(to, bytes = frame_bytes(frame), "a message to a broker is too large and was dropped");
        }
        fits
    });
    let fitting = frames.len();
    (frames, fitting)
}

/// Bytes of a frame's content. Messages with payloads have their length in front.
pub(super) fn frame_bytes(frame: &Frame) -> usize {
    let length = if frame.payloads.is_empty() { 0 } else { 4 };
    length + frame.messages.len() + frame.payloads.iter().map(Bytes::len).sum::<usize>()
}
