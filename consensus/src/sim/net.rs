//! A network that drops, delays, duplicates and reorders messages, and can be cut in one direction.

use super::SimClock;
use crate::plane::node_of;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

/// How bad the network is. Probabilities are per message, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetFaults {
    pub dropped: f64,
    pub doubled: f64,
    /// Each copy gets its own delay between these bounds, so later messages can overtake earlier ones.
    pub delay_min: Duration,
    pub delay_max: Duration,
}

impl NetFaults {
    /// A healthy network within one building.
    pub const NONE: Self = Self {
        dropped: 0.0,
        doubled: 0.0,
        delay_min: Duration::from_micros(100),
        delay_max: Duration::from_micros(400),
    };
}

/// A message in flight between two peers.
#[derive(Clone, Debug)]
pub struct Envelope<M> {
    pub from: u64,
    pub to: u64,
    pub message: M,
}

pub struct SimNet<M> {
    pub faults: NetFaults,
    rng: fastrand::Rng,
    sent: u64,
    /// Messages by arrival time. The second number distinguishes messages that arrive at the same time.
    under_way: BTreeMap<(Duration, u64), Envelope<M>>,
    /// Pairs of nodes: no message from the first reaches the second.
    cut: BTreeSet<(i32, i32)>,
}

impl<M: Clone> SimNet<M> {
    pub fn new(seed: u64, faults: NetFaults) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { faults, rng, sent: 0, under_way: BTreeMap::new(), cut: BTreeSet::new() }
    }

    pub fn send(&mut self, now: Duration, envelope: Envelope<M>) {
        if self.rng.f64() < self.faults.dropped {
            return;
        }
        let copies = if self.rng.f64() < self.faults.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let span = (self.faults.delay_max - self.faults.delay_min).as_micros() as u64;
            let delay = self.faults.delay_min + Duration::from_micros(self.rng.u64(..=span));
            self.put_back(now + delay, envelope.clone());
        }
    }

    /// Schedules the message to arrive at `at`.
    pub fn put_back(&mut self, at: Duration, envelope: Envelope<M>) {
        self.sent += 1;
        self.under_way.insert((at, self.sent), envelope);
    }

    /// The time at which the next message arrives.
    pub fn next_at(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next message out. `None` if a cut swallows it.
    pub fn arrive(&mut self) -> Option<Envelope<M>> {
        let (_, envelope) = self.under_way.pop_first()?;
        let way = (node_of(envelope.from), node_of(envelope.to));
        (!self.cut.contains(&way)).then_some(envelope)
    }

    /// Cuts one direction.
    pub fn cut(&mut self, from: i32, to: i32) {
        self.cut.insert((from, to));
    }

    /// Undoes all cuts. Messages still in flight arrive.
    pub fn heal(&mut self) {
        self.cut.clear();
    }
}

/// One peer's access to a [`SimNet`].
pub struct SimTransport<M> {
    pub from: u64,
    pub clock: SimClock,
    pub net: Rc<RefCell<SimNet<M>>>,
}

impl<M: Clone> SimTransport<M> {
    /// Never blocks and guarantees nothing: a message may be lost, delayed, doubled or reordered.
    pub fn send(&mut self, to: u64, message: M) {
        self.net.borrow_mut().send(self.clock.time(), Envelope { from: self.from, to, message });
    }
}
