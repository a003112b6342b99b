//! The intended send time of each record. Pure.
//!
//! Open loop: the times are fixed before the run, whatever the broker does. If a slow broker delays a record, its
//! latency still counts from its intended time. So every record that a stall delayed shows the stall (no coordinated
//! omission).

/// One connection's share of a run's records.
#[derive(Debug, Clone)]
pub struct Schedule {
    start_ns: u64,
    end_ns: u64,
    /// Records per second over all connections; 0 means as fast as possible.
    rate: u64,
    connection: u64,
    connections: u64,
    /// Records taken so far.
    taken: u64,
}

impl Schedule {
    /// Connection number `connection` of `connections` takes every `connections`th record.
    pub fn new(start_ns: u64, duration_ns: u64, rate: u64, connection: usize, connections: usize) -> Schedule {
        assert!(connection < connections, "connection {connection} of {connections}");
        let (connection, connections) = (connection as u64, connections as u64);
        Schedule { start_ns, end_ns: start_ns + duration_ns, rate, connection, connections, taken: 0 }
    }

    /// The time of record `index` of this connection. Computed from the index each time, so that rounding errors do
    /// not add up.
    fn time_of(&self, index: u64) -> u64 {
        let record = u128::from(index) * u128::from(self.connections) + u128::from(self.connection);
        self.start_ns + (record * 1_000_000_000 / u128::from(self.rate)) as u64
    }

    /// The intended time of the next record; `None` if the run has no further record. Without a rate the time is
    /// `now_ns`, but not before the start.
    pub fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let next = if self.rate == 0 { now_ns.max(self.start_ns) } else { self.time_of(self.taken) };
        (next < self.end_ns).then_some(next)
    }

    /// Takes the next record if it is due, and returns its intended time.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let next = self.next_ns(now_ns).filter(|next| *next <= now_ns)?;
        self.taken += 1;
        Some(next)
    }

    /// Number of records that the run requires of this connection; `None` without a rate.
    pub fn total(&self) -> Option<u64> {
        if self.rate == 0 {
            return None;
        }
        // Records of all connections that are due before the end. Every `connections`th is ours.
        let all = (u128::from(self.end_ns - self.start_ns) * u128::from(self.rate)).div_ceil(1_000_000_000) as u64;
        Some(all.saturating_sub(self.connection).div_ceil(self.connections))
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn drain(mut schedule: Schedule, now_ns: u64) -> Vec<u64> {
        std::iter::from_fn(|| schedule.take(now_ns)).collect()
    }

    #[test]
    fn records_are_spread_evenly_over_time_and_connections() {
        let mut times: Vec<u64> =
            (0..3).flat_map(|c| drain(Schedule::new(SECOND, 2 * SECOND, 10, c, 3), u64::MAX)).collect();
        times.sort();
        let want: Vec<u64> = (0..20).map(|k| SECOND + k * SECOND / 10).collect();
        assert_eq!(times, want);
    }

    #[test]
    fn nothing_is_taken_before_its_time_or_after_the_end() {
        let mut schedule = Schedule::new(100, SECOND, 1000, 0, 1);
        assert_eq!(schedule.take(99), None);
        assert_eq!(schedule.take(100), Some(100));
        assert_eq!(schedule.take(100), None);
        assert_eq!(schedule.next_ns(100), Some(100 + SECOND / 1000));
        assert_eq!(drain(schedule.clone(), 100 + SECOND / 2).len(), 500);
        assert_eq!(drain(schedule, u64::MAX).len(), 999);
    }

    #[test]
    fn a_stall_does_not_move_the_times_behind_it() {
        let mut punctual = Schedule::new(0, SECOND, 7, 0, 1);
        let mut stalled = punctual.clone();
        let in_time: Vec<u64> = (0..SECOND).step_by(1_000_000).filter_map(|now| punctual.take(now)).collect();
        let late: Vec<u64> = std::iter::from_fn(|| stalled.take(10 * SECOND)).collect();
        assert_eq!(in_time, late);
        assert_eq!(late.len(), 7);
    }

    #[test]
    fn no_error_adds_up_over_a_long_run() {
        // Three records per second for a year: a third of a second is not a whole number of nanoseconds.
        let year = 365 * 86_400 * SECOND;
        let mut schedule = Schedule::new(0, year, 3, 0, 1);
        schedule.taken = 3 * 365 * 86_400 - 3;
        assert_eq!(schedule.next_ns(0), Some(year - SECOND));
    }

    #[test]
    fn the_total_is_what_can_be_taken() {
        for (duration, rate, connections) in
            [(SECOND, 1, 1), (SECOND, 10, 3), (SECOND / 3, 1000, 7), (5, 3, 2), (7, SECOND, 4)]
        {
            let schedules = (0..connections).map(|c| Schedule::new(50, duration, rate, c, connections));
            let mut all = 0;
            for schedule in schedules {
                let total = schedule.total().expect("there is a rate");
                assert_eq!(drain(schedule, u64::MAX).len() as u64, total, "{duration} ns at {rate}/s, {connections}");
                all += total;
            }
            assert_eq!(all, (u128::from(duration) * u128::from(rate)).div_ceil(1_000_000_000) as u64);
        }
    }

    #[test]
    fn without_a_rate_every_moment_is_due() {
        let mut schedule = Schedule::new(10, 100, 0, 0, 1);
        assert_eq!(schedule.take(9), None);
        assert_eq!(schedule.take(10), Some(10));
        assert_eq!(schedule.take(57), Some(57));
        assert_eq!(schedule.take(110), None);
        assert_eq!(schedule.total(), None);
    }
}
