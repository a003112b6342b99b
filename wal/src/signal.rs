//! Wakes tasks of the same core when something has changed.
//! Lives on: one core.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    task::{Poll, Waker},
};

/// Counts notifications. Tasks wait for the next one.
#[derive(Default)]
pub struct Signal {
    count: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

impl Signal {
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    pub fn notify(&self) {
        self.count.set(self.count.get() + 1);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits until [`Signal::count`] differs from `seen`.
    pub async fn past(&self, seen: u64) {
        poll_fn(|context| {
            if self.count.get() != seen {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

/// Yields once to the core's other tasks.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Drives all futures to completion. Meant for a handful of futures, since each wake polls all that are still
/// pending.
pub async fn join_all(futures: impl IntoIterator<Item = Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut left: Vec<_> = futures.into_iter().collect();
    poll_fn(|context| {
        left.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if left.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Drives `work` to completion while also polling `beside`. Returns an error if `beside` ends first.
pub async fn beside<T, U>(work: impl Future<Output = T>, beside: impl Future<Output = U>) -> Result<T, U> {
    let (mut work, mut beside) = (std::pin::pin!(work), std::pin::pin!(beside));
    poll_fn(|context| {
        if let Poll::Ready(value) = work.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        beside.as_mut().poll(context).map(Err)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{rc::Rc, task::Context};

    #[test]
    fn a_waiter_wakes_once_something_happened() {
        let signal = Rc::new(Signal::default());
        let seen = signal.count();
        let mut wait = std::pin::pin!(signal.past(seen));
        let mut context = Context::from_waker(Waker::noop());
        assert!(wait.as_mut().poll(&mut context).is_pending());
        signal.notify();
        assert!(wait.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn all_are_joined_and_the_first_of_two_wins() {
        let mut context = Context::from_waker(Waker::noop());
        let boxed = |turns: u32| -> Pin<Box<dyn Future<Output = ()>>> {
            Box::pin(async move {
                for _ in 0..turns {
                    yield_now().await;
                }
            })
        };
        let mut all = std::pin::pin!(join_all([boxed(2), boxed(0), boxed(1)]));
        let polls = (0..10).take_while(|_| all.as_mut().poll(&mut context).is_pending()).count();
        assert_eq!(polls, 2);
        let mut both = std::pin::pin!(beside(boxed(2), boxed(1)));
        assert!(both.as_mut().poll(&mut context).is_pending());
        assert_eq!(both.as_mut().poll(&mut context), Poll::Ready(Err(())));
    }
}
