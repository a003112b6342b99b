//! The clock for leases and turns, and the clock for the timestamps of records.

use crate::backend::simulated;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the machine started, with the time that it was suspended (CLOCK_BOOTTIME): a lease must not outlive a
/// suspension. Never goes back.
pub fn now() -> Duration {
    if let Some(now) = simulated(|backend| backend.now()) {
        return now;
    }
    read(libc::CLOCK_BOOTTIME)
}

/// Wall-clock time in ms since the epoch, for timestamps of records and topics. Never for timeouts.
pub fn wall_ms() -> i64 {
    if let Some(now) = simulated(|backend| backend.now()) {
        return now.as_millis() as i64;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// The CPU time that this thread has used.
pub fn thread_cpu() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec, which is live.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(failed, 0, "Linux has both clocks since 2.6.39");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
