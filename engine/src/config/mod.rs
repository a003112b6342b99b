//! The broker's settings: one table, which the parser, error messages, help, docs and DescribeConfigs all use.
//! Lives on: the main thread at start. Afterwards all cores share the settings, and nothing changes them.
//!
//! Four layers in rising precedence: defaults, the TOML file, `MILLRACE_…` variables, flags. Settings that Kafka has
//! too bear Kafka's names. The broker does not start with an unknown name or an impossible value.

pub mod cluster;
pub mod cpu_list;
mod errors;
pub mod layers;
pub mod reach;
pub mod setting_type;
#[cfg(test)]
pub(crate) mod tests;
pub mod timestamps;
pub mod topic;
pub mod unobeyed;
pub mod value;

pub use errors::{ConfigError, Conflict, RuntimeSettingError, TopicSettingError};

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use consensus::group::descriptor::ENTRY_DATA_BYTES_MAX;
use wal::ring::RingConfig;

use crate::config::{
    cpu_list::CpuList,
    value::{HostPort, Kind, Seeds, Unfit, Unit, Value},
};

/// One setting.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    /// The setting's own flag, without dashes. `--set NAME=VALUE` sets any setting.
    pub flag: Option<&'static str>,
    /// Empty: the setting has no default.
    pub default: &'static str,
    pub kind: Kind,
    doc: &'static str,
}

/// Where a value comes from. Later sources override earlier ones.
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

    /// `MILLRACE_`, followed by the flag, or else by the name, in capitals.
    pub fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.flag.unwrap_or(self.name).to_ascii_uppercase().replace(['.', '-'], "_"))
    }
}

/// The prefix of the broker's environment variables.
pub const VARIABLE_PREFIX: &str = "MILLRACE_";

