//! Connections of others to this broker: who they are, and what they send.
//! Lives on: the core that listens.
//!
//! Invariants: nothing is taken in before its sender has said who it is; what does not verify ends its connection, and only that.

use super::{Begun, Host, LinkError, Peers, count, tools, within};
use crate::{
    connection_log::Admitted,
    rt,
    sync::{Either, race},
};
use consensus::wire::{self, Caller, Hello, PeerMessage};
use net::{
    conn::FrameReader,
    listen::{Accepted, Bound, Listener},
    peer::{self, Kind, PeerError, PeerFrame},
};
use std::{rc::Rc, time::Duration};

impl Peers {
    /// Accepts connections until the broker stops.
    pub async fn accept<H: Host + 'static>(self: Rc<Self>, bound: Bound, host: Rc<H>) -> std::io::Result<()> {
        let listener = Listener::new(bound)?;
        loop {
            match race(self.stopping.wait(), listener.accept()).await {
                Either::First(()) => return Ok(()),
                Either::Second(Ok(accepted)) => self.take(accepted, &host),
                Either::Second(Err(error)) => {
                    tracing::warn!(%error, "cannot accept a broker's connection; trying again in 100 ms");
                    rt::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn take<H: Host + 'static>(self: &Rc<Self>, accepted: Accepted, host: &Rc<H>) {
        let from = accepted.peer();
        let max = self.served_max.get();
        if self.served.get() >= max {
            if let Some(Admitted { left_out }) = self.log.borrow().admit(from.ip(), "too many") {
                tracing::warn!(%from, left_out, "closing a connection on the peer port: {max} are open (peer.max.connections)");
            }
            return;
        }
        self.served.set(self.served.get() + 1);
        let (peers, host) = (self.clone(), host.clone());
        rt::spawn(async move {
            match peers.serve(accepted, &host).await {
                Ok(()) | Err(LinkError::Peer(PeerError::Closed)) => {}
                Err(LinkError::NoCluster) => tracing::debug!(%from, "a broker without a cluster has asked for ours"),
                Err(error) => {
                    let log = peers.log.borrow().clone();
                    match log.admit(from.ip(), &error.to_string()) {
                        Some(Admitted { left_out }) => {
                            tracing::warn!(%from, %error, left_out, "a connection on the peer port is closed");
                        }
                        None => tracing::debug!(%from, %error, "a connection on the peer port is closed"),
                    }
                }
            }
            peers.served.set(peers.served.get() - 1);
        });
    }

    async fn serve<H: Host + 'static>(&self, accepted: Accepted, host: &Rc<H>) -> Result<(), LinkError> {
        // A socket belongs to the core on which it was opened; its duplicate can go to another.
        let duplicate = accepted.try_clone()?;
        let (mut reader, mut writer) = peer::open(accepted)?;
        let frame = within(peer::read(&mut reader)).await??.ok_or(PeerError::Closed)?;
        if frame.kind != Kind::Hello {
            return Err(PeerError::NoBroker.into());
        }
        let there = wire::decode_hello(&frame.bytes)?;
        // Even who is refused hears whom it has reached, and can say so.
        peer::push(&mut writer, PeerFrame::new(Kind::Hello, frame.lane, wire::encode_hello(&self.me)));
        within(writer.flush()).await??;
        self.check_cluster(&there)?;
        if there.caller == Caller::Tool {
            return tools::serve(self, reader, writer, host).await;
        }
        self.take_caller(&there)?;
        let core = usize::from(there.core % self.me.cores);
        if core != usize::from(self.me.core) {
            host.hand_on(core, Begun { accepted: duplicate, there });
            return Ok(());
        }
        drop(duplicate);
        self.listen_to(reader, &there, host).await
    }

    /// Takes over a connection that began on another core.
    pub fn take_over<H: Host + 'static>(self: &Rc<Self>, begun: Begun, host: Rc<H>) {
        let peers = self.clone();
        rt::spawn(async move {
            let Begun { accepted, there } = begun;
            let ended = match peer::open(accepted) {
                Ok((reader, _writer)) => peers.listen_to(reader, &there, &host).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = ended {
                tracing::debug!(node = there.node, %error, "a broker's connection is closed");
            }
        });
    }

    async fn listen_to<H: Host>(&self, mut reader: FrameReader, there: &Hello, host: &Rc<H>) -> Result<(), LinkError> {
        while let Some(frame) = self.next_frame(&mut reader).await? {
            self.take_frame(&frame, there, &**host)?;
        }
        Ok(())
    }

    /// Hands on what a broker sent in one frame.
    pub(crate) fn take_frame(&self, frame: &PeerFrame, there: &Hello, host: &dyn Host) -> Result<(), LinkError> {
        let mut messages = match frame.kind {
            Kind::Messages => wire::decode(&frame.bytes)?,
            Kind::Batches => wire::decode_with_payloads(&frame.bytes)?,
            _ => return Err(PeerError::NoBroker.into()),
        };
        count(&self.stats.received, messages.len());
        count(&self.stats.received_bytes, frame.bytes.len());
        messages.retain(|message| self.is_between_us(there, message));
        host.receive(there.node, messages);
        Ok(())
    }

    /// Takes a connection of another broker's, as far as who it is goes.
    fn take_caller(&self, there: &Hello) -> Result<(), LinkError> {
        if there.node == self.me.node {
            return Err(LinkError::SameNode { node: there.node, address: there.peer_addr.clone() });
        }
        // Who comes to us can be reached, most likely.
        if let Some(link) = self.book.borrow().get(&there.node) {
            link.stirred.notify();
        }
        Ok(())
    }

    /// What is said to who connects in a simulation, if it is taken in.
    #[cfg(test)]
    pub(crate) fn meet(&self, there: &Hello) -> Result<Hello, LinkError> {
        self.check_cluster(there)?;
        self.take_caller(there)?;
        Ok(self.me.clone())
    }

    /// `None` when there is no more, or this broker stops.
    pub(super) async fn next_frame(&self, reader: &mut FrameReader) -> Result<Option<PeerFrame>, PeerError> {
        match race(self.stopping.wait(), peer::read(reader)).await {
            Either::First(()) => Ok(None),
            Either::Second(frame) => frame,
        }
    }

    /// Whether a message comes from the peer whose connection it is and is meant for this one, not for one that its disk was before.
    fn is_between_us(&self, there: &Hello, message: &PeerMessage) -> bool {
        let (PeerMessage::Raft { message, .. } | PeerMessage::Append { message, .. }) = message else { return true };
        let is_so = message.from == there.peer && message.to == self.me.peer;
        count(&self.stats.dropped, usize::from(!is_so));
        is_so
    }
}
