//! Finds offsets by timestamp, and where leader epochs end.

use super::{Found, Placed, answer_all};
use crate::{
    cluster::meta,
    core::{Core, decoders::Decoder},
    log_limit::Admitted,
    long_work::Work,
    memory::Held,
    partition::Partition,
};
use bytes::Bytes;
use net::{
    errors::ErrorCode,
    records::{
        record::{ReadError, Searched, TimestampSearch},
        scan::unfolded_bytes_max,
    },
};
use runtime::clock;
use std::{cell::RefCell, collections::VecDeque, ops::Range, rc::Rc, time::Duration};
use types::{GroupId, LeaderEpoch, RaftIndex, Term};
use wal::store::read::Batch;

/// Timestamps with a special meaning, as ListOffsetsRequest defines them.
pub mod timestamp {
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
    pub timestamp: i64,
    pub leader_epoch: LeaderEpoch,
}

/// A position in a log.
pub struct Place {
    pub offset: i64,
    pub timestamp: i64,
    pub leader_epoch: LeaderEpoch,
}

const NOWHERE: Place = Place { offset: -1, timestamp: -1, leader_epoch: LeaderEpoch::NONE };

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
pub fn find_in_metadata(core: &Rc<Core>, timestamp: i64) -> Result<Place, ErrorCode> {
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
    pub current: LeaderEpoch,
    pub wanted: LeaderEpoch,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unreadable_batches_are_remembered_up_to_a_bound() {
        const BOUND: u64 = UNREADABLE_MAX as u64;
        let (unreadable, batch) = (Unreadable::default(), |index| (GroupId(7), RaftIndex::new(index), Term(1)));
        (0..3 * BOUND).for_each(|index| unreadable.note(batch(index)));
        let known = (0..3 * BOUND).filter(|index| unreadable.knows(&batch(*index)));
        assert!(known.eq(2 * BOUND..3 * BOUND), "the newest stay");
        assert!(unreadable.0.borrow().capacity() <= 2 * UNREADABLE_MAX);
    }
}
