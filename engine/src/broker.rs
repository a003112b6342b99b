//! The broker's life: recovery, cores, readiness, drain.
//! Lives on: the main thread, which starts the cores, waits, and stops them.
//!
//! Start:
//! 1. One core checks the manifest. If the number of cores changed, or the rings must have larger segments, it moves
//!    what the old rings hold.
//! 2. Every core opens its own store.
//! 3. Core 0 distributes the metadata.
//! 4. Every partition gets its leader. Only then does the broker accept connections.
//!
//! Stop: the broker accepts no new connections or requests and answers requests in flight (for at most
//! [`DRAIN_MAX`]). Then it flushes everything and marks the stores clean.

use crate::{
    cluster::{
        Identity,
        bootstrap::{self, BootstrapError},
        meta,
        node_id::Members,
        peers::Peers,
        secret::{self, ClusterSecretError},
    },
    config::{Config, value::Seeds},
    connection::{self, Spread},
    core::{
        Core, CoreParts, Entries,
        incoming::GroupHost,
        mesh::{self, HasMesh, Mesh, MeshInbox, MeshSeed},
        messages::{HandOver, Notice},
        opening,
    },
    handlers,
    host::{
        bind::bind,
        cpus::CorePlan,
        data_dir::DataDirError,
        disk::{self, Disk},
    },
    liveness,
    memory::{self, Lasting, Shares},
    metrics::{CoreMetrics, Metrics},
    partition::ready,
    start_error::StartError,
};
use consensus::{
    group::descriptor::ENTRY_DATA_BYTES_MAX,
    plane::peer_id,
    wire::{Caller, Hello},
};
use net::{
    peer::auth::Secret,
    transport::listen::{BindError, Bound},
};
use runtime::{
    clock,
    sync::{self, Either, race},
};
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};
use types::{CoreId, META_CORE, core_of};
use wal::{
    buf::Chunk,
    manifest::{self, Manifest},
    store::{OpenError, Poisoned, Store, StoreConfig, StoreDirs},
};

