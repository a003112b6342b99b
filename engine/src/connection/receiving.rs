//! Receives a connection's frames, as far as the connection may have further requests and there is memory for them.
//!
//! While a connection waits for either, it is not read, so the end of its stream does not show. The kernel is asked
//! for it every [`ASK_EVERY`], and when the wait is over. A client that was killed may have left megabytes in the
//! kernel's buffers, which show it as alive until an answer is sent to it. What is left then is not read. The wait also
//! ends [`HALF_CLOSED_MAX`] after the client has closed its sending side.
//!
//! [`HALF_CLOSED_MAX`]: super::answering::HALF_CLOSED_MAX

use super::{Connection, Connections, Host, answering::half_closed};
use crate::memory::{FREE_BYTES, Reservation};
use bytes::Bytes;
use net::{
    codec::{api::ApiKey, frame},
    transport::conn::{ConnError, FrameReader, PeerEnd},
};
use runtime::sync::{Either, race};
use std::{cell::Cell, rc::Rc, time::Duration};

/// Requests of one connection that are started and not answered. librdkafka's idempotent producers keep 5.
pub const IN_FLIGHT_MAX: usize = 64;

/// How often the kernel is asked whether the client of a waiting connection is still there.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// A whole request, and the memory for it.
pub struct Frame {
    pub bytes: Bytes,
    pub memory: FrameMemory,
}

/// The memory of a request, given back when this is dropped.
pub struct FrameMemory {
    reserved: Option<Reservation>,
    /// The frame is small enough to need no reservation. All such frames of a core have a bound.
    _small: Option<Small>,
}

impl FrameMemory {
    /// Bytes that are reserved.
    pub fn reserved(&self) -> usize {
        self.reserved.as_ref().map_or(0, Reservation::bytes)
    }

    /// Reserves `more` bytes, which are more than [`FREE_BYTES`]. `None`: the client did not stay until there was
    /// memory.
    pub async fn grow(&mut self, core: &Rc<impl Host>, connection: &Connection, more: usize) -> Option<()> {
        let goal = self.reserved() + more;
        let mut receiving = Receiving { connection, reserved: self.reserved.take() };
        let grown = receiving.reserve(core, Some(ApiKey::Produce as i16), goal, goal).await;
        self.reserved = receiving.reserved.take();
        grown
    }
}

/// Counts a small frame.
struct Small {
    connections: Rc<Connections>,
    bytes: usize,
}

impl Small {
    fn count(core: &Rc<impl Host>, bytes: usize) -> Self {
        let connections = core.connections().clone();
        connections.small_bytes.update(|sum| sum + bytes);
        Self { connections, bytes }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.connections.small_bytes.update(|sum| sum - self.bytes);
        self.connections.changed.notify();
    }
}

/// The next frame, once this connection may start another request. `None`: the client closed the connection. A large
/// frame is received only as fast as memory is reserved for it.
pub async fn next_frame(
    core: &Rc<impl Host>,
    connection: &Connection,
    reader: &mut FrameReader,
) -> Result<Option<Frame>, ConnError> {
    let mut receiving = Receiving { connection, reserved: None };
    if while_client_stays(connection, room(core, connection)).await.is_none() {
        return Ok(None);
    }
    loop {
        if let Some(bytes) = reader.buffered_frame().await? {
            // It may have arrived in one read with earlier frames.
            if receiving.reserve(core, frame::key_of(&bytes), bytes.len(), bytes.len()).await.is_none() {
                return Ok(None);
            }
            let reserved = receiving.reserved.take();
            let small = reserved.is_none().then(|| Small::count(core, bytes.len()));
            let memory = FrameMemory { reserved, _small: small };
            return Ok(Some(Frame { bytes, memory }));
        }
        let (expected, goal) = (reader.expected_bytes(), reader.next_goal());
        if receiving.reserve(core, reader.key(), expected, goal).await.is_none() {
            return Ok(None);
        }
        connection.receives(receiving.reserved.as_ref());
        let goal = if expected > FREE_BYTES { goal.max(FREE_BYTES) } else { usize::MAX };
        if !reader.receive(goal).await? {
            return Ok(None);
        }
        connection.receives(None);
    }
}

/// Keeps what the connection publishes about its reservation correct, even if receiving is cancelled.
struct Receiving<'a> {
    connection: &'a Connection,
    reserved: Option<Reservation>,
}

