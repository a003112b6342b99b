//! Idempotent producers of one partition: what each wrote last, and what follows for its next batch.
//! Lives on: the owning core only. Pure: no clock, no I/O. `blob` defines the checkpoint's format.
//!
//! The rules are those of Kafka 4's `ProducerAppendInfo` and `ProducerStateEntry` for producers without a
//! transaction (KIP-98, KIP-360). The state has two parts: `committed`, as of the highest committed entry, and the
//! speculative tail of batches that are proposed but not committed. Checks look at both. A checkpoint holds the
//! first. A truncation removes batches from the second.
//!
//! Invariants: log indexes rise along the tail and all lie above the committed index; `speculative` holds exactly
//! the producers that the tail names, each as its committed state plus its tail; the committed part depends on the
//! log alone, and on evictions by `expire` and `forget`.

pub(crate) mod blob;
pub(crate) mod gaps;
pub(crate) mod share;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fmt,
};

use ahash::RandomState;
use bytes::Bytes;
use net::records::batch::BatchHeader;

use crate::partition::{
    errors::PartitionError,
    producers::{
        gaps::{Gap, is_ahead},
        share::{Cut, Written},
    },
};

pub use crate::partition::producers::blob::RestoreError;
use types::RaftIndex;

/// Batches remembered per producer. It is also the most that a client may have in flight (`ProducerStateEntry`).
pub const CACHED_BATCHES: usize = 5;

/// Most producers remembered per partition. When there are more, the least recent sixteenth is evicted. An evicted
/// producer can go on writing, as in Kafka after expiry, but its next retry is not recognised as a duplicate.
pub const PRODUCERS_MAX: usize = 65_536;

/// Most memory of one producer, in bytes. It includes its entry in a hash table that has just grown, with seven of
/// sixteen slots in use. It also includes its part of the last checkpoint's state, which the store holds.
pub const PRODUCER_BYTES: u64 = ((size_of::<(i64, Producer)>() + 1) * 16 / 7 + blob::bytes_of(CACHED_BATCHES)) as u64;

/// One batch that a producer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenBatch {
    pub first_sequence: i32,
    pub last_sequence: i32,
    pub base_offset: u64,
    pub last_offset: u64,
    /// The batch's max timestamp, in ms since the epoch.
    pub timestamp: i64,
    /// The log index of its entry. The answers to it and to its duplicates wait for this entry to be committed.
    pub index: RaftIndex,
}

/// The decision on a producer's batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Append it.
    New,
    /// It was appended before: answer like the original, under the same condition.
    Duplicate(WrittenBatch),
    /// A batch before it is missing, or it is older than the last [`CACHED_BATCHES`].
    OutOfOrder { expected: i32, got: i32 },
    /// A newer instance of this producer has written.
    Fenced { current_epoch: i16 },
}

impl Verdict {
    /// The gap before this batch, if a batch is missing. A batch that is too old has no gap.
    pub fn gap(self, epoch: i16) -> Option<Gap> {
        match self {
            Verdict::OutOfOrder { expected, got } if is_ahead(got, expected) => Some(Gap { epoch, expected }),
            _ => None,
        }
    }

    /// The error for the producer, if the batch is rejected.
    pub fn refusal(self) -> Option<PartitionError> {
        match self {
            Verdict::New | Verdict::Duplicate(_) => None,
            Verdict::OutOfOrder { .. } => Some(PartitionError::OutOfSequence),
            Verdict::Fenced { .. } => Some(PartitionError::ProducerFenced),
        }
    }
}

/// The last batches of one producer, oldest first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Producer {
    pub(crate) epoch: i16,
    len: u8,
    batches: [WrittenBatch; CACHED_BATCHES],
}

const NO_BATCH: WrittenBatch = WrittenBatch {
    first_sequence: 0,
    last_sequence: 0,
    base_offset: 0,
    last_offset: 0,
    timestamp: 0,
    index: RaftIndex::ZERO,
};

