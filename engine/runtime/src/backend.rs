//! The seam to a simulation, which runs many cores in one thread and in virtual time.
//!
//! A simulation installs a [`Backend`] on its thread. From then on, tasks, timers, queues, clocks and random ids of
//! that thread come from it. A broker's threads have none, which costs them one look at a thread-local variable.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

/// A task without a result.
pub type LocalTask = Pin<Box<dyn Future<Output = ()>>>;
/// A value on its way from one simulated core to another.
pub type Moving = Box<dyn Any + Send>;
/// Something that ends later, on the same core.
pub type Later<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Takes the place of the machine.
pub trait Backend {
    /// The time of [`crate::clock::now`]; [`crate::clock::wall_ms`] follows it.
    fn now(&self) -> Duration;
    fn spawn(&self, task: LocalTask);
    /// Both ends of a queue for so many values.
    fn queue(&self, capacity: usize) -> (Box<dyn QueueEnd>, Box<dyn QueueEnd>);
}

/// One end of a simulated queue. The methods are those of [`crate::Sender`] and [`crate::Receiver`].
pub trait QueueEnd: Send {
    /// Resolves once both ends have connected.
    fn connected(&self) -> Later<'_, ()>;
    /// Returns the value if the queue is full. `None`: it was sent, or the other end is gone.
    fn try_send(&self, value: Moving) -> Option<Moving>;
    /// Waits for room. `false`: the other end is gone.
    fn send(&self, value: Moving) -> Later<'_, bool>;
    /// `None`: the other end is gone, and everything that it sent has been received.
    fn receive(&self) -> Later<'_, Option<Moving>>;
}

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
    static BACKEND: RefCell<Option<Rc<dyn Backend>>> = const { RefCell::new(None) };
}

/// From now on this thread is simulated, or with `None` no longer.
pub fn install(backend: Option<Rc<dyn Backend>>) {
    IS_SIMULATED.set(backend.is_some());
    let before = BACKEND.replace(backend);
    drop(before);
}

/// Whether a simulation runs on this thread.
#[inline]
pub fn is_simulated() -> bool {
    IS_SIMULATED.get()
}

/// Asks the simulation of this thread, if one runs.
#[inline]
pub(crate) fn simulated<R>(ask: impl FnOnce(&dyn Backend) -> R) -> Option<R> {
    if is_simulated() { ask_backend(ask) } else { None }
}

#[cold]
fn ask_backend<R>(ask: impl FnOnce(&dyn Backend) -> R) -> Option<R> {
    let backend = BACKEND.with_borrow(Clone::clone)?;
    Some(ask(&*backend))
}
