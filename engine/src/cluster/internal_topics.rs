//! Topics that belong to the broker itself: one registry of how each is created, and which settings clients may
//! change.
//! Pure.
//!
//! A topic gets the registry's partitions, replicas and settings, whichever request creates it (FindCoordinator,
//! Metadata, CreateTopics). Fixed settings override the stored ones. So an offsets topic that an earlier version
//! created with seven days of retention loses nothing more.

use std::{borrow::Cow, collections::BTreeMap};

use crate::config::Config;

/// The internal topic of the group coordinator.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";

/// The only setting whose range depends on the topic.
const MIN_INSYNC: &str = "min.insync.replicas";

#[derive(Debug)]
pub struct InternalTopic {
    pub name: &'static str,
    partitions: fn(&Config) -> i32,
    replicas: fn(&Config) -> i16,
    /// Settings with a fixed value, by name.
    fixed: &'static [(&'static str, &'static str)],
    /// Settings that clients may change. None of them can lose or reject what the broker writes to the topic.
    free: &'static [&'static str],
}

static TOPICS: &[InternalTopic] = &[InternalTopic {
    name: OFFSETS_TOPIC,
    partitions: |config| config.offsets_topic_num_partitions,
    replicas: |config| config.offsets_topic_replication_factor,
    // The coordinator removes commits by its own rules (offsets.retention.minutes) and by tombstones. The topic is
    // not compacted yet, so nothing else may remove its records.
    fixed: &[
        ("cleanup.policy", "delete"),
        ("compression.type", "producer"),
        ("message.timestamp.type", "CreateTime"),
        ("retention.bytes", "-1"),
        ("retention.ms", "-1"),
    ],
    free: &[
        "flush.messages",
        "flush.ms",
        "index.interval.bytes",
        MIN_INSYNC,
        "preallocate",
        "segment.bytes",
        "segment.jitter.ms",
        "segment.ms",
        "unclean.leader.election.enable",
    ],
}];

/// Kafka's other internal topics. They cannot be created until this broker can write them: a topic of another layout
/// would be in the way.
const RESERVED: &[(&str, &str)] =
    &[("__share_group_state", "share groups"), ("__transaction_state", "the transaction coordinator")];

/// The internal topic, present or future, from whose name this one differs only in '.' and '_'.
pub fn like(name: &str) -> Option<&'static str> {
    let known = TOPICS.iter().map(|topic| topic.name).chain(RESERVED.iter().map(|(reserved, _)| *reserved));
    let mut others = known.filter(|known| *known != name);
    others.find(|known| known.replace('.', "_") == name.replace('.', "_"))
}

pub fn find(name: &str) -> Option<&'static InternalTopic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

/// The purpose for which the name is reserved; `None`: the topic may be created.
pub fn reserved_for(name: &str) -> Option<&'static str> {
    RESERVED.iter().find(|(reserved, _)| *reserved == name).map(|(_, what)| *what)
}

/// A topic's effective settings. An internal topic has the fixed settings and the free ones that clients chose.
pub fn in_force<'a>(name: &str, stored: &'a BTreeMap<String, String>) -> Cow<'a, BTreeMap<String, String>> {
    let Some(topic) = find(name) else { return Cow::Borrowed(stored) };
    let mut settings = topic.settings();
    let chosen = stored.iter().filter(|(name, _)| topic.free.contains(&name.as_str()));
    settings.extend(chosen.map(|(name, value)| (name.clone(), value.clone())));
    Cow::Owned(settings)
}

