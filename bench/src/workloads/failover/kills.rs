//! The kills of a run, one after the other: each waits until the broker of the one before is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::clock;
use crate::error::AnyError;
use crate::load::window::Window;
use crate::options::workloads::FailoverOptions;
use crate::workloads::failover::client::{Acked, describe};
use crate::workloads::failover::cluster::Cluster;

/// How long the brokers may take to acknowledge records after a kill, and replicas to be in sync after a restart.
const CATCH_UP: Duration = Duration::from_secs(120);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// A killed broker stays away for this time after the others have taken over.
const AWAY: Duration = Duration::from_millis(500);

/// State of the broker that was killed last.
enum Victim {
    /// No broker was killed yet, or the last one is back.
    None,
    /// No record that was sent after `at_ns` is acknowledged yet.
    Killed { node: i32, at_ns: u64 },
    /// The other brokers have taken over. Another thread restarts the broker and sets `back` when all replicas are in
    /// sync, or when it fails.
    Returning { back: Arc<AtomicBool>, thread: thread::JoinHandle<Result<Cluster, AnyError>> },
}

pub struct Kills<'a> {
    options: &'a FailoverOptions,
    bootstrap: &'a [String],
    window: Window,
    /// `None` while a broker returns: the thread that restarts it has the cluster.
    cluster: Option<Cluster>,
    victim: Victim,
    count: usize,
    pub gaps_ms: Vec<f64>,
}

impl<'a> Kills<'a> {
    pub fn new(options: &'a FailoverOptions, cluster: Cluster, bootstrap: &'a [String], window: Window) -> Kills<'a> {
        let (cluster, victim) = (Some(cluster), Victim::None);
        Kills { options, bootstrap, window, cluster, victim, count: 0, gaps_ms: Vec::new() }
    }

    pub fn are_over(&self) -> bool {
        self.count == self.options.kills && matches!(self.victim, Victim::None)
    }

    /// Kills the leader, if the next kill is due.
    pub fn kill_if_due(&mut self, leader: Option<i32>, now_ns: u64) -> Result<(), AnyError> {
        if self.count == self.options.kills || !matches!(self.victim, Victim::None) || now_ns < self.next_ns() {
            return Ok(());
        }
        if let (Some(cluster), Some(node)) = (self.cluster.as_mut(), leader) {
            let at_ns = clock::now_ns();
            cluster.kill(node).map_err(|e| format!("cannot kill broker {node}: {e}"))?;
            self.count += 1;
            self.victim = Victim::Killed { node, at_ns };
        }
        Ok(())
    }

    /// When the next kill is due.
    fn next_ns(&self) -> u64 {
        let every_ns = self.options.run.duration.as_nanos() as u64 / self.options.kills as u64;
        self.window.measured_from_ns + every_ns * self.count as u64
    }

    /// Follows the last kill: measures its gap by the records that were acknowledged by `now_ns`, then brings its
    /// broker back.
    pub fn follow(&mut self, acked: Option<&Acked>, now_ns: u64) -> Result<(), AnyError> {
        match self.victim {
            Victim::Killed { node, at_ns } if now_ns - at_ns > CATCH_UP.as_nanos() as u64 => {
                let seconds = CATCH_UP.as_secs();
                let why = format!("no record was acknowledged within {seconds} s after broker {node} was killed");
                return Err(why.into());
            }
            Victim::Killed { node, at_ns } if acked.is_some_and(|batch| batch.sent_ns > at_ns) => {
                let gap_ms = (now_ns - at_ns) as f64 / 1e6;
                eprintln!("broker {node} killed, the next acknowledgement after {gap_ms:.1} ms");
                self.gaps_ms.push(gap_ms);
                let cluster = self.cluster.take().expect("no broker is returning");
                self.victim = bring_back(cluster, node, self.bootstrap, &self.options.topic);
            }
            Victim::Returning { ref back, .. } if back.load(Ordering::Acquire) => {
                if let Victim::Returning { thread, .. } = std::mem::replace(&mut self.victim, Victim::None) {
                    self.cluster = Some(thread.join().map_err(|_| "the thread that restarts a broker panicked")??);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Restarts a broker on another thread and waits there until all replicas are in sync. The producer continues
/// meanwhile.
fn bring_back(mut cluster: Cluster, node: i32, bootstrap: &[String], topic: &str) -> Victim {
    let back = Arc::new(AtomicBool::new(false));
    let (done, bootstrap, topic) = (back.clone(), bootstrap.to_vec(), topic.to_owned());
    let thread = thread::spawn(move || {
        thread::sleep(AWAY);
        let result = cluster.restart(node).and_then(|()| await_in_sync(&bootstrap, &topic));
        done.store(true, Ordering::Release);
        result.map(|()| cluster)
    });
    Victim::Returning { back, thread }
}

fn await_in_sync(bootstrap: &[String], topic: &str) -> Result<(), AnyError> {
    let give_up_ns = clock::now_ns() + CATCH_UP.as_nanos() as u64;
    while clock::now_ns() < give_up_ns {
        if describe(bootstrap, topic).is_some_and(|partition| partition.in_sync == partition.replicas) {
            return Ok(());
        }
        thread::sleep(ASK_AGAIN);
    }
    let seconds = CATCH_UP.as_secs();
    Err(format!("not all replicas of {topic} are in sync {seconds} s after a broker came back").into())
}
