//! One core of the broker: everything it owns, and how the others reach it.
//! Lives on: its own pinned thread; `Rc`, never `Send`. Other cores send it jobs and posts through the [`crate::mesh`].
//!
//! Owns: a WAL ring and the logs on it ([`Store`]), the partitions whose group id is this core's modulo the number of cores, the
//! metadata slices whose number is, and its client connections. Holds besides a view of all topics.

use crate::{
    admission::Admission,
    clock,
    config::Config,
    config_cluster,
    config_topic::{Inherited, TopicConfig},
    config_value::HostPort,
    coordinators::Coordinators,
    disk::Disk,
    front::{Connections, Spread},
    groups::Groups,
    kafka::{Fetches, METADATA_TOPIC, OFFSETS_TOPIC, Placement, ProducerIds, metadata_log},
    mesh::{HasMesh, Mesh},
    meta::{META_CORE, META_GROUP, Meta, Parts, SliceResults, SliceWork},
    metrics::CoreMetrics,
    pace::Pace,
    partition::{Partition, TopicPartition},
    peers::Peers,
    replica::{ReadyLoop, Replicated},
    rt,
    sync::{Flag, Notify},
};
use ahash::AHashMap;
use consensus::{
    descriptor,
    group::{Entry, Group, GroupConfig, HardState, Position, Restored, TermRun},
    metadata::{self, Applied, AskedTooLate, Broker, BrokerStatus, Delta, Request, Slice, SliceId, Topic, View},
    plane::Acks,
};
use net::{
    errors::ErrorCode,
    produce::{LeaderHint, TopicRef},
};
use std::{
    cell::{Cell, LazyCell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use wal::{
    record::GroupId,
    store::{AppState, FlushHost, RecoveredGroup},
};

/// A core of this broker, counted from 0; not a CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub usize);

/// The storage of one core.
pub type Store = wal::store::Store<Disk>;

/// Who leads a partition, as every core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub node: i32,
    pub epoch: i32,
}

/// Who leads a partition of this broker, as its replica here knows.
#[derive(Clone, Debug)]
pub struct Led {
    pub group: GroupId,
    pub name: TopicPartition,
    /// `None`: nobody any more, as far as is known here.
    pub node: Option<i32>,
    pub epoch: i32,
    /// If this broker leads it: the nodes that have what is committed.
    pub in_sync: Vec<i32>,
}

/// What a broker is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// This broker's peer id in every group, for as long as its disk lasts.
    pub peer: u64,
    /// Of this process; later ones are larger.
    pub incarnation: u64,
    /// The metadata group's first voters.
    pub founding: Vec<u64>,
    /// Where other brokers reach this one.
    pub peer_addr: HostPort,
}

/// What a core is made from.
pub struct CoreParts {
    pub mesh: Mesh<Core>,
    pub config: Arc<Config>,
    pub cluster_id: Arc<str>,
    pub identity: Arc<Identity>,
    /// Host and port that clients are told.
    pub advertised: (Arc<str>, u16),
    pub store: Store,
    pub metrics: Arc<CoreMetrics>,
    pub spread: Arc<Spread>,
    pub recovered: Vec<RecoveredGroup>,
}

