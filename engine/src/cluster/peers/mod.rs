//! Connections between one core and the cores of other brokers.
//! Lives on: every core. It talks to the core of the same number on each other broker, modulo that broker's number of
//! cores. This module does not know what the messages mean.
//!
//! Each core opens its own connections to every other broker, one per lane. Answers travel on the other broker's
//! connections, so sending is fire and forget. Core 0 accepts all connections and passes each on to its core. A
//! message that cannot be sent now is dropped: it is never kept for a later connection, and a sender that needs an
//! answer retries.
//!
//! | module | is |
//! |---|---|
//! | `error` | why a connection failed |
//! | `incoming` | connections from others: authentication and received messages |
//! | `outgoing` | one connection to another broker |
//! | `strangers` | connections that have not proved their identity yet |
//! | `tools` | a tool's connection: requests and their answers |
//!
//! First, both sides prove that they know the cluster's secret (`net::peer::auth`).
//!
//! Invariants: a message for a peer reaches that peer or nobody; nothing from another cluster is accepted.

mod error;
mod incoming;
mod outgoing;
mod strangers;
#[cfg(test)]
mod tests;
mod tools;

pub use error::LinkError;
use outgoing::{Outgoing, frame_bytes, frames};
use strangers::{STRANGERS_MAX, Strangers};
use tools::ToolShare;

use crate::log_limit::LogLimit;
use bytes::Bytes;
use consensus::{
    plane::node_of,
    wire::{self, Caller, Hello, PeerMessage, ToolRequest, ToolResponse},
};
use net::{
    peer::{
        Kind, Lane, PeerError,
        auth::{self, Handshake, Nonce, Secret},
    },
    transport::listen::Accepted,
};
use runtime::sync::{Either, Flag, Notify, race};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

/// Shortest and longest pause before a connection is retried; each varies by up to a quarter. If the broker itself
/// connects here, the connection is retried at once.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_millis(800);
/// Most time to establish a connection. It equals TCP's first retransmission timeout. TCP waits longer and longer
/// after that, but a healed cut must be noticed soon.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// Most time for a hello or one write.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes queued for a broker, by lane. When full, messages are dropped.
const CONTROL_BYTES_MAX: usize = 32 << 20;
const BULK_BYTES_MAX: usize = 4 << 20;
const DATA_BYTES_MAX: usize = 64 << 20;
/// Approximate size of one frame.
const FRAME_BYTES: usize = 1 << 20;

/// Draws a nonce for a handshake. It was never used before.
fn draw_nonce() -> Nonce {
    auth::nonce_of([runtime::draw_uuid(), runtime::draw_uuid()])
}

/// The answer to a tool's request.
pub type Answering = Pin<Box<dyn Future<Output = ToolResponse>>>;

/// Receives what comes in.
pub trait Host {
    fn receive(&self, from: i32, messages: Vec<PeerMessage>);
    fn answer(&self, request: ToolRequest) -> Answering;
    /// Passes a connection on to another core, after its handshake.
    fn hand_on(&self, core: usize, connection: Begun);
}

/// A broker's connection after the exchange of hellos, on its way to its core.
pub struct Begun {
    accepted: Accepted,
    there: Hello,
    /// Bytes already received after the handshake.
    received: Bytes,
    /// Counts it among the connections of the core that accepted it.
    served: Arc<()>,
}

/// Counters since the start.
#[derive(Default)]
pub struct PeerStats {
    /// Messages sent to other brokers. `sent_bytes`: the bytes of their frames.
    pub sent: Cell<u64>,
    pub sent_bytes: Cell<u64>,
    pub received: Cell<u64>,
    pub received_bytes: Cell<u64>,
    /// Messages dropped because the peer was away, the queue was full, the connection ended or a check failed.
    pub dropped: Cell<u64>,
    /// Connections established to other brokers.
    pub connected: Cell<u64>,
    /// Incoming connections closed because they did not prove their identity, or because there were too many.
    pub refused: Cell<u64>,
}

fn count(cell: &Cell<u64>, n: usize) {
    cell.set(cell.get() + n as u64);
}

