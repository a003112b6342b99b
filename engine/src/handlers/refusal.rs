//! Refusals: an error code, and the message beside it in the answer.

use crate::{
    cluster::meta::{self, SubmitError},
    core::Core,
};
use consensus::metadata::{Command, NoRoom, Outcome, Rejection};
use net::errors::ErrorCode;
use std::rc::Rc;

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

/// Checks changes against this core's view, which may lag behind what the client has seen on another broker. So
/// before it refuses a change for that reason, the view must show every acknowledged write.
pub async fn check<T>(core: &Rc<Core>, check: impl Fn(&Core) -> Vec<Result<T, Refusal>>) -> Vec<Result<T, Refusal>> {
    let checked = check(core);
    let outdated = |result: &Result<T, Refusal>| result.as_ref().is_err_and(Refusal::may_be_outdated);
    if !checked.iter().any(outdated) {
        return checked;
    }
    match meta::linearize(core).await {
        Ok(()) => check(core),
        Err(error) => {
            let unsure = |refusal: Refusal| if refusal.may_be_outdated() { error.into() } else { refusal };
            checked.into_iter().map(|result| result.map_err(unsure)).collect()
        }
    }
}

/// Checks changes, one per item, and submits those that pass. The checks may have passed on an outdated view. So if
/// the log rejects a change, it is checked again before the client gets the error.
pub async fn change<T>(
    core: &Rc<Core>,
    items: &[T],
    check_one: impl Fn(&Core, &T) -> Result<Command, Refusal>,
    submit: impl AsyncFn(Vec<Command>) -> Vec<Result<Outcome, Refusal>>,
) -> Vec<Result<(Command, Outcome), Refusal>> {
    let mut results: Vec<Option<Result<_, Refusal>>> = items.iter().map(|_| None).collect();
    loop {
        let open: Vec<usize> = (0..items.len()).filter(|at| results[*at].is_none()).collect();
        let checked = check(core, |core| open.iter().map(|at| check_one(core, &items[*at])).collect()).await;
        let mut passed = Vec::with_capacity(open.len());
        for (at, checked) in open.into_iter().zip(checked) {
            match checked {
                Ok(command) => passed.push((at, command)),
                Err(refusal) => results[at] = Some(Err(refusal)),
            }
        }
        let outcomes = submit(passed.iter().map(|(_, command)| command.clone()).collect()).await;
        let mut outdated = Vec::new();
        for ((at, command), outcome) in passed.into_iter().zip(outcomes) {
            match outcome {
                Err(refusal) if refusal.may_have_been_early() => outdated.push(at),
                outcome => results[at] = Some(outcome.map(|outcome| (command, outcome))),
            }
        }
        if !outdated.is_empty()
            && let Err(error) = meta::linearize(core).await
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
            Rejection::PeerGone { .. } => ErrorCode::DuplicateBrokerRegistration,
            Rejection::UnknownBroker(_) => ErrorCode::BrokerIdNotRegistered,
            Rejection::FeatureDowngrade { .. } => ErrorCode::InvalidRequest,
            // As Kafka answers for too many partitions in one request.
            Rejection::LargestEntry { .. } | Rejection::NoRoom(_) => ErrorCode::PolicyViolation,
        };
        Self::new(code, rejection.to_string())
    }
}
