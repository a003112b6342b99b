//! Kafka's primitive types, read from and written to bytes.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_types>. Every length is checked against the bytes that remain
//! before it is used. Every error names the field.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

/// The maximum length of a string in Kafka's protocol, compact or not. Kafka's generated readers reject longer ones
/// too.
pub const STRING_BYTES_MAX: usize = i16::MAX as usize;

/// The maximum number of array elements and tagged fields of one request, all together. A request with more is
/// malformed. Decoded elements take many times their bytes on the wire, and no sensible request comes near this
/// limit.
pub const ELEMENTS_MAX: usize = 1 << 18;

/// An error in a message, and the byte where it was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("{field} at byte {at}: {needs} bytes needed, {remain} remain")]
    Short { field: &'static str, at: usize, needs: usize, remain: usize },
    #[error("{field} at byte {at}: negative length {length}")]
    Negative { field: &'static str, at: usize, length: i64 },
    #[error("{field} at byte {at}: {count} elements claimed, {remain} bytes remain")]
    Count { field: &'static str, at: usize, count: u64, remain: usize },
    #[error("{field} at byte {at}: more than {ELEMENTS_MAX} elements in one request")]
    Elements { field: &'static str, at: usize },
    #[error("{field} at byte {at}: null where a value is required")]
    Null { field: &'static str, at: usize },
    #[error("{field} at byte {at}: variable-length number too long")]
    Varint { field: &'static str, at: usize },
    #[error("{field} at byte {at}: not UTF-8")]
    Utf8 { field: &'static str, at: usize },
    #[error("{field} at byte {at}: tagged field takes {used} of its {size} bytes")]
    TagSize { field: &'static str, at: usize, used: usize, size: usize },
    #[error("{field} at byte {at}: string of {length} bytes, at most {STRING_BYTES_MAX} allowed")]
    StringLength { field: &'static str, at: usize, length: usize },
    #[error("{remain} bytes follow the end of the message at byte {at}")]
    Trailing { at: usize, remain: usize },
    #[error("{0}")]
    Codec(String),
}

/// Reads fields from a message. Strings and bytes are slices of the message, not copies.
#[derive(Debug)]
pub struct Reader<'a> {
    message: &'a Bytes,
    at: usize,
    end: usize,
    /// How many of [`ELEMENTS_MAX`] are left.
    elements_left: usize,
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a Bytes) -> Reader<'a> {
        Reader { message, at: 0, end: message.len(), elements_left: ELEMENTS_MAX }
    }

    /// For responses of a broker that this program chose to ask: [`ELEMENTS_MAX`] does not apply.
    pub fn without_element_bound(message: &'a Bytes) -> Reader<'a> {
        Reader { elements_left: usize::MAX, ..Reader::new(message) }
    }

    /// Position within the message.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    /// The message's bytes from the current position on.
    pub fn rest(&self) -> Bytes {
        self.message.slice(self.at..self.end)
    }

    /// Returns an error if bytes remain after the message.
    pub fn finish(&self) -> Result<(), Malformed> {
        match self.remaining() {
            0 => Ok(()),
            remain => Err(Malformed::Trailing { at: self.at, remain }),
        }
    }

    fn take(&mut self, field: &'static str, needs: usize) -> Result<&'a [u8], Malformed> {
        let remain = self.remaining();
        if needs > remain {
            return Err(Malformed::Short { field, at: self.at, needs, remain });
        }
        self.at += needs;
        Ok(&self.message[self.at - needs..self.at])
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Malformed> {
        self.take(field, N).map(|bytes| bytes.try_into().expect("took N bytes"))
    }

    /// Skips bytes.
    pub fn skip(&mut self, field: &'static str, byte_count: usize) -> Result<(), Malformed> {
        self.take(field, byte_count).map(drop)
    }

    pub fn i8(&mut self, field: &'static str) -> Result<i8, Malformed> {
        self.array(field).map(i8::from_be_bytes)
    }

    pub fn i16(&mut self, field: &'static str) -> Result<i16, Malformed> {
        self.array(field).map(i16::from_be_bytes)
    }

    pub fn i32(&mut self, field: &'static str) -> Result<i32, Malformed> {
        self.array(field).map(i32::from_be_bytes)
    }

    pub fn i64(&mut self, field: &'static str) -> Result<i64, Malformed> {
        self.array(field).map(i64::from_be_bytes)
    }

    pub fn uuid(&mut self, field: &'static str) -> Result<Uuid, Malformed> {
        self.array(field).map(Uuid::from_bytes)
    }

    /// UNSIGNED_VARINT: seven bits per byte, lowest first, at most 32 bits.
    pub fn varint(&mut self, field: &'static str) -> Result<u32, Malformed> {
        let at = self.at;
        let mut value = 0u32;
        for shift in (0..35).step_by(7) {
            let byte = self.array::<1>(field)?[0];
            if shift == 28 && byte > 0x0f {
                return Err(Malformed::Varint { field, at });
            }
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Varint { field, at })
    }

    /// The length before a string, bytes or an array. `None` for null.
    fn length(&mut self, field: &'static str, prefix: Prefix) -> Result<Option<usize>, Malformed> {
        let at = self.at;
        let length = match prefix {
            Prefix::Compact => i64::from(self.varint(field)?) - 1,
            Prefix::I16 => self.i16(field)?.into(),
            Prefix::I32 => self.i32(field)?.into(),
        };
        match length {
            -1 => Ok(None),
            n if n < 0 => Err(Malformed::Negative { field, at, length }),
            n => Ok(Some(n as usize)),
        }
    }

    fn string_length(&mut self, field: &'static str, flexible: bool) -> Result<Option<usize>, Malformed> {
        let at = self.at;
        match self.length(field, Prefix::of_string(flexible))? {
            Some(length) if length > STRING_BYTES_MAX => Err(Malformed::StringLength { field, at, length }),
            length => Ok(length),
        }
    }

    /// Skips a string and checks that it is UTF-8.
    pub fn skip_string(&mut self, field: &'static str, flexible: bool, nullable: bool) -> Result<(), Malformed> {
        let at = self.at;
        match self.string_length(field, flexible)? {
            Some(length) => {
                let text = self.take(field, length)?;
                std::str::from_utf8(text).map(drop).map_err(|_| Malformed::Utf8 { field, at })
            }
            None if nullable => Ok(()),
            None => Err(Malformed::Null { field, at }),
        }
    }

    /// Skips bytes, nullable or not.
    pub fn skip_bytes(&mut self, field: &'static str, flexible: bool, nullable: bool) -> Result<(), Malformed> {
        let at = self.at;
        match self.length(field, Prefix::of_bytes(flexible))? {
            Some(length) => self.skip(field, length),
            None if nullable => Ok(()),
            None => Err(Malformed::Null { field, at }),
        }
    }

    pub fn nullable_string(&mut self, field: &'static str, flexible: bool) -> Result<Option<StrBytes>, Malformed> {
        let at = self.at;
        let Some(length) = self.string_length(field, flexible)? else {
            return Ok(None);
        };
        self.take(field, length)?;
        let text = self.message.slice(self.at - length..self.at);
        StrBytes::from_utf8(text).map(Some).map_err(|_| Malformed::Utf8 { field, at })
    }

    pub fn string(&mut self, field: &'static str, flexible: bool) -> Result<StrBytes, Malformed> {
        let at = self.at;
        self.nullable_string(field, flexible)?.ok_or(Malformed::Null { field, at })
    }

    pub fn nullable_bytes(&mut self, field: &'static str, flexible: bool) -> Result<Option<Bytes>, Malformed> {
        let Some(length) = self.length(field, Prefix::of_bytes(flexible))? else {
            return Ok(None);
        };
        self.take(field, length)?;
        Ok(Some(self.message.slice(self.at - length..self.at)))
    }

    fn spend_elements(&mut self, field: &'static str, at: usize, count: usize) -> Result<(), Malformed> {
        self.elements_left = self.elements_left.checked_sub(count).ok_or(Malformed::Elements { field, at })?;
        Ok(())
    }

    /// The count before an array; `None` for null. Returns an error if the remaining bytes can't hold that many
    /// elements of at least `element_bytes_min` each.
    pub fn nullable_count(
        &mut self,
        field: &'static str,
        flexible: bool,
        element_bytes_min: usize,
    ) -> Result<Option<usize>, Malformed> {
        let at = self.at;
        let Some(count) = self.length(field, Prefix::of_array(flexible))? else {
            return Ok(None);
        };
        if count > self.remaining() / element_bytes_min.max(1) {
            return Err(Malformed::Count { field, at, count: count as u64, remain: self.remaining() });
        }
        self.spend_elements(field, at, count)?;
        Ok(Some(count))
    }

    pub fn count(&mut self, field: &'static str, flexible: bool, element_bytes_min: usize) -> Result<usize, Malformed> {
        let at = self.at;
        self.nullable_count(field, flexible, element_bytes_min)?.ok_or(Malformed::Null { field, at })
    }

    /// Walks the tagged fields at the end of a struct (KIP-482) and hands each to `visit` with its tag. `visit`
    /// returns false for a field that it does not know, and the reader skips it. A field that `visit` reads must use
    /// up exactly its size.
    pub fn tags(
        &mut self,
        field: &'static str,
        flexible: bool,
        mut visit: impl FnMut(u32, &mut Reader<'a>) -> Result<bool, Malformed>,
    ) -> Result<(), Malformed> {
        if !flexible {
            return Ok(());
        }
        let at = self.at;
        let count = self.varint(field)?;
        if count as usize > self.remaining() / 2 {
            return Err(Malformed::Count { field, at, count: count.into(), remain: self.remaining() });
        }
        self.spend_elements(field, at, count as usize)?;
        for _ in 0..count {
            let at = self.at;
            let tag = self.varint(field)?;
            let size = self.varint(field)? as usize;
            let start = self.at;
            self.skip(field, size)?;
            let (message, end, elements_left) = (self.message, start + size, self.elements_left);
            let mut inner = Reader { message, at: start, end, elements_left };
            if visit(tag, &mut inner)? && inner.at != inner.end {
                return Err(Malformed::TagSize { field, at, used: inner.at - start, size });
            }
            self.elements_left = inner.elements_left;
        }
        Ok(())
    }

    /// Skips all tagged fields.
    pub fn skip_tags(&mut self, field: &'static str, flexible: bool) -> Result<(), Malformed> {
        self.tags(field, flexible, |_, _| Ok(false))
    }
}

/// How a length is encoded.
#[derive(Clone, Copy)]
enum Prefix {
    /// The length plus one as UNSIGNED_VARINT; 0 is null.
    Compact,
    /// INT16; -1 is null.
    I16,
    /// INT32; -1 is null.
    I32,
}

impl Prefix {
    fn of_string(flexible: bool) -> Prefix {
        if flexible { Prefix::Compact } else { Prefix::I16 }
    }

    fn of_bytes(flexible: bool) -> Prefix {
        if flexible { Prefix::Compact } else { Prefix::I32 }
    }

    fn of_array(flexible: bool) -> Prefix {
        Prefix::of_bytes(flexible)
    }
}

/// A value that is longer than its length field can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} of length {length} is too long for its length field")]
pub struct TooLong {
    pub what: &'static str,
    pub length: usize,
}

/// Appends Kafka's primitive types. For fixed-width numbers use `BufMut`.
pub trait Write {
    fn put_varint(&mut self, value: u32);
    fn put_string(&mut self, value: &str, flexible: bool) -> Result<(), TooLong>;
    fn put_nullable_string(&mut self, value: Option<&str>, flexible: bool) -> Result<(), TooLong>;
    /// Writes the length of bytes. The caller appends the bytes themselves.
    fn put_bytes_length(&mut self, length: usize, flexible: bool) -> Result<(), TooLong>;
    fn put_null_bytes(&mut self, flexible: bool);
    fn put_count(&mut self, count: usize, flexible: bool) -> Result<(), TooLong>;
    /// Writes an empty list of tagged fields if the version is flexible.
    fn put_no_tags(&mut self, flexible: bool);
}

impl Write for BytesMut {
    fn put_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }

    fn put_string(&mut self, value: &str, flexible: bool) -> Result<(), TooLong> {
        if value.len() > STRING_BYTES_MAX {
            return Err(TooLong { what: "string", length: value.len() });
        }
        if flexible {
            self.put_varint(value.len() as u32 + 1)
        } else {
            self.put_i16(value.len() as i16)
        }
        self.put_slice(value.as_bytes());
        Ok(())
    }

    fn put_nullable_string(&mut self, value: Option<&str>, flexible: bool) -> Result<(), TooLong> {
        match value {
            Some(value) => self.put_string(value, flexible)?,
            None if flexible => self.put_u8(0),
            None => self.put_i16(-1),
        }
        Ok(())
    }

    fn put_bytes_length(&mut self, length: usize, flexible: bool) -> Result<(), TooLong> {
        let n = i32::try_from(length).map_err(|_| TooLong { what: "bytes", length })?;
        if flexible {
            self.put_varint(n as u32 + 1)
        } else {
            self.put_i32(n)
        }
        Ok(())
    }

    fn put_null_bytes(&mut self, flexible: bool) {
        if flexible { self.put_u8(0) } else { self.put_i32(-1) }
    }

    fn put_count(&mut self, count: usize, flexible: bool) -> Result<(), TooLong> {
        self.put_bytes_length(count, flexible).map_err(|_| TooLong { what: "array", length: count })
    }

    fn put_no_tags(&mut self, flexible: bool) {
        if flexible {
            self.put_u8(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading<T>(bytes: &[u8], read: impl FnOnce(&mut Reader<'_>) -> T) -> T {
        read(&mut Reader::new(&Bytes::copy_from_slice(bytes)))
    }

    #[test]
    fn varints_have_seven_bits_a_byte() {
        let cases: [(u32, &[u8]); 7] = [
            (0, &[0]),
            (127, &[0x7f]),
            (128, &[0x80, 1]),
            (300, &[0xac, 2]),
            (0x0fff_ffff, &[0xff, 0xff, 0xff, 0x7f]),
            (0x1000_0000, &[0x80, 0x80, 0x80, 0x80, 1]),
            (u32::MAX, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ];
        for (value, bytes) in cases {
            let mut out = BytesMut::new();
            out.put_varint(value);
            assert_eq!(out, bytes);
            assert_eq!(reading(bytes, |r| (r.varint("v"), r.remaining())), (Ok(value), 0));
            assert!(matches!(reading(&bytes[..bytes.len() - 1], |r| r.varint("v")), Err(Malformed::Short { .. })));
        }
        for long in [&[0xff, 0xff, 0xff, 0xff, 0x10][..], &[0x80, 0x80, 0x80, 0x80, 0x80, 0]] {
            assert_eq!(reading(long, |r| r.varint("v")), Err(Malformed::Varint { field: "v", at: 0 }));
        }
    }

    #[test]
    fn strings_are_checked() {
        let null = Err(Malformed::Null { field: "s", at: 0 });
        assert_eq!(reading(&[0xff, 0xff], |r| r.nullable_string("s", false)), Ok(None));
        assert_eq!(reading(&[0], |r| r.nullable_string("s", true)), Ok(None));
        assert_eq!(reading(&[0xff, 0xff], |r| r.string("s", false)), null);
        assert_eq!(reading(&[0], |r| r.string("s", true)), null);
        assert_eq!(reading(b"\0\x02hi", |r| r.string("s", false)), Ok("hi".into()));
        assert_eq!(reading(b"\x03hi", |r| r.string("s", true)), Ok("hi".into()));
        let negative = Malformed::Negative { field: "s", at: 0, length: -2 };
        assert_eq!(reading(&[0xff, 0xfe], |r| r.string("s", false)), Err(negative));
        assert_eq!(reading(&[3, b'h', 0xff], |r| r.string("s", true)), Err(Malformed::Utf8 { field: "s", at: 0 }));
        let short = Malformed::Short { field: "s", at: 1, needs: 2, remain: 1 };
        assert_eq!(reading(b"\x03h", |r| r.string("s", true)), Err(short.clone()));
        assert_eq!(short.to_string(), "s at byte 1: 2 bytes needed, 1 remain");
        let mut long = BytesMut::new();
        long.put_varint(STRING_BYTES_MAX as u32 + 2);
        long.resize(STRING_BYTES_MAX + 10, b'x');
        let length = STRING_BYTES_MAX + 1;
        assert_eq!(reading(&long, |r| r.string("s", true)), Err(Malformed::StringLength { field: "s", at: 0, length }));
        assert!(BytesMut::new().put_string(&"x".repeat(STRING_BYTES_MAX + 1), true).is_err());
        assert!(BytesMut::new().put_string(&"x".repeat(STRING_BYTES_MAX), false).is_ok());
    }

    #[test]
    fn a_tagged_field_must_fill_its_size() {
        // One field of tag 0 and three bytes, from which the reader takes an INT16.
        let bytes = [1, 0, 3, 0, 7, 9];
        let read = |r: &mut Reader<'_>| r.tags("t", true, |_, field| field.i16("n").map(|_| true));
        assert_eq!(reading(&bytes, read), Err(Malformed::TagSize { field: "t", at: 1, used: 2, size: 3 }));
        // A field can't read beyond its size.
        let read = |r: &mut Reader<'_>| r.tags("t", true, |_, field| field.i64("n").map(|_| true));
        assert!(matches!(reading(&[1, 0, 3, 0, 7, 9, 1, 1, 1, 1, 1], read), Err(Malformed::Short { remain: 3, .. })));
        // A field that `visit` does not read is skipped.
        assert_eq!(reading(&bytes, |r| (r.skip_tags("t", true), r.remaining())), (Ok(()), 0));
        assert_eq!(reading(&bytes, |r| (r.skip_tags("t", false), r.remaining())), (Ok(()), 6));
    }
}
