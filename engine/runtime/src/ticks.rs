//! Ticks: a thread that wakes each executor of this process every [`TICK`].
//!
//! glommio 0.12 may go to sleep although a task is ready. If the thread loses its CPU for a whole turn right before the
//! first task, `LocalExecutor::run_task_queues` runs none, and returns what it returns when none is ready. Only the
//! next event wakes the executor then. While a store opens or closes, none may come.
//!
//! A tick is a wake from another thread. glommio counts it as an event even if the task that it wakes is already ready.
//! So it ends such a sleep, however many tasks were overlooked before. A timer would not do: it wakes a task once, and
//! the task has to run before it can set the next one.

use std::{
    future::{Future, poll_fn},
    io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    task::{Poll, Waker},
    thread,
    time::Duration,
};

/// Time between two ticks. A ready task waits no longer for an executor that has overlooked it.
const TICK: Duration = Duration::from_millis(20);

static CLOCK: Mutex<Clock> = Mutex::new(Clock { executors: Vec::new(), ticks: false });

struct Clock {
    executors: Vec<Weak<Executor>>,
    /// The thread runs. It ends when no executor is left.
    ticks: bool,
}

/// The waker of a task that does nothing.
type Executor = OnceLock<Waker>;

/// Ticks for one executor, until this is dropped.
pub struct Ticks(Arc<Executor>);

impl Ticks {
    /// Starts the thread, if it does not run. The thread may use the CPUs that the caller may use, so the caller must
    /// not be pinned to one.
    pub fn begin() -> io::Result<Self> {
        let executor = Arc::new(Executor::new());
        let mut clock = clock();
        if !clock.ticks {
            thread::Builder::new().name("ticks".to_owned()).spawn(tick_while_needed)?;
            clock.ticks = true;
        }
        clock.executors.push(Arc::downgrade(&executor));
        Ok(Self(executor))
    }

    /// The task that ticks wake. It must be polled once before the executor runs.
    pub fn awaken(&self) -> impl Future<Output = ()> + use<> {
        let executor = Arc::downgrade(&self.0);
        poll_fn(move |context| {
            if let Some(executor) = executor.upgrade() {
                executor.get_or_init(|| context.waker().clone());
            }
            Poll::Pending
        })
    }
}

fn tick_while_needed() {
    loop {
        thread::sleep(TICK);
        let mut clock = clock();
        clock.executors.retain(|executor| executor.strong_count() > 0);
        if clock.executors.is_empty() {
            clock.ticks = false;
            return;
        }
        for executor in clock.executors.iter().filter_map(Weak::upgrade) {
            executor.get().inspect(|waker| waker.wake_by_ref());
        }
    }
}

fn clock() -> MutexGuard<'static, Clock> {
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}
