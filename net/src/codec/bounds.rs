//! Checks a message against its schema before the codec decodes it.
//!
//! The `kafka-protocol` crate reserves memory by the lengths that the sender claims. This module first compares every
//! length and count with the bytes that remain. It also limits all elements of a request together to
//! [`crate::codec::wire::ELEMENTS_MAX`]. It allocates nothing. Decoding a message that passes takes memory
//! proportional to the message's size.

use std::cell::Cell;

use bytes::Bytes;

use crate::codec::api::ApiKey;
use crate::codec::schema::{Field, Type};
use crate::codec::wire::{Malformed, Reader};

/// Most bytes of one decoded element of a request, without its strings, which are slices of the frame. A number in an
/// array takes its own width instead.
pub const ELEMENT_BYTES_MAX: usize = 160;

/// Most bytes of an unknown tagged field that the codec keeps: the only one in a map.
const TAG_BYTES_MAX: usize = 416;

/// Checks the body of a request, and returns about as many bytes as its decoded elements take.
pub fn decoded_bytes(api: ApiKey, version: i16, body: &Bytes) -> Result<usize, Malformed> {
    check(api.api().request, api, version, &mut Reader::new(body))
}

/// Checks the body of a request. Bytes after the end of the message are allowed: librdkafka 2.16 pads Metadata, and
/// Kafka ignores it.
pub fn check_request(api: ApiKey, version: i16, body: &Bytes) -> Result<(), Malformed> {
    decoded_bytes(api, version, body).map(drop)
}

/// Checks the whole body of a response. Responses are not limited to `ELEMENTS_MAX`: the metadata of a large cluster
/// may exceed it.
pub fn check_response(api: ApiKey, version: i16, body: &Bytes) -> Result<(), Malformed> {
    let mut reader = Reader::without_element_bound(body);
    check(api.api().response, api, version, &mut reader)?;
    reader.finish()
}

/// Returns the approximate bytes of the decoded elements.
fn check(fields: &'static [Field], api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<usize, Malformed> {
    let decoded = Cell::new(0);
    let walk = Walk { version, flexible: api.is_flexible(version), decoded: &decoded };
    walk.fields(fields, "message", reader)?;
    Ok(decoded.get())
}

fn element_bytes(element: Type) -> usize {
    match element {
        Type::Bool | Type::Int8 | Type::Int16 | Type::Int32 | Type::Int64 | Type::Uuid => element.bytes_min(0, false),
        Type::String | Type::Bytes | Type::Array(_) | Type::Struct(_) | Type::OptionalStruct(_) => ELEMENT_BYTES_MAX,
    }
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    version: i16,
    flexible: bool,
    /// Approximate bytes of the decoded elements so far.
    decoded: &'a Cell<usize>,
}

impl Walk<'_> {
    fn fields(self, fields: &'static [Field], name: &'static str, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        let present = || fields.iter().filter(|field| field.exists_in(self.version));
        for field in present().filter(|field| field.tag.is_none()) {
            self.value(field.name, field.of, field.nullable, reader)?;
        }
        reader.tags(name, self.flexible, |tag, inner| match present().find(|field| field.tag == Some(tag)) {
            Some(field) => self.value(field.name, field.of, field.nullable, inner).map(|()| true),
            None => {
                self.adds(TAG_BYTES_MAX);
                Ok(false)
            }
        })
    }

    fn adds(self, bytes: usize) {
        self.decoded.set(self.decoded.get() + bytes);
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
                        self.adds(count * element_bytes(*element));
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
