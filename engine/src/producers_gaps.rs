//! Batches of idempotent producers that come before the one that they follow.
//! Lives on: the owning core only. Pure: it is told the time.
//!
//! A client has several batches on their way at once. If the first of them is refused, since the replica did not lead yet, and the
//! replica leads when the second comes, then one is missing before the second. Nothing is lost: the client sends both again, in order, as
//! soon as the second is refused for the same reason as the first. But told of an order that is broken, librdkafka begins a new epoch on
//! all partitions, and batches whose answers it still waits for elsewhere come again under it: no broker knows them for duplicates then.
//! So a gap has some time to close, and is called one only after that.

use ahash::AHashMap;
use std::time::Duration;

/// Producers whose gaps are remembered. Beyond it a gap is none that may close.
const GAPS_MAX: usize = 1024;

/// A place in a producer's order at which a batch is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub epoch: i16,
    /// The sequence that should have come.
    pub expected: i32,
}

/// The gaps before the batches that a leader refused lately.
#[derive(Debug, Default)]
pub struct Gaps {
    since: AHashMap<i64, (Gap, Duration)>,
}

impl Gaps {
    /// Whether this gap may still close at `now`: it is first seen now, or was first seen less than `timeout` ago.
    pub fn may_close(&mut self, producer_id: i64, gap: Gap, now: Duration, timeout: Duration) -> bool {
        if self.since.len() >= GAPS_MAX && !self.since.contains_key(&producer_id) {
            self.since.retain(|_, (_, since)| now.saturating_sub(*since) < timeout);
            if self.since.len() >= GAPS_MAX {
                return false;
            }
        }
        let (known, since) = self.since.entry(producer_id).or_insert((gap, now));
        if *known != gap {
            (*known, *since) = (gap, now);
        }
        now.saturating_sub(*since) < timeout
    }

    /// Another leads: whoever comes back to this replica begins anew.
    pub fn clear(&mut self) {
        self.since.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn gap(expected: i32) -> Gap {
        Gap { epoch: 0, expected }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_gap_that_stays_is_called_one_in_the_end() {
        let mut gaps = Gaps::default();
        assert!(gaps.may_close(7, gap(50), at(100), TIMEOUT));
        assert!(gaps.may_close(7, gap(50), at(104), TIMEOUT));
        assert!(!gaps.may_close(7, gap(50), at(105), TIMEOUT));
        assert!(!gaps.may_close(7, gap(50), at(200), TIMEOUT), "it has had its time");
        assert!(gaps.may_close(8, gap(50), at(105), TIMEOUT), "another producer's is its own");
    }

    #[test]
    fn a_producer_that_went_on_or_began_anew_has_another_gap() {
        let mut gaps = Gaps::default();
        assert!(gaps.may_close(7, gap(50), at(0), TIMEOUT));
        assert!(!gaps.may_close(7, gap(50), at(9), TIMEOUT));
        assert!(gaps.may_close(7, gap(60), at(9), TIMEOUT));
        assert!(gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(20), TIMEOUT));
        assert!(!gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(25), TIMEOUT));
        gaps.clear();
        assert!(gaps.may_close(7, Gap { epoch: 1, expected: 60 }, at(26), TIMEOUT));
    }

    #[test]
    fn without_time_no_gap_may_close() {
        assert!(!Gaps::default().may_close(7, gap(50), at(1), Duration::ZERO));
    }

    #[test]
    fn only_so_many_are_remembered_and_old_ones_make_room() {
        let mut gaps = Gaps::default();
        for producer in 0..GAPS_MAX as i64 {
            assert!(gaps.may_close(producer, gap(1), at(0), TIMEOUT));
        }
        assert!(!gaps.may_close(-1, gap(1), at(4), TIMEOUT), "there is no room");
        assert!(gaps.may_close(0, gap(1), at(4), TIMEOUT), "those that are known go on");
        assert!(gaps.may_close(-1, gap(1), at(5), TIMEOUT), "their time is over");
        assert_eq!(gaps.since.len(), 1);
    }
}