pub struct Peers {
    me: Hello,
    secret: Option<Secret>,
    book: RefCell<BTreeMap<i32, Rc<Link>>>,
    stats: PeerStats,
    /// Notified when a connection to a broker has begun or ended.
    pub comings: Notify,
    stopping: Flag,
    /// One clone for each connection of a broker that this core accepted, whichever core serves it.
    served: Arc<()>,
    /// Above this number of connections, new ones are closed. Tools and strangers have limits of their own.
    served_max: Cell<usize>,
    strangers: Strangers,
    tools: ToolShare,
    /// Peers that were removed from the cluster.
    gone: RefCell<Arc<BTreeSet<u64>>>,
    /// The registered peer of each other broker.
    registered: RefCell<BTreeMap<i32, u64>>,
    /// Decides which ends of incoming connections are logged. Replaced by the core's own once it exists.
    log: RefCell<Rc<LogLimit>>,
}

/// All connections to one broker.
struct Link {
    node: i32,
    address: RefCell<String>,
    /// The operator named this address, so the broker cannot change it.
    is_seed: bool,
    forgotten: Cell<bool>,
    /// Notified when the connection should be retried at once, or given up.
    stirred: Notify,
    lanes: [Rc<Way>; 3],
}

/// The connection to one broker on one lane.
struct Way {
    bytes_max: usize,
    queue: RefCell<VecDeque<PeerMessage>>,
    queued_bytes: Cell<usize>,
    /// The connected peer, while there is a connection.
    there: Cell<Option<u64>>,
    /// Notified when a message was queued.
    work: Notify,
    /// Notified when there is room again, and when a peer has come or gone.
    room: Notify,
}

impl Way {
    fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self {
            bytes_max,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            there: Cell::new(None),
            work: Notify::default(),
            room: Notify::default(),
        })
    }

    fn push(&self, message: PeerMessage) -> bool {
        let bytes = wire::weight(&message);
        if self.queued_bytes.get() + bytes > self.bytes_max && self.queued_bytes.get() > 0 {
            return false;
        }
        self.queued_bytes.set(self.queued_bytes.get() + bytes);
        self.queue.borrow_mut().push_back(message);
        self.work.notify();
        true
    }

    /// Takes the messages of the next frame.
    fn take(&self) -> Vec<PeerMessage> {
        let mut queue = self.queue.borrow_mut();
        let mut bytes = 0;
        let mut taken = Vec::new();
        while bytes < FRAME_BYTES
            && let Some(message) = queue.pop_front()
        {
            bytes += wire::weight(&message);
            taken.push(message);
        }
        self.queued_bytes.set(self.queued_bytes.get() - bytes);
        drop(queue);
        self.room.notify();
        taken
    }

    fn peer_is(&self, there: Option<u64>) {
        self.there.set(there);
        self.room.notify();
    }

    fn clear(&self) -> usize {
        self.queued_bytes.set(0);
        self.queue.take().len()
    }
}

impl Peers {
    /// `me`: the hello of this broker. `secret`: what others must prove to know; `None`: nothing. `seeds`: addresses
    /// of brokers, from the operator.
    pub fn new(me: Hello, secret: Option<Secret>, seeds: impl IntoIterator<Item = (i32, String)>) -> Rc<Self> {
        let peers = Rc::new(Self {
            me,
            secret,
            book: RefCell::default(),
            stats: PeerStats::default(),
            comings: Notify::default(),
            stopping: Flag::default(),
            served: Arc::default(),
            served_max: Cell::new(usize::MAX),
            strangers: Strangers::default(),
            tools: ToolShare::default(),
            gone: RefCell::default(),
            registered: RefCell::default(),
            log: RefCell::default(),
        });
        for (node, address) in seeds {
            peers.add(node, address, true);
        }
        peers
    }

    /// Shares the log of connections, and its limits, with the core's other ports.
    pub fn log_with(&self, log: Rc<LogLimit>) {
        *self.log.borrow_mut() = log;
    }

