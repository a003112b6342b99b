//! Virtual time, and the clocks that nodes read instead of it.

use std::{cell::Cell, rc::Rc, time::Duration};

/// One clock of a simulation. Clones are the same clock. [`SimClock::drifting`] makes another clock on the same
/// virtual time.
#[derive(Clone, Default)]
pub struct SimClock {
    time: Rc<Cell<Duration>>,
    offset: Rc<Cell<Duration>>,
    /// The gain in µs per second; negative if the clock loses time.
    drift_ppm: i32,
}

impl SimClock {
    /// Another clock on the same virtual time.
    pub fn drifting(&self, drift_ppm: i32) -> Self {
        Self { time: self.time.clone(), offset: Rc::default(), drift_ppm }
    }

    /// The virtual time itself.
    pub fn time(&self) -> Duration {
        self.time.get()
    }

    /// Advances the virtual time for all clocks on it.
    pub fn advance_to(&self, time: Duration) {
        assert!(time >= self.time.get(), "virtual time never goes back");
        self.time.set(time);
    }

    /// The clock jumps ahead, as after a suspension.
    pub fn jump(&self, ahead: Duration) {
        self.offset.set(self.offset.get() + ahead);
    }

    /// The virtual time at which this clock will show `reading`, or the present time if it already does.
    pub fn when(&self, reading: Duration) -> Duration {
        let elapsed = reading.saturating_sub(self.offset.get()).as_micros() as u64;
        let rate = u64::try_from(1_000_000 + i64::from(self.drift_ppm)).expect("a clock goes forward");
        Duration::from_micros((elapsed * 1_000_000).div_ceil(rate)).max(self.time())
    }

    /// The reading of this clock. The clock counts while its node is suspended, since a lease must not outlive a pause.
    pub fn now(&self) -> Duration {
        let elapsed = self.time().as_micros() as i64;
        let shown = elapsed + elapsed * i64::from(self.drift_ppm) / 1_000_000;
        self.offset.get() + Duration::from_micros(shown as u64)
    }
}
