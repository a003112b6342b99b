//! ListOffsets (earliest, latest, by timestamp) and OffsetForLeaderEpoch (KIP-101, KIP-320).

use super::owners::{Found, Placed, Question, answer_all, ask_owners};
use crate::{
    cluster::meta,
    core::{
        Core,
        decoders::Decoder,
        messages::{FindEpochEnds, FindInMetadata, FindOffsets},
    },
    log_limit::Admitted,
    long_work::Work,
    memory::Held,
    partition::Partition,
};
use bytes::Bytes;
use net::{
    codec::produce::TopicRef,
    errors::{self, ErrorCode},
    messages::{
        ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        list_offsets_request::ListOffsetsPartition,
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
    },
    records::{
        record::{ReadError, Searched, TimestampSearch},
        scan::unfolded_bytes_max,
    },
};
use runtime::clock;
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    ops::Range,
    rc::Rc,
    time::Duration,
};
use types::{GroupId, LeaderEpoch, META_CORE, META_GROUP, RaftIndex, Term};
use wal::store::read::Batch;

/// Timestamps with a special meaning, as ListOffsetsRequest defines them.
mod timestamp {
    pub const LATEST: i64 = -1;
    pub const EARLIEST: i64 = -2;
    /// KIP-734.
    pub const MAX_TIMESTAMP: i64 = -3;
    /// KIP-405: there is no tiered storage, so the local log is the log.
    pub const EARLIEST_LOCAL: i64 = -4;
    pub const LATEST_TIERED: i64 = -5;

    /// Whether this version of the request has the position (`ReplicaManager.isListOffsetsTimestampUnsupported`). A
    /// timestamp from 0 on is a time to search for.
    pub fn is_known(timestamp: i64, version: i16) -> bool {
        match timestamp {
            0.. | LATEST | EARLIEST => true,
            MAX_TIMESTAMP => version >= 7,
            EARLIEST_LOCAL => version >= 8,
            LATEST_TIERED => version >= 9,
            _ => false,
        }
    }
}

/// Most unreadable batches that a core remembers.
const UNREADABLE_MAX: usize = 1024;

/// Stored batches that can't be searched, by group, index and term. A batch that failed once is not tried again.
#[derive(Default)]
pub struct Unreadable(RefCell<VecDeque<(GroupId, RaftIndex, Term)>>);

impl Unreadable {
    fn knows(&self, batch: &(GroupId, RaftIndex, Term)) -> bool {
        self.0.borrow().contains(batch)
    }

    /// Remembers a batch. Evicts the oldest if there are too many.
    fn note(&self, batch: (GroupId, RaftIndex, Term)) {
        let mut known = self.0.borrow_mut();
        known.truncate(UNREADABLE_MAX - 1);
        known.push_front(batch);
    }
}

/// What ListOffsets asks of a partition.
pub struct Where {
    timestamp: i64,
    leader_epoch: LeaderEpoch,
}

/// A position in a log.
pub struct Place {
    offset: i64,
    timestamp: i64,
    leader_epoch: LeaderEpoch,
}

const NOWHERE: Place = Place { offset: -1, timestamp: -1, leader_epoch: LeaderEpoch::NONE };

pub async fn list(core: &Rc<Core>, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let mut work = Work::on(core);
    let mut named = Named::default();
    for topic in &request.topics {
        for partition in &topic.partitions {
            work.entry().await;
            named.add(topic.name.as_str(), partition.partition_index);
        }
    }
    let (mut refused, mut questions, mut of_metadata) = (Vec::new(), Vec::new(), Vec::new());
    for topic in &request.topics {
        let name = TopicRef::Name(topic.name.0.clone());
        for partition in &topic.partitions {
            work.entry().await;
            let refusal = named.refusal(topic.name.as_str(), partition, version);
            refused.push(refusal);
            if refusal.is_some() {
                continue;
            }
            if core.find_group(&name, partition.partition_index) == Ok(META_GROUP) {
                of_metadata.push((questions.len(), partition.timestamp));
            }
            let what = Where {
                timestamp: partition.timestamp,
                leader_epoch: LeaderEpoch::new(partition.current_leader_epoch),
            };
            questions.push(Question { topic: name.clone(), partition: partition.partition_index, what });
        }
    }
    drop(named);
    let mut answers = ask_owners(core, questions, |questions| FindOffsets { questions }).await;
    for (place, timestamp) in of_metadata {
        answers[place] = core.ask(META_CORE, FindInMetadata { timestamp }).await;
    }
    work.resume();
    let (mut refused, mut answers) = (refused.into_iter(), answers.into_iter());
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            work.entry().await;
            let answer = match refused.next().expect("one for each partition") {
                Some(code) => Err(code),
                None => answers.next().expect("each question has an answer"),
            };
            partitions.push(row(asked.partition_index, answer));
        }
        topics.push(ListOffsetsTopicResponse::default().with_partitions(partitions).with_name(topic.name));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

