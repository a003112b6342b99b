//! Committed offsets belong to one incarnation of a topic. They count only while the metadata has its topic id, and
//! are removed by tombstones after the topic's deletion.
//!
//! A topic that is deleted and created again is another topic. This has three consequences:
//! - OffsetFetch leaves out an offset whose topic id differs from the one in the metadata. This holds from the first
//!   answer on.
//! - After a load and after each deletion, a sweep looks for such offsets in turns and writes their tombstones.
//! - A member's commit counts only for topics that existed when it got its assignment ([`Known`]). The member may
//!   have read from an earlier topic of the same name. Such a partition is answered REBALANCE_IN_PROGRESS, and the
//!   group rebalances. Every client then joins again and continues from the committed offsets, even if it noticed
//!   nothing.

use net::{StrBytes, Uuid, errors::ErrorCode};

use super::{
    Coordinator,
    env::{Now, Output, Then},
    forget::{SearchSpot, SearchTurn, Victim, tombstone_bytes},
    group::{Group, State},
    records::CommittedOffset,
};

/// How long after a sweep the next one starts, if the sweep had to skip offsets.
const SWEEP_AGAIN_MS: u64 = 1000;

/// Tolerated difference between the clocks of two brokers. An offset without a topic id is bound to a topic that was
/// created at most this long after the commit.
const CLOCKS_APART_MS: i64 = 10_000;

/// Marks an offset whose topic is gone. No topic has this id.
const GONE: Uuid = Uuid::max();

/// One incarnation of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    pub id: Uuid,
    /// The topic's place in the order of creation in the cluster. Later topics have higher numbers.
    pub made: u64,
    /// When it was created, in ms since the epoch, by the clock of the broker that received the request.
    pub made_ms: i64,
}

/// The topics in the metadata, as the coordinator's core sees them. A later call never sees an older state.
pub trait Topics {
    fn find(&self, name: &str) -> Option<Incarnation>;

    /// No existing topic has a [`Incarnation::made`] above this.
    fn newest(&self) -> u64;
}

/// The topics that a member knows from its assignment; none before it has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// It knows topics with [`Incarnation::made`] up to this number.
    newest: u64,
    /// Set for a member loaded from the log, which does not store `newest`. The member knows no topic created after
    /// this time, in ms since the epoch.
    until_ms: Option<i64>,
}

impl Known {
    pub(crate) fn up_to(newest: u64) -> Known {
        Known { newest, until_ms: None }
    }

    /// The member's generation began at `began_ms`; `None`: the time is unknown, so it knows no topic.
    pub(crate) fn from_log(newest: u64, began_ms: Option<i64>) -> Known {
        Known { newest, until_ms: Some(began_ms.unwrap_or(i64::MIN)) }
    }

    fn has(self, topic: Incarnation) -> bool {
        topic.made <= self.newest && self.until_ms.is_none_or(|until| topic.made_ms <= until)
    }
}

/// The incarnation that a commit is for. `known`: the topics that the committing member knows; `None` if no member
/// commits.
pub(crate) fn committed_to(topics: &dyn Topics, topic: &str, known: Option<Known>) -> Result<Incarnation, ErrorCode> {
    let found = topics.find(topic).ok_or(ErrorCode::UnknownTopicOrPartition)?;
    match known {
        Some(known) if !known.has(found) => Err(ErrorCode::RebalanceInProgress),
        _ => Ok(found),
    }
}

impl CommittedOffset {
    /// Whether the offset belongs to this incarnation of its topic.
    pub(crate) fn is_of(&self, topic: Option<Incarnation>) -> bool {
        topic.is_some_and(|topic| topic.id == self.topic_id)
    }

    /// Binds an offset that the log has without a topic id. It belongs to the present topic of its name, unless that
    /// was created after the commit.
    pub(crate) fn bind(&mut self, topic: Option<Incarnation>) {
        if self.topic_id.is_nil() {
            let of = topic.filter(|topic| self.commit_timestamp.saturating_add(CLOCKS_APART_MS) >= topic.made_ms);
            self.topic_id = of.map_or(GONE, |topic| topic.id);
        }
    }
}

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
