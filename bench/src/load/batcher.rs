//! Gathers a connection's records into one open batch per partition and says which batches are due. Pure.
//!
//! A batch is due once it is full, or once `linger_ns` has passed since its first record's intended time. Full
//! batches leave first, then the open batch with the oldest record. A record is represented by its intended time, and
//! by its size if sizes differ.

use std::collections::VecDeque;

use crate::options::sizes::{Numbers, Sizes};

/// Bytes that a record adds to its value in a batch: lengths, attributes and deltas at their usual widths.
pub const RECORD_OVERHEAD_BYTES: usize = 9;

/// The records of one partition that wait for, or travel in, one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Index into the connection's partitions.
    pub partition: usize,
    /// Each record's intended send time, ascending.
    pub intended_ns: Vec<u64>,
    /// Bytes of each record's value; empty if all records have the same size.
    pub sizes: Vec<u32>,
    /// Approximate size of the batch: values and overhead.
    pub bytes: usize,
}

impl Batch {
    /// Bytes of the value of record `at`. `fixed` is the common size if all records have the same.
    pub fn size(&self, at: usize, fixed: usize) -> usize {
        self.sizes.get(at).map_or(fixed, |size| *size as usize)
    }

    pub fn len(&self) -> usize {
        self.intended_ns.len()
    }
}

/// When a batch becomes due.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    pub linger_ns: u64,
    /// Maximum bytes of a batch. A single larger record forms a batch of its own.
    pub batch_bytes: usize,
    /// Bytes that a record's key adds.
    pub key_bytes: usize,
}

#[derive(Debug)]
pub struct Batcher {
    limits: BatchLimits,
    sizes: Sizes,
    numbers: Numbers,
    /// A batch of more bytes than this is full: one more record of the largest size could exceed `batch_bytes`.
    full_at_bytes: usize,
    open: Vec<Batch>,
    /// Partitions whose open batch holds records, ordered by the intended time of its first record.
    order: VecDeque<usize>,
    /// Batches that are full.
    full: VecDeque<Batch>,
    /// The partition that the next record goes to.
    next: usize,
    records: usize,
    bytes: usize,
}

impl Batcher {
    /// `seed` determines the random sizes, if sizes differ.
    pub fn new(partitions: usize, limits: BatchLimits, sizes: Sizes, seed: u64) -> Batcher {
        assert!(partitions > 0, "a connection has at least one partition");
        let record_bytes_max = sizes.max() + limits.key_bytes + RECORD_OVERHEAD_BYTES;
        Batcher {
            full_at_bytes: limits.batch_bytes.saturating_sub(record_bytes_max),
            limits,
            sizes,
            numbers: Numbers::new(seed),
            open: (0..partitions).map(|partition| Batch { partition, ..Batch::default() }).collect(),
            order: VecDeque::new(),
            full: VecDeque::new(),
            next: 0,
            records: 0,
            bytes: 0,
        }
    }

    /// Adds a record to the next partition in turn. Intended times must not decrease.
    pub fn push(&mut self, intended_ns: u64) {
        let partition = self.next;
        self.next = (partition + 1) % self.open.len();
        let open = &mut self.open[partition];
        if open.intended_ns.is_empty() {
            self.order.push_back(partition);
        }
        let size = self.sizes.pick(if self.sizes.is_fixed() { 0 } else { self.numbers.next() });
        if !self.sizes.is_fixed() {
            open.sizes.push(size as u32);
        }
        let record_bytes = size + self.limits.key_bytes + RECORD_OVERHEAD_BYTES;
        open.intended_ns.push(intended_ns);
        open.bytes += record_bytes;
        self.records += 1;
        self.bytes += record_bytes;
        if open.bytes > self.full_at_bytes {
            self.order.retain(|p| *p != partition);
            let batch = self.take_open(partition);
            self.full.push_back(batch);
        }
    }

    fn take_open(&mut self, partition: usize) -> Batch {
        std::mem::replace(&mut self.open[partition], Batch { partition, ..Batch::default() })
    }

    /// The next due batch whose partition `fits` accepts: a request may name each partition only once.
    pub fn take_ready(&mut self, now_ns: u64, fits: impl Fn(usize) -> bool) -> Option<Batch> {
        let batch = if let Some(full) = self.full.front() {
            fits(full.partition).then(|| self.full.pop_front()).flatten()?
        } else {
            self.deadline_ns().filter(|deadline| *deadline <= now_ns)?;
            let partition = self.order.front().copied().filter(|partition| fits(*partition))?;
            self.order.pop_front();
            self.take_open(partition)
        };
        self.records -= batch.len();
        self.bytes -= batch.bytes;
        Some(batch)
    }

