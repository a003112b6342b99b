//! Client connections: accepted on any core, spread evenly, served in order.
//! Lives on: every core. Talks to: `net` (frames), [`crate::handlers`] (what requests mean).
//!
//! A connection's requests start in the order they came and are answered in that order; a produce request starts before the
//! one ahead of it is answered, so that pipelined batches share a group commit.
//!
//! Bounds: `max.connections` and `max.connections.per.ip` connections of the broker (`quota`); [`IN_FLIGHT_MAX`] requests per connection; the
//! share of requests in the core's memory ([`crate::memory`]). A connection that has reached one of the latter is not read until there is
//! room. A client that has closed its side gets no records that are not ready: its fetches are dropped. When nothing can be sent any more, so is
//! all else that only reads.

pub mod log;
mod quota;
mod receiving;
mod stalled;

pub use quota::Spread;
pub use stalled::close_stalled;

use crate::{
    connection::log::Admitted,
    core::Core,
    handlers::{self, Pending, Reply},
    memory::{Held, Reservation},
    rt,
    sync::{Either, Flag, Notify, race},
};
use net::{
    codec::{
        api::ApiKey,
        header::RequestHeader,
        parts::Parts,
        request::{self, DecodeError, Undecoded},
        response::{self, Response},
    },
    transport::{
        conn::{self, ConnError, ConnHandle, FrameReader, FrameWriter},
        listen::{Accepted, Bound, Listener},
    },
};
use quota::{Addresses, Silent};
use receiving::{Frame, next_frame};
use slab::Slab;
use stalled::Motion;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

/// Requests of one connection that are started and not answered yet. librdkafka's idempotent producers keep 5.
const IN_FLIGHT_MAX: usize = 64;

/// Answers that are ready are gathered up to this many bytes before they are sent.
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// One core's connections.
pub struct Connections {
    spread: Arc<Spread>,
    silent: Silent,
    addresses: Addresses,
    open: RefCell<Slab<Rc<Connection>>>,
    /// Bytes of requests that are started and not answered, over all connections of this core, but for those that have a reservation.
    small_bytes: Cell<usize>,
    /// Bytes of answers whose clients do not take them at once.
    unsent_bytes: Cell<usize>,
    /// Moves when an answer has left, or a connection has.
    changed: Notify,
}

struct Connection {
    peer: SocketAddr,
    closing: Notify,
    /// Its socket is closed, and it is counted no more.
    ended: Rc<Flag>,
    handle: ConnHandle,
    /// The order of its produce requests.
    lane: handlers::Lane,
    /// The reply that is to be sent next is not known yet.
    is_working: Cell<bool>,
    activity: Activity,
    /// Bytes reserved for a frame of which more is to come from the client; 0 if none is.
    receiving: Cell<usize>,
    receives_over: Cell<bool>,
    received: Motion,
    sent: Motion,
    answers: RefCell<VecDeque<InFlight>>,
    /// Moves when a request was started, and when the reader is done.
    started: Notify,
    /// Moves when an answer has left.
    answered: Notify,
    read_to_end: Cell<bool>,
    /// The client sends nothing any more: it has gone, or reads what it still gets.
    quit: Flag,
    /// Nothing can be sent any more.
    gone: Flag,
}

/// What [`Connections::close_idle`] saw when it looked last.
struct Activity {
    moved_bytes: Cell<u64>,
    /// When it last found the connection in use.
    at: Cell<Instant>,
}

impl Connection {
    /// The client is to send more of a frame, for which so much is reserved.
    fn receives(&self, reserved: Option<&Reservation>) {
        self.receiving.set(reserved.map_or(0, Reservation::bytes));
        self.receives_over.set(reserved.is_some_and(Reservation::is_over));
    }

    /// Whether requests are started or wait to be.
    fn is_busy(&self) -> bool {
        self.is_working.get() || !self.answers.borrow().is_empty()
    }

    /// How long nothing has been received, sent or worked on. A client that waits for a fetch, or to join a group, is not idle; one that
    /// does not read its answers is.
    fn idle_time(&self, now: Instant) -> Duration {
        let moved_bytes = self.handle.moved_bytes();
        if self.is_working.get() || self.activity.moved_bytes.replace(moved_bytes) != moved_bytes {
            self.activity.at.set(now);
        }
        now.saturating_duration_since(self.activity.at.get())
    }
}

