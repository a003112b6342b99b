//! Brokers that the harness itself starts on this machine and stops at the end. They get free ports and data
//! directories of their own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use net::peer::auth::{SECRET_FILE, Secret};

use crate::brokers::orphans;
use crate::error::AnyError;
use crate::machine::environment;

/// How long a broker may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long brokers may take to stop before the harness kills them.
const END_PATIENCE: Duration = Duration::from_secs(20);
const MEMORY_MIN_BYTES: u64 = 64 << 20;

/// One or more brokers that form a cluster. Dropping this stops them and deletes their data.
#[derive(Debug)]
pub struct Local {
    dir: Scratch,
    binary: PathBuf,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    kafka: SocketAddr,
    peer: SocketAddr,
    admin: SocketAddr,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

/// A directory that is deleted when this is dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(parent: &Path, name: &str) -> io::Result<Scratch> {
        let dir = parent.join(format!("{name}-{}-{}", std::process::id(), crate::clock::now_ns()));
        fs::create_dir_all(&dir)?;
        Ok(Scratch(dir))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A directory that can't be removed stays; a destructor has nobody to report the error to.
        _ = fs::remove_dir_all(&self.0);
    }
}

impl Local {
    /// Starts `count` brokers and waits until all of them are ready. The brokers share `cpus` evenly.
    pub fn start(binary: &Path, parent: &Path, count: usize, cpus: &[usize]) -> Result<Local, AnyError> {
        assert!(count > 0 && !cpus.is_empty(), "{count} brokers on CPUs {cpus:?}");
        let dir = Scratch::new(parent, "millrace-bench-cluster")
            .map_err(|e| format!("cannot create a directory in {}: {e}; choose a --disk-dir", parent.display()))?;
        let addrs = free_addrs(count * 3)?;
        let ports: Vec<&[SocketAddr]> = addrs.chunks(3).collect();
        let seed = |(n, ports): (usize, &&[SocketAddr])| format!("{}@{}", n + 1, ports[1]);
        let seeds: Vec<String> = ports.iter().enumerate().map(seed).collect();
        let secret = dir.path().join(SECRET_FILE);
        Secret::read_or_make(&secret)?;
        let mut local = Local { dir, binary: binary.to_owned(), brokers: Vec::new() };
        for (n, ports) in ports.iter().enumerate() {
            let path = |name: String| local.dir.path().join(name);
            let mut arguments: Vec<String> = vec!["serve".into(), "--node-id".into(), (n + 1).to_string()];
            arguments.extend(["--data-dir".into(), path(format!("broker-{}", n + 1)).display().to_string()]);
            for (option, addr) in ["--kafka-addr", "--peer-addr", "--admin-addr"].into_iter().zip(ports.iter()) {
                arguments.extend([option.into(), addr.to_string()]);
            }
            arguments.extend(["--cluster-secret-file".into(), secret.display().to_string()]);
            arguments.extend(["--cores".into(), share_of(cpus, n, count)]);
            let memory = (environment::memory_bytes() / 2 / count as u64).max(MEMORY_MIN_BYTES);
            arguments.extend(["--set".into(), format!("memory.budget.bytes={memory}")]);
            if count > 1 {
                arguments.extend(["--seeds".into(), seeds.join(",")]);
            }
            let log = path(format!("broker-{}.log", n + 1));
            local.brokers.push(Broker {
                kafka: ports[0],
                peer: ports[1],
                admin: ports[2],
                arguments,
                log,
                child: None,
            });
        }
        for node in 1..=count {
            local.spawn(node)?;
        }
        for node in 1..=count {
            local.await_ready(node)?;
        }
        Ok(local)
    }

