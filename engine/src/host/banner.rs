//! The broker's output on stdout when it starts: a few lines for people, and the addresses for scripts.
//!
//! The first part comes before recovery, which may take a while. The lines `listening NAME ADDRESS` come once the
//! broker serves clients, with the ports that it has bound. A script that waits for `listening kafka` can connect.

use std::{fmt, fmt::Write as _, net::SocketAddr, path::Path};

use crate::{
    config::{Config, Source, cpu_list::CpuList},
    host::{
        cpus::CorePlan,
        limits::{Budget, Bytes},
    },
};

/// The machine and the limits that the broker found.
#[derive(Debug)]
pub struct Found<'a> {
    pub plan: &'a CorePlan,
    pub budget: &'a Budget,
    pub data_dir: &'a Path,
    pub kernel: &'a str,
    pub open_files: u64,
    /// The part of `segment.files.max` that the limit of open files allows.
    pub segment_files: usize,
    /// The part of `max.connections` that the limit of open files allows.
    pub connections: usize,
    pub memlock: Option<u64>,
    pub o_direct: bool,
}

/// The runtime registers 64 KiB of buffers per core. Kernels before 5.12 count its rings as locked memory too.
const MEMLOCK_PER_CORE: u64 = 512 << 10;
/// Fewer open files than this do not suffice for ten thousand partitions with their clients.
const OPEN_FILES_WARN: u64 = 20_000;

/// The first part of the banner: everything that is known before the start.
pub fn beginning(config: &Config, found: &Found<'_>) -> String {
    let Found { plan, budget, data_dir, kernel, .. } = found;
    let cpus: CpuList = plan.cpus.iter().copied().collect();
    let cores = plan.cpus.len();
    let mut out = String::new();
    let mut line = |name: &str, text: fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<11}{text}");
    };
    line("millrace", format_args!("{} node {} (Linux {kernel})", env!("CARGO_PKG_VERSION"), config.node_id));
    line("cores", format_args!("{cores}, on CPU {cpus} ({})", plan.why));
    let (total, each) = (Bytes(budget.total_bytes), Bytes(budget.per_core_bytes));
    line("memory", format_args!("{total}, {each} per core ({})", budget.why));
    line("data", format_args!("{}", data_dir.display()));
    let (ring, ring_each) = (Bytes(config.wal_ring_bytes), Bytes(config.wal_ring_bytes / cores as u64));
    line("rings", format_args!("{ring}, {ring_each} per core"));
    let way = if found.o_direct { "O_DIRECT" } else { "buffered writes and fdatasync" };
    line("durability", format_args!("acks=1 and acks=all are answered after the sync to disk ({way})"));
    for warning in warnings(config, found) {
        line("warning", format_args!("{warning}"));
    }
    out
}

fn warnings(config: &Config, found: &Found<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if !found.o_direct {
        warnings.push(format!(
            "the file system of {} does not support O_DIRECT; writes go through the page cache and are slower; use \
             ext4 or xfs on a disk",
            found.data_dir.display()
        ));
    }
    let memlock_wanted = MEMLOCK_PER_CORE * found.plan.cpus.len() as u64;
    if let Some(memlock) = found.memlock.filter(|memlock| *memlock < memlock_wanted) {
        warnings.push(format!(
            "only {} may be locked in memory, {} are wanted; raise the hard limit (ulimit -Hl, LimitMEMLOCK=)",
            Bytes(memlock),
            Bytes(memlock_wanted)
        ));
    }
    if found.open_files < OPEN_FILES_WARN {
        warnings.push(format!(
            "only {} files may be open, {OPEN_FILES_WARN} are wanted; at most {} clients can connect; raise the hard \
             limit (ulimit -Hn, LimitNOFILE=)",
            found.open_files, found.connections
        ));
    }
    if found.segment_files < config.segment_files_max {
        warnings.push(format!(
            "at most {} segment files are kept open instead of segment.files.max = {}: the limit of open files is too \
             low",
            found.segment_files, config.segment_files_max
        ));
    }
    let all_interfaces = [("kafka.addr", config.kafka_addr), ("admin.addr", config.admin_addr)];
    for (name, addr) in all_interfaces {
        if addr.ip().is_unspecified() && config.source(name) != Source::Default {
            warnings.push(format!("{name} = {addr} is open to every network of this machine, without authentication"));
        }
    }
    warnings
}

