//! One core of the broker: everything it owns, and how the others reach it.
//! Lives on: its own pinned thread; `Rc`, never `Send`. Other cores send it jobs and posts through the [`crate::mesh`].
//!
//! Owns: a WAL ring and the logs on it ([`Store`]), the partitions whose group id is this core's modulo the number of cores, the
//! metadata slices whose number is, and its client connections. Holds besides a view of all topics.

use crate::{
    config::Config,
    config_topic::TopicConfig,
    mesh::{HasMesh, Mesh},
    meta::{META_CORE, META_GROUP, Meta},
    metrics::CoreMetrics,
    partition::{Partition, TopicPartition},
    producers::Producers,
    replica::{ReadyLoop, Replicated},
    sync::Notify,
};
use ahash::AHashMap;
use consensus::{
    group::{Group, GroupConfig, Restored},
    metadata::{Applied, Command, Delta, Slice, SliceId, Topic, View},
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use uuid::Uuid;
use wal::{
    disk_uring::UringDisk,
    record::GroupId,
    store::{AppState, FlushHost, RecoveredGroup},
};

/// A core of this broker, counted from 0; not a CPU number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoreId(pub usize);

/// The storage of one core.
pub type Store = wal::store::Store<UringDisk>;

/// Who leads a partition, as every core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub node: i32,
    pub epoch: i32,
}

pub struct Core {
    mesh: Mesh<Core>,
    pub config: Arc<Config>,
    pub cluster_id: Arc<str>,
    pub store: Store,
    pub metrics: Arc<CoreMetrics>,
    pub ready_loop: ReadyLoop,
    /// On core 0 only.
    meta: OnceCell<Rc<Meta>>,
    partitions: RefCell<AHashMap<GroupId, Rc<Partition>>>,
    slices: RefCell<BTreeMap<SliceId, Slice>>,
    view: RefCell<View>,
    /// The effective settings of each topic of which this core has partitions.
    topic_configs: RefCell<AHashMap<Uuid, Rc<TopicConfig>>>,
    leaders: RefCell<AHashMap<GroupId, Leadership>>,
    /// Leaderships of this core's partitions that the others have not been told yet.
    untold: RefCell<Vec<(GroupId, Leadership)>>,
    /// Moves whenever the view or a leadership changes.
    pub view_changed: Notify,
    /// What the store recovered and no topic has claimed yet.
    unclaimed: RefCell<AHashMap<GroupId, RecoveredGroup>>,
    failed: RefCell<Option<String>>,
    pub connections: crate::front::Connections,
    pub stopping: Cell<bool>,
}

impl HasMesh for Core {
    fn mesh(&self) -> &Mesh<Self> {
        &self.mesh
    }
}