fn row(partition: i32, answer: Result<Place, ErrorCode>) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match answer {
        Ok(place) => response
            .with_offset(place.offset)
            .with_timestamp(place.timestamp)
            .with_leader_epoch(place.leader_epoch.get()),
        Err(code) => response.with_error_code(code.code()).with_offset(-1).with_timestamp(-1),
    }
}

/// The partitions that a request names, and whether it names them more than once.
#[derive(Default)]
struct Named<'a>(BTreeMap<(&'a str, i32), bool>);

impl<'a> Named<'a> {
    fn add(&mut self, topic: &'a str, partition: i32) {
        self.0.entry((topic, partition)).and_modify(|twice| *twice = true).or_insert(false);
    }

    /// The error that a partition gets without a look at it, if any. As in Kafka, these are partitions that the
    /// request names more than once, and positions that the version does not have.
    fn refusal(&self, topic: &str, partition: &ListOffsetsPartition, version: i16) -> Option<ErrorCode> {
        match partition.timestamp {
            _ if self.0.get(&(topic, partition.partition_index)) == Some(&true) => Some(ErrorCode::InvalidRequest),
            unknown if !timestamp::is_known(unknown, version) => Some(ErrorCode::UnsupportedVersion),
            _ => None,
        }
    }
}

/// On the owner of the partitions: finds the positions.
pub async fn find_all(core: Rc<Core>, questions: Placed<Where>) -> Found<Place> {
    // All lookups of a request together wait this long for memory. With little memory, the rest are told to ask again.
    let until = clock::now() + PATIENCE;
    let find = async |work: &mut Work<'_, Core>, partition: Rc<Partition>, asked: Where| {
        find(work, partition, asked, until).await
    };
    answer_all(core, questions, find).await
}

async fn find(
    work: &mut Work<'_, Core>,
    partition: Rc<Partition>,
    asked: Where,
    until: Duration,
) -> Result<Place, ErrorCode> {
    let core = work.core();
    partition.check_epoch(core, asked.leader_epoch)?;
    let (start, end) = (partition.log_start(core), partition.high_watermark());
    let at = |offset: u64| Place { offset: offset as i64, timestamp: -1, leader_epoch: partition.epoch_of(offset) };
    match asked.timestamp {
        timestamp::LATEST => Ok(Place { leader_epoch: partition.leader_epoch(), ..at(end) }),
        timestamp::EARLIEST | timestamp::EARLIEST_LOCAL => Ok(at(start)),
        timestamp::LATEST_TIERED => Ok(NOWHERE),
        // KIP-734 asks for the record with the largest timestamp. The broker keeps no index for that.
        timestamp::MAX_TIMESTAMP => Err(ErrorCode::UnsupportedVersion),
        wanted if wanted >= 0 => by_timestamp(work, &partition, wanted, end, until).await,
        _ => Err(ErrorCode::InvalidRequest),
    }
}

