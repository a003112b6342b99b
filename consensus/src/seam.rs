//! Where the world begins: what drives this crate's state machines reaches clocks and peers only through these traits, so that
//! [`crate::sim`]'s fault-injecting twins can stand in for them. (Storage's seam is `wal`'s `Disk`.)

use std::time::Duration;

/// Time that never goes back and counts while the machine is suspended (CLOCK_BOOTTIME): a lease must not outlive a pause.
pub trait Clock {
    /// Since an origin of its own; only differences mean anything, and only on this node.
    fn now(&self) -> Duration;
}

/// A node's way to its peers. It never waits and promises nothing: a message may be lost, late, doubled or overtaken.
pub trait Transport {
    type Message;

    fn send(&mut self, to: u64, message: Self::Message);
}
