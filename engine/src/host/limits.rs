//! The resources that the system gives the broker: memory, descriptors, locked memory, io_uring.
//! Lives on: the main thread, before any core starts. It tries io_uring here, so that the runtime does not meet one
//! that fails.

use std::{fmt, fs, io};

use io_uring::{IoUring, Probe, opcode};

use crate::{config::Config, host::cgroup::Cgroups};

/// The memory that the broker may use for caches and buffers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub total_bytes: u64,
    /// Each core's share.
    pub per_core_bytes: u64,
    /// For the banner: where the number comes from.
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    #[error("cannot read the size of the memory from /proc/meminfo")]
    MemTotal,
    #[error(
        "memory.budget.bytes = {wanted}: {source_of_limit} has only {limit} bytes; lower it, or leave it out to use \
         half of that"
    )]
    Budget { wanted: u64, limit: u64, source_of_limit: &'static str },
    #[error(
        "{cores} cores need {needed} bytes of memory, but {total} are allowed ({why}); raise memory.budget.bytes or \
         the limit, or name fewer cores (--cores)"
    )]
    TooSmall { cores: usize, needed: u64, total: u64, why: String },
    #[error("cannot read or raise the limit of open files: {0}")]
    OpenFiles(io::Error),
    #[error(
        "{limit} open files are allowed and at least {needed} needed; raise the hard limit (ulimit -Hn, LimitNOFILE= of \
         systemd, or --ulimit nofile= of docker)"
    )]
    FewFiles { limit: u64, needed: u64 },
    #[error("cannot read or raise the limit of locked memory: {0}")]
    Memlock(io::Error),
    #[error(
        "{limit} bytes of locked memory are allowed and at least {MEMLOCK_MIN} needed; raise the hard limit (ulimit -Hl, \
         LimitMEMLOCK= of systemd, or --ulimit memlock= of docker)"
    )]
    LittleMemlock { limit: u64 },
}

/// The minimum for one core.
const PER_CORE_BYTES_MIN: u64 = 16 << 20;
/// Descriptors that the process itself needs: listeners, the log, the admin thread, and short-lived files.
const FILES_BESIDE: u64 = 64;
/// Descriptors of each core: about 25 for its rings, event queues and ring segments, the others for checkpoints,
/// snapshots and files being flushed.
const FILES_PER_CORE: u64 = 64;
/// The descriptors that remain must suffice for a few segment files, connections of clients and connections of peers.
const FILES_SHARED_MIN: u64 = 128;
const FILES_SHARED_PER_CORE_MIN: u64 = 32;
/// Connections from each core to other brokers: three to each of sixteen brokers.
const FILES_TO_BROKERS_PER_CORE: u64 = 48;
/// With less, glommio does not start an executor.
const MEMLOCK_MIN: u64 = 512 << 10;

impl Budget {
    pub fn new(config: &Config, cgroups: &Cgroups, cores: usize) -> Result<Budget, LimitError> {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let ram = mem_total(&meminfo).ok_or(LimitError::MemTotal)?;
        Budget::of(config.memory_budget_bytes, ram, cgroups.memory_limit(), cores)
    }

    fn of(wanted: Option<u64>, ram: u64, cgroup: Option<u64>, cores: usize) -> Result<Budget, LimitError> {
        let (limit, source_of_limit) = match cgroup {
            Some(bytes) if bytes < ram => (bytes, "the cgroup"),
            _ => (ram, "this machine"),
        };
        let (total_bytes, why) = match wanted {
            Some(wanted) if wanted > limit => return Err(LimitError::Budget { wanted, limit, source_of_limit }),
            Some(wanted) => (wanted, "memory.budget.bytes".to_owned()),
            None => (limit / 2, format!("half of what {source_of_limit} has")),
        };
        let needed = PER_CORE_BYTES_MIN * cores as u64;
        if total_bytes < needed {
            return Err(LimitError::TooSmall { cores, needed, total: total_bytes, why });
        }
        Ok(Budget { total_bytes, per_core_bytes: total_bytes / cores as u64, why })
    }
}

