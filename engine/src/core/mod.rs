//! One core of the broker: everything it owns, and how other cores reach it.
//! Lives on: its own pinned thread; `Rc`, never `Send`. Other cores ask it and tell it things ([`messages`]) over the
//! [`mesh`].
//!
//! A core owns a WAL ring with the logs on it ([`Store`]), and its client connections. It also owns the partitions
//! whose group id modulo the number of cores is its own number, and likewise the metadata slices. It holds a view
//! of all topics.
//!
//! | module | contents |
//! |---|---|
//! | `following` | follows the view: says which partitions to open and to drop, announces their leaders |
//! | `incoming` | brings messages of other brokers to the cores that own their groups |
//! | `hosting` | the core as the host of its partitions |
//! | `opening` | opens and drops partitions in turns |
//! | `lookups` | requests' queries of the view |
//! | `messages` | everything that one core says to another |
//! | `mesh` | how it gets there |
//! | `slices` | the metadata slices of this core |
//! | `storage` | the store's callbacks to its core, and storage failures |

pub mod brokers;
pub mod decoders;
mod following;
mod hosting;
pub mod incoming;
mod lookups;
pub mod mesh;
pub mod mesh_probe;
pub mod messages;
pub mod metadata_topic;
pub mod opening;
pub mod owner;
pub mod producer_ids;
mod slices;
mod storage;
pub mod turn_probe;

use crate::{
    cluster::{
        Identity,
        meta::Meta,
        peers::{Answering, Peers},
        placement::Placement,
    },
    config::{Config, cluster as config_cluster, topic::Inherited},
    connection::{Connections, Spread, client::Client, reply::Pending},
    coordinator::{host::Coordinators, receipts::Receipts},
    core::{
        decoders::Decoders,
        mesh::{
            Mesh,
            list::{AskKind, NoticeList},
        },
        messages::Notice,
        opening::Opening,
        owner::{finding::Unreadable, waits::Fetches},
        producer_ids::ProducerIds,
    },
    host::disk::Store,
    liveness::Groups,
    log_limit::LogLimit,
    long_work::LongWork,
    memory::{self, Lasting, Memory},
    metrics::CoreMetrics,
    pace::Pace,
    partition::{Led, Partition, admission::Admission, producers::share::ProducersShare, replica::ReadyLoop},
};
use ahash::AHashMap;
use consensus::{
    metadata::{Slice, View},
    plane::Acks,
    wire::ToolRequest,
};
use net::codec::{header::RequestHeader, request::Request};
use runtime::{
    clock,
    sync::{
        Either, Flag, Notify,
        line::{Line, Places},
        race,
    },
};
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{CoreId, GroupId, LeaderEpoch, META_CORE, SliceId, core_of, planted};
use wal::store::RecoveredGroup;

/// A partition's leader, as every core sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    pub node: i32,
    pub epoch: LeaderEpoch,
}

/// The functions that a core calls when a request comes in. The handlers know the core. The core knows only these.
#[derive(Clone, Copy)]
pub struct Entries {
    /// Starts a request of a client.
    pub start: fn(&Rc<Core>, &Rc<Client>, &RequestHeader, Request) -> Pending,
    /// On core 0: answers a tool on the peer port.
    pub answer_tool: fn(Rc<Core>, ToolRequest) -> Answering,
}

/// The parts that a core is made from.
pub struct CoreParts {
    pub entries: Entries,
    pub mesh: Mesh<Core>,
    pub config: Arc<Config>,
    pub cluster_id: Arc<str>,
    pub identity: Arc<Identity>,
    /// Host and port that are advertised to clients.
    pub advertised: (Arc<str>, u16),
    pub shares: Lasting,
    pub store: Store,
    pub metrics: Arc<CoreMetrics>,
    pub spread: Arc<Spread>,
    pub memory: Arc<memory::Broker>,
    pub recovered: Vec<RecoveredGroup>,
}

