//! A host for one replica without a core: a store on a simulated disk, and messages that tests deliver by hand.

use crate::{
    config::{
        Config,
        topic::{Inherited, TopicConfig},
    },
    host::disk::{Disk, Store},
    liveness::{self, Groups},
    log_limit::LogLimit,
    metrics::CoreMetrics,
    on_core::OnCore,
    pace::Pace,
    partition::{
        Committed, Led, Partition, PartitionError, TopicPartition,
        admission::Admission,
        host::{Events, Liveness, Parts, Way},
        producers::share::ProducersShare,
        ready,
        replica::{ReadyLoop, Replicated},
    },
};
use consensus::{
    group::{Group, GroupConfig, Restored, Unfit, Unreadable, descriptor},
    plane::{node_of, peer_id},
    wire::PeerMessage,
};
use net::peer::Lane;
use runtime::sync::Flag;
use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet},
    path::Path,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use types::{CoreId, GroupId, Position, RaftIndex, Term};
use wal::{
    disk::{Disk as _, sim::SimDisk},
    ring::RingConfig,
    store::{LogPos, StoreConfig, StoreDirs},
};

pub const GROUP: GroupId = GroupId(1);
const RING_BYTES: u64 = 16 << 20;
/// More polls than an operation of the simulated disk takes.
const POLLS: usize = 10_000;

/// The replica's surroundings, and all that it has told them.
pub struct Desk {
    node: i32,
    config: Config,
    store: Store,
    pub metrics: CoreMetrics,
    ready_loop: ReadyLoop<Desk>,
    admission: Admission,
    pace: Pace,
    producers_share: ProducersShare,
    partition_log: Rc<LogLimit>,
    stopping: Flag,
    partition: OnceCell<Rc<Partition>>,
    /// The nodes that are alive, as the partition sees it.
    pub there: RefCell<BTreeSet<i32>>,
    /// The cores that are alive, by their beats.
    pub groups: Groups,
    /// The nodes to which there are connections.
    pub ways: RefCell<BTreeSet<i32>>,
    sent: RefCell<Vec<(u64, PeerMessage)>>,
    pub led: RefCell<Vec<Led>>,
    pub resigned: Cell<u32>,
    pub refused: Cell<u32>,
}

/// A broker with one replica.
pub struct Machine {
    pub desk: Rc<Desk>,
    journal: Pin<Box<dyn Future<Output = ()>>>,
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..POLLS {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("nothing gets done");
}

/// A store on a disk of its own.
fn empty_store(node: i32) -> Store {
    let disk = SimDisk::new(node as u64);
    let dirs = StoreDirs::new(Path::new("/data"), 1, 0);
    let config = StoreConfig {
        ring_bytes: RING_BYTES,
        ring: Some(RingConfig { ring_id: Some(7), ..RingConfig::of_bytes(RING_BYTES) }),
        ..StoreConfig::default()
    };
    let (store, ..) = block_on(async {
        disk.create_dir(Path::new("/data")).await.expect("a directory");
        Store::open(Disk::Simulated(Rc::new(disk)), &dirs, 1, config).await.expect("it is empty")
    });
    store
}

/// The answer to an append, if it has come.
pub fn answer_of(committed: &mut Committed) -> Option<Result<u64, PartitionError>> {
    match Pin::new(committed).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Some(answer.expect("it is answered").map(|appended| appended.base_offset)),
        Poll::Pending => None,
    }
}

