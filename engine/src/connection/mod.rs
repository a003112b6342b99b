//! Client connections: accepted on any core, spread evenly, served in order.
//! Lives on: every core. Talks to: `net` (frames), [`crate::handlers`] (the meaning of requests).
//!
//! A connection's requests start in the order they came and are answered in that order. A produce request starts
//! before the one ahead of it is answered, so that pipelined batches share a group commit.
//!
//! Bounds:
//! - `max.connections` and `max.connections.per.ip` limit the broker's connections (`quota`).
//! - [`receiving::IN_FLIGHT_MAX`] limits the requests of one connection. The share of requests limits those of a core
//!   ([`crate::memory`]). A connection at either limit is not read until there is room.
//!
//! If a client has closed its sending side, its reads of records (fetches) and its waits for the members of a group are
//! dropped. The client may still read its other answers, for [`HALF_CLOSED_MAX`]. Then, or once nothing can be
//! sent any more, the connection ends. Requests that only read are dropped, and so are batches that still wait for
//! room. Other requests go on without it.

mod answering;
mod aside;
pub mod client;
mod quota;
mod receiving;
pub mod reply;
mod stalled;

pub use quota::Spread;
pub use stalled::close_stalled;

use crate::{
    log_limit::{Admitted, LogLimit},
    memory::{FREE_DECODED_BYTES, Memory, Reservation},
    on_core::OnCore,
};
use answering::HALF_CLOSED_MAX;
use client::Client;
use net::{
    codec::{
        api::ApiKey,
        header::RequestHeader,
        request::{self, DecodeError, Request, Undecoded},
    },
    transport::{
        conn::{self, ConnError, ConnHandle, FrameReader},
        listen::{Accepted, Bound, Listener},
    },
};
use quota::{Addresses, Silent};
use receiving::{Frame, FrameMemory, next_frame};
use reply::{Pending, Reply, unknown_api_versions, waits_for_members};
use runtime::{
    clock,
    sync::{Either, Flag, Notify, line::Line, race},
};
use slab::Slab;
use stalled::Motion;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use types::CoreId;

/// How long a request waits for memory to be decoded. Then its connection is closed: a change must not be made long
/// after its client has given up.
const DECODE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a request that waits, for example for the leaders of new topics, keeps the memory for its decoded form.
/// After that, little of it is left.
const DECODED_HELD_MAX: Duration = Duration::from_secs(10);

/// One core's connections.
pub struct Connections {
    spread: Arc<Spread>,
    pub(crate) silent: Silent,
    pub(crate) addresses: Addresses,
    open: RefCell<Slab<Rc<Connection>>>,
    /// Bytes of requests that are started and not answered, over all connections of this core. Excludes requests
    /// with a reservation.
    small_bytes: Cell<usize>,
    /// Bytes of answers that clients have not taken yet.
    unsent_bytes: Cell<usize>,
    /// Connections that have ended while requests of theirs go on.
    ended_early: Cell<usize>,
    /// Notified when an answer or a connection is finished.
    changed: Notify,
}

/// A core, as its connections see it.
pub trait Host: OnCore {
    fn connections(&self) -> &Rc<Connections>;
    fn memory(&self) -> &Memory;
    /// Limits the lines about connections.
    fn connection_log(&self) -> &LogLimit;
    /// Work for the thread beside this core, see `aside`.
    fn beside(&self) -> &Line;
    /// Starts a request of this client.
    fn start(self: &Rc<Self>, client: &Rc<Client>, header: &RequestHeader, request: Request) -> Pending;
    /// Gives a connection to the core that is to serve it.
    fn give(self: &Rc<Self>, to: CoreId, accepted: Accepted);
    /// On the core that counts an address: counts one more connection from it, unless the maximum is reached.
    fn enter_address(self: &Rc<Self>, on: CoreId, from: IpAddr, max: usize) -> impl Future<Output = bool>;
    /// A connection from the address is gone. This follows its [`Host::enter_address`].
    fn leave_address(self: &Rc<Self>, on: CoreId, from: IpAddr);
    /// Closes the connection of a core that has been silent for longest, to make room for another.
    fn close_oldest(self: &Rc<Self>, on: CoreId) -> impl Future<Output = ()>;
}

