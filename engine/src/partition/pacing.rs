//! How far a leader runs ahead of its replicas. Appends that would take it further wait in
//! [`admission`](super::admission).
//! Lives on: the partition's core.
//!
//! The leader sends entries from memory. Entries that have left memory it must read from the disk, at the cost of
//! everything else: a busy cluster then does half as much, for as long as a replica lags.
//!
//! - An append waits for commits while [`Partition::ROOM_BYTES`] are not applied.
//! - It waits for the slower replicas too, while one of them lacks the partition's share of what this core keeps in
//!   memory ([`Admission::ahead_max`](super::admission::Admission::ahead_max)). A replica that takes less than 4 MiB a
//!   second meanwhile is left behind ([`HELD_MAX`]): nobody waits for it until it has caught up.

use super::{Partition, host::Host};
use runtime::{
    clock,
    sync::{Notify, race},
};
use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};
use types::RaftIndex;

/// How long slower replicas may hold appends up. So many bytes that are appended give as much time again.
///
/// It is longer than a busy disk takes for most of its syncs. A replica that is left behind costs more than the wait:
/// what it lacks is read from the disk, and for seconds.
const HELD_MAX: Duration = Duration::from_secs(1);
const HELD_FOR_BYTES: u32 = 4 << 20;

/// Entries are counted in pieces of about this size, so that many small ones take little memory.
const PIECE_BYTES: usize = 64 << 10;

/// The waits of one partition's appends.
#[derive(Default)]
pub(super) struct Pacing {
    /// Notified when fewer bytes are uncommitted, when a replica has taken entries, and when this one no longer leads.
    pub(super) freed: Notify,
    ahead: RefCell<Ahead>,
}

/// The entries that some replica lacks, of those that are not left behind.
#[derive(Default)]
struct Ahead {
    /// The index before the first of these entries. Replicas that lack this one are left behind.
    before: RaftIndex,
    /// The last index of each piece, and its bytes.
    pieces: VecDeque<(RaftIndex, usize)>,
    bytes: usize,
    /// How long appends were held up lately.
    held: Duration,
}

enum WaitsFor {
    Commits,
    Replicas,
}

impl Ahead {
    fn push(&mut self, index: RaftIndex, bytes: usize) {
        self.bytes += bytes;
        let credit = HELD_MAX.mul_f64(bytes as f64 / f64::from(HELD_FOR_BYTES));
        self.held = self.held.saturating_sub(credit);
        match self.pieces.back_mut() {
            Some(last) if last.1 < PIECE_BYTES => *last = (index, last.1 + bytes),
            Some(_) => self.pieces.push_back((index, bytes)),
            None => {
                self.before = index.prev();
                self.pieces.push_back((index, bytes));
            }
        }
    }

    /// All replicas that count have everything up to `index`.
    fn all_have(&mut self, index: RaftIndex) {
        self.before = self.before.max(index);
        while let Some((_, bytes)) = self.pieces.pop_front_if(|(last, _)| *last <= index) {
            self.bytes -= bytes;
        }
    }

    /// The index of the last entry.
    fn last(&self) -> RaftIndex {
        self.pieces.back().map_or(self.before, |(last, _)| *last)
    }

    /// Takes what the replicas have. Those that lack what came before do not count.
    fn take(&mut self, matched: &[RaftIndex]) {
        let least = matched.iter().copied().filter(|matched| *matched >= self.before).min();
        self.all_have(least.unwrap_or(self.last()));
    }

    /// Leaves the slowest replica behind that counts.
    fn leave_behind(&mut self, matched: &[RaftIndex]) {
        self.take(matched);
        // The slowest has exactly the entries before.
        let next = matched.iter().copied().filter(|matched| *matched > self.before).min();
        self.all_have(next.unwrap_or(self.last()));
        self.held = Duration::ZERO;
    }

    fn has_room(&self, bytes: usize, max: usize) -> bool {
        self.bytes == 0 || self.bytes + bytes <= max
    }
}

impl Partition {
    /// The most bytes that are not applied. One batch may exceed it.
    pub const ROOM_BYTES: usize = 8 << 20;

    /// Whether an append of so many bytes need not wait. It need not either where it will be rejected.
    pub fn has_room(&self, core: &Rc<impl Host>, bytes: usize) -> bool {
        self.waits_for(core, bytes).is_none()
    }

    /// Waits until the partition takes an append of so many bytes. Only one append of a partition waits here.
    pub async fn room(&self, core: &Rc<impl Host>, bytes: usize) {
        while let Some(waits_for) = self.waits_for(core, bytes) {
            let freed = self.pacing.freed.next();
            if matches!(waits_for, WaitsFor::Commits) {
                freed.await;
                continue;
            }
            let patience = HELD_MAX.saturating_sub(self.pacing.ahead.borrow().held);
            if patience.is_zero() {
                let matched = self.others_have(core);
                self.change_ahead(core, |ahead| ahead.leave_behind(&matched));
                tracing::debug!(partition = %self.name, "a slow replica is left behind");
                continue;
            }
            let since = clock::now();
            race(freed, runtime::sleep(patience)).await;
            self.pacing.ahead.borrow_mut().held += clock::now() - since;
        }
    }

