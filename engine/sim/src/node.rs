//! One simulated broker: its disk, which lasts, and its process, which runs the broker's own code for start, core and
//! stop.

use super::{
    allocations,
    exec::{self, ProcessId, World},
    net::{self, Listener, net},
};
use engine::{
    broker::{self, About},
    cluster::{meta, node_id::Members},
    config::Config,
    connection::Spread,
    core::{
        Core,
        mesh::{self, HasMesh as _, MeshSeed},
    },
    memory::{self, Lasting},
    metrics::{CoreMetrics, Metrics},
    start_error::StartError,
};
use runtime::{self as rt, backend::Later, sync::Notify};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{GroupId, core_of};
use wal::{
    disk::{
        Disk as _,
        sim::{Fate, Kind, SimDisk},
    },
    ring::RingConfig,
    store::{OpenError, StoreConfig},
};

const DATA: &str = "/data";
const MEMORY: u64 = 4 << 20;
/// The memory budget, unless a test sets another. Partitions and producers have shares of it.
pub(super) const BUDGET: u64 = 64 << 20;
/// The coordinator removes a member of a consumer group that is silent for this time.
pub(super) const SESSION: Duration = Duration::from_millis(1_500);

/// The founders of a cluster, and their peer ids.
pub(super) struct Founding {
    pub(super) nodes: Vec<i32>,
    peers: RefCell<BTreeMap<i32, u64>>,
}

impl Founding {
    pub(super) fn of(nodes: Vec<i32>) -> Rc<Self> {
        Rc::new(Self { nodes, peers: RefCell::default() })
    }

    /// The cluster's first voters, once all founders have started.
    async fn peers(&self, node: i32, peer: u64) -> Vec<u64> {
        self.peers.borrow_mut().entry(node).or_insert(peer);
        while self.peers.borrow().len() < self.nodes.len() {
            rt::sleep(Duration::from_millis(10)).await;
        }
        self.peers.borrow().values().copied().collect()
    }
}

/// The faults of a disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ailment {
    /// Additional time that an operation takes at most.
    pub(super) slow: Duration,
    /// No operation ends before this virtual time.
    pub(super) stalls_until: Duration,
    /// Segments cannot be written: no space is left.
    pub(super) full: bool,
    /// The ring's next write or sync fails.
    pub(super) broken: bool,
}

pub(super) struct Node {
    pub(super) id: i32,
    pub(super) process: ProcessId,
    founding: Rc<Founding>,
    disk: RefCell<SimDisk>,
    ailment: Rc<Cell<Ailment>>,
    /// How many cores the process has, or had.
    count: Cell<usize>,
    /// The most cores that a process may have.
    count_max: usize,
    /// The first process does not draw its number of cores.
    is_count_given: Cell<bool>,
    /// By number, once their stores are open.
    cores: RefCell<BTreeMap<usize, Rc<Core>>>,
    /// Notified when the store of a core is open.
    opened: Notify,
    /// How many cores serve.
    serving: Cell<usize>,
    /// How often the process was started.
    starts: Cell<u64>,
    /// The process does not run, or is ending.
    pub(super) down: Cell<bool>,
    /// The node was asked to stop, and is not down yet.
    pub(super) stopping: Cell<bool>,
    /// Why the node could not start.
    pub(super) refused: RefCell<Option<String>>,
    ring_bytes: u64,
    /// Memory for partitions and producers, from the next start on.
    pub(super) budget: Cell<u64>,
    /// Appends of all its processes that have ended that timed out while the ring was full.
    ring_full: Cell<u64>,
    /// The same for asks between cores that came after all cores had drained.
    late_asks: Cell<u64>,
}

fn ring_full(core: &Core) -> u64 {
    core.metrics.admission_timed_out_total.get()
}

fn new_disk(world: &World) -> SimDisk {
    SimDisk::new(world.number(..))
}

impl Listener for Node {
    fn id(&self) -> i32 {
        self.id
    }

    fn process(&self) -> ProcessId {
        self.process
    }

    fn first(&self) -> Rc<Core> {
        self.core().expect("a broker listens once its first core has begun")
    }

