//! The network between simulated brokers: connections with TCP's guarantees that are late, stall and break.
//!
//! Messages of one connection arrive in order or not at all. Connections overtake each other. Nothing crosses a cut,
//! and nobody gets an error: messages wait until the cut has healed, or until the connection has been silent for too
//! long.

use super::exec::{self, ProcessId, World, world};
use ::net::peer::{
    Kind, Lane, PeerError, PeerFrame,
    auth::{Handshake, Secret, Step},
};
use bytes::{Bytes, BytesMut};
use consensus::wire;
use engine::{
    core::{Core, incoming::GroupHost},
    host::machine::{Connected, PeerConnection},
};
use runtime::backend::Later;
use runtime::{
    self as rt,
    sync::{Notify, Promise, promise},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    rc::Rc,
    time::Duration,
};

/// Bytes in transit on one connection beyond which its sender has to wait.
const IN_TRANSIT_MAX: usize = 256 << 10;
/// A connection closes after this time of silence (TCP_USER_TIMEOUT, see `net::peer`).
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Interval at which messages that wait at a cut are tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The peer port of node 0. Node n has port `PORT + n`.
const PORT: u16 = 9290;

/// The address of a node's peer port.
pub(super) fn address(node: i32) -> String {
    format!("127.0.0.1:{}", i32::from(PORT) + node)
}

/// A broker that accepts connections.
pub(super) trait Listener {
    fn id(&self) -> i32;
    fn process(&self) -> ProcessId;
    /// The broker's first core.
    fn first(&self) -> Rc<Core>;
    /// The core that serves connections from another broker's core with this number.
    fn core_for(&self, theirs: usize) -> Later<'_, Rc<Core>>;
}

thread_local! {
    static NET: RefCell<Rc<Net>> = RefCell::default();
}

/// The network of the simulation that runs.
pub(super) fn net() -> Rc<Net> {
    NET.with_borrow(Rc::clone)
}

/// Ends the network of a simulation that has ended.
pub(super) fn remove() {
    NET.take();
}

#[derive(Default)]
pub(super) struct Net {
    /// Brokers that accept connections.
    listening: RefCell<BTreeMap<i32, Rc<dyn Listener>>>,
    /// Pairs of nodes between which nothing passes, in this direction: from, to.
    cuts: RefCell<BTreeSet<(i32, i32)>>,
    open: RefCell<Vec<Rc<Connection>>>,
    /// If recording is on: the parts of each message that brokers have sent.
    pub(super) sent: RefCell<Option<Vec<Vec<Bytes>>>>,
    /// The longest latency of a message.
    pub(super) latency_max: Cell<Duration>,
}

struct Connection {
    from: i32,
    to: i32,
    /// Messages in transit, each with the moment from which on it may arrive.
    transit: RefCell<VecDeque<(Duration, PeerFrame)>>,
    transit_bytes: Cell<usize>,
    /// A carrying task for the messages in transit is scheduled.
    carried: Cell<bool>,
    stalled_since: Cell<Option<Duration>>,
    inbox: RefCell<VecDeque<PeerFrame>>,
    arrived: Notify,
    closed: Cell<bool>,
    changed: Notify,
}

impl Connection {
    fn close(&self) {
        self.closed.set(true);
        self.transit.take();
        self.arrived.notify();
        self.changed.notify();
    }

    /// Delivers the messages that are due.
    fn carry(self: &Rc<Self>, world: &World) {
        loop {
            let due = self.transit.borrow().front().map(|(due, _)| *due);
            let Some(due) = due.filter(|_| !self.closed.get()) else {
                return self.carried.set(false);
            };
            let now = world.time();
            if net().is_cut(self.from, self.to) {
                let since = self.stalled_since.get().unwrap_or(now);
                self.stalled_since.set(Some(since));
                if now - since > SILENCE_MAX {
                    return self.close();
                }
                return self.carry_in(world, RETRY);
            }
            self.stalled_since.set(None);
            if due > now {
                return self.carry_in(world, due - now);
            }
            let (_, frame) = self.transit.borrow_mut().pop_front().expect("it is due");
            self.transit_bytes.set(self.transit_bytes.get() - frame.bytes.len());
            self.inbox.borrow_mut().push_back(frame);
            self.arrived.notify();
            self.changed.notify();
        }
    }

    fn carry_in(self: &Rc<Self>, world: &World, wait: Duration) {
        let connection = self.clone();
        world.after(wait, move || connection.carry(&exec::world()));
    }
}

impl Net {
    pub(super) fn listen(&self, broker: Rc<dyn Listener>) {
        self.listening.borrow_mut().insert(broker.id(), broker);
    }

    pub(super) fn cut(&self, from: i32, to: i32) {
        self.cuts.borrow_mut().insert((from, to));
    }

    pub(super) fn heal(&self) {
        self.cuts.borrow_mut().clear();
    }

    pub(super) fn is_cut(&self, from: i32, to: i32) -> bool {
        self.cuts.borrow().contains(&(from, to))
    }

    fn latency(&self, world: &World) -> Duration {
        world.draw(Duration::from_micros(30)..self.latency_max.get())
    }

    /// Ends the connections of a node whose process has ended. Its machine tells the others, unless it is gone too
    /// (`silently`). Then they notice only because no answer comes.
    pub(super) fn end(&self, world: &World, node: i32, silently: bool) {
        self.listening.borrow_mut().remove(&node);
        let (its, others) = self.open.take().into_iter().partition(|open| open.from == node || open.to == node);
        *self.open.borrow_mut() = others;
        let its: Vec<Rc<Connection>> = its;
        for connection in its {
            if connection.to == node {
                // Nobody reads any more.
                connection.inbox.take();
            }
            if !silently && connection.from == node {
                // The system delivers or drops messages that the process had sent.
                let keep = world.place(connection.transit.borrow().len() + 1);
                connection.transit.borrow_mut().truncate(keep);
            }
            let wait = if silently { world.draw(Duration::ZERO..SILENCE_MAX) } else { self.latency(world) };
            world.after(wait, move || connection.close());
        }
    }
}

