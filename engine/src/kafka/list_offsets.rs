//! ListOffsets (earliest, latest, by timestamp) and OffsetForLeaderEpoch (KIP-101, KIP-320).

use super::owners::{Question, ask};
use crate::{
    core::Core,
    meta::{self, META_CORE, META_GROUP},
    partition::Partition,
};
use net::{
    errors::{self, ErrorCode},
    messages::{
        ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
    },
    produce::TopicRef,
    record,
};
use std::rc::Rc;

/// The timestamps that stand for positions, as ListOffsetsRequest defines them.
mod timestamp {
    pub const LATEST: i64 = -1;
    pub const EARLIEST: i64 = -2;
    /// KIP-734.
    pub const MAX_TIMESTAMP: i64 = -3;
    /// KIP-405: there is no tiered storage, so the local log is the log.
    pub const EARLIEST_LOCAL: i64 = -4;
    pub const LATEST_TIERED: i64 = -5;
}

/// A batch that would decompress to more than this is not searched.
const DECOMPRESSED_BYTES_MAX: usize = 256 << 20;

struct Where {
    timestamp: i64,
    leader_epoch: i32,
}

struct Place {
    offset: i64,
    timestamp: i64,
    leader_epoch: i32,
}

const NOWHERE: Place = Place { offset: -1, timestamp: -1, leader_epoch: -1 };

pub async fn list(core: &Rc<Core>, request: ListOffsetsRequest) -> ListOffsetsResponse {
    let questions = request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| Question {
            topic: TopicRef::Name(topic.name.0.clone()),
            partition: partition.partition_index,
            what: Where { timestamp: partition.timestamp, leader_epoch: partition.current_leader_epoch },
        })
    });
    let questions: Vec<_> = questions.collect();
    let of_metadata: Vec<_> = (questions.iter().enumerate())
        .filter(|(_, asked)| core.find_group(&asked.topic, asked.partition) == Ok(META_GROUP))
        .map(|(place, asked)| (place, asked.what.timestamp))
        .collect();
    let mut answers = ask(core, questions, find).await;
    for (place, timestamp) in of_metadata {
        let find = move |there: Rc<Core>| std::future::ready(find_in_metadata(&there, timestamp));
        answers[place] = core.call(META_CORE, find).result().await;
    }
    let mut answers = answers.into_iter();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(&mut answers).map(|(asked, answer)| {
            let response = ListOffsetsPartitionResponse::default().with_partition_index(asked.partition_index);
            match answer {
                Ok(place) => response
                    .with_offset(place.offset)
                    .with_timestamp(place.timestamp)
                    .with_leader_epoch(place.leader_epoch),
                Err(code) => response.with_error_code(code.code()).with_offset(-1).with_timestamp(-1),
            }
        });
        ListOffsetsTopicResponse::default().with_partitions(partitions.collect()).with_name(topic.name)
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

async fn find(core: Rc<Core>, partition: Rc<Partition>, asked: Where) -> Result<Place, ErrorCode> {
    partition.check_epoch(&core, asked.leader_epoch)?;
    let (start, end) = (partition.log_start(&core), partition.high_watermark());
    let at = |offset: u64| Place { offset: offset as i64, timestamp: -1, leader_epoch: partition.epoch_of(offset) };
    match asked.timestamp {
        timestamp::LATEST => Ok(Place { leader_epoch: partition.leader_epoch(), ..at(end) }),
        timestamp::EARLIEST | timestamp::EARLIEST_LOCAL => Ok(at(start)),
        timestamp::LATEST_TIERED => Ok(NOWHERE),
        // KIP-734 asks for the record with the largest timestamp, of which no index is kept.
        timestamp::MAX_TIMESTAMP => Err(ErrorCode::UnsupportedVersion),
        wanted if wanted >= 0 => by_timestamp(&core, &partition, wanted, end).await,
        _ => Err(ErrorCode::InvalidRequest),
    }
}

/// The same in the metadata's log, whose records have no timestamps.
fn find_in_metadata(core: &Core, timestamp: i64) -> Result<Place, ErrorCode> {
    let (start, end) = meta::log_range(core)?;
    let at = |offset: u64| Place { offset: offset as i64, ..NOWHERE };
    match timestamp {
        timestamp::LATEST => Ok(at(end)),
        timestamp::EARLIEST | timestamp::EARLIEST_LOCAL => Ok(at(start)),
        timestamp::MAX_TIMESTAMP => Err(ErrorCode::UnsupportedVersion),
        wanted if wanted >= 0 || wanted == timestamp::LATEST_TIERED => Ok(NOWHERE),
        _ => Err(ErrorCode::InvalidRequest),
    }
}

/// The first record whose timestamp is at least `wanted`.
async fn by_timestamp(core: &Rc<Core>, partition: &Partition, wanted: i64, end: u64) -> Result<Place, ErrorCode> {
    let found = core.store.find_timestamp(partition.group(), wanted, end).await.map_err(|error| {
        tracing::error!(partition = %partition.name, wanted, %error, "cannot look up a timestamp");
        ErrorCode::KafkaStorageError
    })?;
    let Some(found) = found else { return Ok(NOWHERE) };
    let record = record::find_timestamp(&found.bytes, wanted, DECOMPRESSED_BYTES_MAX).map_err(|error| {
        tracing::error!(partition = %partition.name, offset = found.base_offset, %error, "cannot read a stored batch");
        ErrorCode::CorruptMessage
    })?;
    Ok(record.map_or(NOWHERE, |(offset, timestamp)| Place {
        offset,
        timestamp,
        leader_epoch: partition.epoch_of(found.base_offset),
    }))
}

struct AskedEpoch {
    current: i32,
    wanted: i32,
}

pub async fn for_leader_epoch(core: &Rc<Core>, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let questions = request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| Question {
            topic: TopicRef::Name(topic.topic.0.clone()),
            partition: partition.partition,
            what: AskedEpoch { current: partition.current_leader_epoch, wanted: partition.leader_epoch },
        })
    });
    let answer = |core: Rc<Core>, partition: Rc<Partition>, asked: AskedEpoch| async move {
        partition.check_epoch(&core, asked.current)?;
        Ok(partition.end_of_epoch(asked.wanted))
    };
    let mut answers = ask(core, questions.collect(), answer).await.into_iter();
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().zip(&mut answers).map(|(asked, answer)| {
            let response = EpochEndOffset::default().with_partition(asked.partition);
            match answer {
                Ok(Some((epoch, end))) => {
                    response.with_error_code(errors::NONE).with_leader_epoch(epoch).with_end_offset(end as i64)
                }
                Ok(None) => response.with_leader_epoch(-1).with_end_offset(-1),
                Err(code) => response.with_error_code(code.code()).with_leader_epoch(-1).with_end_offset(-1),
            }
        });
        OffsetForLeaderTopicResult::default().with_partitions(partitions.collect()).with_topic(topic.topic)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}