struct InFlight {
    header: RequestHeader,
    answer: Pending,
    /// The length of its frame; 0 if there is a reservation for that.
    bytes: usize,
    _reserved: Option<Reservation>,
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
            changed: Notify::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.open.borrow().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells every connection to end: what is started is still answered.
    pub fn close_all(&self) {
        self.open.borrow().iter().for_each(|(_, connection)| connection.closing.notify());
    }

    /// Waits until no connection is left.
    pub async fn drained(&self) {
        while !self.is_empty() {
            self.changed.next().await;
        }
    }

    fn close_idle(&self, idle: Duration) {
        let now = Instant::now();
        for (_, connection) in self.open.borrow().iter() {
            if connection.idle_time(now) >= idle {
                tracing::debug!(peer = %connection.peer, "closing an idle connection (connections.max.idle.ms)");
                connection.closing.notify();
                // One that waits for its client to read an answer wakes, too.
                connection.handle.shutdown();
            }
        }
    }
}

/// Accepts on this core until the broker stops.
pub async fn accept(core: Rc<Core>, bound: Bound) -> std::io::Result<()> {
    let listener = Listener::new(bound)?;
    loop {
        match race(listener.accept(), core.lifecycle.stopping.wait()).await {
            Either::First(Ok(accepted)) => {
                let peer = accepted.peer();
                match quota::enter(&core, peer.ip()).await {
                    Ok(()) => hand_over(&core, accepted),
                    Err(why) => {
                        drop(accepted);
                        core.metrics.connections_refused_total.add(1);
                        closed(&core, peer, &why);
                    }
                }
            }
            Either::First(Err(error)) => {
                if let Some(Admitted { left_out }) = core.connection_log.admit(listener.addr().ip(), &error.to_string())
                {
                    tracing::warn!(%error, left_out, "cannot accept a connection; trying again in 100 ms");
                }
                rt::sleep(Duration::from_millis(100)).await;
            }
            Either::Second(()) => return Ok(()),
        }
    }
}

fn hand_over(core: &Rc<Core>, accepted: Accepted) {
    let to = core.connections.spread.place();
    core.post(to, move |there| {
        let core = there.clone();
        rt::spawn(async move {
            let (from, ended) = (accepted.peer().ip(), Rc::new(Flag::default()));
            serve(&core, accepted, &ended).await;
            quota::leave(&core, from);
            ended.set();
            core.connections.changed.notify();
        });
    });
}

/// Closes what has been idle for longer than `connections.max.idle.ms`, until the broker stops.
pub async fn close_idle(core: Rc<Core>) {
    let Some(idle) = core.config.connections_max_idle() else { return };
    while !core.is_stopping() {
        rt::sleep((idle / 4).clamp(Duration::from_secs(1), Duration::from_secs(60))).await;
        core.connections.close_idle(idle);
    }
}

async fn serve(core: &Rc<Core>, accepted: Accepted, ended: &Rc<Flag>) {
    let peer = accepted.peer();
    let (mut reader, writer) = match conn::open(accepted, core.config.socket_request_max_bytes) {
        Ok(halves) => halves,
        Err(error) => return closed(core, peer, &error.to_string()),
    };
    let now = Instant::now();
    let connection = Rc::new(Connection {
        peer,
        closing: Notify::default(),
        ended: ended.clone(),
        handle: reader.handle(),
        lane: handlers::Lane::default(),
        is_working: Cell::new(false),
        activity: Activity { moved_bytes: Cell::new(0), at: Cell::new(now) },
        receiving: Cell::new(0),
        receives_over: Cell::new(false),
        received: Motion::new(now),
        sent: Motion::new(now),
        answers: RefCell::default(),
        started: Notify::default(),
        answered: Notify::default(),
        read_to_end: Cell::new(false),
        quit: Flag::default(),
        gone: Flag::default(),
    });
    let key = core.connections.open.borrow_mut().insert(connection.clone());
    core.metrics.connections_open.set(core.connections.len() as u64);
    let silent = core.connections.silent.insert(core, &connection);
    let answering = answer(core, &connection, writer);
    let reading = async {
        match read(core, &connection, &mut reader, silent).await {
            Ok(End::Ours) => {}
            Ok(End::Clients) => connection.quit.set(),
            Err(error) => {
                if matches!(error, Refused::Conn(_)) {
                    connection.quit.set();
                }
                closed(core, peer, &error.to_string());
            }
        }
        connection.read_to_end.set(true);
        connection.started.notify();
    };
    crate::sync::both(reading, answering).await;
    reader.shutdown();
    core.connections.silent.remove(core, silent);
    core.connections.open.borrow_mut().remove(key);
    core.metrics.connections_open.set(core.connections.len() as u64);
}

