//! Bugs that the simulation must be able to detect. Some are mistakes of a node, which the simulation drives itself.
//! The others are planted in the metadata plane.

use types::planted;

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

    /// The same bug, if it is one of the metadata plane.
    fn of_the_plane(self) -> Option<planted::Bug> {
        Some(match self {
            Bug::LeaseFromReceipt => planted::Bug::LeaseFromReceipt,
            Bug::ReadUnasked => planted::Bug::ReadUnasked,
            Bug::ReadBeforeShown => planted::Bug::ReadBeforeShown,
            Bug::WrittenBeforeShown => planted::Bug::WrittenBeforeShown,
            Bug::LeaseBeforeShown => planted::Bug::LeaseBeforeShown,
            Bug::LeaseKeptAtHandover => planted::Bug::LeaseKeptAtHandover,
            _ => return None,
        })
    }
}

/// A bug of the metadata plane, planted on this thread until this is dropped.
pub(super) struct Planted;

impl Planted {
    pub(super) fn begin(bug: Option<Bug>) -> Self {
        planted::plant(bug.and_then(Bug::of_the_plane));
        Self
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        planted::plant(None);
    }
}
