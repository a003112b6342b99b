//! Clients that send more than the broker can store, and give up: the broker continues for all others.

mod support;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

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

/// Slow clients of the admin port that hold connections at a time.
const SLOW: usize = 200;
/// Clients of the Kafka port that hold connections at a time.
const CLIENTS: usize = 300;
/// Clients of the Kafka port that come in each round. As many leave.
const CLIENTS_A_ROUND: usize = 20;
const HEALTH_CHECKS: usize = 100;

/// Holds slow connections to the admin port, and replaces those that the broker closes: silent ones, ones in the middle
/// of a request, ones that do not read a page.
fn hold_admin_connections(addr: SocketAddr, over: &AtomicBool) {
    let connect = |at: usize| {
        let mut stream = TcpStream::connect(addr).expect("the admin port accepts");
        let request = [&b""[..], b"GET /health/li", b"GET /metrics HTTP/1.1\r\n\r\n"][at % 3];
        // The broker may have closed it already.
        let _ = stream.write_all(request);
        stream.set_nonblocking(true).expect("a socket");
        stream
    };
    let mut held: Vec<TcpStream> = (0..SLOW).map(connect).collect();
    while !over.load(Ordering::Relaxed) {
        for (at, stream) in held.iter_mut().enumerate() {
            let is_open = |peeked: io::Result<usize>| match peeked {
                Ok(bytes) => bytes > 0,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            };
            if !is_open(stream.peek(&mut [0])) {
                *stream = connect(at);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Opens connections to the Kafka port, and closes the oldest ones.
fn come_and_go(addr: SocketAddr, over: &AtomicBool, come: &AtomicUsize) {
    let mut open = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        for _ in 0..CLIENTS_A_ROUND {
            open.push_back(TcpStream::connect(addr).expect("the Kafka port accepts"));
        }
        come.fetch_add(CLIENTS_A_ROUND, Ordering::Relaxed);
        while open.len() > CLIENTS {
            open.pop_front();
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// A probe that gives up after a second, as operators configure it.
fn health(addr: SocketAddr) -> io::Result<String> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&addr, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET /health/live HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn health_is_told_while_clients_flood_the_ports() {
    let broker = Broker::start();
    let (over, come) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _end = End(&over);
        scope.spawn(|| hold_admin_connections(broker.admin(), &over));
        scope.spawn(|| come_and_go(broker.kafka(), &over, &come));
        wait_until("flood", || come.load(Ordering::Relaxed) > CLIENTS);
        let answers: Vec<_> = (0..HEALTH_CHECKS).map(|_| health(broker.admin())).collect();
        let is_live = |answer: &&io::Result<String>| {
            answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\nlive\n"))
        };
        assert_eq!(answers.iter().filter(is_live).count(), HEALTH_CHECKS, "{answers:?}");
    });
}
