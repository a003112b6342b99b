//! How busy each CPU was, from /proc/stat.

use std::fs;

/// Counted time of one CPU since boot, in the kernel's ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    total: u64,
}

/// The counters of all CPUs at one moment.
#[derive(Debug, Clone, Default)]
pub struct CpuTimes(Vec<Ticks>);

impl CpuTimes {
    /// Reads the counters; empty if there is no /proc/stat.
    pub fn now() -> CpuTimes {
        CpuTimes::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> CpuTimes {
        let cpu = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let name = words.next()?.strip_prefix("cpu")?;
            name.parse::<usize>().ok()?;
            // user nice system idle iowait irq softirq steal. The later columns are already part of user.
            let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
            let total = ticks.iter().sum::<u64>();
            let idle = ticks.iter().skip(3).take(2).sum::<u64>();
            Some(Ticks { busy: total - idle, total })
        };
        CpuTimes(stat.lines().filter_map(cpu).collect())
    }

    /// The busy share of each CPU since `before`, 0 to 1.
    pub fn busy_since(&self, before: &CpuTimes) -> Vec<f64> {
        let share = |(now, before): (&Ticks, &Ticks)| {
            let total = now.total.saturating_sub(before.total);
            if total == 0 { 0.0 } else { now.busy.saturating_sub(before.busy) as f64 / total as f64 }
        };
        self.0.iter().zip(&before.0).map(share).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_the_time_between() {
        let before = CpuTimes::parse("cpu  9 9 9 9\ncpu0 100 0 100 800 0 0 0 0 0 0\ncpu1 5 0 5 90 0 0 0 0\nintr 7\n");
        let after = CpuTimes::parse("cpu  9 9 9 9\ncpu0 150 0 125 820 5 0 0 0 0 0\ncpu1 5 0 5 90 0 0 0 0\nintr 7\n");
        assert_eq!(after.busy_since(&before), [0.75, 0.0]);
    }

    #[test]
    fn this_machine_has_cpus() {
        let now = CpuTimes::now();
        assert!(!now.0.is_empty());
        assert!(now.busy_since(&CpuTimes::default()).is_empty());
    }
}
