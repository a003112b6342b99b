//! Messages between the metadata planes of two brokers, besides those of their Raft groups.
//!
//! Nothing here is reliable: a message may be lost, delayed, duplicated or reordered. A broker that needs an answer
//! retries.

use crate::metadata::{Request, RequestResult};
use std::time::Duration;
use types::{RaftIndex, Term};

/// When a write is acknowledged (`metadata.acks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Once a majority has it on disk.
    #[default]
    Quorum,
    /// Once the leader alone has it on disk, as long as it holds the leader lease: the WAL fast path.
    Leader,
}

/// A message from one broker's plane to another's.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaneMessage {
    /// To the leader: writes of the sender. It retries them after a while, with the same numbers.
    Forward {
        ask: Ask,
        acks: Acks,
        requests: Vec<Request>,
    },
    Forwarded {
        ask: Ask,
        answer: Result<Accepted, Refused>,
    },
    /// To the leader: asks up to which index the sender must have applied the log to answer a read that arrives
    /// now.
    ReadIndex {
        ask: Ask,
    },
    ReadIndexed {
        ask: Ask,
        answer: Result<RaftIndex, Refused>,
    },
    /// To the leader: asks whether the sender may go on answering reads. It carries the sender's own clock.
    Probe {
        incarnation: u64,
        sent_at: Duration,
    },
    /// From the leader: it has committed up to `commit`, and its lease or a quorum confirms that it leads.
    /// `sent_at` is copied from the probe.
    Heartbeat {
        incarnation: u64,
        sent_at: Duration,
        term: Term,
        commit: RaftIndex,
    },
    /// To the leader: asks for the state of the quorum.
    Describe {
        ask: Ask,
    },
    Described {
        ask: Ask,
        answer: Result<Quorum, Refused>,
    },
}

/// Identifies the question of an answer: the asker's process, and a number that it never reuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    pub incarnation: u64,
    pub number: u64,
}

/// The leader's answer to a write: its place in the log, and the result of each request.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub term: Term,
    pub index: RaftIndex,
    pub results: Vec<RequestResult>,
}

/// Why a broker refused a request that only a leader serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not lead, or not yet. `leader` is the peer that leads, if known.
    NotLeader { leader: Option<u64> },
    /// Too many writes are pending; retry.
    Busy,
}

/// The metadata group as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    pub leader: u64,
    pub term: Term,
    pub commit: RaftIndex,
    pub voters: Vec<Progress>,
    pub learners: Vec<Progress>,
}

/// A peer's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub peer: u64,
    /// The last index that it is known to have.
    pub matched: RaftIndex,
    /// Milliseconds since the leader last heard from it, and since it last had the whole log. `None`: never, as far
    /// as this leader knows.
    pub heard_ms_ago: Option<u64>,
    pub caught_up_ms_ago: Option<u64>,
}
