//! A committed entry that cannot be applied: it stops its group, at once and after every start, and nothing else.

mod large_entries;
mod loading;
mod told;
mod unrecovered;

use super::{
    counts::{Calm, produce},
    node::Node,
};
use bytes::Bytes;
use engine::partition::host::Parts as _;
use net::{
    codec::response::Response,
    errors::ErrorCode,
    records::{build::BatchBuilder, compression::Codec},
};
use std::{rc::Rc, time::Duration};
use types::{GroupId, META_GROUP};

const META: GroupId = META_GROUP;
const A_WHILE: Duration = Duration::from_secs(10);

fn batch() -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None);
    // The broker accepts any timestamp that is behind its clock.
    batch.push(0, None, Some(b"value"));
    batch.finish()
}

/// The error codes of produce requests to the first two partitions.
fn answers(calm: &Calm, node: &Node) -> Vec<i16> {
    let answers = calm.ask(node, vec![produce(0..2, &batch())]);
    let [Response::Produce(response)] = &answers[..] else { panic!("{answers:?}") };
    response.topics[0].partitions.iter().map(|partition| partition.error_code).collect()
}

/// Commits an entry that cannot be applied. It stands for one of a leader of another version, or for a bug of this one.
fn commit_garbage(calm: &Calm, node: &Node, group: GroupId) {
    let core = node.core().expect("it runs");
    calm.world.within(node.process, || {
        let replicated = core.group(group).expect("it is here");
        replicated.replica().propose(Bytes::from_static(b"\xffno entry of any kind"), None).expect("it leads");
        core.ready_loop.wake(replicated);
    });
    calm.pass(A_WHILE);
}

fn notices(node: &Node) -> Vec<(GroupId, String)> {
    let core = node.core().expect("it runs");
    assert_eq!(core.metrics.groups_stopped.get() as usize, core.metrics.stopped.all().len());
    core.metrics.stopped.all()
}

fn restart(calm: &Calm, node: &Rc<Node>) {
    node.kill(&calm.world);
    node.start_if_down(&calm.world);
    calm.pass(2 * A_WHILE);
    assert_eq!(*node.refused.borrow(), None);
}

#[test]
fn a_partition_stops_before_an_entry_that_cannot_be_read_and_others_go_on() {
    let calm = Calm::new(1, 1);
    let node = calm.nodes[0].clone();
    let group = {
        let core = node.core().expect("it runs");
        core.view(|view| view.topic("counts").expect("it was created").partitions[0].group)
    };
    assert_eq!(answers(&calm, &node), [0, 0]);
    commit_garbage(&calm, &node, group);
    for life in 0..3 {
        let told = notices(&node);
        assert!(told.len() == 1 && told[0].0 == group, "life {life}: {told:?}");
        for part in
            ["partition counts-0", "has stopped before its committed entry 3", "unknown kind 255", "operating.md"]
        {
            assert!(told[0].1.contains(part), "{told:?}");
        }
        assert!(node.serves(), "life {life}");
        assert_eq!(answers(&calm, &node), [ErrorCode::KafkaStorageError.code(), 0], "life {life}");
        restart(&calm, &node);
    }
}

#[test]
fn the_metadata_stops_before_an_entry_that_cannot_be_read_and_partitions_go_on() {
    let calm = Calm::new(2, 1);
    let node = calm.nodes[0].clone();
    commit_garbage(&calm, &node, META);
    let told = notices(&node);
    assert!(told.len() == 1 && told[0].0 == GroupId(0) && told[0].1.starts_with("the metadata: group 0"), "{told:?}");
    assert_eq!(answers(&calm, &node), [0, 0], "what is open goes on");
    // Without its metadata, the node does not serve, but it runs and says why.
    for life in 0..2 {
        restart(&calm, &node);
        assert!(!node.serves(), "life {life}");
        assert_eq!(notices(&node), told, "life {life}");
    }
}
