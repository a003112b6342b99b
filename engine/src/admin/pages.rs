//! The pages of the admin port: `/metrics`, `/health/live`, `/health/ready`, `/status`.
//! Lives on: the admin thread. The main thread sets the broker's phase. The pages read the cores' metrics and nothing
//! else of theirs.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;

use crate::metrics::{Metrics, PREFIX, line};
use types::META_GROUP;

/// A core whose loop has not turned for this time counts as dead.
pub const BEAT_AGE_MAX: Duration = Duration::from_secs(10);

/// The phase of the broker's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    Starting,
    Ready,
    Stopping,
}

/// Facts that are known before the broker starts.
#[derive(Debug)]
pub struct About {
    pub node_id: i32,
    pub cpus: Vec<usize>,
    pub memory_budget_bytes: u64,
    pub admin_addr: SocketAddr,
    pub data_dir: String,
}

/// Everything that the pages show.
#[derive(Debug)]
pub struct Site {
    about: About,
    started: Instant,
    pub metrics: Arc<Metrics>,
    phase: AtomicU8,
    /// Kafka address and cluster id, known once the broker serves clients.
    serving: OnceLock<(SocketAddr, String)>,
}

/// Figures of the process, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessFigures {
    pub resident_memory_bytes: u64,
    /// User and system time together.
    pub cpu_ms: u64,
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    status: u16,
    content_type: &'static str,
    body: String,
}

const TEXT: &str = "text/plain; charset=utf-8";

impl Answer {
    pub fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, content_type: TEXT, body: body.into() }
    }

    /// The bytes on the wire. The answer to HEAD gives the length of the body without the body.
    pub fn encode(&self, with_body: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = if self.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        let body = if with_body { self.body.as_str() } else { "" };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n{body}",
            self.status,
            self.content_type,
            self.body.len(),
        )
        .into_bytes()
    }
}

impl Site {
    pub fn new(about: About, metrics: Arc<Metrics>) -> Site {
        Site {
            about,
            started: Instant::now(),
            metrics,
            phase: AtomicU8::new(Phase::Starting as u8),
            serving: OnceLock::new(),
        }
    }

    /// From now on, the broker serves clients.
    pub fn ready(&self, kafka_addr: SocketAddr, cluster_id: &str) {
        self.serving.get_or_init(|| (kafka_addr, cluster_id.to_owned()));
        self.phase.store(Phase::Ready as u8, Ordering::Release);
    }

    /// From now on, the broker rejects clients.
    pub fn stopping(&self) {
        self.phase.store(Phase::Stopping as u8, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Stopping,
        }
    }

    pub fn answer(&self, path: &str, now: Instant, process: impl FnOnce() -> ProcessFigures) -> Answer {
        match path {
            "/metrics" => Answer {
                status: 200,
                content_type: "text/plain; version=0.0.4; charset=utf-8",
                body: self.metrics_page(now, process()),
            },
            "/health/live" => self.live(now),
            "/health/ready" => self.readiness(),
            "/status" => {
                let status = format!("{:#}\n", self.status(now, process()));
                Answer { status: 200, content_type: "application/json", body: status }
            }
            "/" => Answer::text(200, "/metrics\n/health/live\n/health/ready\n/status\n"),
            _ => Answer::text(404, "not found; there are /metrics, /health/live, /health/ready and /status\n"),
        }
    }

