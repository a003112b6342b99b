//! The records of `__consumer_offsets`, byte for byte as Kafka writes them.
//!
//! Source: `OffsetCommitKey.json`, `OffsetCommitValue.json`, `GroupMetadataKey.json` and `GroupMetadataValue.json` of
//! Kafka's group coordinator. Keys and values each begin with the INT16 version of their layout. A null value is a
//! tombstone. Numbers are big-endian. STRING is an INT16 length and UTF-8; BYTES is an INT32 length and bytes. A
//! length of -1 means null.
//!
//! ```text
//! key 0, 1   group STRING | topic STRING | partition INT32
//!   value 0, 2   offset INT64 | metadata STRING | commit timestamp INT64
//!   value 1      offset INT64 | metadata STRING | commit timestamp INT64 | expire timestamp INT64
//!   value 3      offset INT64 | leader epoch INT32 | metadata STRING | commit timestamp INT64
//!   value 4      as 3, compact | tagged: 0 topic id UUID
//! key 2      group STRING
//!   value 0–3    protocol type STRING | generation INT32 | protocol STRING? | leader STRING?
//!                | (2+) state timestamp INT64 | members ARRAY of:
//!                member STRING | (3+) instance STRING? | client id STRING | client host STRING
//!                | (1+) rebalance timeout INT32 | session timeout INT32 | subscription BYTES | assignment BYTES
//! ```
//!
//! Version 4 of both values is version 3 with compact lengths and tagged fields (KIP-482). All of these versions are
//! read. Written are:
//! - key 1 with value 4, or with value 3 for an offset without a topic id;
//! - key 1 with value 1 for a commit with its own retention, as in Kafka; this value has no room for a topic id;
//! - key 2 with value 3.
//!
//! Kafka stores an offset's topic id in the same tagged field. Kafka's tools since 3.5 (KIP-915) and earlier versions
//! of this broker skip unknown tagged fields.

use bytes::{BufMut, Bytes, BytesMut};
use net::{StrBytes, Uuid};

use super::config::STRING_BYTES_MAX;

const OFFSET_COMMIT_KEY: i16 = 1;
const OFFSET_COMMIT_VALUE: i16 = 3;
/// The version with a topic id.
const OFFSET_COMMIT_VALUE_TAGGED: i16 = 4;
/// The only version with an expire timestamp.
const OFFSET_COMMIT_VALUE_EXPIRING: i16 = 1;
const GROUP_METADATA_KEY: i16 = 2;
const GROUP_METADATA_VALUE: i16 = 3;
/// The first version with compact lengths, and the newest that can be read.
const FLEXIBLE: i16 = 4;
/// The tagged field with the topic id, in an offset's value.
const TOPIC_ID_TAG: u32 = 0;

