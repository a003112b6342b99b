//! A producer sends a batch to a leader that hands its partition over.

use super::counts::{Calm, TOPIC, batch, produce};
use net::{
    codec::response::Response,
    errors::{self, ErrorCode},
};
use std::rc::Rc;

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