/// Logs why a client's connection is closed, unless there are too many such lines.
fn closed(core: &Core, peer: SocketAddr, error: &str) {
    match core.connection_log.admit(peer.ip(), error) {
        Some(Admitted { left_out }) => tracing::warn!(%peer, %error, left_out, "closing a connection"),
        None => {
            core.metrics.connection_lines_left_out_total.add(1);
            tracing::debug!(%peer, %error, "closing a connection");
        }
    }
}

/// Why a connection is closed by us.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Conn(#[from] ConnError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// The side that ends a connection.
enum End {
    /// The broker; what is started is answered.
    Ours,
    /// The client, which is not known to read any more answers.
    Clients,
}

async fn read(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    reader: &mut FrameReader,
    silent: u64,
) -> Result<End, Refused> {
    let mut silent = Some(silent);
    loop {
        room(core, connection).await;
        if core.is_stopping() {
            return Ok(End::Ours);
        }
        // Closing is for good, so its first notification counts whenever it came.
        let frame = match race(connection.closing.past(0), next_frame(core, connection, reader)).await {
            Either::First(()) => return Ok(End::Ours),
            Either::Second(frame) => frame?,
        };
        let Some(Frame { bytes: frame, reserved }) = frame else { return Ok(End::Clients) };
        core.metrics.kafka_request_bytes_total.add(frame.len() as u64);
        let undecoded = match request::decode_header(&frame) {
            Ok(undecoded) => undecoded,
            // It goes on in a version that both know; until then it has not said anything.
            Err(DecodeError::ApiVersionsVersion { correlation_id, .. }) => {
                let (header, answer) = handlers::unknown_api_versions(correlation_id);
                push(core, connection, InFlight { header, answer, bytes: 0, _reserved: None });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let header = undecoded.header.clone();
        // One that begins behind others is decoded then: decoded, it takes many times the memory of its frame.
        let answer = if header.api != ApiKey::Produce && connection.is_busy() {
            later(core.clone(), connection.peer, undecoded)
        } else {
            handlers::start(core, connection.peer, &connection.lane, &header, undecoded.body()?)
        };
        if let Some(silent) = silent.take() {
            core.connections.silent.remove(core, silent);
        }
        core.metrics.kafka_requests(header.api).add(1);
        let bytes = if reserved.is_some() { 0 } else { frame.len() };
        push(core, connection, InFlight { header, answer, bytes, _reserved: reserved });
    }
}

/// Starts a request when its answer is asked for.
fn later(core: Rc<Core>, peer: SocketAddr, undecoded: Undecoded) -> Pending {
    Box::pin(async move {
        match undecoded.body() {
            Ok(request) => handlers::start(&core, peer, &handlers::Lane::default(), &undecoded.header, request).await,
            Err(error) => Reply::HangUp { why: error.to_string() },
        }
    })
}

/// Waits until this connection may start another request.
async fn room(core: &Rc<Core>, connection: &Rc<Connection>) {
    loop {
        let (seen, core_seen) = (connection.answered.version(), core.connections.changed.version());
        let in_flight = connection.answers.borrow().len();
        let crowded = core.connections.small_bytes.get() >= core.memory.requests.small_max();
        // A connection without requests in flight is let through, or nobody might ever move.
        if in_flight == 0 || (in_flight < IN_FLIGHT_MAX && !crowded) {
            return;
        }
        race(connection.answered.past(seen), core.connections.changed.past(core_seen)).await;
    }
}

fn push(core: &Rc<Core>, connection: &Connection, request: InFlight) {
    let bytes = &core.connections.small_bytes;
    bytes.set(bytes.get() + request.bytes);
    connection.answers.borrow_mut().push_back(request);
    connection.started.notify();
}

/// Sends answers in the order of their requests until the reader is done and all have left, or the peer is gone.
/// Answers that are ready together leave in one write.
async fn answer(core: &Rc<Core>, connection: &Rc<Connection>, mut writer: FrameWriter) {
    loop {
        let seen = connection.started.version();
        let next = connection.answers.borrow_mut().pop_front();
        let Some(InFlight { header, mut answer, bytes, _reserved }) = next else {
            flush(core, connection, &mut writer).await;
            if connection.answers.borrow().is_empty() {
                if connection.read_to_end.get() {
                    return;
                }
                connection.started.past(seen).await;
            }
            continue;
        };
        let given_up_by = match header.api {
            api if handlers::reads_records(api) => Some(&connection.quit),
            api if handlers::only_reads(api) => Some(&connection.gone),
            // What writes ends, so that nothing is left half done.
            _ => None,
        };
        let ready = match poll_once(&mut answer) {
            None if given_up_by.is_some_and(Flag::is_set) => Some(Reply::Nothing),
            ready => ready,
        };
        if ready.is_none() || writer.queued_bytes() > UNSENT_BYTES_MAX {
            flush(core, connection, &mut writer).await;
        }
        let reply = match ready {
            Some(reply) => reply,
            None => {
                connection.is_working.set(true);
                let reply = unless(given_up_by, answer).await;
                connection.is_working.set(false);
                reply
            }
        };
        match reply {
            Reply::Nothing => {}
            Reply::HangUp { why } => {
                if !connection.gone.is_set() {
                    closed(core, connection.peer, &why);
                }
                // Answers to what came before it still leave.
                flush(core, connection, &mut writer).await;
                hang_up(connection, &writer);
            }
            Reply::Send(response) => send(core, connection, &mut writer, &header, response, None),
            Reply::SendHeld(response, held) => send(core, connection, &mut writer, &header, response, Some(held)),
        }
        let small = &core.connections.small_bytes;
        small.set(small.get() - bytes);
        connection.answered.notify();
        if bytes > 0 {
            core.connections.changed.notify();
        }
    }
}

/// The answer, unless it is given up.
async fn unless(given_up: Option<&Flag>, answer: Pending) -> Reply {
    let Some(given_up) = given_up else { return answer.await };
    match race(answer, given_up.wait()).await {
        Either::First(reply) => reply,
        Either::Second(()) => Reply::Nothing,
    }
}

/// Queues an answer, together with the memory that is held for it.
fn send(
    core: &Core,
    connection: &Connection,
    writer: &mut FrameWriter,
    header: &RequestHeader,
    response: Response,
    held: Option<Held>,
) {
    match response::encode(header, response) {
        Ok(parts) => {
            core.metrics.kafka_response_bytes_total.add(parts.byte_count() as u64);
            writer.push(match held {
                Some(mut held) => {
                    held.shrink_to(parts.byte_count());
                    Parts::from(held.with(parts.into_bytes()))
                }
                None => parts,
            });
        }
        Err(error) => {
            let (api, version) = (header.api, header.version);
            tracing::error!(peer = %connection.peer, ?api, version, %error, "cannot encode an answer");
            hang_up(connection, writer);
        }
    }
}

async fn flush(core: &Core, connection: &Connection, writer: &mut FrameWriter) {
    if connection.gone.is_set() {
        return writer.clear();
    }
    let (unsent, queued) = (&core.connections.unsent_bytes, writer.queued_bytes());
    unsent.set(unsent.get() + queued);
    if writer.flush().await.is_err() {
        hang_up(connection, writer);
    }
    unsent.set(unsent.get() - queued);
}

fn hang_up(connection: &Connection, writer: &FrameWriter) {
    connection.quit.set();
    connection.gone.set();
    writer.shutdown();
    connection.closing.notify();
}

/// The future's value if it is ready now. Its waker is registered anew when it is polled for good.
fn poll_once(answer: &mut Pending) -> Option<Reply> {
    match answer.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => Some(reply),
        Poll::Pending => None,
    }
}
