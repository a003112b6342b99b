//! What a run did, in numbers: the tests say how much of each must happen.

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub nodes: usize,
    pub events: u64,
    /// Over all that happened: equal for equal runs.
    pub trace: u32,
    pub crashes: u64,
    pub elections: u64,
    pub committed: u64,
    pub acked: u64,
    /// Requests that were applied when they came again.
    pub retried: u64,
    /// Writes of the metadata that had an answer: by the commit, on the fast path, and none in time.
    pub written: u64,
    pub fast: u64,
    pub unanswered: u64,
    /// Reads that waited for the leader's word, and that a lease allowed.
    pub reads: u64,
    pub leased_reads: u64,
    /// Snapshots that took the place of a log.
    pub restored: u64,
    /// Disks that were emptied.
    pub emptied: u64,
    /// Changes of the members that were proposed for partitions.
    pub members_changed: u64,
    /// Clocks that jumped ahead, and nodes that stood still and went on; of each, those by more than any lease.
    pub clock_steps: u64,
    pub long_clock_steps: u64,
    pub pauses: u64,
    pub long_pauses: u64,
    /// Times that the metadata's leader named its successor.
    pub handovers: u64,
    /// Calls of clients whose histories were judged, on so many keys; and keys whose search was given up.
    pub calls: u64,
    pub keys: u64,
    pub given_up: u64,
    /// Calls that a leader had acknowledged alone, and that went with it.
    pub lost: u64,
}

impl Summary {
    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        let Self { nodes: _, trace: _, events, crashes, elections, committed, acked, retried, .. } = other;
        let Self { written, fast, unanswered, reads, leased_reads, restored, emptied, members_changed, .. } = other;
        let Self { clock_steps, long_clock_steps, pauses, long_pauses, handovers, .. } = other;
        let Self { calls, keys, given_up, lost, .. } = other;
        self.events += events;
        self.crashes += crashes;
        self.elections += elections;
        self.committed += committed;
        self.acked += acked;
        self.retried += retried;
        self.written += written;
        self.fast += fast;
        self.unanswered += unanswered;
        self.reads += reads;
        self.leased_reads += leased_reads;
        self.restored += restored;
        self.emptied += emptied;
        self.members_changed += members_changed;
        self.clock_steps += clock_steps;
        self.long_clock_steps += long_clock_steps;
        self.pauses += pauses;
        self.long_pauses += long_pauses;
        self.handovers += handovers;
        self.calls += calls;
        self.keys += keys;
        self.given_up += given_up;
        self.lost += lost;
    }
}
