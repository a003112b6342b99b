//! Brokers with an empty data directory and a node id that the cluster knows. While the broker with that node id is
//! alive, they are refused and disturb nobody; once it is gone, they take its place.

mod support;

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use consensus::metadata::QueryAnswer;
use consensus::plane::peer_id;
use consensus::wire::{self as peer_wire, Caller, Hello, ToolAnswer, ToolResponse};
use net::errors;
use net::peer::auth::{Handshake, Secret, nonce};
use net::peer::{BlockingPeer, Kind, Lane, PeerFrame};

use support::PATIENCE;
use support::broker::{Broker, secret_file};
use support::cluster::{Cluster, wait_until};
use support::wire;

const BROKERS: usize = 3;
const TOPIC: &str = "orders";
const ALL: i16 = -1;
/// The broker whose node id another one wants.
const HOLDER: usize = 1;
/// Leaders stay where they are.
const STAY: [&str; 2] = ["--set", "auto.leader.rebalance.enable=false"];
/// Longer than an emptied broker needs to ask for its place.
const SESSION: [&str; 2] = ["--set", "broker.session.timeout.ms=6000"];

fn create(cluster: &Cluster) {
    let created = wire::create_topic(&mut wire::connect(cluster.broker(0)), TOPIC, 6, BROKERS as i16, &[]);
    assert_eq!(errors::check(created.error_code), Ok(()), "{:?}", created.error_message);
    wait_until_whole(cluster);
}

/// The leader and the leader's epoch of each partition, as a broker shows them.
fn leaders(cluster: &Cluster, i: usize) -> Vec<(i32, i32)> {
    let shown = wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC);
    shown.iter().map(|partition| (partition.leader_id.0, partition.leader_epoch)).collect()
}

fn wait_until_whole(cluster: &Cluster) {
    for i in 0..BROKERS {
        wait_until("set of replicas in sync that is whole", || {
            let shown = wire::partitions(&mut wire::connect(cluster.broker(i)), TOPIC);
            shown.iter().all(|partition| partition.leader_id.0 > 0 && partition.isr_nodes.len() == BROKERS)
        });
    }
}

#[test]
fn a_broker_with_the_node_id_of_a_living_one_is_refused_and_that_one_serves_on() {
    let cluster = Cluster::start(BROKERS, &STAY);
    create(&cluster);
    let before = leaders(&cluster, HOLDER);
    let node = HOLDER as i32 + 1;
    let led = before.iter().position(|(leader, _)| *leader == node).expect("each broker leads some partitions") as i32;

    let mut other = Broker::new(&STAY);
    let seeds: Vec<String> =
        [0, 2].map(|i: usize| format!("{}@{}", i + 1, cluster.broker(i).peer())).into_iter().collect();
    other.add_flags(&["--node-id", &node.to_string(), "--seeds", &seeds.join(",")]);
    other.add_flags(&["--cluster-secret-file", &secret_file()]);
    let ended = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut client = wire::connect(cluster.broker(HOLDER));
            while !ended.load(Ordering::Acquire) {
                let request = wire::produce_request(TOPIC, led, ALL, wire::batch(&[b"a record"]));
                let response = client.produce(request).expect("an answer");
                let answer = &response.responses[0].partition_responses[0];
                assert_eq!(errors::check(answer.error_code), Ok(()));
            }
        });
        let output = other.begin_or_end();
        ended.store(true, Ordering::Release);
        producing.join().expect("every record was acknowledged");
        output.expect_err("it is refused")
    });
    let holder = cluster.broker(HOLDER).bootstrap();
    for part in [
        format!("waiting for the session of broker {node} at {holder} to end"),
        format!("node id {node} belongs to the broker at {holder}, which is alive; choose another, or stop it first"),
    ] {
        assert!(output.contains(&part), "no '{part}' in:\n{output}");
    }
    for i in 0..BROKERS {
        assert_eq!(leaders(&cluster, i), before, "broker {}", i + 1);
    }
}

#[test]
fn a_broker_whose_disk_was_emptied_takes_its_place_once_its_session_has_ended() {
    let mut cluster = Cluster::start(BROKERS, &SESSION);
    create(&cluster);
    cluster.kill9(HOLDER);
    cluster.empty_disk(HOLDER);
    cluster.begin(HOLDER);
    let output = cluster.broker(HOLDER).output();
    assert!(output.contains("waiting for the session of broker 2"), "it did not wait:\n{output}");
    wait_until_whole(&cluster);
}

/// The introduction of a member of the cluster.
fn hello_of(broker: &Broker) -> Hello {
    let mut peer = BlockingPeer::connect(broker.peer(), PATIENCE).expect("the broker accepts");
    let me = peer_wire::encode_hello(&Hello::of_tool("test"));
    let hello = peer.shake_hands(Handshake::caller(Some(broker.secret()), Lane::Control, me, nonce()), true);
    peer_wire::decode_hello(&hello.expect("it knows the secret")).expect("a broker's hello")
}

/// Answers one new broker as a member does that finds its node id free, and is gone then.
fn say_that_it_is_free(listener: &TcpListener, me: &Hello, secret: &Secret) {
    let meet = || {
        let (stream, _) = listener.accept().expect("the new broker calls");
        let mut peer = BlockingPeer::new(stream, PATIENCE).expect("a socket");
        let handshake = Handshake::answerer(Some(secret.clone()), peer_wire::encode_hello(me), nonce());
        let caller = peer.shake_hands(handshake, false).expect("it knows the secret");
        (peer, peer_wire::decode_hello(&caller).expect("a hello").caller)
    };
    assert_eq!(meet().1, Caller::Broker);
    let (mut peer, caller) = meet();
    assert_eq!(caller, Caller::Tool);
    let request = peer.read().expect("it asks who has its node id");
    let id = peer_wire::decode_request(&request.bytes).expect("a request").id;
    let answer = ToolResponse { id, answer: ToolAnswer::Answers(vec![QueryAnswer::NotFound]) };
    peer.write(&PeerFrame::new(Kind::Response, Lane::Control, peer_wire::encode_response(&answer))).expect("it waits");
}

#[test]
fn a_broker_whose_node_id_is_taken_between_its_question_and_its_registration_ends_with_the_same_error() {
    let cluster = Cluster::start(BROKERS, &STAY);
    let mut other = Broker::new(&[]);
    // The first of its seeds tells what was true a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound port");
    let member = Hello { node: 0, peer: peer_id(0, 7), peer_addr: addr.to_string(), ..hello_of(cluster.broker(0)) };
    let secret = cluster.broker(0).secret();
    let answering = thread::spawn(move || say_that_it_is_free(&listener, &member, &secret));
    let node = HOLDER + 1;
    let seeds = format!("0@{addr},1@{},3@{}", cluster.broker(0).peer(), cluster.broker(2).peer());
    other.add_flags(&["--node-id", &node.to_string(), "--seeds", &seeds, "--cluster-secret-file", &secret_file()]);
    other.spawn();
    let (status, output) = other.wait_for_end();
    answering.join().expect("it was asked");
    assert_eq!(status.code(), Some(1), "{output}");
    let holder = cluster.broker(HOLDER).bootstrap();
    for part in [
        "this broker now belongs to a cluster".to_owned(),
        format!("waiting for the session of broker {node} at {holder} to end"),
        format!("node id {node} belongs to the broker at {holder}, which is alive; choose another, or stop it first"),
    ] {
        assert!(output.contains(&part), "no '{part}' in:\n{output}");
    }
}
