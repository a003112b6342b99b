//! The seam at which a simulation takes the place of a broker's disk and of its connections to other brokers. Tasks,
//! time and queues have theirs in `runtime::backend`.

use bytes::Bytes;
use net::peer::{Kind, Lane, PeerError, auth::Handshake};
use runtime::backend::Later;
use std::{cell::RefCell, io, rc::Rc};

use super::disk::AnyDisk;

/// A machine that does not exist.
pub trait Machine {
    /// The disk of the process that is running.
    fn disk(&self) -> Rc<dyn AnyDisk>;
    /// Connects to a peer port and shakes hands. Returns the other side's hello.
    fn connect(&self, address: String, from: i32, handshake: Handshake) -> Later<'_, Connected>;
}

pub type Connected = Result<(Box<dyn PeerConnection>, Bytes), PeerError>;

/// A connection to another broker, at the side that opened it.
pub trait PeerConnection {
    /// Queues a frame.
    fn push(&mut self, kind: Kind, lane: Lane, parts: Vec<Bytes>);
    /// Sends the queued frames.
    fn flush(&mut self) -> Later<'_, io::Result<()>>;
    /// Waits for the connection to end.
    fn ended(&mut self) -> Later<'_, PeerError>;
}

thread_local! {
    static MACHINE: RefCell<Option<Rc<dyn Machine>>> = const { RefCell::new(None) };
}

/// From now on, brokers on this thread run on this machine, or with `None` on the real one.
pub fn install(machine: Option<Rc<dyn Machine>>) {
    let before = MACHINE.replace(machine);
    drop(before);
}

/// The machine that a simulation has installed on this thread.
pub(crate) fn installed() -> Option<Rc<dyn Machine>> {
    MACHINE.with_borrow(Clone::clone)
}
