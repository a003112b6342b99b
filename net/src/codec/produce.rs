//! Produce in all versions, without copying records: a request's batches are slices of its frame.
//!
//! Source: ProduceRequest.json and ProduceResponse.json of Kafka 4.x; for versions 0–2, those of Kafka 3.9. Versions
//! added: 1 throttle time, 2 append time, 3 transactional id (KIP-98), 5 log start (KIP-107), 8 record errors
//! (KIP-467), 9 flexible encoding, 10 leader hints (KIP-951), 13 topic ids (KIP-516).

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::codec::api::ApiKey;
use crate::codec::encode::EncodeError;
use crate::codec::parts::PartsBuilder;
use crate::codec::wire::{Malformed, Reader, Write};

/// How a request names a topic: by name in older versions, by id in newer ones. The response uses the same form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TopicRef {
    /// A slice of the request's frame: copy it to keep it for long.
    Name(StrBytes),
    Id(Uuid),
}

impl TopicRef {
    pub(crate) fn read(reader: &mut Reader<'_>, by_id: bool, flexible: bool) -> Result<TopicRef, Malformed> {
        if by_id {
            reader.uuid("topic id").map(TopicRef::Id)
        } else {
            reader.string("topic", flexible).map(TopicRef::Name)
        }
    }

    pub(crate) fn write(&self, out: &mut BytesMut, by_id: bool, flexible: bool) -> Result<(), EncodeError> {
        match self {
            TopicRef::Id(id) if by_id => out.put_slice(id.as_bytes()),
            TopicRef::Name(name) if !by_id => out.put_string(name, flexible)?,
            TopicRef::Id(_) => return Err(EncodeError::TopicByWrongKind { wanted: "name" }),
            TopicRef::Name(_) => return Err(EncodeError::TopicByWrongKind { wanted: "id" }),
        }
        Ok(())
    }
}

/// The current leader of a partition. Sent with NOT_LEADER_OR_FOLLOWER and FENCED_LEADER_EPOCH (KIP-951).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderHint {
    pub leader_id: i32,
    pub leader_epoch: i32,
}

impl LeaderHint {
    /// The encoded size: two INT32 and an empty list of tags.
    pub(crate) const BYTES: u32 = 9;

    pub(crate) fn write(&self, out: &mut BytesMut) {
        out.put_i32(self.leader_id);
        out.put_i32(self.leader_epoch);
        out.put_no_tags(true);
    }
}

/// The address of a leader in a [`LeaderHint`] (KIP-951).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEndpoint {
    pub node_id: i32,
    pub host: StrBytes,
    pub port: i32,
    pub rack: Option<StrBytes>,
}

