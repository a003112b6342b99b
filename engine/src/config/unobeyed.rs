//! Kafka's topic settings that this broker does not obey. It accepts each only with Kafka's own default, so that
//! tools which set everything work. It rejects any other value by name, so that nobody relies on it.
//! Pure.

use crate::config::{
    TopicSettingError,
    setting_type::{BOOLEAN, DOUBLE, INT, LIST, LONG, STRING},
};

/// How Kafka writes 'never'.
const LONG_MAX: &str = "9223372036854775807";

#[derive(Debug)]
pub struct Unobeyed {
    pub name: &'static str,
    /// The only value that the broker accepts. `None`: it accepts none.
    pub value: Option<&'static str>,
    /// One of the types in [`crate::config::setting_type`].
    pub config_type: i8,
    pub why: &'static str,
    /// Whether Kafka 4 still has the setting. If not, DescribeConfigs returns it only for topics that set it.
    pub is_current: bool,
}

const fn row(name: &'static str, value: &'static str, config_type: i8, why: &'static str) -> Unobeyed {
    Unobeyed { name, value: Some(value), config_type, why, is_current: true }
}

const fn removed(name: &'static str, value: &'static str, config_type: i8) -> Unobeyed {
    Unobeyed { is_current: false, ..row(name, value, config_type, "Kafka 4 has removed it") }
}

const COMPACTION: &str = "it concerns compaction, which is not supported yet";
const TIERED: &str = "tiered storage is not supported";
const THROTTLE: &str = "replication is not throttled";
const PRODUCER: &str = "the broker stores records as the producer compressed them";

/// Ordered by name.
pub static UNOBEYED: &[Unobeyed] = &[
    row("compression.gzip.level", "-1", INT, PRODUCER),
    row("compression.lz4.level", "9", INT, PRODUCER),
    row("compression.zstd.level", "3", INT, PRODUCER),
    row("delete.retention.ms", "86400000", LONG, COMPACTION),
    row("file.delete.delay.ms", "60000", LONG, "the broker deletes a file as soon as nobody reads it"),
    row("follower.replication.throttled.replicas", "", LIST, THROTTLE),
    row("leader.replication.throttled.replicas", "", LIST, THROTTLE),
    row("local.retention.bytes", "-2", LONG, TIERED),
    row("local.retention.ms", "-2", LONG, TIERED),
    row("max.compaction.lag.ms", LONG_MAX, LONG, COMPACTION),
    removed("message.downconversion.enable", "true", BOOLEAN),
    removed("message.format.version", "3.0-IV1", STRING),
    removed("message.timestamp.difference.max.ms", LONG_MAX, LONG),
    row("min.cleanable.dirty.ratio", "0.5", DOUBLE, COMPACTION),
    row("min.compaction.lag.ms", "0", LONG, COMPACTION),
    row("remote.log.copy.disable", "false", BOOLEAN, TIERED),
    row("remote.log.delete.on.disable", "false", BOOLEAN, TIERED),
    row("remote.storage.enable", "false", BOOLEAN, TIERED),
    row("segment.index.bytes", "10485760", INT, "indexes grow with their segments"),
    Unobeyed {
        name: "write.caching",
        value: None,
        config_type: BOOLEAN,
        why: "acknowledging before the sync is not supported yet",
        is_current: false,
    },
];

pub fn find(name: &str) -> Option<&'static Unobeyed> {
    UNOBEYED.iter().find(|row| row.name == name)
}

impl Unobeyed {
    /// Checks whether a topic may have this value. `None`: whether there is any value that it may have.
    pub fn check(&self, value: Option<&str>) -> Result<(), TopicSettingError> {
        let Unobeyed { name, why, .. } = *self;
        let Some(only) = self.value else {
            return Err(TopicSettingError::Unsupported { name, why });
        };
        match value {
            Some(value) if !self.is_same(only, value.trim()) => {
                Err(TopicSettingError::OnlyDefault { name, value: value.to_owned(), why, only })
            }
            _ => Ok(()),
        }
    }

    /// Numbers and booleans may be written in several ways.
    fn is_same(&self, only: &str, value: &str) -> bool {
        match self.config_type {
            BOOLEAN => only.eq_ignore_ascii_case(value),
            INT | LONG => value.parse::<i64>().is_ok_and(|value| only.parse() == Ok(value)),
            DOUBLE => value.parse::<f64>().is_ok_and(|value| only.parse() == Ok(value)),
            _ => only == value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_takes_its_own_values() {
        assert!(UNOBEYED.windows(2).all(|pair| pair[0].name < pair[1].name));
        for row in UNOBEYED.iter().filter(|row| row.value.is_some()) {
            row.check(row.value).unwrap();
            row.check(None).unwrap();
        }
    }

    #[test]
    fn other_values_are_refused_with_the_reason() {
        for (name, value, words) in [
            ("min.compaction.lag.ms", "1", "(it concerns compaction, which is not supported yet) and must be '0'"),
            (
                "remote.storage.enable",
                "true",
                "remote.storage.enable = 'true': it is not supported by this broker (tiered",
            ),
            ("leader.replication.throttled.replicas", "*", "(replication is not throttled) and must be ''"),
            ("message.format.version", "2.8", "(Kafka 4 has removed it) and must be '3.0-IV1'"),
            ("min.cleanable.dirty.ratio", "half", "must be '0.5'"),
            ("write.caching", "false", "'write.caching' is not supported by this broker (acknowledging"),
        ] {
            let refusal = find(name).unwrap().check(Some(value)).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
        assert!(find("write.caching").unwrap().check(None).is_err());
        for (name, value) in [
            ("min.cleanable.dirty.ratio", "0.50"),
            ("remote.storage.enable", "FALSE"),
            ("delete.retention.ms", " 86400000 "),
        ] {
            find(name).unwrap().check(Some(value)).unwrap();
        }
    }
}
