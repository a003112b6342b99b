//! Fetches one connection's partitions, one request at a time: the next offsets follow from the last answer.

use std::collections::HashMap;

use bytes::Bytes;
use net::StrBytes;
use net::client::blocking::Client;
use net::codec::fetch::{FetchPartition, FetchRequest, FetchTopic};
use net::codec::produce::TopicRef;
use net::errors;
use net::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use net::messages::{self, BrokerId, ListOffsetsRequest, TopicName};
use net::records::batch::{BatchHeader, Batches};

use crate::error::AnyError;
use crate::load::connection::{Answers, Requests};
use crate::load::error::LoadError;
use crate::load::setup::{self, Lane};

/// How long the broker may wait for the first byte of data.
const MAX_WAIT_MS: i32 = 500;
/// Maximum bytes of one answer, over all its partitions.
const ANSWER_BYTES: i32 = 64 << 20;

/// One offset per partition.
pub type Offsets = HashMap<i32, i64>;

/// Which offset to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Start,
    End,
}

/// Asks the leaders for one offset of each partition. Blocking.
pub fn offsets(topic: &str, lanes: &[Lane], at: At) -> Result<Offsets, AnyError> {
    let timestamp = match at {
        At::Start => -2,
        At::End => -1,
    };
    let mut offsets = HashMap::new();
    for lane in lanes {
        let mut client: Client = setup::connect(&lane.addr.to_string())?;
        let ask = |p: &i32| ListOffsetsPartition::default().with_partition_index(*p).with_timestamp(timestamp);
        let topic = ListOffsetsTopic::default()
            .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
            .with_partitions(lane.partitions.iter().map(ask).collect());
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        for partition in client.call(request)?.topics.iter().flat_map(|topic| &topic.partitions) {
            errors::check(partition.error_code)
                .map_err(|e| format!("offsets of partition {}: {e}", partition.partition_index))?;
            offsets.insert(partition.partition_index, partition.offset);
        }
    }
    Ok(offsets)
}

/// The position in one partition.
#[derive(Debug)]
struct Place {
    partition: i32,
    next_offset: i64,
    end_offset: Option<i64>,
}

impl Place {
    fn is_done(&self) -> bool {
        self.end_offset.is_some_and(|end| self.next_offset >= end)
    }
}

/// The new records of one answer, and its bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    pub records: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Fetcher {
    topic: StrBytes,
    version: i16,
    fetch_bytes: i32,
    places: Vec<Place>,
}

impl Fetcher {
    /// Starts each partition at its offset in `starts`, and stops it at its offset in `ends` if that is given.
    pub fn new(
        topic: StrBytes,
        version: i16,
        fetch_bytes: usize,
        partitions: &[i32],
        starts: &Offsets,
        ends: Option<&Offsets>,
    ) -> Fetcher {
        let place = |partition: &i32| Place {
            partition: *partition,
            next_offset: starts.get(partition).copied().unwrap_or(0),
            end_offset: ends.and_then(|ends| ends.get(partition).copied()),
        };
        let places = partitions.iter().map(place).collect();
        Fetcher { topic, version, fetch_bytes: fetch_bytes as i32, places }
    }

    /// Whether every partition has been read to its end.
    pub fn is_done(&mut self) -> bool {
        self.places.retain(|place| !place.is_done());
        self.places.is_empty()
    }

    /// Sends one request and waits for its answer. Calls `batch` with each whole batch and the offset of its first
    /// new record.
    pub async fn fetch(
        &mut self,
        requests: &mut Requests,
        answers: &mut Answers,
        mut batch: impl FnMut(&BatchHeader, Bytes, i64) -> Result<(), LoadError>,
    ) -> Result<Fetched, LoadError> {
        requests.push(self.version, &self.request().into())?;
        requests.flush().await?;
        let response = answers.receive().await?.decode::<messages::FetchRequest>()?;
        errors::check(response.error_code)?;
        let mut fetched = Fetched::default();
        for partition in response.responses.into_iter().flat_map(|topic| topic.partitions) {
            let index = partition.partition_index;
            errors::check(partition.error_code).map_err(|error| LoadError::Partition { index, error })?;
            let Some(place) = self.places.iter_mut().find(|place| place.partition == index) else { continue };
            let Some(batches) = partition.records else { continue };
            fetched.bytes += batches.len() as u64;
            for one in Batches::new(batches) {
                // An answer may end in the middle of a batch; the next fetch starts at that batch.
                let Ok((header, bytes)) = one else { break };
                fetched.records += (header.next_offset() - header.base_offset.max(place.next_offset)).max(0) as u64;
                batch(&header, bytes, place.next_offset)?;
                place.next_offset = place.next_offset.max(header.next_offset());
            }
        }
        Ok(fetched)
    }

    fn request(&self) -> FetchRequest {
        let ask = |place: &Place| FetchPartition::of_consumer(place.partition, place.next_offset, self.fetch_bytes);
        let topic =
            FetchTopic { topic: TopicRef::Name(self.topic.clone()), partitions: self.places.iter().map(ask).collect() };
        FetchRequest::of_consumer(MAX_WAIT_MS, 1, ANSWER_BYTES, vec![topic])
    }
}