pub struct Core {
    mesh: Mesh<Core>,
    pub config: Arc<Config>,
    inherited: Inherited,
    pub cluster_id: Arc<str>,
    pub identity: Arc<Identity>,
    advertised: (Arc<str>, u16),
    pub store: Store,
    pub metrics: Arc<CoreMetrics>,
    pub ready_loop: ReadyLoop,
    /// Turns to read for replicas that lag.
    pub pace: Pace,
    pub admission: Admission,
    pub fetches: Fetches,
    pub producer_ids: ProducerIds,
    pub placement: Placement,
    pub coordinators: Coordinators,
    pub groups: Groups,
    /// On core 0 only.
    meta: OnceCell<Rc<Meta>>,
    peers: OnceCell<Rc<Peers>>,
    partitions: RefCell<BTreeMap<GroupId, Rc<Partition>>>,
    slices: RefCell<BTreeMap<SliceId, Slice>>,
    view: RefCell<View>,
    /// Who leads the partitions of this broker, as its replicas know; a node below 0: nobody since that epoch.
    leaders: RefCell<AHashMap<GroupId, Leadership>>,
    /// Leaderships of this core's partitions that the others have not been told yet.
    untold: RefCell<Vec<Led>>,
    /// On core 0: leaderships of this broker that other brokers have not been told.
    unreported: RefCell<Vec<Led>>,
    /// Until when reads may be answered from the view.
    read_until: Cell<Duration>,
    /// The broker that leads the metadata group.
    controller: Cell<Option<i32>>,
    away: RefCell<Arc<[i32]>>,
    /// Moves whenever the view or a leadership changes.
    pub view_changed: Notify,
    /// What the store recovered and no topic has claimed yet.
    unclaimed: RefCell<AHashMap<GroupId, RecoveredGroup>>,
    failed: RefCell<Option<String>>,
    /// The disk has no room for what is to be flushed.
    disk_full: Cell<bool>,
    pub connections: Connections,
    pub lifecycle: Lifecycle,
}

impl HasMesh for Core {
    fn mesh(&self) -> &Mesh<Self> {
        &self.mesh
    }
}

/// Which core owns a group, and so a partition: even, and a function of nothing else.
pub fn core_of(group: GroupId, cores: usize) -> CoreId {
    CoreId((group.0 % cores as u64) as usize)
}

/// Which core owns a slice of the metadata.
pub fn core_of_slice(slice: SliceId, cores: usize) -> CoreId {
    CoreId(usize::from(slice.0) % cores)
}

impl Core {
    pub fn new(parts: CoreParts) -> Rc<Self> {
        let unclaimed = parts.recovered.into_iter().map(|recovered| (recovered.id, recovered)).collect();
        Rc::new(Self {
            mesh: parts.mesh,
            pace: Pace::new(parts.config.replica_catch_up_bytes_per_second),
            inherited: Inherited::new(&parts.config),
            config: parts.config,
            cluster_id: parts.cluster_id,
            identity: parts.identity,
            advertised: parts.advertised,
            store: parts.store,
            metrics: parts.metrics,
            ready_loop: ReadyLoop::default(),
            admission: Admission::default(),
            fetches: Fetches::default(),
            producer_ids: ProducerIds::default(),
            placement: Placement::default(),
            coordinators: Coordinators::default(),
            groups: Groups::default(),
            meta: OnceCell::new(),
            peers: OnceCell::new(),
            partitions: RefCell::default(),
            slices: RefCell::default(),
            view: RefCell::default(),
            leaders: RefCell::default(),
            untold: RefCell::default(),
            unreported: RefCell::default(),
            read_until: Cell::new(Duration::ZERO),
            controller: Cell::new(None),
            away: RefCell::new(Arc::from([])),
            view_changed: Notify::default(),
            unclaimed: RefCell::new(unclaimed),
            failed: RefCell::default(),
            disk_full: Cell::new(false),
            connections: Connections::new(parts.spread),
            lifecycle: Lifecycle::default(),
        })
    }

    pub fn id(&self) -> CoreId {
        self.mesh.me()
    }

    pub fn cores(&self) -> usize {
        self.mesh.cores()
    }

    pub fn node(&self) -> i32 {
        self.config.node_id
    }

    /// Runs `post` on `to`, in order with all other posts from here; at once if that is here.
    pub fn post(self: &Rc<Self>, to: CoreId, post: impl FnOnce(&Rc<Core>) + Send + 'static) {
        if to == self.id() { post(self) } else { self.mesh.post(to, post) }
    }

    /// Runs `job` on `to` and brings back its result. It has started (here) or is on its way (elsewhere) when this returns.
    pub fn call<R, F>(self: &Rc<Self>, to: CoreId, job: impl FnOnce(Rc<Core>) -> F + Send + 'static) -> Call<R, F>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        if to == self.id() { Call::Here(job(self.clone())) } else { Call::There(self.mesh.call(to, job)) }
    }

