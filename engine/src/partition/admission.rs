//! Admission: appends wait here, before they are proposed, while the ring has only its reserve left.
//! Lives on: every core, one each, before that core's ring.
//!
//! A proposal can't be rejected once it is taken, so the limit acts before it. Partitions take turns, so that one
//! with a hundred megabytes waiting delays no other. Within a partition, the order is first come, first served.
//! Otherwise pipelined batches of one producer would change places. An append that gives up leaves the line,
//! wherever it stands.
//!
//! Other leaders' entries need the same room and never wait: entries that don't fit are dropped, and the leader
//! resends them. They leave the room that the first append in turn needs ([`Admission::claimed`]). Otherwise many
//! small entries would take the room as it is freed, and a large batch would never fit.
//!
//! Bound: the connections admit at most `queued.max.request.bytes` per core, and each append here belongs to such a
//! request.
//! Deadline: the request's timeout.

use crate::core::{
    Store,
    lines::{Lines, Spot},
};
use std::{cell::Cell, rc::Rc};
use types::GroupId;
use wal::store::Admission as Room;

#[derive(Default)]
pub struct Admission {
    lines: Lines<GroupId>,
    /// Bytes of the append whose turn it is, while it waits for room.
    claimed: Rc<Cell<usize>>,
}

/// A place in the partition's line. While it is held, no later append to the partition goes first.
pub struct Turn {
    spot: Spot<GroupId>,
    bytes: usize,
    claimed: Rc<Cell<usize>>,
}

/// Claims room while it lives. There is at most one, since only one append has its turn.
struct Claim<'a>(&'a Cell<usize>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

impl Turn {
    /// Waits until it is this append's turn and the ring has room for it. If the ring has failed, or the entry can
    /// never fit, it is admitted too, and the append then returns the error. The caller appends before it awaits
    /// anything else, and then drops the turn.
    pub async fn come(&mut self, store: &Store) {
        self.spot.turn().await;
        let _claim = Claim(&self.claimed);
        self.claimed.set(self.bytes);
        while store.admit(self.bytes) == Room::Wait {
            store.space_freed().await;
        }
    }
}

impl Admission {
    /// `None`: append now. Otherwise await the turn.
    pub fn enter(&self, store: &Store, group: GroupId, bytes: usize) -> Option<Turn> {
        if self.lines.is_empty() && store.admit(bytes) != Room::Wait {
            return None;
        }
        Some(self.join(group, bytes))
    }

    /// A turn to await, whatever room there is.
    pub fn join(&self, group: GroupId, bytes: usize) -> Turn {
        Turn { spot: self.lines.join(group), bytes, claimed: self.claimed.clone() }
    }

    /// The number of appends that wait.
    pub fn waiting(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of the ring's room to leave for the append whose turn it is. 0: none waits.
    pub fn claimed(&self) -> usize {
        self.claimed.get()
    }
}
