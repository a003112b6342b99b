//! A core works on its partitions for requests, which may have come to another core.
//! Lives on: the core that owns the partitions.
//!
//! | module | contents |
//! |---|---|
//! | `appending` | batches of producers |
//! | `reading` | a core's part of a fetch: what it reads, and how it waits |
//! | `waits` | the fetches that wait on a core, and the byte counts of those that it gathers |
//! | `finding` | offsets by timestamp, and the ends of leader epochs |

pub mod appending;
pub mod finding;
pub mod reading;
pub mod waits;

use crate::{
    core::Core,
    long_work::Work,
    partition::{Partition, PartitionError},
};
use net::errors::ErrorCode;
use std::rc::Rc;
use types::GroupId;

/// Questions to partitions of one core, each with its place among all questions.
pub type Placed<T> = Vec<(usize, GroupId, T)>;

/// The answers, each with the place of its question.
pub type Found<R> = Vec<(usize, Result<R, ErrorCode>)>;

/// On the owner: answers the questions one after the other.
pub async fn answer_all<T, R>(
    core: Rc<Core>,
    questions: Placed<T>,
    answer: impl AsyncFn(&mut Work<'_, Core>, Rc<Partition>, T) -> Result<R, ErrorCode>,
) -> Found<R> {
    let mut answers = Vec::with_capacity(questions.len());
    let mut work = Work::on(&core);
    for (place, group, what) in questions {
        work.entry().await;
        let found = match core.partition(group) {
            Some(partition) if partition.leads() => answer(&mut work, partition, what).await,
            Some(partition) => Err(partition.why_not_led_here(&core).into()),
            None => Err(ErrorCode::NotLeaderOrFollower),
        };
        answers.push((place, found));
    }
    answers
}

impl From<PartitionError> for ErrorCode {
    fn from(error: PartitionError) -> Self {
        match error {
            // The client asks for the leader and retries. This is also right where the leader can't take the request
            // for the moment.
            PartitionError::NotLeader
            | PartitionError::NoProposals
            | PartitionError::Gap
            | PartitionError::LogChanged => Self::NotLeaderOrFollower,
            PartitionError::Storage => Self::KafkaStorageError,
            PartitionError::TooFewInSync | PartitionError::TooMuchUncommitted => Self::NotEnoughReplicas,
            PartitionError::TooFewInSyncSince => Self::NotEnoughReplicasAfterAppend,
            PartitionError::TooLarge => Self::MessageTooLarge,
            PartitionError::OutOfSequence => Self::OutOfOrderSequenceNumber,
            PartitionError::ProducerFenced => Self::InvalidProducerEpoch,
            PartitionError::EpochFenced => Self::FencedLeaderEpoch,
            PartitionError::EpochUnknown => Self::UnknownLeaderEpoch,
            PartitionError::OffsetOutOfRange => Self::OffsetOutOfRange,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of <https://kafka.apache.org/protocol#protocol_error_codes>.
    #[test]
    fn errors_of_partitions_have_kafkas_codes() {
        for (error, code) in [
            (PartitionError::NotLeader, 6),
            (PartitionError::NoProposals, 6),
            (PartitionError::Gap, 6),
            (PartitionError::LogChanged, 6),
            (PartitionError::Storage, 56),
            (PartitionError::TooFewInSync, 19),
            (PartitionError::TooMuchUncommitted, 19),
            (PartitionError::TooFewInSyncSince, 20),
            (PartitionError::TooLarge, 10),
            (PartitionError::OutOfSequence, 45),
            (PartitionError::ProducerFenced, 47),
            (PartitionError::EpochFenced, 74),
            (PartitionError::EpochUnknown, 75),
            (PartitionError::OffsetOutOfRange, 1),
        ] {
            assert_eq!(ErrorCode::from(error).code(), code, "{error:?}");
        }
    }
}
