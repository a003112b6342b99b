//! Client connections: accepted on any core, spread evenly, served in order.
//! Lives on: every core. Talks to: `net` (frames), [`crate::kafka`] (what requests mean).
//!
//! A connection's requests start in the order they came and are answered in that order; a produce request starts before the
//! one ahead of it is answered, so that pipelined batches share a group commit.
//!
//! Bounds: `max.connections` and `max.connections.per.ip` connections of the broker (`quota`); [`IN_FLIGHT_MAX`] requests per connection and `queued.max.request.bytes` per core; a connection that has reached
//! either is not read until an answer has left.

mod quota;

pub use quota::Spread;

use crate::{
    connection_log::Admitted,
    core::Core,
    kafka::{self, Pending, Reply},
    rt,
    sync::{Either, Flag, Notify, race},
};
use net::{
    conn::{self, ConnError, ConnHandle, FrameReader, FrameWriter},
    header::RequestHeader,
    listen::{Accepted, Bound, Listener},
    request::{self, DecodeError},
    response,
};
use quota::{Addresses, Silent};
use slab::Slab;
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
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// One core's connections.
pub struct Connections {
    spread: Arc<Spread>,
    silent: Silent,
    addresses: Addresses,
    open: RefCell<Slab<Rc<Connection>>>,
    /// Bytes of requests that are started and not answered, over all connections of this core.
    request_bytes: Cell<usize>,
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
    lane: kafka::Lane,
    /// The reply that is to be sent next is not known yet.
    is_working: Cell<bool>,
    activity: Activity,
    answers: RefCell<VecDeque<InFlight>>,
    /// Moves when a request was started, and when the reader is done.
    started: Notify,
    /// Moves when an answer has left.
    answered: Notify,
    read_to_end: Cell<bool>,
}

/// What [`Connections::close_idle`] saw when it looked last.
struct Activity {
    moved_bytes: Cell<u64>,
    /// When it last found the connection in use.
    at: Cell<Instant>,
}

impl Connection {
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
    bytes: usize,
}

