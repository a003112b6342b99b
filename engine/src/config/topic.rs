//! Settings of topics: one table, which CreateTopics, IncrementalAlterConfigs and DescribeConfigs use.
//! Pure. Names, defaults and meanings are Kafka's (`TopicConfig`, `LogConfig`). The default of each is the broker's
//! setting.
//!
//! Kafka's settings that this broker does not obey are in [`crate::config::unobeyed`].

use std::{borrow::Cow, collections::BTreeMap};

use wal::log::LogOptions;

use crate::config::{
    Config, ConfigSource, Described, Source, TopicSettingError,
    setting_type::{self, LIST},
    unobeyed::{self, UNOBEYED, Unobeyed},
    value::{Kind, Unit, nearest},
};

const MS_MAX: i64 = i64::MAX / 1000;
/// How Kafka writes 'never' and 'no limit' for settings in which -1 does not mean that.
const LONG_MAX: &str = "9223372036854775807";

/// Where the default of a topic's setting comes from.
#[derive(Clone, Copy, Debug)]
enum Inherit {
    /// The broker's settings with these names. The first one that is set counts.
    Broker(&'static [&'static str]),
    Fixed(&'static str),
}

#[derive(Debug)]
pub struct TopicSetting {
    pub name: &'static str,
    pub kind: Kind,
    default: Inherit,
    pub doc: &'static str,
}

use Inherit::{Broker, Fixed};

const fn row(name: &'static str, kind: Kind, default: Inherit, doc: &'static str) -> TopicSetting {
    TopicSetting { name, kind, default, doc }
}

/// All settings of a topic, by name. Their ranges are those of the corresponding broker settings.
pub static TOPIC_SETTINGS: &[TopicSetting] = &[
    row(
        "cleanup.policy",
        Kind::OneOf(&["delete"]),
        Broker(&["log.cleanup.policy"]),
        "How the broker removes old records. It does not serve compaction yet.",
    ),
    row(
        "compression.type",
        Kind::OneOf(&["producer"]),
        Broker(&["compression.type"]),
        "How the broker stores records: as the producer compressed them.",
    ),
    row(
        "flush.messages",
        Kind::Int { min: 1, max: i64::MAX, unit: Unit::Count },
        Fixed(LONG_MAX),
        "Records after which Kafka syncs the log. It has no effect here: the broker syncs every record before it acknowledges it.",
    ),
    row(
        "flush.ms",
        Kind::Int { min: 0, max: i64::MAX, unit: Unit::Milliseconds },
        Fixed(LONG_MAX),
        "Time after which Kafka syncs the log. It has no effect here: the broker syncs every record before it acknowledges it.",
    ),
    row(
        "index.interval.bytes",
        Kind::Int { min: 4 << 10, max: 64 << 20, unit: Unit::Bytes },
        Broker(&["log.index.interval.bytes"]),
        "Bytes of a segment file for each entry of its offset and time indexes.",
    ),
    row(
        "max.message.bytes",
        Kind::Int { min: 64, max: i32::MAX as i64, unit: Unit::Bytes },
        Broker(&["message.max.bytes"]),
        "Largest batch that a producer may send, in its compressed form.",
    ),
    row(
        "message.timestamp.after.max.ms",
        Kind::Int { min: 0, max: i64::MAX, unit: Unit::Milliseconds },
        Broker(&["log.message.timestamp.after.max.ms"]),
        "How far a producer's timestamp may lie ahead of the broker's clock. The broker refuses a later one.",
    ),
    row(
        "message.timestamp.before.max.ms",
        Kind::Int { min: 0, max: i64::MAX, unit: Unit::Milliseconds },
        Broker(&["log.message.timestamp.before.max.ms"]),
        "How far a producer's timestamp may lie behind the broker's clock. The broker refuses an older one. It accepts -1, no timestamp.",
    ),
    row(
        "message.timestamp.type",
        Kind::OneOf(&["CreateTime", "LogAppendTime"]),
        Broker(&["log.message.timestamp.type"]),
        "Timestamp of a record: the producer's time, or the time of arrival.",
    ),
    row(
        "min.insync.replicas",
        Kind::Int { min: 1, max: crate::config::REPLICAS_MAX, unit: Unit::Count },
        Broker(&["min.insync.replicas"]),
        "Replicas that must have a record before the broker answers acks=all. A majority is always needed.",
    ),
    row(
        "preallocate",
        Kind::OneOf(&["false"]),
        Fixed("false"),
        "If true, Kafka allocates a segment file at its full size. Here a segment file grows with each flush.",
    ),
    row(
        "retention.bytes",
        Kind::IntOrUnlimited { min: 0, max: i64::MAX, unit: Unit::Bytes },
        Broker(&["log.retention.bytes"]),
        "Size of a partition beyond which the broker removes its oldest segments.",
    ),
    row(
        "retention.ms",
        Kind::IntOrUnlimited { min: 0, max: MS_MAX, unit: Unit::Milliseconds },
        Broker(&["log.retention.ms", "log.retention.minutes", "log.retention.hours"]),
        "Time for which the broker keeps records.",
    ),
    row(
        "segment.bytes",
        Kind::Int { min: 4 << 10, max: i32::MAX as i64, unit: Unit::Bytes },
        Broker(&["log.segment.bytes"]),
        "Size at which a partition begins a new segment file.",
    ),
    row(
        "segment.jitter.ms",
        Kind::OneOf(&["0"]),
        Fixed("0"),
        "Random part of segment.ms, in ms. The broker needs none, since it flushes segments one after the other.",
    ),
    row(
        "segment.ms",
        Kind::Int { min: 1, max: MS_MAX, unit: Unit::Milliseconds },
        Broker(&["log.roll.ms", "log.roll.hours"]),
        "Age at which a partition begins a new segment file.",
    ),
    row(
        "unclean.leader.election.enable",
        Kind::OneOf(&["false"]),
        Fixed("false"),
        "If true, a replica that lacks acknowledged records may lead. Raft elects no such leader.",
    ),
];

