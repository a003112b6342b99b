//! A producer sends batches to a leader that can't take them: the leader hands its partition over, its disk is full, or
//! its followers are away.

use super::{
    counts::{Calm, TOPIC, batch, produce},
    net::net,
    node::Ailment,
};
use engine::partition::Partition;
use net::{
    StrBytes,
    codec::{
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    errors::{self, ErrorCode},
    messages::{
        BrokerId, CreateTopicsRequest, TopicName,
        create_topics_request::{CreatableReplicaAssignment, CreatableTopic},
    },
};
use std::{rc::Rc, time::Duration};

/// Refused at once, the client would ask for a leader that nobody knows yet, and wait before it retries.
#[test]
fn a_batch_that_meets_a_hand_over_is_refused_once_the_next_leader_is_known() {
    for seed in 0..10 {
        let calm = Calm::new(seed, 3);
        let leader = calm.leader().clone();
        let core = leader.core().expect("it runs");
        let group = core.view(|view| view.topic(TOPIC).expect("it was created").partitions[0].group);
        let partition = core.partition(group).expect("the leader has it");
        let (handed, there) = (Rc::new(std::cell::Cell::new(false)), core.clone());
        let began = handed.clone();
        calm.world.spawn(leader.process, async move { began.set(partition.hand_over(&there, None)) });
        calm.until(|| handed.get());
        let answers = calm.ask(&leader, vec![produce(0..1, &batch(100))]);
        let [Response::Produce(answer)] = &answers[..] else { panic!("{answers:?}") };
        let refused = errors::check(answer.topics[0].partitions[0].error_code);
        assert_eq!(refused, Err(ErrorCode::NotLeaderOrFollower), "seed {seed}");
        let next = core.leader_of(group).expect("the next leader is known");
        assert_ne!(next.node, leader.id, "seed {seed}");
        // The client finds it.
        let next = calm.nodes.iter().find(|node| node.id == next.node).expect("it is one of them");
        let answers = calm.ask(next, vec![produce(0..1, &batch(100))]);
        let [Response::Produce(answer)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(errors::check(answer.topics[0].partitions[0].error_code), Ok(()), "seed {seed}");
    }
}

/// The timeout that the requests name.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The answer to one batch.
fn answer(calm: &Calm, bytes: usize) -> Result<(), ErrorCode> {
    let answers = calm.ask(&calm.nodes[0], vec![produce(0..1, &batch(bytes))]);
    let [Response::Produce(answer)] = &answers[..] else { panic!("{answers:?}") };
    errors::check(answer.topics[0].partitions[0].error_code)
}

/// Many clients wait no longer than the timeout that they name.
#[test]
fn a_full_disk_is_reported_while_the_client_still_waits() {
    let calm = Calm::new(1, 1);
    let core = calm.nodes[0].core().expect("it runs");
    calm.nodes[0].ail(Ailment { full: true, ..Ailment::default() });
    // Until nothing more fits into memory.
    let (refused, took) = loop {
        let begun = calm.world.time();
        if let Err(refused) = answer(&calm, 900_000) {
            break (refused, calm.world.time() - begun);
        }
    };
    assert_eq!(refused, ErrorCode::KafkaStorageError);
    assert!((TIMEOUT / 2..TIMEOUT * 3 / 4).contains(&took), "{took:?}");
    assert!(core.has_full_disk() && core.metrics.admission_timed_out_total.get() == 1);
    calm.nodes[0].ail(Ailment::default());
    calm.until(|| !core.has_full_disk());
    assert_eq!(answer(&calm, 900_000), Ok(()));
}

const ALONE: &str = "alone";

/// Creates a topic with one replica, on this broker.
fn create_alone(calm: &Calm, broker: i32) {
    let replica = CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(broker)]);
    let topic = CreatableTopic::default()
        .with_name(TopicName(StrBytes::from_static_str(ALONE)))
        .with_num_partitions(-1)
        .with_replication_factor(-1)
        .with_assignments(vec![replica]);
    let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
    let answers = calm.ask(calm.leader(), vec![(Request::CreateTopics(create), 7)]);
    assert!(
        matches!(&answers[..], [Response::CreateTopics(answer)] if answer.topics[0].error_code == 0),
        "{answers:?}"
    );
    calm.pass(Duration::from_secs(5));
}

/// One batch for each of two topics: the one whose followers take nothing, and the one without followers.
fn produce_to_both(bytes: usize) -> (Request, i16) {
    let topics = [TOPIC, ALONE].map(|name| {
        let partitions = vec![ProducePartition { index: 0, records: Some(batch(bytes)) }];
        ProduceTopic { topic: TopicRef::Name(StrBytes::from_static_str(name)), partitions }
    });
    (Request::Produce(ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics: topics.into() }), 9)
}

/// A leader appends only so much that it cannot commit. The rest waits, and holds up no other partition, nor the other
/// batches of its own request.
#[test]
fn a_partition_without_followers_takes_a_bounded_amount_and_delays_no_other() {
    for seed in 0..5 {
        let calm = Calm::with_rings(seed, &[64 << 20; 3]);
        let leader = calm.leader().clone();
        let core = leader.core().expect("it runs");
        create_alone(&calm, leader.id);
        let group = |name| core.view(|view| view.topic(name).expect("it was created").partitions[0].group);
        let shared = core.partition(group(TOPIC)).expect("the leader has it");
        let alone = core.partition(group(ALONE)).expect("its only replica is here");
        for other in calm.nodes.iter().filter(|other| other.id != leader.id) {
            net().cut(leader.id, other.id);
            net().cut(other.id, leader.id);
        }
        let before = alone.high_watermark();
        let mut most = 0;
        let many = calm.start(&leader, (0..20).map(|_| produce_to_both(900_000)).collect());
        calm.until(|| {
            most = most.max(shared.unapplied_bytes());
            alone.high_watermark() == before + 20
        });
        assert!(core.admission.waiting() > 0, "seed {seed}: the rest waits");
        assert!(shared.leads() && most > 0, "seed {seed}: {most} bytes");
        // The leader notices that it is alone. What waits is answered at once.
        calm.until(|| {
            most = most.max(shared.unapplied_bytes());
            many.borrow().is_some()
        });
        assert!(most <= Partition::ROOM_BYTES, "seed {seed}: {most} bytes");
        assert_eq!((core.admission.waiting(), shared.leads()), (0, false), "seed {seed}");
        assert_eq!(core.metrics.admission_timed_out_total.get(), 0, "seed {seed}");
        for answer in many.take().expect("they have come") {
            let Response::Produce(answer) = answer else { panic!("{answer:?}") };
            let codes = answer.topics.iter().map(|topic| errors::check(topic.partitions[0].error_code));
            assert_eq!(codes.collect::<Vec<_>>(), [Err(ErrorCode::NotLeaderOrFollower), Ok(())], "seed {seed}");
        }
        net().heal();
        calm.pass(Duration::from_secs(20));
        let answers = calm.ask(calm.leader(), vec![produce(0..1, &batch(900_000))]);
        let [Response::Produce(answer)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(errors::check(answer.topics[0].partitions[0].error_code), Ok(()), "seed {seed}");
    }
}
