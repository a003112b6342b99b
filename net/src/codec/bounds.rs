//! Checks a message against its schema before the codec decodes it.
//!
//! The `kafka-protocol` crate reserves memory by the lengths that the sender claims. This module first compares every
//! length and count with the bytes that remain. It also limits all elements of a request together to
//! [`crate::codec::wire::ELEMENTS_MAX`]. It allocates nothing. Decoding a message that passes takes memory
//! proportional to the message's size.

use bytes::Bytes;

use crate::codec::api::ApiKey;
use crate::codec::schema::response as schema_response;
use crate::codec::schema::{self, Field, Type};
use crate::codec::wire::{Malformed, Reader};

/// Most bytes of one decoded element of a request, without its strings, which are slices of the frame. For requests
/// that [`count_elements`] counts.
pub const ELEMENT_BYTES_MAX: usize = 160;

/// Checks the body of a request, and counts all its elements. 0 for requests that are decoded without the codec, or
/// whose decoded form is gone at once, as the coordinator copies it: Produce, Fetch, JoinGroup and SyncGroup.
pub fn count_elements(api: ApiKey, version: i16, body: &Bytes) -> Result<usize, Malformed> {
    if matches!(api, ApiKey::Produce | ApiKey::Fetch | ApiKey::JoinGroup | ApiKey::SyncGroup) {
        return Ok(0);
    }
    let mut reader = Reader::new(body);
    check(schema::request(api), api, version, &mut reader)?;
    Ok(reader.elements())
}

/// Checks the body of a request. Bytes after the end of the message are allowed: librdkafka 2.16 pads Metadata, and
/// Kafka ignores it. Not for Produce and Fetch, which are decoded without the codec.
pub fn check_request(api: ApiKey, version: i16, body: &Bytes) -> Result<(), Malformed> {
    check(schema::request(api), api, version, &mut Reader::new(body))
}

/// Checks the whole body of a response. Responses are not limited to `ELEMENTS_MAX`: the metadata of a large cluster
/// may exceed it.
pub fn check_response(api: ApiKey, version: i16, body: &Bytes) -> Result<(), Malformed> {
    let mut reader = Reader::without_element_bound(body);
    check(schema_response::response(api), api, version, &mut reader)?;
    reader.finish()
}

fn check(fields: &'static [Field], api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<(), Malformed> {
    Walk { version, flexible: api.is_flexible(version) }.fields(fields, "message", reader)
}

#[derive(Clone, Copy)]
struct Walk {
    version: i16,
    flexible: bool,
}

impl Walk {
    fn fields(self, fields: &'static [Field], name: &'static str, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let present = || fields.iter().filter(|field| field.exists_in(self.version));
        for field in present().filter(|field| field.tag.is_none()) {
            self.value(field.name, field.of, field.nullable, reader)?;
        }
        reader.tags(name, self.flexible, |tag, inner| match present().find(|field| field.tag == Some(tag)) {
            Some(field) => self.value(field.name, field.of, field.nullable, inner).map(|()| true),
            None => Ok(false),
        })
    }

    fn value(self, name: &'static str, of: Type, nullable: bool, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        match of {
            Type::Bool | Type::Int8 | Type::Int16 | Type::Int32 | Type::Int64 | Type::Uuid => {
                reader.skip(name, of.bytes_min(self.version, self.flexible))
            }
            Type::String => reader.skip_string(name, self.flexible, nullable),
            Type::Bytes => reader.skip_bytes(name, self.flexible, nullable),
            Type::Array(element) => {
                let at = reader.at();
                let element_bytes_min = element.bytes_min(self.version, self.flexible);
                match reader.nullable_count(name, self.flexible, element_bytes_min)? {
                    None if !nullable => return Err(Malformed::Null { field: name, at }),
                    None => {}
                    Some(count) => {
                        for _ in 0..count {
                            self.value(name, *element, false, reader)?;
                        }
                    }
                }
                Ok(())
            }
            Type::Struct(fields) => self.fields(fields, name, reader),
            // One byte tells whether the struct follows (KIP-893).
            Type::OptionalStruct(fields) => match reader.i8(name)? {
                1 => self.fields(fields, name, reader),
                _ => Ok(()),
            },
        }
    }
}
