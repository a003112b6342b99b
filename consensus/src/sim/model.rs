//! A topic and the producer ids as one copy of them would behave that is changed by one command after the other: what the
//! histories of clients are measured by. Written from the rules of the commands, not from the slices that follow them.

use super::linear::Model;
use crate::metadata::{self, AskedTooLate, Command, Outcome, Rejection, RequestResult, View};
use std::sync::Arc;
use uuid::Uuid;

/// What is seen of a topic; `None`: it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Topic(Option<Seen>);

/// A topic that is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seen {
    id: u128,
    partitions: Vec<Reported>,
    retention: Option<Arc<str>>,
}

/// What a partition's leader reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Reported {
    term: u64,
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
    /// By so many, if there are `present`.
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
        term: u64,
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
    /// To what was created or grew: id, count of partitions, setting.
    Is(u128, usize, Option<Arc<str>>),
    Exists,
    Unknown,
    /// There are so many partitions.
    Count(usize),
    Read(Option<Seen>),
    /// Nothing that the model would ever say.
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
            // Reports say nothing of partitions that are not there, nor anything older than what is known.
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

/// Blocks of producer ids: each command gets its own, without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ProducerIds {
    next: i64,
}

impl Model for ProducerIds {
    /// How many.
    type Op = u32;
    /// The first of them.
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

/// A feature's level and a setting of all brokers: what the whole cluster has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    level: u16,
    setting: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SettingsOp {
    /// Never lowered.
    Level(u16),
    Set(Option<Arc<str>>),
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SettingsReply {
    Done,
    /// It is at this level already.
    Above(u16),
    Read(Settings),
    /// Nothing that the model would ever say.
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

/// What a client asks for, by the key that it concerns.
pub(super) enum Asked {
    Topic(Arc<str>, TopicOp),
    ProducerIds(u32),
    Settings(SettingsOp),
}

/// What a command asks for, if clients' histories are kept of that.
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

/// The setting that clients change.
pub(super) const RETENTION: &str = "retention.ms";

/// The feature whose level clients raise, and the setting of all brokers that they change.
pub(super) const FEATURE: &str = "simulated.feature";
pub(super) const SETTING: &str = "simulated.setting";

/// `None`: as for a topic.
pub(super) fn settings_reply(result: &RequestResult) -> Option<SettingsReply> {
    Some(match result {
        Err(AskedTooLate) => return None,
        Ok(Ok(Outcome::FeatureSet | Outcome::ClusterConfigUpdated)) => SettingsReply::Done,
        Ok(Err(Rejection::FeatureDowngrade { from, .. })) => SettingsReply::Above(*from),
        other => SettingsReply::Other(format!("{other:?}")),
    })
}

/// What a view shows of the cluster's settings.
pub(super) fn read_settings(view: &View) -> SettingsReply {
    let level = view.features().get(FEATURE).copied().unwrap_or(0);
    // No broker has one of its own.
    let setting = view.cluster_config().in_force(1, SETTING).map(Arc::from);
    SettingsReply::Read(Settings { level, setting })
}

/// `None`: it may have happened, with an answer that nobody knows any more.
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

/// `None`: they may have been given out, and nobody knows which.
pub(super) fn producer_ids_reply(result: &RequestResult) -> Option<i64> {
    match result {
        Ok(Ok(Outcome::ProducerIds { first, .. })) => Some(*first),
        // Nothing else is ever an answer; no model says this.
        Ok(_) => Some(i64::MIN),
        Err(AskedTooLate) => None,
    }
}

/// What a view shows of a topic, to whoever reads it.
pub(super) fn read(view: &View, name: &str) -> TopicReply {
    let partition = |partition: &metadata::Partition| Reported {
        term: view.leader(partition.group).map_or(0, |leader| leader.term),
        watermark: view.watermark(partition.group).map_or(0, |watermark| watermark.high_watermark),
    };
    TopicReply::Read(view.topic(name).map(|topic| Seen {
        id: topic.id.as_u128(),
        partitions: topic.partitions.iter().map(partition).collect(),
        retention: topic.configs.get(RETENTION).map(|value| value.as_str().into()),
    }))
}
