//! Requests to change the topic `__millrace_metadata`, see [`crate::core::metadata_topic`].

use super::refusal::Refusal;
use crate::core::metadata_topic::METADATA_TOPIC;
use net::errors::ErrorCode;

/// The error for requests to create, change or delete it.
pub fn refusal() -> Refusal {
    let message = format!("{METADATA_TOPIC} is the metadata's own log: clients can only read it");
    Refusal::new(ErrorCode::InvalidTopicException, message)
}

/// Rejects changes to the metadata's log.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    if name == METADATA_TOPIC { Err(refusal()) } else { Ok(()) }
}