const KIB: i64 = 1 << 10;
const MIB: i64 = 1 << 20;
/// The maximum number of replicas of a partition.
pub const REPLICAS_MAX: i64 = 7;
const INT_MAX: i64 = i32::MAX as i64;
/// The longest duration, in ms: some 290,000 years. Adding it to any wall-clock time does not overflow.
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
        /// All settings, ordered by topic.
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
            /// The sources of the settings that do not have their defaults.
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
            /// Assigns a value in normal form. `None`: the field's type has no such value.
            fn assign(&mut self, name: &str, text: &str) -> Option<()> {
                match name {
                    $($name => self.$field = <$type>::parse(text)?,)*
                    _ => return None,
                }
                Some(())
            }

            /// The value in force of a setting. `None`: it is not set.
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
    /// Directory for everything that the broker stores. The broker creates it if it is missing.
    data_dir: PathBuf = "data.dir" flag "data-dir", "./millrace-data", Kind::Path;
    /// Address on which the broker serves Kafka clients.
    kafka_addr: SocketAddr = "kafka.addr" flag "kafka-addr", "127.0.0.1:9092", Kind::Addr;
    /// Address that clients connect to, if it differs from `kafka.addr`.
    advertised_kafka_addr: Option<HostPort> = "advertised.kafka.addr" flag "advertised-kafka-addr", "", Kind::HostPort;
    /// Address on which the broker serves other brokers and tools.
    peer_addr: SocketAddr = "peer.addr" flag "peer-addr", "127.0.0.1:9291", Kind::Addr;
    /// Address of /metrics, /health/live, /health/ready and /status.
    admin_addr: SocketAddr = "admin.addr" flag "admin-addr", "127.0.0.1:9644", Kind::Addr;
    /// Number of this broker in the cluster.
    node_id: i32 = "node.id" flag "node-id", "1", count(0, INT_MAX);
    /// Brokers that found the cluster together, including this one, or through which a new broker joins. Without
    /// seeds, a new broker founds a cluster of its own.
    seeds: Option<Seeds> = "seeds" flag "seeds", "", Kind::Seeds;
    /// Address that other brokers connect to, if it differs from `peer.addr`.
    advertised_peer_addr: Option<HostPort> = "advertised.peer.addr" flag "advertised-peer-addr", "", Kind::HostPort;
    /// File with the secret that the cluster's brokers and tools share. Required if `seeds` names other brokers, or
    /// if `peer.addr` is not on loopback. Otherwise the broker makes its own: cluster.secret in its data directory.
    cluster_secret_file: Option<PathBuf> = "cluster.secret.file" flag "cluster-secret-file", "", Kind::Path;
    /// If true, a broker without `cluster.secret.file` accepts everybody on its peer port as a broker or tool of its
    /// cluster.
    peer_allow_insecure: bool = "peer.allow.insecure", "false", Kind::Bool;
    /// The metadata leader fences a broker that it has not heard for this time. Clients no longer see a fenced
    /// broker.
    broker_session_timeout_ms: u64 = "broker.session.timeout.ms", "3000", ms(1000, 600_000);
    /// CPUs to run on, one core each. Default: all that the affinity, cpuset and CPU quota allow.
    cores: Option<CpuList> = "cores" flag "cores", "", Kind::Cpus;
    /// Memory for caches, buffers, partitions, consumer groups and idempotent producers, divided among the cores.
    /// Default: half of the RAM or of the cgroup's limit. The broker refuses new things that do not fit, by name, or
    /// forgets old ones.
    memory_budget_bytes: Option<u64> = "memory.budget.bytes", "", bytes(64 * MIB, i64::MAX);
    /// Memory for the newest records, divided among the cores. Consumers that keep up read from it. Default: 512 MiB
    /// a core. At most a quarter of the memory budget.
    log_cache_bytes: Option<u64> = "log.cache.bytes", "", bytes(MIB, i64::MAX);
    /// Lines to log on stderr.
    log_filter: String = "log.filter" flag "log", "info", Kind::LogFilter;

    /// Size of all cores' write-ahead rings together. The default grows if many cores need more for
    /// message.max.bytes. A change takes effect at the next start.
    wal_ring_bytes: u64 = "wal.ring.bytes", "536870912", bytes(16 * MIB, i64::MAX);
    /// Open descriptors of segment files, all cores together. Beyond it the broker closes the least recently used
    /// file.
    segment_files_max: usize = "segment.files.max", "8192", count(256, 1_000_000);

    /// When the broker acknowledges a metadata write: after a majority has it on disk (quorum), or after the leader
    /// has it on disk (leader).
    metadata_acks: String = "metadata.acks", "quorum", Kind::OneOf(&["quorum", "leader"]);
    /// Number of brokers that vote on the metadata. Default: the number of founders.
    metadata_voters: Option<usize> = "metadata.voters", "", count(1, 15);

    /// Partitions of a topic if the client names no number, or if the broker creates the topic automatically.
    num_partitions: i32 = "num.partitions", "1", count(1, 100_000);
    /// If true, the broker creates a missing topic when a client asks for it.
    auto_create_topics_enable: bool = "auto.create.topics.enable", "true", Kind::Bool;
    /// Replicas of a topic if the client names no number.
    default_replication_factor: i16 = "default.replication.factor", "1", count(1, REPLICAS_MAX);
    /// Replicas that must have a record before the broker answers acks=all. A majority is always needed.
    min_insync_replicas: u32 = "min.insync.replicas", "1", count(1, REPLICAS_MAX);
    /// Replicas of __consumer_offsets. With fewer brokers at its creation, one replica on each. The creation waits
    /// for all founders of the cluster.
    offsets_topic_replication_factor: i16 = "offsets.topic.replication.factor", "3", count(1, REPLICAS_MAX);
    /// A replica that has lagged for this time is no longer in sync.
    replica_lag_time_max_ms: u64 = "replica.lag.time.max.ms", "30000", ms(100, MS_MAX);
    /// Bytes a second that each core sends at most to replicas that lag, unless a commit waits for them. A higher rate
    /// brings them in sync sooner, but slows clients if the disk or the CPUs are busy.
    replica_catch_up_bytes_per_second: u64 = "replica.catch.up.bytes.per.second", "104857600", bytes(MIB, i64::MAX);
    /// If true, the first replica of a partition leads again after its return.
    auto_leader_rebalance_enable: bool = "auto.leader.rebalance.enable", "true", Kind::Bool;
    /// Interval between two checks for partitions that their first replica should lead.
    leader_imbalance_check_interval_seconds: u64 = "leader.imbalance.check.interval.seconds", "10",
        Kind::Int { min: 1, max: INT_MAX, unit: Unit::Seconds };

    /// Largest request. The broker closes a connection that sends a larger one.
    socket_request_max_bytes: usize = "socket.request.max.bytes", "104857600", bytes(KIB, INT_MAX);
    /// Memory for requests in progress, all cores together, at most an eighth of the memory budget. Beyond it the
    /// broker reads no more until it has answered some.
    queued_max_request_bytes: usize = "queued.max.request.bytes", "268435456", bytes(MIB, i64::MAX);
    /// Largest batch that a producer may send, in its compressed form.
    message_max_bytes: usize = "message.max.bytes", "1048588", bytes(64, INT_MAX);
    /// Largest answer to a fetch. The broker returns the first batch even if it is larger.
    fetch_max_bytes: usize = "fetch.max.bytes", "57671680", bytes(KIB, INT_MAX);
    /// Client connections at most, all cores together. Beyond it, each new connection displaces one that has sent no
    /// request yet. If there is none, the broker refuses the new connection. The limit of open files may allow fewer.
    max_connections: usize = "max.connections", "2147483647", count(1, INT_MAX);
    /// Client connections at most from one address, all cores together. The broker refuses more. In a TOML file that
    /// also sets max.connections, quote this name.
    max_connections_per_ip: usize = "max.connections.per.ip", "2147483647", count(1, INT_MAX);
    /// Connections of other brokers and of tools at most. The limit of open files may allow fewer.
    peer_max_connections: usize = "peer.max.connections", "1024", count(16, INT_MAX);
    /// The broker closes a connection that has been idle for this time.
    connections_max_idle_ms: i64 = "connections.max.idle.ms", "600000",
        Kind::IntOrUnlimited { min: 1000, max: MS_MAX, unit: Unit::Milliseconds };

    /// Time for which the broker keeps records. Overrides log.retention.minutes.
    log_retention_ms: Option<i64> = "log.retention.ms", "",
        Kind::IntOrUnlimited { min: 1, max: MS_MAX, unit: Unit::Milliseconds };
    /// Time for which the broker keeps records. Overrides log.retention.hours.
    log_retention_minutes: Option<i64> = "log.retention.minutes", "",
        Kind::IntOrUnlimited { min: 1, max: INT_MAX, unit: Unit::Minutes };
    /// Time for which the broker keeps records.
    log_retention_hours: i64 = "log.retention.hours", "168",
        Kind::IntOrUnlimited { min: 1, max: INT_MAX, unit: Unit::Hours };
    /// Size of a partition beyond which the broker removes its oldest segments.
    log_retention_bytes: i64 = "log.retention.bytes", "-1",
        Kind::IntOrUnlimited { min: 0, max: i64::MAX, unit: Unit::Bytes };
    /// Interval between two checks for records to remove.
    log_retention_check_interval_ms: u64 = "log.retention.check.interval.ms", "300000", ms(1, MS_MAX);
    /// Size at which a partition begins a new segment file.
    log_segment_bytes: u64 = "log.segment.bytes", "1073741824", bytes(4 * KIB, INT_MAX);
    /// Age at which a partition begins a new segment file. Overrides log.roll.hours.
    log_roll_ms: Option<u64> = "log.roll.ms", "", ms(1, MS_MAX);
    /// Age at which a partition begins a new segment file.
    log_roll_hours: u64 = "log.roll.hours", "168", Kind::Int { min: 1, max: INT_MAX, unit: Unit::Hours };
    /// Bytes of a segment file for each entry of its offset and time indexes.
    log_index_interval_bytes: u32 = "log.index.interval.bytes", "16384", bytes(4 * KIB, 64 * MIB);
    /// Timestamp of a record: the producer's time, or the time of arrival.
    log_message_timestamp_type: String = "log.message.timestamp.type", "CreateTime",
        Kind::OneOf(&["CreateTime", "LogAppendTime"]);
    /// How far a producer's timestamp may lie behind the broker's clock. The broker refuses an older one. It accepts
    /// -1, no timestamp.
    log_message_timestamp_before_max_ms: i64 = "log.message.timestamp.before.max.ms", "9223372036854775807",
        ms(0, i64::MAX);
    /// How far a producer's timestamp may lie ahead of the broker's clock. The broker refuses a later one.
    log_message_timestamp_after_max_ms: i64 = "log.message.timestamp.after.max.ms", "3600000", ms(0, i64::MAX);
    /// If true, the broker decompresses and checks compressed batches before it stores them. It always checks other
    /// batches.
    log_validate_compressed: bool = "log.validate.compressed", "true", Kind::Bool;
    /// How the broker removes old records. It does not serve compaction yet.
    log_cleanup_policy: String = "log.cleanup.policy", "delete", Kind::OneOf(&["delete"]);
    /// How the broker stores records: as the producer compressed them.
    compression_type: String = "compression.type", "producer", Kind::OneOf(&["producer"]);

    /// Time for which the broker remembers an idempotent producer that writes nothing.
    producer_id_expiration_ms: i64 = "producer.id.expiration.ms", "86400000", ms(1, MS_MAX);
    /// If an idempotent producer's batch arrives before its predecessor, the broker answers NOT_LEADER_OR_FOLLOWER
    /// for this time, and the client retries both. After it, the broker answers OUT_OF_ORDER_SEQUENCE_NUMBER. Time
    /// during which the broker is stopped does not count.
    producer_gap_timeout_ms: u64 = "producer.gap.timeout.ms", "5000", ms(0, INT_MAX);
    /// Partitions of __consumer_offsets at its creation.
    offsets_topic_num_partitions: i32 = "offsets.topic.num.partitions", "50", count(1, 100_000);
    /// Time for which committed offsets outlive their group's last member.
    offsets_retention_minutes: i64 = "offsets.retention.minutes", "10080", minutes(1);
    /// Interval between two checks for expired offsets.
    offsets_retention_check_interval_ms: i64 = "offsets.retention.check.interval.ms", "600000", ms(1, MS_MAX);
    /// Time within which a commit must be stored. After it the broker answers COORDINATOR_NOT_AVAILABLE.
    offsets_commit_timeout_ms: u64 = "offsets.commit.timeout.ms", "5000", ms(1, INT_MAX);
    /// Longest metadata of a committed offset.
    offset_metadata_max_bytes: usize = "offset.metadata.max.bytes", "4096", bytes(0, 10_922);
    /// Shortest session timeout that a group member may choose.
    group_min_session_timeout_ms: i32 = "group.min.session.timeout.ms", "6000", ms(1, INT_MAX);
    /// Longest session timeout that a group member may choose.
    group_max_session_timeout_ms: i32 = "group.max.session.timeout.ms", "1800000", ms(1, INT_MAX);
    /// Time for which an empty group waits for more members after its first.
    group_initial_rebalance_delay_ms: i32 = "group.initial.rebalance.delay.ms", "3000", ms(0, INT_MAX);
    /// Members of a group at most.
    group_max_size: usize = "group.max.size", "10000", count(1, INT_MAX);
}

