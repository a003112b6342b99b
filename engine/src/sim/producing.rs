//! A producer sends a batch to a leader that can't take it: the leader hands its partition over, or its disk is full.

use super::{
    counts::{Calm, TOPIC, batch, produce},
    node::Ailment,
};
use net::{
    codec::response::Response,
    errors::{self, ErrorCode},
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
