//! The broker's settings: one table, from which the parser, refusals, help, docs and DescribeConfigs all read.
//! Lives on: the main thread at start; afterwards shared, and never changed.
//!
//! Four layers in rising precedence: defaults, the TOML file, `MILLRACE_…` variables, flags. Names are Kafka's own where
//! Kafka has the setting. An unknown name or an impossible value is refused at start.

pub mod cluster;
pub mod layers;
pub mod reach;
pub mod setting_type;
pub mod timestamps;
pub mod topic;
pub mod unobeyed;
pub mod value;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use consensus::group::descriptor::ENTRY_DATA_BYTES_MAX;
use wal::ring::RingConfig;

use crate::{
    config::value::{HostPort, Kind, Seeds, Unfit, Unit, Value},
    host::cpus::CpuList,
};

/// A row of the table.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    /// The flag of its own, without dashes; any setting can be given by `--set NAME=VALUE`.
    pub flag: Option<&'static str>,
    /// Empty: not set.
    pub default: &'static str,
    pub kind: Kind,
    doc: &'static str,
}

/// Where a value comes from. Later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Default,
    File,
    Variable,
    Flag,
}

impl Setting {
    pub fn doc(&self) -> &'static str {
        self.doc.trim()
    }

    /// `MILLRACE_` and the flag, or the name, in capitals.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.flag.unwrap_or(self.name).to_ascii_uppercase().replace(['.', '-'], "_"))
    }
}

/// What environment variables of the broker begin with.
pub const VARIABLE_PREFIX: &str = "MILLRACE_";

const KIB: i64 = 1 << 10;
const MIB: i64 = 1 << 20;
/// Replicas of a partition at most.
pub const REPLICAS_MAX: i64 = 7;
const INT_MAX: i64 = i32::MAX as i64;
/// A duration in ms of this length, some 290,000 years, is added to any wall clock without overflow.
const MS_MAX: i64 = i64::MAX / 1000;

const fn count(min: i64, max: i64) -> Kind {
    Kind::Int { min, max, unit: Unit::Count }
}

const fn bytes(min: i64, max: i64) -> Kind {
    Kind::Int { min, max, unit: Unit::Bytes }
}

const fn ms(min: i64, max: i64) -> Kind {
    Kind::Int { min, max, unit: Unit::Milliseconds }
}

const fn minutes(min: i64) -> Kind {
    Kind::Int { min, max: INT_MAX, unit: Unit::Minutes }
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty = $name:literal $(flag $flag:literal)?, $default:literal, $kind:expr;)*) => {
        /// Every setting, by topic.
        pub static SETTINGS: &[Setting] = &[$(Setting {
            name: $name,
            flag: settings!(@flag $($flag)?),
            default: $default,
            kind: $kind,
            doc: concat!($($doc),+),
        },)*];

        /// The settings in force.
        #[derive(Clone, Debug)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $field: $type,)*
            /// Those that are not at their default.
            sources: BTreeMap<&'static str, Source>,
        }

        impl Default for Config {
            fn default() -> Config {
                Config {
                    $($field: <$type>::parse($default).expect("a test reads every default"),)*
                    sources: BTreeMap::new(),
                }
            }
        }

        impl Config {
            /// Takes a value in normal form; `None` if the field's type has no such value.
            fn assign(&mut self, name: &str, text: &str) -> Option<()> {
                match name {
                    $($name => self.$field = <$type>::parse(text)?,)*
                    _ => return None,
                }
                Some(())
            }

            /// The value in force of a setting of the table; `None` if it is not set.
            pub fn value(&self, name: &str) -> Option<String> {
                match name {
                    $($name => self.$field.show(),)*
                    _ => None,
                }
            }
        }
    };
    (@flag $flag:literal) => { Some($flag) };
    (@flag) => { None };
}