/// Default size of the memory for the newest records, in bytes for each core.
const CACHE_PER_CORE: u64 = 512 << 20;
/// A signal during the start is noticed within this time.
const STOP_NOTICED_IN: Duration = Duration::from_millis(100);
/// Time that requests in flight have to end after the broker was asked to stop.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// Time for which a stopping broker flushes. The rest is durable in the rings, and the next start replays it. That is
/// faster than writing many small files. Container engines kill a process ten seconds after they asked it to stop.
const LAST_FLUSH_MAX: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("{setting}: {source}")]
    Bind { setting: &'static str, source: BindError },
    #[error("core {core}: {why}")]
    Core { core: usize, why: StartError },
    #[error(transparent)]
    Secret(#[from] ClusterSecretError),
    #[error("data directory: {0}")]
    DataDir(StartError),
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Messages from the cores to the main thread.
enum News {
    Ready,
    Failed { core: usize, why: StartError },
    Stopped,
}

/// A running broker.
pub struct Broker {
    threads: Vec<runtime::CoreThread>,
    news: mpsc::Receiver<News>,
    stop: Arc<Stop>,
    kafka_addr: SocketAddr,
    cluster_id: Arc<str>,
    serves: bool,
}

/// Asks core 0 to stop the broker. Any thread may use it.
struct Stop {
    alarm: runtime::Alarm,
    wanted: AtomicBool,
}

/// The parts that all cores are made from.
struct Shared {
    about: About,
    config: Arc<Config>,
    spread: Arc<Spread>,
    metrics: Arc<Metrics>,
    memory: Arc<memory::Broker>,
    stop: Arc<Stop>,
    news: mpsc::Sender<News>,
}

impl Broker {
    /// Starts the broker. Returns once the broker serves clients, or soon after `stopped` returns true.
    pub fn start(
        config: Arc<Config>,
        plan: &CorePlan,
        memory_per_core: u64,
        metrics: Arc<Metrics>,
        stopped: impl Fn() -> bool,
    ) -> Result<Self, BrokerError> {
        let cpus = &plan.cpus;
        let secret = secret::load(&config)?;
        let manifest = prepare_data_dir(&config, cpus, memory_per_core)?;
        let manifest = into_cluster(manifest, &config, secret.clone(), cpus, &stopped)?;
        let bind = |setting, addr, count| bind(addr, count).map_err(|source| BrokerError::Bind { setting, source });
        let mut bound = bind("kafka.addr", config.kafka_addr, cpus.len())?.into_iter();
        let kafka_addr = bound.as_slice()[0].addr();
        let peer_bound = bind("peer.addr", config.peer_addr, 1)?.pop().expect("bind returns a listener per core");
        let peer_addr = peer_bound.addr();
        let mut peer_bound = Some(peer_bound);
        let (news, heard) = mpsc::channel();
        let stop = Arc::new(Stop { alarm: runtime::Alarm::new()?, wanted: AtomicBool::new(false) });
        let shared = Arc::new(Shared {
            about: About::new(
                &manifest,
                config.clone(),
                secret,
                kafka_addr,
                peer_addr,
                Lasting::of(memory_per_core, cpus.len()),
            ),
            spread: Arc::new(Spread::new(cpus.len(), config.max_connections)),
            metrics,
            memory: memory::Broker::new(memory_per_core, cpus.len()),
            stop: stop.clone(),
            news,
            config,
        });
        let cluster_id = shared.about.cluster_id.clone();
        let mut threads = Vec::with_capacity(cpus.len());
        for (number, (seed, cpu)) in mesh::seeds::<Core>(cpus.len()).into_iter().zip(cpus).enumerate() {
            let (shared, bound) = (shared.clone(), bound.next().expect("one listener per core"));
            let peer_bound = peer_bound.take();
            threads.push(runtime::spawn_core(*cpu, &format!("core-{number}"), move || async move {
                let (news, number) = (shared.news.clone(), number);
                if let Err(why) = run_core(shared, seed, bound, peer_bound).await {
                    // If the main thread is gone already, nobody needs this message.
                    let _ = news.send(News::Failed { core: number, why });
                }
                let _ = news.send(News::Stopped);
            })?);
        }
        let mut broker = Self { threads, news: heard, stop, kafka_addr, cluster_id, serves: false };
        let mut ready = 0;
        while ready < broker.threads.len() {
            match broker.news.recv_timeout(STOP_NOTICED_IN) {
                Ok(News::Ready) => ready += 1,
                Ok(News::Failed { core, why }) => return Err(BrokerError::Core { core, why }),
                Ok(News::Stopped) => unreachable!("a core does not stop before it is told to"),
                Err(RecvTimeoutError::Timeout) if stopped() => return Ok(broker),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("cores hold their sender as long as they run"),
            }
        }
        broker.serves = true;
        Ok(broker)
    }

    /// `false`: the broker was asked to stop while it started. The caller must still [stop](Broker::stop) it.
    pub fn serves(&self) -> bool {
        self.serves
    }

    /// The address on which the broker serves clients, with the port that the system chose if the setting names port
    /// 0.
    pub fn kafka_addr(&self) -> SocketAddr {
        self.kafka_addr
    }

    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Drains, flushes, marks a clean shutdown and waits for the cores to end.
    pub fn stop(self) -> Result<(), BrokerError> {
        self.stop.wanted.store(true, Ordering::Release);
        self.stop.alarm.ring()?;
        let mut failed = None;
        for _ in 0..self.threads.len() {
            loop {
                match self.news.recv().expect("cores hold their sender as long as they run") {
                    News::Stopped => break,
                    News::Failed { core, why } => failed = Some(BrokerError::Core { core, why }),
                    News::Ready => {}
                }
            }
        }
        for thread in self.threads {
            thread.join()?;
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Reads or creates the manifest. Moves rings and checkpoints if the number of cores or the size of the rings changed.
fn prepare_data_dir(config: &Arc<Config>, cpus: &[usize], memory_per_core: u64) -> Result<Manifest, BrokerError> {
    let (config, cores) = (config.clone(), cpus.len());
    beforehand(cpus[0], move || async move { prepare(&config, cores, memory_per_core).await })
}

/// Runs work that needs the disk before the cores start, on a core of its own.
fn beforehand<T, E, F>(cpu: usize, work: impl FnOnce() -> F + Send + 'static) -> Result<T, BrokerError>
where
    T: Send + 'static,
    E: Into<StartError> + 'static,
    F: Future<Output = Result<T, E>> + 'static,
{
    let (told, heard) = mpsc::channel();
    let thread = runtime::spawn_core(cpu, "prepare", move || async move {
        // The main thread waits for exactly this message.
        let _ = told.send(work().await.map_err(Into::into));
    })?;
    thread.join()?;
    heard.recv().expect("the answer is sent before the thread ends").map_err(BrokerError::DataDir)
}

fn open_disk() -> Result<Disk, OpenError> {
    disk::open().map_err(|source| OpenError::Io { what: "io_uring".to_owned(), source })
}

pub async fn prepare(config: &Config, cores: usize, memory_per_core: u64) -> Result<Manifest, StartError> {
    let data = &config.data_dir;
    let disk = open_disk()?;
    let manifest = match Manifest::read(&disk, data).await? {
        Some(manifest) if manifest.node != config.node_id => {
            let (owner, node) = (manifest.node, config.node_id);
            return Err(StartError::OtherBroker(DataDirError::OtherBroker { dir: data.clone(), owner, node }));
        }
        Some(manifest) => manifest,
        None => Manifest {
            incarnation: first_incarnation(),
            ..Manifest::new(config.node_id, peer_id(config.node_id, draw()), cores)
        },
    };
    // The incarnation distinguishes this process from earlier ones.
    let manifest = Manifest { incarnation: manifest.incarnation + 1, ..manifest };
    manifest.write(&disk, data).await?;
    let store = store_config(config, cores, &Shares::of(memory_per_core));
    let manifest = if manifest.cores == cores && !manifest::has_smaller_segments(&disk, data, &manifest, &store).await?
    {
        manifest
    } else {
        tracing::info!(
            from = manifest.cores,
            to = cores,
            ring_bytes = store.ring_bytes,
            "the number of cores or the size of the rings has changed: moving rings and checkpoints"
        );
        manifest::change_cores(&disk, data, &manifest, cores, &store, |group| core_of(group, cores).0).await?
    };
    manifest::remove_stale_epochs(&disk, data, &manifest).await?;
    Ok(manifest)
}

/// The number before that of the first process on a new data directory. It is above the numbers of all processes on
/// data directories that this broker had before. So nobody takes their requests for requests of this one.
fn first_incarnation() -> u64 {
    (clock::wall_ms() as u64) << 16
}

/// A random number that distinguishes this broker's disks. Two disks get the same one with a probability of 2^-32.
fn draw() -> u32 {
    runtime::draw_uuid().as_u128() as u32
}

/// Founds or joins a cluster if the data directory belongs to none.
fn into_cluster(
    manifest: Manifest,
    config: &Arc<Config>,
    secret: Option<Secret>,
    cpus: &[usize],
    stopped: impl Fn() -> bool,
) -> Result<Manifest, BrokerError> {
    if manifest.cluster_id.is_some() {
        return Ok(manifest);
    }
    let cluster = match &config.seeds {
        None => bootstrap::alone(manifest.peer),
        Some(seeds) => {
            let me = hello(&manifest, config, config.peer_addr);
            bootstrap::run(&me, secret, seeds, config.peer_addr, config.broker_session_timeout(), stopped)?
        }
    };
    tracing::info!(cluster = cluster.id, founders = ?cluster.founding, "this broker now belongs to a cluster");
    let manifest = Manifest { cluster_id: Some(cluster.id), founding: cluster.founding, ..manifest };
    let (written, data) = (manifest.clone(), config.data_dir.clone());
    beforehand(cpus[0], move || async move { written.write(&open_disk()?, &data).await })?;
    Ok(manifest)
}

/// How this broker introduces itself to other brokers.
fn hello(manifest: &Manifest, config: &Config, peer_addr: SocketAddr) -> Hello {
    Hello {
        caller: Caller::Broker,
        cluster_id: manifest.cluster_id.clone(),
        node: manifest.node,
        peer: manifest.peer,
        incarnation: manifest.incarnation,
        cores: manifest.cores as u16,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        peer_addr: config.advertised_peer(peer_addr).to_string(),
        seeds: config.seeds.as_ref().map(Seeds::nodes).unwrap_or_default(),
        founding: manifest.founding.clone(),
        core: 0,
    }
}

/// Memory for the sparse indexes of segments: enough for some ten thousand of them.
const INDEXES_PER_CORE: u64 = 64 << 20;

/// The configuration of one core's store: its share of what the broker may use.
fn store_config(config: &Config, cores: usize, shares: &Shares) -> StoreConfig {
    // A larger cache would seldom be read, and the first touch of each of its pages costs time.
    let cache = config.log_cache_bytes.map_or(CACHE_PER_CORE, |bytes| bytes / cores as u64);
    let ring_bytes = config.wal_ring_bytes / cores as u64;
    let entry_bytes = config.message_max_bytes + ENTRY_DATA_BYTES_MAX;
    StoreConfig {
        ring_bytes,
        entry_bytes,
        flush_trigger_bytes: (ring_bytes / 4).min(shares.log / 4),
        // Each quarter of the ring triggers a flush, so that carrying batches rewrites at most a quarter of what is
        // written there.
        carried_bytes: (ring_bytes / 16).min(shares.carried),
        cache_bytes: cache.min(shares.cache),
        // Room for a few of the largest entries beside the cache, even if there is little memory.
        memory_bytes: shares.log.max(shares.cache + 4 * entry_bytes as u64),
        read_ahead_bytes: shares.read_ahead,
        index_bytes: INDEXES_PER_CORE.min(shares.indexes),
        open_files_max: config.segment_files_max / cores,
        ..StoreConfig::default()
    }
}

async fn run_core(
    shared: Arc<Shared>,
    seed: MeshSeed<Core>,
    bound: Bound,
    peer_bound: Option<Bound>,
) -> Result<(), StartError> {
    let (mesh, inbox) = seed.connect().await;
    let id: CoreId = mesh.me();
    let cores = mesh.cores();
    let store_config = store_config(&shared.config, cores, &shared.memory.shares);
    let shares = (shared.spread.clone(), shared.memory.clone());
    let core = begin_core(&shared.about, mesh, inbox, store_config, shared.metrics.core(id.0), shares);
    let core = core.await?;
    if let Some(peer_bound) = peer_bound {
        let (peers, host) = (core.peers().clone(), Rc::new(GroupHost(core.clone())));
        let accept = async move { peers.accept(peer_bound, host).await.expect("a bound socket can be listened on") };
        // A broker without a quorum may wait in `start` for ever. This task can stop it there.
        runtime::spawn(stop_when_told(core.clone(), shared.stop.clone()));
        let members = Members::of(&shared.config, shared.about.secret.clone());
        meta::start(&core, accept, &members).await?;
    }
    if core.until_serving().await {
        shared.news.send(News::Ready).map_err(|_| StartError::Abandoned)?;
        runtime::spawn(connection::close_idle(core.clone()));
        runtime::spawn(connection::close_stalled(core.clone()));
        runtime::spawn(crate::core::turn_probe::run(core.clone()));
        serve_partitions(&core);
        // A core that accepts no connections would leave the broker half alive.
        connection::accept(core.clone(), bound).await.expect("a bound socket can be listened on");
    }
    drain(&core).await;
    Ok(())
}

/// The facts about this broker that all its cores share.
pub struct About {
    pub config: Arc<Config>,
    pub cluster_id: Arc<str>,
    pub identity: Arc<Identity>,
    pub hello: Hello,
    /// The secret that identifies other brokers and tools. `None`: everybody is accepted.
    pub secret: Option<Secret>,
    pub epoch: u64,
    /// Host and port at which the broker tells clients to connect.
    pub advertised: (Arc<str>, u16),
    pub shares: Lasting,
}

impl About {
    /// Describes a broker that belongs to a cluster, at these addresses.
    pub fn new(
        manifest: &Manifest,
        config: Arc<Config>,
        secret: Option<Secret>,
        kafka_addr: SocketAddr,
        peer_addr: SocketAddr,
        shares: Lasting,
    ) -> Self {
        Self {
            cluster_id: manifest.cluster_id.clone().expect("the broker is in a cluster by now").into(),
            identity: Arc::new(Identity {
                peer: manifest.peer,
                incarnation: manifest.incarnation,
                founding: manifest.founding.clone(),
                peer_addr: config.advertised_peer(peer_addr),
            }),
            hello: hello(manifest, &config, peer_addr),
            secret,
            epoch: manifest.epoch,
            advertised: config.advertised(kafka_addr),
            shares,
            config,
        }
    }
}

/// Opens a core's store and starts every task that needs only the store.
pub async fn begin_core(
    about: &About,
    mesh: Mesh<Core>,
    inbox: MeshInbox<Core>,
    store_config: StoreConfig,
    metrics: Arc<CoreMetrics>,
    (spread, memory): (Arc<Spread>, Arc<memory::Broker>),
) -> Result<Rc<Core>, StartError> {
    let id: CoreId = mesh.me();
    let disk = open_disk()?;
    let dirs = StoreDirs::new(&about.config.data_dir, about.epoch, id.0);
    let (store, recovered, report) = Store::open(disk, &dirs, about.epoch, store_config).await?;
    tracing::info!(core = id.0, ?report, "store recovered");
    let core = Core::new(CoreParts {
        entries: Entries { start: handlers::start, answer_tool: handlers::tools::answer },
        mesh,
        config: about.config.clone(),
        cluster_id: about.cluster_id.clone(),
        identity: about.identity.clone(),
        advertised: about.advertised.clone(),
        shares: about.shares,
        store,
        metrics,
        spread,
        memory,
        recovered,
    });
    let (journal, flusher) = (core.store.clone(), core.store.clone());
    let host = core.clone();
    runtime::spawn(storage_loop(core.clone(), async move { journal.run_journal().await }));
    runtime::spawn(storage_loop(core.clone(), async move { flusher.run_flusher(host).await }));
    runtime::spawn(warm_memory(core.clone()));
    runtime::spawn(ready::run(core.clone()));
    runtime::spawn(opening::run(core.clone()));
    let seeds = about.config.seeds.iter().flat_map(Seeds::iter);
    let seeds = seeds.map(|(node, address)| (*node, address.to_string()));
    let me = Hello { core: id.0 as u16, ..about.hello.clone() };
    let peers = Peers::new(me, about.secret.clone(), seeds);
    peers.log_with(core.connection_log.clone());
    peers.serve_at_most(about.config.peer_max_connections);
    core.hold_peers(peers);
    runtime::spawn(beat(core.clone()));
    inbox.serve(&core);
    runtime::spawn(liveness::run(core.clone()));
    Ok(core)
}

/// Starts the background tasks of a core that serves.
pub fn serve_partitions(core: &Rc<Core>) {
    runtime::spawn(crate::partition::retention::run(core.clone()));
    runtime::spawn(crate::partition::retention::keep_producers(core.clone()));
    runtime::spawn(liveness::rebalance(core.clone()));
}

/// Runs one of the store's loops. If a fault ends the loop, the core stops acknowledging.
async fn storage_loop(core: Rc<Core>, ended: impl Future<Output = Result<(), Poisoned>>) {
    if let Err(poisoned) = ended.await {
        core.storage_failed(&poisoned.to_string());
    }
}

/// Prepares memory before the ring needs it. The kernel takes milliseconds to clear memory, so another thread waits
/// for that.
async fn warm_memory(core: Rc<Core>) {
    loop {
        let bytes = core.store.memory_wanted().await;
        // Dropping the chunk here gives its memory to this thread, which takes it for its next chunk.
        drop(runtime::blocking(move || Chunk::warm(bytes)).await);
    }
}

/// Once a second, shows the admin thread that this core's loop turns, and publishes its counters.
async fn beat(core: Rc<Core>) {
    loop {
        core.metrics.beat();
        core.metrics.publish_store(&core.store.stats());
        core.publish_queues();
        core.publish_room();
        let mesh = core.mesh().stats();
        core.metrics.mesh_sent_total.set(mesh.sent.get());
        core.metrics.mesh_received_total.set(mesh.received.get());
        core.metrics.mesh_posts_total.set(mesh.posted.get());
        core.metrics.mesh_messages_total.set(core.mesh().sent_by_kind());
        let peers = core.peers();
        core.metrics.peer_refused_total.set(peers.stats().refused.get() + peers.strangers_evicted());
        core.metrics.peer_tools_open.set(peers.tools_open() as u64);
        runtime::sleep(Duration::from_secs(1)).await;
    }
}

/// On core 0: waits until the main thread asks the broker to stop.
async fn stop_when_told(core: Rc<Core>, stop: Arc<Stop>) {
    while !stop.wanted.load(Ordering::Acquire) {
        if let Err(error) = stop.alarm.rung().await {
            tracing::error!(%error, "cannot wait for the stop signal");
            return;
        }
    }
    begin_stop(&core).await;
}

/// On core 0: asks every core to hand over its leaderships and to take no more requests.
pub async fn begin_stop(core: &Rc<Core>) {
    let cores = (0..core.cores()).map(CoreId);
    sync::all(cores.clone().map(|to| core.ask(to, HandOver {})).collect()).await;
    for to in cores {
        core.tell(to, Notice::BeginStop);
    }
}

/// Answers requests in flight, then leaves the disk so that the next start has nothing to replay.
pub async fn drain(core: &Rc<Core>) {
    core.connections.close_all();
    // Members that wait in JoinGroup would wait for a rebalance. Now they look for the group's next coordinator
    // instead.
    core.coordinators.resign_all();
    if let Either::Second(()) = race(core.connections.drained(), runtime::sleep(DRAIN_MAX)).await {
        tracing::warn!(
            core = core.id().0,
            left = core.connections.len(),
            "closing connections that did not end in time"
        );
    }
    if core.id() == META_CORE {
        meta::hand_over(core).await;
        if let Err(error) = meta::snapshot(core).await {
            tracing::warn!(%error, "cannot write a metadata snapshot; the next start replays the ring instead");
        }
    }
    core.lifecycle.metadata_ended.set();
    // No core may stop serving its partitions while another core still answers requests.
    core.all_drained().await;
    core.lifecycle.peers_ended.set();
    core.peers().stop();
    let core_id = core.id().0;
    match race(core.store.close_clean(), runtime::sleep(LAST_FLUSH_MAX)).await {
        Either::First(Ok(())) => tracing::info!(core = core_id, "stopped cleanly"),
        Either::First(Err(poisoned)) => tracing::error!(core = core_id, %poisoned, "stopped, but not marked as clean"),
        Either::Second(()) => tracing::info!(
            core = core_id,
            ring_bytes = core.store.stats().ring_used_bytes,
            "stopped with records in the ring that are not in segment files yet; the next start replays them"
        ),
    }
}