    /// Runs `job` on `to`, in order with the calls from here, and expects nothing back.
    pub fn send(self: &Rc<Self>, to: CoreId, job: impl FnOnce(&Rc<Core>) + Send + 'static) {
        if to == self.id() { job(self) } else { self.mesh.send(to, job) }
    }

    pub fn meta(&self) -> &Rc<Meta> {
        self.meta.get().expect("only core 0 is asked for the metadata group")
    }

    /// The way to other brokers.
    pub fn peers(&self) -> &Rc<Peers> {
        self.peers.get().expect("a core has its way to other brokers before it does anything")
    }

    /// This core's partitions, in the order of their groups.
    pub fn partitions(&self) -> Vec<Rc<Partition>> {
        self.partitions_that(|_| true)
    }

    /// As [`Core::partitions`], those for which `are` holds: there may be very many others.
    pub fn partitions_that(&self, are: impl Fn(&Partition) -> bool) -> Vec<Rc<Partition>> {
        self.partitions.borrow().values().filter(|partition| are(partition)).cloned().collect()
    }

    /// Does something with each of this core's partitions, in turns between which others go on.
    pub async fn for_partitions_in_turns(&self, mut each: impl FnMut(&Rc<Partition>)) {
        let mut turns = rt::Turns::begin();
        let mut next = GroupId(0);
        loop {
            let turn: Vec<_> =
                self.partitions.borrow().range(next..).take(rt::TURN).map(|(_, one)| one.clone()).collect();
            let Some(last) = turn.last() else { return };
            next = GroupId(last.group().0 + 1);
            turn.iter().for_each(&mut each);
            turns.give_way().await;
        }
    }

    pub fn partition(&self, group: GroupId) -> Option<Rc<Partition>> {
        self.partitions.borrow().get(&group).cloned()
    }

    pub fn owner(&self, group: GroupId) -> CoreId {
        core_of(group, self.cores())
    }

    /// The replica behind a group of this core.
    pub fn group(&self, group: GroupId) -> Option<Rc<dyn Replicated>> {
        if group == META_GROUP {
            return self.meta.get().map(|meta| meta.clone() as Rc<dyn Replicated>);
        }
        self.partition(group).map(|partition| partition as Rc<dyn Replicated>)
    }

    /// A look at the view; it may not be held across an await.
    pub fn view<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.view.borrow())
    }

    /// Who leads a partition: as its replica here knows, or as the metadata says, if that is newer and the leader alive.
    pub fn leader_of(&self, group: GroupId) -> Option<Leadership> {
        if group == META_GROUP {
            return self.controller().map(|node| Leadership { node, epoch: -1 });
        }
        let here = self.leaders.borrow().get(&group).copied();
        let known = here.map_or(-1, |here| here.epoch);
        let told = self.view(|view| led_elsewhere(view, group, self.node())).filter(|told| told.epoch > known);
        told.or(here.filter(|here| here.node >= 0))
    }
}

/// What the metadata says of a partition's leader. What it says of this broker is from an earlier life, if the broker does not know
/// it itself.
fn led_elsewhere(view: &View, group: GroupId, own: i32) -> Option<Leadership> {
    let reported = view.leader(group.0)?;
    let alive = view.broker(reported.leader).is_some_and(|broker| broker.status == BrokerStatus::Alive);
    (alive && reported.leader != own).then_some(Leadership { node: reported.leader, epoch: reported.term as i32 })
}

/// A job's result, wherever the job runs.
pub enum Call<R, F> {
    Here(F),
    There(crate::mesh::Called<R>),
}

impl<R: 'static, F: Future<Output = R>> Call<R, F> {
    pub async fn result(self) -> R {
        match self {
            Call::Here(future) => future.await,
            Call::There(called) => called.await,
        }
    }
}

/// The view and what follows from it.
impl Core {
    /// Applies published deltas to the view and makes this core's partitions follow it.
    pub fn show(self: &Rc<Self>, deltas: &[(u64, Vec<Delta>)]) {
        for (index, changes) in deltas {
            self.view.borrow_mut().apply(*index, changes);
            for change in changes {
                self.follow(change);
            }
        }
        self.view_changed.notify();
    }

