//! Why a setting is rejected. Each text names the value, the limit and the remedy.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::config::{
    Place, Setting, VARIABLE_PREFIX,
    value::{HostPort, Unfit},
};

/// Why the broker does not start with these settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("unknown setting '{name}' ({place}): {} `millrace config` lists all settings", instead(.meant))]
    UnknownSetting { name: String, place: Place, meant: Meant },
    #[error(
        "unknown {place}: {} `millrace config` lists all settings",
        near.as_ref().map_or("unset it;".to_owned(), |near| format!("did you mean {VARIABLE_PREFIX}{near}?"))
    )]
    UnknownVariable { place: Place, near: Option<String> },
    #[error("{} = '{value}' ({place}): it {why}; change it, or {}", setting.name, without(setting))]
    Value { setting: &'static Setting, value: String, place: Place, why: Unfit },
    #[error("{name} is given more than once; give it once")]
    Twice { name: String },
    #[error("environment variable {name} is not UTF-8; correct or unset it")]
    NotUtf8 { name: String },
    #[error("cannot read the configuration file {}: {source}; name one that exists", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is not TOML; correct it: {source}")]
    Toml { path: String, source: Box<toml::de::Error> },
    #[error("{name} ({place}): the value is a TOML {found}; give a string, an integer or a boolean")]
    TomlType { name: String, place: Place, found: &'static str },
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// The setting that the user probably meant by a name that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant {
    /// Kafka has the setting, and this one replaces it here.
    Replaced(&'static str),
    /// The names are alike.
    Near(&'static str),
    Unknown,
}

fn instead(meant: &Meant) -> String {
    match meant {
        Meant::Replaced(ours) => format!("use '{ours}' here;"),
        Meant::Near(near) => format!("did you mean '{near}'?"),
        Meant::Unknown => "remove it;".to_owned(),
    }
}

fn without(setting: &Setting) -> String {
    match setting.default {
        "" => "leave it out".to_owned(),
        default => format!("leave it out for the default, {default}"),
    }
}

/// Two settings that do not fit each other, or one that does not fit this machine's cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    #[error(
        "message.max.bytes = {batch}: such a batch does not fit into a request of at most {request} bytes; lower it, or \
         raise socket.request.max.bytes"
    )]
    BatchAboveRequest { batch: usize, request: usize },
    #[error(
        "queued.max.request.bytes = {queued}: below the size of one request, {request} bytes; raise it, or lower \
         socket.request.max.bytes"
    )]
    QueueBelowRequest { queued: usize, request: usize },
    #[error(
        "group.min.session.timeout.ms = {min}: above group.max.session.timeout.ms, {max}; no session would be allowed; \
         lower the one or raise the other"
    )]
    Sessions { min: i32, max: i32 },
    #[error(
        "kafka.addr = {addr}: clients can't connect to that address as it stands; set advertised.kafka.addr \
         (--advertised-kafka-addr) to the host and port at which they reach this broker"
    )]
    HiddenFromClients { addr: SocketAddr },
    #[error(
        "peer.addr = {addr}: other brokers can't connect to that address as it stands; set advertised.peer.addr \
         (--advertised-peer-addr) to the host and port at which they reach this broker"
    )]
    HiddenFromBrokers { addr: SocketAddr },
    #[error(
        "seeds lists this broker, {node}, at {seed}, but it advertises {advertised}; list that address in seeds, or \
         set advertised.peer.addr (--advertised-peer-addr) to the one in seeds"
    )]
    OwnSeed { node: i32, seed: HostPort, advertised: HostPort },
    #[error(
        "min.insync.replicas = {in_sync}: above default.replication.factor, {replicas}; topics with the defaults would \
         take no writes with acks=all; lower the one or raise the other"
    )]
    InSyncAboveReplicas { in_sync: i64, replicas: i64 },
    #[error("{name} = {addr}: {other} uses that address already; choose another port")]
    SameAddress { name: &'static str, addr: SocketAddr, other: &'static str },
    #[error(
        "wal.ring.bytes = {rings}: {cores} cores with message.max.bytes = {batch} need at least {least}, since each \
         core's ring holds four batches of that size and their headers; raise it to {least}, lower message.max.bytes, or \
         use fewer cores"
    )]
    SmallRings { rings: u64, cores: usize, batch: usize, least: u64 },
}

/// Why a topic may not have a setting, or not with this value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicSettingError {
    #[error(
        "topics have no setting '{name}'; {}",
        near.map_or("leave it out".to_owned(), |near| format!("did you mean '{near}'?"))
    )]
    Unknown { name: String, near: Option<&'static str> },
    #[error("{name} = '{value}': it {why}")]
    Value { name: &'static str, value: String, why: Unfit },
    /// Kafka has the setting, and this broker takes no value of it.
    #[error("'{name}' is not supported by this broker ({why}); leave it out")]
    Unsupported { name: &'static str, why: &'static str },
    /// Kafka has the setting, and this broker takes only Kafka's own default.
    #[error("{name} = '{value}': it is not supported by this broker ({why}) and must be '{only}'; leave it out")]
    OnlyDefault { name: &'static str, value: String, why: &'static str, only: &'static str },
}

/// Why a setting of brokers cannot be changed while they run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeSettingError {
    #[error("'{name}' applies to the whole cluster: change it for all brokers, with an empty broker name")]
    WholeCluster { name: &'static str },
    #[error(
        "'{name}' is read-only: it is read at start; change it in the broker's file, environment or flags and restart it"
    )]
    ReadOnly { name: &'static str },
    #[error("unknown setting '{name}'; brokers accept at run time: {known}")]
    Unknown { name: String, known: String },
    #[error("{name} = '{value}': it {why}")]
    Value { name: &'static str, value: String, why: Unfit },
}
