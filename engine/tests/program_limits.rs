//! The program on a system that grants little: no io_uring, few files, little locked memory, one CPU.

#[path = "support/program.rs"]
mod program;

use std::{io, os::unix::process::CommandExt as _, process::Command};

use program::{Broker, millrace, output};

/// The exit status of a broker to which the system grants too little.
const LIMITS: Option<i32> = Some(6);

/// Runs a closure in the child, after fork and before exec.
fn in_child(command: &mut Command, change: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: the closures below make plain system calls on memory that exists before the fork. They neither allocate
    // nor take locks.
    unsafe { command.pre_exec(change) };
}

fn checked(status: i32) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a seccomp filter that answers `io_uring_setup` with `errno`, as container profiles do.
fn refuse_io_uring(errno: i32) -> io::Result<()> {
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut filter = [
        statement(LOAD_NUMBER, 0),
        libc::sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: 1, k: libc::SYS_io_uring_setup as u32 },
        statement(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(RETURN, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain flags.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the program points to a live array of the given length. The kernel copies it.
    checked(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) })
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the call reads a live struct.
    checked(unsafe { libc::setrlimit(resource, &raw const limit) })
}

#[test]
fn io_uring_that_is_refused_is_found_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    for (errno, part) in [
        (libc::EPERM, "a seccomp profile refuses io_uring; allow io_uring_setup"),
        (libc::ENOSYS, "has no io_uring, or a sandbox hides it; run Linux"),
    ] {
        let mut command = millrace(&[
            "--kafka-addr",
            "127.0.0.1:0",
            "--peer-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
            "--data-dir",
        ]);
        in_child(command.arg(&data_dir), move || refuse_io_uring(errno));
        let (code, stdout, stderr) = output(&mut command);
        assert_eq!((code, stdout.as_str()), (LIMITS, ""), "{stderr}");
        assert!(stderr.starts_with("millrace: ") && stderr.contains(part), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "one line, no backtrace: {stderr}");
    }
    assert!(!data_dir.exists(), "nothing was created");
}

#[test]
fn too_low_limits_are_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (resource, most, parts) in [
        (libc::RLIMIT_NOFILE, 100, ["100 open files are allowed", "ulimit -Hn"]),
        (libc::RLIMIT_MEMLOCK, 65_536, ["65536 bytes of locked memory are allowed", "ulimit -Hl"]),
    ] {
        let mut command = millrace(&[
            "--kafka-addr",
            "127.0.0.1:0",
            "--peer-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
            "--data-dir",
        ]);
        in_child(command.arg(dir.path().join("data")), move || limit(resource, most));
        let (code, _, stderr) = output(&mut command);
        assert_eq!(code, LIMITS);
        assert!(parts.iter().all(|part| stderr.contains(part)), "{stderr}");
    }
}

#[test]
fn it_serves_with_little_and_warns() {
    let dir = tempfile::tempdir().unwrap();
    let little = |command: &mut Command| {
        in_child(command, || {
            limit(libc::RLIMIT_NOFILE, 4096)?;
            limit(libc::RLIMIT_MEMLOCK, 512 << 10)?;
            // SAFETY: a zeroed set is a valid value. The calls read and fill it.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                checked(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set))?;
                let first = (0..libc::CPU_SETSIZE as usize).find(|&cpu| libc::CPU_ISSET(cpu, &set)).unwrap_or(0);
                libc::CPU_ZERO(&mut set);
                libc::CPU_SET(first, &mut set);
                checked(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))
            }
        });
    };
    let broker = Broker::start_by(little, dir.path());
    for part in [
        "cores      1, on CPU ",
        "only 4096 files may be open",
        "at most 1464 clients can connect",
        "at most 1463 segment files",
    ] {
        assert!(broker.banner.contains(part), "{}", broker.banner);
    }
    assert_eq!(broker.topic(&["create", "small"]).0, Some(0));
    assert_eq!(broker.stop().0, Some(0));
}