    /// The Kafka addresses of all brokers.
    pub fn bootstrap(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.kafka.to_string()).collect()
    }

    /// The peer address of a broker, for other brokers and tools.
    pub fn peer(&self, node: usize) -> SocketAddr {
        self.brokers[node - 1].peer
    }

    /// The admin addresses of all brokers.
    pub fn admin(&self) -> Vec<String> {
        self.brokers.iter().map(|broker| broker.admin.to_string()).collect()
    }

    /// A broker's peer address and the file of the cluster's secret, as options of a workload.
    pub fn peer_options(&self, node: usize) -> String {
        format!("{} --secret-file {}", self.peer(node), self.dir.path().join(SECRET_FILE).display())
    }

    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends SIGKILL. Returns before the process is gone.
    pub fn kill(&mut self, node: usize) -> io::Result<()> {
        self.brokers[node - 1].child.as_mut().map_or(Ok(()), Child::kill)
    }

    /// Starts a broker on its own data, for the first time or after it was killed.
    pub fn spawn(&mut self, node: usize) -> Result<(), AnyError> {
        let broker = &mut self.brokers[node - 1];
        // Wait until the killed process is gone: its ports are free only then.
        broker.child.take().map(|mut killed| killed.wait()).transpose()?;
        let log = OpenOptions::new().create(true).append(true).open(&broker.log)?;
        let mut command = Command::new(&self.binary);
        // The environment of the person who runs this must not configure the broker under test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MILLRACE_")) {
            command.env_remove(name);
        }
        command.args(&broker.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = orphans::spawn(command).map_err(|e| format!("cannot start {}: {e}", self.binary.display()))?;
        broker.child = Some(child);
        Ok(())
    }

    pub fn await_ready(&mut self, node: usize) -> Result<(), AnyError> {
        let give_up = Instant::now() + PATIENCE;
        let broker = &mut self.brokers[node - 1];
        loop {
            if is_ready(broker.admin) {
                return Ok(());
            }
            if let Some(status) = broker.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(format!("broker {node} has ended ({status}); its log:\n{}", end_of(&broker.log)).into());
            }
            if Instant::now() >= give_up {
                let seconds = PATIENCE.as_secs();
                return Err(format!(
                    "broker {node} does not serve after {seconds} s; its log:\n{}",
                    end_of(&broker.log)
                )
                .into());
            }
            thread::sleep(ASK_AGAIN);
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let mut children: Vec<Child> = self.brokers.iter_mut().filter_map(|broker| broker.child.take()).collect();
        for child in &children {
            // SAFETY: kill takes two numbers. Nobody has waited for the process yet, so its id still belongs to it.
            unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        }
        let give_up = Instant::now() + END_PATIENCE;
        for child in &mut children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < give_up {
                thread::sleep(ASK_AGAIN);
            }
            // Killing a process that has ended has no effect.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// Free ports on loopback. All are held until the last one is known, so that they differ.
fn free_addrs(count: usize) -> io::Result<Vec<SocketAddr>> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect::<io::Result<_>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// Broker `n`'s share of the CPUs, in the form of --cores. If there are fewer CPUs than brokers, several brokers
/// share one.
fn share_of(cpus: &[usize], n: usize, count: usize) -> String {
    let share = cpus.len() / count;
    let own = if share == 0 { &cpus[n % cpus.len()..][..1] } else { &cpus[n * share..][..share] };
    own.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Asks the admin port, as a load balancer would.
pub fn is_ready(admin: SocketAddr) -> bool {
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&admin, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn end_of(log: &Path) -> String {
    let mut text = String::new();
    // A log that can't be read shows as empty.
    _ = File::open(log).and_then(|mut file| file.read_to_string(&mut text));
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_share_the_cpus_evenly() {
        let shares = |cpus: &[usize], count| -> Vec<String> { (0..count).map(|n| share_of(cpus, n, count)).collect() };
        assert_eq!(shares(&[0, 1], 1), ["0,1"]);
        assert_eq!(shares(&[4, 5], 3), ["4", "5", "4"]);
        assert_eq!(shares(&[0, 1, 2, 3, 4, 5, 6], 3), ["0,1", "2,3", "4,5"]);
    }

    #[test]
    fn free_ports_differ() {
        let mut addrs = free_addrs(20).unwrap();
        addrs.sort_unstable();
        addrs.dedup();
        assert_eq!(addrs.len(), 20);
    }
}
