//! Mistakes that the simulation must be able to see.

/// A mistake that can be planted, to show that the simulation would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A Ready counts as durable as soon as it is handed to the journal.
    AcknowledgedBeforeSync,
    /// Votes and acknowledgements leave before what they promise is durable.
    AnsweredBeforeSync,
    /// Records say nothing of the vote.
    VoteNotRecorded,
    /// Records say nothing of what is committed.
    CommitNotRecorded,
    /// A request that comes twice is applied twice.
    RetryAppliedTwice,
    /// A node whose disk was emptied comes back as the same peer.
    EmptiedDiskReturns,
    /// A completion is reported before one that was handed to the journal earlier.
    CompletedOutOfOrder,
    /// The leader's lease counts from when the quorum's answer came, not from when it was asked.
    LeaseFromReceipt,
    /// A linearizable read is answered from what the asked node shows, and nobody asks the leader.
    ReadUnasked,
    /// A read is answered when the leader has told its index, before the asked node shows that.
    ReadBeforeShown,
    /// A forwarded write is answered when the leader has answered, before the node that took it shows it.
    WrittenBeforeShown,
    /// A read lease is taken for what the leader has answered, before that is shown.
    LeaseBeforeShown,
    /// Reads are answered from the slices, with what a leader's overlay holds and nobody has committed.
    OverlayShown,
    /// A leader that hands over keeps its lease.
    LeaseKeptAtHandover,
}

impl Bug {
    /// Whether the histories of clients alone are to show it: the log's word on it is not heard.
    pub(super) fn is_for_histories(self) -> bool {
        matches!(self, Bug::ReadUnasked | Bug::ReadBeforeShown | Bug::LeaseBeforeShown)
    }
}
