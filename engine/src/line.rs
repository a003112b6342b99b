//! A line: one at a time, in the order in which they came.
//! Lives on: one core.
//!
//! Whoever leaves before its turn, by being dropped, is passed over.

use crate::sync::{Answer, Promise, promise};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

#[derive(Default)]
pub struct Line(Rc<Inner>);

#[derive(Default)]
struct Inner {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Promise<Place>>>,
}

/// The turn, until it is dropped.
pub struct Place(Rc<Inner>);

/// A place in the line.
pub enum Entered {
    /// Nobody is before.
    First(Place),
    Behind(Answer<Place>),
}

impl Line {
    /// Takes the next place, at once.
    pub fn enter(&self) -> Entered {
        if !self.0.taken.replace(true) {
            return Entered::First(Place(self.0.clone()));
        }
        let (promise, answer) = promise();
        self.0.waiting.borrow_mut().push_back(promise);
        Entered::Behind(answer)
    }
}

impl Entered {
    /// Waits for the turn.
    pub async fn come(self) -> Place {
        match self {
            Entered::First(place) => place,
            Entered::Behind(answer) => answer.await.expect("whoever has the turn hands it on"),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let next = self.0.waiting.borrow_mut().pop_front();
        match next {
            // If nobody waits for it any more it is dropped with the answer, and comes back here.
            Some(next) => next.keep(Place(self.0.clone())),
            None => self.0.taken.set(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    fn poll(entered: impl Future<Output = Place>) -> Poll<Place> {
        pin!(entered).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn behind(line: &Line) -> Answer<Place> {
        let Entered::Behind(answer) = line.enter() else { panic!("somebody is before") };
        answer
    }

    #[test]
    fn turns_come_in_the_order_of_entering() {
        let line = Line::default();
        let Poll::Ready(first) = poll(line.enter().come()) else { panic!("nobody is before") };
        let (mut second, mut third) = (pin!(behind(&line)), pin!(behind(&line)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(third.as_mut().poll(&mut cx).is_pending() && second.as_mut().poll(&mut cx).is_pending());
        drop(first);
        assert!(third.as_mut().poll(&mut cx).is_pending());
        let Poll::Ready(Some(second)) = second.poll(&mut cx) else { panic!("it is its turn") };
        drop(second);
        let Poll::Ready(Some(third)) = third.poll(&mut cx) else { panic!("it is its turn") };
        drop(third);
        assert!(matches!(line.enter(), Entered::First(_)));
    }

    #[test]
    fn who_is_dropped_is_passed_over_before_its_turn_and_in_it() {
        let line = Line::default();
        let Entered::First(first) = line.enter() else { panic!("nobody is before") };
        let (gone, next) = (behind(&line), behind(&line));
        drop(gone);
        drop(first);
        let Poll::Ready(Some(next)) = pin!(next).poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("it is its turn")
        };
        let called = behind(&line);
        drop(next);
        // Its turn has come, and it never hears of it.
        drop(called);
        assert!(matches!(line.enter(), Entered::First(_)));
    }
}
