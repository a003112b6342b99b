//! A `millrace` process with a data directory of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Instant;

use net::peer::auth::{self as peer_auth, Secret};
use tempfile::TempDir;

use super::PATIENCE;
use super::small_disk::SmallDisk;

/// Settings of every broker, unless a test sets others.
const DEFAULTS: [(&str, &str); 3] = [
    // Small, so that many brokers start quickly side by side.
    ("wal.ring.bytes", "67108864"),
    // A group does not wait for a second member.
    ("group.initial.rebalance.delay.ms", "0"),
    // The records' timestamps are older than the default retention.
    ("log.retention.ms", "-1"),
];

/// Lines that the process has printed so far on both streams, and whether more may come.
#[derive(Debug, Default)]
struct Output {
    lines: Mutex<(Vec<String>, usize)>,
    changed: Condvar,
}

impl Output {
    /// Waits for the first line that `wanted` accepts. `None`: both streams have ended without it.
    fn wait_for(&self, wanted: impl Fn(&str) -> bool) -> Option<String> {
        let give_up = Instant::now() + PATIENCE;
        let mut seen = 0;
        let mut guard = self.lines.lock().unwrap();
        loop {
            if let Some(line) = guard.0[seen..].iter().find(|line| wanted(line)) {
                return Some(line.clone());
            }
            seen = guard.0.len();
            let left = give_up.saturating_duration_since(Instant::now());
            if guard.1 == 0 || left.is_zero() {
                return None;
            }
            guard = self.changed.wait_timeout(guard, left).unwrap().0;
        }
    }

    fn collect(self: &Arc<Output>, stream: impl Read + Send + 'static) {
        self.lines.lock().unwrap().1 += 1;
        let output = self.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                output.lines.lock().unwrap().0.push(String::from_utf8_lossy(&line).into_owned());
                output.changed.notify_all();
            }
            output.lines.lock().unwrap().1 -= 1;
            output.changed.notify_all();
        });
    }

    fn text(&self) -> String {
        self.lines.lock().unwrap().0.join("\n")
    }
}

/// The secret of the tests' clusters.
pub const SECRET: &str = "a secret that all brokers of the tests' clusters know";

/// The file that holds the secret: one for all tests of this process. It disappears with the machine's temporary files.
pub fn secret_file() -> String {
    static MADE: OnceLock<String> = OnceLock::new();
    let make = || {
        let file = tempfile::Builder::new().prefix("millrace-secret").tempfile().expect("a temporary file");
        fs::write(file.path(), SECRET).expect("the secret can be written");
        file.into_temp_path().keep().expect("it is kept").display().to_string()
    };
    MADE.get_or_init(make).clone()
}

/// One broker over several lives. It keeps its data directory, its Kafka address and its peer address.
pub struct Broker {
    /// The file system mounted over `data`, if the broker has one of its own.
    disk: Option<SmallDisk>,
    data: TempDir,
    flags: Vec<String>,
    kafka: SocketAddr,
    peer: SocketAddr,
    _reserved: [UnixListener; 2],
    admin: Option<SocketAddr>,
    life: Option<(Child, Arc<Output>)>,
    /// Number of descriptors that the process may have.
    open_files: Option<u64>,
}

impl Broker {
    pub fn start() -> Broker {
        Broker::start_with(&[])
    }

    /// Starts a broker with additional flags of `millrace serve`.
    pub fn start_with(flags: &[&str]) -> Broker {
        let mut broker = Broker::new(flags);
        broker.begin();
        broker
    }

    /// Creates a broker without starting it.
    pub fn new(flags: &[&str]) -> Broker {
        let ((kafka, kafka_reserved), (peer, peer_reserved)) = (restartable_address(), restartable_address());
        Broker {
            disk: None,
            data: tempfile::tempdir().expect("a temporary directory"),
            flags: flags.iter().map(|flag| flag.to_string()).collect(),
            kafka,
            peer,
            _reserved: [kafka_reserved, peer_reserved],
            admin: None,
            life: None,
            open_files: None,
        }
    }

    /// Starts brokers 1, 2, …, which found a cluster together. Returns once all serve.
    pub fn cluster(count: usize) -> Vec<Broker> {
        let mut brokers: Vec<Broker> = (0..count).map(|_| Broker::new(&[])).collect();
        let secret = secret_file();
        let seeds: Vec<String> =
            brokers.iter().enumerate().map(|(at, broker)| format!("{}@{}", at + 1, broker.peer)).collect();
        for (at, broker) in brokers.iter_mut().enumerate() {
            broker.flags = vec![
                format!("--node-id={}", at + 1),
                format!("--seeds={}", seeds.join(",")),
                format!("--cluster-secret-file={secret}"),
            ];
            broker.spawn();
        }
        brokers.iter_mut().for_each(Broker::wait_until_serving);
        brokers
    }