    /// When the oldest open batch becomes due because of its linger time.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.order.front().map(|partition| self.open[*partition].intended_ns[0] + self.limits.linger_ns)
    }

    /// Makes every batch due at once: no further record will come.
    pub fn close(&mut self) {
        self.limits.linger_ns = 0;
    }

    /// Whether the batcher should take more records. If not, they would only queue behind full batches.
    pub fn has_room(&self) -> bool {
        self.records == 0 || self.bytes < self.limits.batch_bytes * self.open.len()
    }

    /// Records held.
    pub fn len(&self) -> usize {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batcher whose batches are full at `records_max` records of one byte.
    fn batcher(partitions: usize, linger_ns: u64, records_max: usize) -> Batcher {
        let limits = BatchLimits { linger_ns, batch_bytes: records_max * (RECORD_OVERHEAD_BYTES + 1), key_bytes: 0 };
        Batcher::new(partitions, limits, Sizes::Fixed(1), 0)
    }

    fn batch(partition: usize, intended_ns: &[u64]) -> Option<Batch> {
        let bytes = intended_ns.len() * (RECORD_OVERHEAD_BYTES + 1);
        Some(Batch { partition, intended_ns: intended_ns.to_vec(), sizes: Vec::new(), bytes })
    }

    #[test]
    fn batches_of_mixed_sizes_keep_within_their_bytes() {
        let limits = BatchLimits { linger_ns: 0, batch_bytes: 1000, key_bytes: 5 };
        let mut batcher = Batcher::new(3, limits, "10:5,300:1".parse().unwrap(), 1);
        let mut records = 0;
        for time in 0..1000 {
            batcher.push(time);
            while let Some(full) = batcher.full.pop_front() {
                let bytes: usize = full.sizes.iter().map(|size| *size as usize + 5 + RECORD_OVERHEAD_BYTES).sum();
                assert_eq!((bytes, full.sizes.len()), (full.bytes, full.len()));
                assert!(bytes <= 1000 && bytes > 600, "{bytes}");
                records += full.len();
            }
        }
        assert!(records > 900, "{records}");
    }

    #[test]
    fn a_record_larger_than_a_batch_goes_alone() {
        let mut batcher = batcher(1, 1000, 0);
        batcher.push(1);
        assert_eq!(batcher.take_ready(1, |_| true), batch(0, &[1]));
        assert!(batcher.has_room());
    }

    #[test]
    fn a_batch_waits_for_its_linger() {
        let mut batcher = batcher(2, 100, 10);
        for time in [5, 6, 7] {
            batcher.push(time);
        }
        assert_eq!(batcher.deadline_ns(), Some(105));
        assert_eq!(batcher.take_ready(104, |_| true), None);
        assert_eq!(batcher.take_ready(105, |_| true), batch(0, &[5, 7]));
        assert_eq!(batcher.take_ready(105, |_| true), None);
        assert_eq!(batcher.take_ready(106, |_| true), batch(1, &[6]));
        assert!(batcher.is_empty());
        assert_eq!(batcher.deadline_ns(), None);
    }

    #[test]
    fn a_full_batch_waits_for_nothing() {
        let mut batcher = batcher(2, 1_000, 2);
        for time in [1, 2, 3, 4, 5] {
            batcher.push(time);
        }
        assert_eq!(batcher.len(), 5);
        assert_eq!(batcher.take_ready(5, |_| true), batch(0, &[1, 3]));
        assert_eq!(batcher.take_ready(5, |_| true), batch(1, &[2, 4]));
        assert_eq!(batcher.take_ready(5, |_| true), None);
        assert_eq!(batcher.deadline_ns(), Some(1_005));
        batcher.close();
        assert_eq!(batcher.take_ready(5, |_| true), batch(0, &[5]));
        assert!(batcher.is_empty());
    }

    #[test]
    fn without_linger_what_is_due_leaves_at_once_and_together() {
        let mut batcher = batcher(1, 0, 100);
        batcher.push(10);
        batcher.push(20);
        assert_eq!(batcher.take_ready(20, |_| true), batch(0, &[10, 20]));
    }

    #[test]
    fn a_batch_that_does_not_fit_stays_and_holds_those_behind_it() {
        let mut batcher = batcher(2, 0, 2);
        for time in [1, 2, 3, 4, 5, 6] {
            batcher.push(time);
        }
        assert_eq!(batcher.take_ready(6, |partition| partition != 0), None);
        assert_eq!(batcher.take_ready(6, |_| true), batch(0, &[1, 3]));
        assert_eq!(batcher.take_ready(6, |_| true), batch(1, &[2, 4]));
        assert_eq!(batcher.take_ready(6, |partition| partition != 0), None);
        assert_eq!(batcher.take_ready(6, |partition| partition == 0), batch(0, &[5]));
        assert_eq!(batcher.len(), 1);
    }

    #[test]
    fn a_partition_that_filled_up_takes_its_place_in_order_anew() {
        let mut batcher = batcher(2, 10, 2);
        for time in [1, 2, 3] {
            batcher.push(time);
        }
        // Partition 0's batch is full; partition 1 has the oldest open batch.
        assert_eq!(batcher.deadline_ns(), Some(12));
        assert_eq!(batcher.take_ready(3, |_| true), batch(0, &[1, 3]));
        batcher.next = 0;
        batcher.push(4);
        assert_eq!(batcher.take_ready(14, |_| true), batch(1, &[2]));
        assert_eq!(batcher.take_ready(14, |_| true), batch(0, &[4]));
    }
}