/// Requests that go on without a connection. A core that drains waits for them.
pub struct GoingOn(Rc<Connections>);

impl GoingOn {
    pub fn of(connections: &Rc<Connections>) -> Self {
        connections.ended_early.update(|count| count + 1);
        Self(connections.clone())
    }
}

impl Drop for GoingOn {
    fn drop(&mut self) {
        self.0.ended_early.update(|count| count - 1);
        self.0.changed.notify();
    }
}

struct Connection {
    peer: SocketAddr,
    closing: Notify,
    /// Set once its socket is closed and it is no longer counted.
    ended: Rc<Flag>,
    handle: ConnHandle,
    client: Rc<Client>,
    /// The next reply to send is still being worked on.
    is_working: Cell<bool>,
    /// The next frame waits for memory.
    awaits_memory: Cell<bool>,
    activity: Activity,
    /// Bytes reserved for a frame while the client has yet to send more of it. 0: no such frame.
    receiving: Cell<usize>,
    receives_over: Cell<bool>,
    received: Motion,
    sent: Motion,
    /// Requests that are started and not answered: those in `answers`, and the one whose turn it is.
    in_flight: Cell<usize>,
    answers: RefCell<VecDeque<InFlight>>,
    /// Notified when a request was started, and when the reader is done.
    started: Notify,
    /// Notified when an answer is finished.
    answered: Notify,
    read_to_end: Cell<bool>,
    /// The client sends nothing any more. It is gone, or only reads its remaining answers.
    quit: Flag,
    /// Until when it may read them.
    half_closed_until: Cell<Duration>,
    /// Nothing can be sent any more.
    gone: Flag,
}

/// The state at the last check by [`Connections::close_idle`].
struct Activity {
    moved_bytes: Cell<u64>,
    /// When a check last found the connection in use.
    at: Cell<Instant>,
}

impl Connection {
    fn new(peer: SocketAddr, handle: ConnHandle, ended: Rc<Flag>) -> Self {
        let now = Instant::now();
        Self {
            peer,
            closing: Notify::default(),
            ended,
            client: Rc::new(Client::new(peer, Some(handle.clone()))),
            handle,
            is_working: Cell::new(false),
            awaits_memory: Cell::new(false),
            activity: Activity { moved_bytes: Cell::new(0), at: Cell::new(now) },
            receiving: Cell::new(0),
            receives_over: Cell::new(false),
            received: Motion::new(now),
            sent: Motion::new(now),
            in_flight: Cell::new(0),
            answers: RefCell::default(),
            started: Notify::default(),
            answered: Notify::default(),
            read_to_end: Cell::new(false),
            quit: Flag::default(),
            half_closed_until: Cell::default(),
            gone: Flag::default(),
        }
    }

    /// Publishes the reservation of a frame that the client has yet to complete.
    fn receives(&self, reserved: Option<&Reservation>) {
        self.receiving.set(reserved.map_or(0, Reservation::bytes));
        self.receives_over.set(reserved.is_some_and(Reservation::is_over));
    }

    /// The client has closed its sending side, or sends what nobody can read.
    fn half_closed(&self) {
        // A reader that waited for room may have seen it before.
        if !self.quit.is_set() {
            self.half_closed_until.set(clock::now() + HALF_CLOSED_MAX);
            self.quit.set();
        }
    }

    /// Closes the socket. This also wakes the connection if it waits for its client to read an answer.
    fn cut(&self) {
        self.quit.set();
        self.gone.set();
        self.closing.notify();
        self.handle.shutdown();
    }

