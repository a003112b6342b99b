//! The client of one connection, as handlers see it.
//! Lives on: the core of the connection.

use net::transport::conn::ConnHandle;
use runtime::sync::{Notify, line::Line};
use std::{cell::RefCell, net::SocketAddr, rc::Rc};

pub struct Client {
    peer: SocketAddr,
    lane: Line,
    connection: RefCell<Option<ConnHandle>>,
    copied: Rc<Notify>,
}

impl Client {
    /// Produce requests that are not handed over yet.
    pub fn in_lane(&self) -> usize {
        self.lane.len()
    }
}

impl Client {
    /// `connection`: `None` for a client without a socket, which takes every answer at once.
    pub fn new(peer: SocketAddr, connection: Option<ConnHandle>) -> Self {
        Self { peer, lane: Line::default(), connection: RefCell::new(connection), copied: Rc::default() }
    }

    /// Its connection ends, although requests may go on.
    pub fn leave(&self) {
        self.connection.take();
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Notified once a group's coordinator has its own copy of a JoinGroup or SyncGroup, which then waits for other
    /// members. A connection works on one such request at a time.
    pub fn copied(&self) -> &Rc<Notify> {
        &self.copied
    }

    /// Its produce requests, which are handed to the partitions in the order of arrival, however long their checks
    /// take.
    pub fn lane(&self) -> &Line {
        &self.lane
    }

    /// The largest answer to send while memory for answers is short: as much again as the client has already taken,
    /// and `least` more. So a client that reads nothing holds little, and one that reads soon gets full answers.
    pub fn answer_max(&self, least: usize) -> usize {
        let taken = self.connection.borrow().as_ref().map_or(u64::MAX, ConnHandle::acknowledged_bytes);
        usize::try_from(taken).unwrap_or(usize::MAX).saturating_add(least)
    }
}