    fn waits_for(&self, core: &Rc<impl Host>, bytes: usize) -> Option<WaitsFor> {
        if !self.leads() {
            return None;
        }
        let unapplied = self.state.borrow().tail_bytes;
        if unapplied > 0 && unapplied + bytes > Self::ROOM_BYTES {
            return Some(WaitsFor::Commits);
        }
        let has_room = || self.pacing.ahead.borrow().has_room(bytes, core.admission().ahead_max());
        if !has_room() {
            let matched = self.others_have(core);
            self.change_ahead(core, |ahead| ahead.take(&matched));
        }
        (!has_room()).then_some(WaitsFor::Replicas)
    }

    fn change_ahead(&self, core: &Rc<impl Host>, change: impl FnOnce(&mut Ahead)) {
        let mut ahead = self.pacing.ahead.borrow_mut();
        let before = ahead.bytes;
        change(&mut ahead);
        core.admission().is_ahead(before > 0, ahead.bytes > 0);
    }

    /// The last index of each other voter that is reachable.
    fn others_have(&self, core: &Rc<impl Host>) -> Vec<RaftIndex> {
        let (progress, me) = self.replica.with(|raft| (raft.progress(), raft.peer()));
        let others = progress.iter().filter(|peer| peer.voter && peer.peer != me && self.is_there(core, peer.peer));
        others.map(|peer| peer.matched).collect()
    }

    /// This leader has appended an entry.
    pub(super) fn count_ahead(&self, core: &Rc<impl Host>, index: RaftIndex, bytes: usize) {
        if self.is_shared() {
            self.change_ahead(core, |ahead| ahead.push(index, bytes));
        }
    }

    /// This replica no longer leads.
    pub(super) fn end_pacing(&self, core: &Rc<impl Host>) {
        self.change_ahead(core, |ahead| *ahead = Ahead::default());
        self.pacing.freed.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Entries 1 to `count`, of 1 MiB each.
    fn ahead(count: u64) -> Ahead {
        let mut ahead = Ahead::default();
        (1..=count).for_each(|index| ahead.push(RaftIndex::new(index), MIB));
        ahead
    }

    #[test]
    fn a_leader_is_ahead_of_the_slowest_replica_that_counts() {
        let mut ahead = ahead(8);
        assert!(!ahead.has_room(1, 8 * MIB));
        ahead.take(&[RaftIndex::new(8), RaftIndex::new(5)]);
        assert_eq!((ahead.bytes, ahead.before), (3 * MIB, RaftIndex::new(5)));
        assert!(ahead.has_room(5 * MIB, 8 * MIB) && !ahead.has_room(1, 3 * MIB));
        // One that lacks what the others have does not count before it has caught up.
        ahead.take(&[RaftIndex::new(8), RaftIndex::new(4)]);
        assert_eq!((ahead.bytes, ahead.before), (0, RaftIndex::new(8)));
        ahead.push(RaftIndex::new(9), MIB);
        ahead.take(&[RaftIndex::new(9), RaftIndex::new(8)]);
        assert_eq!(ahead.bytes, MIB);
        // Nobody is there.
        ahead.take(&[]);
        assert_eq!(ahead.bytes, 0);
    }

    #[test]
    fn a_replica_that_was_left_behind_counts_again_once_it_has_caught_up() {
        let mut ahead = ahead(8);
        ahead.held = HELD_MAX;
        ahead.leave_behind(&[RaftIndex::ZERO, RaftIndex::new(6)]);
        assert_eq!((ahead.bytes, ahead.before, ahead.held), (2 * MIB, RaftIndex::new(6), Duration::ZERO));
        ahead.take(&[RaftIndex::new(3), RaftIndex::new(7)]);
        assert_eq!((ahead.bytes, ahead.before), (MIB, RaftIndex::new(7)));
        ahead.take(&[RaftIndex::new(7), RaftIndex::new(7)]);
        assert_eq!(ahead.bytes, MIB);
        // Both are as slow.
        ahead.leave_behind(&[RaftIndex::new(7), RaftIndex::new(7)]);
        assert_eq!(ahead.bytes, 0);
        // Nobody waits for them while they take nothing.
        for index in 9..=20 {
            ahead.push(RaftIndex::new(index), MIB);
            ahead.take(&[RaftIndex::new(7), RaftIndex::new(7)]);
            assert!(ahead.has_room(8 * MIB, 8 * MIB), "entry {index}");
        }
    }

    #[test]
    fn small_entries_are_counted_in_pieces_and_give_time_by_their_bytes() {
        let mut ahead = Ahead { held: HELD_MAX, ..Ahead::default() };
        (1..=MIB as u64 / 64).for_each(|index| ahead.push(RaftIndex::new(index), 64));
        assert_eq!((ahead.bytes, ahead.pieces.len()), (MIB, MIB / PIECE_BYTES));
        let given = HELD_MAX.mul_f64(MIB as f64 / f64::from(HELD_FOR_BYTES));
        assert!(HELD_MAX.abs_diff(ahead.held + given) < Duration::from_millis(1), "{:?}", ahead.held);
    }
}
