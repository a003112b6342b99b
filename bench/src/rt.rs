//! A signal between two tasks of a load thread, and waiting until a moment of the harness's clock. Everything else
//! comes from the `runtime` crate.

use std::cell::Cell;
use std::time::Duration;

use runtime::sync::Notify;

pub use runtime::{spawn_task as spawn, spawn_thread, timeout, yield_now};

use crate::clock;

/// Waits until this time of the monotonic clock, in nanoseconds.
pub async fn sleep_until(time_ns: u64) {
    let left_ns = time_ns.saturating_sub(clock::now_ns());
    if left_ns > 0 {
        runtime::sleep(Duration::from_nanos(left_ns)).await;
    }
}

/// Wakes the task that waits. If no task waits, the signal is kept for the next wait.
#[derive(Default)]
pub struct Signal {
    given: Cell<bool>,
    changed: Notify,
}

impl Signal {
    pub fn give(&self) {
        self.given.set(true);
        self.changed.notify();
    }

    /// Waits for the signal, at most for `at_most`; `None` waits without a limit.
    pub async fn wait(&self, at_most: Option<Duration>) {
        if self.given.replace(false) {
            return;
        }
        match at_most {
            Some(limit) => _ = timeout(limit, self.changed.next()).await,
            None => self.changed.next().await,
        }
        self.given.set(false);
    }
}
