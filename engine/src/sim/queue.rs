//! Queues between the cores of one simulated broker: bounded, first in first out, and late.
//!
//! A message takes some microseconds, now and then some milliseconds, as if the receiving core were busy.

use super::{Bug, exec};
use crate::{clock, rt};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

/// How late a message usually is at most, and how late it seldom is.
const USUAL: Duration = Duration::from_micros(30);
const SELDOM: Duration = Duration::from_millis(20);
const SELDOM_SHARE: f64 = 0.01;
/// Shares of messages that a planted bug affects.
const LOST: f64 = 0.002;
const SWAPPED: f64 = 0.2;

struct State<T> {
    /// Each with the moment from which on it can be received.
    values: VecDeque<(Duration, T)>,
    capacity: usize,
    /// Ends that have connected.
    connected: usize,
    /// One of the ends is gone.
    is_cut: bool,
    /// Tasks that wait for a change.
    waiting: Vec<Waker>,
}

impl<T> State<T> {
    fn changed(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn push(&mut self, value: T) {
        let world = exec::world();
        if exec::planted(Bug::MeshMessageLost) && world.chance(LOST) {
            return;
        }
        let most = if world.chance(SELDOM_SHARE) { SELDOM } else { USUAL };
        let due = clock::now() + world.draw(Duration::ZERO..most);
        let last = self.values.back().map_or(due, |(last, _)| *last);
        self.values.push_back((due.max(last), value));
        if exec::planted(Bug::MeshMessagesSwapped) && self.values.len() > 1 && world.chance(SWAPPED) {
            let behind = self.values.len() - 1;
            self.values.swap(behind - 1, behind);
        }
        self.changed();
    }
}

/// One end of a queue.
pub(crate) struct End<T>(Arc<Mutex<State<T>>>);

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        let mut state = self.state();
        state.is_cut = true;
        state.changed();
    }
}

impl<T> End<T> {
    /// The sending and the receiving end of a queue.
    pub(crate) fn pair(capacity: usize) -> (Self, Self) {
        let (values, waiting) = (VecDeque::new(), Vec::new());
        let state = Arc::new(Mutex::new(State { values, capacity, connected: 0, is_cut: false, waiting }));
        (Self(state.clone()), Self(state))
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `what` returns something. It is asked again after each change.
    async fn until<R>(&self, mut what: impl FnMut(&mut State<T>) -> Option<R>) -> R {
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

    /// Waits until both ends have connected.
    pub(crate) async fn connect(self) -> Self {
        {
            let mut state = self.state();
            state.connected += 1;
            state.changed();
        }
        self.until(|state| (state.connected == 2).then_some(())).await;
        self
    }

    /// Returns the value if the queue is full. `None`: it was sent, or the other end is gone.
    pub(crate) fn try_send(&self, value: T) -> Option<T> {
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

    /// Waits for room. `false`: the other end is gone.
    pub(crate) async fn send(&self, value: T) -> bool {
        let mut value = Some(value);
        self.until(|state| {
            if state.is_cut {
                return Some(false);
            }
            if state.values.len() >= state.capacity {
                return None;
            }
            state.push(value.take()?);
            Some(true)
        })
        .await
    }

    /// `None`: the other end is gone, and everything that it sent has been received.
    pub(crate) async fn recv(&self) -> Option<T> {
        loop {
            let due = self
                .until(|state| match state.values.front() {
                    Some((due, _)) => Some(Some(*due)),
                    None => state.is_cut.then_some(None),
                })
                .await?;
            let now = clock::now();
            if due > now {
                rt::sleep(due - now).await;
                continue;
            }
            let mut state = self.state();
            let next = state.values.pop_front().map(|(_, value)| value);
            state.changed();
            return next;
        }
    }
}