impl fmt::Debug for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer").field("epoch", &self.epoch).field("batches", &self.batches()).finish()
    }
}

impl Producer {
    pub(crate) fn new(epoch: i16) -> Producer {
        Producer { epoch, len: 0, batches: [NO_BATCH; CACHED_BATCHES] }
    }

    pub(crate) fn batches(&self) -> &[WrittenBatch] {
        &self.batches[..usize::from(self.len)]
    }

    fn last(&self) -> &WrittenBatch {
        self.batches().last().expect("a producer is kept from its first batch on")
    }

    fn written(&self) -> Written {
        (self.last().timestamp, self.last().index)
    }

    pub(crate) fn push(&mut self, batch: WrittenBatch) {
        if usize::from(self.len) == CACHED_BATCHES {
            self.batches.rotate_left(1);
        } else {
            self.len += 1;
        }
        self.batches[usize::from(self.len) - 1] = batch;
    }

    /// A new epoch drops the batches of the old one. Never rejects: a batch was checked before it got into the log.
    fn append(&mut self, epoch: i16, batch: WrittenBatch) {
        if epoch != self.epoch {
            *self = Producer::new(epoch);
        }
        self.push(batch);
    }

    fn check(&self, epoch: i16, first_sequence: i32, last_sequence: i32) -> Verdict {
        if epoch < self.epoch {
            return Verdict::Fenced { current_epoch: self.epoch };
        }
        if epoch > self.epoch {
            return match first_sequence {
                0 => Verdict::New,
                got => Verdict::OutOfOrder { expected: 0, got },
            };
        }
        let same =
            |batch: &&WrittenBatch| (batch.first_sequence, batch.last_sequence) == (first_sequence, last_sequence);
        if let Some(original) = self.batches().iter().find(same) {
            return Verdict::Duplicate(*original);
        }
        match sequence_after(self.last().last_sequence, 1) {
            expected if expected == first_sequence => Verdict::New,
            expected => Verdict::OutOfOrder { expected, got: first_sequence },
        }
    }
}

/// Sequences wrap from `i32::MAX` to 0 (`DefaultRecordBatch.incrementSequence`).
fn sequence_after(sequence: i32, steps: i32) -> i32 {
    sequence.wrapping_add(steps) & i32::MAX
}

#[derive(Clone, Copy, Debug)]
struct TailBatch {
    producer_id: i64,
    epoch: i16,
    batch: WrittenBatch,
}

#[derive(Clone, Debug)]
struct Speculative {
    producer: Producer,
    /// Batches of this producer in the tail.
    uncommitted: usize,
}

/// The idempotent producers of one partition.
#[derive(Clone, Debug)]
pub struct Producers {
    committed: HashMap<i64, Producer, RandomState>,
    committed_index: RaftIndex,
    tail: VecDeque<TailBatch>,
    speculative: HashMap<i64, Speculative, RandomState>,
    producers_max: usize,
}

impl Default for Producers {
    fn default() -> Producers {
        Producers::with_max(PRODUCERS_MAX)
    }
}

impl Producers {
    /// Remembers up to `producers_max` producers; see [`PRODUCERS_MAX`].
    pub fn with_max(producers_max: usize) -> Producers {
        assert!(producers_max > 0, "there is room for a producer");
        Producers {
            committed: HashMap::default(),
            committed_index: RaftIndex::ZERO,
            tail: VecDeque::new(),
            speculative: HashMap::default(),
            producers_max,
        }
    }

    /// Producers remembered.
    pub fn len(&self) -> usize {
        let only_speculative = self.speculative.keys().filter(|id| !self.committed.contains_key(id)).count();
        self.committed.len() + only_speculative
    }

