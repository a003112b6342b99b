//! Clients that send more than the broker can store, and give up: the broker continues for all others.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use net::errors::{self, ErrorCode};

use support::broker::Broker;
use support::cluster::wait_until;
use support::wire::{self, OnlyMember};

const TOPIC: &str = "overloaded";
const GROUP: &str = "assigned";
/// The partition of the patient client. Each other client has one of its own.
const PATIENT: i32 = 12;
/// Number of batches that must be acknowledged to the patient client while the others continue.
const PATIENT_BATCHES: usize = 30;

/// Sends large batches with a timeout of one millisecond each, while others wait for the same ring.
fn send_impatiently(broker: &Broker, partition: i32, over: &AtomicBool) {
    let mut client = wire::connect(broker);
    let records = wire::batch(&[&vec![b'x'; 1_000_000]]);
    while !over.load(Ordering::Relaxed) {
        let mut request = wire::produce_request(TOPIC, partition, -1, records.clone());
        request.timeout_ms = 1;
        let answer = client.produce(request).expect("the broker answers");
        match errors::check(answer.responses[0].partition_responses[0].error_code) {
            Ok(()) | Err(ErrorCode::RequestTimedOut) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Ends the impatient clients, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn requests_that_time_out_while_the_ring_is_full_hold_nobody_up() {
    let broker = Broker::start_with(&[
        "--cores",
        "0",
        "--set",
        "wal.ring.bytes=16MiB",
        "--set",
        "group.initial.rebalance.delay.ms=0",
    ]);
    let created = wire::create_topic(&mut wire::connect(&broker), TOPIC, PATIENT + 1, 1, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()));
    wire::await_coordinator(&mut wire::connect(&broker), GROUP);
    let mut member = OnlyMember::new(GROUP);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&over);
        for partition in 0..PATIENT {
            let (broker, over) = (&broker, &over);
            scope.spawn(move || send_impatiently(broker, partition, over));
        }
        let given_up = || broker.metric("millrace_admission_timed_out_total");
        wait_until("ring that is full", || given_up() > 0.0);
        let mut client = wire::connect(&broker);
        let before = given_up();
        let mut sent = 0;
        // Until others have timed out meanwhile, too.
        while sent < PATIENT_BATCHES || given_up() == before {
            let answer = wire::produce(&mut client, TOPIC, PATIENT, wire::batch(&[b"patient"]));
            assert_eq!(errors::check(answer.error_code), Ok(()), "batch {sent}");
            sent += 1;
            assert_eq!(wire::commit(&mut client, "committer", TOPIC, sent as i64), Ok(()), "commit {sent}");
            // The assignment is almost as large as the impatient clients' batches.
            assert_eq!(member.assign(&mut client, 900_000), Ok(()), "assignment {sent}");
        }
    });
    wait_until("line without abandoned requests", || broker.metric("millrace_admission_waiting") == 0.0);
}