/// Wall-clock time in ms since the epoch, for what records and topics are stamped with; never for timeouts.
pub fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
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

    pub fn meta(&self) -> &Rc<Meta> {
        self.meta.get().expect("only core 0 is asked for the metadata group")
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

    pub fn leader_of(&self, group: GroupId) -> Option<Leadership> {
        self.leaders.borrow().get(&group).copied()
    }
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
            Delta::TopicDeleted(topic) => {
                self.topic_configs.borrow_mut().remove(&topic.id);
                for partition in &topic.partitions {
                    self.drop_group(GroupId(partition.group));
                }
            }
            _ => {}
        }
    }

    fn follow_topic(self: &Rc<Self>, topic: &Arc<Topic>) {
        let config = Rc::new(TopicConfig::resolve(&topic.configs, &self.config));
        self.topic_configs.borrow_mut().insert(topic.id, config.clone());
        for (number, meta) in topic.partitions.iter().enumerate() {
            let group = GroupId(meta.group);
            if self.owner(group) != self.id() {
                continue;
            }
            match self.partition(group) {
                Some(partition) => {
                    self.store.set_options(group, config.log_options());
                    partition.set_config(config.clone());
                }
                None => {
                    let name = TopicPartition { topic: topic.name.clone(), partition: number as i32 };
                    self.open_partition(name, group, config.clone());
                }
            }
        }
    }

    /// Starts a partition's replica from what the store recovered, or anew.
    fn open_partition(self: &Rc<Self>, name: TopicPartition, group: GroupId, config: Rc<TopicConfig>) {
        let recovered = self.unclaimed.borrow_mut().remove(&group);
        let (restored, producers, end) = match &recovered {
            Some(recovered) => {
                self.store.set_options(group, config.log_options());
                (restored(recovered), Partition::recover_producers(recovered), recovered.next_offset)
            }
            None => {
                self.store.create_group(group, config.log_options());
                (Restored::default(), Producers::default(), 0)
            }
        };
        let raft = Group::new(self.group_config(group), restored).expect("a recovered group is whole");
        let partition = Rc::new(Partition::new(name, group, raft, config, end, producers));
        partition.replica().with(|raft| raft.campaign());
        self.partitions.borrow_mut().insert(group, partition.clone());
        self.ready_loop.wake(partition);
    }

    fn group_config(&self, group: GroupId) -> GroupConfig {
        GroupConfig::single(group.0, self.node() as u64)
    }

    /// Forgets a group that the metadata no longer names, files and all.
    fn drop_group(self: &Rc<Self>, group: GroupId) {
        self.leaders.borrow_mut().remove(&group);
        if self.owner(group) != self.id() {
            return;
        }
        self.unclaimed.borrow_mut().remove(&group);
        if let Some(partition) = self.partitions.borrow_mut().remove(&group) {
            partition.close();
        }
        if let Err(error) = self.store.remove_group(group) {
            self.storage_failed(&error.to_string());
        }
    }

    /// Once the metadata is complete: what no topic claims belongs to topics deleted while the removal was on its way.
    pub fn drop_unclaimed(self: &Rc<Self>) {
        let orphans: Vec<_> = self.unclaimed.borrow().keys().copied().filter(|group| *group != META_GROUP).collect();
        for group in orphans {
            tracing::info!(group = group.0, "removing a log that no topic names");
            self.drop_group(group);
        }
    }

    /// Tells the other cores, at the end of this turn, that a partition of this core has its leader.
    pub fn announce_leader(self: &Rc<Self>, group: GroupId, epoch: i32) {
        let leadership = Leadership { node: self.node(), epoch };
        self.leaders.borrow_mut().insert(group, leadership);
        self.untold.borrow_mut().push((group, leadership));
    }

    /// Sends what [`Core::announce_leader`] gathered.
    pub fn tell_leaders(self: &Rc<Self>) {
        let told = self.untold.take();
        if told.is_empty() {
            return;
        }
        self.view_changed.notify();
        let told: Arc<[_]> = told.into();
        for to in (0..self.cores()).map(CoreId).filter(|to| *to != self.id()) {
            let told = told.clone();
            self.post(to, move |there| {
                there.leaders.borrow_mut().extend(told.iter().copied());
                there.view_changed.notify();
            });
        }
    }

    /// The ring or a segment of this core can't be trusted any more: nothing more leaves it.
    pub fn storage_failed(&self, why: &str) {
        if self.failed.borrow().is_some() {
            return;
        }
        tracing::error!(core = self.id().0, why, "storage failed: this core acks nothing more until the broker is restarted");
        *self.failed.borrow_mut() = Some(why.to_owned());
        let partitions: Vec<_> = self.partitions.borrow().values().cloned().collect();
        partitions.iter().for_each(|partition| partition.storage_failed());
        if let Some(meta) = self.meta.get() {
            meta.storage_failed();
        }
    }
}

/// The slices of this core.
impl Core {
    /// Applies one entry's commands to the slices here, and reports to the sequencer.
    pub fn apply_to_slices(self: &Rc<Self>, index: u64, commands: Vec<(usize, SliceId, Arc<Command>)>) {
        let mut slices = self.slices.borrow_mut();
        let results: Vec<(usize, Applied)> = commands
            .into_iter()
            .map(|(at, slice, command)| {
                let slice = slices.get_mut(&slice).expect("a command goes to the owner of its slice");
                (at, slice.apply(index, &command))
            })
            .collect();
        drop(slices);
        self.post(META_CORE, move |here| here.meta().applied(here, index, results));
    }
}

/// What the group needs to go on from where the store found it.
fn restored(recovered: &RecoveredGroup) -> Restored {
    todo_restored(recovered)
}
