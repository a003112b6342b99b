//! Clients change metadata while brokers of a cluster die, stand still, are cut off or lose their disks: what was acked stays, and all
//! brokers agree.
//!
//! `CLUSTER_ROUNDS` sets the number of faults (10 by default: each kind once), `CLUSTER_SEED` repeats the choices of a run.

mod support;

use std::time::Duration;

use fastrand::Rng;

use support::cluster::Cluster;
use support::metadata_clients::{Clients, converged};
use support::proxy::Mode;

const BROKERS: usize = 3;
const CLIENTS: usize = 3;
/// Changes that are acked before and after each fault, at least.
const ACKS: usize = 10;
/// Longer than an election takes.
const CUT: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill,
    KillLeader,
    PauseShort,
    PauseLong,
    CutBroken,
    CutSilent,
    CutOneWay,
    CutLeader,
    EmptyDisk,
    RollingRestart,
}

const FAULTS: [Fault; 10] = [
    Fault::Kill,
    Fault::KillLeader,
    Fault::PauseShort,
    Fault::PauseLong,
    Fault::CutBroken,
    Fault::CutSilent,
    Fault::CutOneWay,
    Fault::CutLeader,
    Fault::EmptyDisk,
    Fault::RollingRestart,
];

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} = '{value}': not a number")))
}

/// Makes it happen, and undoes it. Two of three brokers must go on meanwhile, where two are left to.
fn happen(fault: Fault, cluster: &mut Cluster, clients: &Clients, rng: &mut Rng) {
    let leader = cluster.leader();
    let any = rng.usize(..BROKERS);
    let other = (any + 1 + rng.usize(..BROKERS - 1)) % BROKERS;
    match fault {
        Fault::Kill | Fault::KillLeader => {
            let i = if matches!(fault, Fault::KillLeader) { leader } else { any };
            cluster.kill9(i);
            clients.wait_for_acks(ACKS);
            cluster.begin(i);
        }
        Fault::PauseShort => cluster.pause(any, Duration::from_secs(2)),
        Fault::PauseLong => cluster.pause(leader, Duration::from_secs(10)),
        Fault::CutBroken | Fault::CutSilent | Fault::CutLeader => {
            let i = if matches!(fault, Fault::CutLeader) { leader } else { any };
            let mode = if matches!(fault, Fault::CutBroken) { Mode::Broken } else { Mode::Silent };
            cluster.set_all_ways(i, mode);
            std::thread::sleep(CUT);
            clients.wait_for_acks(ACKS);
            cluster.set_all_ways(i, Mode::Open);
        }
        Fault::CutOneWay => {
            cluster.set_way(any, other, Mode::Silent);
            std::thread::sleep(CUT);
            clients.wait_for_acks(ACKS);
            cluster.set_way(any, other, Mode::Open);
        }
        Fault::EmptyDisk => {
            cluster.kill9(any);
            cluster.empty_disk(any);
            cluster.begin(any);
        }
        Fault::RollingRestart => {
            for i in 0..BROKERS {
                cluster.stop(i);
                cluster.begin(i);
            }
        }
    }
}

#[test]
fn what_was_acked_survives_every_fault_and_all_brokers_agree() {
    let rounds = env("CLUSTER_ROUNDS").unwrap_or(FAULTS.len() as u64);
    let seed = env("CLUSTER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CLUSTER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let mut cluster = Cluster::start(BROKERS, &[]);
    let clients = Clients::start(&cluster.bootstraps(), CLIENTS, &mut rng);
    let mut order = FAULTS;
    for round in 0..rounds as usize {
        if round % order.len() == 0 {
            rng.shuffle(&mut order);
        }
        let fault = order[round % order.len()];
        println!("round {round}: {fault:?}");
        clients.wait_for_acks(ACKS);
        happen(fault, &mut cluster, &clients, &mut rng);
        clients.wait_for_acks(ACKS);
    }
    let history = clients.stop();
    let shown = converged(&cluster);
    let wrong = history.check(&shown);
    assert!(wrong.is_empty(), "CLUSTER_SEED={seed}: {}", wrong.join("\n"));
}