settings! {
    /// Directory of everything the broker keeps; created if it is missing.
    data_dir: PathBuf = "data.dir" flag "data-dir", "./millrace-data", Kind::Path;
    /// Address on which Kafka clients are served.
    kafka_addr: SocketAddr = "kafka.addr" flag "kafka-addr", "127.0.0.1:9092", Kind::Addr;
    /// Address that clients are told to connect to, if it is not `kafka.addr` itself.
    advertised_kafka_addr: Option<HostPort> = "advertised.kafka.addr" flag "advertised-kafka-addr", "", Kind::HostPort;
    /// Address on which other brokers, and tools, are served.
    peer_addr: SocketAddr = "peer.addr" flag "peer-addr", "127.0.0.1:9291", Kind::Addr;
    /// Address of /metrics, /health/live, /health/ready and /status.
    admin_addr: SocketAddr = "admin.addr" flag "admin-addr", "127.0.0.1:9644", Kind::Addr;
    /// This broker's number in the cluster.
    node_id: i32 = "node.id" flag "node-id", "1", count(0, INT_MAX);
    /// Brokers that found the cluster together, this one among them, or that a new broker joins it through; without them, a new
    /// broker founds a cluster of its own.
    seeds: Option<Seeds> = "seeds" flag "seeds", "", Kind::Seeds;
    /// Address that other brokers are told to connect to, if it is not `peer.addr` itself.
    advertised_peer_addr: Option<HostPort> = "advertised.peer.addr" flag "advertised-peer-addr", "", Kind::HostPort;
    /// File with the secret by which the cluster's brokers and tools know each other. Required with other brokers in
    /// `seeds`, and where `peer.addr` is not on loopback; else the broker makes one of its own, cluster.secret in its
    /// data directory.
    cluster_secret_file: Option<PathBuf> = "cluster.secret.file" flag "cluster-secret-file", "", Kind::Path;
    /// Whether a broker without `cluster.secret.file` takes everybody on its peer port for a broker or tool of its
    /// cluster.
    peer_allow_insecure: bool = "peer.allow.insecure", "false", Kind::Bool;
    /// A broker that the leader of the metadata does not hear of for so long is fenced: clients are not told of it.
    broker_session_timeout_ms: u64 = "broker.session.timeout.ms", "3000", ms(1000, 600_000);
    /// CPUs to run on, one core each; by default all that affinity, cpuset and CPU quota allow.
    cores: Option<CpuList> = "cores" flag "cores", "", Kind::Cpus;
    /// Memory for caches, buffers, partitions and idempotent producers, split over the cores; by default half of the
    /// RAM or of the cgroup's limit. What does not fit is refused by name when it is created, or forgotten.
    memory_budget_bytes: Option<u64> = "memory.budget.bytes", "", bytes(64 * MIB, i64::MAX);
    /// Memory of the newest records, from which consumers that keep up are served, split over the cores; by default 512 MiB a core,
    /// and at most a quarter of the memory budget, which is the limit of any value.
    log_cache_bytes: Option<u64> = "log.cache.bytes", "", bytes(MIB, i64::MAX);
    /// What is logged to stderr.
    log_filter: String = "log.filter" flag "log", "info", Kind::LogFilter;

    /// Size of the write-ahead rings of all cores together. By default more where many cores need it for message.max.bytes. Changing it
    /// takes effect at the next start.
    wal_ring_bytes: u64 = "wal.ring.bytes", "536870912", bytes(16 * MIB, i64::MAX);
    /// Descriptors of segment files kept open, all cores together; the least recently used is closed beyond it.
    segment_files_max: usize = "segment.files.max", "8192", count(256, 1_000_000);

    /// When metadata writes are acknowledged: once a majority has them, or once the leader alone has them on disk.
    metadata_acks: String = "metadata.acks", "quorum", Kind::OneOf(&["quorum", "leader"]);
    /// How many brokers vote on the metadata; by default as many as founded the cluster.
    metadata_voters: Option<usize> = "metadata.voters", "", count(1, 15);

    /// Partitions of a topic that is created without a number, or by being asked for.
    num_partitions: i32 = "num.partitions", "1", count(1, 100_000);
    /// Whether a topic that does not exist is created when a client asks for it.
    auto_create_topics_enable: bool = "auto.create.topics.enable", "true", Kind::Bool;
    /// Replicas of a topic that is created without a number.
    default_replication_factor: i16 = "default.replication.factor", "1", count(1, REPLICAS_MAX);
    /// Replicas that must have a record before acks=all is answered; never fewer than a majority.
    min_insync_replicas: u32 = "min.insync.replicas", "1", count(1, REPLICAS_MAX);
    /// Replicas of the group coordinator's topic, or as many as there are brokers when it is created, if those are fewer. All that
    /// found a cluster are waited for.
    offsets_topic_replication_factor: i16 = "offsets.topic.replication.factor", "3", count(1, REPLICAS_MAX);
    /// A replica that has not had everything for so long is not in sync any more.
    replica_lag_time_max_ms: u64 = "replica.lag.time.max.ms", "30000", ms(100, MS_MAX);
    /// What each core sends replicas that lag from the log, in bytes a second at most: more is sooner in sync, and slower for clients
    /// meanwhile where the disk or the CPUs are busy.
    replica_catch_up_bytes_per_second: u64 = "replica.catch.up.bytes.per.second", "104857600", bytes(MIB, i64::MAX);
    /// Whether partitions are led by the first of their replicas again, once that is back.
    auto_leader_rebalance_enable: bool = "auto.leader.rebalance.enable", "true", Kind::Bool;
    /// How often that is looked after.
    leader_imbalance_check_interval_seconds: u64 = "leader.imbalance.check.interval.seconds", "10",
        Kind::Int { min: 1, max: INT_MAX, unit: Unit::Seconds };

    /// Largest request; a connection that sends a larger one is closed.
    socket_request_max_bytes: usize = "socket.request.max.bytes", "104857600", bytes(KIB, INT_MAX);
    /// Requests in progress, all cores together, and at most an eighth of the memory budget; beyond it nothing more is read until some
    /// are answered.
    queued_max_request_bytes: usize = "queued.max.request.bytes", "268435456", bytes(MIB, i64::MAX);
    /// Largest batch that a producer may send, as it comes, compressed or not.
    message_max_bytes: usize = "message.max.bytes", "1048588", bytes(64, INT_MAX);
    /// Largest answer to a fetch; its first batch is returned even if it is larger.
    fetch_max_bytes: usize = "fetch.max.bytes", "57671680", bytes(KIB, INT_MAX);
    /// Connections of clients at most, all cores together; beyond it, one that has not sent a request yet is closed for each that comes, and
    /// where there is none, the one that comes. The limit of open files may allow fewer.
    max_connections: usize = "max.connections", "2147483647", count(1, INT_MAX);
    /// Connections of clients at most from one address, all cores together; one that comes beyond it is closed. A TOML file
    /// that has max.connections too quotes this name.
    max_connections_per_ip: usize = "max.connections.per.ip", "2147483647", count(1, INT_MAX);
    /// Connections of other brokers and of tools at most. The limit of open files may allow fewer.
    peer_max_connections: usize = "peer.max.connections", "1024", count(16, INT_MAX);
    /// A connection on which nothing was asked for so long is closed.
    connections_max_idle_ms: i64 = "connections.max.idle.ms", "600000",
        Kind::IntOrUnlimited { min: 1000, max: MS_MAX, unit: Unit::Milliseconds };

    /// How long records are kept; goes before log.retention.minutes.
    log_retention_ms: Option<i64> = "log.retention.ms", "",
        Kind::IntOrUnlimited { min: 1, max: MS_MAX, unit: Unit::Milliseconds };
    /// How long records are kept; goes before log.retention.hours.
    log_retention_minutes: Option<i64> = "log.retention.minutes", "",
        Kind::IntOrUnlimited { min: 1, max: INT_MAX, unit: Unit::Minutes };
    /// How long records are kept.
    log_retention_hours: i64 = "log.retention.hours", "168",
        Kind::IntOrUnlimited { min: 1, max: INT_MAX, unit: Unit::Hours };
    /// How large a partition may grow before its oldest segments go.
    log_retention_bytes: i64 = "log.retention.bytes", "-1",
        Kind::IntOrUnlimited { min: 0, max: i64::MAX, unit: Unit::Bytes };
    /// How often retention is looked after.
    log_retention_check_interval_ms: u64 = "log.retention.check.interval.ms", "300000", ms(1, MS_MAX);
    /// Size at which a partition begins a new segment file.
    log_segment_bytes: u64 = "log.segment.bytes", "1073741824", bytes(4 * KIB, INT_MAX);
    /// Age at which a partition begins a new segment file; goes before log.roll.hours.
    log_roll_ms: Option<u64> = "log.roll.ms", "", ms(1, MS_MAX);
    /// Age at which a partition begins a new segment file.
    log_roll_hours: u64 = "log.roll.hours", "168", Kind::Int { min: 1, max: INT_MAX, unit: Unit::Hours };
    /// Bytes of a segment file per entry of its offset and time indexes.
    log_index_interval_bytes: u32 = "log.index.interval.bytes", "16384", bytes(4 * KIB, 64 * MIB);
    /// Whether records bear the producer's time or that of their arrival.
    log_message_timestamp_type: String = "log.message.timestamp.type", "CreateTime",
        Kind::OneOf(&["CreateTime", "LogAppendTime"]);
    /// How far behind the broker's clock a producer's timestamp may be; one that is older is refused, but for -1, no timestamp.
    log_message_timestamp_before_max_ms: i64 = "log.message.timestamp.before.max.ms", "9223372036854775807",
        ms(0, i64::MAX);
    /// How far ahead of the broker's clock a producer's timestamp may be; one that is later is refused.
    log_message_timestamp_after_max_ms: i64 = "log.message.timestamp.after.max.ms", "3600000", ms(0, i64::MAX);
    /// Whether the records of compressed batches are decompressed and checked before they are stored, as those of others always are.
    log_validate_compressed: bool = "log.validate.compressed", "true", Kind::Bool;
    /// What becomes of old records. Compaction is not served yet.
    log_cleanup_policy: String = "log.cleanup.policy", "delete", Kind::OneOf(&["delete"]);
    /// How records are kept: as the producer compressed them. Nothing is recompressed.
    compression_type: String = "compression.type", "producer", Kind::OneOf(&["producer"]);

    /// How long an idempotent producer that writes nothing is remembered.
    producer_id_expiration_ms: i64 = "producer.id.expiration.ms", "86400000", ms(1, MS_MAX);
    /// How long a batch of an idempotent producer that comes before the one it follows is answered NOT_LEADER_OR_FOLLOWER, so that the
    /// client sends both again; after that, OUT_OF_ORDER_SEQUENCE_NUMBER. While the broker is stopped it does not count.
    producer_gap_timeout_ms: u64 = "producer.gap.timeout.ms", "5000", ms(0, INT_MAX);
    /// Partitions of __consumer_offsets, when it is created.
    offsets_topic_num_partitions: i32 = "offsets.topic.num.partitions", "50", count(1, 100_000);
    /// How long committed offsets outlive their group's last member.
    offsets_retention_minutes: i64 = "offsets.retention.minutes", "10080", minutes(1);
    /// How often expired offsets are looked for.
    offsets_retention_check_interval_ms: i64 = "offsets.retention.check.interval.ms", "600000", ms(1, MS_MAX);
    /// How long a commit may take to be stored; after that it is answered COORDINATOR_NOT_AVAILABLE.
    offsets_commit_timeout_ms: u64 = "offsets.commit.timeout.ms", "5000", ms(1, INT_MAX);
    /// Longest metadata that a commit may carry.
    offset_metadata_max_bytes: usize = "offset.metadata.max.bytes", "4096", bytes(0, 10_922);
    /// Shortest session timeout that a group member may ask for.
    group_min_session_timeout_ms: i32 = "group.min.session.timeout.ms", "6000", ms(1, INT_MAX);
    /// Longest session timeout that a group member may ask for.
    group_max_session_timeout_ms: i32 = "group.max.session.timeout.ms", "1800000", ms(1, INT_MAX);
    /// How long an empty group waits for more members after its first.
    group_initial_rebalance_delay_ms: i32 = "group.initial.rebalance.delay.ms", "3000", ms(0, INT_MAX);
    /// Most members of a group.
    group_max_size: usize = "group.max.size", "10000", count(1, INT_MAX);
}

