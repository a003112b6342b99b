//! One slice of the metadata keyspace.
//! Lives on: its owning core. Applies committed commands in log order. The same commands give the same slice, byte
//! for byte, on every broker.
//!
//! A leader lets its slices run ahead of the commit index ([`Slice::speculate`]). Every speculative change leaves
//! an undo record until it is committed or rolled back.
//!
//! Invariants: a topic is in the slice of its name; group ids only grow over the life of a slice; a rollback leaves
//! no trace.

use super::{
    Broker, BrokerStatus, ClusterConfig, Command, LARGEST_ENTRY, LeaderReport, NoRoom, Partition, PartitionLeader,
    Request, SliceId, Topic, Watermark, WatermarkReport,
    names::{NameError, check_topic_name},
    slice_answers::{Answers, AskedTooLate, Before, Kept},
    slice_of_cluster, slice_of_topic,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use types::{GroupId, RaftIndex, node_of};
use uuid::Uuid;

/// The result of a command that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    TopicCreated(Arc<Topic>),
    TopicDeleted,
    /// The topic after the change. The partitions from `first_new` on are new.
    PartitionsAdded {
        topic: Arc<Topic>,
        first_new: u32,
    },
    ConfigUpdated,
    /// The requester owns the ids `first .. first + count`.
    ProducerIds {
        first: i64,
        count: u32,
    },
    /// The topic after the change.
    PartitionAssigned(Arc<Topic>),
    LeadersSet,
    WatermarksUpdated,
    BrokerRegistered,
    BrokerStatusUpdated,
    BrokerUnregistered,
    FeatureSet,
    ClusterConfigUpdated,
}

/// The reason why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("topic '{0}' already exists")]
    TopicExists(Arc<str>),
    #[error("there is no topic '{0}' with that id any more")]
    UnknownTopic(Arc<str>),
    #[error(transparent)]
    InvalidName(#[from] NameError),
    #[error("the topic has {found} partitions, not {expected}: another request has added some; try again")]
    PartitionCount { expected: u32, found: u32 },
    #[error("a topic needs at least one partition")]
    NoPartitions,
    #[error("the topic has no partition {0}")]
    UnknownPartition(u32),
    #[error("the partition's replicas have changed: another request has assigned them; try again")]
    ReplicasChanged,
    #[error("a later process of broker {node} has registered (incarnation {incarnation})")]
    StaleBroker { node: i32, incarnation: u64 },
    #[error(
        "the data directory of broker {node} (peer {peer:#x}) was unregistered or replaced by another and can't come \
         back; empty it"
    )]
    PeerGone { node: i32, peer: u64 },
    /// Only the leader rejects with this, and nothing is in the log then. `address`: where clients reach the holder.
    #[error("node id {node} belongs to the broker at {address}, which is alive; choose another, or stop it first")]
    NodeIdTaken { node: i32, incarnation: u64, address: Arc<str> },
    #[error("there is no broker {0}")]
    UnknownBroker(i32),
    #[error("the feature's level is {from} and can't be lowered to {to}")]
    FeatureDowngrade { from: u16, to: u16 },
    #[error(
        "broker {node} accepts entries (batches, metadata commands) of at most {takes} bytes (0: its version does not say), not \
         {largest}; ask for less at once, raise wal.ring.bytes there, or give it fewer cores"
    )]
    LargestEntry { node: i32, takes: u64, largest: u64 },
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// The result of one request. The outer error means that the request may have been applied before and that its
/// answer is forgotten.
pub type RequestResult = Result<Result<Outcome, Rejection>, AskedTooLate>;

/// A change that every core's view follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A new or changed topic.
    Topic(Arc<Topic>),
    TopicDeleted(Arc<Topic>),
    /// By group.
    Leaders(Arc<[(GroupId, PartitionLeader)]>),
    /// By group.
    Watermarks(Arc<[(GroupId, Watermark)]>),
    Broker(Arc<Broker>),
    BrokerGone(i32),
    /// All peers that must not come back.
    GonePeers(Arc<BTreeSet<u64>>),
    Features(Arc<BTreeMap<String, u16>>),
    ClusterConfig(Arc<ClusterConfig>),
}

