//! When a run begins, is measured, and ends.

use std::time::Duration;

use crate::clock;

/// Time between the start of the threads and the first record, in which they connect.
const LEAD: Duration = Duration::from_millis(200);

/// When a run begins, when its measurement begins, and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub start_ns: u64,
    pub measured_from_ns: u64,
    pub end_ns: u64,
}

impl Window {
    pub fn new(warm_up: Duration, duration: Duration) -> Window {
        let start_ns = clock::now_ns() + LEAD.as_nanos() as u64;
        let measured_from_ns = start_ns + warm_up.as_nanos() as u64;
        Window { start_ns, measured_from_ns, end_ns: measured_from_ns + duration.as_nanos() as u64 }
    }

    pub fn duration_ns(&self) -> u64 {
        self.end_ns - self.start_ns
    }
}