/// The second part of the banner: the addresses that the broker has bound.
pub fn listening(config: &Config, kafka: SocketAddr, admin: SocketAddr) -> String {
    let (host, port) = config.advertised(kafka);
    let advertised = match &config.advertised_kafka_addr {
        Some(_) => format!(" (advertised as {host}:{port})"),
        None => String::new(),
    };
    format!("listening kafka {kafka}{advertised}\nlistening admin {admin}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Place, setting};

    fn config(values: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        for (name, value) in values {
            config
                .set(setting(name).unwrap(), value, &Place { source: Source::Flag, named: "test".to_owned() })
                .unwrap();
        }
        config
    }

    fn show(config: &Config, change: impl FnOnce(&mut Found<'_>)) -> String {
        let plan = CorePlan { cpus: vec![0, 1, 3], why: "affinity 0-3".to_owned() };
        let budget =
            Budget { total_bytes: 3 << 30, per_core_bytes: 1 << 30, why: "half of what the cgroup has".to_owned() };
        let mut found = Found {
            plan: &plan,
            budget: &budget,
            data_dir: Path::new("/data"),
            kernel: "6.1.0",
            open_files: 1 << 20,
            segment_files: 8192,
            connections: 1_000_000,
            memlock: None,
            o_direct: true,
        };
        change(&mut found);
        beginning(config, &found)
    }

    #[test]
    fn the_banner_is_short_and_says_why() {
        let expected = format!(
            "millrace   {} node 1 (Linux 6.1.0)\n\
             cores      3, on CPU 0-1,3 (affinity 0-3)\n\
             memory     3 GiB, 1 GiB per core (half of what the cgroup has)\n\
             data       /data\n\
             rings      512 MiB, 170.6 MiB per core\n\
             durability acks=1 and acks=all are answered after the sync to disk (O_DIRECT)\n",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(show(&Config::default(), |_| {}), expected);
    }

    #[test]
    fn a_limit_of_the_system_is_a_warning_with_its_remedy() {
        type Change = fn(&mut Found<'_>);
        let rows: [(&str, Change); 4] = [
            ("does not support O_DIRECT", |found| found.o_direct = false),
            ("only 512 KiB may be locked in memory, 1.5 MiB are wanted", |found| found.memlock = Some(512 << 10)),
            ("only 1024 files may be open", |found| found.open_files = 1024),
            ("at most 100 segment files are kept open", |found| found.segment_files = 100),
        ];
        for (part, change) in rows {
            let banner = show(&Config::default(), change);
            let warnings: Vec<&str> = banner.lines().filter(|line| line.starts_with("warning ")).collect();
            assert!(warnings.len() == 1 && warnings[0].contains(part), "{banner}");
        }
        let open = config(&[("kafka.addr", "0.0.0.0:9092"), ("advertised.kafka.addr", "me:9092")]);
        assert!(show(&open, |_| {}).contains("kafka.addr = 0.0.0.0:9092 is open to every network"));
    }

    #[test]
    fn addresses_are_those_really_bound() {
        let (kafka, admin) = ("127.0.0.1:4711".parse().unwrap(), "127.0.0.1:4712".parse().unwrap());
        assert_eq!(
            listening(&Config::default(), kafka, admin),
            "listening kafka 127.0.0.1:4711\nlistening admin 127.0.0.1:4712\n"
        );
        let told = config(&[("advertised.kafka.addr", "kafka.example:9092")]);
        assert!(listening(&told, kafka, admin).contains("127.0.0.1:4711 (advertised as kafka.example:9092)"));
        // Before the start, no line may look like an address for clients.
        assert!(!show(&Config::default(), |_| {}).contains("listening"));
    }
}
