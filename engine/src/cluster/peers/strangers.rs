//! Connections that have not proved their identity yet. They get little time, small frames and a limit of their own,
//! so that they take nothing from brokers and tools. Lives on: the core that listens.

use runtime::{
    clock,
    sync::{Flag, Notify, race},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

/// Most such connections. When full, the next one waits until one has gone, or until the oldest has had its time and
/// is evicted.
pub(super) const STRANGERS_MAX: usize = 256;
/// Minimum time that each connection gets, however many arrive. Brokers need milliseconds for the handshake.
const TIME_MIN: Duration = Duration::from_millis(100);

pub(super) struct Strangers {
    /// [`STRANGERS_MAX`], or half as many as brokers may have connections, if that is less.
    pub(super) max: Cell<usize>,
    inside: RefCell<VecDeque<Rc<Stranger>>>,
    /// Notified when a connection has gone.
    gone: Notify,
    /// Number of connections evicted.
    pub(super) evicted: Cell<u64>,
}

pub(super) struct Stranger {
    came_at: Duration,
    pub(super) gives_way: Flag,
}

impl Default for Strangers {
    fn default() -> Self {
        Self {
            max: Cell::new(STRANGERS_MAX),
            inside: RefCell::default(),
            gone: Notify::default(),
            evicted: Cell::default(),
        }
    }
}

impl Strangers {
    /// Waits until another connection may enter.
    pub(super) async fn has_room(&self) {
        loop {
            let seen = self.gone.version();
            let oldest = self.inside.borrow().front().filter(|_| self.inside.borrow().len() >= self.max.get()).cloned();
            let left = oldest.map(|oldest| (oldest.came_at + TIME_MIN).saturating_sub(clock::now()));
            let Some(left) = left.filter(|left| !left.is_zero()) else { return };
            race(self.gone.past(seen), runtime::sleep(left)).await;
        }
    }

    pub(super) fn enter(&self) -> Rc<Stranger> {
        let stranger = Rc::new(Stranger { came_at: clock::now(), gives_way: Flag::default() });
        let mut inside = self.inside.borrow_mut();
        if inside.len() >= self.max.get()
            && let Some(oldest) = inside.pop_front()
        {
            oldest.gives_way.set();
            self.evicted.set(self.evicted.get() + 1);
        }
        inside.push_back(stranger.clone());
        stranger
    }

    /// The connection has ended or has proved its identity.
    pub(super) fn leave(&self, stranger: &Rc<Stranger>) {
        self.inside.borrow_mut().retain(|inside| !Rc::ptr_eq(inside, stranger));
        self.gone.notify();
    }
}
