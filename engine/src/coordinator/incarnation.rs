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

use super::records::CommittedOffset;
use net::{Uuid, errors::ErrorCode};

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