/// Finds a setting by its name.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// Where the user has set a value, for error messages.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: Source,
    /// The name of the file, variable or flag.
    pub named: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named)
    }
}

impl Config {
    /// Sets one value, unless a higher layer has set it.
    pub fn set(&mut self, setting: &'static Setting, text: &str, place: &Place) -> Result<(), ConfigError> {
        let refuse = |why| ConfigError::Value { setting, value: text.to_owned(), place: place.clone(), why };
        let normal = setting.kind.normalise(text).map_err(refuse)?;
        if self.source(setting.name) > place.source {
            return Ok(());
        }
        self.assign(setting.name, &normal).ok_or_else(|| refuse(Unfit::Type(setting.kind)))?;
        self.sources.insert(setting.name, place.source);
        Ok(())
    }

    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).copied().unwrap_or(Source::Default)
    }

    /// Checks that the settings fit each other.
    pub fn check(&self) -> Result<(), Conflict> {
        let (batch, request) = (self.message_max_bytes, self.socket_request_max_bytes);
        if batch > request {
            return Err(Conflict::BatchAboveRequest { batch, request });
        }
        let queued = self.queued_max_request_bytes;
        if queued < request {
            return Err(Conflict::QueueBelowRequest { queued, request });
        }
        let (min, max) = (self.group_min_session_timeout_ms, self.group_max_session_timeout_ms);
        if min > max {
            return Err(Conflict::Sessions { min, max });
        }
        if self.kafka_addr.ip().is_unspecified() && self.advertised_kafka_addr.is_none() {
            return Err(Conflict::HiddenFromClients { addr: self.kafka_addr });
        }
        reach::check(self)?;
        let (in_sync, replicas) = (self.min_insync_replicas.into(), self.default_replication_factor.into());
        if in_sync > replicas {
            return Err(Conflict::InSyncAboveReplicas { in_sync, replicas });
        }
        let ports = [("kafka.addr", self.kafka_addr), ("peer.addr", self.peer_addr), ("admin.addr", self.admin_addr)];
        for (at, (name, addr)) in ports.into_iter().enumerate() {
            if let Some(&(other, _)) = ports[..at].iter().find(|(_, taken)| *taken == addr && addr.port() != 0) {
                return Err(Conflict::SameAddress { name, addr, other });
            }
        }
        Ok(())
    }

    /// Raises the default size of the rings to the size that this number of cores needs.
    pub fn fit_rings(&mut self, cores: usize) {
        if self.source("wal.ring.bytes") == Source::Default {
            self.wal_ring_bytes = self.wal_ring_bytes.max(self.least_ring_bytes(cores));
        }
    }

    fn least_ring_bytes(&self, cores: usize) -> u64 {
        let of_core = RingConfig::least_bytes_for(self.message_max_bytes + ENTRY_DATA_BYTES_MAX);
        of_core.max(RING_BYTES_MIN) * cores as u64
    }

    /// Checks that the rings are large enough for the number of cores that share them.
    pub fn check_cores(&self, cores: usize) -> Result<(), Conflict> {
        let (rings, batch, least) = (self.wal_ring_bytes, self.message_max_bytes, self.least_ring_bytes(cores));
        if rings < least { Err(Conflict::SmallRings { rings, cores, batch, least }) } else { Ok(()) }
    }

    /// Host and port at which the broker tells clients to connect. `bound`: the address on which it really serves
    /// them.
    pub fn advertised(&self, bound: SocketAddr) -> (Arc<str>, u16) {
        match &self.advertised_kafka_addr {
            Some(HostPort { host, port }) => (host.as_str().into(), *port),
            None => (bound.ip().to_string().into(), bound.port()),
        }
    }

    /// Host and port at which the broker tells other brokers to connect.
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

    /// `None`: only the limit on all connections applies.
    pub fn max_connections_per_ip(&self) -> Option<usize> {
        Some(self.max_connections_per_ip).filter(|max| *max < INT_MAX as usize)
    }

    pub fn retention_check_interval(&self) -> Duration {
        Duration::from_millis(self.log_retention_check_interval_ms)
    }

    pub fn queued_max_request_bytes_per_core(&self, cores: usize) -> usize {
        self.queued_max_request_bytes / cores
    }

    /// The `retention.ms` of a topic that does not set it, in ms. -1: no limit.
    pub fn retention_ms(&self) -> i64 {
        let scaled = |value: i64, ms: i64| if value == -1 { -1 } else { value.saturating_mul(ms) };
        self.log_retention_ms
            .or_else(|| self.log_retention_minutes.map(|minutes| scaled(minutes, 60_000)))
            .unwrap_or_else(|| scaled(self.log_retention_hours, 3_600_000))
    }

    /// The `segment.ms` of a topic that does not set it.
    pub fn roll_ms(&self) -> u64 {
        self.log_roll_ms.unwrap_or(self.log_roll_hours * 3_600_000)
    }

    /// The source of a setting's value, if only this broker's own configuration counts.
    pub fn config_source(&self, name: &str) -> ConfigSource {
        match self.source(name) {
            Source::Default => ConfigSource::Default,
            _ => ConfigSource::StaticBroker,
        }
    }

    /// All settings that have a value, as this broker was started with them.
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

    /// All values that a setting may inherit from these settings: first those that are set, then the defaults. Each
    /// value is in the unit of its own setting.
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

/// Minimum size of a core's ring in bytes, even if its batches are small.
const RING_BYTES_MIN: u64 = 4 << 20;

/// The `wal.ring.bytes` with which this number of cores takes batches of `batch_bytes`, independent of
/// message.max.bytes.
pub fn ring_bytes_for(batch_bytes: usize, cores: usize) -> u64 {
    RingConfig::bytes_for(batch_bytes + ENTRY_DATA_BYTES_MAX) * cores as u64
}

/// Kafka's numbers for the source of a setting's value (`ConfigEntry.ConfigSource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    Topic = 1,
    DynamicBroker = 2,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
}

/// A setting as DescribeConfigs returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub name: &'static str,
    pub value: String,
    /// A number of [`ConfigSource`].
    pub source: i8,
    pub config_type: i8,
    pub read_only: bool,
    pub doc: &'static str,
    /// All values with their sources, the value in force first: name, value, source.
    pub synonyms: Vec<(&'static str, String, i8)>,
}