    pub fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.speculative.is_empty()
    }

    /// Decides on a batch of `count` records. An unknown producer may begin at any sequence: its state may have
    /// expired (KIP-360).
    pub fn check(&self, producer_id: i64, epoch: i16, base_sequence: i32, count: i32) -> Verdict {
        assert!(producer_id >= 0 && base_sequence >= 0 && count > 0, "the batch was validated");
        match self.speculative.get(&producer_id).map(|s| &s.producer).or_else(|| self.committed.get(&producer_id)) {
            None => Verdict::New,
            Some(producer) => producer.check(epoch, base_sequence, sequence_after(base_sequence, count - 1)),
        }
    }

    /// Whether anything that this producer wrote is remembered.
    pub fn knows(&self, producer_id: i64) -> bool {
        self.speculative.contains_key(&producer_id) || self.committed.contains_key(&producer_id)
    }

    /// Records a producer's batch that was proposed at `index`, or read back from the log. Indexes rise. Indexes
    /// that a restored state already covers change nothing, so a log may be replayed from before it. Batches
    /// without a producer are ignored.
    pub fn append(&mut self, index: RaftIndex, header: &BatchHeader, base_offset: u64, timestamp: i64) {
        if !header.is_idempotent() || index <= self.committed_index {
            return;
        }
        assert!(self.tail.back().is_none_or(|last| last.batch.index < index), "log indexes rise");
        let batch = WrittenBatch {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            base_offset,
            last_offset: base_offset + u64::try_from(header.last_offset_delta).expect("the batch was validated"),
            timestamp,
            index,
        };
        let tail = TailBatch { producer_id: header.producer_id, epoch: header.producer_epoch, batch };
        self.tail.push_back(tail);
        self.speculate(tail);
    }

    fn speculate(&mut self, TailBatch { producer_id, epoch, batch }: TailBatch) {
        let committed = &self.committed;
        let speculative = self.speculative.entry(producer_id).or_insert_with(|| Speculative {
            producer: committed.get(&producer_id).copied().unwrap_or_else(|| Producer::new(epoch)),
            uncommitted: 0,
        });
        speculative.producer.append(epoch, batch);
        speculative.uncommitted += 1;
    }

    /// Everything up to `index` is committed.
    pub fn commit_to(&mut self, index: RaftIndex) {
        while self.tail.front().is_some_and(|tail| tail.batch.index <= index) {
            let TailBatch { producer_id, epoch, batch } = self.tail.pop_front().expect("there is a front");
            self.committed.entry(producer_id).or_insert_with(|| Producer::new(epoch)).append(epoch, batch);
            let speculative = self.speculative.get_mut(&producer_id).expect("the tail's producers are in it");
            speculative.uncommitted -= 1;
            if speculative.uncommitted == 0 {
                self.speculative.remove(&producer_id);
            }
            self.evict();
        }
        self.committed_index = self.committed_index.max(index);
    }

    /// Runs after each entry, so that the log alone determines which producers are evicted.
    fn evict(&mut self) {
        if self.committed.len() <= self.producers_max {
            return;
        }
        let mut indexes: Vec<RaftIndex> = self.committed.values().map(|producer| producer.last().index).collect();
        let excess = self.committed.len() - self.producers_max;
        let (_, &mut newest_evicted, _) = indexes.select_nth_unstable(excess + self.producers_max / 16 - 1);
        self.committed.retain(|_, producer| producer.last().index > newest_evicted);
    }

    /// The log lost its entries from `index` on. None of them was committed.
    pub fn truncate_from(&mut self, index: RaftIndex) {
        assert!(index > self.committed_index, "what is committed is never truncated");
        self.tail.truncate(self.tail.partition_point(|tail| tail.batch.index < index));
        self.speculative.clear();
        for at in 0..self.tail.len() {
            self.speculate(self.tail[at]);
        }
    }

    /// The number of producers with a committed batch. It excludes producers whose first batch is still
    /// uncommitted.
    pub fn remembered(&self) -> usize {
        self.committed.len()
    }

    /// The last writes of the producers that may be evicted: those without uncommitted batches.
    pub fn written(&self) -> impl Iterator<Item = Written> {
        let forgettable = self.committed.iter().filter(|(id, _)| !self.speculative.contains_key(id));
        forgettable.map(|(_, producer)| producer.written())
    }

    /// Evicts producers that wrote last at the cut or before, and returns how many. Frees their memory.
    pub fn forget(&mut self, cut: Cut) -> usize {
        let (before, speculative) = (self.committed.len(), &self.speculative);
        let mut left = cut.at_most;
        self.committed.retain(|id, producer| {
            let stays = left == 0 || producer.written() > cut.until || speculative.contains_key(id);
            left -= usize::from(!stays);
            stays
        });
        let forgotten = before - self.committed.len();
        if forgotten > 0 {
            self.committed.shrink_to_fit();
        }
        forgotten
    }

    /// Evicts producers whose last batch is `expiration_ms` old or older, and returns how many. A producer with
    /// uncommitted batches stays.
    pub fn expire(&mut self, now_ms: i64, expiration_ms: i64) -> usize {
        let before = self.committed.len();
        let speculative = &self.speculative;
        self.committed.retain(|id, producer| {
            now_ms.saturating_sub(producer.last().timestamp) < expiration_ms || speculative.contains_key(id)
        });
        before - self.committed.len()
    }

    /// The committed part, for a checkpoint: its index, and the bytes that [`Producers::restore`] takes. Equal
    /// states give equal bytes.
    pub fn snapshot_at_commit(&self) -> (RaftIndex, Bytes) {
        (self.committed_index, blob::encode(self.committed_index, &self.committed))
    }

    /// The state as of `index`, without batches that later ones have pushed out. Replaying the later batches
    /// restores the full state. If it takes more than `bytes_max`, the producers that wrote least recently are left
    /// out.
    pub fn snapshot_at(&self, index: RaftIndex, bytes_max: usize) -> Bytes {
        let before = |(id, producer): (&i64, &Producer)| {
            let mut then = Producer::new(producer.epoch);
            producer.batches().iter().filter(|batch| batch.index <= index).for_each(|batch| then.push(*batch));
            (then.len > 0).then_some((*id, then))
        };
        let mut then: Vec<(i64, Producer)> = self.committed.iter().filter_map(before).collect();
        then.sort_unstable_by_key(|(id, producer)| (Reverse(producer.last().index), *id));
        let mut bytes = blob::HEADER_BYTES;
        let fits = |(_, producer): &(i64, Producer)| {
            bytes += blob::bytes_of(producer.batches().len());
            bytes <= bytes_max
        };
        blob::encode(index, &then.into_iter().take_while(fits).collect())
    }

    /// Restores a checkpoint's state. Replay the entries above its index with [`Producers::append`].
    pub fn restore(blob: &[u8]) -> Result<Producers, RestoreError> {
        let mut producers = Producers::default();
        (producers.committed_index, producers.committed) = blob::decode(blob)?;
        Ok(producers)
    }

    /// The first index after all batches here.
    #[cfg(test)]
    pub fn next_index(&self) -> RaftIndex {
        self.tail.back().map_or(self.committed_index, |last| last.batch.index).next()
    }

    /// The index up to which entries are in the committed part.
    pub fn committed_index(&self) -> RaftIndex {
        self.committed_index
    }

    /// Asserts the module's invariants. For tests and simulation.
    pub fn check_invariants(&self) {
        assert!(self.tail.iter().is_sorted_by_key(|tail| tail.batch.index));
        assert!(self.tail.front().is_none_or(|first| first.batch.index > self.committed_index));
        assert_eq!(self.tail.len(), self.speculative.values().map(|s| s.uncommitted).sum::<usize>());
        for (id, speculative) in &self.speculative {
            let newest = self.tail.iter().rfind(|tail| tail.producer_id == *id).expect("it has batches in the tail");
            assert_eq!(*speculative.producer.last(), newest.batch);
        }
        for producer in self.committed.values() {
            assert!(producer.batches().is_sorted_by_key(|batch| batch.index));
            assert!(producer.last().index <= self.committed_index);
        }
        assert!(self.committed.len() <= self.producers_max);
    }
}
