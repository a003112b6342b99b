//! Why a partition rejects a request. Handlers and the group coordinators map it to Kafka's error codes.

use consensus::group::ProposeError;

/// Why a partition rejects a batch, a read or a change of its log's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// Another replica leads, or none does. The client looks for the leader and retries.
    #[error("this replica does not lead")]
    NotLeader,
    /// The log of this replica takes no entry for the moment. The client retries.
    #[error("this replica is handing over, or its log is full for the moment")]
    NoProposals,
    /// A batch before this one is missing. Its producer retries both in order.
    #[error("the producer's batch before this one is missing")]
    Gap,
    /// The ring or a segment file of this replica has failed, and no other broker leads.
    #[error("the storage of this replica has failed")]
    Storage,
    #[error("fewer replicas are in sync than min.insync.replicas")]
    TooFewInSync,
    /// The batch is in the log, and may be committed later.
    #[error("fewer replicas are in sync than min.insync.replicas, since the batch was appended")]
    TooFewInSyncSince,
    /// The client retries once replicas have caught up.
    #[error("too many bytes are not committed yet")]
    TooMuchUncommitted,
    #[error("the batch is larger than the topic or the brokers allow")]
    TooLarge,
    #[error("the producer's batch is older than the last ones remembered, or one before it is missing")]
    OutOfSequence,
    #[error("a newer instance of the producer has written")]
    ProducerFenced,
    #[error("the client knows an older leader epoch")]
    EpochFenced,
    #[error("the client knows a newer leader epoch")]
    EpochUnknown,
    #[error("the log does not have this offset")]
    OffsetOutOfRange,
    /// The range was trimmed, truncated or removed. The client reads again.
    #[error("the log changed during the read")]
    LogChanged,
}

impl From<ProposeError> for PartitionError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader => Self::NotLeader,
            ProposeError::Full => Self::NoProposals,
        }
    }
}
