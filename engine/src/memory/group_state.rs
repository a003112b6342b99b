//! Memory of consumer groups: their ids, members, assignments and committed offsets.
//! Lives on: one core. Counts all coordinators of the core: those that serve, those that load, and those that have
//! resigned, until their memory is freed.
//!
//! Group state lasts, like partitions and producers: it can't be dropped when memory is short. So a request that
//! needs more than there is room for is refused. New groups may take only a part of the share. The rest is for groups
//! that exist: their members come back and their offsets grow. It is also for groups that other brokers leave to this
//! one when they fail.
//!
//! A load takes what the log has, even beyond the share, because acknowledged offsets are never lost. Then nothing may
//! grow until groups were deleted or have expired.

use std::{cell::Cell, rc::Rc, time::Duration};

/// New groups may take one `NEW_GROUPS`-th of the share. If one of three brokers fails, the others hold half as much
/// again, and have room left.
const NEW_GROUPS: usize = 2;

/// Time between two log lines about refused requests.
const ONE_EVERY: Duration = Duration::from_secs(10);

/// One core's group state.
pub struct GroupState {
    sum: Rc<Sum>,
    log: RefusalLog,
}

/// The memory of one coordinator, held until this is dropped.
pub struct GroupBytes {
    sum: Rc<Sum>,
    mine: Cell<usize>,
}

struct Sum {
    max: usize,
    held: Cell<usize>,
    /// More is held than the share, and the log says so.
    is_over: Cell<bool>,
}

#[derive(Default)]
struct RefusalLog {
    last: Cell<Option<Duration>>,
    left_out: Cell<u64>,
}

impl GroupState {
    pub fn new(max: usize) -> Self {
        let sum = Sum { max, held: Cell::new(0), is_over: Cell::new(false) };
        Self { sum: Rc::new(sum), log: RefusalLog::default() }
    }

    pub fn max(&self) -> usize {
        self.sum.max
    }

    /// Bytes that all coordinators hold.
    pub fn held(&self) -> usize {
        self.sum.held.get()
    }

    /// Bytes that groups may still grow by.
    pub fn left(&self) -> usize {
        self.max().saturating_sub(self.held())
    }

    /// Bytes that new groups may still take.
    pub fn left_for_new_groups(&self) -> usize {
        (self.max() / NEW_GROUPS).saturating_sub(self.held())
    }

    /// An account for one more coordinator.
    pub fn account(&self) -> GroupBytes {
        GroupBytes { sum: self.sum.clone(), mine: Cell::new(0) }
    }

    /// Whether more is held than the share, for the first time since there was less.
    pub fn is_newly_over(&self) -> bool {
        self.held() > self.max() && !self.sum.is_over.replace(true)
    }

    /// Permission to log a refused request, with the number of those that were left out since the last one.
    pub fn admit_line(&self, now: Duration) -> Option<u64> {
        self.log.admit(now)
    }
}

impl RefusalLog {
    fn admit(&self, now: Duration) -> Option<u64> {
        if self.last.get().is_some_and(|last| now < last + ONE_EVERY) {
            self.left_out.set(self.left_out.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.left_out.take())
    }
}

impl GroupBytes {
    /// The coordinator now holds so many bytes.
    pub fn set(&self, bytes: usize) {
        let before = self.mine.replace(bytes);
        if before != bytes {
            self.sum.held.set(self.sum.held.get() - before + bytes);
            self.sum.is_over.set(self.sum.is_over.get() && self.sum.held.get() > self.sum.max);
        }
    }
}

impl Drop for GroupBytes {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_share_the_room_and_give_it_back() {
        let state = GroupState::new(1000);
        let (one, other) = (state.account(), state.account());
        one.set(300);
        other.set(100);
        assert_eq!((state.held(), state.left(), state.left_for_new_groups()), (400, 600, 100));
        one.set(500);
        assert_eq!((state.left(), state.left_for_new_groups()), (400, 0));
        assert!(!state.is_newly_over());
        // A load takes what it needs.
        other.set(2000);
        assert_eq!((state.held(), state.left(), state.left_for_new_groups()), (2500, 0, 0));
        assert!(state.is_newly_over() && !state.is_newly_over());
        drop(other);
        assert_eq!((state.held(), state.left()), (500, 500));
        one.set(1001);
        assert!(state.is_newly_over());
        drop(one);
        assert_eq!(state.held(), 0);
    }

    #[test]
    fn refusals_are_logged_from_time_to_time_and_counted_in_between() {
        let state = GroupState::new(1000);
        let at = |seconds| state.admit_line(Duration::from_secs(seconds));
        assert_eq!([at(5), at(5), at(14), at(15), at(24), at(90)], [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
