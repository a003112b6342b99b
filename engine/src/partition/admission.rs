//! Admission: appends wait here, before they are proposed, while their partition has many uncommitted bytes
//! (`Partition::room`), the ring has only its reserve left, or many of this core's appends wait to be written to it.
//! Lives on: every core, one each, before that core's ring.
//!
//! A proposal can't be rejected once it is taken, so the limits act before it. An append that waits for its
//! partition's commits delays no other partition. For the ring's room, partitions take turns, so that one
//! with a hundred megabytes waiting delays no other. Within a partition, the order is first come, first served.
//! Otherwise pipelined batches of one producer would change places. An append that gives up leaves the line,
//! wherever it stands.
//!
//! Other leaders' entries need the same room and never wait: entries that don't fit are dropped, and the leader
//! resends them. They leave the room that the first append in turn needs ([`Admission::claimed`]). Otherwise many
//! small entries would take the room as it is freed, and a large batch would never fit.
//!
//! The ring writes what it is given in that order. If appends were staged as fast as they come, other leaders'
//! entries would wait behind all of them, and these leaders for this broker. So an append waits here, and not in the
//! ring, while [`UNWRITTEN_MAX`] bytes of earlier ones are not written.
//!
//! Group requests are small beside batches, and most need not wait for one that is large. They [pass](Admission::pass)
//! the append whose turn it is, but all of them together take no more room than it needs. The others join the line.
//!
//! Bound: the connections admit at most `queued.max.request.bytes` per core, and each append here belongs to such a
//! request.
//! Deadline: the request's timeout.

use super::Partition;
use crate::host::disk::Store;
use runtime::sync::{
    Notify,
    lines::{Lines, Spot},
    race,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};
use types::GroupId;
use wal::{record::LogPos, store::Admission as Room};

/// Most bytes of this core's appends that are staged and not written. One append may exceed it. The ring writes up to
/// 1 MiB at once: while one write is in flight, the next ones gather.
const UNWRITTEN_MAX: usize = 4 << 20;

pub struct Admission {
    lines: Lines<GroupId>,
    claim: Rc<Claim>,
    unwritten: Rc<Unwritten>,
    /// The partitions that this core leads and that are ahead of their replicas. See `partition::pacing`.
    ahead: Cell<usize>,
    /// Bytes that they may be ahead together.
    ahead_bytes: usize,
}

/// A place in the partition's line. While it is held, no later append to the partition goes first.
pub struct Turn {
    spot: Spot<GroupId>,
    bytes: usize,
    claim: Rc<Claim>,
    unwritten: Rc<Unwritten>,
}

/// This core's appends that are staged and not written.
#[derive(Default)]
struct Unwritten {
    /// The end of each in the ring, and its bytes.
    appends: RefCell<VecDeque<(LogPos, usize)>>,
    bytes: Cell<usize>,
    /// Notified when some were written.
    fewer: Notify,
}

/// The room that the append in turn waits for. There is at most one claim, since only one append has its turn.
#[derive(Default)]
struct Claim {
    /// 0: no append waits.
    bytes: Cell<usize>,
    /// Bytes of the appends that have passed it.
    passed: Cell<usize>,
}

/// Claims room while it lives.
struct Claiming<'a>(&'a Claim);

impl Unwritten {
    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.get() == 0 || self.bytes.get() + bytes <= UNWRITTEN_MAX
    }

    fn staged(&self, end: LogPos, bytes: usize) {
        self.appends.borrow_mut().push_back((end, bytes));
        self.bytes.update(|sum| sum + bytes);
    }

    fn written(&self, durable: LogPos) {
        let mut appends = self.appends.borrow_mut();
        while let Some((_, bytes)) = appends.pop_front_if(|(end, _)| *end <= durable) {
            self.bytes.update(|sum| sum - bytes);
        }
        self.fewer.notify();
    }
}

impl Claim {
    fn begin(&self, bytes: usize) -> Claiming<'_> {
        self.bytes.set(bytes);
        self.passed.set(0);
        Claiming(self)
    }

    /// Lets an append of `bytes` pass, unless too much has passed. Returns whether it may.
    fn let_pass(&self, bytes: usize) -> bool {
        let (claimed, passed) = (self.bytes.get(), self.passed.get() + bytes);
        if claimed == 0 {
            return true;
        }
        let may = passed <= claimed;
        if may {
            self.passed.set(passed);
        }
        may
    }
}

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.bytes.set(0);
    }
}

impl Turn {
    /// Waits until no earlier append to the partition waits here.
    pub async fn first_of_partition(&self) {
        self.spot.first_of_key().await;
    }