/// One broker's connection to another, at the side that opened it.
struct Outgoing {
    connection: Rc<Connection>,
    queued: Vec<PeerFrame>,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.connection.close();
    }
}

/// Connects and performs the handshake. Returns the other side's hello.
pub(super) async fn connect(address: String, from: i32, handshake: Handshake) -> Connected {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let to = i32::from(port.expect("an address has a port")) - i32::from(PORT);
    let (world, net) = (world(), net());
    if net.is_cut(from, to) || net.is_cut(to, from) {
        std::future::pending::<()>().await;
    }
    let latency = net.latency(&world);
    rt::sleep(latency).await;
    let listening = net.listening.borrow().get(&to).cloned();
    let listening = listening.ok_or(io::Error::from(io::ErrorKind::ConnectionRefused))?;
    let connection = Rc::new(Connection {
        from,
        to,
        transit: RefCell::default(),
        transit_bytes: Cell::new(0),
        carried: Cell::new(false),
        stalled_since: Cell::new(None),
        inbox: RefCell::default(),
        arrived: Notify::default(),
        closed: Cell::new(false),
        changed: Notify::default(),
    });
    net.open.borrow_mut().retain(|open| !open.closed.get());
    net.open.borrow_mut().push(connection.clone());
    let outgoing = Outgoing { connection: connection.clone(), queued: Vec::new() };
    let (met, meeting) = promise();
    world.spawn(listening.process(), take_in(listening.clone(), handshake, connection, met));
    let there = meeting.await.ok_or(io::Error::from(io::ErrorKind::ConnectionReset))??;
    rt::sleep(latency).await;
    Ok((Box::new(outgoing), there))
}

impl PeerConnection for Outgoing {
    fn push(&mut self, kind: Kind, lane: Lane, parts: Vec<Bytes>) {
        if let Some(sent) = &mut *net().sent.borrow_mut() {
            sent.push(parts.clone());
        }
        let mut bytes = BytesMut::new();
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        self.queued.push(PeerFrame::new(kind, lane, bytes.freeze()));
    }

    fn flush(&mut self) -> Later<'_, io::Result<()>> {
        Box::pin(async {
            let world = world();
            let connection = &self.connection;
            for frame in self.queued.drain(..) {
                let last = connection.transit.borrow().back().map_or(Duration::ZERO, |(due, _)| *due);
                let due = last.max(world.time() + net().latency(&world));
                connection.transit_bytes.set(connection.transit_bytes.get() + frame.bytes.len());
                connection.transit.borrow_mut().push_back((due, frame));
            }
            if !connection.carried.replace(true) {
                connection.carry_in(&world, Duration::ZERO);
            }
            while connection.transit_bytes.get() > IN_TRANSIT_MAX && !connection.closed.get() {
                connection.changed.next().await;
            }
            if connection.closed.get() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        })
    }

    fn ended(&mut self) -> Later<'_, PeerError> {
        Box::pin(async {
            while !self.connection.closed.get() {
                self.connection.changed.next().await;
            }
            PeerError::Closed
        })
    }
}

/// Performs a whole handshake at once. Returns the caller's hello and the answerer's.
fn shake_hands(mut caller: Handshake, mut answerer: Handshake) -> Result<(Bytes, Bytes), PeerError> {
    let mut on_way = VecDeque::from([(true, caller.begin())]);
    let (mut theirs, mut ours) = (None, None);
    while let Some((to_answerer, frame)) = on_way.pop_front() {
        let side = if to_answerer { &mut answerer } else { &mut caller };
        let frames = match side.take(frame)? {
            Step::Go(frames) => frames,
            Step::Met { send, theirs: hello } => {
                *(if to_answerer { &mut theirs } else { &mut ours }) = Some(hello);
                send
            }
        };
        on_way.extend(frames.into_iter().map(|frame| (!to_answerer, frame)));
    }
    Ok((theirs.ok_or(PeerError::Closed)?, ours.ok_or(PeerError::Closed)?))
}

/// The secret of simulated clusters.
pub(super) fn secret() -> Option<Secret> {
    Secret::new(&[7; 32])
}

/// The accepting side: performs the handshake, then receives messages.
async fn take_in(
    listening: Rc<dyn Listener>,
    caller: Handshake,
    connection: Rc<Connection>,
    met: Promise<Result<Bytes, PeerError>>,
) {
    let first = listening.first();
    let (theirs, ours) = match shake_hands(caller, first.peers().answering()) {
        Ok(hellos) => hellos,
        Err(error) => return met.keep(Err(error)),
    };
    let there = wire::decode_hello(&theirs).expect("brokers write hellos that can be read");
    if first.peers().meet(&there).is_err() {
        return;
    }
    met.keep(Ok(ours));
    drop(first);
    let core = listening.core_for(usize::from(there.core)).await;
    let (peers, host) = (core.peers().clone(), GroupHost(core));
    loop {
        let seen = connection.arrived.version();
        let frame = connection.inbox.borrow_mut().pop_front();
        match frame {
            Some(frame) => {
                if peers.take_frame(&frame, &there, &host).is_err() {
                    return connection.close();
                }
            }
            None if connection.closed.get() => return,
            None => connection.arrived.past(seen).await,
        }
    }
}
