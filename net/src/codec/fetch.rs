//! Fetch in all versions, without copying records: a response alternates between its own fields and shared batches.
//!
//! Source: FetchRequest.json and FetchResponse.json of Kafka 4.x. Versions added: 5 log start (KIP-107), 7 sessions
//! (KIP-227), 9 leader epoch (KIP-320), 11 rack (KIP-392), 12 flexible encoding and diverging epochs (KIP-595), 13
//! topic ids (KIP-516), 15 replica state (KIP-903), 16 leader hints (KIP-951), 17 directory id (KIP-853), 18 high
//! watermark (KIP-1166).

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::codec::api::ApiKey;
use crate::codec::encode::EncodeError;
use crate::codec::parts::PartsBuilder;
pub use crate::codec::produce::{LeaderHint, NodeEndpoint, TopicRef};
use crate::codec::produce::{TOPIC_NAME_TO, write_endpoint_tags};
use crate::codec::wire::{Malformed, Reader, Write};
use crate::errors::{ErrorCode, NONE};

const API: ApiKey = ApiKey::Fetch;
const ENDPOINTS_FROM: i16 = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// The id of the replica that fetches. -1 for a consumer.
    pub replica_id: i32,
    /// -1 if unknown.
    pub replica_epoch: i64,
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    pub max_bytes: i32,
    pub isolation: Isolation,
    /// 0 outside a session.
    pub session_id: i32,
    /// -1: the client wants no session. 0: a full request that asks for a session.
    pub session_epoch: i32,
    pub topics: Vec<FetchTopic>,
    pub forgotten: Vec<ForgottenTopic>,
    /// Empty if unknown.
    pub rack_id: StrBytes,
    pub cluster_id: Option<StrBytes>,
}

