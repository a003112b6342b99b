//! The range of timestamps that a topic accepts from producers (KIP-937, KIP-1030).
//! Pure. The settings themselves are rows of [`crate::config::topic`] and [`crate::config`].

use std::collections::BTreeMap;

use net::records::batch::Times;

use crate::config::{Config, topic};

/// The range of producers' timestamps that a topic accepts, in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampBounds {
    pub before_max_ms: i64,
    pub after_max_ms: i64,
}

impl TimestampBounds {
    const BEFORE: &str = "message.timestamp.before.max.ms";
    const AFTER: &str = "message.timestamp.after.max.ms";

    /// `None`: the broker stamps the topic's records itself. Looks up only the settings that each produce request
    /// needs.
    pub fn of(configs: &BTreeMap<String, String>, config: &Config) -> Option<Self> {
        let own = |name| topic::own(configs, name);
        let own_type = own("message.timestamp.type");
        let stamps = own_type.as_deref().unwrap_or(&config.log_message_timestamp_type) == "LogAppendTime";
        let number = |name, inherited| own(name).and_then(|value| value.parse().ok()).unwrap_or(inherited);
        (!stamps).then(|| Self {
            before_max_ms: number(Self::BEFORE, config.log_message_timestamp_before_max_ms),
            after_max_ms: number(Self::AFTER, config.log_message_timestamp_after_max_ms),
        })
    }

    /// Why the broker rejects a batch with these timestamps, as a sentence. `None`: it accepts the batch.
    pub fn refusal(&self, times: Times, now_ms: i64) -> Option<String> {
        let Times { oldest, newest } = times;
        let (behind, ahead) = (now_ms.saturating_sub(oldest), newest.saturating_sub(now_ms));
        let (timestamp, by, where_to, name, limit) = match () {
            () if ahead > self.after_max_ms => (newest, ahead, "ahead of", Self::AFTER, self.after_max_ms),
            () if behind > self.before_max_ms => (oldest, behind, "behind", Self::BEFORE, self.before_max_ms),
            () => return None,
        };
        Some(format!(
            "timestamp {timestamp} is {by} ms {where_to} the broker's clock, more than {name} = {limit}; \
             send milliseconds since 1970, or raise {name}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::with as broker;

    fn own(configs: &[(&str, &str)]) -> BTreeMap<String, String> {
        configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn timestamps_far_from_the_clock_are_refused_by_name() {
        const NOW: i64 = 1_700_000_000_000;
        let at = |timestamp| Times { oldest: timestamp, newest: timestamp };
        let hour = 3_600_000;
        let by_default = TimestampBounds::of(&BTreeMap::new(), &Config::default()).unwrap();
        assert_eq!(by_default, TimestampBounds { before_max_ms: i64::MAX, after_max_ms: hour });
        for fine in [0, NOW - hour, NOW, NOW + hour] {
            assert_eq!(by_default.refusal(at(fine), NOW), None, "{fine}");
        }
        for absurd in [NOW + hour + 1, NOW * 1000, NOW * 1_000_000, i64::MAX] {
            let refusal = by_default.refusal(at(absurd), NOW).unwrap();
            for part in [&absurd.to_string()[..], "ahead", "message.timestamp.after.max.ms = 3600000", "raise"] {
                assert!(refusal.contains(part), "{refusal}");
            }
        }
        let configs = own(&[("message.timestamp.before.max.ms", "1000"), ("message.timestamp.after.max.ms", "0")]);
        let narrow = TimestampBounds::of(&configs, &Config::default()).unwrap();
        assert_eq!(narrow.refusal(at(NOW - 1000), NOW), None);
        let refusal = narrow.refusal(Times { oldest: NOW - 1001, newest: NOW }, NOW).unwrap();
        assert!(
            refusal.contains("1001 ms behind the broker's clock, more than message.timestamp.before.max.ms = 1000")
        );
        assert!(narrow.refusal(at(NOW + 1), NOW).is_some());
        assert!(narrow.refusal(at(i64::MIN), NOW).is_some());
        let set = broker(&[("log.message.timestamp.after.max.ms", "7"), ("log.message.timestamp.before.max.ms", "8")]);
        let inherited = TimestampBounds { before_max_ms: 8, after_max_ms: 7 };
        assert_eq!(TimestampBounds::of(&BTreeMap::new(), &set), Some(inherited));
        for word in ["LogAppendTime", "logappendtime"] {
            assert_eq!(TimestampBounds::of(&own(&[("message.timestamp.type", word)]), &set), None);
        }
        let spaced = own(&[("message.timestamp.after.max.ms", " 5 ")]);
        assert_eq!(TimestampBounds::of(&spaced, &set), Some(TimestampBounds { after_max_ms: 5, ..inherited }));
    }
}
