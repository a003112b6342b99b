//! Kafka's error codes: the only file that lists them.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_error_codes>.

use crate::records::batch::BatchError;
use crate::records::compression::DecompressError;

pub use kafka_protocol::error::ResponseError as ErrorCode;

/// The code for "no error", which [`ErrorCode`] leaves out.
pub const NONE: i16 = 0;

/// The wire code of an outcome.
pub fn code<T>(outcome: &Result<T, ErrorCode>) -> i16 {
    match outcome {
        Ok(_) => NONE,
        Err(e) => e.code(),
    }
}

/// The outcome that a wire code stands for.
pub fn check(code: i16) -> Result<(), ErrorCode> {
    match ErrorCode::try_from_code(code) {
        None => Ok(()),
        Some(e) => Err(e),
    }
}

/// The error code that the producer gets for a rejected batch.
pub fn of_batch(error: &BatchError) -> ErrorCode {
    match error {
        BatchError::Short { .. } | BatchError::Length { .. } | BatchError::Crc { .. } => ErrorCode::CorruptMessage,
        BatchError::Magic { .. } => ErrorCode::UnsupportedForMessageFormat,
        BatchError::Codec { .. } | BatchError::ZstdTooEarly { .. } => ErrorCode::UnsupportedCompressionType,
        BatchError::AppendTime => ErrorCode::InvalidTimestamp,
        // The producer splits such a batch and sends the parts.
        BatchError::Unfold(DecompressError::TooLarge { .. }) => ErrorCode::MessageTooLarge,
        BatchError::Empty
        | BatchError::Several
        | BatchError::Count { .. }
        | BatchError::BaseOffset { .. }
        | BatchError::Control
        | BatchError::Producer { .. }
        | BatchError::Attributes { .. }
        | BatchError::Unfold(DecompressError::Corrupt { .. })
        | BatchError::Records(_) => ErrorCode::InvalidRecord,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_outcomes_are_inverse() {
        assert_eq!(code(&Ok(1)), 0);
        assert_eq!(check(0), Ok(()));
        for n in -1..=130 {
            let outcome = check(n);
            assert_eq!(code(&outcome), n);
        }
        assert_eq!(check(35), Err(ErrorCode::UnsupportedVersion));
        assert_eq!(check(43), Err(ErrorCode::UnsupportedForMessageFormat));
    }
}
