//! Counts of what a run did. The tests say how much of each must happen.

/// The counts of one run, or the sums over several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub nodes: usize,
    pub events: u64,
    /// A checksum of all events. Equal runs have equal checksums.
    pub trace: u32,
    pub crashes: u64,
    pub elections: u64,
    pub committed: u64,
    pub acked: u64,
    /// Requests that were committed again and got their first answer.
    pub retried: u64,
    /// Metadata writes that were answered after their commit.
    pub written: u64,
    /// Metadata writes that were answered on the fast path.
    pub fast: u64,
    /// Metadata operations of clients, reads included, that ended with an error.
    pub unanswered: u64,
    /// Linearizable reads that were answered.
    pub reads: u64,
    /// Times that a client read under a read lease.
    pub leased_reads: u64,
    /// Snapshots that replaced a log.
    pub restored: u64,
    /// Disks that were emptied.
    pub emptied: u64,
    /// Membership changes that were proposed to partitions.
    pub members_changed: u64,
    /// Clocks that jumped ahead. `long`: by more than any lease.
    pub clock_steps: u64,
    pub long_clock_steps: u64,
    /// Nodes that were paused. `long`: for longer than any lease.
    pub pauses: u64,
    pub long_pauses: u64,
    /// Handovers that the leader of the metadata group started.
    pub handovers: u64,
    /// Calls of clients whose histories were checked.
    pub calls: u64,
    /// Keys on which they were made.
    pub keys: u64,
    /// Keys whose search gave up.
    pub given_up: u64,
    /// Calls that a leader acknowledged alone and that were lost with it.
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
