//! Committed offsets belong to one incarnation of a topic: they count only while the metadata has its id, and go by tombstone once
//! it is deleted.
//!
//! A topic that is deleted and made again is another topic. Three things follow from that:
//! - OffsetFetch leaves out an offset whose topic id is not the one in the metadata. That holds from the first answer on.
//! - A sweep looks for such offsets after a load and after each deletion, and writes their tombstones, a turn at a time.
//! - A member's commit counts only for topics that were there when it was given its assignment ([`Known`]): what it has read
//!   under the same name may be an earlier topic. That partition is answered REBALANCE_IN_PROGRESS, and the group rebalances:
//!   every client then joins again, fetches what is committed, and goes on from there, also one that noticed nothing.

use net::{StrBytes, Uuid, errors::ErrorCode};

use super::{
    Coordinator,
    env::{Now, Output, Then},
    forget::Victim,
    group::State,
    records::CommittedOffset,
};

/// Offsets and topics that one turn of a sweep looks at.
pub const SWEEP_TURN_ENTRIES: usize = 4096;

/// How long after a sweep another one begins that looks at what this one had to leave.
const SWEEP_AGAIN_MS: u64 = 1000;

/// An offset without a topic id belongs to a topic that was made at most so much later by the clock of another broker.
const CLOCKS_APART_MS: i64 = 10_000;

/// The id of an offset that belongs to a topic which is gone. No topic has it.
const GONE: Uuid = Uuid::max();

/// One incarnation of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    pub id: Uuid,
    /// Its place in the order in which the cluster's topics were made: later ones have a higher number.
    pub made: u64,
    /// In ms since the epoch, by the clock of the broker that was asked to create it.
    pub made_ms: i64,
}

/// The topics of the metadata, as the coordinator's core sees them. From call to call it sees no less.
pub trait Topics {
    fn find(&self, name: &str) -> Option<Incarnation>;

    /// No topic that is there was made later.
    fn newest(&self) -> u64;
}

/// Which topics a member knows from its assignment; none before it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Those made up to here.
    newest: u64,
    /// Of a member that was read from the log, which does not have that number: none that were made after this time, in ms since
    /// the epoch.
    until_ms: Option<i64>,
}

impl Known {
    pub(crate) fn up_to(newest: u64) -> Known {
        Known { newest, until_ms: None }
    }

    /// The member is of a generation that began at that time; `None`: nobody knows when.
    pub(crate) fn from_log(newest: u64, began_ms: Option<i64>) -> Known {
        Known { newest, until_ms: Some(began_ms.unwrap_or(i64::MIN)) }
    }

    fn has(self, topic: Incarnation) -> bool {
        topic.made <= self.newest && self.until_ms.is_none_or(|until| topic.made_ms <= until)
    }
}

/// The incarnation that a commit is for. `known`: of a member, which topics it knows.
pub(crate) fn committed_to(topics: &dyn Topics, topic: &str, known: Option<Known>) -> Result<Incarnation, ErrorCode> {
    let found = topics.find(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    match known {
        Some(known) if !known.has(found) => Err(ErrorCode::RebalanceInProgress),
        _ => Ok(found),
    }
}

impl CommittedOffset {
    /// Whether it belongs to this incarnation of its topic.
    pub(crate) fn is_of(&self, topic: Option<Incarnation>) -> bool {
        topic.is_some_and(|topic| topic.id == self.topic_id)
    }

    /// An offset that the log has without a topic id: it belongs to the topic of this name, unless that was made afterwards.
    pub(crate) fn bind(&mut self, topic: Option<Incarnation>) {
        if self.topic_id.is_nil() {
            let of = topic.filter(|topic| self.commit_timestamp.saturating_add(CLOCKS_APART_MS) >= topic.made_ms);
            self.topic_id = of.map_or(GONE, |topic| topic.id);
        }
    }
}

/// A look through all offsets, in turns.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// When the next turn is due, in monotonic ms.
    due: Option<u64>,
    /// The group and topic where it goes on; `None` at the start.
    next: Option<(StrBytes, StrBytes)>,
    /// Something has to be looked at again.
    again: bool,
}

impl Sweep {
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    /// All offsets are to be looked at from now on.
    pub(super) fn begin(&mut self, now: Now) {
        if self.next.is_some() {
            self.again = true;
        } else {
            self.due = Some(now.mono_ms);
        }
    }

    /// All offsets are to be looked at again in a while.
    pub(super) fn begin_later(&mut self, now: Now) {
        if self.due.is_some() {
            self.again = true;
        } else {
            self.due = Some(now.mono_ms + SWEEP_AGAIN_MS);
        }
    }
}

impl<T> Coordinator<T> {
    /// The view has applied a topic's deletion. Its offsets go in the turns that are due from now on.
    pub fn topic_deleted(&mut self, now: Now) -> Vec<Output<T>> {
        // A load ends with a sweep.
        if !self.loading {
            self.sweep.begin(now);
        }
        vec![]
    }

    /// One turn of a sweep, if one is due.
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
            tracing::info!(offsets, groups = victims.len(), "committed offsets go with their topics");
            self.write_tombstones(now, victims, None);
        }
    }

    /// Whether a commit is on its way to the log whose topic is gone by now.
    fn commits_too_late(&self, topics: &dyn Topics) -> bool {
        self.appends.open.values().any(|then| match then {
            Then::Offsets { changes, .. } => {
                changes.iter().any(|change| !change.value.is_of(topics.find(&change.topic)))
            }
            _ => false,
        })
    }

    /// Offsets whose topic is gone, from where the sweep stands; then where it goes on, and whether it had to leave any.
    fn stale_offsets(&self, topics: &dyn Topics) -> (Vec<Victim>, Option<(StrBytes, StrBytes)>, bool) {
        let (first_group, first_topic) = self.sweep.next.clone().unwrap_or_default();
        let (mut victims, mut left, mut looked) = (Vec::new(), false, 0);
        for group in self.groups.range(first_group.clone()..).map(|(_, group)| group) {
            looked += 1;
            let from = if group.id == first_group { first_topic.clone() } else { StrBytes::new() };
            let mut victim = Victim { group: group.id.clone(), offsets: Vec::new(), whole: false };
            let mut next = (looked > SWEEP_TURN_ENTRIES).then(|| from.clone());
            for (topic, partitions) in group.offsets.range(from..) {
                if next.is_none() && looked > SWEEP_TURN_ENTRIES {
                    next = Some(topic.clone());
                }
                if next.is_some() {
                    break;
                }
                looked += 1 + partitions.len();
                let found = topics.find(topic);
                for (partition, _) in partitions.iter().filter(|(_, offset)| !offset.is_of(found)) {
                    let key = (topic.clone(), *partition);
                    // A tombstone behind a commit that is under way would take that one too.
                    if group.uncommitted.contains_key(&key) {
                        left = true;
                    } else {
                        victim.offsets.push(key);
                    }
                }
            }
            // Tombstones of a dead group are on their way.
            if group.state != State::Dead && !victim.offsets.is_empty() {
                victims.push(victim);
            }
            if let Some(topic) = next {
                return (victims, Some((group.id.clone(), topic)), left);
            }
        }
        (victims, None, left)
    }
}