/// Parses the line `MemTotal:       24684096 kB`.
fn mem_total(meminfo: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The limit of open files, after raising the soft limit to the hard one.
pub fn raise_open_files() -> Result<u64, LimitError> {
    raise(libc::RLIMIT_NOFILE).map_err(LimitError::OpenFiles)
}

/// Bytes that this process may lock in memory, after raising the soft limit to the hard one. `None`: no limit.
pub fn raise_memlock() -> Result<Option<u64>, LimitError> {
    let limit = raise(libc::RLIMIT_MEMLOCK).map_err(LimitError::Memlock)?;
    enough_memlock((limit != libc::RLIM_INFINITY).then_some(limit))
}

fn enough_memlock(limit: Option<u64>) -> Result<Option<u64>, LimitError> {
    match limit {
        Some(limit) if limit < MEMLOCK_MIN => Err(LimitError::LittleMemlock { limit }),
        limit => Ok(limit),
    }
}

fn raise(resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let (soft, hard) = rlimit(resource)?;
    if soft < hard {
        let raised = libc::rlimit { rlim_cur: hard, rlim_max: hard };
        // SAFETY: the call reads a live struct.
        if unsafe { libc::setrlimit(resource, &raw const raised) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(hard)
}

/// The shares of the descriptors. They are divided so that clients cannot take those of storage, brokers and the admin
/// port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// `segment.files.max`, or less if the limit of open files requires it.
    pub segment_files: usize,
    /// `max.connections`, or less if the limit of open files requires it.
    pub connections: usize,
    /// `peer.max.connections`, or less if the limit of open files requires it.
    pub peer_connections: usize,
}

/// Divides the descriptors that this process may have. The admin port needs `admin` of them.
pub fn descriptors(config: &Config, open_files: u64, cores: usize, admin: u64) -> Result<Descriptors, LimitError> {
    let per_core = cores as u64;
    let fixed = FILES_BESIDE + FILES_PER_CORE * per_core + admin;
    let needed = fixed + FILES_SHARED_MIN + FILES_SHARED_PER_CORE_MIN * per_core;
    if open_files < needed {
        return Err(LimitError::FewFiles { limit: open_files, needed });
    }
    let left = open_files - fixed;
    // A connection to the peer port has two descriptors for a moment, when it moves from the core that accepted it to
    // another one. Connections that have not proved who they are may be half as many as those of brokers, and those of
    // tools a quarter.
    let peers_wanted = 11 * config.peer_max_connections as u64 / 4 + FILES_TO_BROKERS_PER_CORE * per_core;
    let peers = peers_wanted.min(left / 4);
    let left = left - peers;
    let segments = (config.segment_files_max as u64).min(left / 2);
    Ok(Descriptors {
        segment_files: segments as usize,
        connections: config.max_connections.min((left - segments) as usize),
        peer_connections: config.peer_max_connections.min((peers * 4 / 11) as usize),
    })
}

/// Bytes that this process may lock in memory. `None`: no limit.
fn memlock() -> io::Result<Option<u64>> {
    let (soft, _) = rlimit(libc::RLIMIT_MEMLOCK)?;
    Ok((soft != libc::RLIM_INFINITY).then_some(soft))
}

fn rlimit(resource: libc::__rlimit_resource_t) -> io::Result<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call fills a live struct.
    match unsafe { libc::getrlimit(resource, &raw mut limit) } {
        0 => Ok((limit.rlim_cur, limit.rlim_max)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Why the broker cannot use io_uring.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    #[error(
        "this kernel ({release}) has no io_uring, or a sandbox hides it; run Linux 5.19 or newer with CONFIG_IO_URING, \
         outside of sandboxes such as gVisor"
    )]
    Missing { release: String },
    #[error(
        "the kernel refuses io_uring to everybody (kernel.io_uring_disabled = 2); allow it: sysctl -w \
         kernel.io_uring_disabled=0"
    )]
    Disabled,
    #[error(
        "the kernel refuses io_uring to this user (kernel.io_uring_disabled = 1); allow it: sysctl -w \
         kernel.io_uring_disabled=0, or put the user into the group kernel.io_uring_group"
    )]
    Unprivileged,
    #[error(
        "a seccomp profile refuses io_uring; allow io_uring_setup, io_uring_enter and io_uring_register in it, or run with \
         --security-opt seccomp=unconfined (docker, podman), seccompProfile: Unconfined (Kubernetes)"
    )]
    Seccomp,
    #[error("a security module refuses io_uring ({0}); see the kernel's log, and allow it for this program")]
    Denied(io::Error),
    #[error(
        "io_uring needs more locked memory ({limit} bytes allowed); raise the limit: ulimit -l, LimitMEMLOCK= of \
         systemd, or --ulimit memlock= of docker"
    )]
    Memory { limit: u64 },
    #[error("this kernel's io_uring ({release}) lacks {missing}; run Linux 5.19 or newer")]
    Opcodes { release: String, missing: String },
    #[error("io_uring does not work here: {0}")]
    Other(io::Error),
}