/// Why a record cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record has no key")]
    NoKey,
    #[error("key version {0} is unknown")]
    KeyVersion(i16),
    #[error("value version {0} is unknown")]
    ValueVersion(i16),
    #[error("{0} is cut off")]
    Cut(&'static str),
    #[error("{0} is not UTF-8")]
    Utf8(&'static str),
    #[error("{0} is null")]
    Null(&'static str),
    #[error("{0} has an impossible length")]
    Length(&'static str),
    #[error("group metadata contradicts itself: {0}")]
    Contradiction(&'static str),
}

/// A committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Id of the offset's topic; nil if the log does not have it.
    pub topic_id: Uuid,
    pub offset: i64,
    /// -1 if the client gave none.
    pub leader_epoch: i32,
    pub metadata: StrBytes,
    /// In ms since the epoch.
    pub commit_timestamp: i64,
    /// In ms since the epoch, if the client asked for its own retention.
    pub expire_timestamp: Option<i64>,
}

/// A group's state in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMetadata {
    /// Empty if the group never had a member.
    pub protocol_type: StrBytes,
    pub generation: i32,
    pub protocol: Option<StrBytes>,
    pub leader: Option<StrBytes>,
    /// When the group entered its state, in ms since the epoch, or -1.
    pub state_timestamp: i64,
    pub members: Vec<MemberMetadata>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberMetadata {
    pub member_id: StrBytes,
    pub instance_id: Option<StrBytes>,
    pub client_id: StrBytes,
    pub client_host: StrBytes,
    pub rebalance_timeout_ms: i32,
    pub session_timeout_ms: i32,
    pub subscription: Bytes,
    pub assignment: Bytes,
}

/// One record; a value of `None` is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRecord {
    Offset { group: StrBytes, topic: StrBytes, partition: i32, value: Option<CommittedOffset> },
    Group { group: StrBytes, value: Option<GroupMetadata> },
}

/// Most bytes of a key besides its names: version, lengths and partition.
const KEY_BYTES_BESIDE: usize = 10;
/// Most bytes of an offset's value besides its metadata.
const VALUE_BYTES_BESIDE: usize = 46;

fn put_string(out: &mut BytesMut, string: &str) {
    assert!(string.len() <= STRING_BYTES_MAX, "the coordinator bounds strings on arrival");
    out.put_i16(string.len() as i16);
    out.put_slice(string.as_bytes());
}

/// An unsigned varint (KIP-482).
fn put_unsigned(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn put_compact_string(out: &mut BytesMut, string: &str) {
    assert!(string.len() <= STRING_BYTES_MAX, "the coordinator bounds strings on arrival");
    put_unsigned(out, string.len() as u32 + 1);
    out.put_slice(string.as_bytes());
}

fn put_nullable(out: &mut BytesMut, string: Option<&StrBytes>) {
    match string {
        Some(string) => put_string(out, string),
        None => out.put_i16(-1),
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_i32(i32::try_from(bytes.len()).expect("a frame bounds the bytes"));
    out.put_slice(bytes);
}

impl GroupRecord {
    pub fn encode(&self) -> (Bytes, Option<Bytes>) {
        match self {
            GroupRecord::Offset { group, topic, partition, value } => {
                let mut key = BytesMut::with_capacity(group.len() + topic.len() + KEY_BYTES_BESIDE);
                key.put_i16(OFFSET_COMMIT_KEY);
                put_string(&mut key, group);
                put_string(&mut key, topic);
                key.put_i32(*partition);
                (key.freeze(), value.as_ref().map(CommittedOffset::encode))
            }
            GroupRecord::Group { group, value } => {
                let mut key = BytesMut::with_capacity(group.len() + KEY_BYTES_BESIDE);
                key.put_i16(GROUP_METADATA_KEY);
                put_string(&mut key, group);
                (key.freeze(), value.as_ref().map(GroupMetadata::encode))
            }
        }
    }

    /// Decodes what [`GroupRecord::encode`] or any version of Kafka wrote. The result borrows nothing from the
    /// record.
    pub fn decode(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<GroupRecord, RecordError> {
        let mut key = Reader::new(key.ok_or(RecordError::NoKey)?);
        match key.i16("key version")? {
            0 | OFFSET_COMMIT_KEY => Ok(GroupRecord::Offset {
                group: key.string("group id")?,
                topic: key.string("topic")?,
                partition: key.i32("partition")?,
                value: value.map(CommittedOffset::decode).transpose()?,
            }),
            GROUP_METADATA_KEY => Ok(GroupRecord::Group {
                group: key.string("group id")?,
                value: value.map(GroupMetadata::decode).transpose()?,
            }),
            version => Err(RecordError::KeyVersion(version)),
        }
    }
}

impl CommittedOffset {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.metadata.len() + VALUE_BYTES_BESIDE);
        let version = match self.expire_timestamp {
            Some(_) => OFFSET_COMMIT_VALUE_EXPIRING,
            None if self.topic_id.is_nil() => OFFSET_COMMIT_VALUE,
            None => OFFSET_COMMIT_VALUE_TAGGED,
        };
        out.put_i16(version);
        out.put_i64(self.offset);
        if version >= OFFSET_COMMIT_VALUE {
            out.put_i32(self.leader_epoch);
        }
        if version >= FLEXIBLE {
            put_compact_string(&mut out, &self.metadata);
        } else {
            put_string(&mut out, &self.metadata);
        }
        out.put_i64(self.commit_timestamp);
        if let Some(expire) = self.expire_timestamp {
            out.put_i64(expire);
        }
        if version >= FLEXIBLE {
            put_unsigned(&mut out, 1);
            put_unsigned(&mut out, TOPIC_ID_TAG);
            put_unsigned(&mut out, size_of::<Uuid>() as u32);
            out.put_slice(self.topic_id.as_bytes());
        }
        out.freeze()
    }

    fn decode(value: &[u8]) -> Result<CommittedOffset, RecordError> {
        let mut value = Reader::new(value);
        let version = value.version()?;
        let mut read = CommittedOffset {
            topic_id: Uuid::nil(),
            offset: value.i64("offset")?,
            leader_epoch: if version >= 3 { value.i32("leader epoch")? } else { -1 },
            metadata: value.string("metadata")?,
            commit_timestamp: value.i64("commit timestamp")?,
            expire_timestamp: match version {
                1 => Some(value.i64("expire timestamp")?).filter(|&at| at != -1),
                _ => None,
            },
        };
        value.tags(|tag, bytes| match <[u8; size_of::<Uuid>()]>::try_from(bytes) {
            Ok(id) if tag == TOPIC_ID_TAG => {
                read.topic_id = Uuid::from_bytes(id);
                Ok(())
            }
            _ if tag == TOPIC_ID_TAG => Err(RecordError::Length("topic id")),
            _ => Ok(()),
        })?;
        Ok(read)
    }
}

impl GroupMetadata {
    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_i16(GROUP_METADATA_VALUE);
        put_string(&mut out, &self.protocol_type);
        out.put_i32(self.generation);
        put_nullable(&mut out, self.protocol.as_ref());
        put_nullable(&mut out, self.leader.as_ref());
        out.put_i64(self.state_timestamp);
        out.put_i32(i32::try_from(self.members.len()).expect("members are bounded"));
        for member in &self.members {
            put_string(&mut out, &member.member_id);
            put_nullable(&mut out, member.instance_id.as_ref());
            put_string(&mut out, &member.client_id);
            put_string(&mut out, &member.client_host);
            out.put_i32(member.rebalance_timeout_ms);
            out.put_i32(member.session_timeout_ms);
            put_bytes(&mut out, &member.subscription);
            put_bytes(&mut out, &member.assignment);
        }
        out.freeze()
    }

    fn decode(value: &[u8]) -> Result<GroupMetadata, RecordError> {
        let mut value = Reader::new(value);
        let version = value.version()?;
        let mut group = GroupMetadata {
            protocol_type: value.string("protocol type")?,
            generation: value.i32("generation")?,
            protocol: value.nullable("protocol")?,
            leader: value.nullable("leader")?,
            state_timestamp: if version >= 2 { value.i64("state timestamp")? } else { -1 },
            members: Vec::new(),
        };
        // Grows with the members actually read, so a false count reserves no memory.
        for _ in 0..value.count("members")? {
            let member_id = value.string("member id")?;
            let instance_id = if version >= 3 { value.nullable("instance id")? } else { None };
            let client_id = value.string("client id")?;
            let client_host = value.string("client host")?;
            let rebalance_timeout_ms = if version >= 1 { value.i32("rebalance timeout")? } else { -1 };
            let session_timeout_ms = value.i32("session timeout")?;
            group.members.push(MemberMetadata {
                member_id,
                instance_id,
                client_id,
                client_host,
                rebalance_timeout_ms: if rebalance_timeout_ms < 0 { session_timeout_ms } else { rebalance_timeout_ms },
                session_timeout_ms,
                subscription: value.bytes("subscription")?,
                assignment: value.bytes("assignment")?,
            });
            value.tags(|_, _| Ok(()))?;
        }
        group.check()?;
        Ok(group)
    }

    fn check(&self) -> Result<(), RecordError> {
        let contradiction = |what| Err(RecordError::Contradiction(what));
        if self.generation < 0 {
            return contradiction("a negative generation");
        }
        if self.members.is_empty() {
            return Ok(());
        }
        if self.protocol_type.is_empty() || self.protocol.is_none() {
            return contradiction("members without a protocol");
        }
        if self.members.iter().any(|member| member.session_timeout_ms <= 0) {
            return contradiction("a session timeout below 1 ms");
        }
        let mut ids: Vec<_> = self.members.iter().map(|member| &member.member_id).collect();
        ids.sort_unstable();
        let mut instances: Vec<_> = self.members.iter().filter_map(|member| member.instance_id.as_ref()).collect();
        instances.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) || instances.windows(2).any(|pair| pair[0] == pair[1]) {
            return contradiction("one member twice");
        }
        if self.leader.as_ref().is_some_and(|leader| ids.binary_search(&leader).is_err()) {
            return contradiction("a leader that is not a member");
        }
        Ok(())
    }
}

/// Reads fields of both kinds of layout. Every error names the field.
struct Reader<'a> {
    rest: &'a [u8],
    flexible: bool,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes, flexible: false }
    }

    /// Reads the version of a value, which decides how the rest is read.
    fn version(&mut self) -> Result<i16, RecordError> {
        let version = self.i16("value version")?;
        if !(0..=FLEXIBLE).contains(&version) {
            return Err(RecordError::ValueVersion(version));
        }
        self.flexible = version >= FLEXIBLE;
        Ok(version)
    }

    fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(RecordError::Cut(what))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RecordError> {
        Ok(self.take(N, what)?.try_into().expect("N bytes"))
    }

    fn i16(&mut self, what: &'static str) -> Result<i16, RecordError> {
        self.array(what).map(i16::from_be_bytes)
    }

    fn i32(&mut self, what: &'static str) -> Result<i32, RecordError> {
        self.array(what).map(i32::from_be_bytes)
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, RecordError> {
        self.array(what).map(i64::from_be_bytes)
    }

    fn unsigned(&mut self, what: &'static str) -> Result<u32, RecordError> {
        let mut value = 0u64;
        for n in 0..5 {
            let byte = self.take(1, what)?[0];
            value |= u64::from(byte & 0x7f) << (7 * n);
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| RecordError::Length(what));
            }
        }
        Err(RecordError::Length(what))
    }

    /// A length or count; -1 for null.
    fn length(&mut self, wide: bool, what: &'static str) -> Result<i64, RecordError> {
        let length = match (self.flexible, wide) {
            (true, _) => i64::from(self.unsigned(what)?) - 1,
            (false, true) => i64::from(self.i32(what)?),
            (false, false) => i64::from(self.i16(what)?),
        };
        if length < -1 { Err(RecordError::Length(what)) } else { Ok(length) }
    }

    fn nullable(&mut self, what: &'static str) -> Result<Option<StrBytes>, RecordError> {
        let length = self.length(false, what)?;
        if length == -1 {
            return Ok(None);
        }
        // Whatever is read must be writable again.
        if length > STRING_BYTES_MAX as i64 {
            return Err(RecordError::Length(what));
        }
        let text = std::str::from_utf8(self.take(length as usize, what)?).map_err(|_| RecordError::Utf8(what))?;
        Ok(Some(StrBytes::from_string(text.to_owned())))
    }

    fn string(&mut self, what: &'static str) -> Result<StrBytes, RecordError> {
        self.nullable(what)?.ok_or(RecordError::Null(what))
    }

    fn bytes(&mut self, what: &'static str) -> Result<Bytes, RecordError> {
        match self.length(true, what)? {
            -1 => Err(RecordError::Null(what)),
            length => Ok(Bytes::copy_from_slice(self.take(length as usize, what)?)),
        }
    }

    fn count(&mut self, what: &'static str) -> Result<i64, RecordError> {
        match self.length(true, what)? {
            -1 => Err(RecordError::Null(what)),
            count => Ok(count),
        }
    }

    /// Passes each tagged field to `read`, which ignores unknown tags.
    fn tags(&mut self, mut read: impl FnMut(u32, &'a [u8]) -> Result<(), RecordError>) -> Result<(), RecordError> {
        if self.flexible {
            for _ in 0..self.unsigned("tagged fields")? {
                let tag = self.unsigned("tag")?;
                let bytes = self.unsigned("tagged field")?;
                read(tag, self.take(bytes as usize, "tagged field")?)?;
            }
        }
        Ok(())
    }
}
