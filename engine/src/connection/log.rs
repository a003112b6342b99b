//! Rate limit for log lines about closed connections. Unknown clients can cause such lines as fast as they connect.
//! Lives on: every core, one each, for the Kafka port and the peer port together.
//!
//! Bounds: the same reason from the same address is logged once per [`SAME_TOLD_EVERY`]. All other lines are
//! limited to [`AT_ONCE`] at once, and then one each [`ONE_EVERY`]. Skipped lines are counted, and the next line
//! gives their number.

use crate::clock;
use ahash::AHashMap;
use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    time::Duration,
};

/// Interval at which the same reason for one address is logged again. A misconfigured broker retries for ever.
const SAME_TOLD_EVERY: Duration = Duration::from_secs(60);
/// Addresses whose last reason is remembered. When full, all are dropped.
const CALLERS_MAX: usize = 256;
/// Lines that each core may write at once.
const AT_ONCE: u32 = 16;
/// Time until one more line is allowed.
const ONE_EVERY: Duration = Duration::from_secs(1);

pub struct ConnectionLog {
    told: RefCell<AHashMap<IpAddr, (String, Duration)>>,
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

impl Default for ConnectionLog {
    fn default() -> Self {
        Self {
            told: RefCell::default(),
            room: Cell::new(AT_ONCE),
            filled_at: Cell::new(clock::now()),
            left_out: Cell::new(0),
        }
    }
}

impl ConnectionLog {
    /// Returns permission to log that this address's connection ended for this reason.
    pub fn admit(&self, from: IpAddr, why: &str) -> Option<Admitted> {
        let now = clock::now();
        let is_known = |(told, at): &(String, Duration)| told == why && now < *at + SAME_TOLD_EVERY;
        self.refill(now);
        if self.room.get() == 0 || self.told.borrow().get(&from).is_some_and(is_known) {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.room.set(self.room.get() - 1);
        let mut told = self.told.borrow_mut();
        if told.len() >= CALLERS_MAX {
            told.clear();
        }
        told.insert(from, (why.to_owned(), now));
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

    fn admit(log: &ConnectionLog, host: u8, why: &str) -> bool {
        log.admit([10, 0, 0, host].into(), why).is_some()
    }

    #[test]
    fn what_a_caller_does_over_and_over_is_told_once() {
        let log = ConnectionLog::default();
        let told = |host, why| admit(&log, host, why);
        assert_eq!(
            [told(1, "a"), told(1, "a"), told(2, "a"), told(1, "b"), told(1, "b")],
            [true, false, true, true, false]
        );
        assert_eq!(log.admit([10, 0, 0, 3].into(), "c"), Some(Admitted { left_out: 1 }));
        assert_eq!(log.admit([10, 0, 0, 4].into(), "c"), Some(Admitted { left_out: 0 }));
    }

    #[test]
    fn a_flood_of_different_lines_has_an_end_and_is_counted() {
        let log = ConnectionLog::default();
        let told = (0..10_000).filter(|n| admit(&log, 1, &n.to_string())).count();
        // One more line is allowed for each second that this takes.
        assert!((AT_ONCE as usize..1000).contains(&told), "{told}");
        assert_eq!(log.left_out.get(), 10_000 - told as u64);
        // Later there is room again, and the line gives the number skipped.
        log.filled_at.set(Duration::ZERO);
        log.room.set(0);
        log.refill(ONE_EVERY * 3);
        assert_eq!(log.room.get(), 3);
        log.refill(ONE_EVERY * 1000);
        assert_eq!(log.room.get(), AT_ONCE);
        let left_out = log.left_out.get();
        assert_eq!(log.admit([10, 0, 0, 9].into(), "later"), Some(Admitted { left_out }));
    }

    #[test]
    fn callers_are_forgotten_before_they_are_too_many() {
        let log = ConnectionLog::default();
        for host in 0..=255 {
            for net in 0..4 {
                log.room.set(AT_ONCE);
                assert!(log.admit([10, 0, net, host].into(), "a").is_some());
            }
        }
        assert!(log.told.borrow().len() <= CALLERS_MAX);
    }
}