    /// Bytes of memory reserved for requests whose answers have yet to be queued.
    fn requests_bytes(&self) -> usize {
        let answers = self.answers.borrow();
        answers.iter().filter_map(|request| request.memory.as_ref()).map(FrameMemory::reserved).sum()
    }

    /// Whether requests are started or queued.
    fn is_busy(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// How long the broker has waited for the client: nothing was received, sent or worked on. A client that waits for
    /// a fetch, to join a group, or for memory for its request is not idle. A client that does not read its answers is.
    fn idle_time(&self, now: Instant) -> Duration {
        let moved_bytes = self.handle.moved_bytes();
        let waits_for_us = self.is_working.get() || (self.awaits_memory.get() && self.handle.unsent_bytes() == 0);
        if waits_for_us || self.activity.moved_bytes.replace(moved_bytes) != moved_bytes {
            self.activity.at.set(now);
        }
        now.saturating_duration_since(self.activity.at.get())
    }
}

struct InFlight {
    header: RequestHeader,
    answer: Pending,
    /// `None`: the answer holds it.
    memory: Option<FrameMemory>,
}

impl InFlight {
    /// A request that is started. It holds its frame's memory until it is answered. If it waits for the members of a
    /// group, it gives the memory back as soon as the coordinator has its own copy.
    fn new(client: &Rc<Client>, header: RequestHeader, answer: Pending, memory: FrameMemory) -> Self {
        // The client's id is a slice of the frame, and no answer needs it.
        let header = RequestHeader { client_id: None, ..header };
        match waits_for_members(header.api) {
            true => Self { header, answer: until_copied(client.clone(), answer, memory), memory: None },
            false => Self { header, answer, memory: Some(memory) },
        }
    }
}

impl Connections {
    pub fn new(spread: Arc<Spread>) -> Self {
        Self {
            spread,
            silent: Silent::default(),
            addresses: Addresses::default(),
            open: RefCell::default(),
            small_bytes: Cell::new(0),
            unsent_bytes: Cell::new(0),
            ended_early: Cell::new(0),
            changed: Notify::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Asks every connection to end. Requests that are started are still answered.
    pub fn close_all(&self) {
        self.open.borrow().iter().for_each(|(_, connection)| connection.closing.notify());
    }

    /// Waits until no connection is left, and no request.
    pub async fn drained(&self) {
        while !self.is_empty() || self.ended_early.get() > 0 {
            self.changed.next().await;
        }
    }

    fn close_idle(&self, idle: Duration) {
        let now = Instant::now();
        for (_, connection) in self.open.borrow().iter() {
            if connection.idle_time(now) >= idle {
                tracing::debug!(peer = %connection.peer, "closing an idle connection (connections.max.idle.ms)");
                connection.cut();
            }
        }
    }
}

/// Accepts on this core until the broker stops.
pub async fn accept(core: Rc<impl Host>, bound: Bound) -> std::io::Result<()> {
    let listener = Listener::new(bound)?;
    loop {
        match race(listener.accept(), core.stopping().wait()).await {
            Either::First(Ok(accepted)) => {
                let peer = accepted.peer();
                match quota::enter(&core, peer.ip()).await {
                    Ok(()) => core.give(core.connections().spread.place(), accepted),
                    Err(why) => {
                        // The count comes first, so that a client that sees the end finds itself counted.
                        core.metrics().connections_refused_total.add(1);
                        drop(accepted);
                        closed(&core, peer, &why.to_string());
                    }
                }
            }
            Either::First(Err(error)) => {
                let own = listener.addr().ip();
                if let Some(Admitted { left_out }) = core.connection_log().admit(clock::now(), own, &error.to_string())
                {
                    tracing::warn!(%error, left_out, "cannot accept a connection; trying again in 100 ms");
                }
                runtime::sleep(Duration::from_millis(100)).await;
            }
            Either::Second(()) => return Ok(()),
        }
    }
}

/// Serves a connection that a core has accepted and counted for this one.
pub fn take_over(core: &Rc<impl Host>, accepted: Accepted) {
    let core = core.clone();
    runtime::spawn(async move {
        let (from, ended) = (accepted.peer().ip(), Rc::new(Flag::default()));
        serve(&core, accepted, &ended).await;
        quota::leave(&core, from);
        ended.set();
        core.connections().changed.notify();
    });
}

/// Closes connections that have been idle for `connections.max.idle.ms`, until the broker stops.
pub async fn close_idle(core: Rc<impl Host>) {
    let Some(idle) = core.config().connections_max_idle() else { return };
    while !core.stopping().is_set() {
        runtime::sleep((idle / 4).clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
        core.connections().close_idle(idle);
    }
}

async fn serve(core: &Rc<impl Host>, accepted: Accepted, ended: &Rc<Flag>) {
    let peer = accepted.peer();
    let (mut reader, writer) = match conn::open(accepted, core.config().socket_request_max_bytes) {
        Ok(halves) => halves,
        Err(error) => return closed(core, peer, &error.to_string()),
    };
    let connection = Rc::new(Connection::new(peer, reader.handle(), ended.clone()));
    let key = core.connections().open.borrow_mut().insert(connection.clone());
    core.metrics().connections_open.set(core.connections().len() as u64);
    let silent = core.connections().silent.insert(core, &connection);
    let answering = answering::answer(core, &connection, writer);
    let reading = async {
        match read(core, &connection, &mut reader, silent).await {
            Ok(End::Ours) => {}
            Ok(End::Clients) => connection.half_closed(),
            Err(error) => {
                connection.half_closed();
                closed(core, peer, &error.to_string());
            }
        }
        connection.read_to_end.set(true);
        connection.started.notify();
    };
    runtime::sync::zip(reading, answering).await;
    reader.shutdown();
    // Requests that go on hold the client, but not its socket.
    connection.client.leave();
    core.connections().silent.remove(core, silent);
    core.connections().open.borrow_mut().remove(key);
    core.metrics().connections_open.set(core.connections().len() as u64);
}

/// Logs why a client's connection is closed, unless there are too many such lines.
fn closed(core: &Rc<impl Host>, peer: SocketAddr, error: &str) {
    match core.connection_log().admit(clock::now(), peer.ip(), error) {
        Some(Admitted { left_out }) => tracing::warn!(%peer, %error, left_out, "closing a connection"),
        None => {
            core.metrics().connection_lines_left_out_total.add(1);
            tracing::debug!(%peer, %error, "closing a connection");
        }
    }
}

/// Why the broker closes a connection.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Conn(#[from] ConnError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The side that ends a connection.
enum End {
    /// The broker. Started requests are still answered.
    Ours,
    /// The client. It may not read any more answers.
    Clients,
}

async fn read(
    core: &Rc<impl Host>,
    connection: &Rc<Connection>,
    reader: &mut FrameReader,
    silent: u64,
) -> Result<End, Refused> {
    let mut silent = Some(silent);
    loop {
        if core.stopping().is_set() {
            return Ok(End::Ours);
        }
        // Closing is permanent, so a notification counts even if it came before this wait.
        let frame = match race(connection.closing.past(0), next_frame(core, connection, reader)).await {
            Either::First(()) => return Ok(End::Ours),
            Either::Second(frame) => frame?,
        };
        let Some(Frame { bytes: frame, mut memory }) = frame else { return Ok(End::Clients) };
        core.metrics().kafka_request_bytes_total.add(frame.len() as u64);
        let undecoded = match request::decode_header(&frame) {
            Ok(undecoded) => undecoded,
            // The client continues in a version that both support. Until then it counts as silent.
            Err(DecodeError::ApiVersionsVersion { correlation_id, .. }) => {
                let (header, answer) = unknown_api_versions(correlation_id);
                push(connection, InFlight::new(&connection.client, header, answer, memory));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let header = undecoded.header.clone();
        let decoded_bytes = undecoded.decoded_bytes()?;
        // A produce request begins before the answers ahead of it leave, so its connection waits for it.
        if header.api == ApiKey::Produce && decoded_bytes > FREE_DECODED_BYTES {
            match race(connection.closing.past(0), memory.grow(core, connection, decoded_bytes)).await {
                Either::First(()) => return Ok(End::Ours),
                Either::Second(None) => return Ok(End::Clients),
                Either::Second(Some(())) => {}
            }
        }
        let answer = begin(core, connection, undecoded, decoded_bytes)?;
        if let Some(silent) = silent.take() {
            core.connections().silent.remove(core, silent);
        }
        core.metrics().kafka_requests(header.api).add(1);
        push(connection, InFlight::new(&connection.client, header, answer, memory));
    }
}

/// Begins a request now or, if others are ahead of it, in its turn.
fn begin(
    core: &Rc<impl Host>,
    connection: &Connection,
    undecoded: Undecoded,
    decoded_bytes: usize,
) -> Result<Pending, DecodeError> {
    // A request that begins after others is decoded only then, since its decoded form takes many times the memory of
    // its frame. If it is large, it waits for memory first.
    let is_large = decoded_bytes > FREE_DECODED_BYTES || aside::is_large(&undecoded);
    if undecoded.header.api != ApiKey::Produce && (is_large || connection.is_busy()) {
        return Ok(later(core.clone(), connection.client.clone(), undecoded, decoded_bytes));
    }
    let (header, request) = undecoded.decode()?;
    Ok(core.start(&connection.client, &header, request))
}

/// Starts a request once its answer is polled, and there is memory for its decoded form.
pub fn later(core: Rc<impl Host>, client: Rc<Client>, undecoded: Undecoded, decoded_bytes: usize) -> Pending {
    Box::pin(async move {
        let mut reserved = core.memory().requests.decoded_reservation();
        if decoded_bytes > FREE_DECODED_BYTES {
            core.metrics().memory_request_waits_total.add(u64::from(!reserved.has_room(decoded_bytes)));
            if let Either::Second(()) = race(reserved.grow(decoded_bytes), runtime::sleep(DECODE_PATIENCE)).await {
                let seconds = DECODE_PATIENCE.as_secs();
                let why = format!(
                    "for {seconds} s there was no memory to decode its request, of about {decoded_bytes} bytes; name less \
                     at once, or raise memory.budget.bytes"
                );
                return Reply::HangUp { why };
            }
        }
        let (reserved, decoded) = aside::decode(core.beside(), undecoded, reserved).await;
        let answer = match decoded {
            Ok((header, request)) => core.start(&client, &header, request),
            Err(error) => return Reply::HangUp { why: error.to_string() },
        };
        if reserved.bytes() == 0 {
            return answer.await;
        }
        let seen = client.copied().version();
        let spent = async {
            race(client.copied().past(seen), runtime::sleep(DECODED_HELD_MAX)).await;
        };
        holding(answer, reserved, spent).await
    })
}

/// Holds a frame's memory until the request is answered, or until a group's coordinator has its own copy of it.
fn until_copied(client: Rc<Client>, answer: Pending, memory: FrameMemory) -> Pending {
    Box::pin(async move {
        let seen = client.copied().version();
        holding(answer, memory, client.copied().past(seen)).await
    })
}

/// Holds memory until the request is answered or has no more need of it.
async fn holding<M>(mut answer: Pending, memory: M, spent: impl Future<Output = ()>) -> Reply {
    if let Either::First(reply) = race(&mut answer, spent).await {
        return reply;
    }
    drop(memory);
    answer.await
}

fn push(connection: &Connection, request: InFlight) {
    connection.in_flight.update(|count| count + 1);
    connection.answers.borrow_mut().push_back(request);
    connection.started.notify();
}
