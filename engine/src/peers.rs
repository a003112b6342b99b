//! The way to other brokers: connections of one core to theirs, and theirs to it.
//! Lives on: core 0. Knows nothing of what the messages mean.
//!
//! Each broker opens its own connections to every other, one per lane, and answers travel on the other's: sending is fire and
//! forget. What can't be sent now is dropped, since whoever wants an answer asks again; it is never kept for a later connection.
//!
//! Invariants: a message for a peer reaches that peer, or nobody; nothing of another cluster is taken in.

use crate::{
    rt,
    sync::{Either, Notify, race},
};
use consensus::{
    plane::node_of,
    wire::{self, Caller, Hello, PeerMessage, ToolRequest, ToolResponse},
};
use net::{
    conn::{self, FrameReader, FrameWriter},
    listen::{Accepted, Bound, Listener},
    peer::{self, FRAME_BYTES_MAX, Kind, Lane, PeerError, PeerFrame},
};
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    rc::Rc,
    time::Duration,
};

/// First and longest pause before a connection is tried again.
const RECONNECT_MIN: Duration = Duration::from_millis(50);
const RECONNECT_MAX: Duration = Duration::from_millis(800);
/// How long a connection, its hello or one write may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that wait for a broker at most, by lane; beyond it messages are dropped.
const CONTROL_BYTES_MAX: usize = 32 << 20;
const BULK_BYTES_MAX: usize = 4 << 20;
/// About so many bytes leave in one frame.
const FRAME_BYTES: usize = 1 << 20;
/// A tool's requests that are in progress at most.
const TOOL_REQUESTS_MAX: usize = 1024;

type Answering = Pin<Box<dyn Future<Output = ToolResponse>>>;

/// Who takes what comes in.
pub trait Host {
    fn receive(&self, from: i32, messages: Vec<PeerMessage>);
    fn answer(&self, request: ToolRequest) -> Answering;
}

/// What went over the connections since the start.
#[derive(Default)]
pub struct PeerStats {
    pub sent: Cell<u64>,
    pub received: Cell<u64>,
    pub dropped: Cell<u64>,
    pub connected: Cell<u64>,
}

fn count(cell: &Cell<u64>, n: usize) {
    cell.set(cell.get() + n as u64);
}

pub struct Peers {
    me: Hello,
    book: RefCell<BTreeMap<i32, Rc<Link>>>,
    stats: PeerStats,
    stopped: Cell<bool>,
}

/// The way to one broker.
struct Link {
    node: i32,
    address: RefCell<String>,
    /// Named by the operator: what the broker says of itself does not change it.
    is_seed: bool,
    forgotten: Cell<bool>,
    lanes: [Rc<Way>; 2],
}

/// One lane of it.
struct Way {
    bytes_max: usize,
    queue: RefCell<VecDeque<PeerMessage>>,
    queued_bytes: Cell<usize>,
    /// The peer that is there, while there is a connection.
    there: Cell<Option<u64>>,
    /// Moves when something was queued.
    work: Notify,
    /// Moves when there is room again.
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

    /// What leaves in the next frame.
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

    fn clear(&self) -> usize {
        let dropped = self.queue.take().len();
        self.queued_bytes.set(0);
        self.room.notify();
        dropped
    }
}

impl Peers {
    /// `me`: what this broker says of itself. `seeds`: where the operator says that brokers are.
    pub fn new(me: Hello, seeds: impl IntoIterator<Item = (i32, String)>) -> Rc<Self> {
        let peers =
            Rc::new(Self { me, book: RefCell::default(), stats: PeerStats::default(), stopped: Cell::new(false) });
        for (node, address) in seeds {
            peers.add(node, address, true);
        }
        peers
    }

    pub fn stats(&self) -> &PeerStats {
        &self.stats
    }

    /// The other brokers that are known.
    pub fn nodes(&self) -> Vec<i32> {
        self.book.borrow().keys().copied().collect()
    }

