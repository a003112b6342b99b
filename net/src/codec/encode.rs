//! Functions that the encoders of requests and responses share.

use bytes::{BufMut, BytesMut};
use kafka_protocol::protocol::Encodable;

use crate::codec::api::ApiKey;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::wire::TooLong;

/// Why a message can't be encoded. It is a bug in the code that made the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("this API version identifies topics by {wanted}, but the message does not")]
    TopicByWrongKind { wanted: &'static str },
    #[error("a {message:?} message has a {header:?} header")]
    OtherApi { header: ApiKey, message: ApiKey },
    #[error("{0}")]
    Codec(String),
}

/// Runs `write` and puts the length before what it appends.
pub fn frame(write: impl FnOnce(&mut PartsBuilder) -> Result<(), EncodeError>) -> Result<Parts, EncodeError> {
    let mut parts = PartsBuilder::with_capacity(256);
    parts.fields().put_i32(0);
    write(&mut parts)?;
    let length = parts.byte_count() - 4;
    let prefix = i32::try_from(length).map_err(|_| TooLong { what: "frame", length })?;
    parts.fields()[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(parts.finish())
}

/// Appends a message of the codec crate.
pub fn write_control<T: Encodable>(message: &T, out: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
    message.encode(out, version).map_err(|e| EncodeError::Codec(e.to_string()))
}