/// Writes a response's list of tagged fields: the endpoints (tag 0 of Produce 10+ and Fetch 16+), or an empty list if
/// there are none.
pub(crate) fn write_endpoint_tags(out: &mut BytesMut, endpoints: &[NodeEndpoint]) -> Result<(), EncodeError> {
    if endpoints.is_empty() {
        out.put_no_tags(true);
        return Ok(());
    }
    let mut field = BytesMut::new();
    field.put_count(endpoints.len(), true)?;
    for endpoint in endpoints {
        field.put_i32(endpoint.node_id);
        field.put_string(&endpoint.host, true)?;
        field.put_i32(endpoint.port);
        field.put_nullable_string(endpoint.rack.as_deref(), true)?;
        field.put_no_tags(true);
    }
    out.put_varint(1);
    out.put_varint(0);
    out.put_varint(field.len() as u32);
    out.put_slice(&field);
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProduceRequest {
    pub transactional_id: Option<StrBytes>,
    /// 0: no response. 1: respond once the leader has the records. -1: once all in-sync replicas have them. The
    /// handler rejects other values.
    pub acks: i16,
    pub timeout_ms: i32,
    pub topics: Vec<ProduceTopic>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceTopic {
    pub topic: TopicRef,
    pub partitions: Vec<ProducePartition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducePartition {
    pub index: i32,
    /// The record batches as sent: a slice of the frame, not yet checked. The handler rejects null.
    pub records: Option<Bytes>,
}

const API: ApiKey = ApiKey::Produce;
/// The last version of Produce and Fetch that names topics. Later versions use topic ids (KIP-516).
pub const TOPIC_NAME_TO: i16 = 12;

impl ProduceRequest {
    /// The lowest version whose batches can be stored (message format 2). For lower versions the broker answers every
    /// partition with UNSUPPORTED_FOR_MESSAGE_FORMAT.
    pub const VERSION_STORABLE_MIN: i16 = 3;

    pub fn read(reader: &mut Reader<'_>, version: i16) -> Result<ProduceRequest, Malformed> {
        let flexible = API.is_flexible(version);
        let transactional_id = if version >= 3 { reader.nullable_string("transactional id", flexible)? } else { None };
        let acks = reader.i16("acks")?;
        let timeout_ms = reader.i32("timeout")?;
        let topic_count = reader.count("topics", flexible, if flexible { 3 } else { 6 })?;
        let mut topics = Vec::with_capacity(topic_count);
        for _ in 0..topic_count {
            let topic = TopicRef::read(reader, version > TOPIC_NAME_TO, flexible)?;
            let partition_count = reader.count("partitions", flexible, if flexible { 6 } else { 8 })?;
            let mut partitions = Vec::with_capacity(partition_count);
            for _ in 0..partition_count {
                let index = reader.i32("partition")?;
                let records = reader.nullable_bytes("records", flexible)?;
                reader.skip_tags("partition", flexible)?;
                partitions.push(ProducePartition { index, records });
            }
            reader.skip_tags("topic", flexible)?;
            topics.push(ProduceTopic { topic, partitions });
        }
        reader.skip_tags("request", flexible)?;
        Ok(ProduceRequest { transactional_id, acks, timeout_ms, topics })
    }

    /// For clients: appends the request and shares its records.
    pub fn write(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        let flexible = API.is_flexible(version);
        let out = parts.fields();
        if version >= 3 {
            out.put_nullable_string(self.transactional_id.as_deref(), flexible)?;
        }
        out.put_i16(self.acks);
        out.put_i32(self.timeout_ms);
        out.put_count(self.topics.len(), flexible)?;
        for topic in &self.topics {
            topic.topic.write(parts.fields(), version > TOPIC_NAME_TO, flexible)?;
            parts.fields().put_count(topic.partitions.len(), flexible)?;
            for partition in &topic.partitions {
                parts.fields().put_i32(partition.index);
                match &partition.records {
                    None => parts.fields().put_null_bytes(flexible),
                    Some(records) => {
                        parts.fields().put_bytes_length(records.len(), flexible)?;
                        parts.share(records.clone());
                    }
                }
                parts.fields().put_no_tags(flexible);
            }
            parts.fields().put_no_tags(flexible);
        }
        parts.fields().put_no_tags(flexible);
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProduceResponse {
    pub topics: Vec<ProduceTopicResponse>,
    pub throttle_time_ms: i32,
    /// The addresses of the leaders in the hints. Sent from version 10 on.
    pub node_endpoints: Vec<NodeEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProduceTopicResponse {
    pub topic: TopicRef,
    pub partitions: Vec<ProducePartitionResponse>,
}

/// The result for one partition's records. Fields that a version lacks are left out silently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducePartitionResponse {
    pub index: i32,
    pub error_code: i16,
    /// -1 if `error_code` is set.
    pub base_offset: i64,
    /// The broker's time if the topic uses LogAppendTime, else -1.
    pub log_append_time_ms: i64,
    /// -1 if unknown.
    pub log_start_offset: i64,
    pub record_errors: Vec<RecordError>,
    pub error_message: Option<StrBytes>,
    pub current_leader: Option<LeaderHint>,
}

/// A record that was rejected, and why (KIP-467).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// The record's position in the batch.
    pub batch_index: i32,
    pub message: Option<StrBytes>,
}

impl ProducePartitionResponse {
    /// A successful result: the records are stored at this offset.
    pub fn stored(index: i32, base_offset: i64, log_append_time_ms: i64, log_start_offset: i64) -> Self {
        ProducePartitionResponse {
            index,
            error_code: crate::errors::NONE,
            base_offset,
            log_append_time_ms,
            log_start_offset,
            record_errors: Vec::new(),
            error_message: None,
            current_leader: None,
        }
    }

    /// The records were rejected. Nothing was stored.
    pub fn refused(index: i32, error: crate::errors::ErrorCode, message: Option<StrBytes>) -> Self {
        let error_code = error.code();
        ProducePartitionResponse { error_code, error_message: message, ..Self::stored(index, -1, -1, -1) }
    }
}

impl ProduceResponse {
    pub fn write(&self, out: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
        let flexible = API.is_flexible(version);
        out.put_count(self.topics.len(), flexible)?;
        for topic in &self.topics {
            topic.topic.write(out, version > TOPIC_NAME_TO, flexible)?;
            out.put_count(topic.partitions.len(), flexible)?;
            for partition in &topic.partitions {
                partition.write(out, version, flexible)?;
            }
            out.put_no_tags(flexible);
        }
        if version >= 1 {
            out.put_i32(self.throttle_time_ms);
        }
        match version {
            10.. => write_endpoint_tags(out, &self.node_endpoints)?,
            _ => out.put_no_tags(flexible),
        }
        Ok(())
    }
}

impl ProducePartitionResponse {
    fn write(&self, out: &mut BytesMut, version: i16, flexible: bool) -> Result<(), EncodeError> {
        out.put_i32(self.index);
        out.put_i16(self.error_code);
        out.put_i64(self.base_offset);
        if version >= 2 {
            out.put_i64(self.log_append_time_ms);
        }
        if version >= 5 {
            out.put_i64(self.log_start_offset);
        }
        if version >= 8 {
            out.put_count(self.record_errors.len(), flexible)?;
            for error in &self.record_errors {
                out.put_i32(error.batch_index);
                out.put_nullable_string(error.message.as_deref(), flexible)?;
                out.put_no_tags(flexible);
            }
            out.put_nullable_string(self.error_message.as_deref(), flexible)?;
        }
        match self.current_leader {
            Some(leader) if version >= 10 => {
                out.put_varint(1);
                out.put_varint(0);
                out.put_varint(LeaderHint::BYTES);
                leader.write(out);
            }
            _ => out.put_no_tags(flexible),
        }
        Ok(())
    }
}
