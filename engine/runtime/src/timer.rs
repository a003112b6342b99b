//! Sleeping. Each core keeps its own timers.

use crate::{
    clock, spawn,
    sync::{Either, Notify, race},
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// Resolves once `duration` has passed.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { until: clock::now() + duration, queued: None }
}

/// Awaits a future for at most `limit`. Drops it and returns `None` if it has not finished by then.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    match race(future, sleep(limit)).await {
        Either::First(value) => Some(value),
        Either::Second(()) => None,
    }
}

/// A timer. Dropping it removes it completely.
///
/// glommio's own timer adds an entry to the reactor's timer wheel at each poll, and removes only the last one. A
/// timer that is polled often, such as that of a waiting fetch, would fill the wheel. So this module keeps all timers
/// of a core, and the wheel holds only the earliest.
pub struct Sleep {
    until: Duration,
    queued: Option<(Rc<Timers>, TimerKey)>,
}

/// A moment on [`clock::now`]'s clock, and a number that makes the key unique.
type TimerKey = (Duration, u64);

/// The timers of one core.
#[derive(Default)]
pub struct Timers {
    queue: RefCell<BTreeMap<TimerKey, Waker>>,
    next_id: Cell<u64>,
    /// Notified when a timer becomes the earliest one.
    earlier: Notify,
    driven: Cell<bool>,
}

thread_local! {
    /// Each executor has a thread of its own.
    static TIMERS: RefCell<Rc<Timers>> = RefCell::default();
}

/// For simulations, which run several cores on one thread and drive their timers themselves.
impl Timers {
    pub fn driven_by_hand() -> Rc<Self> {
        Rc::new(Self { driven: Cell::new(true), ..Self::default() })
    }

    /// From now on, new timers of this thread are kept here. Returns where they were kept until now.
    pub fn install(self: Rc<Self>) -> Rc<Self> {
        TIMERS.with(|timers| timers.replace(self))
    }

    pub fn earliest(&self) -> Option<Duration> {
        self.queue.borrow().first_key_value().map(|((at, _), _)| *at)
    }
}

impl Timers {
    fn insert(self: &Rc<Self>, until: Duration, waker: Waker) -> TimerKey {
        let key = (until, self.next_id.get());
        self.next_id.set(key.1 + 1);
        let mut queue = self.queue.borrow_mut();
        queue.insert(key, waker);
        let is_first = queue.first_key_value().is_some_and(|(first, _)| *first == key);
        drop(queue);
        if is_first {
            self.earlier.notify();
        }
        if !self.driven.replace(true) {
            spawn(self.clone().drive());
        }
        key
    }

    async fn drive(self: Rc<Self>) {
        loop {
            let seen = self.earlier.version();
            let now = clock::now();
            while let Some(waker) = self.take_due(now) {
                waker.wake();
            }
            let first = self.queue.borrow().first_key_value().map(|((at, _), _)| *at);
            match first {
                None => self.earlier.past(seen).await,
                Some(at) => {
                    let timer = glommio::timer::sleep(at.saturating_sub(now));
                    race(self.earlier.past(seen), timer).await;
                }
            }
        }
    }

    pub fn take_due(&self, now: Duration) -> Option<Waker> {
        let mut queue = self.queue.borrow_mut();
        let first = queue.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if clock::now() >= self.until {
            return Poll::Ready(());
        }
        if let Some((timers, key)) = &self.queued
            && let Some(waker) = timers.queue.borrow_mut().get_mut(key)
        {
            waker.clone_from(cx.waker());
            return Poll::Pending;
        }
        let timers = TIMERS.with_borrow(Rc::clone);
        let key = timers.insert(self.until, cx.waker().clone());
        self.queued = Some((timers, key));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((timers, key)) = &self.queued {
            timers.queue.borrow_mut().remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::on_a_core;

    #[test]
    fn waits_end_in_the_order_of_their_moments_and_none_is_left() {
        on_a_core(|| async {
            let order = Rc::new(RefCell::new(Vec::new()));
            let ended = Rc::new(Notify::default());
            let begun = clock::now();
            for n in 0..400u64 {
                let (order, ended) = (order.clone(), ended.clone());
                // Later timers first, so that each becomes the earliest one. Several may be due at once: they fire in
                // order.
                let until = begun + Duration::from_millis(100 - n / 10);
                spawn(async move {
                    Sleep { until, queued: None }.await;
                    order.borrow_mut().push(n / 10);
                    ended.notify();
                });
            }
            while order.borrow().len() < 400 {
                ended.next().await;
            }
            let order = order.take();
            assert_eq!(order.len(), 400);
            assert!(order.is_sorted_by(|a, b| a >= b), "{order:?}");
            TIMERS.with_borrow(|timers| assert!(timers.queue.borrow().is_empty()));
        });
    }

    #[test]
    fn a_wait_that_is_polled_often_is_queued_once_and_a_dropped_one_not_at_all() {
        on_a_core(|| async {
            let queued = || TIMERS.with_borrow(|timers| timers.queue.borrow().len());
            let mut wait = Box::pin(sleep(Duration::from_secs(60)));
            for _ in 0..100 {
                assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            assert_eq!(queued(), 1);
            drop(wait);
            assert_eq!(queued(), 0);
        });
    }
}