    /// Limits the connections of brokers to `connections`. Strangers get half as many, at most `STRANGERS_MAX`, and
    /// tools a quarter, at most `TOOLS_MAX`.
    pub fn serve_at_most(&self, connections: usize) {
        self.served_max.set(connections);
        self.strangers.max.set(STRANGERS_MAX.min(connections / 2));
    }

    pub fn stats(&self) -> &PeerStats {
        &self.stats
    }

    /// The handshake of this side, for an incoming connection of a broker or tool.
    pub fn answering(&self) -> Handshake {
        Handshake::answerer(self.secret.clone(), wire::encode_hello(&self.me), draw_nonce())
    }

    /// Number of strangers evicted.
    pub fn strangers_evicted(&self) -> u64 {
        self.strangers.evicted.get()
    }

    /// Open connections of tools.
    pub fn tools_open(&self) -> usize {
        self.tools.open.get()
    }

    /// The other brokers known here.
    pub fn nodes(&self) -> Vec<i32> {
        self.book.borrow().keys().copied().collect()
    }

    /// Whether there is a connection to the broker now, on the control lane.
    pub fn is_there(&self, node: i32) -> bool {
        let book = self.book.borrow();
        book.get(&node).is_some_and(|link| link.lanes[Lane::Control as usize].there.get().is_some())
    }

    /// The peers to which there is a connection now, on the control lane.
    pub fn reached(&self) -> BTreeSet<u64> {
        let book = self.book.borrow();
        book.values().filter_map(|link| link.lanes[Lane::Control as usize].there.get()).collect()
    }

    /// The known brokers to which there is no connection now.
    pub fn away(&self) -> Vec<i32> {
        self.nodes().into_iter().filter(|node| !self.is_there(*node)).collect()
    }

    fn add(self: &Rc<Self>, node: i32, address: String, is_seed: bool) {
        if node == self.me.node {
            return;
        }
        let lanes = [CONTROL_BYTES_MAX, BULK_BYTES_MAX, DATA_BYTES_MAX].map(Way::new);
        let link = Rc::new(Link {
            node,
            address: RefCell::new(address),
            is_seed,
            forgotten: Cell::new(false),
            stirred: Notify::default(),
            lanes,
        });
        self.book.borrow_mut().insert(node, link.clone());
        self.comings.notify();
        for lane in [Lane::Control, Lane::Bulk, Lane::Data] {
            runtime::spawn(self.clone().keep_connected(link.clone(), lane));
        }
    }

    /// Sets the address that a broker reports. An address from the operator takes precedence.
    pub fn set_address(self: &Rc<Self>, node: i32, address: String) {
        let known = self.book.borrow().get(&node).cloned();
        match known {
            None => self.add(node, address, false),
            Some(link) if !link.is_seed && *link.address.borrow() != address => {
                *link.address.borrow_mut() = address;
                link.stirred.notify();
            }
            Some(_) => {}
        }
    }

    /// The broker no longer belongs to this cluster.
    pub fn forget(&self, node: i32) {
        self.registered.borrow_mut().remove(&node);
        let link = self.book.borrow_mut().remove(&node);
        if let Some(link) = link {
            link.forgotten.set(true);
            link.end();
        }
    }

    /// Sets the peers that were removed from the cluster and must not return. Connections to and from them end.
    pub fn set_gone(&self, peers: Arc<BTreeSet<u64>>) {
        *self.gone.borrow_mut() = peers;
        for link in self.book.borrow().values() {
            link.lanes.iter().for_each(|way| way.work.notify());
        }
    }

    /// Sets the peer that is registered as a broker. Beats of others with its node id are dropped.
    pub fn set_registered(&self, node: i32, peer: u64) {
        self.registered.borrow_mut().insert(node, peer);
    }

    fn check_gone(&self, node: i32, peer: u64) -> Result<(), LinkError> {
        if self.gone.borrow().contains(&peer) { Err(LinkError::Removed { node, peer }) } else { Ok(()) }
    }

    /// Sends a message to a peer if it is connected.
    pub fn send(&self, to: u64, message: PeerMessage) {
        self.push(node_of(to), Some(to), Lane::Control, message);
    }

