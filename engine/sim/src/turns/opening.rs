//! Topics with many partitions are opened and dropped in turns.

use crate::counts::Calm;
use engine::core::opening::PARTITIONS_A_TURN;
use net::{
    StrBytes,
    codec::{request::Request, response::Response},
    errors::NONE,
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, TopicName, create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState,
    },
};

const MANY: i32 = 700;

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str("many"))
}

/// Runs the broker until it has so many partitions. Returns the most that were opened or dropped in one step.
fn until_there_are(calm: &Calm, count: usize) -> usize {
    let core = calm.nodes[0].core().expect("it runs");
    let (mut before, mut most) = (core.partitions().len(), 0);
    calm.until(|| {
        let now = core.partitions().len();
        most = most.max(now.abs_diff(before));
        before = now;
        now == count
    });
    most
}

#[test]
fn partitions_are_opened_and_dropped_in_turns() {
    let calm = Calm::new(6, 1);
    let few = calm.nodes[0].core().expect("it runs").partitions().len();
    let topic = CreatableTopic::default().with_name(name()).with_num_partitions(MANY).with_replication_factor(1);
    let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(60_000);
    let created = calm.start(&calm.nodes[0], vec![(Request::CreateTopics(create), 4)]);
    let opened = until_there_are(&calm, few + MANY as usize);
    assert!((1..=PARTITIONS_A_TURN).contains(&opened), "{opened} in one step");
    calm.until(|| created.borrow().is_some());
    let created = created.take().expect("it is answered");
    assert!(matches!(&created[..], [Response::CreateTopics(created)] if created.topics[0].error_code == NONE));
    let deleted = DeleteTopicState::default().with_name(Some(name()));
    let delete = DeleteTopicsRequest::default().with_topics(vec![deleted]).with_timeout_ms(60_000);
    let deleted = calm.start(&calm.nodes[0], vec![(Request::DeleteTopics(delete), 6)]);
    let dropped = until_there_are(&calm, few);
    assert!((1..=PARTITIONS_A_TURN).contains(&dropped), "{dropped} in one step");
    calm.until(|| deleted.borrow().is_some());
}