    fn add(self: &Rc<Self>, node: i32, address: String, is_seed: bool) {
        if node == self.me.node {
            return;
        }
        let lanes = [Way::new(CONTROL_BYTES_MAX), Way::new(BULK_BYTES_MAX)];
        let forgotten = Cell::new(false);
        let link = Rc::new(Link { node, address: RefCell::new(address), is_seed, forgotten, lanes });
        self.book.borrow_mut().insert(node, link.clone());
        for lane in [Lane::Control, Lane::Bulk] {
            rt::spawn(self.clone().keep_connected(link.clone(), lane));
        }
    }

    /// Where a broker says that it is. Where the operator says so counts more.
    pub fn set_address(self: &Rc<Self>, node: i32, address: String) {
        let known = self.book.borrow().get(&node).cloned();
        match known {
            None => self.add(node, address, false),
            Some(link) if !link.is_seed => *link.address.borrow_mut() = address,
            Some(_) => {}
        }
    }

    /// The broker is not of this cluster any more.
    pub fn forget(&self, node: i32) {
        let link = self.book.borrow_mut().remove(&node);
        if let Some(link) = link {
            link.forgotten.set(true);
            link.lanes.iter().for_each(|way| way.work.notify());
        }
    }

    /// Sends a message to a peer, if it is there.
    pub fn send(&self, to: u64, message: PeerMessage) {
        self.push(node_of(to), Some(to), Lane::Control, message);
    }

    /// Sends a message to whatever peer a broker is now.
    pub fn send_to_node(&self, node: i32, message: PeerMessage) {
        self.push(node, None, Lane::Control, message);
    }

    fn push(&self, node: i32, peer: Option<u64>, lane: Lane, message: PeerMessage) {
        let book = self.book.borrow();
        let way = book.get(&node).map(|link| &link.lanes[lane as usize]);
        let is_there = |way: &&Rc<Way>| way.there.get().is_some_and(|there| peer.is_none_or(|peer| peer == there));
        if !way.filter(is_there).is_some_and(|way| way.push(message)) {
            count(&self.stats.dropped, 1);
        }
    }

    /// Sends bulk to a peer, once there is room; `false` if it is not there.
    pub async fn send_bulk(&self, to: u64, message: PeerMessage) -> bool {
        let Some(link) = self.book.borrow().get(&node_of(to)).cloned() else { return false };
        let way = &link.lanes[Lane::Bulk as usize];
        let bytes = wire::weight(&message);
        loop {
            let seen = way.room.version();
            if way.there.get() != Some(to) {
                return false;
            }
            let queued = way.queued_bytes.get();
            if queued == 0 || queued + bytes <= way.bytes_max {
                return way.push(message);
            }
            way.room.past(seen).await;
        }
    }

    /// Ends all connections.
    pub fn stop(&self) {
        self.stopped.set(true);
        for link in self.book.borrow().values() {
            link.lanes.iter().for_each(|way| way.work.notify());
        }
    }
}

