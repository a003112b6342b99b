//! Connections from others to this broker: authenticating them and receiving their messages.
//! Lives on: the core that listens; connections for another core are passed on to it.
//!
//! Invariants: no message is accepted before its sender has proved its identity. Invalid data ends its own connection
//! and nothing else.

use super::{Begun, Host, LinkError, Peers, count, tools, within};
use crate::log_limit::Admitted;
use consensus::{
    plane::node_of,
    wire::{self, Caller, Hello, PeerMessage},
};
use net::{
    peer::{self, FRAME_BYTES_MAX, Kind, PeerError, PeerFrame},
    transport::{
        conn::{FrameReader, FrameWriter},
        listen::{Accepted, Bound, Listener},
    },
};
use runtime::{
    clock,
    sync::{Either, race},
};
use std::{rc::Rc, sync::Arc, time::Duration};

impl Peers {
    /// Accepts connections until the broker stops.
    pub async fn accept<H: Host + 'static>(self: Rc<Self>, bound: Bound, host: Rc<H>) -> std::io::Result<()> {
        let listener = Listener::new(bound)?;
        loop {
            // Connections that are not accepted yet wait in the kernel.
            let next = async {
                self.strangers.has_room().await;
                listener.accept().await
            };
            match race(self.stopping.wait(), next).await {
                Either::First(()) => return Ok(()),
                Either::Second(Ok(accepted)) => self.take(accepted, &host),
                Either::Second(Err(error)) => {
                    let log = self.log.borrow().clone();
                    let own = listener.addr().ip();
                    if let Some(Admitted { left_out }) = log.admit(clock::now(), own, &error.to_string()) {
                        tracing::warn!(%error, left_out, "cannot accept a broker's connection; trying again in 100 ms");
                    }
                    runtime::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn take<H: Host + 'static>(self: &Rc<Self>, accepted: Accepted, host: &Rc<H>) {
        let from = accepted.peer();
        let (peers, host) = (self.clone(), host.clone());
        runtime::spawn(async move {
            match peers.serve(accepted, &host).await {
                Ok(()) | Err(LinkError::Peer(PeerError::Closed)) => {}
                Err(LinkError::NoCluster) => tracing::debug!(%from, "a broker without a cluster asked about ours"),
                Err(error) => {
                    let log = peers.log.borrow().clone();
                    match log.admit(clock::now(), from.ip(), &error.to_string()) {
                        Some(Admitted { left_out }) => {
                            tracing::warn!(%from, %error, left_out, "a connection on the peer port is closed");
                        }
                        None => tracing::debug!(%from, %error, "a connection on the peer port is closed"),
                    }
                }
            }
        });
    }

    async fn serve<H: Host + 'static>(self: &Rc<Self>, accepted: Accepted, host: &Rc<H>) -> Result<(), LinkError> {
        let (mut reader, mut writer) = peer::open(accepted)?;
        // A caller that knows the secret gets this broker's hello even if it is then rejected, so that it can report
        // why.
        let there =
            self.meet_stranger(&mut reader, &mut writer).await.inspect_err(|_| count(&self.stats.refused, 1))?;
        self.check_cluster(&there)?;
        if there.caller == Caller::Tool {
            return tools::serve(self, reader, writer, host).await;
        }
        self.take_caller(&there)?;
        let max = self.served_max.get();
        let served = self.served.clone();
        // Besides the clones of the connections there is the one that is cloned.
        if Arc::strong_count(&served) - 1 > max {
            count(&self.stats.refused, 1);
            return Err(LinkError::TooMany { node: there.node, max });
        }
        let core = usize::from(there.core % self.me.cores);
        if core != usize::from(self.me.core) {
            // A socket belongs to the core that opened it; a duplicate of it can go to another core.
            let accepted = reader.duplicate()?;
            host.hand_on(core, Begun { accepted, there, received: reader.take_received(), served });
            return Ok(());
        }
        self.listen_to(reader, &there, host).await
    }

    /// Lets a new connection prove its identity, within the bounds of `strangers` on time and number.
    async fn meet_stranger(&self, reader: &mut FrameReader, writer: &mut FrameWriter) -> Result<Hello, LinkError> {
        let stranger = self.strangers.enter();
        let meeting = within(peer::shake_hands(self.answering(), false, reader, writer));
        let met = race(stranger.gives_way.wait(), race(self.stopping.wait(), meeting)).await;
        self.strangers.leave(&stranger);
        match met {
            Either::First(()) => Err(LinkError::GaveWay),
            Either::Second(Either::First(())) => Err(PeerError::Closed.into()),
            Either::Second(Either::Second(hello)) => Ok(wire::decode_hello(&hello??)?),
        }
    }

    /// Takes over a connection that began on another core.
    pub fn take_over<H: Host + 'static>(self: &Rc<Self>, begun: Begun, host: Rc<H>) {
        let peers = self.clone();
        runtime::spawn(async move {
            let Begun { accepted, there, received, served: _served } = begun;
            let ended = match peer::open(accepted) {
                Ok((mut reader, _writer)) => {
                    reader.put_received(&received);
                    peers.listen_to(reader, &there, &host).await
                }
                Err(error) => Err(error.into()),
            };
            if let Err(error) = ended {
                tracing::debug!(node = there.node, %error, "a broker's connection is closed");
            }
        });
    }