    /// It may have to start first.
    fn core_for(&self, theirs: usize) -> Later<'_, Rc<Core>> {
        Box::pin(async move {
            loop {
                let seen = self.opened.version();
                if let Some(core) = self.cores.borrow().get(&(theirs % self.count.get())) {
                    return core.clone();
                }
                self.opened.past(seen).await;
            }
        })
    }
}

impl Node {
    /// `ring_bytes`: of each core. `count_max`: the most cores; each start draws their number.
    pub(super) fn new(world: &World, id: i32, founding: Rc<Founding>, ring_bytes: u64, count_max: usize) -> Rc<Self> {
        let process = world.add_process();
        Rc::new(Self {
            id,
            process,
            founding,
            disk: RefCell::new(new_disk(world)),
            ailment: Rc::default(),
            count: Cell::new(1),
            count_max,
            is_count_given: Cell::new(false),
            cores: RefCell::default(),
            opened: Notify::default(),
            serving: Cell::new(0),
            starts: Cell::new(0),
            down: Cell::new(true),
            stopping: Cell::new(false),
            refused: RefCell::default(),
            ring_bytes,
            budget: Cell::new(BUDGET),
            ring_full: Cell::new(0),
            late_asks: Cell::new(0),
        })
    }

    /// Begins with as many cores as it may have.
    pub(super) fn begin_with_all_cores(&self) {
        self.count.set(self.count_max);
        self.is_count_given.set(true);
    }

    /// Core 0, once its store is open.
    pub(super) fn core(&self) -> Option<Rc<Core>> {
        self.cores.borrow().get(&0).cloned()
    }

    /// The cores whose stores are open.
    pub(super) fn cores(&self) -> Vec<Rc<Core>> {
        self.cores.borrow().values().cloned().collect()
    }

    /// The core that a new connection gets, once all serve.
    pub(super) fn any_core(&self, world: &World) -> Option<Rc<Core>> {
        let at = if self.count.get() > 1 { world.place(self.count.get()) } else { 0 };
        self.cores.borrow().get(&at).cloned()
    }

    /// The core that owns a group, once its store is open.
    pub(super) fn owner(&self, group: GroupId) -> Option<Rc<Core>> {
        self.cores.borrow().get(&core_of(group, self.count.get()).0).cloned()
    }

    #[cfg(test)]
    pub(super) fn disk(&self) -> SimDisk {
        self.disk.borrow().clone()
    }

    /// Whether the node serves clients.
    pub(super) fn serves(&self) -> bool {
        self.serving.get() == self.count.get() && !self.down.get()
    }

    fn config(&self) -> Config {
        let seeds = self.founding.nodes.iter().map(|node| format!("{node}@{}", net::address(*node)));
        let mut config = Config::default();
        config.node_id = self.id;
        config.data_dir = DATA.into();
        config.seeds = Some(seeds.collect::<Vec<_>>().join(",").parse().expect("these are seeds"));
        config.kafka_addr = format!("127.0.0.1:{}", 9091 + self.id).parse().expect("this is an address");
        config.peer_addr = net::address(self.id).parse().expect("this is an address");
        // The largest batch that fits rings of this size. Their segments are eighths of the ring.
        config.wal_ring_bytes = self.ring_bytes * self.count.get() as u64;
        config.message_max_bytes = config.message_max_bytes.min((self.ring_bytes / 8) as usize - (16 << 10));
        config.replica_lag_time_max_ms = 2_000;
        config.log_segment_bytes = 16 << 10;
        config.log_index_interval_bytes = 4 << 10;
        config.log_retention_check_interval_ms = 1_500;
        config.leader_imbalance_check_interval_seconds = 3;
        config.offsets_topic_num_partitions = 2;
        config.group_min_session_timeout_ms = SESSION.as_millis() as i32;
        config.group_initial_rebalance_delay_ms = 200;
        config.producer_gap_timeout_ms = 3_000;
        config
    }

