//! Removes the offsets of deleted topics: a sweep looks for them in turns, and writes their tombstones.
//! [`super::incarnation`] says why.

use net::StrBytes;

use super::{
    Coordinator,
    env::{Now, Output, Then},
    forget::{SearchSpot, SearchTurn, Victim, tombstone_bytes},
    group::{Group, State},
    incarnation::Topics,
};

/// How long after a sweep the next one starts, if the sweep had to skip offsets.
const SWEEP_AGAIN_MS: u64 = 1000;

/// A walk through all offsets, in turns.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// When the next turn is due, in monotonic ms.
    due: Option<u64>,
    /// Where the next turn continues; `None` at the start.
    next: Option<SearchSpot>,
    /// Another sweep must follow this one.
    again: bool,
}

impl Sweep {
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    /// Starts a sweep now, or after the present one.
    pub(super) fn begin(&mut self, now: Now) {
        if self.next.is_some() {
            self.again = true;
        } else {
            self.due = Some(now.mono_ms);
        }
    }

    /// Starts a sweep after a pause, or after the present one.
    pub(super) fn begin_later(&mut self, now: Now) {
        if self.due.is_some() {
            self.again = true;
        } else {
            self.due = Some(now.mono_ms + SWEEP_AGAIN_MS);
        }
    }
}

impl<T> Coordinator<T> {
    /// The view has applied a topic's deletion. The sweep turns that are due from now on remove its offsets.
    pub fn topic_deleted(&mut self, now: Now) -> Vec<Output<T>> {
        // A load ends with a sweep anyway.
        if !self.loading {
            self.sweep.begin(now);
        }
        vec![]
    }

    /// Runs one turn of the sweep, if one is due.
    pub(super) fn sweep_turn(&mut self, now: Now, topics: &dyn Topics) {
        if self.sweep.due.is_none_or(|due| due > now.mono_ms) {
            return;
        }
        let (victims, next, left) = self.stale_offsets(topics);
        self.sweep.again |= left || (next.is_none() && self.commits_too_late(topics));
        self.sweep.due = match &next {
            Some(_) => Some(now.mono_ms + 1),
            None => std::mem::take(&mut self.sweep.again).then_some(now.mono_ms + SWEEP_AGAIN_MS),
        };
        self.sweep.next = next;
        if !victims.is_empty() {
            let offsets: usize = victims.iter().map(|victim| victim.offsets.len()).sum();
            tracing::info!(offsets, groups = victims.len(), "removed committed offsets of deleted topics");
            self.write_tombstones(now, victims, None);
        }
    }

    /// Whether the topic of a commit in flight is gone by now.
    fn commits_too_late(&self, topics: &dyn Topics) -> bool {
        self.appends.open.values().any(|then| match then {
            Then::Offsets { changes, .. } => {
                changes.iter().any(|change| !change.value.is_of(topics.find(&change.topic)))
            }
            _ => false,
        })
    }

    /// One turn of a search for offsets whose topic is gone. Returns them, the next position, and whether any had to
    /// be skipped.
    fn stale_offsets(&self, topics: &dyn Topics) -> (Vec<Victim>, Option<SearchSpot>, bool) {
        let first = self.sweep.next.clone().unwrap_or_default();
        let (mut victims, mut left, mut turn) = (Vec::new(), false, SearchTurn::default());
        for (id, group) in self.groups.range(first.group.clone()..) {
            if turn.is_over() {
                return (victims, Some(SearchSpot::new(id, None)), left);
            }
            turn.look(1);
            let stale = group.stale_offsets(topics, first.within(id), &mut turn);
            left |= stale.left;
            // A dead group's tombstones are being written.
            if group.state != State::Dead && !stale.offsets.is_empty() {
                victims.push(Victim { group: group.id.clone(), offsets: stale.offsets, whole: false });
            }
            if stale.next.is_some() {
                return (victims, Some(SearchSpot::new(id, stale.next)), left);
            }
        }
        (victims, None, left)
    }
}

/// Offsets of one group whose topic is gone.
#[derive(Default)]
struct Stale {
    offsets: Vec<(StrBytes, i32)>,
    /// Where the turn ended within the group.
    next: Option<(StrBytes, i32)>,
    /// Some were skipped.
    left: bool,
}

impl<T> Group<T> {
    fn stale_offsets(&self, topics: &dyn Topics, from: Option<&(StrBytes, i32)>, turn: &mut SearchTurn) -> Stale {
        let mut stale = Stale::default();
        let mut topic_and_found = None;
        for (topic, partition, offset) in self.offsets_from(from) {
            if turn.is_over() {
                stale.next = Some((topic.clone(), partition));
                break;
            }
            turn.look(1);
            let found = match topic_and_found {
                Some((known, found)) if known == topic => found,
                _ => topics.find(topic),
            };
            topic_and_found = Some((topic, found));
            if offset.is_of(found) {
                continue;
            }
            let key = (topic.clone(), partition);
            // A tombstone after a commit in flight would remove that commit, too.
            if self.uncommitted.contains_key(&key) {
                stale.left = true;
            } else {
                turn.write(tombstone_bytes(&self.id, topic));
                stale.offsets.push(key);
            }
        }
        stale
    }
}
