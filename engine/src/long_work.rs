//! Splits requests that need more than one turn into pieces.
//! Lives on: every core.
//!
//! A request takes its work from a [`Share`], and pauses when that is spent. The paused requests of a core run
//! their pieces one after the other, in the order in which they paused. Requests that only read form one line, and
//! those that write another. So between two polls of the network, at most one piece of each line runs, however many
//! requests there are.
//!
//! Bound: each task that waits here is a request that a connection has in flight. A cancelled request leaves its
//! place to the next.

use crate::metrics::CoreMetrics;
use net::turn::Share;
use runtime::{
    clock,
    sync::line::{Line, Place},
};
use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

/// The shortest and the longest time left to other tasks after a piece of work that can wait.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The pieces of one core's long requests.
pub struct LongWork {
    metrics: Arc<CoreMetrics>,
    reads: Line,
    writes: Line,
    /// No piece of a request that can wait begins before this moment.
    next: Cell<Duration>,
}

impl LongWork {
    pub fn new(metrics: Arc<CoreMetrics>) -> Self {
        Self { metrics, reads: Line::default(), writes: Line::default(), next: Cell::new(Duration::ZERO) }
    }

    /// Requests that have a turn or wait for one: those that read, and those that write.
    pub fn waiting(&self) -> (usize, usize) {
        (self.reads.len(), self.writes.len())
    }
}

/// One request's work on one core.
pub struct Work<'a, C> {
    core: &'a Rc<C>,
    /// The rest of the present piece's share.
    pub share: Share,
    began: Duration,
}

impl<'a, C: AsRef<LongWork>> Work<'a, C> {
    pub fn on(core: &'a Rc<C>) -> Self {
        Self { core, share: Share::TURN, began: clock::now() }
    }

    pub fn core(&self) -> &'a Rc<C> {
        self.core
    }

    /// Takes one more entry. Pauses first if this piece's share is spent. For requests that only read.
    pub async fn entry(&mut self) {
        if self.share.is_spent() {
            self.pause().await;
        }
        self.share.take_entry();
    }

    /// Counts `count` entries as done. Pauses if this piece's share is spent. For requests that only read.
    pub async fn entries(&mut self, count: usize) {
        self.share.entries = self.share.entries.saturating_sub(count);
        if self.share.is_spent() {
            self.pause().await;
        }
    }

    /// Lets other tasks run for as long as this piece took. All pausing requests together get half of the core.
    pub async fn pause(&mut self) {
        let long_work = self.long_work();
        let took = clock::now().saturating_sub(self.began).clamp(PAUSE_MIN, PAUSE_MAX);
        long_work.next.set(long_work.next.get().max(clock::now()) + took);
        let place = self.turn(&long_work.reads).await;
        runtime::sleep(long_work.next.get().saturating_sub(clock::now())).await;
        drop(place);
        self.resume();
    }

    /// Yields to all ready tasks and to pending kernel events. For requests that others wait for in turn.
    pub async fn give_way(&mut self) {
        let place = self.turn(&self.long_work().writes).await;
        runtime::give_way().await;
        drop(place);
        self.resume();
    }

    /// Starts a new share after a wait for something that was not this core's work.
    pub fn resume(&mut self) {
        (self.share, self.began) = (Share::TURN, clock::now());
    }

    fn long_work(&self) -> &'a LongWork {
        (**self.core).as_ref()
    }

    async fn turn(&self, line: &Line) -> Place {
        self.long_work().metrics.request_pauses_total.add(1);
        let place = line.join();
        place.first().await;
        place
    }
}