/// Whether a consumer sees records of open and aborted transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    ReadUncommitted,
    ReadCommitted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopic {
    pub topic: TopicRef,
    pub partitions: Vec<FetchPartition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartition {
    pub partition: i32,
    /// -1 if unknown.
    pub current_leader_epoch: i32,
    pub fetch_offset: i64,
    /// -1 if unknown.
    pub last_fetched_epoch: i32,
    /// Set by followers. -1 from a consumer.
    pub log_start_offset: i64,
    pub partition_max_bytes: i32,
    pub replica_directory_id: Uuid,
    /// Set by followers. `i64::MAX` if unknown.
    pub high_watermark: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForgottenTopic {
    pub topic: TopicRef,
    pub partitions: Vec<i32>,
}

impl FetchRequest {
    pub fn read(reader: &mut Reader<'_>, version: i16) -> Result<FetchRequest, Malformed> {
        let flexible = API.is_flexible(version);
        let mut replica_id = if version <= 14 { reader.i32("replica id")? } else { -1 };
        let max_wait_ms = reader.i32("max wait")?;
        let min_bytes = reader.i32("min bytes")?;
        let max_bytes = reader.i32("max bytes")?;
        // Every value except 0 counts as READ_COMMITTED, the stricter level. Kafka's IsolationLevel.forId rejects
        // values other than 0 and 1, but clients send only these two.
        let isolation = match reader.i8("isolation level")? {
            0 => Isolation::ReadUncommitted,
            _ => Isolation::ReadCommitted,
        };
        let (session_id, session_epoch) =
            if version >= 7 { (reader.i32("session id")?, reader.i32("session epoch")?) } else { (0, -1) };
        let topics = FetchTopic::read_all(reader, version, flexible)?;
        let forgotten = if version >= 7 { ForgottenTopic::read_all(reader, version, flexible)? } else { Vec::new() };
        let rack_id = if version >= 11 { reader.string("rack", flexible)? } else { StrBytes::new() };
        let mut cluster_id = None;
        let mut replica_epoch = -1;
        reader.tags("request", flexible, |tag, field| {
            match tag {
                0 => cluster_id = field.nullable_string("cluster id", true)?,
                1 if version >= 15 => {
                    replica_id = field.i32("replica id")?;
                    replica_epoch = field.i64("replica epoch")?;
                    field.skip_tags("replica state", true)?;
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(FetchRequest {
            replica_id,
            replica_epoch,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation,
            session_id,
            session_epoch,
            topics,
            forgotten,
            rack_id,
            cluster_id,
        })
    }
}

impl FetchRequest {
    /// A consumer's request without a session.
    pub fn of_consumer(max_wait_ms: i32, min_bytes: i32, max_bytes: i32, topics: Vec<FetchTopic>) -> FetchRequest {
        FetchRequest {
            replica_id: -1,
            replica_epoch: -1,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation: Isolation::ReadUncommitted,
            session_id: 0,
            session_epoch: -1,
            topics,
            forgotten: Vec::new(),
            rack_id: StrBytes::new(),
            cluster_id: None,
        }
    }

    /// For clients. Fields that the version lacks are left out silently.
    pub fn write(&self, out: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
        let flexible = API.is_flexible(version);
        if version <= 14 {
            out.put_i32(self.replica_id);
        }
        out.put_i32(self.max_wait_ms);
        out.put_i32(self.min_bytes);
        out.put_i32(self.max_bytes);
        out.put_i8(self.isolation as i8);
        if version >= 7 {
            out.put_i32(self.session_id);
            out.put_i32(self.session_epoch);
        }
        out.put_count(self.topics.len(), flexible)?;
        for topic in &self.topics {
            topic.topic.write(out, version > TOPIC_NAME_TO, flexible)?;
            out.put_count(topic.partitions.len(), flexible)?;
            topic.partitions.iter().for_each(|partition| partition.write(out, version, flexible));
            out.put_no_tags(flexible);
        }
        if version >= 7 {
            out.put_count(self.forgotten.len(), flexible)?;
            for topic in &self.forgotten {
                topic.topic.write(out, version > TOPIC_NAME_TO, flexible)?;
                out.put_count(topic.partitions.len(), flexible)?;
                topic.partitions.iter().for_each(|partition| out.put_i32(*partition));
                out.put_no_tags(flexible);
            }
        }
        if version >= 11 {
            out.put_string(&self.rack_id, flexible)?;
        }
        if flexible {
            self.write_tags(out, version)?;
        }
        Ok(())
    }

    fn write_tags(&self, out: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
        let is_replica = version >= 15 && (self.replica_id, self.replica_epoch) != (-1, -1);
        out.put_varint(u32::from(self.cluster_id.is_some()) + u32::from(is_replica));
        if let Some(cluster_id) = &self.cluster_id {
            let mut field = BytesMut::new();
            field.put_string(cluster_id, true)?;
            out.put_varint(0);
            out.put_varint(field.len() as u32);
            out.put_slice(&field);
        }
        if is_replica {
            out.put_varint(1);
            out.put_varint(4 + 8 + 1);
            out.put_i32(self.replica_id);
            out.put_i64(self.replica_epoch);
            out.put_no_tags(true);
        }
        Ok(())
    }
}

impl FetchTopic {
    fn read_all(reader: &mut Reader<'_>, version: i16, flexible: bool) -> Result<Vec<FetchTopic>, Malformed> {
        let topic_count = reader.count("topics", flexible, if flexible { 3 } else { 6 })?;
        let mut topics = Vec::with_capacity(topic_count);
        for _ in 0..topic_count {
            let topic = TopicRef::read(reader, version > TOPIC_NAME_TO, flexible)?;
            let partition_count = reader.count("partitions", flexible, 16)?;
            let mut partitions = Vec::with_capacity(partition_count);
            for _ in 0..partition_count {
                partitions.push(FetchPartition::read(reader, version, flexible)?);
            }
            reader.skip_tags("topic", flexible)?;
            topics.push(FetchTopic { topic, partitions });
        }
        Ok(topics)
    }
}

impl FetchPartition {
    /// A consumer's fetch position: records from this offset on.
    pub fn of_consumer(partition: i32, fetch_offset: i64, partition_max_bytes: i32) -> FetchPartition {
        FetchPartition {
            partition,
            current_leader_epoch: -1,
            fetch_offset,
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes,
            replica_directory_id: Uuid::nil(),
            high_watermark: i64::MAX,
        }
    }

    fn write(&self, out: &mut BytesMut, version: i16, flexible: bool) {
        out.put_i32(self.partition);
        if version >= 9 {
            out.put_i32(self.current_leader_epoch);
        }
        out.put_i64(self.fetch_offset);
        if version >= 12 {
            out.put_i32(self.last_fetched_epoch);
        }
        if version >= 5 {
            out.put_i64(self.log_start_offset);
        }
        out.put_i32(self.partition_max_bytes);
        if flexible {
            let with_directory = version >= 17 && !self.replica_directory_id.is_nil();
            let with_high_watermark = version >= 18 && self.high_watermark != i64::MAX;
            out.put_varint(u32::from(with_directory) + u32::from(with_high_watermark));
            if with_directory {
                out.put_varint(0);
                out.put_varint(16);
                out.put_slice(self.replica_directory_id.as_bytes());
            }
            if with_high_watermark {
                out.put_varint(1);
                out.put_varint(8);
                out.put_i64(self.high_watermark);
            }
        }
    }

    fn read(reader: &mut Reader<'_>, version: i16, flexible: bool) -> Result<FetchPartition, Malformed> {
        let mut partition = FetchPartition {
            partition: reader.i32("partition")?,
            current_leader_epoch: if version >= 9 { reader.i32("current leader epoch")? } else { -1 },
            fetch_offset: reader.i64("fetch offset")?,
            last_fetched_epoch: if version >= 12 { reader.i32("last fetched epoch")? } else { -1 },
            log_start_offset: if version >= 5 { reader.i64("log start offset")? } else { -1 },
            partition_max_bytes: reader.i32("partition max bytes")?,
            replica_directory_id: Uuid::nil(),
            high_watermark: i64::MAX,
        };
        reader.tags("partition", flexible, |tag, field| {
            match tag {
                0 if version >= 17 => partition.replica_directory_id = field.uuid("replica directory id")?,
                1 if version >= 18 => partition.high_watermark = field.i64("high watermark")?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(partition)
    }
}

impl ForgottenTopic {
    fn read_all(reader: &mut Reader<'_>, version: i16, flexible: bool) -> Result<Vec<ForgottenTopic>, Malformed> {
        let topic_count = reader.count("forgotten topics", flexible, if flexible { 3 } else { 6 })?;
        let mut topics = Vec::with_capacity(topic_count);
        for _ in 0..topic_count {
            let topic = TopicRef::read(reader, version > TOPIC_NAME_TO, flexible)?;
            let partition_count = reader.count("forgotten partitions", flexible, 4)?;
            let mut partitions = Vec::with_capacity(partition_count);
            for _ in 0..partition_count {
                partitions.push(reader.i32("forgotten partition")?);
            }
            reader.skip_tags("forgotten topic", flexible)?;
            topics.push(ForgottenTopic { topic, partitions });
        }
        Ok(topics)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchResponse {
    pub throttle_time_ms: i32,
    /// The error of the whole request, for example an unknown session. Sent from version 7 on.
    pub error_code: i16,
    /// 0 outside a session.
    pub session_id: i32,
    pub topics: Vec<FetchTopicResponse>,
    /// The addresses of the leaders in the hints. Sent from version 16 on.
    pub node_endpoints: Vec<NodeEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchTopicResponse {
    pub topic: TopicRef,
    pub partitions: Vec<FetchPartitionResponse>,
}

/// The result for one partition. Fields that a version lacks are left out silently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchPartitionResponse {
    pub partition: i32,
    pub error_code: i16,
    /// -1 if `error_code` is set.
    pub high_watermark: i64,
    /// -1 if `error_code` is set.
    pub last_stable_offset: i64,
    /// -1 if unknown.
    pub log_start_offset: i64,
    /// `None` for a consumer that reads uncommitted records.
    pub aborted_transactions: Option<Vec<AbortedTransaction>>,
    /// -1: the broker that answers.
    pub preferred_read_replica: i32,
    /// Whole batches, in order, in any number of shared buffers. They are sent unchanged.
    pub records: Vec<Bytes>,
    pub diverging_epoch: Option<EpochEnd>,
    pub current_leader: Option<LeaderHint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
}

/// The largest epoch that both logs may share, and its end offset in this broker's log (KIP-595).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochEnd {
    pub epoch: i32,
    pub end_offset: i64,
}

impl FetchPartitionResponse {
    /// A successful result: the records found, possibly none, and this high watermark.
    pub fn found(partition: i32, high_watermark: i64, log_start_offset: i64, records: Vec<Bytes>) -> Self {
        FetchPartitionResponse {
            partition,
            error_code: NONE,
            high_watermark,
            last_stable_offset: high_watermark,
            log_start_offset,
            aborted_transactions: None,
            preferred_read_replica: -1,
            records,
            diverging_epoch: None,
            current_leader: None,
        }
    }

    pub fn refused(partition: i32, error: ErrorCode) -> Self {
        FetchPartitionResponse { error_code: error.code(), ..Self::found(partition, -1, -1, Vec::new()) }
    }

    pub fn records_byte_count(&self) -> usize {
        self.records.iter().map(Bytes::len).sum()
    }
}

impl FetchResponse {
    pub fn write(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        let flexible = API.is_flexible(version);
        let out = parts.fields();
        out.put_i32(self.throttle_time_ms);
        if version >= 7 {
            out.put_i16(self.error_code);
            out.put_i32(self.session_id);
        }
        out.put_count(self.topics.len(), flexible)?;
        for topic in self.topics {
            let out = parts.fields();
            topic.topic.write(out, version > TOPIC_NAME_TO, flexible)?;
            out.put_count(topic.partitions.len(), flexible)?;
            for partition in topic.partitions {
                partition.write(parts, version, flexible)?;
            }
            parts.fields().put_no_tags(flexible);
        }
        match version {
            ENDPOINTS_FROM.. => write_endpoint_tags(parts.fields(), &self.node_endpoints)?,
            _ => parts.fields().put_no_tags(flexible),
        }
        Ok(())
    }
}

impl FetchPartitionResponse {
    fn write(self, parts: &mut PartsBuilder, version: i16, flexible: bool) -> Result<(), EncodeError> {
        let records_byte_count = self.records_byte_count();
        let out = parts.fields();
        out.put_i32(self.partition);
        out.put_i16(self.error_code);
        out.put_i64(self.high_watermark);
        out.put_i64(self.last_stable_offset);
        if version >= 5 {
            out.put_i64(self.log_start_offset);
        }
        match &self.aborted_transactions {
            None => out.put_null_bytes(flexible),
            Some(aborted) => {
                out.put_count(aborted.len(), flexible)?;
                for transaction in aborted {
                    out.put_i64(transaction.producer_id);
                    out.put_i64(transaction.first_offset);
                    out.put_no_tags(flexible);
                }
            }
        }
        if version >= 11 {
            out.put_i32(self.preferred_read_replica);
        }
        // Empty rather than null: old versions of the Java consumer do not expect null here.
        out.put_bytes_length(records_byte_count, flexible)?;
        self.records.into_iter().for_each(|records| parts.share(records));
        if flexible {
            let out = parts.fields();
            out.put_varint(u32::from(self.diverging_epoch.is_some()) + u32::from(self.current_leader.is_some()));
            if let Some(epoch) = self.diverging_epoch {
                out.put_varint(0);
                out.put_varint(4 + 8 + 1);
                out.put_i32(epoch.epoch);
                out.put_i64(epoch.end_offset);
                out.put_no_tags(true);
            }
            if let Some(leader) = self.current_leader {
                out.put_varint(1);
                out.put_varint(LeaderHint::BYTES);
                leader.write(out);
            }
        }
        Ok(())
    }
}
