//! Entries that a checkpoint carries itself: those of the snapshot group that no snapshot covers, and the last few of
//! other groups.
//! Lives on: the owning core only. This module selects the entries; `checkpoint::kept` encodes them.
//!
//! Without this, a flush that finds a few records in each of many groups would write and sync a block in each file.
//! The next flush would do the same again. So if a group has few new bytes ([`GROUP_BYTES`]), the checkpoint carries
//! them. The file is written when there is more, or when it is the group's turn.
//!
//! In each round, one in [`ROUNDS`] of the carried groups is flushed, the longest carried first. Nothing is then
//! written into checkpoints for ever, and no round has all the files to write. More groups are flushed while the
//! total exceeds [`StoreConfig::carried_bytes`](crate::store::StoreConfig::carried_bytes). A group that has no batch
//! yet, or whose log ends with a few entries without one, needs no file for them at all.
//!
//! A snapshot holds only decided entries. Without a quorum nothing is decided, and undecided entries would hold the
//! ring until hard states had filled it. No node could then store what would decide them. So every checkpoint carries
//! these entries, up to [`StoreConfig::kept_bytes`](crate::store::StoreConfig::kept_bytes), and the ring need not
//! keep them.
//!
//! Invariants: the kept entries follow the snapshot, or the last segment, without gaps, and their records end at or
//! below the position where replay begins. Once a checkpoint carries an entry, every later one does until the entry
//! is truncated or flushed, since the ring may no longer have it. A flush writes files only for groups with carried
//! batches or records in the ring. Recovery thus knows where an unfinished flush may have left a file.

use crate::{
    log::Log,
    record::{Entry, Held, LogPos},
    store::state::State,
};
use bytes::Bytes;
use types::{GroupId, RaftIndex};

/// The most bytes that are carried of a group's entries without a batch, as long as no batch follows.
const BARE_BYTES: u64 = 1 << 10;

/// The most bytes that are carried of a group's entries with batches. Writing them once more costs less than a write
/// and a sync of a file.
pub(crate) const GROUP_BYTES: u64 = 32 << 10;

/// Each round flushes one in this many of the groups whose batches are carried.
const ROUNDS: usize = 16;

/// Bytes that an entry takes besides its data and its batch.
const ENTRY_BYTES: usize = 12 * 8;

fn encoded_len(entry: &Entry) -> usize {
    ENTRY_BYTES + entry.data.len() + entry.payload.as_ref().map_or(0, |(_, batch)| batch.len())
}

/// The size of these entries in a checkpoint, and whether there is a batch among them.
fn encoded<'a>(entries: impl Iterator<Item = &'a Held>) -> (u64, bool) {
    entries.fold((0, false), |(bytes, batches), held| {
        (bytes + encoded_len(&held.entry) as u64, batches || held.entry.payload.is_some())
    })
}

impl Log {
    /// The entries that every checkpoint carries.
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Held> + Clone {
        self.unflushed().take_while(|held| held.entry.index <= self.kept_index)
    }

    /// Makes every checkpoint from the one at `durable` on carry the durable entries that fit `bytes_max`.
    pub(crate) fn keep_by_snapshot(&mut self, durable: LogPos, bytes_max: usize) {
        let (mut bytes, carried) = (0, self.kept_index);
        let fits = |held: &&Held| {
            bytes += encoded_len(&held.entry);
            // An entry that was carried once stays carried, whatever the bound is now.
            held.entry.index <= carried || held.end <= durable && bytes <= bytes_max
        };
        if let Some(last) = self.unflushed().take_while(fits).last() {
            assert!(carried <= last.entry.index, "group {}: kept entries are in the log", self.id.0);
            self.kept_index = last.entry.index;
        }
    }

    /// Makes every checkpoint from the next on carry the entries up to `index`. They may stay for long and must not
    /// pin the memory of their neighbours. So they move together into one piece of memory of their own.
    fn keep_to(&mut self, index: RaftIndex) {
        let (first, kept) = (self.first_unflushed(), self.kept_index);
        let is_new = |held: &Held| (kept.next()..=index).contains(&held.entry.index);
        let new = self.held.range(first..).filter(|held| is_new(held));
        let mut own = Vec::with_capacity(new.clone().map(|held| encoded_len(&held.entry) - ENTRY_BYTES).sum());
        for Held { entry, .. } in new {
            own.extend_from_slice(&entry.data);
            own.extend_from_slice(entry.payload.as_ref().map_or(&[], |(_, batch)| batch));
        }
        let mut own = Bytes::from(own);
        for Held { entry, .. } in self.held.range_mut(first..).filter(|held| is_new(held)) {
            entry.data = own.split_to(entry.data.len());
            if let Some((_, batch)) = &mut entry.payload {
                *batch = own.split_to(batch.len());
            }
        }
        self.kept_index = kept.max(index);
    }