/// Why clients may not change a setting of an internal topic, or not to this value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InternalTopicError {
    #[error("{name} of the internal topic {topic} is always {fixed}, so that nothing in it is lost; leave it out")]
    Fixed { name: String, topic: &'static str, fixed: &'static str },
    #[error(
        "'{name}' of the internal topic {topic} follows the brokers' own settings; clients may change: {}",
        free.join(", ")
    )]
    NotFree { name: String, topic: &'static str, free: &'static [&'static str] },
    #[error("{MIN_INSYNC} = '{wanted}': the internal topic {topic} has {replicas} replicas; set 1 to {replicas}")]
    InSyncAboveReplicas { wanted: usize, topic: &'static str, replicas: usize },
}

impl InternalTopic {
    /// Partitions of a new topic. The number never changes, because it decides which partition a key belongs to.
    pub fn partitions(&self, config: &Config) -> usize {
        (self.partitions)(config) as usize
    }

    /// Replicas of each partition, in a cluster with this many brokers.
    pub fn replicas(&self, config: &Config, brokers: usize) -> usize {
        brokers.min((self.replicas)(config) as usize)
    }

    /// The settings of a new topic.
    pub fn settings(&self) -> BTreeMap<String, String> {
        self.fixed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Checks whether clients may give a setting this value; `None` removes the topic's own value. `replicas`: of
    /// each of the topic's partitions. The value itself is checked elsewhere.
    pub fn check_change(&self, name: &str, value: Option<&str>, replicas: usize) -> Result<(), InternalTopicError> {
        let topic = self.name;
        if let Some((_, fixed)) = self.fixed.iter().find(|(known, _)| *known == name) {
            return match value {
                Some(value) if value == *fixed => Ok(()),
                _ => Err(InternalTopicError::Fixed { name: name.to_owned(), topic, fixed }),
            };
        }
        if !self.free.contains(&name) {
            return Err(InternalTopicError::NotFree { name: name.to_owned(), topic, free: self.free });
        }
        match value.and_then(|value| value.parse::<usize>().ok()) {
            Some(wanted) if name == MIN_INSYNC && wanted > replicas => {
                Err(InternalTopicError::InSyncAboveReplicas { wanted, topic, replicas })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::topic::{self as config_topic, Inherited, TopicConfig};

    fn offsets() -> &'static InternalTopic {
        find(OFFSETS_TOPIC).unwrap()
    }

    fn stored(configs: &[(&str, &str)]) -> BTreeMap<String, String> {
        configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_registry_names_settings_that_topics_have() {
        for topic in TOPICS {
            for (name, value) in topic.fixed {
                config_topic::validate(name, value).unwrap();
                assert!(!topic.free.contains(name), "{name} is fixed and free");
            }
            topic.free.iter().for_each(|name| config_topic::validate_name(name).unwrap());
            assert_eq!(reserved_for(topic.name), None);
        }
        assert_eq!(find("orders").map(|topic| topic.name), None);
        assert_eq!(reserved_for("__transaction_state"), Some("the transaction coordinator"));
        assert_eq!(like("__consumer.offsets"), Some(OFFSETS_TOPIC));
        assert_eq!(like("_.transaction.state"), Some("__transaction_state"));
        assert_eq!((like(OFFSETS_TOPIC), like("consumer.offsets")), (None, None));
    }

    #[test]
    fn settings_that_an_earlier_version_stored_delete_no_commits() {
        let wrong = stored(&[
            ("retention.ms", "1000"),
            ("retention.bytes", "4096"),
            ("max.message.bytes", "64"),
            ("segment.bytes", "8192"),
        ]);
        let config = TopicConfig::resolve(&in_force(OFFSETS_TOPIC, &wrong), &Inherited::new(&Config::default()));
        assert_eq!((config.retention_ms, config.retention_bytes), (None, None));
        assert_eq!((config.max_message_bytes, config.segment_bytes), (1_048_588, 8192));
        let plain = TopicConfig::resolve(&in_force("orders", &wrong), &Inherited::new(&Config::default()));
        assert_eq!(plain.retention_ms, Some(1000));
    }

    #[test]
    fn clients_change_what_loses_nothing() {
        let check =
            |name, value, replicas| offsets().check_change(name, value, replicas).map_err(|error| error.to_string());
        for (name, value) in [
            ("retention.ms", Some("-1")),
            ("segment.bytes", Some("1048576")),
            ("segment.bytes", None),
            (MIN_INSYNC, Some("3")),
            (MIN_INSYNC, None),
        ] {
            assert_eq!(check(name, value, 3), Ok(()), "{name} {value:?}");
        }
        for (name, value, words) in [
            ("retention.ms", Some("1000"), "retention.ms of the internal topic __consumer_offsets is always -1"),
            ("retention.ms", None, "is always -1"),
            ("cleanup.policy", Some("compact"), "is always delete"),
            ("compression.type", Some("zstd"), "is always producer"),
            ("max.message.bytes", Some("64"), "follows the brokers' own settings; clients may change: flush.messages"),
            (MIN_INSYNC, Some("3"), "has 1 replicas; set 1 to 1"),
        ] {
            let refusal = check(name, value, 1).unwrap_err();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