/// On core 0: finds a position in the metadata's log, whose records have no timestamps.
pub fn find_in_metadata(core: &Core, timestamp: i64) -> Result<Place, ErrorCode> {
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
async fn by_timestamp(
    work: &mut Work<'_, Core>,
    partition: &Partition,
    wanted: i64,
    end: u64,
    until: Duration,
) -> Result<Place, ErrorCode> {
    let core = work.core();
    let mut from = 0;
    // A batch's header may name a later timestamp than its records have, if the broker stored the batch unchecked. As
    // in Kafka, the search then goes on behind it.
    while let Some((found, held)) = look_up(core, partition, wanted, from..end, until).await? {
        if let Some((offset, timestamp)) = search_stored(work, partition, &found, wanted).await? {
            return Ok(Place { offset, timestamp, leader_epoch: partition.epoch_of(found.base_offset) });
        }
        from = found.end_offset();
        drop((found, held));
        work.entry().await;
    }
    Ok(NOWHERE)
}

/// Searches a stored batch. One that is broken is searched once.
async fn search_stored(
    work: &mut Work<'_, Core>,
    partition: &Partition,
    found: &Batch,
    wanted: i64,
) -> Result<Option<(i64, i64)>, ErrorCode> {
    let core = work.core();
    let batch = (partition.group(), found.index, found.term);
    if core.unreadable.knows(&batch) {
        return Err(ErrorCode::CorruptMessage);
    }
    search(work, &found.bytes, wanted).await.map_err(|error| {
        let (name, offset) = (&partition.name, found.base_offset);
        if let Some(Admitted { left_out }) =
            core.partition_log.admit(clock::now(), partition.group(), &error.to_string())
        {
            tracing::error!(partition = %name, offset, %error, left_out, "cannot read a stored batch");
        }
        core.unreadable.note(batch);
        ErrorCode::CorruptMessage
    })
}

/// A batch up to this size is not counted: the smallest read from the disk is as large.
const LIGHT_BYTES: usize = 64 << 10;
/// How long the lookups of a request wait for memory for their batches.
const PATIENCE: Duration = Duration::from_secs(10);

/// The batch that has the record, and memory for it. Few lookups at a time may read from the disk. One that finds no
/// memory for its batch lets the batch go, and reads it again once there is some.
async fn look_up(
    core: &Core,
    partition: &Partition,
    wanted: i64,
    offsets: Range<u64>,
    until: Duration,
) -> Result<Option<(Batch, Option<Held>)>, ErrorCode> {
    let mut held = None;
    loop {
        let place = core.lookups.join();
        place.first().await;
        let group = partition.group();
        let found = core.store.find_timestamp(group, wanted, offsets.clone()).await.map_err(|error| {
            if let Some(Admitted { left_out }) = core.partition_log.admit(clock::now(), group, &error.to_string()) {
                tracing::error!(partition = %partition.name, wanted, %error, left_out, "cannot look up a timestamp");
            }
            ErrorCode::KafkaStorageError
        })?;
        let Some(found) = found else { return Ok(None) };
        let bytes = found.bytes.len();
        if bytes > LIGHT_BYTES && held.is_none() {
            held = core.memory.cold_answers.try_hold(bytes);
        }
        if bytes <= LIGHT_BYTES || held.is_some() {
            return Ok(Some((found, held)));
        }
        drop((found, place));
        let left = until.saturating_sub(clock::now());
        let waited = core.memory.cold_answers.hold(&core.metrics, bytes, left).await;
        // Clients look up again.
        held = Some(waited.ok_or(ErrorCode::LeaderNotAvailable)?);
    }
}

/// Searches a batch in turns. Decompresses no more than needed to find the record.
async fn search(work: &mut Work<'_, Core>, batch: &Bytes, wanted: i64) -> Result<Option<(i64, i64)>, ReadError> {
    let decoders = &work.core().decoders;
    let mut search = TimestampSearch::new(batch, wanted, unfolded_bytes_max(batch.len()))?;
    let mut decoder = Decoder::new(search.window());
    if !decoder.may_unfold() {
        decoder.keep(decoders, || {}).await;
        work.resume();
    }
    loop {
        if let Searched::Found(found) = search.step(&mut work.share)? {
            return Ok(found);
        }
        decoder.keep(decoders, || search.rewind()).await;
        work.pause().await;
    }
}

/// What OffsetForLeaderEpoch asks of a partition.
pub struct AskedEpoch {
    current: LeaderEpoch,
    wanted: LeaderEpoch,
}

/// The last leader epoch up to the wanted one, and the offset at which it ends. `None`: the log has no such epoch.
pub type EpochEnd = Option<(LeaderEpoch, u64)>;

/// On the owner of the partitions: finds where leader epochs end.
pub async fn find_epoch_ends(core: Rc<Core>, questions: Placed<AskedEpoch>) -> Found<EpochEnd> {
    let find = async |work: &mut Work<'_, Core>, partition: Rc<Partition>, asked: AskedEpoch| {
        partition.check_epoch(work.core(), asked.current)?;
        Ok(partition.end_of_epoch(asked.wanted))
    };
    answer_all(core, questions, find).await
}