    /// Waits until it is this append's turn, earlier ones are written, and the ring has room for it. If the ring has
    /// failed, or the entry can never fit, it is admitted too, and the append then returns the error. The caller
    /// appends before it awaits anything else, and then drops the turn.
    pub async fn come(&mut self, store: &Store) {
        self.spot.turn().await;
        while !self.unwritten.has_room(self.bytes) && store.poisoned().is_none() {
            race(self.unwritten.fewer.next(), store.space_freed()).await;
        }
        let _claiming = self.claim.begin(self.bytes);
        while store.admit(self.bytes) == Room::Wait {
            store.space_freed().await;
        }
    }
}

/// The part of the cache of newest records that replicas may lack. Records that this core stores for other leaders
/// push them out as well.
const AHEAD_PART: usize = 8;
/// Bytes that one partition may be ahead of its replicas, however many others are: two of the largest default batches.
const AHEAD_LEAST: usize = 2 << 20;

impl Admission {
    /// `cache_bytes`: the newest records that this core keeps in memory.
    pub fn new(cache_bytes: u64) -> Self {
        let ahead_bytes = cache_bytes as usize / AHEAD_PART;
        Self {
            lines: Lines::default(),
            claim: Rc::default(),
            unwritten: Rc::default(),
            ahead: Cell::new(0),
            ahead_bytes,
        }
    }

    /// An append of `bytes` was staged, up to `end` in the ring.
    pub(super) fn staged(&self, end: LogPos, bytes: usize) {
        self.unwritten.staged(end, bytes);
    }

    /// The ring is written up to `durable`.
    pub(super) fn written(&self, durable: LogPos) {
        self.unwritten.written(durable);
    }

    /// A partition was ahead of its replicas before or not, and is now or not.
    pub(super) fn is_ahead(&self, before: bool, now: bool) {
        self.ahead.set(self.ahead.get() - usize::from(before) + usize::from(now));
    }

    /// Bytes that one partition may be ahead of its replicas now.
    pub(super) fn ahead_max(&self) -> usize {
        (self.ahead_bytes / self.ahead.get().max(1)).clamp(AHEAD_LEAST, Partition::ROOM_BYTES)
    }

    /// `None`: append now. Otherwise await the turn. `has_room`: whether the partition takes more uncommitted bytes.
    pub fn enter(&self, store: &Store, group: GroupId, bytes: usize, has_room: bool) -> Option<Turn> {
        let has_room = has_room && self.unwritten.has_room(bytes);
        if has_room && self.lines.is_free(group) && store.admit(bytes) != Room::Wait {
            return None;
        }
        Some(self.join(group, bytes))
    }

    /// Like [`Admission::enter`], but for an append that is small beside those in the line. It goes before them if
    /// there is room and not too much has passed the first of them.
    pub fn pass(&self, store: &Store, group: GroupId, bytes: usize) -> Option<Turn> {
        if store.admit(bytes) != Room::Wait && self.claim.let_pass(bytes) {
            return None;
        }
        Some(self.join(group, bytes))
    }

    fn join(&self, group: GroupId, bytes: usize) -> Turn {
        let (claim, unwritten) = (self.claim.clone(), self.unwritten.clone());
        Turn { spot: self.lines.join(group), bytes, claim, unwritten }
    }

    /// The number of appends that wait.
    pub fn waiting(&self) -> usize {
        self.lines.waiting()
    }

    /// Bytes of the ring's room to leave for the append whose turn it is. 0: none waits.
    pub fn claimed(&self) -> usize {
        self.claim.bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appends_that_pass_a_large_one_take_no_more_room_than_they_need() {
        let claim = Claim::default();
        let passes = |bytes: [usize; 4]| bytes.map(|bytes| claim.let_pass(bytes));
        assert_eq!(passes([70, 70, 70, 1000]), [true; 4], "no append waits");
        for _ in 0..2 {
            let _claiming = claim.begin(100);
            assert_eq!(passes([70, 70, 30, 1]), [true, false, true, false]);
        }
        assert_eq!(passes([70, 70, 70, 1000]), [true; 4], "no append waits any more");
    }

    #[test]
    fn appends_wait_while_many_bytes_are_not_written() {
        let unwritten = Unwritten::default();
        assert!(unwritten.has_room(UNWRITTEN_MAX + 1), "any append may go alone");
        unwritten.staged(LogPos(10), UNWRITTEN_MAX - 100);
        unwritten.staged(LogPos(20), 60);
        assert!(unwritten.has_room(40) && !unwritten.has_room(41));
        unwritten.written(LogPos(9));
        assert!(!unwritten.has_room(41));
        unwritten.written(LogPos(10));
        assert!(unwritten.has_room(UNWRITTEN_MAX - 60) && !unwritten.has_room(UNWRITTEN_MAX - 59));
        unwritten.written(LogPos(99));
        assert_eq!((unwritten.bytes.get(), unwritten.appends.borrow().len()), (0, 0));
        assert!(unwritten.has_room(UNWRITTEN_MAX + 1));
    }
}