    fn store_config(&self, core: usize) -> StoreConfig {
        let ring_id = self.id as u64 | (core as u64) << 8;
        StoreConfig {
            ring_bytes: self.ring_bytes,
            ring: Some(RingConfig { ring_id: Some(ring_id), ..RingConfig::of_bytes(self.ring_bytes) }),
            carried_bytes: self.ring_bytes / 16,
            cache_bytes: 64 << 10,
            memory_bytes: self.ring_bytes / 2,
            read_ahead_bytes: 64 << 10,
            index_bytes: 16 << 10,
            open_files_max: 4,
            flush_write_bytes: 16 << 10,
            flush_turn_entries: 5,
            checkpoint_turn_groups: 1,
            ..StoreConfig::default()
        }
    }

    /// Starts the process if it is down.
    pub(super) fn start_if_down(self: &Rc<Self>, world: &World) {
        if !self.down.get() {
            return;
        }
        self.ailment.set(Ailment { broken: false, ..self.ailment.get() });
        // An operator changes the number of cores now and then.
        let before = self.count.get();
        let is_first = self.starts.get() == 0 && !self.is_count_given.get();
        if self.count_max > 1 && (is_first || world.chance(0.1)) {
            self.count.set(1 + world.place(self.count_max));
        }
        self.starts.set(self.starts.get() + 1);
        let disk = self.disk.borrow().clone();
        self.afflict(&disk);
        world.give_disk(self.process, disk);
        self.down.set(false);
        let node = self.clone();
        world.spawn(self.process, async move {
            let mut booted = node.boot().await;
            // An operator who cannot change the number of cores, because the disk is full, goes back to the former one.
            let is_full = matches!(booted, Err(StartError::Open(OpenError::Full(_))));
            if is_full && node.count.get() != before {
                node.count.set(before);
                booted = node.boot().await;
            }
            if let Err(why) = booted {
                *node.refused.borrow_mut() = Some(why.to_string());
            }
        });
    }

    async fn boot(self: &Rc<Self>) -> Result<(), StartError> {
        let disk = self.disk.borrow().clone();
        let failed = |source| OpenError::Io { what: DATA.to_owned(), source };
        disk.create_dir(DATA.as_ref()).await.map_err(failed)?;
        disk.sync_dir("/".as_ref()).await.map_err(failed)?;
        let config = Arc::new(self.config());
        let count = self.count.get();
        let mut manifest = broker::prepare(&config, count, MEMORY).await?;
        if manifest.cluster_id.is_none() {
            manifest.founding = self.founding.peers(self.id, manifest.peer).await;
            manifest.cluster_id = Some("simulated".to_owned());
            manifest.write(&disk, DATA.as_ref()).await?;
        }
        let about = Rc::new(About::new(
            &manifest,
            config.clone(),
            net::secret(),
            config.kafka_addr,
            config.peer_addr,
            Lasting::of(self.budget.get(), count),
        ));
        let metrics = Metrics::new(count);
        let shares = (Arc::new(Spread::new(count, usize::MAX)), memory::Broker::new(MEMORY, count));
        for (number, seed) in mesh::seeds::<Core>(count).into_iter().enumerate() {
            let (node, about, metrics, shares) = (self.clone(), about.clone(), metrics.core(number), shares.clone());
            rt::spawn(async move {
                if let Err(why) = node.run_core(seed, &about, metrics, shares).await {
                    *node.refused.borrow_mut() = Some(format!("core {number}: {why}"));
                }
            });
        }
        Ok(())
    }

    async fn run_core(
        self: &Rc<Self>,
        seed: MeshSeed<Core>,
        about: &About,
        metrics: Arc<CoreMetrics>,
        shares: (Arc<Spread>, Arc<memory::Broker>),
    ) -> Result<(), StartError> {
        let (mesh, inbox) = seed.connect().await;
        let number = mesh.me().0;
        let core = broker::begin_core(about, mesh, inbox, self.store_config(number), metrics, shares).await?;
        self.cores.borrow_mut().insert(number, core.clone());
        self.opened.notify();
        if number == 0 {
            let node = self.clone();
            let accept = async move { net().listen(node) };
            meta::start(&core, accept, &Members::default()).await?;
        }
        if core.until_serving().await {
            broker::serve_partitions(&core);
            self.serving.set(self.serving.get() + 1);
        }
        Ok(())
    }

