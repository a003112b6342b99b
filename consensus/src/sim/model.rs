//! A topic, the producer ids and the cluster's settings, as a single copy that is changed by one command after the
//! other. The histories of clients are checked against these models. They are written from the rules of the
//! commands, not from the code of the slices.

use super::linear::Model;
use crate::metadata::{self, AskedTooLate, Command, Outcome, Rejection, RequestResult, View};
use std::sync::Arc;
use types::Term;
use uuid::Uuid;

/// The visible state of a topic; `None` if it does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Topic(Option<Seen>);

/// A topic that exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    id: u128,
    partitions: Vec<Reported>,
    retention: Option<Arc<str>>,
}

/// The reports of a partition's leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Reported {
    term: Term,
    watermark: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopicOp {
    Create {
        id: u128,
        partitions: usize,
    },
    Delete {
        id: u128,
    },
    /// Adds `by` partitions if the topic has `present`.
    Grow {
        id: u128,
        present: usize,
        by: usize,
    },
    Configure {
        id: u128,
        retention: Option<Arc<str>>,
    },
    Leads {
        id: u128,
        partition: usize,
        term: Term,
    },
    Reaches {
        id: u128,
        partition: usize,
        watermark: u64,
    },
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopicReply {
    Done,
    /// The topic after it was created or grew: id, count of partitions, setting.
    Is(u128, usize, Option<Arc<str>>),
    Exists,
    Unknown,
    /// The number of partitions, which is not the expected one.
    Count(usize),
    Read(Option<Seen>),
    /// An answer that the model never gives.
    Other(String),
}

impl Model for Topic {
    type Op = TopicOp;
    type Reply = TopicReply;

    fn apply(&mut self, op: &TopicOp) -> TopicReply {
        match *op {
            TopicOp::Read => return TopicReply::Read(self.0.clone()),
            TopicOp::Create { .. } if self.0.is_some() => return TopicReply::Exists,
            TopicOp::Create { id, partitions } => {
                let topic = Seen { id, partitions: vec![Reported::default(); partitions], retention: None };
                let reply = topic.is();
                self.0 = Some(topic);
                return reply;
            }
            _ => {}
        }
        let Some(topic) = self.0.as_mut().filter(|topic| Some(topic.id) == op.id()) else { return TopicReply::Unknown };
        match op {
            TopicOp::Delete { .. } => self.0 = None,
            TopicOp::Grow { present, .. } if topic.partitions.len() != *present => {
                return TopicReply::Count(topic.partitions.len());
            }
            TopicOp::Grow { present, by, .. } => {
                topic.partitions.resize(present + by, Reported::default());
                return topic.is();
            }
            TopicOp::Configure { retention, .. } => topic.retention.clone_from(retention),
            // A report about a missing partition, or an older one, changes nothing.
            TopicOp::Leads { partition, term, .. } => {
                if let Some(known) = topic.partitions.get_mut(*partition) {
                    known.term = known.term.max(*term);
                }
            }
            TopicOp::Reaches { partition, watermark, .. } => {
                if let Some(known) = topic.partitions.get_mut(*partition) {
                    known.watermark = known.watermark.max(*watermark);
                }
            }
            TopicOp::Create { .. } | TopicOp::Read => unreachable!("they were done above"),
        }
        TopicReply::Done
    }

    fn only_reads(reply: &TopicReply) -> bool {
        !matches!(reply, TopicReply::Done | TopicReply::Is(..))
    }
}

impl Seen {
    fn is(&self) -> TopicReply {
        TopicReply::Is(self.id, self.partitions.len(), self.retention.clone())
    }
}

impl TopicOp {
    fn id(&self) -> Option<u128> {
        match *self {
            TopicOp::Create { id, .. }
            | TopicOp::Delete { id }
            | TopicOp::Grow { id, .. }
            | TopicOp::Configure { id, .. }
            | TopicOp::Leads { id, .. }
            | TopicOp::Reaches { id, .. } => Some(id),
            TopicOp::Read => None,
        }
    }
}

/// Blocks of producer ids. Each command gets its own block, without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ProducerIds {
    next: i64,
}

impl Model for ProducerIds {
    /// The size of the block.
    type Op = u32;
    /// The first id of the block.
    type Reply = i64;

    fn apply(&mut self, count: &u32) -> i64 {
        let first = self.next;
        self.next += i64::from(*count);
        first
    }

    fn only_reads(_: &i64) -> bool {
        false
    }
}