    /// Evicts flushed entries that checkpoints carried, unless the cache, whose oldest entry is `oldest`, still
    /// counts them.
    pub(crate) fn let_go_of_kept(&mut self, oldest: Option<LogPos>) {
        let needless = self.kept_index.min(self.flushed.index);
        let uncounted = |held: &mut Held| held.entry.index <= needless && oldest.is_none_or(|oldest| held.end < oldest);
        while self.held.pop_front_if(uncounted).is_some() {}
    }
}

impl State {
    /// Decides whether the next checkpoint carries a group's entries up to `cut` instead of flushing them, and if so,
    /// marks them as carried. Entries with batches must fit `bytes_max` and [`GROUP_BYTES`], and the batches of all
    /// groups together must fit `room`.
    pub(crate) fn should_carry(&mut self, group: GroupId, cut: LogPos, bytes_max: u64, room: u64) -> bool {
        let Some(log) = self.groups.get_mut(&group).filter(|log| !log.by_snapshot) else { return false };
        let (mut bytes, mut batches, mut last) = (0, false, None);
        for held in log.unflushed().take_while(|held| held.end <= cut) {
            bytes += encoded_len(&held.entry) as u64;
            batches |= held.entry.payload.is_some();
            last = Some(held.entry.index);
            let most = if batches { bytes_max.min(GROUP_BYTES) } else { BARE_BYTES };
            if bytes > most || batches && log.flush_wanted {
                return false;
            }
        }
        let Some(last) = last.filter(|_| log.pending_cut.is_none()) else { return false };
        if batches && self.carried_bytes - log.carried_bytes + bytes > room {
            return false;
        }
        log.keep_to(last);
        if batches {
            self.count_carried(group, bytes);
        }
        true
    }

    /// Lists a group among those whose batches checkpoints carry, with `bytes` of it.
    fn count_carried(&mut self, group: GroupId, bytes: u64) {
        let Some(log) = self.groups.get_mut(&group) else { return };
        self.carried_bytes = self.carried_bytes - log.carried_bytes + bytes;
        log.carried_bytes = bytes;
        if !std::mem::replace(&mut log.carries, true) {
            self.carriers.push_back(group);
        }
    }

    /// Removes the group's bytes from the total, since it is no longer carried or will be counted again. Returns
    /// them.
    pub(crate) fn uncount_carried(&mut self, group: GroupId) -> u64 {
        let log = self.groups.get_mut(&group);
        let bytes = log.map_or(0, |log| std::mem::take(&mut log.carried_bytes));
        self.carried_bytes -= bytes;
        bytes
    }

    /// How many of the groups whose batches are carried now are due for a flush in this round.
    pub(crate) fn turns(&self) -> usize {
        self.carriers.len() / ROUNDS
    }

    /// The groups to be flushed now: the first `turns` that are listed, and more while the total exceeds `bytes_max`.
    pub(crate) fn carried_enough(&mut self, mut turns: usize, bytes_max: u64) -> Vec<GroupId> {
        let mut due = Vec::new();
        while turns > 0 || self.carried_bytes > bytes_max {
            let group = self.carriers.pop_front().expect("what is carried is listed");
            turns = turns.saturating_sub(1);
            if let Some(log) = self.groups.get_mut(&group) {
                log.carries = false;
            }
            // Otherwise the group was flushed or removed before its turn.
            if self.uncount_carried(group) > 0 {
                due.push(group);
            }
        }
        due
    }

    /// Counts what is carried by the checkpoint from which the store was opened.
    pub(crate) fn recount_carried(&mut self) {
        let all = self.groups.values().filter(|log| !log.by_snapshot).map(|log| (log.id, encoded(log.kept())));
        let all: Vec<_> = all.filter(|(_, (_, batches))| *batches).collect();
        for (group, (bytes, _)) in all {
            self.count_carried(group, bytes);
        }
    }
}