    /// Makes partitions, settings and leaderships of this core agree with one change of the view.
    fn follow(self: &Rc<Self>, change: &Delta) {
        match change {
            Delta::Topic(topic) => self.follow_topic(topic),
            Delta::Broker(broker) => self.follow_broker(broker),
            Delta::BrokerGone(node) => self.peers().forget(*node),
            Delta::TopicDeleted(topic) => {
                for partition in &topic.partitions {
                    self.drop_group(GroupId(partition.group));
                }
            }
            // Looked up in the view when they are needed.
            Delta::Leaders(_)
            | Delta::Watermarks(_)
            | Delta::GonePeers(_)
            | Delta::Features(_)
            | Delta::ClusterConfig(_) => {}
        }
    }

    /// Another broker is where it says, and may be another peer than before.
    fn follow_broker(self: &Rc<Self>, broker: &Broker) {
        if broker.node == self.node() {
            return;
        }
        let address = HostPort { host: broker.peer_addr.host.clone(), port: broker.peer_addr.port };
        self.peers().set_address(broker.node, address.to_string());
        for partition in self.partitions_that(|partition| partition.concerns(broker.node)) {
            partition.meets(self);
        }
    }

    fn follow_topic(self: &Rc<Self>, topic: &Arc<Topic>) {
        // Of most topics other cores and brokers have all partitions.
        let config = LazyCell::new(|| Rc::new(TopicConfig::resolve(&topic.configs, &self.inherited)));
        for (number, meta) in topic.partitions.iter().enumerate() {
            let group = GroupId(meta.group);
            if self.owner(group) != self.id() || !meta.replicas.contains(&self.node()) {
                continue;
            }
            // The metadata's log is replayed from before the topic's deletion, which the store has carried out already.
            if self.store.was_removed(group) {
                continue;
            }
            match self.partition(group) {
                Some(partition) => {
                    self.store.set_options(group, config.log_options());
                    partition.set_config(Rc::clone(&config));
                }
                None => {
                    let name = TopicPartition { topic: topic.name.clone(), partition: number as i32 };
                    self.open_partition(name, meta, Rc::clone(&config));
                }
            }
        }
    }

    /// Starts a partition's replica from what the store recovered, or anew. One that can't be brought back stays without a
    /// leader and says why; the others serve.
    fn open_partition(self: &Rc<Self>, name: TopicPartition, meta: &metadata::Partition, config: Rc<TopicConfig>) {
        let group = GroupId(meta.group);
        let recovered = self.unclaimed.borrow_mut().remove(&group);
        let (identity, replicas) = (self.group_config(meta), meta.replicas.clone());
        let opened = match &recovered {
            None => {
                self.store.create_group(group, config.log_options());
                let empty = Restored { gone: Some(Position { index: 0, term: 0 }), ..Restored::default() };
                let raft = Group::new(identity, empty).expect("a new group needs nothing from storage");
                Ok(Partition::new(name.clone(), group, raft, config, replicas))
            }
            Some(recovered) => {
                self.store.set_options(group, config.log_options());
                let gone = Position { index: recovered.first_index - 1, term: recovered.first_prev_term };
                let found = Restored { gone: Some(gone), ..restored(recovered) };
                Group::new(identity, found).map_err(|error| error.to_string()).and_then(|raft| {
                    let opened = Partition::recovered(name.clone(), raft, config, replicas, recovered);
                    opened.map_err(|error| error.to_string())
                })
            }
        };
        match opened {
            Ok(partition) => {
                let partition = Rc::new(partition);
                self.partitions.borrow_mut().insert(group, partition.clone());
                partition.begin(self, recovered.is_none());
                for (message, payloads) in self.groups.take_early(group) {
                    partition.receive(self, message, payloads);
                }
                self.ready_loop.wake(partition);
            }
            Err(why) => {
                tracing::error!(partition = %name, why, "a partition can't be brought back; it stays without a leader");
            }
        }
    }