impl Receiving<'_> {
    /// `key`: the request's, if it is known. `None`: the client did not stay until there was memory.
    async fn reserve(&mut self, core: &Rc<impl Host>, key: Option<i16>, frame_bytes: usize, goal: usize) -> Option<()> {
        if frame_bytes <= FREE_BYTES {
            return Some(());
        }
        let may_be_produce = key.is_none_or(|key| key == ApiKey::Produce as i16);
        let reserve = || core.memory().requests.reservation(frame_bytes, may_be_produce);
        let reserved = self.reserved.get_or_insert_with(reserve);
        if reserved.bytes() >= goal {
            return Some(());
        }
        core.metrics().memory_request_waits_total.add(u64::from(!reserved.has_room(goal)));
        self.connection.awaits_memory.set(true);
        let grown = while_client_stays(self.connection, reserved.grow(goal)).await;
        self.connection.awaits_memory.set(false);
        grown
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.connection.receives(None);
        self.connection.awaits_memory.set(false);
    }
}

/// Waits until this connection may start another request.
async fn room(core: &Rc<impl Host>, connection: &Connection) {
    loop {
        let (seen, core_seen) = (connection.answered.version(), core.connections().changed.version());
        let in_flight = connection.in_flight.get();
        let crowded = core.connections().small_bytes.get() >= core.memory().requests.small_max();
        // A connection without requests in flight may always start one. Otherwise none might ever progress.
        if in_flight == 0 || (in_flight < IN_FLIGHT_MAX && !crowded) {
            return;
        }
        race(connection.answered.past(seen), core.connections().changed.past(core_seen)).await;
    }
}

/// The result of a wait during which the connection is not read. `None`: its client did not stay.
async fn while_client_stays<T>(connection: &Connection, wait: impl Future<Output = T>) -> Option<T> {
    let waits = Cell::new(false);
    let leaves = async {
        waits.set(true);
        client_leaves(connection).await;
    };
    match race(wait, leaves).await {
        Either::First(_) if waits.get() && is_gone(connection) => None,
        Either::First(done) => Some(done),
        Either::Second(()) => None,
    }
}

/// Asks the kernel whether the client can still be answered, and ends the connection otherwise.
fn is_gone(connection: &Connection) -> bool {
    let is_gone = connection.handle.peer_end() == PeerEnd::Gone;
    if is_gone {
        connection.cut();
    }
    is_gone
}

/// Resolves once the client is gone, or has closed its sending side and has had its time.
async fn client_leaves(connection: &Connection) {
    while !connection.quit.is_set() {
        runtime::sleep(ASK_EVERY).await;
        match connection.handle.peer_end() {
            PeerEnd::Open => {}
            // Its reads and its waits for members are dropped now, which may make room.
            PeerEnd::HalfClosed => connection.half_closed(),
            PeerEnd::Gone => connection.cut(),
        }
    }
    half_closed(connection).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::transport::{conn, listen::Accepted};
    use runtime::sync::{Flag, zip};
    use std::net::{TcpListener, TcpStream};

    /// A connection and its client.
    fn connected() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, peer) = listener.accept().unwrap();
        let (reader, _) = conn::open(Accepted::new(stream, peer).unwrap(), 1 << 20).unwrap();
        (Connection::new(peer, reader.handle(), Rc::default()), client)
    }

    /// Without lingering, closing resets the connection, as when an answer reaches a client that was killed.
    fn reset(client: TcpStream) {
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
    }

    /// The result of a wait for room, before whose end something happens.
    async fn wait(connection: &Connection, meanwhile: impl FnOnce()) -> Option<()> {
        let (room, mut result) = (Flag::default(), None);
        let waits = async { result = while_client_stays(connection, room.wait()).await };
        let comes = async {
            runtime::yield_now().await;
            meanwhile();
            room.set();
        };
        zip(waits, comes).await;
        result
    }

    #[test]
    fn a_dead_clients_frame_is_not_read_when_it_gets_room() {
        runtime::block_on(async {
            let (connection, client) = connected();
            assert_eq!(wait(&connection, || {}).await, Some(()));
            assert!(!connection.gone.is_set());
            assert_eq!(wait(&connection, || reset(client)).await, None);
            assert!(connection.gone.is_set());
        });
    }

    #[test]
    fn a_client_that_only_closed_its_sending_side_gets_room() {
        runtime::block_on(async {
            let (connection, client) = connected();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(wait(&connection, || {}).await, Some(()));
            assert!(!connection.gone.is_set());
        });
    }
}
