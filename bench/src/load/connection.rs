//! One connection to a broker on a load thread. It sends requests, receives answers and bounds the requests in
//! flight.
//!
//! Lives on: one load thread. The sender and the receiver are two tasks that share this.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use net::client::{Answer, ClientCodec};
use net::codec::request::Request;
use net::transport::conn::{self, FrameReader, FrameWriter};

use crate::clock;
use crate::load::error::LoadError;
use crate::rt::{self, Signal};

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// An answer may be as large as its request allows, and the options bound that.
const ANSWER_BYTES_MAX: usize = 1 << 30;

/// The sending side.
pub struct Requests {
    writer: FrameWriter,
    state: Rc<State>,
}

/// The receiving side.
pub struct Answers {
    reader: FrameReader,
    state: Rc<State>,
}

struct State {
    codec: RefCell<ClientCodec>,
    /// Signalled when an answer has been counted, and when the connection has ended.
    room: Signal,
    answered_ns: Cell<u64>,
    broken: RefCell<Option<LoadError>>,
}

pub async fn open(addr: SocketAddr) -> Result<(Requests, Answers), LoadError> {
    let failed = |source| LoadError::Connect { addr, source };
    let connected = rt::timeout(CONNECT_PATIENCE, conn::connect(addr)).await;
    let stream = connected.ok_or(LoadError::ConnectTimeout { addr, patience: CONNECT_PATIENCE })?;
    let (reader, writer) = conn::open(stream.map_err(failed)?, ANSWER_BYTES_MAX).map_err(failed)?;
    let state = Rc::new(State {
        codec: RefCell::new(ClientCodec::new("millrace-bench")),
        room: Signal::default(),
        answered_ns: Cell::new(0),
        broken: RefCell::default(),
    });
    Ok((Requests { writer, state: state.clone() }, Answers { reader, state }))
}

impl Requests {
    /// Encodes and queues a request.
    pub fn push(&mut self, version: i16, request: &Request) -> Result<(), LoadError> {
        let (_, parts) = self.state.codec.borrow_mut().encode(version, request)?;
        self.writer.push(parts);
        Ok(())
    }

    /// Sends all queued requests.
    pub async fn flush(&mut self) -> Result<(), LoadError> {
        Ok(self.writer.flush().await?)
    }

    pub fn in_flight(&self) -> usize {
        self.state.codec.borrow().in_flight()
    }

    /// When the newest answer came; 0 before the first.
    pub fn answered_ns(&self) -> u64 {
        self.state.answered_ns.get()
    }

    /// Takes the reason why the connection ended; `None` while it works.
    pub fn take_broken(&self) -> Option<LoadError> {
        self.state.broken.take()
    }

    /// Waits until an answer has been counted or the connection ends, at most until `until_ns`.
    pub async fn wait(&self, until_ns: Option<u64>) {
        let at_most = until_ns.map(|until| Duration::from_nanos(until.saturating_sub(clock::now_ns())));
        self.state.room.wait(at_most).await;
    }

    /// Ends the connection; the receiver ends too.
    pub fn shutdown(self) {
        self.writer.shutdown();
    }
}

impl Answers {
    /// The next answer, or why the connection ended.
    pub async fn receive(&mut self) -> Result<Answer, LoadError> {
        let frame = self.reader.read_frame().await?.ok_or(LoadError::Closed)?;
        Ok(self.state.codec.borrow_mut().answer(&frame)?)
    }

    /// The next answer. `None` once the connection has ended; [`Requests::take_broken`] says why.
    pub async fn next(&mut self) -> Option<Answer> {
        match self.receive().await {
            Ok(answer) => Some(answer),
            Err(why) => {
                self.end(why);
                None
            }
        }
    }

    /// Tells the sender that the answer has been counted, so that there is room for another request.
    pub fn done(&self, now_ns: u64) {
        self.state.answered_ns.set(now_ns);
        self.state.room.give();
    }

    /// Ends the connection and tells the sender why.
    pub fn end(&mut self, why: LoadError) {
        self.reader.shutdown();
        self.state.broken.borrow_mut().get_or_insert(why);
        self.state.room.give();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn the_sender_learns_once_why_the_connection_ended() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let broker = thread::spawn(move || drop(listener.accept().unwrap()));
        let work = move || async move {
            let (requests, mut answers) = open(addr).await.unwrap();
            assert!(answers.next().await.is_none());
            [requests.take_broken(), requests.take_broken()].map(|why| why.map(|why| why.to_string()))
        };
        let broken = rt::spawn_thread("load-test", None, work).unwrap().join().unwrap();
        broker.join().unwrap();
        assert_eq!(broken, [Some("the broker closed the connection".to_owned()), None]);
    }

    #[test]
    fn a_broker_that_is_not_there_is_named() {
        let addr = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let work = move || async move { open(addr).await.err().map(|why| why.to_string()) };
        let why = rt::spawn_thread("load-test", None, work).unwrap().join().unwrap();
        assert!(why.as_ref().is_some_and(|why| why.starts_with(&format!("cannot connect to {addr}: "))), "{why:?}");
    }
}
