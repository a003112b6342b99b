//! Several `millrace` processes as one cluster. Each broker reaches each other one through a proxy of its own, so that
//! a test can cut every direction separately.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::broker::{Broker, secret_file};
use super::proxy::{Mode, Proxy};
use super::small_disk::not_tested;

/// Interval between two looks at the state of another process.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Brokers are counted from 0 here. Broker `i` has the node id `i + 1`.
pub struct Cluster {
    brokers: Vec<Broker>,
    /// `proxies[i][j]`: the path from `i` to `j`.
    proxies: Vec<Vec<Option<Proxy>>>,
}

impl Cluster {
    /// Starts all brokers and waits until all serve.
    pub fn start(count: usize, flags: &[&str]) -> Cluster {
        Cluster::start_of((0..count).map(|_| Broker::new(flags)).collect())
    }

    /// Like [`Cluster::start`], but the `small` brokers have file systems of their own of `bytes` bytes for their data.
    /// If the kernel does not allow that, the test says so, and these brokers are like the others.
    pub fn start_on_small_disks(count: usize, flags: &[&str], small: &[usize], bytes: u64) -> Cluster {
        let mut brokers: Vec<Broker> = (0..count).map(|_| Broker::new(flags)).collect();
        for i in small {
            if let Err(why) = brokers[*i].put_on_small_disk(bytes) {
                not_tested(&why);
            }
        }
        Cluster::start_of(brokers)
    }

    fn start_of(mut brokers: Vec<Broker>) -> Cluster {
        let count = brokers.len();
        let peers: Vec<SocketAddr> = brokers.iter().map(Broker::peer).collect();
        let way = |from: usize, to: usize| (from != to).then(|| Proxy::to(peers[to]));
        let proxies: Vec<Vec<Option<Proxy>>> =
            (0..count).map(|from| (0..count).map(|to| way(from, to)).collect()).collect();
        for (from, ways) in proxies.iter().enumerate() {
            let seed = |(to, way): (usize, &Option<Proxy>)| {
                format!("{}@{}", to + 1, way.as_ref().map_or(peers[to], Proxy::addr))
            };
            let seeds: Vec<String> = ways.iter().enumerate().map(seed).collect();
            brokers[from].add_flags(&["--node-id", &(from + 1).to_string(), "--seeds", &seeds.join(",")]);
            brokers[from].add_flags(&["--cluster-secret-file", &secret_file()]);
            brokers[from].add_flags(&["--set", "memory.budget.bytes=268435456"]);
        }
        let mut cluster = Cluster { brokers, proxies };
        cluster.brokers.iter_mut().for_each(Broker::spawn);
        cluster.brokers.iter_mut().for_each(Broker::wait_until_serving);
        cluster
    }

    pub fn len(&self) -> usize {
        self.brokers.len()
    }

    pub fn broker(&self, i: usize) -> &Broker {
        &self.brokers[i]
    }

    pub fn bootstraps(&self) -> Vec<String> {
        self.brokers.iter().map(Broker::bootstrap).collect()
    }

    /// SIGKILL: the broker flushes nothing and prints nothing.
    pub fn kill9(&mut self, i: usize) {
        self.brokers[i].kill();
    }

    /// SIGTERM. The process must end with status 0.
    pub fn stop(&mut self, i: usize) {
        self.brokers[i].stop();
    }

    /// Replaces a setting of one broker, from its next start on.
    pub fn set(&mut self, i: usize, name: &str, value: &str) {
        self.brokers[i].set(name, value);
    }

    /// Starts a broker that does not run. `Err`: what it printed before it ended by itself.
    pub fn begin_or_end(&mut self, i: usize) -> Result<(), String> {
        self.brokers[i].begin_or_end()
    }

    /// Starts a broker that does not run, without waiting for it.
    pub fn spawn(&mut self, i: usize) {
        self.brokers[i].spawn();
    }

    pub fn wait_until_serving(&mut self, i: usize) {
        self.brokers[i].wait_until_serving();
    }

    /// Starts a broker that does not run, and waits until it serves.
    pub fn begin(&mut self, i: usize) {
        self.brokers[i].begin();
    }

    /// Pauses a broker with SIGSTOP for this time.
    pub fn pause(&self, i: usize, how_long: Duration) {
        self.brokers[i].signal(libc::SIGSTOP);
        thread::sleep(how_long);
        self.brokers[i].signal(libc::SIGCONT);
    }

    /// Removes all data of a broker, which must not be running.
    pub fn empty_disk(&mut self, i: usize) {
        assert!(!self.brokers[i].is_alive(), "broker {i} runs");
        for entry in fs::read_dir(self.brokers[i].data_dir()).expect("a data directory") {
            let path = entry.expect("a readable directory").path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }

    /// Sets whether messages from `from` to `to` arrive.
    pub fn set_way(&self, from: usize, to: usize, mode: Mode) {
        self.proxies[from][to].as_ref().expect("a way to another broker").set(mode);
    }

    /// Sets both directions between a broker and all others.
    pub fn set_all_ways(&self, i: usize, mode: Mode) {
        for other in (0..self.len()).filter(|other| *other != i) {
            self.set_way(i, other, mode);
            self.set_way(other, i, mode);
        }
    }

    /// Waits until brokers claim to lead the metadata, and returns the one with the newest term.
    pub fn leader(&self) -> usize {
        let mut leader = None;
        wait_until("a leader of the metadata", || {
            let leading = (0..self.len()).filter(|i| self.brokers[*i].metric("millrace_metadata_leads") == 1.0);
            leader = leading.max_by_key(|i| self.brokers[*i].metric("millrace_metadata_term") as u64);
            leader.is_some()
        });
        leader.expect("just found")
    }
}

/// Repeats the check until it holds.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < give_up, "no {what} in {PATIENCE:?}");
        thread::sleep(LOOK_EVERY);
    }
}
