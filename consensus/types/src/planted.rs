//! Bugs that a simulation plants on its thread, to show that it would detect them. Production code has a line
//! `if planted!(Name)` where such a bug would be. It is false unless a simulation has planted that bug.

use std::cell::Cell;

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Leaders send entries without their batches, and followers accept them.
    AppendWithoutPayload,
    /// A follower truncates one entry more of its log than it has to replace.
    TruncatedTooFar,
    /// Groups at rest do not notice that brokers fail or return.
    QuietGroupSleepsOn,
    /// A partition remembers the batches of idempotent producers although it has truncated them.
    ProducersKeptOnTruncation,
    /// If a batch arrives before its predecessor, the broker gives up on the predecessor at once.
    GapsGivenNoTime,
    /// An unknown producer may begin behind a batch of its own that the broker has just rejected.
    BegunBehindRefused,
    /// A produce request that times out while it waits for room in the ring stays in the queue.
    AbandonedTurnStays,
    /// Whatever a broker has begun for a client stays when the client's connection breaks.
    AbandonedRequestStays,
    /// The coordinator acknowledges a commit of offsets before it is committed in the log.
    CommitAcknowledgedTooEarly,
    /// A static member can still commit after another member has taken over its instance.
    FencedMemberCommits,
    /// A message between two cores is lost.
    MeshMessageLost,
    /// Two messages of one lane between two cores change places.
    MeshMessagesSwapped,
    /// A core that has drained does not wait for the others, which still ask it.
    MeshDeliveredAfterDrain,
    /// A core shows a change of the metadata after a later one.
    MeshViewOutOfOrder,
    /// A core forgets an ask whose caller is gone, although its reply is on the way.
    MeshReplyToGoneCaller,
    /// The ring frees everything durable, whether or not a checkpoint covers it.
    RingRecycledTooEarly,
    /// Recovery accepts bytes left by an earlier lap of the ring as if this lap had written them.
    StaleLapAccepted,
    /// The metadata leader's lease starts when the quorum's answer arrives, not when the question was sent.
    LeaseFromReceipt,
    /// A broker answers a linearizable read from its own view without asking the leader.
    ReadUnasked,
    /// A broker answers a read once it knows the leader's index, before its view shows that index.
    ReadBeforeShown,
    /// A broker answers a forwarded write once the leader has answered, before its own view shows the write.
    WrittenBeforeShown,
    /// A broker takes a read lease on the leader's answer, before its view shows the index in that answer.
    LeaseBeforeShown,
    /// A leader of the metadata that hands over keeps its lease.
    LeaseKeptAtHandover,
}

impl Bug {
    /// The bugs that a simulation of whole brokers detects. The simulation of the metadata group, in `consensus`,
    /// detects the others.
    pub const OF_BROKERS: [Bug; 17] = [
        Bug::AppendWithoutPayload,
        Bug::TruncatedTooFar,
        Bug::QuietGroupSleepsOn,
        Bug::ProducersKeptOnTruncation,
        Bug::GapsGivenNoTime,
        Bug::BegunBehindRefused,
        Bug::AbandonedTurnStays,
        Bug::AbandonedRequestStays,
        Bug::CommitAcknowledgedTooEarly,
        Bug::FencedMemberCommits,
        Bug::MeshMessageLost,
        Bug::MeshMessagesSwapped,
        Bug::MeshDeliveredAfterDrain,
        Bug::MeshViewOutOfOrder,
        Bug::MeshReplyToGoneCaller,
        Bug::RingRecycledTooEarly,
        Bug::StaleLapAccepted,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Plants a bug on this thread, or removes it with `None`.
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// See [`planted!`](crate::planted!).
#[inline]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether a simulation has planted this [`Bug`] on this thread.
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_planted($crate::planted::Bug::$bug)
    };
}