    fn metrics_page(&self, now: Instant, process: ProcessFigures) -> String {
        let mut out = self.metrics.page();
        let mut figure = |name: &str, kind: &str, help: &str, value: f64| {
            line(&mut out, format_args!("# HELP {PREFIX}{name} {help}"));
            line(&mut out, format_args!("# TYPE {PREFIX}{name} {kind}"));
            line(&mut out, format_args!("{PREFIX}{name} {value}"));
        };
        let uptime = now.saturating_duration_since(self.started).as_secs_f64();
        figure("uptime_seconds", "gauge", "Time since the process started.", uptime);
        let resident = process.resident_memory_bytes as f64;
        figure("process_resident_memory_bytes", "gauge", "Memory of the process that is in RAM.", resident);
        let cpu = process.cpu_ms as f64 / 1e3;
        figure("process_cpu_seconds_total", "counter", "User and system time of the process.", cpu);
        let help = "Whether clients are served. 0 too if the metadata group has stopped on this broker.";
        figure("ready", "gauge", help, f64::from(u8::from(self.is_ready())));
        line(&mut out, format_args!("# HELP {PREFIX}build_info The running version."));
        line(&mut out, format_args!("# TYPE {PREFIX}build_info gauge"));
        line(&mut out, format_args!("{PREFIX}build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
        out
    }

    /// Until the broker serves clients, a core's loop may not have begun, because of the core's recovery. Once the loop
    /// has begun, it must turn until the broker stops.
    fn live(&self, now: Instant) -> Answer {
        let phase = self.phase();
        let mut dead = Vec::new();
        for (core, metrics) in self.metrics.cores().enumerate() {
            match metrics.since_beat(now) {
                None if phase == Phase::Ready => dead.push(format!("core {core}: its loop has not begun\n")),
                Some(age) if phase != Phase::Stopping && age > BEAT_AGE_MAX => {
                    dead.push(format!("core {core}: its loop has not turned for {:.1} s\n", age.as_secs_f64()));
                }
                _ => {}
            }
        }
        if dead.is_empty() { Answer::text(200, "live\n") } else { Answer::text(503, dead.concat()) }
    }

    /// Whether clients are served. If a partition's group has stopped here, other brokers can serve it. Without its
    /// metadata, a broker knows nothing.
    fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && !self.has_stopped_metadata()
    }

    /// The metadata group runs on core 0.
    fn has_stopped_metadata(&self) -> bool {
        self.metrics.core(0).stopped.all().iter().any(|(group, _)| *group == META_GROUP)
    }

    fn readiness(&self) -> Answer {
        let mut body = match self.phase() {
            Phase::Starting => "starting\n".to_owned(),
            Phase::Ready if self.has_stopped_metadata() => {
                "not ready: the metadata group has stopped here\n".to_owned()
            }
            // A broker with a full disk still serves reads and metadata, so it stays in rotation.
            Phase::Ready if self.has_full_disk() => "ready\ndisk: full\n".to_owned(),
            Phase::Ready => "ready\n".to_owned(),
            Phase::Stopping => "stopping\n".to_owned(),
        };
        for (_, notice) in self.metrics.cores().flat_map(|metrics| metrics.stopped.all()) {
            body.push_str(&notice);
            body.push('\n');
        }
        Answer::text(if self.is_ready() { 200 } else { 503 }, body)
    }

    /// Whether a core found no room on the disk at its last attempt.
    fn has_full_disk(&self) -> bool {
        self.metrics.cores().any(|metrics| metrics.disk_full.get() != 0)
    }

    fn status(&self, now: Instant, process: ProcessFigures) -> serde_json::Value {
        let About { node_id, cpus, memory_budget_bytes, admin_addr, data_dir } = &self.about;
        let cores = self.metrics.cores().enumerate().map(|(core, metrics)| {
            json!({
                "core": core,
                "cpu": cpus.get(core),
                "ms_since_beat": metrics.since_beat(now).map(|age| age.as_millis() as u64),
                "figures": metrics.numbers().into_iter().collect::<std::collections::BTreeMap<_, _>>(),
            })
        });
        let room = self.metrics.core(0);
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "phase": format!("{:?}", self.phase()).to_lowercase(),
            "node_id": node_id,
            "cluster_id": self.serving.get().map(|(_, cluster_id)| cluster_id),
            "kafka_addr": self.serving.get().map(|(addr, _)| addr.to_string()),
            "admin_addr": admin_addr.to_string(),
            "data_dir": data_dir,
            "disk": if self.has_full_disk() { "full" } else { "ok" },
            "memory_budget_bytes": memory_budget_bytes,
            "replicas": { "held": room.replicas.get(), "max": room.replicas_max.get() },
            "cluster_partitions": {
                "known": room.cluster_partitions.get(), "max": room.cluster_partitions_max.get(),
            },
            "uptime_s": now.saturating_duration_since(self.started).as_secs_f64(),
            "process": {
                "pid": std::process::id(),
                "resident_memory_bytes": process.resident_memory_bytes,
                "cpu_s": process.cpu_ms as f64 / 1e3,
            },
            "cores": cores.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use types::GroupId;

    pub(crate) fn site(cores: usize) -> Site {
        let about = About {
            node_id: 7,
            cpus: (0..cores).collect(),
            memory_budget_bytes: 1 << 30,
            admin_addr: "127.0.0.1:9644".parse().unwrap(),
            data_dir: "/data".to_owned(),
        };
        Site::new(about, Arc::new(Metrics::new(cores)))
    }

    fn ask(site: &Site, path: &str) -> (u16, String) {
        ask_at(site, path, Instant::now())
    }

    fn ask_at(site: &Site, path: &str, now: Instant) -> (u16, String) {
        let answer = site.answer(path, now, || ProcessFigures { resident_memory_bytes: 5 << 20, cpu_ms: 1500 });
        (answer.status, answer.body)
    }

    #[test]
    fn readiness_follows_the_phase() {
        let site = site(1);
        assert_eq!(ask(&site, "/health/ready"), (503, "starting\n".to_owned()));
        site.ready("127.0.0.1:9092".parse().unwrap(), "c");
        assert_eq!(ask(&site, "/health/ready"), (200, "ready\n".to_owned()));
        site.stopping();
        assert_eq!(ask(&site, "/health/ready"), (503, "stopping\n".to_owned()));
    }

    #[test]
    fn the_status_names_the_core_whose_storage_has_failed() {
        let site = site(2);
        site.metrics.core(1).storage_failed.set(1);
        let status: serde_json::Value = serde_json::from_str(&ask(&site, "/status").1).unwrap();
        let told = |core: usize| status["cores"][core]["figures"]["storage_failed"].clone();
        assert_eq!((told(0), told(1)), (json!(0), json!(1)));
    }

    #[test]
    fn a_full_disk_is_told_and_the_broker_stays_ready() {
        let site = site(2);
        let disk = || serde_json::from_str::<serde_json::Value>(&ask(&site, "/status").1).unwrap()["disk"].clone();
        site.ready("127.0.0.1:9092".parse().unwrap(), "c");
        assert_eq!(disk(), json!("ok"));
        site.metrics.core(1).disk_full.set(1);
        assert_eq!(ask(&site, "/health/ready"), (200, "ready\ndisk: full\n".to_owned()));
        assert_eq!(disk(), json!("full"));
        site.metrics.core(1).disk_full.set(0);
        assert_eq!(ask(&site, "/health/ready"), (200, "ready\n".to_owned()));
    }

    #[test]
    fn a_broker_whose_metadata_group_has_stopped_is_not_ready() {
        let site = site(2);
        site.ready("127.0.0.1:9092".parse().unwrap(), "c");
        let shows =
            |value: &str| ask(&site, "/metrics").1.lines().any(|line| line == format!("millrace_ready {value}"));
        for group in 1..=200 {
            site.metrics.core(0).stopped.add(GroupId(group), format!("group {group} has stopped"));
        }
        assert!(ask(&site, "/health/ready").0 == 200 && shows("1"), "other brokers serve a stopped partition");
        site.metrics.core(0).stopped.add(META_GROUP, "the metadata group has stopped: why".to_owned());
        let (status, body) = ask(&site, "/health/ready");
        let lines: Vec<&str> = body.lines().take(2).collect();
        assert_eq!(status, 503);
        assert_eq!(lines, ["not ready: the metadata group has stopped here", "the metadata group has stopped: why"]);
        assert!(shows("0"));
    }

    #[test]
    fn a_core_that_does_not_turn_is_named() {
        let site = site(3);
        assert_eq!(ask(&site, "/health/live").0, 200, "recovery takes its time");
        site.ready("127.0.0.1:9092".parse().unwrap(), "c");
        site.metrics.core(0).beat();
        site.metrics.core(2).beat();
        assert_eq!(ask(&site, "/health/live"), (503, "core 1: its loop has not begun\n".to_owned()));
        site.metrics.core(1).beat();
        assert_eq!(ask(&site, "/health/live"), (200, "live\n".to_owned()));
        let soon = Instant::now() + Duration::from_secs(9);
        assert_eq!(ask_at(&site, "/health/live", soon), (200, "live\n".to_owned()));
        let later = Instant::now() + Duration::from_secs(11);
        let (status, why) = ask_at(&site, "/health/live", later);
        assert!(status == 503 && why.contains("core 1: its loop has not turned for "), "{why}");
        site.stopping();
        assert_eq!(ask_at(&site, "/health/live", later).0, 200, "a core that has drained turns no more");
    }

    #[test]
    fn status_is_json_with_every_core() {
        let site = site(2);
        site.ready("127.0.0.1:4711".parse().unwrap(), "cluster");
        site.metrics.core(1).connections_open.set(3);
        let room = site.metrics.core(0);
        room.replicas.set(3);
        room.replicas_max.set(9);
        room.cluster_partitions_max.set(20);
        let (status, body) = ask(&site, "/status");
        let page: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(status, 200);
        assert_eq!((&page["phase"], &page["node_id"]), (&json!("ready"), &json!(7)));
        assert_eq!((&page["kafka_addr"], &page["cluster_id"]), (&json!("127.0.0.1:4711"), &json!("cluster")));
        assert_eq!(page["cores"][1]["figures"]["connections_open"], json!(3));
        assert_eq!(page["cores"][0]["ms_since_beat"], json!(null));
        assert_eq!(page["process"]["cpu_s"], json!(1.5));
        assert_eq!(
            (&page["replicas"], &page["cluster_partitions"]["max"]),
            (&json!({ "held": 3, "max": 9 }), &json!(20))
        );
    }

    /// The part of `deploy/docs/metrics.md` between two marks.
    fn reference(begin: &str, end: &str) -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/docs/metrics.md");
        let page = std::fs::read_to_string(path).expect("the page is there");
        let (_, rest) = page.split_once(begin).expect("the page has the table's first mark");
        let (table, _) = rest.split_once(end).expect("the page has the table's last mark");
        table.to_owned()
    }

    /// `deploy/docs/metrics.md` has a row for each metric of the page.
    #[test]
    fn the_reference_lists_the_metrics_as_they_are() {
        let page = site(1).metrics_page(Instant::now(), ProcessFigures::default());
        let help = page.lines().filter_map(|line| line.strip_prefix("# HELP "));
        let kinds = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let row = |(help, kind): (&str, &str)| {
            let (name, help) = help.split_once(' ').expect("a metric has help");
            let (_, kind) = kind.split_once(' ').expect("a metric has a type");
            format!("| `{name}` | {kind} | {help} |\n")
        };
        let rows: String = help.zip(kinds).map(row).collect();
        let expected = format!("| Metric | Type | Meaning |\n|---|---|---|\n{rows}");
        let table = reference("<!-- metrics: made by the code; a test compares -->\n", "<!-- end of metrics -->");
        assert!(table == expected, "deploy/docs/metrics.md differs; between its marks belongs:\n\n{expected}");
    }

    /// Each alert in `deploy/docs/metrics.md` has an expression, and all metrics that it names exist.
    #[test]
    fn the_alerts_name_metrics_that_exist() {
        let page = site(1).metrics_page(Instant::now(), ProcessFigures::default());
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        // A histogram has no line under its own name, but under those of its buckets, its sum and its count.
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let names: BTreeSet<&str> = lines.filter_map(|line| line.split(|c: char| !is_part(c)).next()).collect();
        let table = reference("<!-- alerts: a test checks the names -->\n", "<!-- end of alerts -->");
        let alerts: Vec<&str> = table.lines().skip(2).collect();
        assert!(alerts.len() > 10, "the table has rows: {table}");
        for alert in alerts {
            let expression = alert.split('|').nth(2).expect("an alert has an expression");
            assert!(expression.contains(PREFIX), "the second cell has an expression: {alert}");
            for (at, _) in alert.match_indices(PREFIX) {
                let name = alert[at..].split(|c: char| !is_part(c)).next().expect("a name begins here");
                assert!(names.contains(name), "no metric is named {name}: {alert}");
            }
        }
    }

    #[test]
    fn metrics_include_the_process() {
        let (_, page) = ask(&site(1), "/metrics");
        for expected in [
            "millrace_process_resident_memory_bytes 5242880",
            "millrace_process_cpu_seconds_total 1.5",
            "millrace_ready 0",
        ] {
            assert!(page.lines().any(|line| line == expected), "{expected}\n{page}");
        }
        assert_eq!(ask(&site(1), "/nowhere").0, 404);
    }
}
