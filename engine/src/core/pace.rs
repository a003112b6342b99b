//! How fast one core reads for replicas that lag: one piece at a time, in the order of asking, at a rate.
//! Lives on: the owning core.
//!
//! Large reads that wait at the disk side by side make the ring's writes wait behind them, and so do those of the replica that takes
//! what was read, where it shares a disk.

use crate::{
    clock,
    core::line::{Line, Place},
    rt,
};
use std::{cell::Cell, time::Duration};

/// Gives turns, one at a time. Bound of its line: one task for each partition that has laggards.
pub struct Pace {
    bytes_per_second: u64,
    line: Line,
    /// Before this moment no turn begins.
    next: Cell<Duration>,
}

/// A turn, until it is dropped.
pub struct Turn<'a> {
    pace: &'a Pace,
    _place: Place,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, line: Line::default(), next: Cell::new(Duration::ZERO) }
    }

    /// Waits until no other task has a turn, and what was moved so far is within the rate.
    pub async fn turn(&self) -> Turn<'_> {
        let place = self.line.join();
        place.first().await;
        rt::sleep(self.next.get().saturating_sub(clock::now())).await;
        Turn { pace: self, _place: place }
    }
}

impl Turn<'_> {
    /// So many bytes were read in this turn.
    pub fn moved(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.pace.bytes_per_second as f64);
        self.pace.next.set(self.pace.next.get().max(clock::now()) + takes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Either, race};
    use std::{cell::RefCell, rc::Rc};

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
            assert_eq!(pace.line.len(), 1, "who gave up has left the line");
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