fn find(name: &str) -> Result<&'static TopicSetting, TopicSettingError> {
    if let Some(row) = TOPIC_SETTINGS.iter().find(|row| row.name == name) {
        return Ok(row);
    }
    let near = nearest(name, TOPIC_SETTINGS.iter().map(|row| row.name));
    Err(TopicSettingError::Unknown { name: name.to_owned(), near })
}

/// A topic's own value of a setting, in normal form. Costs nothing if the topic does not set it.
pub(crate) fn own(configs: &BTreeMap<String, String>, name: &str) -> Option<String> {
    configs.get(name)?;
    TOPIC_SETTINGS.iter().find(|row| row.name == name)?.own(configs)
}

/// Checks whether a topic may set this setting to this value.
pub fn validate(name: &str, value: &str) -> Result<(), TopicSettingError> {
    if let Some(unobeyed) = unobeyed::find(name) {
        return unobeyed.check(Some(value));
    }
    let row = find(name)?;
    let refuse = |why| TopicSettingError::Value { name: row.name, value: value.to_owned(), why };
    row.kind.normalise(value).map(drop).map_err(refuse)
}

/// Checks whether the setting exists, for a change that removes a topic's own value.
pub fn validate_name(name: &str) -> Result<(), TopicSettingError> {
    match unobeyed::find(name) {
        Some(unobeyed) => unobeyed.check(None),
        None => find(name).map(drop),
    }
}

/// The value in force of a list setting: the topic's own or the inherited one. `None`: the setting is no list.
pub fn list(name: &str, configs: &BTreeMap<String, String>, config: &Config) -> Option<String> {
    describe(configs, config).into_iter().find(|row| row.name == name && row.config_type == LIST).map(|row| row.value)
}

impl TopicSetting {
    /// The broker's settings that supply the default. The first one that is set counts. Empty: the default is fixed.
    pub(crate) fn inherits(&self) -> &'static [&'static str] {
        match self.default {
            Broker(names) => names,
            Fixed(_) => &[],
        }
    }

    /// The value of a topic that does not set it, if the broker has its defaults.
    pub(crate) fn default_value(&self) -> String {
        self.inherited(&Config::default()).1
    }

    /// The inherited setting's name, value and source, for topics without a value of their own.
    fn inherited(&self, config: &Config) -> (&'static str, String, ConfigSource) {
        let names = match self.default {
            Fixed(value) => return (self.name, value.to_owned(), ConfigSource::Default),
            Broker(names) => names,
        };
        let is_set = |name: &&&str| config.source(name) != Source::Default && config.value(name).is_some();
        // If none is set, the last one supplies the default.
        let name = names.iter().find(is_set).or(names.last()).expect("the list has names");
        let value = match self.name {
            "retention.ms" => config.retention_ms().to_string(),
            "segment.ms" => config.roll_ms().to_string(),
            _ => config.value(name).expect("the default of such a setting is a value"),
        };
        let source = match config.source(name) {
            Source::Default => ConfigSource::Default,
            _ => ConfigSource::StaticBroker,
        };
        (name, value, source)
    }

    /// A topic's own value in normal form. A value that an earlier version accepted and this one does not is ignored.
    fn own(&self, configs: &BTreeMap<String, String>) -> Option<String> {
        configs.get(self.name).and_then(|value| self.kind.normalise(value).ok())
    }
}

