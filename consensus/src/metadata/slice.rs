//! One slice of the metadata keyspace.
//! Lives on: its owning core. Applies committed commands, in log order; the same commands give the same slice, byte for byte, on
//! every broker.
//!
//! Invariants: a topic lies in the slice of its name; group ids only grow over the life of a slice.

use super::{
    Command, Partition, Request, SliceId, Topic,
    slice_answers::{Answers, AskedTooLate, Before},
};
use std::{collections::BTreeMap, sync::Arc};
use uuid::Uuid;

/// What a command did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    TopicCreated(Arc<Topic>),
    TopicDeleted,
    /// The topic as it is now; its partitions from `first_new` on are new.
    PartitionsAdded {
        topic: Arc<Topic>,
        first_new: u32,
    },
    ConfigUpdated,
    /// `first .. first + count` belong to the one who asked.
    ProducerIds {
        first: i64,
        count: u32,
    },
}

/// Why a command did nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("topic '{0}' already exists")]
    TopicExists(Arc<str>),
    #[error("there is no topic '{0}' with that id any more")]
    UnknownTopic(Arc<str>),
    #[error(transparent)]
    InvalidName(#[from] NameError),
    #[error("the topic has {found} partitions, not {expected}: somebody else has added some; try again")]
    PartitionCount { expected: u32, found: u32 },
    #[error("a topic needs at least one partition")]
    NoPartitions,
}

/// What became of one request. The outer error: it may have been applied before, and what it gave then is forgotten.
pub type RequestResult = Result<Result<Outcome, Rejection>, AskedTooLate>;

/// A change that every core's view follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// New, or changed.
    Topic(Arc<Topic>),
    TopicDeleted(Arc<Topic>),
}

/// The result of applying one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Result<Outcome, Rejection>,
    pub delta: Option<Delta>,
}

/// Why a name can't be a topic's (Kafka's rule, `Topic.validate`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a topic's name has 1 to 249 characters, not {0}")]
    Length(usize),
    #[error("a topic can't be named '.' or '..'")]
    Dots,
    #[error("'{0}' can't be in a topic's name; letters, digits, '.', '_' and '-' can")]
    Character(char),
}

/// Checks a topic's name.
pub fn check_topic_name(name: &str) -> Result<(), NameError> {
    const LENGTH_MAX: usize = 249;
    if let Some(other) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(NameError::Character(other));
    }
    if !(1..=LENGTH_MAX).contains(&name.len()) {
        return Err(NameError::Length(name.len()));
    }
    if matches!(name, "." | "..") {
        return Err(NameError::Dots);
    }
    Ok(())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    id: SliceId,
    pub(super) topics: BTreeMap<Arc<str>, Arc<Topic>>,
    /// The largest group id that any command for this slice carried, whether it succeeded or not: ids are never used again.
    pub(super) group_high: u64,
    pub(super) next_producer_id: i64,
    pub(super) answers: Answers,
}

impl Slice {
    pub fn new(id: SliceId) -> Self {
        Self { id, topics: BTreeMap::new(), group_high: 0, next_producer_id: 0, answers: Answers::default() }
    }

    /// All slices of a new cluster.
    pub fn all() -> Vec<Self> {
        SliceId::all().map(Self::new).collect()
    }

    pub fn id(&self) -> SliceId {
        self.id
    }

    /// The largest group id ever seen here.
    pub fn group_high(&self) -> u64 {
        self.group_high
    }

    /// By name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    /// What a view without this slice lacks.
    pub fn image(&self) -> impl Iterator<Item = Delta> {
        self.topics().cloned().map(Delta::Topic)
    }

    /// Applies a committed command of this slice.
    pub fn apply(&mut self, command: &Command) -> Applied {
        assert_eq!(command.slice(), self.id, "a command goes to its own slice");
        match self.change(command) {
            Ok((outcome, delta)) => Applied { outcome: Ok(outcome), delta },
            Err(rejection) => Applied { outcome: Err(rejection), delta: None },
        }
    }

