//! Clients that send more than the broker can store, and give up: the broker continues for all others.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use net::StrBytes;
use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use net::messages::join_group_request::JoinGroupRequestProtocol;
use net::messages::sync_group_request::SyncGroupRequestAssignment;
use net::messages::{GroupId, JoinGroupRequest, SyncGroupRequest};

use support::broker::Broker;
use support::cluster::wait_until;
use support::wire;

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

/// The only member of a group. Its assignments are almost as large as the impatient clients' batches.
#[derive(Default)]
struct Member {
    id: StrBytes,
}

impl Member {
    /// Joins the group, which starts a new generation, and stores an assignment.
    fn assign(&mut self, client: &mut Client) {
        let group = || GroupId(wire::text(GROUP));
        let protocol = JoinGroupRequestProtocol::default().with_name(wire::text("any"));
        let mut join = JoinGroupRequest::default()
            .with_group_id(group())
            .with_protocol_type(wire::text("consumer"))
            .with_protocols(vec![protocol])
            .with_session_timeout_ms(60_000)
            .with_rebalance_timeout_ms(60_000)
            .with_member_id(self.id.clone());
        let mut joined = client.call(join.clone()).expect("JoinGroup is answered");
        if errors::check(joined.error_code) == Err(ErrorCode::MemberIdRequired) {
            self.id = joined.member_id;
            join.member_id = self.id.clone();
            joined = client.call(join).expect("JoinGroup is answered");
        }
        assert_eq!(errors::check(joined.error_code), Ok(()));
        let assignment = SyncGroupRequestAssignment::default()
            .with_member_id(self.id.clone())
            .with_assignment(vec![b'x'; 900_000].into());
        let sync = SyncGroupRequest::default()
            .with_group_id(group())
            .with_generation_id(joined.generation_id)
            .with_member_id(self.id.clone())
            .with_protocol_type(Some(wire::text("consumer")))
            .with_protocol_name(Some(wire::text("any")))
            .with_assignments(vec![assignment]);
        let synced = client.call(sync).expect("SyncGroup is answered");
        assert_eq!(errors::check(synced.error_code), Ok(()), "generation {}", joined.generation_id);
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
    let mut member = Member::default();
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
            member.assign(&mut client);
        }
    });
    wait_until("line without abandoned requests", || broker.metric("millrace_admission_waiting") == 0.0);
}