/// The most settings that [`describe`] returns.
pub fn settings_max() -> usize {
    TOPIC_SETTINGS.len() + UNOBEYED.len()
}

/// All settings of a topic with the values in force, for DescribeConfigs and CreateTopics.
pub fn describe(configs: &BTreeMap<String, String>, config: &Config) -> Vec<Described> {
    let rows = TOPIC_SETTINGS.iter().map(|row| {
        let (_, inherited, inherited_source) = row.inherited(config);
        let own = row.own(configs);
        let from_broker = match row.default {
            Broker(names) => config.synonyms(names),
            Fixed(value) => vec![(row.name, value.to_owned(), ConfigSource::Default as i8)],
        };
        let (value, source) = match own.clone() {
            Some(own) => (own, ConfigSource::Topic),
            None => (inherited, inherited_source),
        };
        let own = own.map(|value| (row.name, value, ConfigSource::Topic as i8));
        Described {
            name: row.name,
            value,
            source: source as i8,
            config_type: setting_type::of(row.name, row.kind),
            read_only: false,
            doc: row.doc,
            synonyms: own.into_iter().chain(from_broker).collect(),
        }
    });
    let mut rows: Vec<Described> =
        rows.chain(UNOBEYED.iter().filter_map(|row| describe_unobeyed(row, configs))).collect();
    rows.sort_unstable_by_key(|row| row.name);
    rows
}

fn describe_unobeyed(row: &'static Unobeyed, configs: &BTreeMap<String, String>) -> Option<Described> {
    let default = row.value?;
    let own = configs.get(row.name).cloned();
    if own.is_none() && !row.is_current {
        return None;
    }
    let own = own.map(|value| (row.name, value, ConfigSource::Topic as i8));
    let synonyms: Vec<_> =
        own.into_iter().chain([(row.name, default.to_owned(), ConfigSource::Default as i8)]).collect();
    let (_, value, source) = synonyms[0].clone();
    let Unobeyed { name, config_type, why: doc, .. } = *row;
    Some(Described { name, value, source, config_type, read_only: false, doc, synonyms })
}

/// The settings in force for one topic, as its partitions use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    pub max_message_bytes: usize,
    /// `None`: no limit.
    pub retention_ms: Option<u64>,
    /// `None`: no limit.
    pub retention_bytes: Option<u64>,
    pub segment_bytes: u64,
    pub segment_ms: u64,
    pub index_interval_bytes: u32,
    pub min_insync_replicas: usize,
    log_append_time: bool,
}

/// The values that topics inherit from a broker's configuration, one for each topic setting.
pub struct Inherited(Vec<String>);

impl Inherited {
    pub fn new(config: &Config) -> Self {
        Self(TOPIC_SETTINGS.iter().map(|row| row.inherited(config).1).collect())
    }
}

impl TopicConfig {
    /// `configs`: the values that the topic itself sets. Each was validated when it was set.
    pub fn resolve(configs: &BTreeMap<String, String>, inherited: &Inherited) -> TopicConfig {
        let value = |name: &str| {
            let at = TOPIC_SETTINGS.iter().position(|row| row.name == name).expect("the table has this setting");
            TOPIC_SETTINGS[at].own(configs).map_or(Cow::Borrowed(inherited.0[at].as_str()), Cow::Owned)
        };
        let number = |name: &str| value(name).parse::<i64>().expect("a checked value is in range");
        // -1 means no limit. For settings that do not allow it, the range begins above it.
        let limit = |name: &str| u64::try_from(number(name)).ok();
        let positive = |name: &str| limit(name).expect("the range is above 0");
        TopicConfig {
            max_message_bytes: positive("max.message.bytes") as usize,
            retention_ms: limit("retention.ms"),
            retention_bytes: limit("retention.bytes"),
            segment_bytes: positive("segment.bytes"),
            segment_ms: positive("segment.ms"),
            index_interval_bytes: positive("index.interval.bytes") as u32,
            min_insync_replicas: positive("min.insync.replicas") as usize,
            log_append_time: value("message.timestamp.type") == "LogAppendTime",
        }
    }