/// The cluster's settings: a feature's level, and one setting that holds for all brokers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    level: u16,
    setting: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SettingsOp {
    /// Sets the level, which is never lowered.
    Level(u16),
    Set(Option<Arc<str>>),
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SettingsReply {
    Done,
    /// The level already has this higher value.
    Above(u16),
    Read(Settings),
    /// An answer that the model never gives.
    Other(String),
}

impl Model for Settings {
    type Op = SettingsOp;
    type Reply = SettingsReply;

    fn apply(&mut self, op: &SettingsOp) -> SettingsReply {
        match op {
            SettingsOp::Read => return SettingsReply::Read(self.clone()),
            SettingsOp::Level(level) if *level < self.level => return SettingsReply::Above(self.level),
            SettingsOp::Level(level) => self.level = *level,
            SettingsOp::Set(value) => self.setting.clone_from(value),
        }
        SettingsReply::Done
    }

    fn only_reads(reply: &SettingsReply) -> bool {
        !matches!(reply, SettingsReply::Done)
    }
}

/// A request of a client, by the key that it concerns.
pub(super) enum Asked {
    Topic(Arc<str>, TopicOp),
    ProducerIds(u32),
    Settings(SettingsOp),
}

/// The request in a command, if histories are kept for commands of its kind.
pub(super) fn asked(command: &Command) -> Option<Asked> {
    let number = |id: &Uuid| id.as_u128();
    let (name, op) = match command {
        Command::AllocateProducerIds { count } => return Some(Asked::ProducerIds(*count)),
        Command::SetFeatureLevel { name, level } => {
            assert_eq!(name, FEATURE);
            return Some(Asked::Settings(SettingsOp::Level(*level)));
        }
        Command::UpdateClusterConfig { node: None, changes } => {
            let [(setting, value)] = &changes[..] else { unreachable!("clients change one setting") };
            assert_eq!(setting, SETTING);
            return Some(Asked::Settings(SettingsOp::Set(value.as_deref().map(Arc::from))));
        }
        Command::CreateTopic { name, id, replicas, .. } => {
            (name, TopicOp::Create { id: number(id), partitions: replicas.len() })
        }
        Command::DeleteTopic { name, id } => (name, TopicOp::Delete { id: number(id) }),
        Command::CreatePartitions { name, id, present, replicas, .. } => {
            (name, TopicOp::Grow { id: number(id), present: *present as usize, by: replicas.len() })
        }
        Command::UpdateTopicConfig { name, id, changes } => {
            let [(setting, retention)] = &changes[..] else { unreachable!("clients change one setting") };
            assert_eq!(setting, RETENTION);
            (name, TopicOp::Configure { id: number(id), retention: retention.as_deref().map(Arc::from) })
        }
        Command::SetPartitionLeader { name, id, leaders } => {
            let [report] = &leaders[..] else { unreachable!("clients report one leader") };
            (name, TopicOp::Leads { id: number(id), partition: report.partition as usize, term: report.term })
        }
        Command::UpdateHighWatermark { name, id, watermarks, .. } => {
            let [report] = &watermarks[..] else { unreachable!("clients report one watermark") };
            let (partition, watermark) = (report.partition as usize, report.high_watermark);
            (name, TopicOp::Reaches { id: number(id), partition, watermark })
        }
        _ => return None,
    };
    Some(Asked::Topic(name.clone(), op))
}

/// The topic setting that clients change.
pub(super) const RETENTION: &str = "retention.ms";

/// The feature whose level clients raise, and the setting for all brokers that they change.
pub(super) const FEATURE: &str = "simulated.feature";
pub(super) const SETTING: &str = "simulated.setting";

/// `None`: the request may have been applied, but its answer is forgotten.
pub(super) fn settings_reply(result: &RequestResult) -> Option<SettingsReply> {
    Some(match result {
        Err(AskedTooLate) => return None,
        Ok(Ok(Outcome::FeatureSet | Outcome::ClusterConfigUpdated)) => SettingsReply::Done,
        Ok(Err(Rejection::FeatureDowngrade { from, .. })) => SettingsReply::Above(*from),
        other => SettingsReply::Other(format!("{other:?}")),
    })
}

/// The cluster's settings as a view shows them.
pub(super) fn read_settings(view: &View) -> SettingsReply {
    let level = view.features().get(FEATURE).copied().unwrap_or(0);
    // No broker has a value of its own.
    let setting = view.cluster_config().in_force(1, SETTING).map(Arc::from);
    SettingsReply::Read(Settings { level, setting })
}

/// `None`: the request may have been applied, but its answer is forgotten.
pub(super) fn topic_reply(result: &RequestResult) -> Option<TopicReply> {
    Some(match result {
        Err(AskedTooLate) => return None,
        Ok(Ok(Outcome::TopicCreated(topic) | Outcome::PartitionsAdded { topic, .. })) => {
            let retention = topic.configs.get(RETENTION).map(|value| value.as_str().into());
            TopicReply::Is(topic.id.as_u128(), topic.partitions.len(), retention)
        }
        Ok(Ok(Outcome::TopicDeleted | Outcome::ConfigUpdated | Outcome::LeadersSet | Outcome::WatermarksUpdated)) => {
            TopicReply::Done
        }
        Ok(Err(Rejection::TopicExists(_))) => TopicReply::Exists,
        Ok(Err(Rejection::UnknownTopic(_))) => TopicReply::Unknown,
        Ok(Err(Rejection::PartitionCount { found, .. })) => TopicReply::Count(*found as usize),
        other => TopicReply::Other(format!("{other:?}")),
    })
}

/// `None`: the ids may have been given out, but nobody knows which.
pub(super) fn producer_ids_reply(result: &RequestResult) -> Option<i64> {
    match result {
        Ok(Ok(Outcome::ProducerIds { first, .. })) => Some(*first),
        // No other answer is possible, and the model never gives this one.
        Ok(_) => Some(i64::MIN),
        Err(AskedTooLate) => None,
    }
}

/// A topic as a view shows it.
pub(super) fn read(view: &View, name: &str) -> TopicReply {
    let partition = |partition: &metadata::Partition| Reported {
        term: view.leader(partition.group).map_or(Term(0), |leader| leader.term),
        watermark: view.watermark(partition.group).map_or(0, |watermark| watermark.high_watermark),
    };
    TopicReply::Read(view.topic(name).map(|topic| Seen {
        id: topic.id.as_u128(),
        partitions: topic.partitions.iter().map(partition).collect(),
        retention: topic.configs.get(RETENTION).map(|value| value.as_str().into()),
    }))
}