    /// A partition's only replica is whatever disk its broker has; the peers of several are told apart.
    fn group_config(&self, meta: &metadata::Partition) -> GroupConfig {
        let single = GroupConfig {
            beside: descriptor::bytes_beside,
            has_leases: false,
            kept_entries_max: KEPT_ENTRIES,
            ..GroupConfig::single(meta.group, self.identity.peer)
        };
        if meta.replicas.len() == 1 {
            return single;
        }
        let place = meta.replicas.iter().position(|node| *node == self.node()).unwrap_or(0);
        GroupConfig {
            voters: meta.founders.clone(),
            election_ticks: ELECTION_TICKS,
            // One after the other, in the order of preference.
            election_jitter: (place * STAND_APART).min(ELECTION_TICKS) + (meta.group % 2) as usize,
            heartbeat_ticks: 2,
            ..single
        }
    }

    /// Forgets a group that the metadata no longer names, files and all.
    fn drop_group(self: &Rc<Self>, group: GroupId) {
        self.leaders.borrow_mut().remove(&group);
        if self.owner(group) != self.id() {
            return;
        }
        self.unclaimed.borrow_mut().remove(&group);
        let closed = self.partitions.borrow_mut().remove(&group);
        if let Some(partition) = closed {
            partition.close();
            self.coordinators.resign(group);
        }
        // Its replica may be on another broker.
        if self.store.log(group).is_some()
            && let Err(error) = self.store.remove_group(group)
        {
            self.storage_failed(&error.to_string());
        }
    }

    /// Once the metadata is complete: what no topic claims belongs to topics deleted while the removal was on its way.
    pub fn drop_unclaimed(self: &Rc<Self>) {
        let unclaimed = self.unclaimed.borrow().keys().copied().filter(|group| *group != META_GROUP).collect();
        let orphans: BTreeSet<GroupId> = unclaimed;
        for group in orphans {
            tracing::info!(group = group.0, "removing a log that no topic names");
            self.drop_group(group);
        }
    }

    /// Tells the other cores, at the end of this turn, who leads a partition of this core.
    pub fn announce_leader(self: &Rc<Self>, led: Led) {
        self.untold.borrow_mut().push(led);
    }

    /// Sends what [`Core::announce_leader`] gathered.
    pub fn tell_leaders(self: &Rc<Self>) {
        let told = self.untold.take();
        if told.is_empty() {
            return;
        }
        let told: Arc<[_]> = told.into();
        for to in (0..self.cores()).map(CoreId) {
            let told = told.clone();
            self.post(to, move |there| there.are_led(&told));
        }
    }

    fn are_led(&self, led: &[Led]) {
        let mut leaders = self.leaders.borrow_mut();
        for led in led {
            let known = leaders.get(&led.group).map_or(-1, |known| known.epoch);
            if led.epoch >= known {
                leaders.insert(led.group, Leadership { node: led.node.unwrap_or(-1), epoch: led.epoch });
            }
        }
        drop(leaders);
        if self.id() == META_CORE {
            let own = led.iter().filter(|led| led.node == Some(self.node()));
            self.unreported.borrow_mut().extend(own.cloned());
        }
        self.view_changed.notify();
    }

    /// On core 0: leaderships that other brokers have not been told.
    pub fn unreported(&self) -> &RefCell<Vec<Led>> {
        &self.unreported
    }

    pub fn has_failed(&self) -> bool {
        self.failed.borrow().is_some()
    }

    /// Whether what this core was to flush found no room at the last try. It serves as long as its ring has some, and others lead
    /// better.
    pub fn has_full_disk(&self) -> bool {
        self.disk_full.get()
    }

    /// The ring or a segment of this core can't be trusted any more: nothing more leaves it.
    pub fn storage_failed(&self, why: &str) {
        if self.failed.borrow().is_some() {
            return;
        }
        tracing::error!(
            core = self.id().0,
            why,
            "storage failed: this core acks nothing more until the broker is restarted"
        );
        *self.failed.borrow_mut() = Some(why.to_owned());
        self.partitions().iter().for_each(|partition| partition.storage_failed());
        self.coordinators.resign_all();
        if let Some(meta) = self.meta.get() {
            meta.storage_failed();
            self.metrics.metadata_leads.set(0);
        }
    }
}