/// Why the broker does not start with these settings. Reads as a sentence: what is wrong, the limit, the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A row by its name.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Where a value stands, for refusals.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: Source,
    /// The file, variable or flag.
    pub named: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named)
    }
}

impl Config {
    /// Sets one value, unless a layer above has set it.
    pub fn set(&mut self, setting: &'static Setting, text: &str, place: &Place) -> Result<(), ConfigError> {
        let refuse = |Unfit(why): Unfit| {
            let default = match setting.default {
                "" => "leave it out".to_owned(),
                default => format!("leave it out for the default, {default}"),
            };
            ConfigError(format!("{} = '{text}' ({place}): it {why}; set it so, or {default}", setting.name))
        };
        let normal = setting.kind.normalise(text).map_err(refuse)?;
        if self.source(setting.name) > place.source {
            return Ok(());
        }
        let assigned = self.assign(setting.name, &normal);
        assigned.ok_or_else(|| refuse(Unfit(format!("is out of the range of its type ({})", setting.kind))))?;
        self.sources.insert(setting.name, place.source);
        Ok(())
    }

    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).copied().unwrap_or(Source::Default)
    }

    /// Holds settings against each other.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |message: String| Err(ConfigError(message));
        let Config { message_max_bytes, socket_request_max_bytes, queued_max_request_bytes, .. } = self;
        if message_max_bytes > socket_request_max_bytes {
            return refuse(format!(
                "message.max.bytes = {message_max_bytes}: such a batch can't arrive in requests of at most \
                 {socket_request_max_bytes} bytes; lower it, or raise socket.request.max.bytes"
            ));
        }
        if queued_max_request_bytes < socket_request_max_bytes {
            return refuse(format!(
                "queued.max.request.bytes = {queued_max_request_bytes}: below the size of one request, \
                 {socket_request_max_bytes} bytes; raise it, or lower socket.request.max.bytes"
            ));
        }
        let (min, max) = (self.group_min_session_timeout_ms, self.group_max_session_timeout_ms);
        if min > max {
            return refuse(format!(
                "group.min.session.timeout.ms = {min}: above group.max.session.timeout.ms, {max}; no session would be \
                 allowed; lower the one or raise the other"
            ));
        }
        if self.kafka_addr.ip().is_unspecified() && self.advertised_kafka_addr.is_none() {
            return refuse(format!(
                "kafka.addr = {}: clients can't connect to that address as it stands; set advertised.kafka.addr \
                 (--advertised-kafka-addr) to the host and port at which they reach this broker",
                self.kafka_addr
            ));
        }
        reach::check(self)?;
        let (insync, replicas) = (self.min_insync_replicas, self.default_replication_factor);
        if i64::from(insync) > i64::from(replicas) {
            return refuse(format!(
                "min.insync.replicas = {insync}: above default.replication.factor, {replicas}; topics with the defaults would \
                 take no writes with acks=all; lower the one or raise the other"
            ));
        }
        let ports = [("kafka.addr", self.kafka_addr), ("peer.addr", self.peer_addr), ("admin.addr", self.admin_addr)];
        for (at, (name, addr)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..at].iter().find(|(_, taken)| taken == addr && addr.port() != 0) {
                return refuse(format!("{name} = {addr}: that is {other} already; choose another port"));
            }
        }
        Ok(())
    }

    /// Raises the default size of the rings to what so many cores need.
    pub fn fit_rings(&mut self, cores: usize) {
        if self.source("wal.ring.bytes") == Source::Default {
            self.wal_ring_bytes = self.wal_ring_bytes.max(self.least_ring_bytes(cores));
        }
    }

    fn least_ring_bytes(&self, cores: usize) -> u64 {
        let of_core = RingConfig::least_bytes_for(self.message_max_bytes + ENTRY_DATA_BYTES_MAX);
        of_core.max(RING_BYTES_MIN) * cores as u64
    }

    /// Holds the ring against the number of cores that share it.
    pub fn check_cores(&self, cores: usize) -> Result<(), ConfigError> {
        let least = self.least_ring_bytes(cores);
        if self.wal_ring_bytes < least {
            return Err(ConfigError(format!(
                "wal.ring.bytes = {}: {cores} cores with message.max.bytes = {} need at least {least}, since each core's ring \
                 holds four batches of that size and their headers; raise it to {least}, lower message.max.bytes, or use fewer cores",
                self.wal_ring_bytes, self.message_max_bytes
            )));
        }
        Ok(())
    }

    /// What clients are told to connect to, given the address that Kafka is really served on.
    pub fn advertised(&self, bound: SocketAddr) -> (Arc<str>, u16) {
        match &self.advertised_kafka_addr {
            Some(HostPort { host, port }) => (host.as_str().into(), *port),
            None => (bound.ip().to_string().into(), bound.port()),
        }
    }

    /// Host and port that other brokers are told.
    pub fn advertised_peer(&self, bound: SocketAddr) -> HostPort {
        let own = || HostPort { host: bound.ip().to_string(), port: bound.port() };
        self.advertised_peer_addr.clone().unwrap_or_else(own)
    }

    pub fn broker_session_timeout(&self) -> Duration {
        Duration::from_millis(self.broker_session_timeout_ms)
    }

    /// `None`: connections may be idle for ever.
    pub fn connections_max_idle(&self) -> Option<Duration> {
        u64::try_from(self.connections_max_idle_ms).ok().map(Duration::from_millis)
    }

    /// `None`: as many as there may be in all.
    pub fn max_connections_per_ip(&self) -> Option<usize> {
        Some(self.max_connections_per_ip).filter(|max| *max < INT_MAX as usize)
    }

    pub fn retention_check_interval(&self) -> Duration {
        Duration::from_millis(self.log_retention_check_interval_ms)
    }

    pub fn queued_max_request_bytes_per_core(&self, cores: usize) -> usize {
        self.queued_max_request_bytes / cores
    }

    /// What `retention.ms` is for a topic that does not set it: -1, or ms.
    pub fn retention_ms(&self) -> i64 {
        let scaled = |value: i64, ms: i64| if value == -1 { -1 } else { value.saturating_mul(ms) };
        self.log_retention_ms
            .or_else(|| self.log_retention_minutes.map(|minutes| scaled(minutes, 60_000)))
            .unwrap_or_else(|| scaled(self.log_retention_hours, 3_600_000))
    }

    /// What `segment.ms` is for a topic that does not set it.
    pub fn roll_ms(&self) -> u64 {
        self.log_roll_ms.unwrap_or(self.log_roll_hours * 3_600_000)
    }

    /// Where the broker that was started with these settings has this one from.
    pub fn config_source(&self, name: &str) -> ConfigSource {
        match self.source(name) {
            Source::Default => ConfigSource::Default,
            _ => ConfigSource::StaticBroker,
        }
    }

    /// Every setting that has a value, as the broker was started with it.
    pub fn describe(&self) -> Vec<Described> {
        let rows = SETTINGS.iter().filter_map(|setting| {
            Some(Described {
                name: setting.name,
                value: self.value(setting.name)?,
                source: self.config_source(setting.name) as i8,
                config_type: setting_type::of(setting.name, setting.kind),
                read_only: true,
                doc: setting.doc(),
                synonyms: self.synonyms(&[setting.name]),
            })
        });
        rows.collect()
    }

    /// Where the value of what inherits from the first of `names` that is set comes from: what is set first, then defaults, each in its
    /// own setting's unit.
    pub fn synonyms(&self, names: &[&'static str]) -> Vec<(&'static str, String, i8)> {
        let is_set = |name: &&&'static str| self.source(name) != Source::Default;
        let set =
            names.iter().filter(is_set).filter_map(|name| Some((*name, self.value(name)?, ConfigSource::StaticBroker)));
        let defaults = names.iter().filter_map(|name| {
            let default = setting(name).map(|setting| setting.default).filter(|default| !default.is_empty())?;
            Some((*name, default.to_owned(), ConfigSource::Default))
        });
        set.chain(defaults).map(|(name, value, source)| (name, value, source as i8)).collect()
    }
}

