//! Types of settings as DescribeConfigs returns them. Kafka's settings have Kafka's types, so that a client parses a
//! value as it would from a Kafka broker.
//! Pure.

use crate::config::value::Kind;

/// Kafka's numbers of the types (`DescribeConfigsResponse.ConfigType`).
pub const BOOLEAN: i8 = 1;
pub const STRING: i8 = 2;
pub const INT: i8 = 3;
pub const SHORT: i8 = 4;
pub const LONG: i8 = 5;
pub const DOUBLE: i8 = 6;
pub const LIST: i8 = 7;

/// Kafka's settings of topics and brokers whose type does not follow from the values that they may have here.
const KAFKAS: &[(&str, i8)] = &[
    ("cleanup.policy", LIST),
    ("leader.imbalance.check.interval.seconds", LONG),
    ("log.cleanup.policy", LIST),
    ("message.timestamp.after.max.ms", LONG),
    ("message.timestamp.before.max.ms", LONG),
    ("offsets.topic.replication.factor", SHORT),
    ("preallocate", BOOLEAN),
    ("producer.id.expiration.ms", INT),
    ("segment.jitter.ms", LONG),
    ("unclean.leader.election.enable", BOOLEAN),
];

/// The type of a setting.
pub fn of(name: &str, kind: Kind) -> i8 {
    if let Some((_, kafkas)) = KAFKAS.iter().find(|(known, _)| *known == name) {
        return *kafkas;
    }
    match kind {
        Kind::Bool => BOOLEAN,
        Kind::Int { max, .. } | Kind::IntOrUnlimited { max, .. } if max <= i64::from(i32::MAX) => INT,
        Kind::Int { .. } | Kind::IntOrUnlimited { .. } => LONG,
        Kind::Cpus | Kind::Seeds => LIST,
        Kind::OneOf(_) | Kind::Addr | Kind::HostPort | Kind::Path | Kind::LogFilter => STRING,
    }
}

/// Kafka's name for a type, as its documentation writes it.
pub(crate) fn name(config_type: i8) -> &'static str {
    match config_type {
        BOOLEAN => "boolean",
        STRING => "string",
        INT => "int",
        SHORT => "short",
        LONG => "long",
        DOUBLE => "double",
        LIST => "list",
        _ => unreachable!("there is no type {config_type}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SETTINGS, topic::TOPIC_SETTINGS};

    /// The types in Kafka 4 (`LogConfig`, `AbstractKafkaConfig` and the classes that it is made of) of the settings
    /// that exist here.
    #[rustfmt::skip]
    const EXPECTED: &[(i8, &[&str])] = &[
        (BOOLEAN, &["auto.create.topics.enable", "auto.leader.rebalance.enable", "preallocate",
            "unclean.leader.election.enable"]),
        (STRING, &["compression.type", "log.message.timestamp.type", "message.timestamp.type"]),
        (INT, &["broker.session.timeout.ms", "default.replication.factor", "fetch.max.bytes",
            "group.initial.rebalance.delay.ms", "group.max.session.timeout.ms", "group.max.size",
            "group.min.session.timeout.ms", "index.interval.bytes", "log.index.interval.bytes", "log.retention.hours",
            "log.retention.minutes", "log.roll.hours", "log.segment.bytes", "max.message.bytes", "message.max.bytes",
            "min.insync.replicas", "node.id", "num.partitions", "offset.metadata.max.bytes",
            "offsets.retention.minutes", "offsets.topic.num.partitions", "producer.id.expiration.ms", "segment.bytes",
            "socket.request.max.bytes"]),
        (SHORT, &["offsets.topic.replication.factor"]),
        (LONG, &["connections.max.idle.ms", "flush.messages", "flush.ms", "leader.imbalance.check.interval.seconds",
            "log.retention.bytes", "log.retention.check.interval.ms", "log.retention.ms", "log.roll.ms",
            "message.timestamp.after.max.ms", "message.timestamp.before.max.ms",
            "offsets.retention.check.interval.ms", "queued.max.request.bytes", "replica.lag.time.max.ms",
            "retention.bytes", "retention.ms", "segment.jitter.ms", "segment.ms"]),
        (LIST, &["cleanup.policy", "log.cleanup.policy"]),
    ];

    #[test]
    fn kafkas_settings_have_kafkas_types() {
        let brokers = SETTINGS.iter().map(|setting| (setting.name, setting.kind));
        let rows: Vec<_> = brokers.chain(TOPIC_SETTINGS.iter().map(|setting| (setting.name, setting.kind))).collect();
        for (expected, names) in EXPECTED {
            for name in *names {
                let found: Vec<i8> =
                    rows.iter().filter(|(known, _)| known == name).map(|(name, kind)| of(name, *kind)).collect();
                assert!(!found.is_empty() && found.iter().all(|found| found == expected), "{name}: {found:?}");
            }
        }
        assert!(KAFKAS.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(KAFKAS.iter().all(|(name, _)| rows.iter().any(|(known, _)| known == name)));
    }
}
