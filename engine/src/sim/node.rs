//! One simulated broker: its disk, which lasts, and its process, which runs the broker's own code for start, core and
//! stop.

use super::{
    allocations,
    clients_group::SESSION,
    exec::{self, ProcessId, World},
};
use crate::{
    broker::{self, About},
    cluster::meta,
    config::Config,
    connection::Spread,
    core::{Core, mesh},
    liveness::GroupHost,
    memory::{self, Lasting},
    metrics::Metrics,
    rt,
};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use wal::{
    disk::{
        Disk as _,
        sim::{Fate, Kind, SimDisk},
    },
    ring::RingConfig,
    store::StoreConfig,
};

const DATA: &str = "/data";
const MEMORY: u64 = 4 << 20;
/// The memory budget. Partitions and producers have shares of it.
const BUDGET: u64 = 64 << 20;

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
    core: RefCell<Option<Rc<Core>>>,
    serving: Cell<bool>,
    /// The process does not run, or is ending.
    pub(super) down: Cell<bool>,
    /// The node was asked to stop, and is not down yet.
    pub(super) stopping: Cell<bool>,
    /// Why the node could not start.
    pub(super) refused: RefCell<Option<String>>,
    ring_bytes: u64,
    /// Appends of all its processes that have ended that timed out while the ring was full.
    ring_full: Cell<u64>,
}

fn ring_full(core: &Core) -> u64 {
    core.metrics.admission_timed_out_total.get()
}

fn new_disk(world: &World) -> SimDisk {
    SimDisk::new(world.number(..))
}

impl Node {
    pub(super) fn new(world: &World, id: i32, founding: Rc<Founding>, ring_bytes: u64) -> Rc<Self> {
        let process = world.add_process();
        Rc::new(Self {
            id,
            process,
            founding,
            disk: RefCell::new(new_disk(world)),
            ailment: Rc::default(),
            core: RefCell::default(),
            serving: Cell::new(false),
            down: Cell::new(true),
            stopping: Cell::new(false),
            refused: RefCell::default(),
            ring_bytes,
            ring_full: Cell::new(0),
        })
    }

    /// The core, once its store is open.
    pub(super) fn core(&self) -> Option<Rc<Core>> {
        self.core.borrow().clone()
    }

    pub(super) fn disk(&self) -> SimDisk {
        self.disk.borrow().clone()
    }

    /// Whether the node serves clients.
    pub(super) fn serves(&self) -> bool {
        self.serving.get() && !self.down.get()
    }

    fn config(&self) -> Config {
        let seeds = self.founding.nodes.iter().map(|node| format!("{node}@{}", super::net::address(*node)));
        let mut config = Config::default();
        config.node_id = self.id;
        config.data_dir = DATA.into();
        config.seeds = Some(seeds.collect::<Vec<_>>().join(",").parse().expect("these are seeds"));
        config.kafka_addr = format!("127.0.0.1:{}", 9091 + self.id).parse().expect("this is an address");
        config.peer_addr = super::net::address(self.id).parse().expect("this is an address");
        // The largest batch that fits rings of this size. Their segments are eighths of the ring.
        config.wal_ring_bytes = self.ring_bytes;
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

    fn store_config(&self) -> StoreConfig {
        StoreConfig {
            ring_bytes: self.ring_bytes,
            ring: Some(RingConfig { ring_id: Some(self.id as u64), ..RingConfig::of_bytes(self.ring_bytes) }),
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
        let disk = self.disk.borrow().clone();
        self.afflict(&disk);
        world.give_disk(self.process, disk);
        self.down.set(false);
        let node = self.clone();
        world.spawn(self.process, async move {
            if let Err(why) = node.boot().await {
                *node.refused.borrow_mut() = Some(why);
            }
        });
    }

    async fn boot(self: &Rc<Self>) -> Result<(), String> {
        let disk = self.disk.borrow().clone();
        let refused = |error: std::io::Error| error.to_string();
        disk.create_dir(DATA.as_ref()).await.map_err(refused)?;
        disk.sync_dir("/".as_ref()).await.map_err(refused)?;
        let config = Arc::new(self.config());
        let mut manifest = broker::prepare(&config, 1, MEMORY).await.map_err(|error| error.to_string())?;
        if manifest.cluster_id.is_none() {
            manifest.founding = self.founding.peers(self.id, manifest.peer).await;
            manifest.cluster_id = Some("simulated".to_owned());
            manifest.write(&disk, DATA.as_ref()).await.map_err(|error| error.to_string())?;
        }
        let about = About::new(
            &manifest,
            config.clone(),
            super::net::secret(),
            config.kafka_addr,
            config.peer_addr,
            Lasting::of(BUDGET, 1),
        );
        let seed = mesh::seeds::<Core>(1).pop().expect("one was asked for");
        let (mesh, inbox) = seed.connect().await;
        let metrics = Metrics::new(1).core(0);
        let shares = (Arc::new(Spread::new(1, usize::MAX)), memory::Broker::new(MEMORY, 1));
        let core = broker::begin_core(&about, mesh, inbox, self.store_config(), metrics, shares).await;
        let core = core.map_err(|error| error.to_string())?;
        *self.core.borrow_mut() = Some(core.clone());
        let (node, peers, host) = (self.clone(), core.peers().clone(), Rc::new(GroupHost(core.clone())));
        let accept = async move { exec::world().net.listen(node.id, node.process, peers, host) };
        meta::start(&core, accept).await.map_err(|error| error.to_string())?;
        if core.until_serving().await {
            broker::serve_partitions(&core);
            self.serving.set(true);
        }
        Ok(())
    }

    /// Makes the disk's operations take time, and fail according to its faults.
    fn afflict(&self, disk: &SimDisk) {
        let ailment = self.ailment.clone();
        disk.paced(move || {
            allocations::pause(false);
            let world = exec::world();
            let most = Duration::from_micros(150) + ailment.get().slow;
            Box::pin(rt::sleep(world.draw(Duration::from_micros(10)..most)))
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
        self.serving.set(false);
        self.stopping.set(false);
        self.disk.borrow().stop();
        world.net.end(world, self.id, silently);
        let core = self.core.take();
        self.ring_full.update(|count| count + core.as_deref().map_or(0, ring_full));
        world.within(self.process, || drop(core));
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
        let Some(core) = self.core().filter(|_| self.serves()) else { return self.kill(world) };
        self.stopping.set(true);
        let node = self.clone();
        world.spawn(self.process, async move {
            broker::begin_stop(&core).await;
            broker::drain(&core).await;
            drop(core);
            let world = exec::world();
            world.after(Duration::ZERO, move || {
                if !node.down.get() {
                    node.kill(&exec::world());
                }
            });
        });
    }

    /// Appends that have timed out while the ring was full.
    pub(super) fn ring_full(&self) -> u64 {
        self.ring_full.get() + self.core.borrow().as_deref().map_or(0, ring_full)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.core.borrow().as_ref().is_some_and(|core| core.has_failed())
    }
}
