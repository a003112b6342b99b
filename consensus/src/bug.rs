//! Bugs that the simulation must be able to detect.

/// A bug that can be planted, to show that the simulation detects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A Ready counts as durable as soon as it is handed to the journal.
    AcknowledgedBeforeSync,
    /// Votes and acknowledgements are sent before what they promise is durable.
    AnsweredBeforeSync,
    /// Records do not contain the vote.
    VoteNotRecorded,
    /// Records do not contain the commit index.
    CommitNotRecorded,
    /// A retried request is applied twice.
    RetryAppliedTwice,
    /// A node whose disk was emptied comes back as the same peer.
    EmptiedDiskReturns,
    /// A completion is reported before an earlier one of the same group.
    CompletedOutOfOrder,
    /// The leader's lease starts when the quorum's answer arrives, not when the question was sent.
    LeaseFromReceipt,
    /// A node answers a linearizable read from its own view without asking the leader.
    ReadUnasked,
    /// A node answers a read once it knows the leader's index, before its view shows that index.
    ReadBeforeShown,
    /// A node answers a forwarded write once the leader has answered, before its own view shows the write.
    WrittenBeforeShown,
    /// A node takes a read lease on the leader's answer, before its view shows the index in that answer.
    LeaseBeforeShown,
    /// Reads are answered from the slices, including the uncommitted entries in a leader's overlay.
    OverlayShown,
    /// A leader that hands over keeps its lease.
    LeaseKeptAtHandover,
}

impl Bug {
    /// Whether the histories of clients alone must detect the bug. If so, reads are not checked against the log.
    pub(super) fn is_for_histories(self) -> bool {
        matches!(self, Bug::ReadUnasked | Bug::ReadBeforeShown | Bug::LeaseBeforeShown)
    }
}
