//! Topics that are created and deleted again and again: a broker's memory for deleted topics has a bound.

use crate::{counts::Calm, node::Node};
use consensus::metadata::Command;
use engine::cluster::meta::leader_commands;
use net::{
    StrBytes,
    codec::{request::Request, response::Response},
    errors,
    messages::{
        CreateTopicsRequest, DeleteTopicsRequest, TopicName, create_topics_request::CreatableTopic,
        delete_topics_request::DeleteTopicState,
    },
};
use std::time::Duration;

const PARTITIONS: i32 = 200;
const ROUNDS: i32 = 20;
/// The number of leaderships at which the broker looks for those of deleted topics, plus the number that one round
/// adds.
const KEPT_MAX: usize = 1024 + PARTITIONS as usize;

fn create(calm: &Calm, node: &Node, name: TopicName, partitions: i32) {
    let topic = CreatableTopic::default().with_name(name).with_num_partitions(partitions).with_replication_factor(1);
    let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
    let created = calm.ask(node, vec![(Request::CreateTopics(create), 7)]);
    let [Response::CreateTopics(created)] = &created[..] else { panic!("{created:?}") };
    assert_eq!(errors::check(created.topics[0].error_code), Ok(()));
}

fn delete(calm: &Calm, node: &Node, name: TopicName) {
    let topic = DeleteTopicState::default().with_name(Some(name));
    let delete = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
    let deleted = calm.ask(node, vec![(Request::DeleteTopics(delete), 6)]);
    let [Response::DeleteTopics(deleted)] = &deleted[..] else { panic!("{deleted:?}") };
    assert_eq!(errors::check(deleted.responses[0].error_code), Ok(()));
    calm.pass(Duration::from_millis(10));
}

#[test]
fn leaderships_of_deleted_topics_are_not_kept_for_brokers_that_may_join() {
    let calm = Calm::new(1, 1);
    let node = &calm.nodes[0];
    let name = |round: i32| TopicName(StrBytes::from_string(format!("churn-{round}")));
    for round in 0..ROUNDS {
        create(&calm, node, name(round), PARTITIONS);
        delete(&calm, node, name(round));
        let kept = node.core().expect("it runs").unreported().borrow().len();
        assert!(kept <= KEPT_MAX, "{kept} leaderships after {} rounds", round + 1);
    }
}

/// The topic of that name is another one now. Its partitions begin with epochs of their own.
#[test]
fn a_leadership_of_a_deleted_topic_is_not_reported_for_the_next_of_its_name() {
    let calm = Calm::new(2, 1);
    let node = &calm.nodes[0];
    let name = || TopicName(StrBytes::from_static_str("again"));
    create(&calm, node, name(), 1);
    delete(&calm, node, name());
    create(&calm, node, name(), 1);
    calm.pass(Duration::from_secs(1));
    let core = node.core().expect("it runs");
    let unreported = core.unreported().borrow();
    assert!(unreported.values().filter(|led| &*led.name.topic == "again").count() == 2, "both are kept");
    let commands = core.view(|view| leader_commands(view, core.node(), &unreported));
    let reports = commands.iter().filter_map(|command| match command {
        Command::SetPartitionLeader { name, leaders, .. } if &**name == "again" => Some(leaders.len()),
        _ => None,
    });
    assert_eq!(reports.collect::<Vec<_>>(), [1]);
}
