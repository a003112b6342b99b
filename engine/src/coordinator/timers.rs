//! Deadlines of one coordinator, in order.

use std::collections::BTreeMap;

use net::StrBytes;

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A member, or a member id that was given out, was silent for its session timeout.
    Session { group: StrBytes, member: StrBytes },
    /// A new group waited for members; it waits once more if some came and time remains.
    InitialJoin { group: StrBytes, delay_ms: u64, remaining_ms: u64 },
    /// Members had their rebalance timeout to join again.
    Join { group: StrBytes },
    /// Members had their rebalance timeout to ask for their assignment.
    Sync { group: StrBytes },
    /// Time to look for expired offsets.
    Expiry,
}

/// A deadline's place: when, and a number that tells equal ones apart.
pub(crate) type Slot = Option<(u64, u64)>;

#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeMap<(u64, u64), Timer>,
    next: u64,
}

impl Timers {
    /// Sets the slot's timer, in place of the one that it had.
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

    /// The first timer that is due. Its slot still names it and is to be scheduled anew or cancelled.
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

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }
}
