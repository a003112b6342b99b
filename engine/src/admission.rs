//! Admission: appends wait here, before they are proposed, while the ring is down to its reserve.
//! Lives on: every core, one each, before that core's ring.
//!
//! A proposal can't be refused once it is taken, so the limit acts before it. First come, first served: while anybody waits,
//! nobody passes, or pipelined batches of one producer would change places.
//!
//! Bound: what waits here is bounded by what the connections admit (`queued.max.request.bytes` per core).

use crate::{
    core::{Core, Store},
    sync::{Flag, Notify},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};
use wal::store::Admission as Room;

struct Waiter {
    bytes: usize,
    admitted: Rc<Flag>,
}

#[derive(Default)]
pub struct Admission {
    queue: RefCell<VecDeque<Waiter>>,
    /// Those in the queue, and the one that was admitted and has not begun.
    waiting: Rc<Cell<usize>>,
    changed: Rc<Notify>,
}

/// A place in the queue. As long as it is held, nobody who came later goes first.
pub struct Turn {
    admitted: Rc<Flag>,
    _leave: Leave,
}

impl Turn {
    /// Waits for this turn to come. The caller appends before it awaits anything else, then drops the turn.
    pub async fn come(&self) {
        self.admitted.wait().await;
    }
}

struct Leave {
    waiting: Rc<Cell<usize>>,
    changed: Rc<Notify>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.waiting.set(self.waiting.get() - 1);
        self.changed.notify();
    }
}

impl Admission {
    /// `None`: append now. Otherwise await the turn.
    pub fn enter(&self, store: &Store, bytes: usize) -> Option<Turn> {
        if self.waiting.get() == 0 && store.admit(bytes) == Room::Ok {
            return None;
        }
        let admitted = Rc::new(Flag::default());
        self.queue.borrow_mut().push_back(Waiter { bytes, admitted: admitted.clone() });
        self.waiting.set(self.waiting.get() + 1);
        self.changed.notify();
        let leave = Leave { waiting: self.waiting.clone(), changed: self.changed.clone() };
        Some(Turn { admitted, _leave: leave })
    }
}

/// Admits those who wait, one after the other, as the ring gives back space.
pub async fn run(core: Rc<Core>) {
    let admission = &core.admission;
    loop {
        let seen = admission.changed.version();
        let front = admission.queue.borrow().front().map(|waiter| waiter.bytes);
        let Some(bytes) = front else {
            admission.changed.past(seen).await;
            continue;
        };
        // `space_freed` only ends when the ring moves on; a ring that has failed admits all, to be refused where they append.
        while core.store.poisoned().is_none() && core.store.admit(bytes) == Room::Wait {
            core.store.space_freed().await;
        }
        if let Some(waiter) = admission.queue.borrow_mut().pop_front() {
            waiter.admitted.set();
        }
        // The next one's turn comes when this one has appended, or had given up.
        loop {
            let seen = admission.changed.version();
            if admission.waiting.get() == admission.queue.borrow().len() {
                break;
            }
            admission.changed.past(seen).await;
        }
    }
}
