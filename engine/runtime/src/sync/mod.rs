//! Waiting within one core: a notification, a set of marks, a flag and a one-value slot. No atomics, no locks,
//! nothing that crosses cores.
//! Lives on: one core.

pub mod line;
pub mod lines;

pub use futures_lite::future::zip;

use futures_lite::future;
use slab::Slab;
use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Wakes all waiters. A waiter sees every notification after the version that it names.
#[derive(Default)]
pub struct Notify {
    version: Cell<u64>,
    waiting: RefCell<Slab<Waker>>,
}

impl Notify {
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    pub fn notify(&self) {
        self.version.set(self.version.get() + 1);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Resolves once the version is above `seen`.
    pub fn past(&self, seen: u64) -> Past<'_> {
        Past { notify: self, seen, registered: None }
    }

    /// Resolves at the next notification.
    pub fn next(&self) -> Past<'_> {
        self.past(self.version())
    }
}

/// Waits for a [`Notify`]. Dropping it removes it completely.
pub struct Past<'a> {
    notify: &'a Notify,
    seen: u64,
    /// The waker's place in the list, and the version at which it was put there. A later notification has removed it.
    registered: Option<(usize, u64)>,
}

impl Past<'_> {
    fn forget(&mut self) {
        if let Some((key, version)) = self.registered.take()
            && version == self.notify.version()
        {
            self.notify.waiting.borrow_mut().remove(key);
        }
    }
}

impl Future for Past<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.forget();
        let now = self.notify.version();
        if now > self.seen {
            return Poll::Ready(());
        }
        let key = self.notify.waiting.borrow_mut().insert(cx.waker().clone());
        self.registered = Some((key, now));
        Poll::Pending
    }
}

impl Drop for Past<'_> {
    fn drop(&mut self) {
        self.forget();
    }
}

/// The set of things that have changed, for one task that waits for any of them. A thing that changes often costs
/// that task no more than one that changes once. A thing that does not change costs nothing.
pub struct Marks {
    /// Whether each thing is marked, and the list of the marked ones. Each thing is in the list at most once.
    marked: RefCell<(Vec<bool>, Vec<usize>)>,
    moved: Notify,
}

impl Marks {
    /// Creates marks for things 0 to `count`, all of them marked.
    pub fn all(count: usize) -> Self {
        Self { marked: RefCell::new((vec![true; count], (0..count).collect())), moved: Notify::default() }
    }

    pub fn mark(&self, at: usize) {
        let (is_marked, marked) = &mut *self.marked.borrow_mut();
        if !std::mem::replace(&mut is_marked[at], true) {
            marked.push(at);
            self.moved.notify();
        }
    }

    /// Wakes the task although nothing has changed.
    pub fn wake(&self) {
        self.moved.notify();
    }

    /// Removes one mark and returns it.
    pub fn take(&self) -> Option<usize> {
        let (is_marked, marked) = &mut *self.marked.borrow_mut();
        let at = marked.pop()?;
        is_marked[at] = false;
        Some(at)
    }

    pub fn version(&self) -> u64 {
        self.moved.version()
    }

    /// Resolves once something was marked after version `seen`.
    pub fn past(&self, seen: u64) -> Past<'_> {
        self.moved.past(seen)
    }
}

/// A condition that becomes true once and stays true.
#[derive(Default)]
pub struct Flag {
    set: Cell<bool>,
    changed: Notify,
}

impl Flag {
    pub fn set(&self) {
        self.set.set(true);
        self.changed.notify();
    }

    pub fn is_set(&self) -> bool {
        self.set.get()
    }

    pub async fn wait(&self) {
        while !self.set.get() {
            self.changed.next().await;
        }
    }
}

struct Slot<T> {
    value: Option<T>,
    waker: Option<Waker>,
    /// Wakes who is to keep the promise, once nobody waits for it.
    keeper: Option<Waker>,
    sender_gone: bool,
}

/// Receives one value from its [`Promise`]. Resolves to `None` if the promise was dropped without a value.
pub struct Answer<T>(Rc<RefCell<Slot<T>>>);

