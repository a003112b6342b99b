//! Paces a core's reads for lagging replicas: one piece at a time, in the order of asking, at a limited rate.
//! Lives on: the owning core.
//!
//! Large parallel reads would delay the ring's writes at the disk. They would also delay the writes of the
//! receiving replica, if it shares the disk.

use runtime::{
    clock,
    sync::line::{Line, Place},
};
use std::{cell::Cell, time::Duration};

/// Gives turns, one at a time. Bound of its line: at most two tasks for each partition that has lagging replicas.
pub struct Pace {
    bytes_per_second: u64,
    line: Line,
    /// No turn begins before this moment.
    next: Cell<Duration>,
}

/// A turn, which lasts until it is dropped.
pub struct Turn {
    _place: Place,
}

impl Pace {
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, line: Line::default(), next: Cell::new(Duration::ZERO) }
    }

    /// Waits until no other task has a turn, and the bytes moved so far are within the rate.
    pub async fn turn(&self) -> Turn {
        let place = self.line.join();
        place.first().await;
        runtime::sleep(self.next.get().saturating_sub(clock::now())).await;
        Turn { _place: place }
    }

    /// Counts `bytes` that were read, in a turn or without one.
    pub fn moved(&self, bytes: u64) {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.next.set(self.next.get().max(clock::now()) + takes);
    }
}

impl Pace {
    /// Tasks that have a turn or wait for one.
    pub fn waiting(&self) -> usize {
        self.line.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::sync::{Either, race};
    use std::{cell::RefCell, rc::Rc};

    fn on_a_core<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
        runtime::spawn_core(runtime::any_allowed_cpu(), "test", test).unwrap().join().unwrap();
    }

    #[test]
    fn turns_come_one_at_a_time_in_the_order_of_asking() {
        on_a_core(|| async {
            let pace = Rc::new(Pace::new(u64::MAX));
            let (order, busy) = (Rc::new(RefCell::new(Vec::new())), Rc::new(Cell::new(false)));
            let first = pace.turn().await;
            for number in 0..5 {
                let (pace, order, busy) = (pace.clone(), order.clone(), busy.clone());
                runtime::spawn(async move {
                    let turn = pace.turn().await;
                    assert!(!busy.replace(true), "another has the turn");
                    runtime::sleep(Duration::from_millis(1)).await;
                    busy.set(false);
                    order.borrow_mut().push(number);
                    drop(turn);
                });
            }
            runtime::sleep(Duration::from_millis(1)).await;
            assert!(order.borrow().is_empty());
            drop(first);
            drop(pace.turn().await);
            assert_eq!(*order.borrow(), [0, 1, 2, 3, 4]);
        });
    }

    #[test]
    fn a_task_that_stops_waiting_leaves_the_turn_to_the_next() {
        on_a_core(|| async {
            let pace = Pace::new(u64::MAX);
            let first = pace.turn().await;
            let given_up = race(pace.turn(), runtime::sleep(Duration::from_millis(1))).await;
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
                let _turn = pace.turn().await;
                pace.moved(bytes);
            }
            assert!(clock::now() - since >= Duration::from_millis(30), "30 bytes at 1,000 a second take 30 ms");
        });
    }
}
