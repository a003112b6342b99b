//! The runtime of the harness: one executor per load thread, timers, and a signal between two tasks of a thread. Only
//! this file uses the glommio crate directly.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Poll, Waker};
use std::time::Duration;

use glommio::timer::Timer;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement, PoolPlacement};

use crate::clock;

/// Registered I/O memory per thread, in bytes. It is small: locked memory is scarce by default, and the sockets here
/// need none.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// A load thread.
pub struct LoadThread<T: Send + 'static>(ExecutorJoinHandle<T>);

impl<T: Send + 'static> LoadThread<T> {
    /// Waits for the thread's future to end.
    pub fn join(self) -> io::Result<T> {
        self.0.join().map_err(|e| io::Error::other(e.to_string()))
    }
}

/// Starts a thread with an executor, pinned to `cpu` if one is given. Runs the future that `main` creates there.
pub fn spawn_thread<F, T>(
    name: &str,
    cpu: Option<usize>,
    main: impl FnOnce() -> F + Send + 'static,
) -> io::Result<LoadThread<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .name(name)
        .io_memory(IO_MEMORY_BYTES)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .spawn(main)
        .map(LoadThread)
        .map_err(|e| io::Error::other(format!("cannot start a load thread: {e}")))
}

/// A task of this thread whose result is awaited later.
pub struct Task<T>(glommio::Task<T>);

pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> Task<T> {
    Task(glommio::spawn_local(future))
}

impl<T> Task<T> {
    pub async fn join(self) -> T {
        self.0.await
    }
}

/// Lets other tasks of this thread run.
pub async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// Waits until this time of the monotonic clock, in nanoseconds.
pub async fn sleep_until(time_ns: u64) {
    let left_ns = time_ns.saturating_sub(clock::now_ns());
    if left_ns > 0 {
        Timer::new(Duration::from_nanos(left_ns)).await;
    }
}

/// Awaits a future for at most `limit`. Drops it and returns `None` if it has not finished by then.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut timer = Timer::new(limit);
    poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        Pin::new(&mut timer).poll(context).map(|_| None)
    })
    .await
}

/// Wakes the one task that waits. If no task waits, the signal is kept for the next wait.
#[derive(Debug, Default)]
pub struct Signal {
    given: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    pub fn give(&self) {
        self.given.set(true);
        if let Some(waker) = self.waiter.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for the signal, at most for `at_most`; `None` waits without a limit.
    pub async fn wait(&self, at_most: Option<Duration>) {
        let mut timer = at_most.map(Timer::new);
        poll_fn(|context| {
            if self.given.replace(false) {
                return Poll::Ready(());
            }
            if let Some(timer) = timer.as_mut()
                && Pin::new(timer).poll(context).is_ready()
            {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
