//! A partition that cannot be recovered keeps its log, and never passes for a new one.

use super::{A_WHILE, answers, notices, restart};
use crate::{
    counts::{Calm, TOPIC},
    node::Node,
};
use bytes::Bytes;
use consensus::group::descriptor::EntryData;
use net::{
    StrBytes,
    codec::response::Response,
    errors::NONE,
    messages::{
        DeleteTopicsRequest, IncrementalAlterConfigsRequest, TopicName,
        delete_topics_request::DeleteTopicState,
        incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig},
    },
};
use std::time::Duration;
use types::{GroupId, HardState};
use wal::record::{Entry, Span};

const RESOURCE_TOPIC: i8 = 2;

fn topic() -> StrBytes {
    StrBytes::from_static_str(TOPIC)
}

/// Adds an entry to a log whose payload is no batch. It stands for a bug, or for another version's format.
fn add_garbage(calm: &Calm, node: &Node, group: GroupId) {
    let core = node.core().expect("it runs");
    let log = core.store.log(group).expect("it has a log");
    let hard_state = HardState { term: log.last_term, vote: core.identity.peer, commit: log.last_index };
    let span = Span { base_offset: log.next_offset, count: 1, max_timestamp: -1 };
    let entry = Entry {
        index: log.last_index.next(),
        term: log.last_term,
        entry_type: 0,
        data: EntryData::LogStart { offset: 0 }.encode(),
        payload: Some((span, Bytes::from_static(b"no batch"))),
    };
    calm.world.within(node.process, || core.store.append(group, hard_state, &entry)).expect("there is room");
    // It becomes durable. Retention, which would write an entry of its own, comes later.
    calm.pass(Duration::from_millis(10));
}

/// Changes a setting of the topic, which every replica follows.
fn alter(calm: &Calm, node: &Node) {
    let config = AlterableConfig::default()
        .with_name(StrBytes::from_static_str("retention.ms"))
        .with_value(Some(StrBytes::from_static_str("123456789")));
    let resource = AlterConfigsResource::default()
        .with_resource_type(RESOURCE_TOPIC)
        .with_resource_name(topic())
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let altered = calm.ask(node, vec![(request.into(), 1)]);
    assert!(matches!(&altered[..], [Response::IncrementalAlterConfigs(told)] if told.responses[0].error_code == NONE));
    calm.pass(A_WHILE);
}

fn delete(calm: &Calm, node: &Node) {
    let state = DeleteTopicState::default().with_name(Some(TopicName(topic())));
    let request = DeleteTopicsRequest::default().with_topics(vec![state]).with_timeout_ms(5_000);
    let deleted = calm.ask(node, vec![(request.into(), 6)]);
    assert!(matches!(&deleted[..], [Response::DeleteTopics(told)] if told.responses[0].error_code == NONE));
    calm.pass(A_WHILE);
}

#[test]
fn a_partition_that_cannot_be_recovered_keeps_its_log_whatever_happens_to_its_topic() {
    let calm = Calm::new(5, 1);
    let node = calm.nodes[0].clone();
    assert_eq!(answers(&calm, &node), [NONE, NONE]);
    let group = {
        let core = node.core().expect("it runs");
        core.view(|view| view.topic(TOPIC).expect("it was created").partitions[0].group)
    };
    add_garbage(&calm, &node, group);
    let end = || node.core().expect("it runs").store.log(group).map(|log| log.next_offset);
    assert_eq!(end(), Some(2));
    for life in 0..2 {
        restart(&calm, &node);
        for _ in 0..2 {
            let told = notices(&node);
            let [(of, notice)] = &told[..] else { panic!("life {life}: {told:?}") };
            assert!(*of == group && notice.contains("partition counts-0 cannot be recovered"), "{told:?}");
            let codes = answers(&calm, &node);
            assert!(codes[0] != NONE && codes[1] == NONE, "life {life}: {codes:?}");
            assert_eq!(end(), Some(2), "life {life}");
            alter(&calm, &node);
        }
    }
    delete(&calm, &node);
    assert_eq!(end(), None, "its log goes with its topic");
}