/// The slices of this core.
impl Core {
    /// Does what the plane wishes of the slices here, in order, and reports what that gave.
    pub fn work_on_slices(self: &Rc<Self>, work: Vec<SliceWork>) {
        let mut slices = self.slices.borrow_mut();
        let mut results = Vec::new();
        for work in work {
            match work {
                SliceWork::Speculate { generation, index, parts } => {
                    let results_of = apply_all(&mut slices, parts, |slice, request| slice.speculate(index, request));
                    results.push(SliceResults { generation, index, results: results_of });
                }
                SliceWork::Apply { generation, index, parts } => {
                    let results_of = apply_all(&mut slices, parts, Slice::apply_request);
                    results.push(SliceResults { generation, index, results: results_of });
                }
                SliceWork::Commit { index } => slices.values_mut().for_each(|slice| slice.commit(index)),
                SliceWork::RollBack => slices.values_mut().for_each(Slice::roll_back),
            }
        }
        drop(slices);
        if !results.is_empty() {
            self.post(META_CORE, move |here| here.meta().slices_did(here, results));
        }
    }
}

impl Core {
    /// A topic as its slice here has it, committed or not.
    pub fn topic_in_slice(&self, name: &str) -> Option<Arc<Topic>> {
        self.slices.borrow().get(&SliceId::of_topic(name))?.topic(name).cloned()
    }
}

fn apply_all(
    slices: &mut BTreeMap<SliceId, Slice>,
    parts: Parts,
    mut apply: impl FnMut(&mut Slice, &Request) -> Result<Applied, AskedTooLate>,
) -> Vec<(usize, Result<Applied, AskedTooLate>)> {
    let apply_one = |(at, request): (usize, Request)| {
        let slice = slices.get_mut(&request.command.slice()).expect("a request goes to the owner of its slice");
        (at, apply(slice, &request))
    };
    parts.into_iter().map(apply_one).collect()
}

/// What core 0 tells of the metadata group.
impl Core {
    pub fn is_told(&self, read_until: Duration, controller: Option<i32>) {
        self.read_until.set(read_until);
        self.controller.set(controller);
    }

    pub fn are_away(&self, nodes: Arc<[i32]>) {
        *self.away.borrow_mut() = nodes;
    }

    /// Brokers to which this one has no way now, fenced or not yet.
    pub fn away(&self) -> Arc<[i32]> {
        self.away.borrow().clone()
    }

    /// Whether reads may be answered from the view now, at most a read lease old.
    pub fn has_read_lease(&self) -> bool {
        clock::now() < self.read_until.get()
    }

    /// The broker that leads the metadata group, as far as this one knows.
    pub fn controller(&self) -> Option<i32> {
        self.controller.get()
    }

    /// How writes of metadata are acknowledged that do not say so themselves.
    pub fn metadata_acks(&self) -> Acks {
        self.view(|view| config_cluster::metadata_acks(self.node(), view.cluster_config(), &self.config))
    }
}

/// What requests ask of the view.
impl Core {
    /// Host and port that clients are told.
    pub fn advertised(&self) -> (&str, u16) {
        (&self.advertised.0, self.advertised.1)
    }

    /// A topic by its name or id, the metadata's own log among them.
    pub fn find_topic(&self, topic: &TopicRef) -> Option<Arc<Topic>> {
        match topic {
            log if metadata_log::is(log) => Some(metadata_log::topic(self)),
            TopicRef::Name(name) => self.view(|view| view.topic(name.as_str()).cloned()),
            TopicRef::Id(id) => self.view(|view| view.topic_by_id(*id).cloned()),
        }
    }