impl Machine {
    /// `nodes`: those with a replica, the preferred leader first. `configs`: what the topic sets.
    pub fn new(node: i32, nodes: &[i32], configs: &[(&str, &str)]) -> Self {
        let store = empty_store(node);
        let mut config = Config::default();
        config.node_id = node;
        let configs: BTreeMap<String, String> =
            configs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let topic = Rc::new(TopicConfig::resolve(&configs, &Inherited::new(&config)));
        store.create_group(GROUP, topic.log_options());
        let peers: Vec<u64> = nodes.iter().map(|node| peer_id(*node, 1)).collect();
        let group = GroupConfig {
            voters: peers,
            beside: descriptor::bytes_beside,
            holds: descriptor::check_entry,
            has_leases: false,
            heartbeat_ticks: 2,
            // They stand for election one after the other.
            election_jitter: 3 * nodes.iter().position(|one| *one == node).expect("it has a replica"),
            ..GroupConfig::single(GROUP, peer_id(node, 1))
        };
        let empty = Restored { gone: Some(Position { index: RaftIndex::ZERO, term: Term(0) }), ..Restored::default() };
        let raft = Group::new(group, empty).expect("it is new");
        let name = TopicPartition { topic: "topic".into(), partition: 0 };
        let partition = Rc::new(Partition::new(name, GROUP, raft, topic, nodes.to_vec()));
        let journal = store.clone();
        let desk = Rc::new(Desk {
            node,
            config,
            admission: Admission::new(store.cache_bytes()),
            store,
            metrics: CoreMetrics::default(),
            ready_loop: ReadyLoop::default(),
            pace: Pace::new(u64::MAX),
            producers_share: ProducersShare::of(1 << 20),
            partition_log: Rc::default(),
            stopping: Flag::default(),
            partition: OnceCell::new(),
            there: RefCell::new(nodes.iter().copied().collect()),
            groups: Groups::default(),
            ways: RefCell::default(),
            sent: RefCell::default(),
            led: RefCell::default(),
            resigned: Cell::new(0),
            refused: Cell::new(0),
        });
        assert!(desk.partition.set(partition.clone()).is_ok());
        let journal = Box::pin(async move {
            journal.run_journal().await.expect("the disk works");
        });
        partition.begin(&desk, true);
        desk.ready_loop.wake(partition);
        Self { desk, journal }
    }

    pub fn partition(&self) -> &Rc<Partition> {
        self.desk.partition.get().expect("it was set at once")
    }

    /// Writes what is staged, and runs the ready loop until there is nothing to do.
    pub fn settle(&mut self) {
        for _ in 0..POLLS {
            let _ = self.journal.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            ready::turn(&self.desk).expect("the ring has room");
            let ready_loop = &self.desk.ready_loop;
            if ready_loop.queued.borrow().is_empty() && ready_loop.persisting.borrow().is_empty() {
                return;
            }
        }
        panic!("it never settles");
    }

    /// Writes what is staged, and lets the ready loop do nothing. Returns from where on the ring was not durable.
    pub fn write(&mut self) -> LogPos {
        let from = self.desk.store.durable();
        for _ in 0..POLLS {
            let _ = self.journal.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            if self.desk.store.durable() >= self.desk.store.staged() {
                return from;
            }
        }
        panic!("it is never written");
    }

    /// Whether the task that follows the ring from `durable` on wakes the ready loop when it runs for the first time.
    pub fn is_woken_from(&self, durable: LogPos) -> bool {
        let work = &self.desk.ready_loop.work;
        let before = work.version();
        let mut follow = Box::pin(ready::follow_durable(self.desk.clone(), durable));
        let _ = follow.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        work.version() > before
    }

    /// Takes the messages that the replica has sent since the last call.
    pub fn take_sent(&self) -> Vec<(u64, PeerMessage)> {
        self.desk.sent.take()
    }

    pub fn receive(&self, message: PeerMessage) {
        match message {
            PeerMessage::Raft { message, .. } => self.partition().receive(&self.desk, message, Vec::new()),
            PeerMessage::Append { message, payloads, .. } => self.partition().receive(&self.desk, message, payloads),
            PeerMessage::Rest(rest) => self.partition().rest(&self.desk, rest),
            _ => panic!("a partition sends no such message"),
        }
    }
}

/// Delivers messages between these machines until none is left. `passes`: what arrives, by sender and receiver.
pub fn exchange(machines: &mut [Machine], passes: impl Fn(i32, i32) -> bool) {
    for _ in 0..1_000 {
        machines.iter_mut().for_each(Machine::settle);
        let sent: Vec<(i32, u64, PeerMessage)> = machines
            .iter()
            .flat_map(|machine| machine.take_sent().into_iter().map(|(to, message)| (machine.desk.node, to, message)))
            .collect();
        if sent.is_empty() {
            return;
        }
        for (from, to, message) in sent {
            let to = node_of(to);
            if passes(from, to)
                && let Some(machine) = machines.iter().find(|machine| machine.desk.node == to)
            {
                machine.receive(message);
            }
        }
    }
    panic!("they never stop talking");
}