    /// Whether the broker stamps batches with the time of their arrival.
    pub fn stamps(&self) -> bool {
        self.log_append_time
    }

    pub fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.segment_bytes,
            segment_ms: Some(self.segment_ms),
            index_interval_bytes: self.index_interval_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{setting, tests::with as broker};

    fn own(configs: &[(&str, &str)]) -> BTreeMap<String, String> {
        configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_table_is_sorted_and_its_defaults_are_values() {
        assert!(TOPIC_SETTINGS.windows(2).all(|pair| pair[0].name < pair[1].name));
        for row in TOPIC_SETTINGS {
            let (_, value, source) = row.inherited(&Config::default());
            assert_eq!(row.kind.normalise(&value).as_ref(), Ok(&value), "{}", row.name);
            assert_eq!(source, ConfigSource::Default);
            assert!(unobeyed::find(row.name).is_none());
            if let Broker(names) = row.default {
                assert!(names.iter().all(|name| setting(name).is_some()), "{}", row.name);
            }
        }
    }

    #[test]
    fn docs_are_sentences() {
        for row in TOPIC_SETTINGS {
            assert!(row.doc.ends_with('.') && !row.doc.contains("  "), "{}", row.name);
        }
    }

    /// A topic may set every value that the broker may set.
    #[test]
    fn ranges_hold_what_is_inherited() {
        for row in TOPIC_SETTINGS {
            let Broker([name]) = row.default else { continue };
            let theirs = setting(name).unwrap().kind;
            assert_eq!(theirs, row.kind, "{}", row.name);
        }
    }

    #[test]
    fn defaults_are_the_brokers() {
        let config = TopicConfig::resolve(&BTreeMap::new(), &Inherited::new(&Config::default()));
        let expected = TopicConfig {
            max_message_bytes: 1_048_588,
            retention_ms: Some(604_800_000),
            retention_bytes: None,
            segment_bytes: 1 << 30,
            segment_ms: 604_800_000,
            index_interval_bytes: 16_384,
            min_insync_replicas: 1,
            log_append_time: false,
        };
        assert_eq!(config, expected);
        let broker = broker(&[
            ("message.max.bytes", "5000"),
            ("log.retention.minutes", "-1"),
            ("log.retention.bytes", "7"),
            ("log.segment.bytes", "8192"),
            ("log.roll.ms", "9"),
            ("log.message.timestamp.type", "LogAppendTime"),
        ]);
        let config = TopicConfig::resolve(&BTreeMap::new(), &Inherited::new(&broker));
        assert_eq!((config.max_message_bytes, config.retention_ms, config.retention_bytes), (5000, None, Some(7)));
        assert!(config.stamps());
        let options = config.log_options();
        assert_eq!((options.segment_bytes, options.segment_ms), (8192, Some(9)));
    }

    #[test]
    fn a_topics_own_value_goes_first() {
        let configs = own(&[
            ("retention.ms", "-1"),
            ("retention.bytes", "1024"),
            ("segment.bytes", "16384"),
            ("segment.ms", "60000"),
            ("max.message.bytes", "100"),
            ("message.timestamp.type", "LogAppendTime"),
        ]);
        let config = TopicConfig::resolve(
            &configs,
            &Inherited::new(&broker(&[("log.retention.bytes", "5"), ("log.retention.ms", "5")])),
        );
        assert_eq!((config.retention_ms, config.retention_bytes), (None, Some(1024)));
        assert_eq!((config.segment_bytes, config.segment_ms, config.max_message_bytes), (16_384, 60_000, 100));
        assert!(config.stamps());
    }

    #[test]
    fn a_stored_value_that_is_no_more_allowed_is_passed_over() {
        let config = TopicConfig::resolve(
            &own(&[("segment.bytes", "1"), ("who.knows", "x")]),
            &Inherited::new(&Config::default()),
        );
        assert_eq!(config.segment_bytes, 1 << 30);
    }

    #[test]
    fn values_are_refused_by_name() {
        for (name, value) in [
            ("cleanup.policy", "delete"),
            ("compression.type", "producer"),
            ("retention.ms", "0"),
            ("retention.ms", "-1"),
            ("retention.bytes", "-1"),
            ("segment.bytes", "1048576"),
            ("min.insync.replicas", "1"),
            ("flush.messages", "1"),
            ("unclean.leader.election.enable", "false"),
            ("message.timestamp.type", "LogAppendTime"),
        ] {
            validate(name, value).unwrap();
        }
        for (name, value, part) in [
            ("cleanup.policy", "compact", "cleanup.policy = 'compact': it must be delete"),
            ("cleanup.policy", "compact,delete", "it must be delete"),
            ("compression.type", "zstd", "compression.type = 'zstd': it must be producer"),
            ("retention.ms", "-2", "retention.ms = '-2': it must be 0 to "),
            ("retention.ms", "week", "or -1 (no limit)"),
            ("segment.bytes", "0", "must be 4096 to 2147483647 bytes"),
            ("min.insync.replicas", "8", "min.insync.replicas = '8': it must be 1 to 7"),
            ("unclean.leader.election.enable", "true", "must be false"),
            ("max.message.bytes", "-1", "must be 64 to"),
            ("min.compaction.lag.ms", "1", "it is not supported by this broker (it concerns compaction"),
            ("remote.storage.enable", "true", "tiered storage is not supported"),
            ("retention.m", "1", "topics have no setting 'retention.m'; did you mean 'retention.ms'?"),
            ("colour", "red", "topics have no setting 'colour'; leave it out"),
        ] {
            let refusal = validate(name, value).unwrap_err().to_string();
            assert!(refusal.contains(part), "{refusal}");
        }
        validate("delete.retention.ms", "86400000").unwrap();
        validate_name("retention.ms").unwrap();
        validate_name("delete.retention.ms").unwrap();
        assert!(validate_name("write.caching").is_err());
    }

    #[test]
    fn clients_are_told_where_a_value_comes_from() {
        let broker = broker(&[("log.retention.hours", "1"), ("message.max.bytes", "5000")]);
        let rows = describe(&own(&[("max.message.bytes", "100")]), &broker);
        let find = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        let topic = find("max.message.bytes");
        assert_eq!((topic.value.as_str(), topic.source, topic.config_type), ("100", 1, 3));
        let synonyms: Vec<_> =
            topic.synonyms.iter().map(|(name, value, source)| (*name, value.as_str(), *source)).collect();
        assert_eq!(
            synonyms,
            [("max.message.bytes", "100", 1), ("message.max.bytes", "5000", 4), ("message.max.bytes", "1048588", 5)]
        );
        let inherited = find("retention.ms");
        assert_eq!((inherited.value.as_str(), inherited.source), ("3600000", 4));
        // Each value is in the unit of its own setting.
        let hours = |value: &str, source| ("log.retention.hours", value.to_owned(), source);
        assert_eq!(inherited.synonyms, [hours("1", 4), hours("168", 5)]);
        let roll = ("log.roll.hours", "168".to_owned(), 5);
        assert_eq!((find("segment.ms").value.as_str(), &find("segment.ms").synonyms[..]), ("604800000", &[roll][..]));
        let default = find("segment.bytes");
        assert_eq!((default.value.as_str(), default.source), ("1073741824", 5));
        let unobeyed = find("min.cleanable.dirty.ratio");
        assert_eq!((unobeyed.value.as_str(), unobeyed.source, unobeyed.config_type), ("0.5", 5, 6));
        assert!(rows.iter().all(|row| row.config_type != 0 && !row.synonyms.is_empty()));
        assert!(rows.iter().all(|row| row.name != "message.format.version"), "Kafka 4 has none");
        let rows = describe(&own(&[("message.format.version", "3.0-IV1")]), &broker);
        let own = rows.iter().find(|row| row.name == "message.format.version").unwrap();
        assert_eq!((own.value.as_str(), own.source), ("3.0-IV1", 1));
    }
}
