//! A line of tasks that wait for their turn, in order of arrival. A task that gives up leaves the line.
//! Lives on: one core.
//!
//! A [`Place`] is a task's position. It leaves the line when it is dropped, wherever it stands, so an abandoned
//! wait never holds up the tasks behind it.
//!
//! Bound: one entry per living [`Place`]. Each user states what bounds those.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    rc::Rc,
    task::{Poll, Waker},
};

/// The line itself.
#[derive(Default)]
pub struct Line(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// In order of arrival. The waker belongs to the task that polled last.
    places: RefCell<BTreeMap<u64, Option<Waker>>>,
    arrivals: Cell<u64>,
}

/// A position in a line, held until it is dropped.
pub struct Place {
    line: Rc<Inner>,
    number: u64,
}

impl Line {
    /// Joins the end of the line.
    pub fn join(&self) -> Place {
        let number = self.0.arrivals.get();
        self.0.arrivals.set(number + 1);
        self.0.places.borrow_mut().insert(number, None);
        Place { line: self.0.clone(), number }
    }

    pub fn is_empty(&self) -> bool {
        self.0.places.borrow().is_empty()
    }

    /// The number of places held.
    pub fn len(&self) -> usize {
        self.0.places.borrow().len()
    }
}

/// As many tasks at a time as there are lines.
pub struct Places<const N: usize>([Line; N]);

impl<const N: usize> Default for Places<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Line::default()))
    }
}

impl<const N: usize> Places<N> {
    /// Joins the shortest line.
    pub fn join(&self) -> Place {
        self.0.iter().min_by_key(|line| line.len()).expect("there is a line").join()
    }

    /// The number of places held.
    pub fn len(&self) -> usize {
        self.0.iter().map(Line::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Place {
    /// Whether this place is the first of its line now.
    pub fn is_first(&self) -> bool {
        self.line.places.borrow().first_key_value().is_some_and(|(first, _)| *first == self.number)
    }

    /// Resolves once this place is the first of its line.
    pub fn first(&self) -> impl Future<Output = ()> {
        poll_fn(|context| {
            if self.is_first() {
                return Poll::Ready(());
            }
            let mut places = self.line.places.borrow_mut();
            let waker = places.get_mut(&self.number).expect("a place is in its line while it is held");
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.line.places.borrow_mut();
        places.remove(&self.number);
        let next = places.first_entry().and_then(|mut first| first.get_mut().take());
        drop(places);
        next.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Wake},
    };

    /// Counts how often it wakes a task.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_first(place: &Place) -> bool {
        let is_ready = pin!(place.first()).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert_eq!(is_ready, place.is_first());
        is_ready
    }

    #[test]
    fn places_come_first_in_the_order_of_joining() {
        let line = Line::default();
        let (first, second, third) = (line.join(), line.join(), line.join());
        assert!(is_first(&first) && !is_first(&second) && !is_first(&third));
        drop(first);
        assert!(is_first(&second) && !is_first(&third));
        drop(second);
        assert!(is_first(&third));
        drop(third);
        assert!(line.is_empty());
    }

    #[test]
    fn a_place_that_is_given_up_holds_nobody_up() {
        let line = Line::default();
        let (first, second, third) = (line.join(), line.join(), line.join());
        drop(second);
        assert_eq!(line.len(), 2);
        assert!(!is_first(&third));
        drop(first);
        assert!(is_first(&third));
    }

    #[test]
    fn leaving_wakes_the_task_that_is_first_now() {
        let line = Line::default();
        let (first, second) = (line.join(), line.join());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        assert!(pin!(second.first()).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(first);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(is_first(&second));
    }
}