    /// From its next start on, the process may have this number of descriptors (`ulimit -n`).
    pub fn limit_open_files(&mut self, open_files: u64) {
        self.open_files = Some(open_files);
    }

    /// Starts the process without waiting for anything.
    pub fn spawn(&mut self) {
        assert!(self.life.is_none(), "the broker runs already");
        let mut command = match &self.disk {
            Some(disk) => disk.command(&binary()),
            None => Command::new(binary()),
        };
        // Settings in the environment of the person who runs the tests must not affect the tests.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"MILLRACE_")) {
            command.env_remove(name);
        }
        if let Some(open_files) = self.open_files {
            let limit = libc::rlimit { rlim_cur: open_files, rlim_max: open_files };
            // SAFETY: the call reads a live struct.
            let set = move || match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            };
            // SAFETY: between fork and exec, the closure makes one system call and allocates nothing.
            unsafe { command.pre_exec(set) };
        }
        let mut child = command
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data.path())
            .args([
                "--kafka-addr",
                &self.kafka.to_string(),
                "--peer-addr",
                &self.peer.to_string(),
                "--admin-addr",
                "127.0.0.1:0",
            ])
            .args(self.defaults())
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the broker's binary starts");
        let output = Arc::new(Output::default());
        output.collect(child.stdout.take().expect("piped"));
        output.collect(child.stderr.take().expect("piped"));
        self.life = Some((child, output));
    }

    /// Default settings that the test does not set itself.
    fn defaults(&self) -> impl Iterator<Item = String> {
        let given = |name: &str| self.flags.iter().any(|flag| flag.split('=').next() == Some(name));
        let settings = DEFAULTS.into_iter().filter(move |(name, _)| !given(name));
        settings.flat_map(|(name, value)| ["--set".to_owned(), format!("{name}={value}")])
    }

    /// Waits until the broker prints that it serves.
    pub fn wait_until_serving(&mut self) {
        self.wait_for_log("kafka", |line| address_in(line, "kafka").is_some());
        let line = self.wait_for_log("admin", |line| address_in(line, "admin").is_some());
        self.admin = address_in(&line, "admin");
    }

    pub fn begin(&mut self) {
        self.spawn();
        self.wait_until_serving();
    }

    /// Starts the process, which may end by itself before it serves. `Err`: everything that it printed.
    pub fn begin_or_end(&mut self) -> Result<(), String> {
        self.spawn();
        let (child, output) = self.life.as_mut().expect("just spawned");
        if output.wait_for(|line| address_in(line, "admin").is_some()).is_some() {
            self.wait_until_serving();
            return Ok(());
        }
        let output = output.text();
        match child.try_wait() {
            Ok(Some(_)) => self.life = None,
            // The process has closed its streams and is about to end.
            _ => self.kill(),
        }
        Err(output)
    }

    /// Waits for the first line of output in this life that `wanted` accepts. Panics with the output if there is none.
    pub fn wait_for_log(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let (_, output) = self.life.as_ref().expect("the broker runs");
        output
            .wait_for(wanted)
            .unwrap_or_else(|| panic!("no line about {what:?} in the broker's output:\n{}", output.text()))
    }

    pub fn output(&self) -> String {
        self.life.as_ref().map(|(_, output)| output.text()).unwrap_or_default()
    }

    /// SIGKILL: the broker flushes nothing and prints nothing.
    pub fn kill(&mut self) {
        let (mut child, _) = self.life.take().expect("the broker runs");
        child.kill().expect("a running child can be killed");
        child.wait().expect("a killed child ends");
    }

    /// SIGTERM. The process must end with status 0.
    pub fn stop(&mut self) {
        let (status, output) = self.signal_and_wait(libc::SIGTERM);
        assert!(status.success(), "the broker ended with {status} on SIGTERM:\n{output}");
    }

    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        // SAFETY: kill has no memory effects. The child has not been waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "the child can be signalled");
    }

    /// Sends a signal and waits for the end. Returns the status and the whole output.
    pub fn signal_and_wait(&mut self, signal: i32) -> (ExitStatus, String) {
        self.signal(signal);
        self.wait_for_end()
    }

    /// Waits for a process that ends by itself. Returns the status and the whole output.
    pub fn wait_for_end(&mut self) -> (ExitStatus, String) {
        let (mut child, output) = self.life.take().expect("the broker runs");
        let give_up = Instant::now() + PATIENCE;
        // Both streams end with the process.
        output.wait_for(|_| false);
        if Instant::now() >= give_up {
            let _ = child.kill();
            panic!("the broker does not end:\n{}", output.text());
        }
        (child.wait().expect("the child ends"), output.text())
    }

    /// Stops cleanly and starts again on the same data and addresses.
    pub fn restart(&mut self) {
        self.stop();
        self.begin();
    }

    /// Kills the broker with SIGKILL and starts it again.
    pub fn kill_and_begin(&mut self) {
        self.kill();
        self.begin();
    }

    pub fn is_alive(&mut self) -> bool {
        self.life.as_mut().is_some_and(|(child, _)| matches!(child.try_wait(), Ok(None)))
    }

    pub fn kafka(&self) -> SocketAddr {
        self.kafka
    }

    pub fn bootstrap(&self) -> String {
        self.kafka.to_string()
    }

    /// The secret that tools must prove to know.
    pub fn secret(&self) -> Secret {
        let is_given = self.flags.iter().any(|flag| flag.starts_with("--cluster-secret-file"));
        let own = self.data_dir().join(peer_auth::SECRET_FILE);
        if is_given {
            Secret::new(SECRET.as_bytes()).expect("it is long enough")
        } else {
            Secret::read(&own).expect("its own")
        }
    }

    /// The address for other brokers.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Adds flags of `millrace serve`, from the next start on.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| flag.to_string()));
    }

    /// Replaces a setting, from the next start on.
    pub fn set(&mut self, name: &str, value: &str) {
        let setting = format!("{name}=");
        if let Some(at) = self.flags.iter().position(|flag| flag.starts_with(&setting)) {
            self.flags.drain(at - 1..=at);
        }
        self.add_flags(&["--set", &format!("{setting}{value}")]);
    }

    pub fn pid(&self) -> u32 {
        self.life.as_ref().expect("the broker runs").0.id()
    }

    /// Its data directory, as this process sees it.
    pub fn data_dir(&self) -> PathBuf {
        self.disk.as_ref().map_or(self.data.path().to_path_buf(), SmallDisk::path)
    }

    /// Gives a broker that has not been started a file system of its own for its data. `Err`: why that is impossible
    /// here.
    pub fn put_on_small_disk(&mut self, bytes: u64) -> Result<(), String> {
        self.disk = Some(SmallDisk::mount(self.data.path(), bytes)?);
        Ok(())
    }

    pub fn small_disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    /// The address of the admin port.
    pub fn admin(&self) -> SocketAddr {
        self.admin.expect("the broker serves")
    }

    /// Sends `GET path` to the admin port. Returns status and body.
    pub fn admin_get(&self, path: &str) -> (u16, String) {
        let addr = self.admin();
        let mut stream = TcpStream::connect(addr).expect("the admin port accepts");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the admin port answers");
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status line");
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// The value of a counter or gauge, summed over its labels. Panics if `/metrics` lacks it.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, body) = self.admin_get("/metrics");
        assert_eq!(status, 200, "{body}");
        let values: Vec<f64> = body
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        assert!(!values.is_empty(), "no {name} in:\n{body}");
        values.iter().sum()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some((mut child, output)) = self.life.take() {
            let _ = child.kill();
            let _ = child.wait();
            if thread::panicking() {
                eprintln!("--- the broker's output\n{}\n---", output.text());
            }
        }
        // Keeps the data for inspection.
        if thread::panicking() && std::env::var_os("KEEP_DATA").is_some() && self.disk.is_none() {
            self.data.disable_cleanup(true);
            eprintln!("its data is kept in {}", self.data.path().display());
        }
    }
}

/// The binary under test: the one that was built with this test, or the one that `BROKER_BINARY` names.
fn binary() -> OsString {
    std::env::var_os("BROKER_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_millrace").into())
}

/// An address that stays the broker's over restarts, and a name that reserves it. Only one process can have the name at
/// a time, so no test's broker can take the address. The port lies below the range from which the system takes ports
/// for outgoing connections. So no client of another test gets it while the broker is down.
fn restartable_address() -> (SocketAddr, UnixListener) {
    let try_one = |_| {
        let addr = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(10_000..32_000)));
        let name = UnixAddr::from_abstract_name(format!("millrace-test-{addr}")).expect("a short name");
        let reserved = UnixListener::bind_addr(&name).ok()?;
        TcpListener::bind(addr).ok().map(|_| (addr, reserved))
    };
    (0..1000).find_map(try_one).expect("a free port")
}

/// The socket address in a line of the banner, if the line names `what`.
fn address_in(line: &str, what: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(what)?;
    let words = rest.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
    words.filter_map(|word| word.trim_end_matches('.').parse::<SocketAddr>().ok()).find(|addr| addr.port() != 0)
}