    /// Sends a message to a peer on a lane, if it is connected and the lane has room.
    pub fn send_on(&self, lane: Lane, to: u64, message: PeerMessage) {
        self.push(node_of(to), Some(to), lane, message);
    }

    /// Sends a message to all connected brokers.
    pub fn send_to_all(&self, message: &PeerMessage) {
        for node in self.nodes().into_iter().filter(|node| self.is_there(*node)) {
            self.send_to_node(node, message.clone());
        }
    }

    /// Whether there is a connection to this very peer.
    pub fn has_peer(&self, peer: u64) -> bool {
        let book = self.book.borrow();
        let link = book.get(&node_of(peer));
        link.is_some_and(|link| link.lanes[Lane::Control as usize].there.get() == Some(peer))
    }

    /// Waits until the bulk queue of every connected broker is at most half full.
    pub async fn bulk_room(&self) {
        let links: Vec<_> = self.book.borrow().values().cloned().collect();
        for link in links {
            let way = &link.lanes[Lane::Bulk as usize];
            loop {
                let seen = way.room.version();
                if way.there.get().is_none() || way.queued_bytes.get() <= way.bytes_max / 2 || self.is_over(&link) {
                    break;
                }
                way.room.past(seen).await;
            }
        }
    }

    /// Sends a message to a broker, whatever its peer id is now.
    pub fn send_to_node(&self, node: i32, message: PeerMessage) {
        self.push(node, None, Lane::Control, message);
    }

    fn push(&self, node: i32, peer: Option<u64>, lane: Lane, message: PeerMessage) {
        let book = self.book.borrow();
        let way = book.get(&node).map(|link| &link.lanes[lane as usize]);
        let is_there = |way: &&Rc<Way>| {
            let there = way.there.get().filter(|_| !self.stopping.is_set());
            there.is_some_and(|there| peer.is_none_or(|peer| peer == there))
        };
        if !way.filter(is_there).is_some_and(|way| way.push(message)) {
            count(&self.stats.dropped, 1);
        }
    }

    /// Sends bulk to a peer once there is room; `false` if the peer is not connected.
    pub async fn send_bulk(&self, to: u64, message: PeerMessage) -> bool {
        let Some(link) = self.book.borrow().get(&node_of(to)).cloned() else { return false };
        let way = &link.lanes[Lane::Bulk as usize];
        let bytes = wire::weight(&message);
        loop {
            let seen = way.room.version();
            if way.there.get() != Some(to) || self.stopping.is_set() {
                return false;
            }
            let queued = way.queued_bytes.get();
            if queued == 0 || queued + bytes <= way.bytes_max {
                return way.push(message);
            }
            way.room.past(seen).await;
        }
    }

    /// Ends all connections after the queued messages have been sent.
    pub fn stop(&self) {
        self.stopping.set();
        self.book.borrow().values().for_each(|link| link.end());
    }
}

impl Link {
    /// Wakes the link's tasks, which then see that they must end.
    fn end(&self) {
        self.stirred.notify();
        self.lanes.iter().for_each(|way| way.work.notify());
    }
}

