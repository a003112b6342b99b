//! The seams to the outside: the hosts of this crate's state machines reach clocks and peers only through these
//! traits. `crate::sim`'s fault-injecting twins can stand in for them. (The seam for storage is `wal`'s `Disk`.)

use std::time::Duration;

/// Monotonic time that also counts while the machine is suspended (CLOCK_BOOTTIME), because a lease must not
/// outlive a pause.
pub trait Clock {
    /// The time since an arbitrary origin. Only differences between two values of the same node mean anything.
    fn now(&self) -> Duration;
}

/// A node's connection to its peers. Sending never blocks and guarantees nothing: a message may be lost, delayed,
/// duplicated or reordered.
pub trait Transport {
    type Message;

    fn send(&mut self, to: u64, message: Self::Message);
}