pub struct Core {
    mesh: Mesh<Core>,
    entries: Entries,
    pub config: Arc<Config>,
    inherited: Inherited,
    pub cluster_id: Arc<str>,
    pub identity: Arc<Identity>,
    advertised: (Arc<str>, u16),
    /// Shares of the broker's memory: bounds on partitions and on idempotent producers.
    pub shares: Lasting,
    pub producers_share: ProducersShare,
    pub store: Store,
    pub metrics: Arc<CoreMetrics>,
    pub ready_loop: ReadyLoop<Core>,
    /// Work for the thread beside this core, see `connection::aside`.
    pub beside: Line,
    /// Decoders of batches that are unfolded over several turns.
    pub decoders: Decoders,
    /// Fetches' reads from the disk.
    pub cold_reads: Places<COLD_READS>,
    /// Lookups of timestamps that may read from the disk.
    pub lookups: Places<LOOKUPS>,
    /// Grants turns to read for lagging replicas.
    pub pace: Pace,
    pub admission: Admission,
    pub long_work: LongWork,
    /// Accounts for the memory that this core's clients make it hold.
    pub memory: Memory,
    pub fetches: Fetches,
    pub receipts: Receipts,
    pub unreadable: Unreadable,
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
    /// Leaders of this broker's partitions, as their replicas know them. A negative node: no leader since that
    /// epoch.
    leaders: RefCell<AHashMap<GroupId, Leadership>>,
    /// Leaders of this core's partitions that are not announced to the other cores yet.
    untold: RefCell<Vec<Led>>,
    /// On core 0: this broker's leaderships that are not reported to other brokers yet, the newest of each
    /// partition.
    unreported: RefCell<BTreeMap<GroupId, Led>>,
    /// When the read lease ends: until then, reads may be answered from the view.
    read_until: Cell<Duration>,
    /// The broker that leads the metadata group.
    controller: Cell<Option<i32>>,
    away: RefCell<Arc<[i32]>>,
    /// Notified whenever the view or a leader changes.
    pub view_changed: Notify,
    pub opening: Opening,
    /// Logs that the store recovered and no topic has claimed yet.
    unclaimed: RefCell<AHashMap<GroupId, RecoveredGroup>>,
    failed: RefCell<Option<String>>,
    /// At its last try, a flush found no room on the disk.
    disk_full: Cell<bool>,
    /// Notified at each such try.
    disk_filled: Notify,
    pub connections: Rc<Connections>,
    /// Limits the lines about connections, on the Kafka port and the peer port together.
    pub connection_log: Rc<LogLimit>,
    /// Limits the lines about partitions that reads and other replicas can cause.
    pub partition_log: Rc<LogLimit>,
    pub lifecycle: Lifecycle,
}

