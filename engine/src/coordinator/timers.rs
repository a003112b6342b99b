//! The deadlines of one coordinator, in order.

use std::collections::BTreeMap;

use net::StrBytes;

/// The kinds of deadlines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A member, or an issued member id, was silent for its session timeout.
    Session { group: StrBytes, member: StrBytes },
    /// The initial rebalance delay of a group is over. It starts again if members joined meanwhile and time remains.
    InitialJoin { group: StrBytes, delay_ms: u64, remaining_ms: u64 },
    /// The rebalance timeout for members to join again is over.
    Join { group: StrBytes },
    /// The rebalance timeout for members to send SyncGroup is over.
    Sync { group: StrBytes },
    /// Time to look for expired offsets.
    Expiry,
}

/// A scheduled deadline: its time in ms, and a number that distinguishes equal times.
pub(crate) type Slot = Option<(u64, u64)>;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<(u64, u64), Timer>,
    next: u64,
}

impl Timers {
    /// Schedules a timer for the slot and cancels the slot's earlier one.
    pub(crate) fn schedule(&mut self, slot: &mut Slot, at_ms: u64, timer: Timer) {
        self.cancel(slot);
        self.next += 1;
        let key = (at_ms, self.next);
        self.queue.insert(key, timer);
        *slot = Some(key);
    }

    pub(crate) fn cancel(&mut self, slot: &mut Slot) {
        if let Some(key) = slot.take() {
            self.queue.remove(&key);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.queue.first_key_value().map(|(key, _)| key.0)
    }

    /// Removes and returns the first timer that is due. The caller must reschedule or cancel its slot, which still
    /// names it.
    pub(crate) fn pop_due(&mut self, now_ms: u64) -> Option<Timer> {
        let first = self.queue.first_entry()?;
        (first.key().0 <= now_ms).then(|| first.remove())
    }

    pub(crate) fn is_set(&self, slot: &Slot) -> bool {
        slot.is_some_and(|key| self.queue.contains_key(&key))
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn pop_first(&mut self) {
        self.queue.pop_first();
    }
}