    /// Applies a committed request of this slice; one that was applied before gets its answer again, and changes nothing.
    pub fn apply_request(&mut self, request: &Request) -> Result<Applied, AskedTooLate> {
        let Some(origin) = request.origin else { return Ok(self.apply(&request.command)) };
        match self.answers.before(origin) {
            Before::Answered(outcome) => Ok(Applied { outcome, delta: None }),
            Before::Forgotten => Err(AskedTooLate),
            Before::Nothing => {
                let applied = self.apply(&request.command);
                self.answers.keep(origin, applied.outcome.clone());
                Ok(applied)
            }
        }
    }

    fn change(&mut self, command: &Command) -> Result<(Outcome, Option<Delta>), Rejection> {
        match command {
            Command::CreateTopic { name, id, first_group, replicas, configs, created_ms } => {
                self.take_groups(*first_group, replicas.len());
                check_topic_name(name)?;
                if self.topics.contains_key(name) {
                    return Err(Rejection::TopicExists(name.clone()));
                }
                if replicas.is_empty() {
                    return Err(Rejection::NoPartitions);
                }
                let topic = self.put(Topic {
                    name: name.clone(),
                    id: *id,
                    partitions: partitions(*first_group, replicas),
                    configs: configs.clone(),
                    created_ms: *created_ms,
                });
                Ok((Outcome::TopicCreated(topic.clone()), Some(Delta::Topic(topic))))
            }
            Command::DeleteTopic { name, id } => {
                self.find(name, *id)?;
                let topic = self.topics.remove(name).expect("it was just found");
                Ok((Outcome::TopicDeleted, Some(Delta::TopicDeleted(topic))))
            }
            Command::CreatePartitions { name, id, present, first_group, replicas } => {
                self.take_groups(*first_group, replicas.len());
                let mut topic = self.find(name, *id)?;
                let found = topic.partitions.len() as u32;
                if found != *present {
                    return Err(Rejection::PartitionCount { expected: *present, found });
                }
                topic.partitions.extend(partitions(*first_group, replicas));
                let topic = self.put(topic);
                Ok((Outcome::PartitionsAdded { topic: topic.clone(), first_new: found }, Some(Delta::Topic(topic))))
            }
            Command::UpdateTopicConfig { name, id, changes } => {
                let mut topic = self.find(name, *id)?;
                for (setting, value) in changes {
                    match value {
                        Some(value) => topic.configs.insert(setting.clone(), value.clone()),
                        None => topic.configs.remove(setting),
                    };
                }
                Ok((Outcome::ConfigUpdated, Some(Delta::Topic(self.put(topic)))))
            }
            Command::AllocateProducerIds { count } => {
                let first = self.next_producer_id;
                self.next_producer_id += i64::from(*count);
                Ok((Outcome::ProducerIds { first, count: *count }, None))
            }
        }
    }

    fn take_groups(&mut self, first: u64, count: usize) {
        self.group_high = self.group_high.max(first.saturating_add((count as u64).saturating_sub(1)));
    }

    fn find(&self, name: &Arc<str>, id: Uuid) -> Result<Topic, Rejection> {
        let found = self.topics.get(name).filter(|topic| topic.id == id);
        found.map(|topic| Topic::clone(topic)).ok_or_else(|| Rejection::UnknownTopic(name.clone()))
    }

    fn put(&mut self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.topics.insert(topic.name.clone(), topic.clone());
        topic
    }

    /// Panics if the slice's invariants do not hold.
    pub fn check(&self) {
        self.answers.check();
        for (name, topic) in &self.topics {
            assert_eq!(*name, topic.name);
            assert_eq!(SliceId::of_topic(name), self.id, "topic '{name}' lies in another slice");
            assert!(!topic.partitions.is_empty(), "topic '{name}' has no partitions");
            let highest = topic.partitions.iter().map(|partition| partition.group).max();
            assert!(highest <= Some(self.group_high), "topic '{name}' has a group that was never given out");
        }
    }
}

fn partitions(first_group: u64, replicas: &[Vec<i32>]) -> Vec<Partition> {
    (first_group..=u64::MAX)
        .zip(replicas)
        .map(|(group, replicas)| Partition { group, replicas: replicas.clone() })
        .collect()
}
