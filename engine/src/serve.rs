//! `millrace serve`: from the settings to a running broker, until a signal ends it.
//! Lives on: the main thread.
//!
//! Order of the start: first everything that may fail (CPUs, limits, io_uring, the data directory's lock, the admin
//! address), then the banner, then recovery. Once the broker serves clients, it prints the addresses.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level,
};

use crate::{
    admin::{
        self, Admin, AdminError,
        pages::{About, Site},
    },
    broker::{Broker, BrokerError},
    cluster::secret::{self, ClusterSecretError},
    config::{Config, Conflict},
    host::{
        banner,
        cgroup::Cgroups,
        cpus::{self, CorePlan, CpuError},
        data_dir::{DataDir, DataDirError},
        limits::{self, Budget, Descriptors, LimitError, UringError},
        logging,
    },
    metrics::Metrics,
    stdout::{StdoutError, print},
};

/// Why the broker does not start, or does not stop cleanly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Secret(#[from] ClusterSecretError),
    #[error(transparent)]
    Cpus(#[from] CpuError),
    #[error(transparent)]
    Limits(#[from] LimitError),
    #[error(transparent)]
    Uring(#[from] UringError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Stdout(#[from] StdoutError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// The CPUs, the memory and the files that the system grants this process.
struct Grants {
    plan: CorePlan,
    budget: Budget,
    open_files: u64,
    descriptors: Descriptors,
    memlock: Option<u64>,
}

impl Grants {
    /// Raises the limits as far as allowed. Fails if the broker needs more, or if the settings do not fit the cores.
    fn obtain(config: &mut Config) -> Result<Self, ServeError> {
        let cgroups = Cgroups::discover();
        let plan = cpus::plan(config.cores.as_ref(), &cgroups)?;
        let cores = plan.cpus.len();
        config.fit_rings(cores);
        config.check_cores(cores)?;
        secret::check(config)?;
        let budget = Budget::new(config, &cgroups, cores)?;
        let open_files = limits::raise_open_files()?;
        let descriptors = limits::descriptors(config, open_files, cores, admin::DESCRIPTORS)?;
        let memlock = limits::raise_memlock()?;
        limits::check_io_uring()?;
        Ok(Self { plan, budget, open_files, descriptors, memlock })
    }
}

/// Runs the broker until SIGTERM or SIGINT.
pub fn run(mut config: Config) -> Result<(), ServeError> {
    logging::start(&config.log_filter);
    logging::abort_on_panic();
    let Grants { plan, budget, open_files, descriptors, memlock } = Grants::obtain(&mut config)?;
    let data_dir = DataDir::open(&config.data_dir)?;
    let o_direct = data_dir.takes_o_direct()?;
    let admin = Admin::bind(config.admin_addr)?;
    let found = banner::Found {
        plan: &plan,
        budget: &budget,
        data_dir: data_dir.path(),
        kernel: &limits::kernel_release(),
        open_files,
        segment_files: descriptors.segment_files,
        connections: descriptors.connections,
        memlock,
        o_direct,
    };
    print(&banner::beginning(&config, &found))?;
    let signals = Signals::new().map_err(ServeError::Signals)?;

    let metrics = Arc::new(Metrics::new(plan.cpus.len()));
    let about = About {
        node_id: config.node_id,
        cpus: plan.cpus.clone(),
        memory_budget_bytes: budget.total_bytes,
        admin_addr: admin.addr(),
        data_dir: data_dir.path().display().to_string(),
    };
    let site = Arc::new(Site::new(about, metrics.clone()));
    let admin_addr = admin.addr();
    admin.start(site.clone())?;

    config.segment_files_max = descriptors.segment_files;
    config.max_connections = descriptors.connections;
    config.peer_max_connections = descriptors.peer_connections;
    config.data_dir = data_dir.path().to_owned();
    let config = Arc::new(config);
    let broker = Broker::start(config.clone(), &plan, budget.per_core_bytes, metrics, || signals.is_pending())?;
    if broker.serves() {
        site.ready(broker.kafka_addr(), broker.cluster_id());
        print(&banner::listening(&config, broker.kafka_addr(), admin_addr))?;
    }

    signals.wait();
    site.stopping();
    broker.stop()?;
    // Hold the lock until nothing writes to the directory any more.
    drop(data_dir);
    Ok(())
}

/// SIGTERM and SIGINT. The first one asks for a clean stop, even during the start. The second one ends the process.
struct Signals(mpsc::Receiver<()>, Arc<AtomicBool>);

impl Signals {
    fn new() -> io::Result<Signals> {
        let (mut read, write) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            low_level::pipe::register(signal, write.try_clone()?)?;
        }
        let (tell, told) = mpsc::channel();
        let asked = Arc::new(AtomicBool::new(false));
        let has_come = asked.clone();
        let listen = move || {
            let mut next = || read.read_exact(&mut [0]).is_ok();
            if !next() {
                return;
            }
            tracing::info!("stopping; a second signal ends the drain at once");
            has_come.store(true, Ordering::Release);
            // The main thread may be ending already.
            let _ = tell.send(());
            if next() {
                // An operator who asks twice does not want to wait for the drain. All acknowledged records are
                // durable already.
                process::exit(1);
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
        Ok(Signals(told, asked))
    }

    /// Whether a signal has arrived.
    fn is_pending(&self) -> bool {
        self.1.load(Ordering::Acquire)
    }

    fn wait(&self) {
        // An error would mean that the signal thread has ended. It does not end before it has sent its message.
        let _ = self.0.recv();
    }
}
