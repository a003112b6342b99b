//! Random valid messages, made from the schemas.

use bytes::{BufMut, Bytes, BytesMut};
use fastrand::Rng;

use crate::codec::api::{ApiKey, TABLE};
use crate::codec::schema::{Field, Type};
use crate::codec::wire::Write;

/// Every API and version that is served.
pub fn versions() -> impl Iterator<Item = (ApiKey, i16)> {
    TABLE.iter().flat_map(|api| (api.lowest..=api.highest).map(|version| (api.key, version)))
}

/// A frame without its length prefix: header and body.
pub fn request(api: ApiKey, version: i16, with_tags: bool, rng: &mut Rng) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(api as i16);
    out.put_i16(version);
    out.put_i32(rng.i32(..));
    let client_id = (!rng.bool()).then(|| text(rng));
    out.put_nullable_string(client_id.as_deref(), false).unwrap();
    let flexible = api.is_flexible(version);
    let mut generator = Generator { version, flexible, with_tags, messages: None, rng, out };
    generator.tags(&[]);
    generator.fields(api.api().request);
    generator.out.freeze()
}

/// The body of a response, with random tagged fields or none at all.
pub fn response(api: ApiKey, version: i16, tags: bool, rng: &mut Rng) -> Bytes {
    let flexible = api.is_flexible(version);
    let out = BytesMut::new();
    let mut generator = Generator { version, flexible, with_tags: tags, messages: None, rng, out };
    generator.fields(api.api().response);
    generator.out.freeze()
}

/// The body of a response without tagged fields, whose error messages are all this one.
pub fn response_with_messages(api: ApiKey, version: i16, message: Option<&'static str>, rng: &mut Rng) -> Bytes {
    let (flexible, out) = (api.is_flexible(version), BytesMut::new());
    let mut generator = Generator { version, flexible, with_tags: false, messages: Some(message), rng, out };
    generator.fields(api.api().response);
    generator.out.freeze()
}

fn text(rng: &mut Rng) -> String {
    let length = rng.usize(..9);
    (0..length).map(|_| if rng.u8(..8) == 0 { 'é' } else { rng.alphanumeric() }).collect()
}

struct Generator<'a> {
    version: i16,
    flexible: bool,
    with_tags: bool,
    /// The error messages, unless they are random.
    messages: Option<Option<&'static str>>,
    rng: &'a mut Rng,
    out: BytesMut,
}

impl Generator<'_> {
    fn fields(&mut self, fields: &[Field]) {
        let version = self.version;
        for field in fields.iter().filter(|field| field.exists_in(version) && field.tag.is_none()) {
            match self.messages {
                Some(message) if field.name == "error message" => {
                    self.out.put_nullable_string(message, self.flexible).unwrap();
                }
                _ => self.value(field.of, field.nullable),
            }
        }
        self.tags(fields);
    }

    fn value(&mut self, of: Type, nullable: bool) {
        let null = nullable && self.rng.u8(..4) == 0;
        match of {
            Type::Bool => self.out.put_u8(self.rng.bool().into()),
            Type::Int8 => self.out.put_i8(self.rng.i8(..)),
            Type::Int16 => self.out.put_i16(self.rng.i16(..)),
            Type::Int32 => self.out.put_i32(self.rng.i32(..)),
            Type::Int64 => self.out.put_i64(self.rng.i64(..)),
            Type::Uuid => self.out.put_u128(self.rng.u128(..)),
            Type::String => {
                let value = (!null).then(|| text(self.rng));
                self.out.put_nullable_string(value.as_deref(), self.flexible).unwrap();
            }
            Type::Bytes | Type::Array(_) if null => self.out.put_null_bytes(self.flexible),
            Type::Bytes => {
                let length = self.rng.usize(..40);
                let bytes: Vec<u8> = (0..length).map(|_| self.rng.u8(..)).collect();
                self.out.put_bytes_length(bytes.len(), self.flexible).unwrap();
                self.out.put_slice(&bytes);
            }
            Type::Array(element) => {
                let count = self.rng.usize(..4);
                self.out.put_count(count, self.flexible).unwrap();
                (0..count).for_each(|_| self.value(*element, false));
            }
            Type::Struct(fields) => self.fields(fields),
            Type::OptionalStruct(fields) => match self.rng.bool() {
                true => {
                    self.out.put_i8(1);
                    self.fields(fields);
                }
                false => self.out.put_i8(-1),
            },
        }
    }

    /// Writes known and unknown tagged fields, or none.
    fn tags(&mut self, fields: &[Field]) {
        if !self.flexible {
            return;
        }
        let mut tagged = Vec::new();
        if self.with_tags {
            let version = self.version;
            for field in fields.iter().filter(|field| field.exists_in(version)) {
                if let Some(tag) = field.tag.filter(|_| self.rng.bool()) {
                    let before = std::mem::take(&mut self.out);
                    self.value(field.of, field.nullable);
                    tagged.push((tag, std::mem::replace(&mut self.out, before)));
                }
            }
            tagged.sort_by_key(|(tag, _)| *tag);
            // Far above the tags that Kafka uses.
            let unknown = (0..self.rng.u32(..3)).map(|n| (1000 + 300 * n, BytesMut::from(&[0xab; 5][n as usize..])));
            tagged.extend(unknown);
        }
        self.out.put_varint(tagged.len() as u32);
        for (tag, bytes) in tagged {
            self.out.put_varint(tag);
            self.out.put_varint(bytes.len() as u32);
            self.out.put_slice(&bytes);
        }
    }
}
