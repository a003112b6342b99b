//! Idempotent producers write with acks=all while the broker is killed at random moments and restarted. No acknowledged
//! record is lost, duplicated or reordered, and records that a consumer saw stay.
//!
//! `CRASH_ROUNDS` sets the number of kills (5 by default). `CRASH_SEED` repeats the choices of a run.

mod support;

use std::thread;
use std::time::Duration;

use support::broker::Broker;
use support::clients;
use support::faults::env;
use support::ledger::{Ledger, TOPIC, judge};

const PARTITIONS: i32 = 3;
const PRODUCERS: u32 = 2;

#[test]
fn acknowledged_records_survive_kill_9() {
    let rounds = env("CRASH_ROUNDS").unwrap_or(5);
    let seed = env("CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("to repeat the choices of this run: CRASH_ROUNDS={rounds} CRASH_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);

    // The ring is small, so that it is recycled many times between two kills.
    let mut broker = Broker::start_with(&["--set", "wal.ring.bytes=16777216"]);
    clients::create_topic(&broker, TOPIC, PARTITIONS);
    let ledger = Ledger::new(PARTITIONS);
    let clients = ledger.begin(&clients::config(&broker), PRODUCERS);

    for round in 0..rounds {
        // Producers and consumer have found the broker again. The moment of the kill is drawn as a number of
        // acknowledgements, so that every round makes progress even on a slow machine.
        let before = ledger.counts();
        ledger.wait_until("sight of a record", |now| now.seen > before.seen);
        let acks = ledger.counts().acks + random.u64(1..2000);
        ledger.wait_until("ack", |now| now.acks >= acks);
        broker.kill();
        if random.u8(..4) == 0 {
            // A second crash, at some point during the recovery from the first one.
            broker.spawn();
            thread::sleep(Duration::from_micros(random.u64(..50_000)));
            broker.kill();
        }
        broker.begin();
        println!("round {round}: {} records acked, {} seen", ledger.counts().acks, ledger.counts().seen);
    }
    let acks = ledger.counts().acks + 100;
    ledger.wait_until("ack", |now| now.acks >= acks);
    clients.stop();

    // Once on the running broker, once after a clean restart.
    judge(&clients::config(&broker), &ledger);
    broker.restart();
    judge(&clients::config(&broker), &ledger);
    broker.stop();
}
