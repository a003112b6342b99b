//! Metrics that cores publish and the admin thread reads.
//! Lives on: one [`CoreMetrics`] per core. Only that core writes it. The admin thread reads it.
//!
//! Invariant: each cell has one writer. So the core changes a cell by a relaxed load and a relaxed store, which costs
//! as much as a plain variable. The reader sees each cell's newest value some time later, and sees changes of different
//! cells in any order.

pub mod histogram;
mod labelled;
mod notices;

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use net::codec::api::ApiKey;
use wal::store::StoreStats;

use crate::metrics::{
    histogram::Histogram,
    labelled::{PerApi, PerKind},
    notices::Notices,
};

/// The prefix of all names.
pub const PREFIX: &str = "millrace_";

/// A metric that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets a total that other code keeps.
    pub fn set(&self, total: u64) {
        self.0.store(total, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A metric that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// How Prometheus' text format writes a kind of metric.
trait Figure {
    const TYPE: &'static str;
    fn write(&self, out: &mut String, name: &str, core: usize);
    /// One number for `/status`. `None`: the metric is more than one number.
    fn number(&self) -> Option<u64>;
}

impl Figure for Counter {
    const TYPE: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, core: usize) {
        line(out, format_args!("{PREFIX}{name}{{core=\"{core}\"}} {}", self.get()));
    }

    fn number(&self) -> Option<u64> {
        Some(self.get())
    }
}

impl Figure for Gauge {
    const TYPE: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, core: usize) {
        line(out, format_args!("{PREFIX}{name}{{core=\"{core}\"}} {}", self.get()));
    }

    fn number(&self) -> Option<u64> {
        Some(self.get())
    }
}

impl Figure for Histogram {
    const TYPE: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, core: usize) {
        let mut total = 0;
        for (bound_ns, count) in self.buckets() {
            total += count;
            match bound_ns {
                Some(ns) => {
                    let seconds = ns as f64 / 1e9;
                    line(out, format_args!("{PREFIX}{name}_bucket{{core=\"{core}\",le=\"{seconds}\"}} {total}"));
                }
                None => line(out, format_args!("{PREFIX}{name}_bucket{{core=\"{core}\",le=\"+Inf\"}} {total}")),
            }
        }
        line(out, format_args!("{PREFIX}{name}_sum{{core=\"{core}\"}} {}", self.sum_ns() as f64 / 1e9));
        line(out, format_args!("{PREFIX}{name}_count{{core=\"{core}\"}} {total}"));
    }

    fn number(&self) -> Option<u64> {
        None
    }
}