    /// Makes the disk's operations take time, and fail according to its faults.
    fn afflict(&self, disk: &SimDisk) {
        let ailment = self.ailment.clone();
        disk.paced(move || {
            allocations::pause(false);
            let world = exec::world();
            let Ailment { slow, stalls_until, .. } = ailment.get();
            let took = world.draw(Duration::from_micros(10)..Duration::from_micros(150) + slow);
            Box::pin(rt::sleep(stalls_until.saturating_sub(world.time()) + took))
        });
        let ailment = self.ailment.clone();
        disk.fates(move |op| {
            // Allocations between this point and the operation's pause belong to the disk.
            allocations::pause(matches!(op.kind, Kind::Write | Kind::Sync));
            let mut now = ailment.get();
            let is_change = matches!(op.kind, Kind::Create | Kind::Write | Kind::Allocate);
            if now.full && is_change && op.path.starts_with("/data/logs") {
                return Fate::Fail(libc::ENOSPC);
            }
            let of_ring = op.path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ring-"));
            if now.broken && of_ring && matches!(op.kind, Kind::Write | Kind::Sync) {
                now.broken = false;
                ailment.set(now);
                return Fate::Fail(libc::EIO);
            }
            Fate::Go
        });
    }

    pub(super) fn ailment(&self) -> Ailment {
        self.ailment.get()
    }

    pub(super) fn ail(&self, ailment: Ailment) {
        self.ailment.set(ailment);
    }

    fn end(&self, world: &World, silently: bool) {
        self.down.set(true);
        self.serving.set(0);
        self.stopping.set(false);
        self.disk.borrow().stop();
        net().end(world, self.id, silently);
        let cores = self.cores.take();
        self.ring_full.update(|count| count + cores.values().map(|core| ring_full(core)).sum::<u64>());
        self.late_asks.update(|count| count + cores.values().map(|core| core.mesh().stats().late.get()).sum::<u64>());
        world.within(self.process, || drop(cores));
        world.end(self.process);
    }

    /// Kills the process. The data that it had handed to the system is not lost.
    pub(super) fn kill(&self, world: &World) {
        self.end(world, false);
        self.disk.borrow().resume();
    }

    /// The machine loses its power. Unsynced data may be lost or torn.
    pub(super) fn lose_power(&self, world: &World) {
        self.end(world, true);
        let after = self.disk.borrow().crash();
        *self.disk.borrow_mut() = after;
    }

    /// The machine is lost with its disk, and comes back with an empty one.
    pub(super) fn lose_disk(&self, world: &World) {
        self.end(world, true);
        self.ailment.set(Ailment::default());
        *self.disk.borrow_mut() = new_disk(world);
    }

    /// Stops the node as SIGTERM does. Then the process is down.
    pub(super) fn stop(self: &Rc<Self>, world: &World) {
        if !self.serves() {
            return self.kill(world);
        }
        self.stopping.set(true);
        let cores = self.cores();
        let left = Rc::new(Cell::new(cores.len()));
        let first = cores[0].clone();
        for core in cores {
            let (node, left) = (self.clone(), left.clone());
            world.spawn(self.process, async move {
                core.lifecycle.stopping.wait().await;
                broker::drain(&core).await;
                drop(core);
                left.set(left.get() - 1);
                if left.get() == 0 {
                    exec::world().after(Duration::ZERO, move || {
                        if !node.down.get() {
                            node.kill(&exec::world());
                        }
                    });
                }
            });
        }
        world.spawn(self.process, async move { broker::begin_stop(&first).await });
    }

    /// Appends that have timed out while the ring was full.
    pub(super) fn ring_full(&self) -> u64 {
        self.ring_full.get() + self.cores.borrow().values().map(|core| ring_full(core)).sum::<u64>()
    }

    /// Asks between cores that came after all cores had drained, by processes that have ended.
    pub(super) fn late_asks(&self) -> u64 {
        self.late_asks.get()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.cores.borrow().values().any(|core| core.has_failed())
    }
}