/// Connections to others.
impl Peers {
    async fn keep_connected(self: Rc<Self>, link: Rc<Link>, lane: Lane) {
        let way = link.lanes[lane as usize].clone();
        let mut pause = RECONNECT_MIN;
        let mut told = String::new();
        while !self.is_over(&link) {
            let mut stirred = link.stirred.version();
            match self.connect(&link, lane).await {
                Ok((connection, there)) => {
                    pause = RECONNECT_MIN;
                    if !std::mem::take(&mut told).is_empty() {
                        tracing::info!(node = link.node, "connected to a broker");
                    }
                    count(&self.stats.connected, 1);
                    way.peer_is(Some(there));
                    self.comings.notify();
                    let ended = self.pump(&link, &way, lane, connection).await;
                    count(&self.stats.dropped, way.clear());
                    way.peer_is(None);
                    self.comings.notify();
                    stirred = link.stirred.version();
                    tracing::debug!(node = link.node, ?lane, why = %ended, "a connection to a broker has ended");
                }
                // The error usually concerns all lanes and cores, so only this one logs it.
                Err(error) if lane == Lane::Control && self.me.core == 0 => {
                    let why = error.to_string();
                    if why != told {
                        let address = link.address.borrow();
                        if error.needs_a_hand() {
                            tracing::warn!(node = link.node, %address, why, "cannot connect to a broker; retrying");
                        } else {
                            tracing::info!(node = link.node, %address, why, "cannot connect to a broker; retrying");
                        }
                        told = why;
                    }
                }
                Err(_) => {}
            }
            if !self.is_over(&link) {
                race(link.stirred.past(stirred), runtime::sleep(pause.mul_f64(0.75 + 0.5 * fastrand::f64()))).await;
            }
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    fn is_over(&self, link: &Link) -> bool {
        self.stopping.is_set() || link.forgotten.get()
    }

    async fn connect(&self, link: &Link, lane: Lane) -> Result<(Outgoing, u64), LinkError> {
        let address = link.address.borrow().clone();
        let (connection, there) = Outgoing::open(address, lane, &self.me, self.secret.clone()).await?;
        self.check_cluster(&there)?;
        if there.node != link.node {
            return Err(LinkError::OtherNode { found: there.node, expected: link.node });
        }
        self.check_gone(there.node, there.peer)?;
        Ok((connection, there.peer))
    }

    /// Sends queued messages until the connection ends.
    async fn pump(&self, link: &Link, way: &Way, lane: Lane, mut connection: Outgoing) -> LinkError {
        loop {
            let seen = way.work.version();
            if let Some(Err(gone)) = way.there.get().map(|there| self.check_gone(link.node, there)) {
                return gone;
            }
            let messages = way.take();
            if !messages.is_empty() {
                let (frames, fitting) = frames(link.node, &messages);
                count(&self.stats.dropped, messages.len() - fitting);
                let bytes = frames.iter().map(frame_bytes).sum();
                for frame in frames {
                    let kind = if frame.payloads.is_empty() { Kind::Messages } else { Kind::Batches };
                    connection.push(kind, lane, frame.into_parts());
                }
                if let Err(error) = within(connection.flush()).await.and_then(|sent| Ok(sent?)) {
                    count(&self.stats.dropped, fitting);
                    return error;
                }
                count(&self.stats.sent, fitting);
                count(&self.stats.sent_bytes, bytes);
                continue;
            }
            if self.is_over(link) {
                return PeerError::Closed.into();
            }
            if let Either::Second(ended) = race(way.work.past(seen), connection.ended()).await {
                return ended.into();
            }
        }
    }

    fn check_cluster(&self, there: &Hello) -> Result<(), LinkError> {
        match (&there.cluster_id, &self.me.cluster_id) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                Err(LinkError::OtherCluster { theirs: theirs.clone(), ours: ours.clone(), caller: named(there) })
            }
            (None, _) if there.caller == Caller::Broker => Err(LinkError::NoCluster),
            _ => Ok(()),
        }
    }
}

fn named(there: &Hello) -> String {
    match there.caller {
        Caller::Tool => "a tool".to_owned(),
        Caller::Broker => format!("broker {} at {}", there.node, there.peer_addr),
    }
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, LinkError> {
    in_time(PATIENCE, future).await
}

async fn in_time<T>(patience: Duration, future: impl Future<Output = T>) -> Result<T, LinkError> {
    match race(future, runtime::sleep(patience)).await {
        Either::First(value) => Ok(value),
        Either::Second(()) => Err(LinkError::Late(patience)),
    }
}

/// Resolves a name. DNS lookups run off the core.
async fn resolve(address: String) -> Result<SocketAddr, LinkError> {
    if let Ok(addr) = address.parse() {
        return Ok(addr);
    }
    let name = address.clone();
    let found = runtime::blocking(move || name.to_socket_addrs().map(|mut found| found.next())).await;
    let unresolved = |why: String| LinkError::Unresolved { address, why };
    match found {
        Ok(Some(addr)) => Ok(addr),
        Ok(None) => Err(unresolved("the name has no address".to_owned())),
        Err(error) => Err(unresolved(error.to_string())),
    }
}