/// Adds a line to a page.
pub fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ty;)*) => {
        /// The metrics of one core.
        #[derive(Debug, Default)]
        pub struct CoreMetrics {
            $($(#[doc = $help])+ pub $name: $kind,)*
            /// The groups that have stopped, and why.
            pub stopped: Notices,
            beats: Beats,
        }

        /// Name and help of all metrics.
        #[cfg(test)]
        const FIGURES: &[(&str, &str)] = &[$((stringify!($name), concat!($($help),+)),)*];

        impl Metrics {
            /// The page of `/metrics`, in Prometheus' text format 0.0.4.
            pub fn page(&self) -> String {
                let mut out = String::new();
                $(
                    let (name, help) = (stringify!($name), concat!($($help),+).trim());
                    line(&mut out, format_args!("# HELP {PREFIX}{name} {help}"));
                    line(&mut out, format_args!("# TYPE {PREFIX}{name} {}", <$kind as Figure>::TYPE));
                    for (core, metrics) in self.cores.iter().enumerate() {
                        metrics.$name.write(&mut out, name, core);
                    }
                )*
                out
            }
        }

        impl CoreMetrics {
            /// The metrics of this core that are single numbers, by name.
            pub fn numbers(&self) -> Vec<(&'static str, u64)> {
                [$((stringify!($name), self.$name.number()),)*]
                    .into_iter()
                    .filter_map(|(name, number)| Some((name, number?)))
                    .collect()
            }
        }
    };
}

// One row per metric. A test checks that other code writes each of them.
metrics! {
    /// Connections of Kafka clients that are open.
    connections_open: Gauge;
    /// Connections of Kafka clients that the broker refused because of `max.connections`, `max.connections.per.ip` or
    /// the limit of open files.
    connections_refused_total: Counter;
    /// Connections of Kafka clients that had sent no request and that the broker closed to make room for others.
    connections_displaced_total: Counter;
    /// Connections of Kafka clients that the broker closed because they held memory that others waited for, and did
    /// not move.
    connections_stalled_total: Counter;
    /// Bytes of memory that requests hold while the broker receives or handles them. Small requests do not count.
    memory_requests_bytes: Gauge;
    /// Bytes of memory that answers from memory, and metadata answers, hold until clients have taken them.
    memory_answers_bytes: Gauge;
    /// Bytes of memory that answers from segment files hold until clients have taken them.
    memory_cold_answers_bytes: Gauge;
    /// Bytes of memory that consumer groups hold: members, assignments and committed offsets.
    memory_consumer_groups_bytes: Gauge;
    /// Bytes of memory that consumer groups may hold (`memory.budget.bytes`). The broker serves more if the offsets
    /// topic has them, but takes no new ones.
    memory_consumer_groups_max_bytes: Gauge;
    /// Requests of consumer groups that the broker refused, or refused in part, because groups held their share of
    /// `memory.budget.bytes`.
    consumer_groups_refused_total: Counter;
    /// Times that a request waited for memory before the broker read more of it, or decoded it.
    memory_request_waits_total: Counter;
    /// Times that an answer had to wait for memory.
    memory_answer_waits_total: Counter;
    /// Log lines about Kafka clients' connections that the broker left out because there were too many, or because it
    /// had just logged the same.
    connection_lines_left_out_total: Counter;
    /// Requests of Kafka clients.
    kafka_requests_total: PerApi;
    /// Bytes of Kafka requests, without their length prefix.
    kafka_request_bytes_total: Counter;
    /// Bytes of answers to Kafka clients.
    kafka_response_bytes_total: Counter;
    /// Batches that the broker acknowledged to producers, without duplicates.
    produce_batches_total: Counter;
    /// Records that the broker acknowledged to producers.
    produce_records_total: Counter;
    /// Bytes of batches that the broker acknowledged to producers.
    produce_bytes_total: Counter;
    /// Batches of idempotent producers that arrived before their predecessor. The client retries both.
    produce_gaps_total: Counter;
    /// Idempotent producers that the core remembers, counted once for each partition.
    producers_remembered: Gauge;
    /// Idempotent producers that the broker forgot before `producer.id.expiration.ms` because they took more than
    /// their share of `memory.budget.bytes`.
    producers_forgotten_total: Counter;
    /// Time from receiving a produce request to having its answer.
    produce_latency_seconds: Histogram;
    /// Fetches that wait for records now.
    fetches_waiting: Gauge;
    /// Connections that the broker closed because a produce request with acks=0 failed. The producer has no other way
    /// to notice.
    produce_unacked_closed_total: Counter;
    /// Times that a long request yielded to others.
    request_pauses_total: Counter;
    /// Fetches that had to wait for records.
    fetch_waits_total: Counter;
    /// Bytes of batches fetched from memory.
    fetch_bytes_memory_total: Counter;
    /// Bytes of batches fetched from segment files.
    fetch_bytes_cold_total: Counter;
    /// Messages to other cores.
    mesh_sent_total: Counter;
    /// Messages from other cores.
    mesh_received_total: Counter;
    /// Messages about metadata and leaders that the core received from other cores.
    mesh_posts_total: Counter;
    /// Messages to other cores, by kind: what a core asks (such as `Append`) or tells (such as `Show`), and `Reply` and
    /// `Cancel`.
    mesh_messages_total: PerKind;
    /// Batches and group requests that wait for room in the write-ahead ring, or for commits of their partition.
    admission_waiting: Gauge;
    /// Batches and group requests that timed out while they waited for room in the write-ahead ring, or for commits.
    admission_timed_out_total: Counter;
    /// Time from staging entries in the write-ahead ring to their being durable, for each turn of the Raft ready
    /// loop.
    wal_write_latency_seconds: Histogram;
    /// Bytes of batches sent to other replicas.
    replication_sent_bytes_total: Counter;
    /// Bytes of batches that the broker read again, from memory or segment files, for replicas that lag.
    replication_fetched_bytes_total: Counter;
    /// Messages of leaders that the broker refused because the ring was down to its reserve. The leaders send them
    /// again.
    replication_refused_total: Counter;
    /// Messages of leaders whose batches were damaged or missing.
    replication_damaged_total: Counter;
    /// Connections on the peer port that the broker closed before they proved who they are, or because there were too
    /// many.
    peer_refused_total: Counter;
    /// Connections of tools on the peer port that are open.
    peer_tools_open: Gauge;
    /// Messages of other replicas that the broker dropped because no replica of the group can have sent them.
    raft_messages_refused_total: Counter;
    /// Dropped messages that show that this replica, or the sender, may have lost a part of its log.
    raft_possible_losses_total: Counter;
    /// Raft groups that stopped before a committed entry that they cannot apply.
    groups_stopped: Gauge;
    /// Replicas that got a snapshot because the log no longer has the entries that they lack.
    replication_snapshots_total: Counter;
    /// Partitions that this broker leads and that have a replica which is not in sync.
    partitions_under_replicated: Gauge;
    /// Partitions with a replica on this broker that know no leader.
    partitions_leaderless: Gauge;
    /// Replicas of partitions on this broker. Core 0 reports all cores.
    replicas: Gauge;
    /// Replicas that this broker has memory for (`memory.budget.bytes`). It serves more if it has them, but takes no
    /// new ones.
    replicas_max: Gauge;
    /// Partitions of the whole cluster that this broker knows. Core 0 reports them.
    cluster_partitions: Gauge;
    /// Partitions of the whole cluster whose metadata this broker has memory for (`memory.budget.bytes`).
    cluster_partitions_max: Gauge;
    /// Partitions whose Raft group is not at rest.
    replication_groups_awake: Gauge;
    /// Writes of the write-ahead ring, each with its sync.
    wal_writes_total: Counter;
    /// Pieces of memory, usually of 2 MiB, that the write-ahead ring took for its writes.
    wal_chunks_total: Counter;
    /// Pieces of memory that the kernel had to clear first, which takes milliseconds.
    wal_cold_chunks_total: Counter;
    /// Bytes of the write-ahead ring in use.
    wal_ring_used_bytes: Gauge;
    /// Size of the write-ahead ring.
    wal_ring_bytes: Gauge;
    /// Flushes of the write-ahead ring to segment files.
    flushes_total: Counter;
    /// Bytes written to segment files.
    flushed_bytes_total: Counter;
    /// Segment files that the broker wrote and synced, counted at each flush.
    flushed_files_total: Counter;
    /// Bytes of the partitions' last batches that checkpoints carry until the flusher writes them to segment files.
    checkpoint_carried_bytes: Gauge;
    /// Flushes that failed and that the broker retried.
    flush_failures_total: Counter;
    /// 1 if the core's storage has failed. The core acknowledges nothing more until the broker is restarted.
    storage_failed: Gauge;
    /// Files that are no longer needed and that the broker cannot remove. It tries again with each flush.
    unremoved_files: Gauge;
    /// 1 while the flusher finds no room on the disk.
    disk_full: Gauge;
    /// Checkpoints written.
    checkpoints_total: Counter;
    /// Reads of segment files.
    cold_reads_total: Counter;
    /// Bytes read from segment files.
    cold_read_bytes_total: Counter;
    /// Bytes of flushed batches that the core keeps in memory for consumers that keep up.
    cached_bytes: Gauge;
    /// Open descriptors of segment files.
    segment_files_open: Gauge;
    /// Duration of a turn of the Raft ready loop.
    raft_ready_loop_latency_seconds: Histogram;
    /// Time from proposing a metadata write to its being durable.
    metadata_wal_write_latency_seconds: Histogram;
    /// CPU time that the core's thread spends in a turn of the Raft ready loop.
    raft_ready_loop_cpu_seconds: Histogram;
    /// 1 on the broker that leads the metadata group and has applied everything committed before its term.
    metadata_leads: Gauge;
    /// The metadata group's term.
    metadata_term: Gauge;
    /// The metadata group's voters.
    metadata_voters: Gauge;
    /// The last entry of the metadata's log that every core shows.
    metadata_shown_index: Gauge;
    /// Metadata writes acknowledged on the WAL fast path: durable at the leader while it holds its lease.
    metadata_wal_writes_total: Counter;
    /// Metadata writes that asked for the fast path but had to wait for a quorum.
    metadata_raft_fallback_total: Counter;
    /// Metadata writes that asked for a quorum.
    metadata_quorum_writes_total: Counter;
    /// Writes, reads and descriptions that wait for the metadata group's answer. Each has a deadline.
    metadata_questions_open: Gauge;
    /// Metadata writes that the broker sent to the leader, counted at each attempt.
    metadata_forwarded_writes_total: Counter;
    /// Read-lease heartbeats that the metadata leader sent, one a second to each follower.
    heartbeat_send_total: Counter;
    /// Read-lease heartbeats that the broker received from the metadata leader, one a second.
    heartbeat_receive_total: Counter;
    /// Metadata reads that the core answered from its view under a valid lease.
    lease_valid_reads_total: Counter;
    /// Metadata reads that found no valid lease and asked the leader first.
    lease_expired_reads_total: Counter;
    /// Ticks of the metadata group's timers, of 100 ms.
    metadata_ticks_total: Counter;
    /// Ticks of the metadata group's timers at which this broker held a valid read lease.
    metadata_leased_ticks_total: Counter;
    /// Time between two turns of the core's executor, measured every 10 ms. The network and the disk wait for the
    /// core as long.
    core_turn_seconds: Histogram;
    /// Longest time between two turns of the core's executor since the start, in microseconds.
    core_turn_longest_microseconds: Gauge;
    /// Beats of the core's loop, about one a second.
    loop_beats_total: Counter;
}

/// The time at which the core's loop last turned.
#[derive(Debug)]
struct Beats {
    /// The moment from which `last` counts.
    epoch: Instant,
    /// In ms, plus one. 0: the loop has not begun.
    last: AtomicU64,
}

impl Default for Beats {
    fn default() -> Beats {
        Beats { epoch: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl CoreMetrics {
    /// Records that the core's loop has turned.
    pub fn beat(&self) {
        self.loop_beats_total.add(1);
        let since = u64::try_from(self.beats.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.beats.last.store(since + 1, Relaxed);
    }

    /// Time from the last turn of the core's loop to `now`. `None`: the loop has not begun.
    pub fn since_beat(&self, now: Instant) -> Option<Duration> {
        let last = self.beats.last.load(Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.beats.epoch + Duration::from_millis(last)))
    }

    /// The counter of requests to one API.
    pub fn kafka_requests(&self, api: ApiKey) -> &Counter {
        self.kafka_requests_total.of(api)
    }

    /// Publishes the counters that the store keeps.
    pub fn publish_store(&self, stats: &StoreStats) {
        self.wal_writes_total.set(stats.ring_writes);
        self.wal_chunks_total.set(stats.ring_chunks);
        self.wal_cold_chunks_total.set(stats.ring_cold_chunks);
        self.wal_ring_used_bytes.set(stats.ring_used_bytes);
        self.wal_ring_bytes.set(stats.ring_bytes);
        self.flushes_total.set(stats.flushes);
        self.flushed_bytes_total.set(stats.flushed_bytes);
        self.flushed_files_total.set(stats.flushed_files);
        self.checkpoint_carried_bytes.set(stats.carried_bytes);
        self.flush_failures_total.set(stats.flush_failures);
        self.unremoved_files.set(stats.unremoved_files);
        self.checkpoints_total.set(stats.checkpoints);
        self.cold_reads_total.set(stats.cold_reads);
        self.cold_read_bytes_total.set(stats.cold_read_bytes);
        self.cached_bytes.set(stats.cached_bytes);
        self.segment_files_open.set(stats.open_files as u64);
    }
}

/// The metrics of all cores.
#[derive(Debug)]
pub struct Metrics {
    cores: Vec<Arc<CoreMetrics>>,
}

impl Metrics {
    pub fn new(cores: usize) -> Metrics {
        Metrics { cores: (0..cores).map(|_| Arc::default()).collect() }
    }

    /// The metrics of one core. Only that core may write them.
    pub fn core(&self, core: usize) -> Arc<CoreMetrics> {
        self.cores[core].clone()
    }

    pub fn cores(&self) -> impl Iterator<Item = &CoreMetrics> {
        self.cores.iter().map(|core| &**core)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_counts() {
        let metrics = Metrics::new(2);
        let core = metrics.core(1);
        core.connections_open.set(3);
        core.produce_records_total.add(5);
        core.produce_records_total.add(7);
        core.kafka_requests(ApiKey::Fetch).add(2);
        core.kafka_requests(ApiKey::DescribeTopicPartitions).add(1);
        let page = metrics.page();
        for expected in [
            "# HELP millrace_connections_open Connections of Kafka clients that are open.",
            "# TYPE millrace_connections_open gauge",
            "# TYPE millrace_kafka_requests_total counter",
            "millrace_connections_open{core=\"0\"} 0",
            "millrace_connections_open{core=\"1\"} 3",
            "millrace_produce_records_total{core=\"1\"} 12",
            "millrace_kafka_requests_total{core=\"1\",api=\"Fetch\"} 2",
            "millrace_kafka_requests_total{core=\"1\",api=\"DescribeTopicPartitions\"} 1",
            "millrace_kafka_requests_total{core=\"1\",api=\"Produce\"} 0",
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected}\n{page}");
        }
        assert!(core.numbers().contains(&("kafka_requests_total", 3)));
    }

    #[test]
    fn messages_are_counted_by_kind() {
        let metrics = Metrics::new(2);
        let core = metrics.core(1);
        core.mesh_messages_total.set([("Append", 1), ("Show", 2)].into_iter());
        core.mesh_messages_total.set([("Append", 4), ("Show", 2)].into_iter());
        let page = metrics.page();
        let lines: Vec<_> = page.lines().filter(|line| line.starts_with("millrace_mesh_messages_total")).collect();
        let expected = [
            "millrace_mesh_messages_total{core=\"1\",kind=\"Append\"} 4",
            "millrace_mesh_messages_total{core=\"1\",kind=\"Show\"} 2",
        ];
        assert_eq!(lines, expected);
        assert!(core.numbers().contains(&("mesh_messages_total", 6)));
    }

    #[test]
    fn histograms_are_cumulative_and_end_at_infinity() {
        let metrics = Metrics::new(1);
        let core = metrics.core(0);
        for us in [1, 100, 100, 2_000_000_000] {
            core.produce_latency_seconds.record(Duration::from_micros(us));
        }
        let page = metrics.page();
        let own: Vec<&str> = page.lines().filter(|line| line.starts_with("millrace_produce_latency_seconds")).collect();
        let buckets: Vec<(f64, u64)> = own
            .iter()
            .filter_map(|line| line.strip_prefix("millrace_produce_latency_seconds_bucket{core=\"0\",le=\""))
            .map(|rest| {
                let (bound, count) = rest.split_once("\"} ").unwrap();
                (bound.parse().unwrap_or(f64::INFINITY), count.parse().unwrap())
            })
            .collect();
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, 4)));
        assert_eq!(buckets.iter().find(|(bound, _)| *bound > 0.000_1).unwrap().1, 3);
        assert!(own.contains(&"millrace_produce_latency_seconds_count{core=\"0\"} 4"));
        assert!(own.contains(&"millrace_produce_latency_seconds_sum{core=\"0\"} 2000.000201"));
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        for (name, help) in FIGURES {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(help.trim().ends_with('.') && !help.contains('\\'), "{name}");
        }
        let page = Metrics::new(1).page();
        for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(kind == "histogram", name.ends_with("_seconds"), "{name}");
        }
    }

    /// A counter that nothing increments misleads. Code outside this file must write each row, by its name or by a
    /// method that writes several.
    #[test]
    fn every_figure_is_written_somewhere() {
        fn read(dir: &std::path::Path, text: &mut String) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.ends_with("src/metrics") || path.ends_with("admin/pages.rs") {
                    continue;
                }
                if path.is_dir() {
                    read(&path, text);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    text.push_str(&std::fs::read_to_string(&path).unwrap());
                }
            }
        }
        let mut text = String::new();
        read(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut text);
        text.retain(|c| !c.is_whitespace());
        // A host hands out its core's figures.
        let text = text.replace("metrics().", "metrics.");
        let own = include_str!("mod.rs");
        let (_, publish_store) = own.split_once("pub fn publish_store").unwrap();
        let (publish_store, _) = publish_store.split_once("\n    }").unwrap();
        for (name, _) in FIGURES {
            let by = match *name {
                "kafka_requests_total" => vec![".kafka_requests(".to_owned()],
                "loop_beats_total" => vec!["metrics.beat()".to_owned()],
                name if publish_store.contains(&format!("self.{name}.set(")) => {
                    vec!["metrics.publish_store(".to_owned()]
                }
                name => ["add", "set", "record"].map(|verb| format!("metrics.{name}.{verb}(")).to_vec(),
            };
            assert!(by.iter().any(|call| text.contains(call)), "nothing writes {name}");
        }
    }

    #[test]
    fn the_stores_figures_are_taken_over() {
        let metrics = Metrics::new(1);
        let stats =
            StoreStats { flushes: 1, ring_bytes: 2, ring_used_bytes: 3, open_files: 4, ..StoreStats::default() };
        metrics.core(0).publish_store(&stats);
        let numbers = metrics.core(0).numbers();
        for row in [("flushes_total", 1), ("wal_ring_bytes", 2), ("wal_ring_used_bytes", 3), ("segment_files_open", 4)]
        {
            assert!(numbers.contains(&row), "{row:?}");
        }
    }

    #[test]
    fn a_core_that_never_turned_is_told_from_one_that_stopped() {
        let core = CoreMetrics::default();
        let before = Instant::now();
        assert_eq!(core.since_beat(before), None);
        core.beat();
        assert!(core.since_beat(before + Duration::from_secs(60)).unwrap() <= Duration::from_secs(61));
        assert!(core.since_beat(Instant::now() + Duration::from_secs(60)).unwrap() >= Duration::from_secs(60));
        assert_eq!(core.loop_beats_total.get(), 1);
    }
}