/// Towards others.
impl Peers {
    async fn keep_connected(self: Rc<Self>, link: Rc<Link>, lane: Lane) {
        let way = link.lanes[lane as usize].clone();
        let mut pause = RECONNECT_MIN;
        let mut told = String::new();
        while !self.stopped.get() && !link.forgotten.get() {
            match self.connect(&link, lane).await {
                Ok((reader, writer, there)) => {
                    pause = RECONNECT_MIN;
                    told.clear();
                    count(&self.stats.connected, 1);
                    way.there.set(Some(there));
                    let ended = self.pump(&link, &way, lane, reader, writer).await;
                    way.there.set(None);
                    count(&self.stats.dropped, way.clear());
                    tracing::debug!(node = link.node, ?lane, why = %ended, "a connection to a broker has ended");
                }
                Err(why) => {
                    let why = why.to_string();
                    if why != told {
                        tracing::info!(node = link.node, address = %link.address.borrow(), why, "no way to a broker; trying on");
                        told = why;
                    }
                }
            }
            rt::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn connect(&self, link: &Link, lane: Lane) -> Result<(FrameReader, FrameWriter, u64), LinkError> {
        let address = link.address.borrow().clone();
        let addr = resolve(address).await?;
        let stream = within(conn::connect(addr)).await??;
        let (mut reader, mut writer) = conn::open(stream, FRAME_BYTES_MAX)?;
        peer::push(&mut writer, PeerFrame::new(Kind::Hello, lane, wire::encode_hello(&self.me)));
        within(writer.flush()).await??;
        let frame = within(peer::read(&mut reader)).await??.ok_or(PeerError::Closed)?;
        if frame.kind != Kind::Hello {
            return Err(PeerError::NoBroker.into());
        }
        let there = wire::decode_hello(&frame.bytes)?;
        self.check(&there)?;
        if there.node != link.node {
            return Err(LinkError::OtherNode { found: there.node, expected: link.node });
        }
        Ok((reader, writer, there.peer))
    }

    /// Sends what is queued until the connection ends.
    async fn pump(
        &self,
        link: &Link,
        way: &Way,
        lane: Lane,
        mut reader: FrameReader,
        mut writer: FrameWriter,
    ) -> LinkError {
        loop {
            let seen = way.work.version();
            if self.stopped.get() || link.forgotten.get() {
                return PeerError::Closed.into();
            }
            let messages = way.take();
            if !messages.is_empty() {
                peer::push(&mut writer, PeerFrame::new(Kind::Messages, lane, wire::encode(&messages)));
                match within(writer.flush()).await {
                    Ok(Ok(())) => count(&self.stats.sent, messages.len()),
                    Ok(Err(error)) => return error.into(),
                    Err(late) => return late,
                }
                continue;
            }
            // Nothing comes on this connection but its end.
            match race(way.work.past(seen), peer::read(&mut reader)).await {
                Either::First(()) => {}
                Either::Second(Ok(None)) => return PeerError::Closed.into(),
                Either::Second(Ok(Some(_))) => return PeerError::NoBroker.into(),
                Either::Second(Err(error)) => return error.into(),
            }
        }
    }

    fn check(&self, there: &Hello) -> Result<(), LinkError> {
        match (&there.cluster_id, &self.me.cluster_id) {
            (Some(theirs), Some(ours)) if theirs != ours => {
                Err(LinkError::OtherCluster { theirs: theirs.clone(), ours: ours.clone(), node: there.node })
            }
            (None, _) => Err(LinkError::NoCluster),
            _ => Ok(()),
        }
    }
}

/// From others.
impl Peers {
    /// Accepts connections until the broker stops.
    pub async fn accept<H: Host + 'static>(self: Rc<Self>, bound: Bound, host: Rc<H>) -> std::io::Result<()> {
        let listener = Listener::new(bound)?;
        while !self.stopped.get() {
            match listener.accept().await {
                Ok(accepted) => {
                    let (peers, host) = (self.clone(), host.clone());
                    rt::spawn(async move { peers.serve(accepted, &host).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a broker's connection; trying again in 100 ms");
                    rt::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Ok(())
    }

    async fn serve<H: Host + 'static>(&self, accepted: Accepted, host: &Rc<H>) {
        let from = accepted.peer();
        match self.serve_until(accepted, host).await {
            Ok(()) | Err(LinkError::Peer(PeerError::Closed)) => {}
            Err(LinkError::NoCluster) => tracing::debug!(%from, "a broker without a cluster has asked for ours"),
            Err(error) => tracing::warn!(%from, %error, "a connection on the peer port is closed"),
        }
    }

    async fn serve_until<H: Host + 'static>(&self, accepted: Accepted, host: &Rc<H>) -> Result<(), LinkError> {
        let (mut reader, mut writer) = conn::open(accepted, FRAME_BYTES_MAX)?;
        let frame = within(peer::read(&mut reader)).await??.ok_or(PeerError::Closed)?;
        if frame.kind != Kind::Hello {
            return Err(PeerError::NoBroker.into());
        }
        let there = wire::decode_hello(&frame.bytes)?;
        // Even who is refused hears whom it has reached, and can say so.
        peer::push(&mut writer, PeerFrame::new(Kind::Hello, frame.lane, wire::encode_hello(&self.me)));
        within(writer.flush()).await??;
        if there.caller == Caller::Tool {
            return self.serve_tool(reader, writer, host).await;
        }
        self.check(&there)?;
        while let Some(frame) = peer::read(&mut reader).await? {
            if self.stopped.get() {
                break;
            }
            if frame.kind != Kind::Messages {
                return Err(PeerError::NoBroker.into());
            }
            let messages = wire::decode(&frame.bytes)?;
            count(&self.stats.received, messages.len());
            host.receive(there.node, messages);
        }
        Ok(())
    }

    /// Answers a tool's requests, in the order in which they are done.
    async fn serve_tool<H: Host + 'static>(
        &self,
        mut reader: FrameReader,
        writer: FrameWriter,
        host: &Rc<H>,
    ) -> Result<(), LinkError> {
        let answers = Rc::new(Answers { writer: RefCell::new(Some(writer)), ..Answers::default() });
        let sending = answers.clone();
        rt::spawn(async move { sending.send_all().await });
        let served = loop {
            let room = async {
                while answers.open.get() >= TOOL_REQUESTS_MAX {
                    answers.changed.next().await;
                }
            };
            room.await;
            let frame = match peer::read(&mut reader).await {
                Ok(Some(frame)) if frame.kind == Kind::Request => frame,
                Ok(Some(_)) => break Err(PeerError::NoBroker.into()),
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            };
            let request = match wire::decode_request(&frame.bytes) {
                Ok(request) => request,
                Err(error) => break Err(error.into()),
            };
            answers.open.set(answers.open.get() + 1);
            let (answering, answers) = (host.answer(request), answers.clone());
            rt::spawn(async move {
                let response = answering.await;
                answers.ready.borrow_mut().push(response);
                answers.open.set(answers.open.get() - 1);
                answers.changed.notify();
            });
        };
        answers.ended.set(true);
        answers.changed.notify();
        served
    }
}

/// Answers on their way to a tool.
#[derive(Default)]
struct Answers {
    writer: RefCell<Option<FrameWriter>>,
    ready: RefCell<Vec<ToolResponse>>,
    open: Cell<usize>,
    ended: Cell<bool>,
    changed: Notify,
}

impl Answers {
    async fn send_all(&self) {
        let mut writer = self.writer.take().expect("it is sent by one task");
        loop {
            let seen = self.changed.version();
            let ready = self.ready.take();
            if ready.is_empty() {
                if self.ended.get() && self.open.get() == 0 {
                    return;
                }
                self.changed.past(seen).await;
                continue;
            }
            for response in ready {
                let frame = PeerFrame::new(Kind::Response, Lane::Control, wire::encode_response(&response));
                peer::push(&mut writer, frame);
            }
            if !matches!(within(writer.flush()).await, Ok(Ok(()))) {
                // The reader notices, too.
                return writer.shutdown();
            }
        }
    }
}

/// Why there is no way to a broker, or none from one.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Wire(#[from] wire::WireError),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("'{address}' can't be resolved: {why}")]
    Unresolved { address: String, why: String },
    #[error(
        "broker {node} belongs to the cluster {theirs}, this one to {ours}; check the addresses in --seeds, or empty the data \
         directory of the one that is to change"
    )]
    OtherCluster { theirs: String, ours: String, node: i32 },
    #[error("it belongs to no cluster yet")]
    NoCluster,
    #[error("broker {found} is there, not {expected}; check the addresses in --seeds")]
    OtherNode { found: i32, expected: i32 },
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T, LinkError> {
    match race(future, rt::sleep(PATIENCE)).await {
        Either::First(value) => Ok(value),
        Either::Second(()) => Err(LinkError::Late),
    }
}

/// Names are looked up off the core.
async fn resolve(address: String) -> Result<SocketAddr, LinkError> {
    if let Ok(addr) = address.parse() {
        return Ok(addr);
    }
    let name = address.clone();
    let found = rt::blocking(move || name.to_socket_addrs().map(|mut found| found.next())).await;
    let unresolved = |why: String| LinkError::Unresolved { address, why };
    match found {
        Ok(Some(addr)) => Ok(addr),
        Ok(None) => Err(unresolved("the name has no address".to_owned())),
        Err(error) => Err(unresolved(error.to_string())),
    }
}
