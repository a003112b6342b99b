//! Requests whose work is more than a turn's go on in pieces.
//! Lives on: every core.
//!
//! A request takes what it does from a [`Share`], and gives way when that is spent. All that do so on a core have their pieces one after
//! the other, in the order in which they gave way: those that only read in one line, those that write in another. So between two looks at
//! the network there is one piece of each at most, however many requests there are.
//!
//! Bound: whoever waits here is a request that a connection has in flight. One that is given up leaves its place to the next.

use crate::{
    clock,
    core::{
        Core,
        line::{Line, Place},
    },
    rt,
};
use net::turn::Share;
use std::{cell::Cell, rc::Rc, time::Duration};

/// The shortest and the longest time that is left to others behind a piece of work that can wait.
const PAUSE_MIN: Duration = Duration::from_micros(50);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The pieces of one core's long requests.
#[derive(Default)]
pub struct LongWork {
    reads: Line,
    writes: Line,
    /// Before this moment no piece of a request that can wait begins.
    next: Cell<Duration>,
}

/// One request's work on one core.
pub struct Work<'a> {
    core: &'a Rc<Core>,
    /// What is left of the present piece.
    pub share: Share,
    began: Duration,
}

impl<'a> Work<'a> {
    pub fn on(core: &'a Rc<Core>) -> Self {
        Self { core, share: Share::TURN, began: clock::now() }
    }

    pub fn core(&self) -> &'a Rc<Core> {
        self.core
    }

    /// One more entry is looked at; others go first if this piece has had its share. For requests that only read.
    pub async fn entry(&mut self) {
        if self.share.is_spent() {
            self.pause().await;
        }
        self.share.take_entry();
    }

    /// So many entries were looked at; others go first if this piece has had its share. For requests that only read.
    pub async fn entries(&mut self, count: usize) {
        self.share.entries = self.share.entries.saturating_sub(count);
        if self.share.is_spent() {
            self.pause().await;
        }
    }

    /// Lets others go on for as long as this piece took: all requests that pause have half of the core together.
    pub async fn pause(&mut self) {
        let long_work = &self.core.long_work;
        let took = clock::now().saturating_sub(self.began).clamp(PAUSE_MIN, PAUSE_MAX);
        long_work.next.set(long_work.next.get().max(clock::now()) + took);
        let place = self.turn(&long_work.reads).await;
        rt::sleep(long_work.next.get().saturating_sub(clock::now())).await;
        drop(place);
        self.resume();
    }

    /// Lets all go first that are ready, or for which the kernel has something: for requests that others wait for in turn.
    pub async fn give_way(&mut self) {
        let place = self.turn(&self.core.long_work.writes).await;
        rt::give_way().await;
        drop(place);
        self.resume();
    }

    /// After a wait for something else, which was no work of this core.
    pub fn resume(&mut self) {
        (self.share, self.began) = (Share::TURN, clock::now());
    }

    async fn turn(&self, line: &Line) -> Place {
        self.core.metrics.request_pauses_total.add(1);
        let place = line.join();
        place.first().await;
        place
    }
}