/// The result of applying one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub outcome: Result<Outcome, Rejection>,
    pub deltas: Vec<Delta>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    id: SliceId,
    /// Copies of the slice share this map, and the other `Arc`s below, until one of them changes.
    pub(super) topics: Arc<BTreeMap<Arc<str>, Arc<Topic>>>,
    /// The largest group id in any command for this slice, whether the command succeeded or not. Ids are never
    /// reused.
    pub(super) group_high: u64,
    pub(super) next_producer_id: i64,
    /// The leaders of the partitions of the topics here, by group.
    pub(super) leaders: Arc<BTreeMap<GroupId, PartitionLeader>>,
    pub(super) watermarks: Arc<BTreeMap<GroupId, Watermark>>,
    pub(super) brokers: BTreeMap<i32, Arc<Broker>>,
    /// Peers of brokers that were unregistered or whose disk was replaced.
    pub(super) gone_peers: Arc<BTreeSet<u64>>,
    pub(super) features: Arc<BTreeMap<String, u16>>,
    pub(super) settings: Arc<ClusterConfig>,
    pub(super) answers: Answers,
    /// Undo records of uncommitted changes, oldest first, each with the index of its entry.
    undo: VecDeque<(RaftIndex, Undo)>,
    /// The index of the entry that is being speculated.
    speculating: Option<RaftIndex>,
}

/// The capacity of the undo list that an idle slice keeps.
const UNDO_KEPT: usize = 16;

/// The old value that undoes one change.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Undo {
    Topic(Arc<str>, Option<Arc<Topic>>),
    GroupHigh(u64),
    NextProducerId(i64),
    Leader(GroupId, Option<PartitionLeader>),
    Watermark(GroupId, Option<Watermark>),
    Broker(i32, Option<Arc<Broker>>),
    GonePeers(Arc<BTreeSet<u64>>),
    Features(Arc<BTreeMap<String, u16>>),
    Settings(Arc<ClusterConfig>),
    Answer(Kept),
}

/// The outcome of a command, and the deltas for the views.
type Changed = Result<(Outcome, Vec<Delta>), Rejection>;

impl Slice {
    pub fn new(id: SliceId) -> Self {
        Self {
            id,
            topics: Arc::default(),
            group_high: 0,
            next_producer_id: 0,
            leaders: Arc::default(),
            watermarks: Arc::default(),
            brokers: BTreeMap::new(),
            gone_peers: Arc::default(),
            features: Arc::default(),
            settings: Arc::default(),
            answers: Answers::default(),
            undo: VecDeque::new(),
            speculating: None,
        }
    }

    /// All slices of a new, empty cluster.
    pub fn all() -> Vec<Self> {
        SliceId::all().map(Self::new).collect()
    }

    pub fn id(&self) -> SliceId {
        self.id
    }

    /// The largest group id that any command for this slice carried.
    pub fn group_high(&self) -> u64 {
        self.group_high
    }

