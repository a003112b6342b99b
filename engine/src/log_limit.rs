//! Rate limit for log lines that clients, strangers or other brokers can cause as often as they like.
//! Lives on: every core, one for each kind of line. Pure: the caller gives the time.
//!
//! Bounds: the same line about the same thing is logged once per [`SAME_TOLD_EVERY`]. All other lines are limited to
//! [`AT_ONCE`] at once, and then one each [`ONE_EVERY`]. Skipped lines are counted, and the next line gives their
//! number.

use ahash::{AHashMap, RandomState};
use std::{
    cell::{Cell, RefCell},
    hash::Hash,
    time::Duration,
};

/// Interval at which the same line is logged again. A misconfigured broker retries for ever.
const SAME_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Lines that are remembered, by their hashes. When full, all are dropped.
const REMEMBERED_MAX: usize = 256;
/// Lines that may be written at once.
const AT_ONCE: u32 = 16;
/// Time until one more line is allowed.
const ONE_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct LogLimit {
    /// The hash of a line with what it is about, and when it was logged.
    told: RefCell<AHashMap<u64, Duration>>,
    hasher: RandomState,
    room: Cell<u32>,
    /// The time up to which `room` has been refilled.
    filled_at: Cell<Duration>,
    left_out: Cell<u64>,
}

/// Permission to write a line.
#[derive(Debug, PartialEq, Eq)]
pub struct Admitted {
    /// The number of lines skipped since the last one.
    pub left_out: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self {
            told: RefCell::default(),
            hasher: RandomState::new(),
            room: Cell::new(AT_ONCE),
            filled_at: Cell::default(),
            left_out: Cell::new(0),
        }
    }
}

impl LogLimit {
    /// Returns permission to log this line about `about`: an address, a partition, a group. `now` must not go back.
    pub fn admit(&self, now: Duration, about: impl Hash, line: &str) -> Option<Admitted> {
        self.refill(now);
        let hash = self.hasher.hash_one((about, line));
        let is_known = self.told.borrow().get(&hash).is_some_and(|at| now < *at + SAME_TOLD_EVERY);
        if self.room.get() == 0 || is_known {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.room.set(self.room.get() - 1);
        let mut told = self.told.borrow_mut();
        if told.len() >= REMEMBERED_MAX {
            told.clear();
        }
        told.insert(hash, now);
        Some(Admitted { left_out: self.left_out.replace(0) })
    }

    fn refill(&self, now: Duration) {
        let passed = now.saturating_sub(self.filled_at.get());
        let more = (passed.as_millis() / ONE_EVERY.as_millis()).min(AT_ONCE.into()) as u32;
        if more > 0 {
            self.room.set((self.room.get() + more).min(AT_ONCE));
            self.filled_at.set(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGUN: Duration = Duration::from_secs(1_000_000);

    #[test]
    fn a_repeated_event_is_logged_once_a_minute() {
        let log = LogLimit::default();
        let told = |seconds, about: u8, line| log.admit(BEGUN + Duration::from_secs(seconds), about, line);
        let first = |left_out| Some(Admitted { left_out });
        assert_eq!([told(0, 1, "a"), told(0, 1, "a"), told(0, 2, "a")], [first(0), None, first(1)]);
        assert_eq!([told(1, 1, "b"), told(1, 1, "b"), told(1, 1, "a")], [first(0), None, None]);
        assert_eq!([told(59, 1, "a"), told(60, 1, "a"), told(60, 1, "a")], [None, first(3), None]);
    }

    #[test]
    fn a_flood_of_different_lines_has_an_end_and_is_counted() {
        let log = LogLimit::default();
        let told = |seconds, lines: std::ops::Range<u32>| {
            let now = BEGUN + Duration::from_secs(seconds);
            lines.filter(|line| log.admit(now, "one", &line.to_string()).is_some()).count()
        };
        assert_eq!(told(0, 0..10_000), AT_ONCE as usize);
        assert_eq!(log.left_out.get(), 10_000 - u64::from(AT_ONCE));
        // Later there is room again, and the line gives the number skipped.
        let now = BEGUN + Duration::from_secs(1);
        assert_eq!(log.admit(now, "one", "later"), Some(Admitted { left_out: 10_000 - u64::from(AT_ONCE) }));
        assert_eq!([told(1, 0..100), told(4, 0..100), told(10_000, 0..100)], [0, 3, AT_ONCE as usize]);
    }

    #[test]
    fn lines_are_forgotten_before_they_are_too_many() {
        let log = LogLimit::default();
        for line in 0..4 * REMEMBERED_MAX as u64 {
            assert!(log.admit(BEGUN + Duration::from_secs(line), line, "a").is_some());
            assert!(log.told.borrow().len() <= REMEMBERED_MAX);
        }
    }
}
