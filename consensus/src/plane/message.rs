//! What the metadata planes of two brokers say to each other, beside the messages of their Raft groups.
//!
//! Nothing here is reliable: a message may be lost, late, doubled or overtaken. Whoever wants an answer asks again.

use crate::metadata::{Request, RequestResult};
use std::time::Duration;

/// How strongly a write is acknowledged (`metadata.acks`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Once a majority has it.
    #[default]
    Quorum,
    /// Once the leader alone has it on disk, as long as it holds the leader lease: the WAL fast path.
    Leader,
}

/// From one broker's plane to another's.
#[derive(Clone, Debug, PartialEq)]
pub enum PlaneMessage {
    /// To the leader: writes of mine. Asked again after a while, under the same numbers.
    Forward {
        ask: Ask,
        acks: Acks,
        requests: Vec<Request>,
    },
    Forwarded {
        ask: Ask,
        answer: Result<Accepted, Refused>,
    },
    /// To the leader: up to which index must I have applied the log, to answer a read that comes in now?
    ReadIndex {
        ask: Ask,
    },
    ReadIndexed {
        ask: Ask,
        answer: Result<u64, Refused>,
    },
    /// To the leader: may I go on answering reads? Carries the asker's own clock.
    Probe {
        incarnation: u64,
        sent_at: Duration,
    },
    /// The leader, holding its lease, has committed up to `commit`; `sent_at` is the probe's.
    Heartbeat {
        incarnation: u64,
        sent_at: Duration,
        term: u64,
        commit: u64,
    },
    /// To the leader: how is the quorum?
    Describe {
        ask: Ask,
    },
    Described {
        ask: Ask,
        answer: Result<Quorum, Refused>,
    },
}

/// Which question an answer belongs to: the asker's process, and a number that it never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    pub incarnation: u64,
    pub number: u64,
}

/// A write that the leader answers for: where it stands in the log, and what each request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    pub term: u64,
    pub index: u64,
    pub results: Vec<RequestResult>,
}

/// Why a broker did not do what only a leader does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It does not lead, or not yet; the peer that does, if it knows one.
    NotLeader { leader: Option<u64> },
    /// Too much is under way; ask again.
    Busy,
}

/// The metadata group as its leader sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    pub leader: u64,
    pub term: u64,
    pub commit: u64,
    pub voters: Vec<Progress>,
    pub learners: Vec<Progress>,
}

/// How far a peer has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub peer: u64,
    /// The last index that it is known to have.
    pub matched: u64,
    /// Since it was last heard of, and since it last had everything; `None`: never, as far as this leader knows.
    pub heard_ms_ago: Option<u64>,
    pub caught_up_ms_ago: Option<u64>,
}
