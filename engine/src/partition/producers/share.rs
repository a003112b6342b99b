//! Keeps the idempotent producers of all partitions of a core within their share of the memory.
//! Lives on: every core. Counting happens when a batch is applied, and is cheap. Eviction is a task of its own,
//! which yields.
//!
//! Each partition bounds its own producers
//! ([`producers::PRODUCERS_MAX`](crate::partition::producers::PRODUCERS_MAX)). When those of all partitions exceed
//! the share, the ones that wrote least recently are evicted. Like expiry, this goes by the timestamps of their last
//! batches. So this depends on the replica: others may remember more. An evicted producer can go on writing, but its
//! next retry is not recognised as a duplicate. A producer with uncommitted batches stays.

use crate::partition::producers::PRODUCER_BYTES;
use runtime::sync::Notify;
use std::cell::Cell;
use types::RaftIndex;

/// When a producer wrote last: its last batch's timestamp, then that batch's index in the partition's log.
pub type Written = (i64, RaftIndex);

/// An eviction also frees this fraction of the share (one part in `HEADROOM`), so that the next is not due at once.
const HEADROOM: usize = 16;

/// How many producers a core remembers, and the most that it may remember.
pub struct ProducersShare {
    max: usize,
    remembered: Cell<usize>,
    /// Notified when there are too many.
    pub(crate) over: Notify,
}

impl ProducersShare {
    pub fn of(bytes: u64) -> Self {
        Self { max: (bytes / PRODUCER_BYTES).max(1) as usize, remembered: Cell::new(0), over: Notify::default() }
    }

    /// Changes a partition's count from `before` to `now`.
    pub fn changed(&self, before: usize, now: usize) {
        if before != now {
            self.remembered.set(self.remembered.get() + now - before);
            if self.is_over() {
                self.over.notify();
            }
        }
    }

    pub fn remembered(&self) -> usize {
        self.remembered.get()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.remembered.get() > self.max
    }

    /// How many to evict.
    pub(crate) fn excess(&self) -> usize {
        self.remembered.get().saturating_sub(self.max - self.max / HEADROOM)
    }
}

/// Which producers to evict: those that wrote last at `until` or before, but no more than `at_most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub until: Written,
    pub at_most: usize,
}

/// Finds the cut that evicts `excess` of `count` producers, given an even sample of their last writes.
pub fn cut(mut samples: Vec<Written>, count: usize, excess: usize) -> Option<Cut> {
    let share = (samples.len() as u128 * excess as u128).div_ceil(count.max(1) as u128) as usize;
    let at = share.min(samples.len()).checked_sub(1)?;
    let (_, until, _) = samples.select_nth_unstable(at);
    Some(Cut { until: *until, at_most: excess })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::producers::{Producers, Verdict};
    use net::records::{batch::BatchHeader, build::BatchBuilder};

    /// The producers of several partitions, and the core's count of them.
    struct Partitions {
        all: Vec<Producers>,
        share: ProducersShare,
    }

    fn header(producer_id: i64, base_sequence: i32) -> BatchHeader {
        let mut batch = BatchBuilder::default().producer(producer_id, 0, base_sequence);
        batch.push(0, None, Some(b"v"));
        BatchHeader::read(&batch.finish()).expect("it was just made")
    }

    impl Partitions {
        fn new(count: usize, max: usize) -> Self {
            let share = ProducersShare::of(max as u64 * PRODUCER_BYTES);
            Self { all: vec![Producers::default(); count], share }
        }

        fn write(&mut self, at: usize, producer_id: i64, base_sequence: i32, timestamp: i64, commits: bool) {
            let producers = &mut self.all[at];
            let (before, index) = (producers.remembered(), producers.next_index());
            producers.append(index, &header(producer_id, base_sequence), index.get(), timestamp);
            if commits {
                producers.commit_to(index);
            }
            self.share.changed(before, producers.remembered());
        }

        fn forget(&mut self) -> usize {
            let samples: Vec<Written> = self.all.iter().flat_map(Producers::written).collect();
            let (count, excess) = (samples.len(), self.share.excess());
            let mut cut = cut(samples, count, excess).expect("somebody may go");
            for producers in &mut self.all {
                let before = producers.remembered();
                cut.at_most -= producers.forget(cut);
                self.share.changed(before, producers.remembered());
                producers.check_invariants();
            }
            excess - cut.at_most
        }

        fn knows(&self, producer_id: i64) -> bool {
            self.all.iter().any(|producers| producers.knows(producer_id))
        }
    }

    #[test]
    fn the_most_recent_ones_of_all_partitions_are_kept() {
        let mut partitions = Partitions::new(5, 160);
        let mut order: Vec<i64> = (0..161).collect();
        fastrand::Rng::with_seed(1).shuffle(&mut order);
        for (at, producer_id) in order.iter().enumerate() {
            assert!(!partitions.share.is_over());
            partitions.write(at % 5, *producer_id, 0, 1000 + producer_id, true);
        }
        assert!(partitions.share.is_over());
        assert_eq!(partitions.forget(), 11, "down to fifteen sixteenths");
        assert_eq!(partitions.share.remembered(), 150);
        assert!((0..161).all(|producer_id| partitions.knows(producer_id) == (producer_id >= 11)));

        // As after expiry, the producer goes on with any sequence, and is known again.
        let fifth = order.iter().position(|producer_id| *producer_id == 5).unwrap() % 5;
        assert_eq!(partitions.all[fifth].check(5, 0, 1, 1), Verdict::New);
        partitions.write(fifth, 5, 1, 5000, true);
        assert!(matches!(partitions.all[fifth].check(5, 0, 1, 1), Verdict::Duplicate(_)));
        assert_eq!(partitions.all[fifth].check(5, 0, 3, 1), Verdict::OutOfOrder { expected: 2, got: 3 });
        assert_eq!(partitions.share.remembered(), 151);
    }

    #[test]
    fn producers_that_wrote_at_the_same_time_do_not_all_go_and_open_ones_stay() {
        let mut partitions = Partitions::new(3, 160);
        for producer_id in 0..180 {
            partitions.write(producer_id as usize % 3, producer_id, 0, -1, true);
        }
        // Their next batches are not committed.
        for producer_id in 0..30 {
            partitions.write(producer_id as usize % 3, producer_id, 1, -1, false);
        }
        assert_eq!(partitions.forget(), 30);
        assert_eq!(partitions.share.remembered(), 150);
        assert!((0..30).all(|producer_id| partitions.knows(producer_id)));
    }

    #[test]
    fn a_cut_of_samples_takes_about_as_many_as_one_of_all() {
        let all: Vec<Written> = (0..100_000).map(|n| (n, RaftIndex::ZERO)).collect();
        let exact = cut(all.clone(), all.len(), 10_000);
        assert_eq!(exact, Some(Cut { until: (9_999, RaftIndex::ZERO), at_most: 10_000 }));
        let sampled = cut(all.into_iter().step_by(7).collect(), 100_000, 10_000).unwrap();
        assert!((9_900..10_100).contains(&sampled.until.0), "{sampled:?}");
        assert_eq!(cut(Vec::new(), 0, 5), None);
        let one = (1, RaftIndex::FIRST);
        assert_eq!(cut(vec![one], 1, 5), Some(Cut { until: one, at_most: 5 }));
        assert_eq!(cut(vec![one], 1, 0), None);
    }
}
