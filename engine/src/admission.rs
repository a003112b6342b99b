//! Admission: appends wait here, before they are proposed, while the ring is down to its reserve.
//! Lives on: every core, one each, before that core's ring.
//!
//! A proposal can't be refused once it is taken, so the limit acts before it. Partitions take turns, so that one with a hundred
//! megabytes that wait holds up no other. In a partition it is first come, first served, or pipelined batches of one producer would
//! change places. An append that gives up leaves the line, wherever it stands.
//!
//! Bound: the connections admit at most `queued.max.request.bytes` per core, and each append here belongs to such a request.
//! Deadline: the request's timeout.

use crate::{
    core::Store,
    lines::{Lines, Spot},
};
use wal::{record::GroupId, store::Admission as Room};

#[derive(Default)]
pub struct Admission(Lines<GroupId>);

/// A place in the partition's line. As long as it is held, no append to the partition that came later goes first.
pub struct Turn {
    spot: Spot<GroupId>,
    bytes: usize,
}

impl Turn {
    /// Waits until it is this append's turn and the ring has room for it. A ring that has failed, and an entry that never
    /// fits, are admitted: the append then says why it is refused. The caller appends before it awaits anything else, and
    /// then drops the turn.
    pub async fn come(&mut self, store: &Store) {
        self.spot.turn().await;
        while store.admit(self.bytes) == Room::Wait {
            store.space_freed().await;
        }
    }
}

impl Admission {
    /// `None`: append now. Otherwise await the turn.
    pub fn enter(&self, store: &Store, group: GroupId, bytes: usize) -> Option<Turn> {
        if self.0.is_empty() && store.admit(bytes) != Room::Wait {
            return None;
        }
        Some(Turn { spot: self.0.join(group), bytes })
    }

    /// Appends that wait.
    pub fn waiting(&self) -> usize {
        self.0.len()
    }
}