    /// The group of a partition, by its topic's name or id.
    pub fn find_group(&self, topic: &TopicRef, partition: i32) -> Result<GroupId, ErrorCode> {
        if metadata_log::is(topic) {
            return if partition == 0 { Ok(META_GROUP) } else { Err(ErrorCode::UnknownTopicOrPartition) };
        }
        let view = self.view.borrow();
        let (topic, unknown) = match topic {
            TopicRef::Name(name) => (view.topic(name.as_str()), ErrorCode::UnknownTopicOrPartition),
            TopicRef::Id(id) => (view.topic_by_id(*id), ErrorCode::UnknownTopicId),
        };
        let partitions = &topic.ok_or(unknown)?.partitions;
        let number = usize::try_from(partition).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
        partitions.get(number).map(|meta| GroupId(meta.group)).ok_or(ErrorCode::UnknownTopicOrPartition)
    }

    /// Whom to ask instead, for an answer of NOT_LEADER_OR_FOLLOWER (KIP-951).
    pub fn leader_hint(&self, topic: &TopicRef, partition: i32) -> Option<LeaderHint> {
        let leader = self.leader_of(self.find_group(topic, partition).ok()?)?;
        Some(LeaderHint { leader_id: leader.node, leader_epoch: leader.epoch })
    }

    /// The name of a topic that belongs to the broker itself; `None` for all others.
    pub fn internal(&self, topic: &TopicRef) -> Option<&'static str> {
        let is_offsets = || match topic {
            TopicRef::Name(name) => name.as_str() == OFFSETS_TOPIC,
            TopicRef::Id(id) => {
                self.view(|view| view.topic_by_id(*id).is_some_and(|topic| &*topic.name == OFFSETS_TOPIC))
            }
        };
        match metadata_log::is(topic) {
            true => Some(METADATA_TOPIC),
            false => is_offsets().then_some(OFFSETS_TOPIC),
        }
    }

    /// Waits until this core knows a leader for each of `groups`; groups that are deleted meanwhile are not waited for.
    pub async fn leaders_known(&self, mut groups: Vec<GroupId>) {
        loop {
            let seen = self.view_changed.version();
            groups.retain(|group| self.leader_of(*group).is_none() && self.view(|view| view.has_group(group.0)));
            if groups.is_empty() {
                return;
            }
            self.view_changed.past(seen).await;
        }
    }
}

/// Start and stop.
impl Core {
    /// Takes the slices of this core and the whole view, as of the snapshot that core 0 read.
    pub fn install(self: &Rc<Self>, index: u64, slices: Vec<Slice>, image: &[Delta]) {
        self.slices.borrow_mut().extend(slices.into_iter().map(|slice| (slice.id(), slice)));
        let before = self.view.replace(View::new(index, image));
        // A snapshot that came later leaves out what was deleted meanwhile.
        for topic in before.topics().filter(|topic| self.view(|view| view.topic_by_id(topic.id).is_none())) {
            self.follow(&Delta::TopicDeleted(topic.clone()));
        }
        image.iter().for_each(|change| self.follow(change));
        self.view_changed.notify();
    }

    /// Copies this core's slices as they are now (topics are shared, not copied): called from the queue that brings them their commands, so the cut lies
    /// exactly behind what came before it.
    pub fn cut_slices(&self) -> Vec<Slice> {
        self.slices.borrow().values().map(Slice::committed).collect()
    }

    pub fn hold_peers(&self, peers: Rc<Peers>) {
        assert!(self.peers.set(peers).is_ok(), "there is one way to other brokers");
    }

    pub fn hold_meta(&self, meta: Rc<Meta>) {
        assert!(self.meta.set(meta).is_ok(), "there is one metadata group");
    }

    pub fn take_recovered(&self, group: GroupId) -> Option<RecoveredGroup> {
        self.unclaimed.borrow_mut().remove(&group)
    }

    /// Waits until the metadata is complete and every partition of this core has its leader.
    pub async fn until_serving(self: &Rc<Self>) {
        self.lifecycle.metadata_complete.wait().await;
        self.drop_unclaimed();
        // Those that have others elect when there are enough of them, which may be long after.
        let alone = self.partitions_that(|partition| !partition.is_shared());
        self.leaders_known(alone.iter().map(|partition| partition.group()).collect()).await;
    }