impl Core {
    pub fn new(parts: CoreParts) -> Rc<Self> {
        let unclaimed = parts.recovered.into_iter().map(|recovered| (recovered.id, recovered)).collect();
        let queued_max = parts.config.queued_max_request_bytes_per_core(parts.mesh.cores());
        Rc::new(Self {
            memory: Memory::new(&parts.memory, parts.mesh.me(), queued_max),
            mesh: parts.mesh,
            entries: parts.entries,
            beside: Line::default(),
            decoders: Decoders::default(),
            cold_reads: Places::default(),
            lookups: Places::default(),
            pace: Pace::new(parts.config.replica_catch_up_bytes_per_second),
            inherited: Inherited::new(&parts.config),
            config: parts.config,
            cluster_id: parts.cluster_id,
            identity: parts.identity,
            advertised: parts.advertised,
            shares: parts.shares,
            producers_share: ProducersShare::of(parts.shares.producers_bytes),
            admission: Admission::new(parts.store.cache_bytes()),
            store: parts.store,
            long_work: LongWork::new(parts.metrics.clone()),
            metrics: parts.metrics,
            ready_loop: ReadyLoop::default(),
            fetches: Fetches::default(),
            receipts: Receipts::default(),
            unreadable: Unreadable::default(),
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
            opening: Opening::default(),
            unclaimed: RefCell::new(unclaimed),
            failed: RefCell::default(),
            disk_full: Cell::new(false),
            disk_filled: Notify::default(),
            connections: Rc::new(Connections::new(parts.spread)),
            connection_log: Rc::default(),
            partition_log: Rc::default(),
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

    /// Asks a core, and brings its reply. When this returns, the work has started (here) or the ask is sent
    /// (elsewhere). If the future is dropped, the work ends.
    pub fn ask<K: AskKind<Core>>(self: &Rc<Self>, to: CoreId, ask: K) -> impl Future<Output = K::Reply> + use<K> {
        let asked = match to == self.id() {
            true => Either::First(ask.work(self.clone())),
            false => Either::Second(mesh::ask(self, to, ask)),
        };
        async move {
            match asked {
                Either::First(work) => work.await,
                Either::Second(called) => called.await,
            }
        }
    }

    /// Tells a core. This core takes its own notices at once.
    pub fn tell(self: &Rc<Self>, to: CoreId, notice: Notice) {
        if to == self.id() { notice.take(self) } else { self.mesh.tell(to, notice) }
    }

    pub fn meta(&self) -> &Rc<Meta> {
        self.meta.get().expect("only core 0 is asked for the metadata group")
    }

    /// The connections to other brokers.
    pub fn peers(&self) -> &Rc<Peers> {
        self.peers.get().expect("a core has its way to other brokers before it does anything")
    }

    /// This core's partitions, in the order of their groups.
    pub fn partitions(&self) -> Vec<Rc<Partition>> {
        self.partitions_that(|_| true)
    }

    /// Like [`Core::partitions`], but only those for which `are` holds: there may be many others.
    pub fn partitions_that(&self, are: impl Fn(&Partition) -> bool) -> Vec<Rc<Partition>> {
        self.partitions.borrow().values().filter(|partition| are(partition)).cloned().collect()
    }

    pub fn partition(&self, group: GroupId) -> Option<Rc<Partition>> {
        self.partitions.borrow().get(&group).cloned()
    }

    pub fn owner(&self, group: GroupId) -> CoreId {
        core_of(group, self.cores())
    }

    /// Publishes the lengths of this core's queues, and the memory held for requests, answers and consumer groups.
    pub fn publish_queues(&self) {
        self.metrics.producers_remembered.set(self.producers_share.remembered() as u64);
        self.metrics.admission_waiting.set(self.admission.waiting() as u64);
        self.metrics.fetches_waiting.set(self.fetches.waiting() as u64);
        self.metrics.memory_requests_bytes.set(self.memory.requests.held() as u64);
        self.metrics.memory_answers_bytes.set(self.memory.answers.held() as u64);
        self.metrics.memory_cold_answers_bytes.set(self.memory.cold_answers.held() as u64);
        self.metrics.memory_consumer_groups_bytes.set(self.memory.group_state.held() as u64);
        self.metrics.memory_consumer_groups_max_bytes.set(self.memory.group_state.max() as u64);
        self.metrics.metadata_questions_open.set(self.meta.get().map_or(0, |meta| meta.open_questions()) as u64);
    }

    /// On core 0: publishes how many replicas and partitions there are, and how many fit into memory.
    pub fn publish_room(&self) {
        if self.id() == META_CORE {
            let (replicas, partitions) =
                self.view(|view| (view.placed().replicas(self.node()), view.placed().partitions()));
            self.metrics.replicas.set(replicas);
            self.metrics.replicas_max.set(self.shares.replicas_max);
            self.metrics.cluster_partitions.set(partitions);
            self.metrics.cluster_partitions_max.set(self.shares.partitions_max);
        }
    }

    /// Runs `look` on the view, which can't be held across an await.
    pub fn view<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        look(&self.view.borrow())
    }
}

/// State of the metadata group, as core 0 passes it on.
impl Core {
    pub fn set_lease(&self, read_until: Duration, controller: Option<i32>) {
        self.read_until.set(read_until);
        self.controller.set(controller);
    }

    pub fn set_away(&self, nodes: Arc<[i32]>) {
        *self.away.borrow_mut() = nodes;
    }

    /// Brokers that this one can't reach now, fenced or not.
    pub fn away(&self) -> Arc<[i32]> {
        self.away.borrow().clone()
    }

    /// Whether reads may be answered from the view now. It is then at most one read lease old.
    pub fn has_read_lease(&self) -> bool {
        clock::now() < self.read_until.get()
    }

    /// The broker that leads the metadata group, as far as this one knows.
    pub fn controller(&self) -> Option<i32> {
        self.controller.get()
    }

    /// The acknowledgement level for metadata writes that do not give one.
    pub fn metadata_acks(&self) -> Acks {
        self.view(|view| config_cluster::metadata_acks(self.node(), view.cluster_config(), &self.config))
    }
}

/// Start and stop.
impl Core {
    pub fn hold_peers(&self, peers: Rc<Peers>) {
        assert!(self.peers.set(peers).is_ok(), "there is one way to other brokers");
    }

    pub fn hold_meta(&self, meta: Rc<Meta>) {
        assert!(self.meta.set(meta).is_ok(), "there is one metadata group");
    }

    pub fn take_recovered(&self, group: GroupId) -> Option<RecoveredGroup> {
        self.unclaimed.borrow_mut().remove(&group)
    }

    /// Waits until the metadata is complete and every unreplicated partition of this core has its leader. Returns
    /// `false` if the broker begins to stop before that.
    pub async fn until_serving(self: &Rc<Self>) -> bool {
        matches!(race(self.serves(), self.lifecycle.stopping.wait()).await, Either::First(()))
    }

    async fn serves(self: &Rc<Self>) {
        self.lifecycle.metadata_complete.wait().await;
        self.opening.done().await;
        self.drop_unclaimed();
        // Replicated partitions elect once enough of their replicas are there, which may be much later.
        let alone = self.partitions_that(Partition::is_alone);
        self.leaders_known(alone.iter().map(|partition| partition.group()).collect()).await;
    }

    /// From now on, the core accepts no new connections or requests.
    pub fn begin_stop(&self) {
        self.lifecycle.stopping.set();
        self.fetches.cancel_all();
    }

    pub fn is_stopping(&self) -> bool {
        self.lifecycle.stopping.is_set()
    }

    /// Waits until every core has drained. Each core tells all, and each counts.
    pub async fn all_drained(self: &Rc<Self>) {
        for to in (0..self.cores()).map(CoreId) {
            self.tell(to, Notice::Drained);
        }
        if !planted!(MeshDeliveredAfterDrain) {
            self.lifecycle.drained.wait().await;
        }
        self.mesh.end();
    }

    fn count_drained(&self) {
        let lifecycle = &self.lifecycle;
        lifecycle.drained_cores.set(lifecycle.drained_cores.get() + 1);
        if lifecycle.drained_cores.get() == self.cores() {
            lifecycle.drained.set();
        }
    }
}

/// Fetches' reads from the disk at a time. A fast disk is busy with so many.
const COLD_READS: usize = 8;
/// Lookups of timestamps at a time. Each may read a batch from the disk.
const LOOKUPS: usize = 8;

/// The stages of a core's life that tasks wait for.
#[derive(Default)]
pub struct Lifecycle {
    pub metadata_complete: Flag,
    /// This core no longer drives the metadata group.
    pub metadata_ended: Flag,
    /// This core no longer talks to other brokers.
    pub peers_ended: Flag,
    pub stopping: Flag,
    drained_cores: Cell<usize>,
    drained: Flag,
}