/// Gives one value to its [`Answer`].
pub struct Promise<T>(Rc<RefCell<Slot<T>>>);

pub fn promise<T>() -> (Promise<T>, Answer<T>) {
    let slot = Rc::new(RefCell::new(Slot { value: None, waker: None, keeper: None, sender_gone: false }));
    (Promise(slot.clone()), Answer(slot))
}

impl<T> Promise<T> {
    pub fn keep(self, value: T) {
        self.0.borrow_mut().value = Some(value);
    }

    /// Whether the answer was dropped, so that no task waits for it any more.
    pub fn is_abandoned(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }

    /// Resolves once the answer was dropped.
    pub async fn abandoned(&self) {
        poll_fn(|context| {
            if self.is_abandoned() {
                return Poll::Ready(());
            }
            self.0.borrow_mut().keeper = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl<T> Answer<T> {
    /// Whether the promise was kept or dropped.
    pub fn is_settled(&self) -> bool {
        self.0.borrow().sender_gone
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let mut slot = self.0.borrow_mut();
        slot.sender_gone = true;
        let waker = slot.waker.take();
        drop(slot);
        waker.into_iter().for_each(Waker::wake);
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        let keeper = self.0.borrow_mut().keeper.take();
        keeper.into_iter().for_each(Waker::wake);
    }
}

impl<T> Future for Answer<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.borrow_mut();
        if slot.value.is_some() || slot.sender_gone {
            return Poll::Ready(slot.value.take());
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Which of two futures won a race.
pub enum Either<A, B> {
    First(A),
    Second(B),
}

/// Runs both futures until one is done, and drops the other. The first has precedence.
pub async fn race<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> Either<A, B> {
    future::or(async { Either::First(first.await) }, async { Either::Second(second.await) }).await
}

/// Runs all futures to their ends, concurrently, and keeps the order of their results.
pub async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, result) in &mut running {
            if result.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *result = Some(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().map(|(_, result)| result.expect("every future has ended")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_notification_between_looking_and_waiting_is_not_lost() {
        let notify = Notify::default();
        let seen = notify.version();
        notify.notify();
        assert!(poll_once(std::pin::pin!(notify.past(seen))).is_ready());
        assert!(poll_once(std::pin::pin!(notify.next())).is_pending());
    }

    #[test]
    fn a_dropped_wait_leaves_no_waker() {
        let notify = Notify::default();
        for _ in 0..3 {
            assert!(poll_once(std::pin::pin!(notify.next())).is_pending());
        }
        assert!(notify.waiting.borrow().is_empty());
    }

    #[test]
    fn a_mark_is_taken_once_however_often_it_was_made() {
        let marks = Marks::all(3);
        assert_eq!([marks.take(), marks.take(), marks.take(), marks.take()], [Some(2), Some(1), Some(0), None]);
        let seen = marks.version();
        (0..5).for_each(|_| marks.mark(1));
        assert!(poll_once(std::pin::pin!(marks.past(seen))).is_ready());
        assert_eq!([marks.take(), marks.take()], [Some(1), None]);
        marks.mark(1);
        assert_eq!(marks.take(), Some(1));
    }

    #[test]
    fn a_dropped_promise_answers_none() {
        let (promise, answer) = promise::<u8>();
        let mut answer = std::pin::pin!(answer);
        assert!(poll_once(answer.as_mut()).is_pending());
        drop(promise);
        assert!(matches!(poll_once(answer), Poll::Ready(None)));
    }

    #[test]
    fn a_promise_knows_that_its_answer_was_dropped() {
        let (promise, answer) = promise::<u8>();
        assert!(!promise.is_abandoned());
        drop(answer);
        assert!(promise.is_abandoned());
    }

    #[test]
    fn a_kept_promise_answers_its_value() {
        let (promise, answer) = promise();
        assert!(!answer.is_settled());
        promise.keep(7);
        assert!(answer.is_settled());
        assert!(matches!(poll_once(std::pin::pin!(answer)), Poll::Ready(Some(7))));
    }
}
