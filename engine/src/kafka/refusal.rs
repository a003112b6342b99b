//! Refusals: an error code, and the words that go beside it into the answer.

use crate::meta::SubmitError;
use consensus::metadata::Rejection;
use net::errors::ErrorCode;

/// A refusal with the words that go into the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<SubmitError> for Refusal {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::NoLeader => ErrorCode::NotController,
            SubmitError::Storage => ErrorCode::KafkaStorageError,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        let code = match rejection {
            Rejection::TopicExists(_) => ErrorCode::TopicAlreadyExists,
            Rejection::UnknownTopic(_) => ErrorCode::UnknownTopicOrPartition,
            Rejection::InvalidName(_) => ErrorCode::InvalidTopicException,
            Rejection::PartitionCount { .. } | Rejection::NoPartitions => ErrorCode::InvalidPartitions,
        };
        Self::new(code, rejection.to_string())
    }
}