pub async fn for_leader_epoch(core: &Rc<Core>, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let (mut work, mut questions) = (Work::on(core), Vec::new());
    for topic in &request.topics {
        let name = TopicRef::Name(topic.topic.0.clone());
        for partition in &topic.partitions {
            work.entry().await;
            let current = LeaderEpoch::new(partition.current_leader_epoch);
            let what = AskedEpoch { current, wanted: LeaderEpoch::new(partition.leader_epoch) };
            questions.push(Question { topic: name.clone(), partition: partition.partition, what });
        }
    }
    let answers = ask_owners(core, questions, |questions| FindEpochEnds { questions }).await;
    let mut answers = answers.into_iter();
    work.resume();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            work.entry().await;
            let response = EpochEndOffset::default().with_partition(asked.partition);
            partitions.push(match answers.next().expect("each question has an answer") {
                Ok(Some((epoch, end))) => {
                    response.with_error_code(errors::NONE).with_leader_epoch(epoch.get()).with_end_offset(end as i64)
                }
                Ok(None) => response.with_leader_epoch(-1).with_end_offset(-1),
                Err(code) => response.with_error_code(code.code()).with_leader_epoch(-1).with_end_offset(-1),
            });
        }
        topics.push(OffsetForLeaderTopicResult::default().with_partitions(partitions).with_topic(topic.topic));
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{
        StrBytes,
        messages::{TopicName, list_offsets_request::ListOffsetsTopic},
    };

    /// Topics with partitions, each with its timestamp.
    fn request(topics: &[(&'static str, &[(i32, i64)])]) -> ListOffsetsRequest {
        let topics = topics.iter().map(|(name, partitions)| {
            let partition = |(index, timestamp): &(i32, i64)| {
                ListOffsetsPartition::default().with_partition_index(*index).with_timestamp(*timestamp)
            };
            ListOffsetsTopic::default()
                .with_name(TopicName(StrBytes::from_static_str(name)))
                .with_partitions(partitions.iter().map(partition).collect())
        });
        ListOffsetsRequest::default().with_topics(topics.collect())
    }

    fn refused(request: &ListOffsetsRequest, version: i16) -> Vec<Option<ErrorCode>> {
        let asked = || {
            let topics = request.topics.iter();
            topics.flat_map(|topic| topic.partitions.iter().map(move |partition| (topic.name.as_str(), partition)))
        };
        let mut named = Named::default();
        asked().for_each(|(topic, partition)| named.add(topic, partition.partition_index));
        asked().map(|(topic, partition)| named.refusal(topic, partition, version)).collect()
    }

    #[test]
    fn a_partition_that_is_asked_for_twice_is_refused_and_no_other() {
        let request = request(&[("a", &[(0, -1), (1, -1), (0, -2)]), ("b", &[(0, -1)]), ("a", &[(2, 5), (1, -1)])]);
        let twice = Some(ErrorCode::InvalidRequest);
        assert_eq!(refused(&request, 10), [twice, twice, twice, None, None, twice]);
    }

    #[test]
    fn unreadable_batches_are_remembered_up_to_a_bound() {
        const BOUND: u64 = UNREADABLE_MAX as u64;
        let (unreadable, batch) = (Unreadable::default(), |index| (GroupId(7), RaftIndex::new(index), Term(1)));
        (0..3 * BOUND).for_each(|index| unreadable.note(batch(index)));
        let known = (0..3 * BOUND).filter(|index| unreadable.knows(&batch(*index)));
        assert!(known.eq(2 * BOUND..3 * BOUND), "the newest stay");
        assert!(unreadable.0.borrow().capacity() <= 2 * UNREADABLE_MAX);
    }

    #[test]
    fn positions_are_known_from_the_version_that_brought_them() {
        for (timestamp, from) in [(-1, 1), (-2, 1), (0, 1), (i64::MAX, 1), (-3, 7), (-4, 8), (-5, 9)] {
            for version in 1..=10 {
                let expected = (version < from).then_some(ErrorCode::UnsupportedVersion);
                assert_eq!(
                    refused(&request(&[("a", &[(0, timestamp)])]), version),
                    [expected],
                    "{timestamp} {version}"
                );
            }
        }
        for unknown in [-6, -7, i64::MIN] {
            assert_eq!(refused(&request(&[("a", &[(0, unknown)])]), 10), [Some(ErrorCode::UnsupportedVersion)]);
        }
    }
}
