//! Faults of a cluster of three brokers, for tests whose clients must continue through them.

use std::thread;
use std::time::Duration;

use fastrand::Rng;

use super::cluster::Cluster;
use super::proxy::Mode;

/// Longer than an election takes.
const CUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
pub enum Fault {
    Kill,
    KillLeader,
    PauseShort,
    PauseLong,
    CutBroken,
    CutSilent,
    CutOneWay,
    CutLeader,
    EmptyDisk,
    /// Fills the disk of a broker that has a disk of its own, if there is one.
    FullDisk,
    RollingRestart,
    /// Until they are back, there is no majority.
    KillTwo,
    KillAll,
}

/// The faults during which two of three brokers continue.
pub const FAULTS: [Fault; 11] = [
    Fault::Kill,
    Fault::KillLeader,
    Fault::PauseShort,
    Fault::PauseLong,
    Fault::CutBroken,
    Fault::CutSilent,
    Fault::CutOneWay,
    Fault::CutLeader,
    Fault::EmptyDisk,
    Fault::FullDisk,
    Fault::RollingRestart,
];

/// Causes the fault, and undoes it. `leader`: the broker that a fault of the leader affects. `goes_on` returns once the
/// clients have made progress, for which two of three brokers must suffice.
pub fn happen(fault: Fault, cluster: &mut Cluster, leader: usize, rng: &mut Rng, goes_on: &dyn Fn()) {
    let brokers = cluster.len();
    let any = rng.usize(..brokers);
    let other = (any + 1 + rng.usize(..brokers - 1)) % brokers;
    match fault {
        Fault::Kill | Fault::KillLeader => {
            let i = if matches!(fault, Fault::KillLeader) { leader } else { any };
            cluster.kill9(i);
            goes_on();
            cluster.begin(i);
        }
        Fault::PauseShort => cluster.pause(any, Duration::from_secs(2)),
        Fault::PauseLong => cluster.pause(leader, Duration::from_secs(10)),
        Fault::CutBroken | Fault::CutSilent | Fault::CutLeader => {
            let i = if matches!(fault, Fault::CutLeader) { leader } else { any };
            let mode = if matches!(fault, Fault::CutBroken) { Mode::Broken } else { Mode::Silent };
            cluster.set_all_ways(i, mode);
            thread::sleep(CUT);
            goes_on();
            cluster.set_all_ways(i, Mode::Open);
        }
        Fault::CutOneWay => {
            cluster.set_way(any, other, Mode::Silent);
            thread::sleep(CUT);
            goes_on();
            cluster.set_way(any, other, Mode::Open);
        }
        Fault::EmptyDisk => {
            cluster.kill9(any);
            cluster.empty_disk(any);
            cluster.begin(any);
        }
        Fault::FullDisk => {
            let Some(i) = (0..brokers).find(|i| cluster.broker(*i).small_disk().is_some()) else { return };
            cluster.broker(i).small_disk().expect("just seen").fill();
            thread::sleep(CUT);
            goes_on();
            // If the broker dies, it comes back with the data that it has now.
            let dies = rng.bool();
            if dies {
                cluster.kill9(i);
            }
            cluster.broker(i).small_disk().expect("just seen").make_room();
            if dies {
                cluster.begin(i);
            }
        }
        Fault::KillTwo => {
            cluster.kill9(any);
            cluster.kill9(other);
            thread::sleep(Duration::from_millis(rng.u64(..3000)));
            cluster.spawn(other);
            cluster.begin(any);
            cluster.wait_until_serving(other);
        }
        Fault::KillAll => {
            (0..brokers).for_each(|i| cluster.kill9(i));
            (0..brokers).for_each(|i| cluster.spawn(i));
            (0..brokers).for_each(|i| cluster.wait_until_serving(i));
        }
        Fault::RollingRestart => {
            for i in 0..brokers {
                cluster.stop(i);
                cluster.begin(i);
            }
        }
    }
}

/// A number from an environment variable.
pub fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} = '{value}': not a number")))
}