/// The operations of io_uring that the runtime and the storage need.
const OPCODES: &[(&str, u8)] = &[
    ("NOP", opcode::Nop::CODE),
    ("READV", opcode::Readv::CODE),
    ("WRITEV", opcode::Writev::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("LINK_TIMEOUT", opcode::LinkTimeout::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("STATX", opcode::Statx::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
];

/// Checks that io_uring exists, is allowed, and supports all operations that the broker needs.
pub fn check_io_uring() -> Result<(), UringError> {
    let ring = IoUring::new(8).map_err(|error| refused(error, &System::read()))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| refused(error, &System::read()))?;
    check_opcodes(|code| probe.is_supported(code), kernel_release())
}

fn check_opcodes(is_supported: impl Fn(u8) -> bool, release: String) -> Result<(), UringError> {
    let missing: Vec<&str> = OPCODES.iter().filter(|(_, code)| !is_supported(*code)).map(|(name, _)| *name).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(UringError::Opcodes { release, missing: missing.join(", ") }),
    }
}

/// Settings of the system that explain why io_uring was denied.
struct System {
    release: String,
    /// The value of `kernel.io_uring_disabled`, since Linux 6.6.
    io_uring_disabled: Option<u8>,
    /// Whether a seccomp filter applies to this process.
    seccomp: bool,
    memlock: Option<u64>,
}

impl System {
    fn read() -> System {
        let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        System {
            release: kernel_release(),
            io_uring_disabled: disabled.and_then(|text| text.trim().parse().ok()),
            seccomp: status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2")),
            memlock: memlock().ok().flatten(),
        }
    }
}

fn refused(error: io::Error, system: &System) -> UringError {
    match (error.raw_os_error(), system.io_uring_disabled, system.memlock) {
        (Some(libc::ENOSYS), ..) => UringError::Missing { release: system.release.clone() },
        (Some(libc::EPERM | libc::EACCES), Some(2), _) => UringError::Disabled,
        (Some(libc::EPERM | libc::EACCES), Some(1), _) if !system.seccomp => UringError::Unprivileged,
        (Some(libc::EPERM | libc::EACCES), ..) if system.seccomp => UringError::Seccomp,
        (Some(libc::EPERM | libc::EACCES), ..) => UringError::Denied(error),
        (Some(libc::ENOMEM), _, Some(limit)) => UringError::Memory { limit },
        _ => UringError::Other(error),
    }
}

/// Formats bytes for people: `512 MiB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..0x400 => return write!(f, "{} B", self.0),
            0x400..0x10_0000 => (10, "KiB"),
            0x10_0000..0x4000_0000 => (20, "MiB"),
            _ => (30, "GiB"),
        };
        let tenths = (u128::from(self.0) * 10) >> unit;
        match tenths % 10 {
            0 => write!(f, "{} {name}", tenths / 10),
            tenth => write!(f, "{}.{tenth} {name}", tenths / 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_budget_is_half_of_the_lesser_limit_or_what_is_set() {
        let row = |wanted, cgroup, cores| {
            Budget::of(wanted, 8 * GIB, cgroup, cores)
                .map(|b| (b.total_bytes, b.per_core_bytes))
                .map_err(|e| e.to_string())
        };
        assert_eq!(row(None, None, 4), Ok((4 * GIB, GIB)));
        assert_eq!(row(None, Some(2 * GIB), 2), Ok((GIB, GIB / 2)));
        assert_eq!(row(None, Some(64 * GIB), 1), Ok((4 * GIB, 4 * GIB)));
        assert_eq!(row(Some(6 * GIB), None, 2), Ok((6 * GIB, 3 * GIB)));
        assert!(row(Some(9 * GIB), None, 2).unwrap_err().contains("this machine has only 8589934592 bytes"));
        assert!(row(Some(3 * GIB), Some(2 * GIB), 2).unwrap_err().contains("the cgroup has only 2147483648 bytes"));
        let small = row(None, Some(64 << 20), 4).unwrap_err();
        assert!(small.contains("4 cores need 67108864 bytes") && small.contains("fewer cores"), "{small}");
    }

    #[test]
    fn the_machines_memory_is_read() {
        assert_eq!(mem_total("MemTotal:       24684096 kB\nMemFree: 1 kB\n"), Some(24_684_096 * 1024));
        assert_eq!(mem_total("MemFree: 1 kB\n"), None);
        assert_eq!(mem_total("MemTotal: x kB\n"), None);
        Budget::new(&Config::default(), &Cgroups::discover(), 1).unwrap();
    }

    #[test]
    fn descriptors_are_divided_so_that_nobody_takes_anothers() {
        let config = Config::default();
        let of = |open_files, cores| descriptors(&config, open_files, cores, 66).map_err(|error| error.to_string());
        let ample = of(1 << 20, 2).unwrap();
        assert_eq!((ample.segment_files, ample.peer_connections), (8192, 1024));
        assert!(ample.connections > 1_000_000, "{ample:?}");
        // 1024 - 64 - 2 * 64 - 66 = 766 are shared: a quarter for peers, and half of the rest for each of the others.
        let little = Descriptors { segment_files: 287, connections: 288, peer_connections: 69 };
        assert_eq!(of(1024, 2), Ok(little));
        for open_files in (450..5000).step_by(13) {
            for cores in [1, 2] {
                let Descriptors { segment_files, connections, peer_connections } = of(open_files, cores).unwrap();
                let peers = 2 * peer_connections + peer_connections / 2 + peer_connections / 4;
                let all = segment_files + connections + peers + 64 + 64 * cores + 66;
                assert!(all as u64 <= open_files, "{all} of {open_files}");
                assert!(segment_files >= 16 * cores && connections >= 32 && peer_connections >= 12);
            }
        }
        let mut few = Config::default();
        (few.max_connections, few.segment_files_max, few.peer_max_connections) = (10, 256, 16);
        let wanted = Descriptors { segment_files: 256, connections: 10, peer_connections: 16 };
        assert_eq!(descriptors(&few, 1 << 20, 2, 66).unwrap(), wanted);
        let refusal = of(256, 2).unwrap_err();
        assert!(refusal.contains("256 open files are allowed and at least 450 needed"), "{refusal}");
    }

    #[test]
    fn the_soft_limit_of_files_is_raised_to_the_hard_one() {
        let raised = raise_open_files().unwrap();
        let (soft, hard) = rlimit(libc::RLIMIT_NOFILE).unwrap();
        assert_eq!((soft, hard), (raised, raised));
    }

    #[test]
    fn little_locked_memory_is_refused() {
        assert_eq!(enough_memlock(None).unwrap(), None);
        assert_eq!(enough_memlock(Some(MEMLOCK_MIN)).unwrap(), Some(MEMLOCK_MIN));
        let refusal = enough_memlock(Some(65_536)).unwrap_err().to_string();
        assert!(refusal.contains("65536 bytes of locked memory") && refusal.contains("LimitMEMLOCK="), "{refusal}");
        raise_memlock().unwrap();
        let (soft, hard) = rlimit(libc::RLIMIT_MEMLOCK).unwrap();
        assert_eq!(soft, hard);
    }

    #[test]
    fn refusals_of_io_uring_are_told_apart() {
        let system = |io_uring_disabled, seccomp, memlock| System {
            release: "6.1.0".to_owned(),
            io_uring_disabled,
            seccomp,
            memlock,
        };
        let rows = [
            (libc::ENOSYS, system(None, false, None), "this kernel (6.1.0) has no io_uring"),
            (libc::EPERM, system(Some(2), true, None), "io_uring_disabled = 2"),
            (libc::EPERM, system(Some(1), false, None), "io_uring_disabled = 1"),
            // Both may be the cause. A container's profile is the more likely one.
            (libc::EPERM, system(Some(1), true, None), "seccomp=unconfined"),
            (libc::EPERM, system(Some(0), true, None), "seccomp=unconfined"),
            (libc::EPERM, system(None, true, None), "seccomp=unconfined"),
            (libc::EACCES, system(None, false, None), "a security module"),
            (libc::ENOMEM, system(None, false, Some(65_536)), "65536 bytes allowed"),
            (libc::ENOMEM, system(None, false, None), "does not work here"),
            (libc::EINVAL, system(None, false, None), "does not work here"),
        ];
        for (errno, system, part) in rows {
            let message = refused(io::Error::from_raw_os_error(errno), &system).to_string();
            assert!(message.contains(part), "{message}");
        }
        let lacking = check_opcodes(|code| code != opcode::Statx::CODE, "5.5.0".to_owned()).unwrap_err().to_string();
        assert_eq!(lacking, "this kernel's io_uring (5.5.0) lacks STATX; run Linux 5.19 or newer");
        check_opcodes(|_| true, String::new()).unwrap();
    }

    #[test]
    fn bytes_are_told_in_round_numbers() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (GIB, "1 GiB"),
            (11 * GIB + GIB / 2, "11.5 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
