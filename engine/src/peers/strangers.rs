//! Connections whose other side has not proved who it is: they have little time, small frames and a number of their own, so that they take
//! nothing from brokers and tools.
//! Lives on: the core that listens.

use crate::sync::Flag;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

/// At most so many; then the oldest gives way to the newest. Brokers need milliseconds to prove who they are.
pub(super) const STRANGERS_MAX: usize = 128;

#[derive(Default)]
pub(super) struct Strangers {
    inside: RefCell<VecDeque<Rc<Stranger>>>,
    /// Those that had to give way.
    pub(super) evicted: Cell<u64>,
}

pub(super) struct Stranger {
    pub(super) gives_way: Flag,
}

impl Strangers {
    /// At most `max` of them, and [`STRANGERS_MAX`].
    pub(super) fn enter(&self, max: usize) -> Rc<Stranger> {
        let stranger = Rc::new(Stranger { gives_way: Flag::default() });
        let mut inside = self.inside.borrow_mut();
        if inside.len() >= max.min(STRANGERS_MAX)
            && let Some(oldest) = inside.pop_front()
        {
            oldest.gives_way.set();
            self.evicted.set(self.evicted.get() + 1);
        }
        inside.push_back(stranger.clone());
        stranger
    }

    /// It is one no more: it has gone, or proved who it is.
    pub(super) fn leave(&self, stranger: &Rc<Stranger>) {
        self.inside.borrow_mut().retain(|inside| !Rc::ptr_eq(inside, stranger));
    }
}