impl OnCore for Desk {
    fn id(&self) -> CoreId {
        CoreId(0)
    }

    fn cores(&self) -> usize {
        1
    }

    fn node(&self) -> i32 {
        self.node
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn metrics(&self) -> &CoreMetrics {
        &self.metrics
    }

    fn stopping(&self) -> &Flag {
        &self.stopping
    }
}

impl Parts for Desk {
    fn store(&self) -> &Store {
        &self.store
    }

    fn ready_loop(&self) -> &ReadyLoop<Self> {
        &self.ready_loop
    }

    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn pace(&self) -> &Pace {
        &self.pace
    }

    fn producers_share(&self) -> &ProducersShare {
        &self.producers_share
    }

    fn partition_log(&self) -> &Rc<LogLimit> {
        &self.partition_log
    }

    fn partition(&self, group: GroupId) -> Option<Rc<Partition>> {
        self.partition.get().filter(|_| group == GROUP).cloned()
    }

    fn partition_from(&self, group: GroupId) -> Option<Rc<Partition>> {
        self.partition.get().filter(|_| group <= GROUP).cloned()
    }

    fn group(&self, group: GroupId) -> Option<Rc<dyn Replicated<Self>>> {
        self.partition(group).map(|partition| partition as Rc<dyn Replicated<Self>>)
    }

    fn largest_entry(&self) -> usize {
        1 << 20
    }
}

impl Liveness for Desk {
    fn wake_timers(&self, _: GroupId) {}

    fn stop_timers(&self, _: GroupId) {}

    fn sleeps_on(&self, _: GroupId) -> bool {
        false
    }

    fn ran_for(&self) -> Duration {
        Duration::ZERO
    }

    fn is_there(&self, _: GroupId, node: i32) -> bool {
        self.there.borrow().contains(&node)
    }

    fn can_lead(&self, _: GroupId, node: i32) -> bool {
        self.there.borrow().contains(&node)
    }

    fn is_well(&self) -> bool {
        true
    }
}

impl liveness::Host for Desk {
    fn groups(&self) -> &Groups {
        &self.groups
    }

    fn cores_of(&self, _: i32) -> Option<u16> {
        Some(1)
    }

    fn incarnation(&self) -> u64 {
        1
    }

    fn knows_controller(&self) -> bool {
        true
    }

    fn give_metadata_away(self: &Rc<Self>) {}

    fn has_failed(&self) -> bool {
        false
    }

    fn has_full_disk(&self) -> bool {
        false
    }

    fn peers_ended(&self) -> &Flag {
        &self.stopping
    }

    fn has_way_to(&self, node: i32) -> bool {
        self.ways.borrow().contains(&node)
    }

    fn reached(&self) -> BTreeSet<u64> {
        self.ways.borrow().iter().map(|node| peer_id(*node, 1)).collect()
    }

    fn send_to_all(&self, _: &PeerMessage) {}

    fn partitions_that(&self, are: impl Fn(&Partition) -> bool) -> Vec<Rc<Partition>> {
        self.partition.get().filter(|partition| are(partition)).cloned().into_iter().collect()
    }
}

impl Way for Desk {
    fn send_on(&self, _: Lane, to: u64, message: PeerMessage) {
        self.sent.borrow_mut().push((to, message));
    }

    async fn bulk_room(&self) {}

    fn has_peer(&self, _: u64) -> bool {
        true
    }

    fn peer_of(&self, node: i32) -> Option<u64> {
        Some(peer_id(node, 1))
    }

    fn refused(&self, _: GroupId, _: u64, _: &Unfit) {
        self.refused.update(|count| count + 1);
    }
}

impl Events<Desk> for Desk {
    fn leader_of(&self, _: GroupId) -> Option<i32> {
        self.led.borrow().last().and_then(|led| led.node)
    }

    fn announce_leader(self: &Rc<Self>, led: Led) {
        self.led.borrow_mut().push(led);
    }

    fn tell_leaders(self: &Rc<Self>) {}

    fn resigned(&self, _: GroupId) {
        self.resigned.update(|count| count + 1);
    }

    fn storage_failed(&self, why: &str) {
        panic!("the storage works: {why}");
    }

    fn group_stopped(&self, _: &dyn Replicated<Desk>, why: &Unreadable) {
        panic!("every entry can be read: {why}");
    }
}