/// Bytes of a core's ring at least, however small its batches are.
const RING_BYTES_MIN: u64 = 4 << 20;

/// The `wal.ring.bytes` with which so many cores take batches of so many bytes, whatever message.max.bytes is.
pub fn ring_bytes_for(batch_bytes: usize, cores: usize) -> u64 {
    RingConfig::bytes_for(batch_bytes + ENTRY_DATA_BYTES_MAX) * cores as u64
}

/// Kafka's numbers for where a setting's value comes from (`ConfigEntry.ConfigSource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    Topic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
}

/// A setting as DescribeConfigs tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub name: &'static str,
    pub value: String,
    /// A number of [`ConfigSource`].
    pub source: i8,
    pub config_type: i8,
    pub read_only: bool,
    pub doc: &'static str,
    /// Where the value would come from, first what is in force: name, value, source.
    pub synonyms: Vec<(&'static str, String, i8)>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The defaults, but for these settings, as if a file had them.
    pub(crate) fn with(values: &[(&str, &str)]) -> Config {
        let mut config = Config::default();
        let place = Place { source: Source::File, named: "test".to_owned() };
        for (name, value) in values {
            config.set(setting(name).unwrap(), value, &place).unwrap();
        }
        config
    }

    #[test]
    fn every_default_is_a_value_in_normal_form() {
        let config = Config::default();
        for setting in SETTINGS {
            if setting.default.is_empty() {
                assert_eq!(config.value(setting.name), None, "{}", setting.name);
            } else {
                assert_eq!(setting.kind.normalise(setting.default).as_deref(), Ok(setting.default), "{}", setting.name);
                assert_eq!(config.value(setting.name).as_deref(), Some(setting.default), "{}", setting.name);
            }
        }
        config.check().unwrap();
        config.check_cores(100).unwrap();
        let mut many = Config::default();
        many.fit_rings(512);
        many.check_cores(512).unwrap();
    }

    #[test]
    fn names_flags_and_variables_are_unique() {
        let names: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        let flags: BTreeSet<_> = SETTINGS.iter().filter_map(|setting| setting.flag).collect();
        let variables: BTreeSet<_> = SETTINGS.iter().map(Setting::variable).collect();
        assert_eq!(names.len(), SETTINGS.len());
        assert_eq!(flags.len(), SETTINGS.iter().filter(|setting| setting.flag.is_some()).count());
        assert_eq!(variables.len(), SETTINGS.len());
        for name in names {
            let prefix = format!("{name}.");
            let below: Vec<_> = SETTINGS.iter().filter(|other| other.name.starts_with(&prefix)).collect();
            // A TOML file that has both quotes the longer name, as its doc says.
            let is_told = below.iter().all(|other| other.doc().contains("quotes"));
            assert!(is_told, "{name} can't be a table too");
        }
    }

    /// What a range allows, the field's type must hold: then no value passes the one and fails the other.
    #[test]
    fn ranges_fit_their_types() {
        for setting in SETTINGS {
            if let Kind::Int { min, max, .. } | Kind::IntOrUnlimited { min, max, .. } = setting.kind {
                for edge in [min, max] {
                    assert!(Config::default().assign(setting.name, &edge.to_string()).is_some(), "{}", setting.name);
                }
                assert!(matches!(setting.kind, Kind::IntOrUnlimited { .. }) || min >= 0);
            }
        }
    }

    #[test]
    fn docs_are_sentences() {
        for setting in SETTINGS {
            assert!(setting.doc().ends_with('.') && !setting.doc().contains("  "), "{}", setting.name);
        }
    }

    #[test]
    fn finer_units_go_first() {
        for (given, expected) in [
            (&[][..], 168 * 3_600_000),
            (&[("log.retention.hours", "1")], 3_600_000),
            (&[("log.retention.hours", "-1")], -1),
            (&[("log.retention.hours", "1"), ("log.retention.minutes", "3")], 180_000),
            (&[("log.retention.minutes", "-1")], -1),
            (&[("log.retention.minutes", "3"), ("log.retention.ms", "5")], 5),
            (&[("log.retention.ms", "-1")], -1),
        ] {
            assert_eq!(with(given).retention_ms(), expected, "{given:?}");
        }
        assert_eq!(with(&[("log.roll.hours", "2")]).roll_ms(), 7_200_000);
        assert_eq!(with(&[("log.roll.hours", "2"), ("log.roll.ms", "9")]).roll_ms(), 9);
        assert_eq!(with(&[("connections.max.idle.ms", "-1")]).connections_max_idle(), None);
        assert_eq!(Config::default().connections_max_idle(), Some(Duration::from_secs(600)));
    }

    #[test]
    fn what_is_advertised_is_what_is_bound_unless_told() {
        let bound = "127.0.0.1:4711".parse().unwrap();
        assert_eq!(Config::default().advertised(bound), ("127.0.0.1".into(), 4711));
        let told = with(&[("advertised.kafka.addr", "kafka.example:9999")]);
        assert_eq!(told.advertised(bound), ("kafka.example".into(), 9999));
    }

    #[test]
    fn the_ring_must_suffice_for_the_cores() {
        let config = with(&[("wal.ring.bytes", "16MiB")]);
        config.check_cores(3).unwrap();
        let refusal = config.check_cores(5).unwrap_err().to_string();
        let least = config.least_ring_bytes(5);
        assert!(refusal.contains("5 cores") && refusal.contains(&format!("at least {least}")), "{refusal}");
        let mut given = config;
        given.fit_rings(5);
        assert!(given.check_cores(5).is_err(), "what an operator has set is not raised");
        // Four batches of 4 MB and their headers do not fit.
        let just_not = with(&[("wal.ring.bytes", "16MiB"), ("message.max.bytes", "4MiB")]);
        assert!(just_not.check_cores(1).is_err());
        let large = with(&[("wal.ring.bytes", "16MiB"), ("message.max.bytes", "8MiB")]);
        assert!(large.check_cores(1).unwrap_err().to_string().contains("message.max.bytes = 8388608"));
    }

    #[test]
    fn a_lower_layer_never_overrides() {
        let mut config = Config::default();
        let place = |source| Place { source, named: "test".to_owned() };
        let row = setting("num.partitions").unwrap();
        config.set(row, "7", &place(Source::Flag)).unwrap();
        config.set(row, "5", &place(Source::File)).unwrap();
        assert_eq!((config.num_partitions, config.source("num.partitions")), (7, Source::Flag));
    }

    #[test]
    fn clients_are_told_values_and_where_they_come_from() {
        let described = with(&[("num.partitions", "7")]).describe();
        let find = |name: &str| described.iter().find(|row| row.name == name);
        let changed = find("num.partitions").unwrap();
        assert_eq!((changed.value.as_str(), changed.source, changed.config_type), ("7", 4, 3));
        assert_eq!(changed.synonyms, [("num.partitions", "7".to_owned(), 4), ("num.partitions", "1".to_owned(), 5)]);
        let default = find("message.max.bytes").unwrap();
        assert_eq!(default.synonyms, [("message.max.bytes", "1048588".to_owned(), 5)]);
        assert_eq!((default.value.as_str(), default.source, default.read_only), ("1048588", 5, true));
        assert_eq!(find("log.retention.ms"), None);
    }
}