impl Connections {
    pub fn new(spread: Arc<Spread>) -> Self {
        Self {
            spread,
            silent: Silent::default(),
            addresses: Addresses::default(),
            open: RefCell::default(),
            request_bytes: Cell::new(0),
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
    let connection = Rc::new(Connection {
        peer,
        closing: Notify::default(),
        ended: ended.clone(),
        handle: reader.handle(),
        lane: kafka::Lane::default(),
        is_working: Cell::new(false),
        activity: Activity { moved_bytes: Cell::new(0), at: Cell::new(Instant::now()) },
        answers: RefCell::default(),
        started: Notify::default(),
        answered: Notify::default(),
        read_to_end: Cell::new(false),
    });
    let key = core.connections.open.borrow_mut().insert(connection.clone());
    core.metrics.connections_open.set(core.connections.len() as u64);
    let silent = core.connections.silent.insert(core, &connection);
    let answering = answer(core, &connection, writer);
    let reading = async {
        if let Err(error) = read(core, &connection, &mut reader, silent).await {
            closed(core, peer, &error.to_string());
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

async fn read(
    core: &Rc<Core>,
    connection: &Rc<Connection>,
    reader: &mut FrameReader,
    silent: u64,
) -> Result<(), Refused> {
    let mut silent = Some(silent);
    loop {
        room(core, connection).await;
        if core.is_stopping() {
            return Ok(());
        }
        // Closing is for good, so its first notification counts whenever it came.
        let frame = match race(connection.closing.past(0), reader.read_frame()).await {
            Either::First(()) => return Ok(()),
            Either::Second(frame) => frame?,
        };
        let Some(frame) = frame else { return Ok(()) };
        core.metrics.kafka_request_bytes_total.add(frame.len() as u64);
        let (header, request) = match request::decode(&frame) {
            Ok(decoded) => decoded,
            // It goes on in a version that both know; until then it has not said anything.
            Err(DecodeError::ApiVersionsVersion { correlation_id, .. }) => {
                let (header, answer) = kafka::unknown_api_versions(correlation_id);
                push(core, connection, InFlight { header, answer, bytes: 0 });
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(silent) = silent.take() {
            core.connections.silent.remove(core, silent);
        }
        core.metrics.kafka_requests(header.api).add(1);
        let answer = kafka::start(core, connection.peer, &connection.lane, &header, request);
        push(core, connection, InFlight { header, answer, bytes: frame.len() });
    }
}

/// Waits until this connection may start another request.
async fn room(core: &Rc<Core>, connection: &Rc<Connection>) {
    loop {
        let (seen, core_seen) = (connection.answered.version(), core.connections.changed.version());
        let in_flight = connection.answers.borrow().len();
        let crowded =
            core.connections.request_bytes.get() >= core.config.queued_max_request_bytes_per_core(core.cores());
        // A connection without requests in flight is let through, or nobody might ever move.
        if in_flight == 0 || (in_flight < IN_FLIGHT_MAX && !crowded) {
            return;
        }
        race(connection.answered.past(seen), core.connections.changed.past(core_seen)).await;
    }
}

fn push(core: &Rc<Core>, connection: &Connection, request: InFlight) {
    let bytes = &core.connections.request_bytes;
    bytes.set(bytes.get() + request.bytes);
    connection.answers.borrow_mut().push_back(request);
    connection.started.notify();
}

/// Sends answers in the order of their requests until the reader is done and all have left, or the peer is gone.
/// Answers that are ready together leave in one write.
async fn answer(core: &Rc<Core>, connection: &Rc<Connection>, mut writer: FrameWriter) {
    let mut gone = false;
    loop {
        let seen = connection.started.version();
        let next = connection.answers.borrow_mut().pop_front();
        let Some(InFlight { header, mut answer, bytes }) = next else {
            flush(connection, &mut writer, &mut gone).await;
            if connection.answers.borrow().is_empty() {
                if connection.read_to_end.get() {
                    return;
                }
                connection.started.past(seen).await;
            }
            continue;
        };
        let ready = poll_once(&mut answer);
        if ready.is_none() || writer.queued_bytes() > UNSENT_BYTES_MAX {
            flush(connection, &mut writer, &mut gone).await;
        }
        // Even for a peer that is gone: what was started ends, so that nothing is left half done.
        let reply = match ready {
            Some(reply) => reply,
            None => {
                connection.is_working.set(true);
                let reply = answer.await;
                connection.is_working.set(false);
                reply
            }
        };
        match reply {
            Reply::Nothing => {}
            Reply::HangUp { why } => {
                if !gone {
                    closed(core, connection.peer, &why);
                    core.metrics.produce_unacked_closed_total.add(1);
                }
                // Answers to what came before it still leave.
                flush(connection, &mut writer, &mut gone).await;
                hang_up(connection, &writer, &mut gone);
            }
            Reply::Send(response) => match response::encode(&header, response) {
                Ok(parts) => {
                    core.metrics.kafka_response_bytes_total.add(parts.byte_count() as u64);
                    writer.push(parts);
                }
                Err(error) => {
                    let (api, version) = (header.api, header.version);
                    tracing::error!(peer = %connection.peer, ?api, version, %error, "cannot encode an answer");
                    hang_up(connection, &writer, &mut gone);
                }
            },
        }
        let held = &core.connections.request_bytes;
        held.set(held.get() - bytes);
        connection.answered.notify();
        if bytes > 0 {
            core.connections.changed.notify();
        }
    }
}

async fn flush(connection: &Connection, writer: &mut FrameWriter, gone: &mut bool) {
    if !*gone && writer.flush().await.is_err() {
        hang_up(connection, writer, gone);
    }
}

fn hang_up(connection: &Connection, writer: &FrameWriter, gone: &mut bool) {
    *gone = true;
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
