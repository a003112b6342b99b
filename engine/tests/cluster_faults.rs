//! Clients change metadata while brokers of a cluster die, pause, are cut off, or have their disks emptied or filled.
//! Acknowledged changes stay, and all brokers agree.
//!
//! `CLUSTER_ROUNDS` sets the number of faults (by default each kind once). `CLUSTER_SEED` repeats the choices of a run.

mod support;

use fastrand::Rng;

use support::cluster::Cluster;
use support::faults::{FAULTS, env, happen};
use support::metadata_clients::{Clients, converged};

const BROKERS: usize = 3;
/// While the metadata leader does not reach some broker, changes that go to that broker, or are placed on it, wait for
/// seconds. With only three clients, there were minutes with fewer than ten acknowledgements.
const CLIENTS: usize = 9;
/// Minimum number of acknowledged changes before and after each fault.
const ACKS: usize = 10;
/// Far more than a broker writes here. One of the brokers has a file system of its own, which a fault fills up.
const DISK_BYTES: u64 = 4 << 30;

#[test]
fn acknowledged_metadata_survives_every_fault_and_all_brokers_agree() {
    let rounds = env("CLUSTER_ROUNDS").unwrap_or(FAULTS.len() as u64);
    let seed = env("CLUSTER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CLUSTER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let small = [rng.usize(..BROKERS)];
    let mut cluster = Cluster::start_on_small_disks(BROKERS, &[], &small, DISK_BYTES);
    let clients = Clients::start(&cluster.bootstraps(), CLIENTS, &mut rng);
    let mut order = FAULTS;
    for round in 0..rounds as usize {
        if round % order.len() == 0 {
            rng.shuffle(&mut order);
        }
        let fault = order[round % order.len()];
        println!("round {round}: {fault:?}");
        clients.wait_for_acks(ACKS);
        let leader = cluster.leader();
        happen(fault, &mut cluster, leader, &mut rng, &|| clients.wait_for_acks(ACKS));
        clients.wait_for_acks(ACKS);
    }
    let history = clients.stop();
    let shown = converged(&cluster);
    let wrong = history.check(&shown);
    assert!(wrong.is_empty(), "CLUSTER_SEED={seed}: {}", wrong.join("\n"));
}
