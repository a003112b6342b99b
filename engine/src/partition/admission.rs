//! Admission: appends wait here, before they are proposed, while the ring is down to its reserve.
//! Lives on: every core, one each, before that core's ring.
//!
//! A proposal can't be refused once it is taken, so the limit acts before it. Partitions take turns, so that one with a hundred
//! megabytes that wait holds up no other. In a partition it is first come, first served, or pipelined batches of one producer would
//! change places. An append that gives up leaves the line, wherever it stands.
//!
//! Other leaders' entries need the same room and wait nowhere: what the ring can't take is dropped and comes again. They leave what
//! the first in turn needs ([`Admission::claimed`]), or many small ones would take all room before it is enough for a large batch.
//!
//! Bound: the connections admit at most `queued.max.request.bytes` per core, and each append here belongs to such a request.
//! Deadline: the request's timeout.

use crate::core::{
    Store,
    lines::{Lines, Spot},
};
use std::{cell::Cell, rc::Rc};
use wal::{record::GroupId, store::Admission as Room};

#[derive(Default)]
pub struct Admission {
    lines: Lines<GroupId>,
    /// Bytes of the append whose turn it is, while it waits for room.
    claimed: Rc<Cell<usize>>,
}

/// A place in the partition's line. As long as it is held, no append to the partition that came later goes first.
pub struct Turn {
    spot: Spot<GroupId>,
    bytes: usize,
    claimed: Rc<Cell<usize>>,
}

/// Claims room for as long as it lives. There is one at a time, as one append has its turn.
struct Claim<'a>(&'a Cell<usize>);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.set(0);
    }
}

impl Turn {
    /// Waits until it is this append's turn and the ring has room for it. A ring that has failed, and an entry that never
    /// fits, are admitted: the append then says why it is refused. The caller appends before it awaits anything else, and
    /// then drops the turn.
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
        Some(Turn { spot: self.lines.join(group), bytes, claimed: self.claimed.clone() })
    }

    /// Appends that wait.
    pub fn waiting(&self) -> usize {
        self.lines.len()
    }

    /// Bytes of the ring's room that are to be left for the append whose turn it is. 0: none waits.
    pub fn claimed(&self) -> usize {
        self.claimed.get()
    }
}