    /// The topics, ordered by name.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.topics.values()
    }

    pub fn topic(&self, name: &str) -> Option<&Arc<Topic>> {
        self.topics.get(name)
    }

    /// The deltas that add this slice to a view which lacks it.
    pub fn image(&self) -> impl Iterator<Item = Delta> {
        let mut deltas: Vec<Delta> = self.topics().cloned().map(Delta::Topic).collect();
        deltas.extend(self.brokers.values().cloned().map(Delta::Broker));
        let leaders = self.leaders.iter().map(|(group, leader)| (*group, leader.clone()));
        let watermarks = self.watermarks.iter().map(|(group, watermark)| (*group, *watermark));
        deltas.push(Delta::Leaders(leaders.collect()));
        deltas.push(Delta::Watermarks(watermarks.collect()));
        if self.id == slice_of_cluster() {
            deltas.push(Delta::GonePeers(self.gone_peers.clone()));
            deltas.push(Delta::Features(self.features.clone()));
            deltas.push(Delta::ClusterConfig(self.settings.clone()));
        }
        deltas.into_iter()
    }

    /// Applies a committed command. The command must belong to this slice.
    pub fn apply(&mut self, command: &Command) -> Applied {
        assert_eq!(command.slice(), self.id, "a command goes to its own slice");
        match self.change(command) {
            Ok((outcome, deltas)) => Applied { outcome: Ok(outcome), deltas },
            Err(rejection) => Applied { outcome: Err(rejection), deltas: Vec::new() },
        }
    }

    /// Applies a committed request. The request must belong to this slice. A retried request gets its first answer
    /// again and changes nothing.
    pub fn apply_request(&mut self, request: &Request) -> Result<Applied, AskedTooLate> {
        assert!(self.undo.is_empty() || self.speculating.is_some(), "uncommitted entries are rolled back first");
        let apply = |slice: &mut Self| match request.no_room {
            None => slice.apply(&request.command),
            Some(no_room) => Applied { outcome: Err(no_room.into()), deltas: Vec::new() },
        };
        let Some(origin) = request.origin else { return Ok(apply(self)) };
        match self.answers.before(origin) {
            Before::Answered(outcome) => Ok(Applied { outcome, deltas: Vec::new() }),
            Before::Forgotten => Err(AskedTooLate),
            Before::Nothing => {
                let applied = apply(self);
                let kept = self.answers.keep(origin, applied.outcome.clone());
                self.can_undo(|| Undo::Answer(kept));
                Ok(applied)
            }
        }
    }

    /// Like [`Slice::apply_request`], for a request of the leader's entry at `index`, which is not committed yet.
    pub fn speculate(&mut self, index: RaftIndex, request: &Request) -> Result<Applied, AskedTooLate> {
        self.speculating = Some(index);
        let applied = self.apply_request(request);
        self.speculating = None;
        applied
    }

    /// Drops the undo records up to `index`: these speculative changes are committed.
    pub fn commit(&mut self, index: RaftIndex) {
        while self.undo.pop_front_if(|(at, _)| *at <= index).is_some() {}
        self.give_back_memory();
    }

    /// Undoes all uncommitted changes.
    pub fn roll_back(&mut self) {
        while let Some((_, undo)) = self.undo.pop_back() {
            match undo {
                Undo::Topic(name, before) => put_back(Arc::make_mut(&mut self.topics), name, before),
                Undo::GroupHigh(before) => self.group_high = before,
                Undo::NextProducerId(before) => self.next_producer_id = before,
                Undo::Leader(group, before) => put_back(Arc::make_mut(&mut self.leaders), group, before),
                Undo::Watermark(group, before) => put_back(Arc::make_mut(&mut self.watermarks), group, before),
                Undo::Broker(node, before) => put_back(&mut self.brokers, node, before),
                Undo::GonePeers(before) => self.gone_peers = before,
                Undo::Features(before) => self.features = before,
                Undo::Settings(before) => self.settings = before,
                Undo::Answer(kept) => self.answers.forget(kept),
            }
        }
        self.give_back_memory();
    }

    /// Frees a large undo list. Deleting a large topic records thousands of changes, and a broker has many slices.
    fn give_back_memory(&mut self) {
        if self.undo.is_empty() && self.undo.capacity() > UNDO_KEPT {
            self.undo = VecDeque::new();
        }
    }

    /// Copies the slice without its uncommitted changes. This is cheap: the large maps are shared, and only a map
    /// with changes to undo is copied.
    pub fn committed(&self) -> Self {
        let mut copy = self.clone();
        copy.roll_back();
        copy
    }

    #[cfg(test)]
    pub(super) fn undo_capacity(&self) -> usize {
        self.undo.capacity()
    }

    fn can_undo(&mut self, undo: impl FnOnce() -> Undo) {
        if let Some(index) = self.speculating {
            self.undo.push_back((index, undo()));
        }
    }

    fn change(&mut self, command: &Command) -> Changed {
        match command {
            Command::CreateTopic { name, id, first_group, replicas, configs, created_ms, peers } => {
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
                    partitions: partitions(*first_group, replicas, peers),
                    configs: configs.clone(),
                    created_ms: *created_ms,
                });
                Ok((Outcome::TopicCreated(topic.clone()), vec![Delta::Topic(topic)]))
            }
            Command::DeleteTopic { name, id } => {
                let topic = self.find(name, *id)?.clone();
                self.set_topic(name.clone(), None);
                for partition in &topic.partitions {
                    self.set_leader(partition.group, None);
                    self.set_watermark(partition.group, None);
                }
                Ok((Outcome::TopicDeleted, vec![Delta::TopicDeleted(topic)]))
            }
            Command::CreatePartitions { name, id, present, first_group, replicas, peers } => {
                self.take_groups(*first_group, replicas.len());
                let mut topic = Topic::clone(self.find(name, *id)?);
                let found = topic.partitions.len() as u32;
                if found != *present {
                    return Err(Rejection::PartitionCount { expected: *present, found });
                }
                topic.partitions.extend(partitions(*first_group, replicas, peers));
                let topic = self.put(topic);
                Ok((Outcome::PartitionsAdded { topic: topic.clone(), first_new: found }, vec![Delta::Topic(topic)]))
            }
            Command::UpdateTopicConfig { name, id, changes } => {
                let mut topic = Topic::clone(self.find(name, *id)?);
                for (setting, value) in changes {
                    match value {
                        Some(value) => topic.configs.insert(setting.clone(), value.clone()),
                        None => topic.configs.remove(setting),
                    };
                }
                Ok((Outcome::ConfigUpdated, vec![Delta::Topic(self.put(topic))]))
            }
            Command::AllocateProducerIds { count } => {
                let first = self.next_producer_id;
                self.can_undo(|| Undo::NextProducerId(first));
                self.next_producer_id += i64::from(*count);
                Ok((Outcome::ProducerIds { first, count: *count }, Vec::new()))
            }
            Command::AssignPartition { name, id, partition, present, replicas } => {
                let mut topic = Topic::clone(self.find(name, *id)?);
                let found = topic.partitions.get_mut(*partition as usize);
                let found = found.ok_or(Rejection::UnknownPartition(*partition))?;
                if found.replicas != *present || replicas.is_empty() {
                    return Err(Rejection::ReplicasChanged);
                }
                found.replicas.clone_from(replicas);
                let topic = self.put(topic);
                Ok((Outcome::PartitionAssigned(topic.clone()), vec![Delta::Topic(topic)]))
            }
            Command::SetPartitionLeader { name, id, leaders } => self.take_leaders(name, *id, leaders),
            Command::UpdateHighWatermark { name, id, node: _, watermarks } => {
                self.take_watermarks(name, *id, watermarks)
            }
            Command::RegisterBroker { broker } => self.register(broker),
            Command::UpdateBrokerStatus { node, incarnation, status } => {
                let known = self.brokers.get(node).ok_or(Rejection::UnknownBroker(*node))?;
                if known.incarnation != *incarnation {
                    return Err(Rejection::StaleBroker { node: *node, incarnation: known.incarnation });
                }
                let broker = Arc::new(Broker { status: *status, ..Broker::clone(known) });
                self.set_broker(*node, Some(broker.clone()));
                Ok((Outcome::BrokerStatusUpdated, vec![Delta::Broker(broker)]))
            }
            Command::UnregisterBroker { node } => {
                let peer = self.brokers.get(node).ok_or(Rejection::UnknownBroker(*node))?.peer;
                self.set_broker(*node, None);
                let gone = self.let_go(peer);
                Ok((Outcome::BrokerUnregistered, vec![Delta::BrokerGone(*node), gone]))
            }
            Command::SetFeatureLevel { name, level } => {
                let from = self.features.get(name).copied().unwrap_or(0);
                if *level < from {
                    return Err(Rejection::FeatureDowngrade { from, to: *level });
                }
                let before = self.features.clone();
                self.can_undo(|| Undo::Features(before));
                Arc::make_mut(&mut self.features).insert(name.clone(), *level);
                Ok((Outcome::FeatureSet, vec![Delta::Features(self.features.clone())]))
            }
            Command::UpdateClusterConfig { node, changes } => {
                for (_, value) in changes.iter().filter(|(name, _)| name == LARGEST_ENTRY) {
                    let wanted = value.as_ref().and_then(|value| value.parse().ok()).unwrap_or(0);
                    self.allow_largest(wanted)?;
                }
                let before = self.settings.clone();
                self.can_undo(|| Undo::Settings(before));
                let settings = Arc::make_mut(&mut self.settings);
                for (name, value) in changes {
                    settings.set(*node, name, value.as_deref());
                }
                Ok((Outcome::ClusterConfigUpdated, vec![Delta::ClusterConfig(self.settings.clone())]))
            }
        }
    }

    /// Applies the reports that are newer than what is known, and ignores the others.
    fn take_leaders(&mut self, name: &Arc<str>, id: Uuid, reports: &[LeaderReport]) -> Changed {
        let topic = self.find(name, id)?.clone();
        let mut changed = Vec::new();
        for report in reports {
            let Some(partition) = topic.partitions.get(report.partition as usize) else { continue };
            // In the same term, the leader reports again when its in-sync voters have changed.
            let is_newer = self.leaders.get(&partition.group).is_none_or(|known| {
                let is_same = (known.term, known.leader) == (report.term, report.leader);
                known.term < report.term || (is_same && known.voters != report.voters)
            });
            if is_newer && partition.replicas.contains(&report.leader) {
                let LeaderReport { term, leader, ref voters, .. } = *report;
                let leader = PartitionLeader { term, leader, voters: voters.clone() };
                self.set_leader(partition.group, Some(leader.clone()));
                changed.push((partition.group, leader));
            }
        }
        Ok((Outcome::LeadersSet, vec![Delta::Leaders(changed.into())]))
    }

    /// A high watermark never goes back. The end offset may go back when a new leader has truncated the log, but
    /// not below the high watermark.
    fn take_watermarks(&mut self, name: &Arc<str>, id: Uuid, reports: &[WatermarkReport]) -> Changed {
        let topic = self.find(name, id)?.clone();
        let mut changed = Vec::new();
        for report in reports {
            let Some(partition) = topic.partitions.get(report.partition as usize) else { continue };
            let known = self.watermarks.get(&partition.group).copied();
            let least = known.unwrap_or(Watermark { high_watermark: 0, log_start: 0, end_offset: 0 });
            let high_watermark = report.high_watermark.max(least.high_watermark);
            let now = Watermark {
                high_watermark,
                log_start: report.log_start.max(least.log_start).min(high_watermark),
                end_offset: report.end_offset.max(high_watermark),
            };
            if known != Some(now) {
                self.set_watermark(partition.group, Some(now));
                changed.push((partition.group, now));
            }
        }
        Ok((Outcome::WatermarksUpdated, vec![Delta::Watermarks(changed.into())]))
    }

    fn register(&mut self, broker: &Broker) -> Changed {
        let Broker { node, peer, .. } = *broker;
        if self.gone_peers.contains(&peer) {
            return Err(Rejection::PeerGone { node, peer });
        }
        let takes = broker.largest_entry;
        if let Some(largest) = self.settings.largest_entry().filter(|largest| takes > 0 && *largest > takes) {
            return Err(Rejection::LargestEntry { node, takes, largest });
        }
        let mut deltas = Vec::new();
        if let Some(known) = self.brokers.get(&node) {
            if known.peer == peer && known.incarnation > broker.incarnation {
                return Err(Rejection::StaleBroker { node, incarnation: known.incarnation });
            }
            if known.peer != peer {
                let former = known.peer;
                deltas.push(self.let_go(former));
            }
        }
        let broker = Arc::new(Broker { status: BrokerStatus::Alive, ..broker.clone() });
        self.set_broker(node, Some(broker.clone()));
        deltas.push(Delta::Broker(broker));
        Ok((Outcome::BrokerRegistered, deltas))
    }

    /// Checks that every registered broker accepts batches of `wanted` bytes.
    fn allow_largest(&self, wanted: u64) -> Result<(), Rejection> {
        if self.settings.largest_entry() >= Some(wanted) {
            return Ok(());
        }
        let least = self.brokers.values().min_by_key(|broker| broker.largest_entry);
        match least.filter(|broker| broker.largest_entry < wanted) {
            Some(broker) => {
                Err(Rejection::LargestEntry { node: broker.node, takes: broker.largest_entry, largest: wanted })
            }
            None => Ok(()),
        }
    }

    /// Records that this peer must not come back.
    fn let_go(&mut self, peer: u64) -> Delta {
        let before = self.gone_peers.clone();
        self.can_undo(|| Undo::GonePeers(before));
        Arc::make_mut(&mut self.gone_peers).insert(peer);
        Delta::GonePeers(self.gone_peers.clone())
    }

    fn take_groups(&mut self, first: u64, count: usize) {
        let before = self.group_high;
        self.can_undo(|| Undo::GroupHigh(before));
        self.group_high = before.max(first.saturating_add((count as u64).saturating_sub(1)));
    }

    fn find(&self, name: &Arc<str>, id: Uuid) -> Result<&Arc<Topic>, Rejection> {
        let found = self.topics.get(name).filter(|topic| topic.id == id);
        found.ok_or_else(|| Rejection::UnknownTopic(name.clone()))
    }

    fn put(&mut self, topic: Topic) -> Arc<Topic> {
        let topic = Arc::new(topic);
        self.set_topic(topic.name.clone(), Some(topic.clone()));
        topic
    }

    fn set_topic(&mut self, name: Arc<str>, topic: Option<Arc<Topic>>) {
        let before = set(Arc::make_mut(&mut self.topics), name.clone(), topic);
        self.can_undo(|| Undo::Topic(name, before));
    }

    fn set_leader(&mut self, group: GroupId, leader: Option<PartitionLeader>) {
        let before = set(Arc::make_mut(&mut self.leaders), group, leader);
        self.can_undo(|| Undo::Leader(group, before));
    }

    fn set_watermark(&mut self, group: GroupId, watermark: Option<Watermark>) {
        let before = set(Arc::make_mut(&mut self.watermarks), group, watermark);
        self.can_undo(|| Undo::Watermark(group, before));
    }

    fn set_broker(&mut self, node: i32, broker: Option<Arc<Broker>>) {
        let before = set(&mut self.brokers, node, broker);
        self.can_undo(|| Undo::Broker(node, before));
    }

    /// Panics if an invariant of the slice does not hold.
    pub fn check(&self) {
        self.answers.check();
        for (name, topic) in &*self.topics {
            assert_eq!(*name, topic.name);
            assert_eq!(slice_of_topic(name), self.id, "topic '{name}' lies in another slice");
            assert!(!topic.partitions.is_empty(), "topic '{name}' has no partitions");
            let highest = topic.partitions.iter().map(|partition| partition.group.0).max();
            assert!(highest <= Some(self.group_high), "topic '{name}' has a group that was never assigned");
        }
        let groups: BTreeSet<GroupId> =
            self.topics.values().flat_map(|topic| &topic.partitions).map(|partition| partition.group).collect();
        for group in self.leaders.keys().chain(self.watermarks.keys()) {
            assert!(groups.contains(group), "group {group} is known, but no topic of this slice has it");
        }
        for (group, Watermark { high_watermark, log_start, end_offset }) in &*self.watermarks {
            assert!(
                log_start <= high_watermark && high_watermark <= end_offset,
                "group {group}'s offsets are not in order"
            );
        }
        for broker in self.brokers.values() {
            assert!(!self.gone_peers.contains(&broker.peer), "broker {} has a peer that is gone", broker.node);
        }
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

fn put_back<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    set(map, key, value);
}

fn partitions(first_group: u64, replicas: &[Vec<i32>], peers: &[u64]) -> Vec<Partition> {
    let peer_of = |node: &i32| peers.iter().copied().find(|peer| node_of(*peer) == *node);
    let partition = |(group, replicas): (u64, &Vec<i32>)| {
        let founders = replicas.iter().filter_map(peer_of).collect();
        Partition { group: GroupId(group), replicas: replicas.clone(), founders }
    };
    (first_group..=u64::MAX).zip(replicas).map(partition).collect()
}
