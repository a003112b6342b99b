//! Batches of idempotent producers that arrive before their predecessor.
//! Lives on: the owning core only. Pure: the time is an argument.
//!
//! A client has several batches in flight. Suppose the replica rejects the first because it does not lead yet, and
//! leads when the second arrives. Then a batch is missing before the second. Nothing is lost: if the broker rejects
//! the second with the same error, the client retries both in order.
//!
//! An out-of-order error would be worse. librdkafka then begins a new epoch on all partitions, and resends its
//! unacknowledged batches under it. No broker recognises those as duplicates. So a gap gets some time to close, and
//! only then is the batch called out of order.
//!
//! An unknown producer may begin at any sequence, but not after a batch that was rejected just now. Otherwise the
//! rejected batch would come too late when it is retried, and its producer would have to give up.

use ahash::AHashMap;
use std::time::Duration;

/// Most producers whose gaps are remembered. When full, a new gap counts as one that can't close.
const GAPS_MAX: usize = 1024;

/// Whether `sequence` equals `other` or follows it. Sequences wrap from `i32::MAX` to 0.
pub fn is_ahead(sequence: i32, other: i32) -> bool {
    (sequence.wrapping_sub(other) & i32::MAX) < 1 << 30
}

/// A point in a producer's order at which a batch is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub epoch: i16,
    /// The sequence number of the missing batch.
    pub expected: i32,
}

/// Batches that were found missing, or were rejected, lately.
#[derive(Debug, Default)]
pub struct Gaps {
    /// By producer: its gap, and when the gap was first seen.
    since: AHashMap<i64, (Gap, Duration)>,
}

/// The present time, and how long a gap may take to close.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub now: Duration,
    pub timeout: Duration,
}

impl Patience {
    fn lasts(self, since: Duration) -> bool {
        self.now.saturating_sub(since) < self.timeout
    }
}

impl Gaps {
    /// Whether this gap may still close: it is new, or was first seen less than the timeout ago.
    pub fn may_close(&mut self, producer_id: i64, gap: Gap, patience: Patience) -> bool {
        self.note(producer_id, gap, patience, |known, _| known != gap)
    }

    /// The producer's batch with this sequence was rejected, and will be retried.
    pub fn refused(&mut self, producer_id: i64, gap: Gap, patience: Patience) {
        // The batches after it are rejected too. The earliest of them is the missing one.
        self.note(producer_id, gap, patience, |known, since| {
            !patience.lasts(since) || known.epoch != gap.epoch || is_ahead(known.expected, gap.expected)
        });
    }

    /// The gap, if any, that an unknown producer's batch would jump over.
    pub fn before(&self, producer_id: i64, epoch: i16, sequence: i32, patience: Patience) -> Option<Gap> {
        let (gap, since) = *self.since.get(&producer_id)?;
        let is_behind_it = gap.epoch == epoch && gap.expected != sequence && is_ahead(sequence, gap.expected);
        (is_behind_it && patience.lasts(since)).then_some(gap)
    }

    /// Remembers a gap, also in place of a known one if `replaces` says so. Returns whether the remembered gap may
    /// still close.
    fn note(&mut self, id: i64, gap: Gap, patience: Patience, replaces: impl Fn(Gap, Duration) -> bool) -> bool {
        if self.since.len() >= GAPS_MAX && !self.since.contains_key(&id) {
            self.since.retain(|_, (_, since)| patience.lasts(*since));
            if self.since.len() >= GAPS_MAX {
                return false;
            }
        }
        let (known, since) = self.since.entry(id).or_insert((gap, patience.now));
        if replaces(*known, *since) {
            (*known, *since) = (gap, patience.now);
        }
        patience.lasts(*since)
    }

    /// The producer's batch was accepted.
    pub fn taken(&mut self, producer_id: i64) {
        self.since.remove(&producer_id);
    }

    pub fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    /// Another replica leads. If this one leads again, it starts with no gaps.
    pub fn clear(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(expected: i32) -> Gap {
        Gap { epoch: 0, expected }
    }

    /// `seconds` after the start, with a timeout of five seconds.
    fn at(seconds: u64) -> Patience {
        Patience { now: Duration::from_secs(seconds), timeout: Duration::from_secs(5) }
    }

    #[test]
    fn a_gap_that_stays_is_called_one_in_the_end() {
        let mut gaps = Gaps::default();
        assert!(gaps.may_close(7, gap(50), at(100)));
        assert!(gaps.may_close(7, gap(50), at(104)));
        assert!(!gaps.may_close(7, gap(50), at(105)));
        assert!(!gaps.may_close(7, gap(50), at(200)), "it has had its time");
        assert!(gaps.may_close(8, gap(50), at(105)), "another producer's is its own");
        gaps.taken(7);
        assert!(gaps.may_close(7, gap(50), at(200)), "it had closed, and is there again");
    }

    #[test]
    fn a_producer_that_went_on_or_began_anew_has_another_gap() {
        let mut gaps = Gaps::default();
        assert!(gaps.may_close(7, gap(50), at(0)));
        assert!(!gaps.may_close(7, gap(50), at(9)));
        assert!(gaps.may_close(7, gap(60), at(9)));
        assert!(gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(20)));
        assert!(!gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(25)));
        gaps.clear();
        assert!(gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(26)));
    }

    #[test]
    fn a_producer_that_is_not_known_does_not_begin_behind_what_was_refused() {
        let mut gaps = Gaps::default();
        assert_eq!(gaps.before(7, 0, 50, at(0)), None);
        gaps.refused(7, gap(0), at(0));
        gaps.refused(7, gap(50), at(1));
        assert_eq!(gaps.before(7, 0, 50, at(1)), Some(gap(0)));
        assert_eq!(gaps.before(7, 0, 0, at(1)), None, "that is the one");
        assert_eq!(gaps.before(7, 1, 50, at(1)), None, "another epoch");
        assert_eq!(gaps.before(8, 0, 50, at(1)), None, "another producer");
        assert_eq!(gaps.before(7, 0, 50, at(5)), None, "it is not coming any more");
        gaps.refused(7, gap(50), at(6));
        assert_eq!(gaps.before(7, 0, 100, at(6)), Some(gap(50)));
        gaps.refused(7, gap(30), at(7));
        assert_eq!(gaps.before(7, 0, 50, at(7)), Some(gap(30)), "the first of them");
        // Sequences start at 0 again after the largest.
        gaps.refused(9, gap(i32::MAX - 9), at(7));
        assert_eq!(gaps.before(9, 0, 0, at(7)), Some(gap(i32::MAX - 9)));
        gaps.refused(9, gap(0), at(7));
        assert_eq!(gaps.before(9, 0, 10, at(7)), Some(gap(i32::MAX - 9)));
    }

    #[test]
    fn without_time_no_gap_may_close() {
        let none = Patience { timeout: Duration::ZERO, ..at(1) };
        let mut gaps = Gaps::default();
        assert!(!gaps.may_close(7, gap(50), none));
        gaps.refused(8, gap(0), none);
        assert_eq!(gaps.before(8, 0, 50, none), None);
    }

    #[test]
    fn only_so_many_are_remembered_and_old_ones_make_room() {
        let mut gaps = Gaps::default();
        for producer in 0..GAPS_MAX as i64 {
            assert!(gaps.may_close(producer, gap(1), at(0)));
        }
        assert!(!gaps.may_close(-1, gap(1), at(4)), "there is no room");
        assert!(gaps.may_close(0, gap(1), at(4)), "those that are known go on");
        assert!(gaps.may_close(-1, gap(1), at(5)), "their time is over");
        assert_eq!(gaps.since.len(), 1);
    }
}
