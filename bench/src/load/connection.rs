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
    broken: RefCell<Option<String>>,
}

pub async fn open(addr: SocketAddr) -> Result<(Requests, Answers), String> {
    let failed = |e: std::io::Error| format!("cannot connect to {addr}: {e}");
    let connected = rt::timeout(CONNECT_PATIENCE, conn::connect(addr)).await;
    let stream = connected.ok_or_else(|| format!("cannot connect to {addr} within {CONNECT_PATIENCE:?}"))?;
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
    pub fn push(&mut self, version: i16, request: &Request) -> Result<(), String> {
        let encoded = self.state.codec.borrow_mut().encode(version, request);
        let (_, parts) = encoded.map_err(|e| e.to_string())?;
        self.writer.push(parts);
        Ok(())
    }

    /// Sends all queued requests.
    pub async fn flush(&mut self) -> Result<(), String> {
        self.writer.flush().await.map_err(|e| e.to_string())
    }

    pub fn in_flight(&self) -> usize {
        self.state.codec.borrow().in_flight()
    }

    /// When the newest answer came; 0 before the first.
    pub fn answered_ns(&self) -> u64 {
        self.state.answered_ns.get()
    }

    /// Why the connection ended; `None` while it works.
    pub fn broken(&self) -> Option<String> {
        self.state.broken.borrow().clone()
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
    /// The next answer. `None` once the connection has ended; [`Requests::broken`] says why.
    pub async fn next(&mut self) -> Option<Answer> {
        let frame = match self.reader.read_frame().await {
            Ok(Some(frame)) => frame,
            Ok(None) => return self.end("the broker closed the connection".to_owned()),
            Err(e) => return self.end(e.to_string()),
        };
        let answer = self.state.codec.borrow_mut().answer(&frame);
        match answer {
            Ok(answer) => Some(answer),
            Err(e) => self.end(e.to_string()),
        }
    }

    /// Tells the sender that the answer has been counted, so that there is room for another request.
    pub fn done(&self, now_ns: u64) {
        self.state.answered_ns.set(now_ns);
        self.state.room.give();
    }

    pub fn end(&mut self, why: String) -> Option<Answer> {
        self.reader.shutdown();
        self.state.broken.borrow_mut().get_or_insert(why);
        self.state.room.give();
        None
    }
}
