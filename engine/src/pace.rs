//! How fast one core reads for replicas that lag: one piece at a time, in the order of asking, at a rate.
//! Lives on: the owning core.
//!
//! Large reads that wait at the disk side by side make the ring's writes wait behind them, and so do those of the replica that takes
//! what was read, where it shares a disk.

use crate::{
    clock, rt,
    sync::{Promise, promise},
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    time::Duration,
};

/// Gives turns.
pub struct Pace(Rc<Inner>);

struct Inner {
    bytes_per_second: u64,
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Promise<Turn>>>,
    /// Before this moment no turn begins.
    next: Cell<Duration>,
}

/// A turn, until it is dropped.
pub struct Turn(Rc<Inner>);

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self(Rc::new(Inner {
            bytes_per_second,
            taken: Cell::new(false),
            waiting: RefCell::default(),
            next: Cell::new(Duration::ZERO),
        }))
    }

    /// Waits until nobody else has a turn, and what was moved so far is within the rate.
    pub async fn turn(&self) -> Turn {
        let turn = if self.0.taken.replace(true) {
            let (promise, answer) = promise();
            self.0.waiting.borrow_mut().push_back(promise);
            answer.await.expect("whoever has the turn hands it on")
        } else {
            Turn(self.0.clone())
        };
        rt::sleep(self.0.next.get().saturating_sub(clock::now())).await;
        turn
    }
}

impl Turn {
    /// So many bytes were read in this turn.
    pub fn moved(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.0.bytes_per_second as f64);
        self.0.next.set(self.0.next.get().max(clock::now()) + takes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = self.0.waiting.borrow_mut().pop_front();
        match next {
            // If nobody waits for it any more it is dropped there, and comes back here.
            Some(next) => next.keep(Turn(self.0.clone())),
            None => self.0.taken.set(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Either, race};

    fn on_a_core<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
        rt::spawn_core(rt::any_allowed_cpu(), "test", test).unwrap().join().unwrap();
    }

    #[test]
    fn turns_come_one_at_a_time_in_the_order_of_asking() {
        on_a_core(|| async {
            let pace = Rc::new(Pace::new(u64::MAX));
            let (order, busy) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(false)));
            let first = pace.turn().await;
            for number in 0..5 {
                let (pace, order, busy) = (pace.clone(), order.clone(), busy.clone());
                rt::spawn(async move {
                    let turn = pace.turn().await;
                    assert!(!busy.replace(true), "another has the turn");
                    rt::sleep(Duration::from_millis(1)).await;
                    busy.set(false);
                    order.borrow_mut().push(number);
                    drop(turn);
                });
            }
            rt::sleep(Duration::from_millis(1)).await;
            assert!(order.borrow().is_empty());
            drop(first);
            drop(pace.turn().await);
            assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
        });
    }

    #[test]
    fn who_stops_waiting_leaves_the_turn_to_the_next() {
        on_a_core(|| async {
            let pace = Pace::new(u64::MAX);
            let first = pace.turn().await;
            let given_up = race(pace.turn(), rt::sleep(Duration::from_millis(1))).await;
            assert!(matches!(given_up, Either::Second(())));
            drop(first);
            pace.turn().await;
        });
    }

    #[test]
    fn a_turn_waits_until_what_was_moved_is_within_the_rate() {
        on_a_core(|| async {
            let pace = Pace::new(1_000);
            let since = clock::now();
            for bytes in [10, 20, 0] {
                pace.turn().await.moved(bytes);
            }
            assert!(clock::now() - since >= Duration::from_millis(30), "30 bytes at 1,000 a second take 30 ms");
        });
    }
}
