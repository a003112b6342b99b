//! The clocks that leases and turns are measured by, and the one that records are stamped with.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the machine started, suspended time included (CLOCK_BOOTTIME): a lease must not outlive a pause. Never goes back.
pub fn now() -> Duration {
    #[cfg(test)]
    if let Some(now) = crate::sim::now() {
        return now;
    }
    read(libc::CLOCK_BOOTTIME)
}

/// Wall-clock time in ms since the epoch, for what records and topics are stamped with; never for timeouts.
pub fn wall_ms() -> i64 {
    #[cfg(test)]
    if let Some(now) = crate::sim::now() {
        return now.as_millis() as i64;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

/// CPU time that this thread has used.
pub fn thread_cpu() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec, which is there.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(failed, 0, "Linux has both clocks since 2.6.39");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