    /// No new connections or requests from now on.
    pub fn begin_stop(&self) {
        self.lifecycle.stopping.set();
        self.fetches.cancel_all();
    }

    pub fn is_stopping(&self) -> bool {
        self.lifecycle.stopping.is_set()
    }

    /// Waits until every core has drained: each tells all, the last one frees all.
    pub async fn all_drained(self: &Rc<Self>) {
        for to in (0..self.cores()).map(CoreId) {
            self.post(to, |there| {
                let lifecycle = &there.lifecycle;
                lifecycle.drained_cores.set(lifecycle.drained_cores.get() + 1);
                if lifecycle.drained_cores.get() == there.cores() {
                    lifecycle.drained.set();
                }
            });
        }
        self.lifecycle.drained.wait().await;
    }
}

/// The stages of a core's life that others wait for.
#[derive(Default)]
pub struct Lifecycle {
    pub metadata_complete: Flag,
    /// The metadata group is not driven any more.
    pub metadata_ended: Flag,
    /// Other brokers are not talked to any more.
    pub peers_ended: Flag,
    pub stopping: Flag,
    drained_cores: Cell<usize>,
    drained: Flag,
}

impl FlushHost for Core {
    fn give_way(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(rt::give_way())
    }

    fn breathe(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(rt::sleep(BREATH))
    }

    fn app_state(&self, group: GroupId) -> Option<AppState> {
        self.partition(group).map(|partition| partition.app_state())
    }

    fn back_off(&self, attempt: u32) -> Pin<Box<dyn Future<Output = ()>>> {
        let pause = FLUSH_RETRY_MIN.saturating_mul(1 << attempt.clamp(1, 7)).min(FLUSH_RETRY_MAX);
        Box::pin(rt::sleep(pause))
    }

    fn flush_failed(&self, why: &str) {
        self.disk_full.set(true);
        self.metrics.disk_full.set(1);
        tracing::warn!(core = self.id().0, why, "cannot flush to the segments; others are to lead; trying again");
    }

    fn flushed(&self) {
        if self.disk_full.replace(false) {
            self.metrics.disk_full.set(0);
            tracing::info!(core = self.id().0, "there is room for the segments again");
        }
    }
}

/// Ticks without a leader before a replica of a partition stands for election, and between those that do.
const ELECTION_TICKS: usize = 8;
const STAND_APART: usize = 3;
/// Entries that a leader keeps in memory for peers that lack them, of one partition; more are read from its log.
const KEPT_ENTRIES: u64 = 256;

/// Between large writes of a flush while the ring has room.
const BREATH: Duration = Duration::from_millis(5);

/// First and longest pause before a flush that failed is tried again.
const FLUSH_RETRY_MIN: Duration = Duration::from_millis(50);
const FLUSH_RETRY_MAX: Duration = Duration::from_secs(5);

/// What the group needs to go on from where the store found it.
pub fn restored(recovered: &RecoveredGroup) -> Restored {
    let state = recovered.hard_state;
    // The tail begins above the lesser of what is flushed and what is applied; below, terms are all that Raft needs.
    let first = recovered.tail.first().map_or(recovered.flushed_index + 1, |entry| entry.index);
    let before = first - 1;
    let runs = &recovered.terms;
    let term = runs[..runs.partition_point(|run| run.first_index <= before)]
        .last()
        .map_or(recovered.first_prev_term, |run| run.term);
    Restored {
        hard_state: HardState { term: state.term, vote: state.vote, commit: state.commit },
        conf_state: recovered.app.conf_state.clone(),
        terms: runs.iter().map(|run| TermRun { first_index: run.first_index, term: run.term }).collect(),
        gone: None,
        before: (before > 0).then_some(Position { index: before, term }),
        applied: recovered.app.index,
        entries: recovered
            .tail
            .iter()
            .map(|entry| Entry {
                index: entry.index,
                term: entry.term,
                entry_type: entry.entry_type,
                data: entry.data.clone(),
            })
            .collect(),
    }
}