    async fn listen_to<H: Host>(&self, mut reader: FrameReader, there: &Hello, host: &Rc<H>) -> Result<(), LinkError> {
        peer::trust(&mut reader, FRAME_BYTES_MAX);
        while let Some(frame) = self.next_frame(&mut reader).await? {
            self.take_frame(&frame, there, &**host)?;
        }
        Ok(())
    }

    /// Checks and passes on the messages in one frame from a broker.
    pub fn take_frame(&self, frame: &PeerFrame, there: &Hello, host: &dyn Host) -> Result<(), LinkError> {
        self.check_gone(there.node, there.peer)?;
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

    /// Checks the identity of a broker that has connected.
    fn take_caller(&self, there: &Hello) -> Result<(), LinkError> {
        if there.node == self.me.node {
            return Err(LinkError::SameNode { node: there.node, address: there.peer_addr.clone() });
        }
        // A peer id contains the id of its broker.
        if node_of(there.peer) != there.node {
            return Err(PeerError::NoBroker.into());
        }
        self.check_gone(there.node, there.peer)?;
        // A broker that connects can probably be reached, so retry the connection to it at once.
        if let Some(link) = self.book.borrow().get(&there.node) {
            link.stirred.notify();
        }
        Ok(())
    }

    /// Makes the same checks for a connection in a simulation.
    pub fn meet(&self, there: &Hello) -> Result<(), LinkError> {
        self.check_cluster(there)?;
        self.take_caller(there)
    }

    /// The next frame; `None` when the connection has ended or this broker stops.
    pub(super) async fn next_frame(&self, reader: &mut FrameReader) -> Result<Option<PeerFrame>, PeerError> {
        match race(self.stopping.wait(), peer::read(reader)).await {
            Either::First(()) => Ok(None),
            Either::Second(frame) => frame,
        }
    }

    /// Whether a Raft message comes from the peer at the other end and names this broker's present peer id. After a
    /// change of disk, a broker has another peer id. Beats count only from the registered peer, or a broker that
    /// started with the node id of another would pass for it.
    fn is_between_us(&self, there: &Hello, message: &PeerMessage) -> bool {
        let is_so = match message {
            PeerMessage::Raft { message, .. } | PeerMessage::Append { message, .. } => {
                message.from == there.peer && message.to == self.me.peer
            }
            PeerMessage::Beat(_) => {
                self.registered.borrow().get(&there.node).is_none_or(|registered| *registered == there.peer)
            }
            _ => true,
        };
        count(&self.stats.dropped, usize::from(!is_so));
        is_so
    }
}
