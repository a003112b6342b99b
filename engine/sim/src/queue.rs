//! Queues between the cores of one simulated broker: bounded, first in first out, and late.
//!
//! A message takes some microseconds, now and then some milliseconds, as if the receiving core were busy.

use super::exec;
use runtime::{
    backend::{Later, Moving, QueueEnd},
    clock,
};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};
use types::planted;

/// How late a message usually is at most, and how late it seldom is.
const USUAL: Duration = Duration::from_micros(30);
const SELDOM: Duration = Duration::from_millis(20);
const SELDOM_SHARE: f64 = 0.01;
/// Shares of messages that a planted bug affects.
const LOST: f64 = 0.002;
const SWAPPED: f64 = 0.2;

struct State {
    /// Each with the moment from which on it can be received.
    values: VecDeque<(Duration, Moving)>,
    capacity: usize,
    /// Ends that have connected.
    connected: usize,
    /// One of the ends is gone.
    is_cut: bool,
    /// Tasks that wait for a change.
    waiting: Vec<Waker>,
}

impl State {
    fn changed(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn push(&mut self, value: Moving) {
        let world = exec::world();
        if planted!(MeshMessageLost) && world.chance(LOST) {
            return;
        }
        let most = if world.chance(SELDOM_SHARE) { SELDOM } else { USUAL };
        let due = clock::now() + world.draw(Duration::ZERO..most);
        let last = self.values.back().map_or(due, |(last, _)| *last);
        self.values.push_back((due.max(last), value));
        if planted!(MeshMessagesSwapped) && self.values.len() > 1 && world.chance(SWAPPED) {
            let behind = self.values.len() - 1;
            self.values.swap(behind - 1, behind);
        }
        self.changed();
    }
}

/// One end of a queue.
struct End(Arc<Mutex<State>>);

/// The sending and the receiving end of a queue.
pub(super) fn pair(capacity: usize) -> (Box<dyn QueueEnd>, Box<dyn QueueEnd>) {
    let (values, waiting) = (VecDeque::new(), Vec::new());
    let state = Arc::new(Mutex::new(State { values, capacity, connected: 0, is_cut: false, waiting }));
    (Box::new(End(state.clone())), Box::new(End(state)))
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.state();
        state.is_cut = true;
        state.changed();
    }
}

impl End {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `what` returns something. It is asked again after each change.
    async fn until<R>(&self, mut what: impl FnMut(&mut State) -> Option<R>) -> R {
        poll_fn(|context: &mut Context<'_>| {
            let mut state = self.state();
            match what(&mut state) {
                Some(found) => Poll::Ready(found),
                None => {
                    state.waiting.push(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl QueueEnd for End {
    fn connected(&self) -> Later<'_, ()> {
        Box::pin(async {
            {
                let mut state = self.state();
                state.connected += 1;
                state.changed();
            }
            self.until(|state| (state.connected == 2).then_some(())).await;
        })
    }

    fn try_send(&self, value: Moving) -> Option<Moving> {
        let mut state = self.state();
        if state.is_cut {
            return None;
        }
        if state.values.len() >= state.capacity {
            return Some(value);
        }
        state.push(value);
        None
    }

    fn send(&self, value: Moving) -> Later<'_, bool> {
        let mut value = Some(value);
        Box::pin(self.until(move |state| {
            if state.is_cut {
                return Some(false);
            }
            if state.values.len() >= state.capacity {
                return None;
            }
            state.push(value.take()?);
            Some(true)
        }))
    }

    fn receive(&self) -> Later<'_, Option<Moving>> {
        Box::pin(async {
            loop {
                let due = self
                    .until(|state| match state.values.front() {
                        Some((due, _)) => Some(Some(*due)),
                        None => state.is_cut.then_some(None),
                    })
                    .await?;
                let now = clock::now();
                if due > now {
                    runtime::sleep(due - now).await;
                    continue;
                }
                let mut state = self.state();
                let next = state.values.pop_front().map(|(_, value)| value);
                state.changed();
                return next;
            }
        })
    }
}
