//! Refusals: an error code, and the message beside it in the answer.

use crate::{
    cluster::meta::{self, SubmitError},
    core::Core,
    long_work::Work,
};
use consensus::metadata::{Command, NoRoom, Outcome, Rejection};
use net::errors::ErrorCode;
use std::time::Duration;

/// An error code, and the message for the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A setting may not have this value, or the resource has no such setting.
    pub fn invalid_config(error: impl std::error::Error) -> Self {
        Self::new(ErrorCode::InvalidConfig, error.to_string())
    }

    /// A change is not done within its request's timeout.
    pub fn late(timeout: Duration) -> Self {
        let ms = timeout.as_millis();
        let message = format!("not done within the request's timeout of {ms} ms; it may still take effect");
        Self::new(ErrorCode::RequestTimedOut, message)
    }

    /// Whether a newer view might allow what was refused.
    fn may_be_outdated(&self) -> bool {
        matches!(
            self.code,
            ErrorCode::TopicAlreadyExists
                | ErrorCode::UnknownTopicOrPartition
                | ErrorCode::UnknownTopicId
                | ErrorCode::InvalidPartitions
                | ErrorCode::InvalidReplicaAssignment
                | ErrorCode::BrokerIdNotRegistered
                // Topics may have been deleted.
                | ErrorCode::PolicyViolation
        )
    }

    /// Whether a refusal from the log may no longer hold. Only the leader counts the brokers' room and compares their
    /// rings, so its refusal for lack of room is final.
    fn may_have_been_early(&self) -> bool {
        self.may_be_outdated() && self.code != ErrorCode::PolicyViolation
    }
}

/// Most changes that are submitted at once. The others of a request wait for them.
pub const CHANGES_MAX: usize = 256;

/// The check of a change is as much work as so many entries of a request that reads.
const CHECK_ENTRIES: usize = 16;

/// Checks changes against this core's view, which may lag behind what the client has seen on another broker. So
/// before it refuses a change for that reason, the view must show every acknowledged write.
pub async fn check<T, R>(
    work: &mut Work<'_, Core>,
    items: &[T],
    check_one: impl Fn(&Core, &T) -> Result<R, Refusal>,
) -> Vec<Result<R, Refusal>> {
    let core = work.core();
    let mut checked = Vec::with_capacity(items.len());
    let mut outdated = Vec::new();
    for (at, item) in items.iter().enumerate() {
        work.entries(CHECK_ENTRIES).await;
        checked.push(check_one(core, item));
        if checked[at].as_ref().is_err_and(Refusal::may_be_outdated) {
            outdated.push(at);
        }
    }
    if outdated.is_empty() {
        return checked;
    }
    let newest = meta::linearize(core).await;
    for at in outdated {
        work.entries(CHECK_ENTRIES).await;
        checked[at] = match newest {
            Ok(()) => check_one(core, &items[at]),
            Err(error) => Err(error.into()),
        };
    }
    checked
}

/// Checks changes, one per item, and submits those that pass. The checks may have passed on an outdated view. So if
/// the log rejects a change, it is checked again before the client gets the error. Many changes are made piece by
/// piece.
pub async fn change<T>(
    work: &mut Work<'_, Core>,
    items: &[T],
    check_one: impl Fn(&Core, &T) -> Result<Command, Refusal>,
    submit: impl AsyncFn(Vec<Command>) -> Vec<Result<Outcome, Refusal>>,
) -> Vec<Result<(Command, Outcome), Refusal>> {
    let mut results = Vec::with_capacity(items.len());
    for piece in items.chunks(CHANGES_MAX) {
        results.extend(change_piece(work, piece, &check_one, &submit).await);
    }
    results
}

async fn change_piece<T>(
    work: &mut Work<'_, Core>,
    items: &[T],
    check_one: impl Fn(&Core, &T) -> Result<Command, Refusal>,
    submit: impl AsyncFn(Vec<Command>) -> Vec<Result<Outcome, Refusal>>,
) -> Vec<Result<(Command, Outcome), Refusal>> {
    let mut results: Vec<Option<Result<_, Refusal>>> = items.iter().map(|_| None).collect();
    loop {
        let open: Vec<usize> = (0..items.len()).filter(|at| results[*at].is_none()).collect();
        let checked = check(work, &open, |core, at| check_one(core, &items[*at])).await;
        let mut passed = Vec::with_capacity(open.len());
        for (at, checked) in open.into_iter().zip(checked) {
            match checked {
                Ok(command) => passed.push((at, command)),
                Err(refusal) => results[at] = Some(Err(refusal)),
            }
        }
        let outcomes = submit(passed.iter().map(|(_, command)| command.clone()).collect()).await;
        work.resume();
        let mut outdated = Vec::new();
        for ((at, command), outcome) in passed.into_iter().zip(outcomes) {
            match outcome {
                Err(refusal) if refusal.may_have_been_early() => outdated.push(at),
                outcome => results[at] = Some(outcome.map(|outcome| (command, outcome))),
            }
        }
        if !outdated.is_empty()
            && let Err(error) = meta::linearize(work.core()).await
        {
            outdated.iter().for_each(|at| results[*at] = Some(Err(error.into())));
            outdated.clear();
        }
        if outdated.is_empty() {
            return results.into_iter().map(|result| result.expect("none is open any more")).collect();
        }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::NoLeader => ErrorCode::NotController,
            SubmitError::TimedOut => ErrorCode::RequestTimedOut,
            SubmitError::Storage => ErrorCode::KafkaStorageError,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NoRoom> for Refusal {
    fn from(no_room: NoRoom) -> Self {
        Rejection::from(no_room).into()
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection {
            Rejection::TopicExists(_) => ErrorCode::TopicAlreadyExists,
            Rejection::UnknownTopic(_) => ErrorCode::UnknownTopicOrPartition,
            Rejection::InvalidName(_) => ErrorCode::InvalidTopicException,
            Rejection::PartitionCount { .. } | Rejection::NoPartitions => ErrorCode::InvalidPartitions,
            Rejection::UnknownPartition(_) => ErrorCode::UnknownTopicOrPartition,
            Rejection::ReplicasChanged => ErrorCode::InvalidReplicaAssignment,
            Rejection::StaleBroker { .. } => ErrorCode::StaleBrokerEpoch,
            Rejection::PeerGone { .. } | Rejection::NodeIdTaken { .. } => ErrorCode::DuplicateBrokerRegistration,
            Rejection::UnknownBroker(_) => ErrorCode::BrokerIdNotRegistered,
            Rejection::FeatureDowngrade { .. } => ErrorCode::InvalidRequest,
            // As Kafka answers for too many partitions in one request.
            Rejection::LargestEntry { .. } | Rejection::NoRoom(_) => ErrorCode::PolicyViolation,
        };
        Self::new(code, rejection.to_string())
    }
}
