//! A clean stop with many partitions: it syncs few files, and none of its steps handles all partitions.

use super::allocations;
use crate::counts::{Calm, batch};
use bytes::Bytes;
use net::{
    StrBytes,
    codec::{
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    errors::NONE,
    messages::{CreateTopicsRequest, TopicName, create_topics_request::CreatableTopic},
};
use std::time::Duration;
use wal::disk::sim::Kind;

const MANY: i32 = 2_000;
/// A sixteenth of it is enough for the last batch of each partition.
const RING_BYTES: u64 = 32 << 20;
/// Memory for more partitions than that.
const BUDGET: u64 = 256 << 20;
/// A flush writes a sixteenth at most of the partitions whose records checkpoints carry. Each has a file, an index and
/// a folder.
const SYNCS_MAX: usize = 3 * MANY as usize / 16 + 50;
/// Longer than a start or a stop takes.
const A_WHILE: Duration = Duration::from_secs(60);

fn name() -> StrBytes {
    StrBytes::from_static_str("many")
}

/// Writes a batch to every partition. Returns the offsets.
fn produce(calm: &Calm, records: &Bytes) -> Vec<i64> {
    let partition = |index| ProducePartition { index, records: Some(records.clone()) };
    let topics = vec![ProduceTopic { topic: TopicRef::Name(name()), partitions: (0..MANY).map(partition).collect() }];
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 30_000, topics };
    let answers = calm.ask(&calm.nodes[0], vec![(Request::Produce(request), 9)]);
    let [Response::Produce(response)] = &answers[..] else { panic!("{answers:?}") };
    let partitions = &response.topics[0].partitions;
    assert!(partitions.iter().all(|partition| partition.error_code == NONE));
    partitions.iter().map(|partition| partition.base_offset).collect()
}

#[test]
fn a_clean_stop_with_many_partitions_syncs_few_files_and_takes_turns() {
    let calm = Calm::with_budget(9, &[RING_BYTES], BUDGET);
    let node = &calm.nodes[0];
    let topic = CreatableTopic::default().with_name(TopicName(name())).with_num_partitions(MANY);
    let create = CreateTopicsRequest::default()
        .with_topics(vec![topic.with_replication_factor(1)])
        .with_timeout_ms(A_WHILE.as_millis() as i32);
    let created = calm.ask(node, vec![(create.into(), 7)]);
    assert!(matches!(&created[..], [Response::CreateTopics(created)] if created.topics[0].error_code == NONE));
    assert!(produce(&calm, &batch(100)).into_iter().all(|offset| offset == 0));
    calm.pass(A_WHILE);

    drop(node.disk().trace());
    node.stop(&calm.world);
    let (mut before, mut most) = (allocations::so_far(), 0);
    let end = calm.world.time() + A_WHILE;
    // When the node is down, there is no further step.
    while !node.down.get() && calm.world.step(end).is_some() {
        most = most.max(allocations::so_far() - before);
        before = allocations::so_far();
    }
    assert!(node.down.get(), "it has stopped");
    let syncs = node.disk().trace().iter().filter(|(kind, _)| matches!(kind, Kind::Sync | Kind::SyncDir)).count();
    println!("{syncs} syncs, {most} allocations in one step");
    assert!(syncs <= SYNCS_MAX, "{syncs} syncs");
    assert!(most < MANY as u64, "{most} allocations in one step");

    node.start_if_down(&calm.world);
    calm.pass(A_WHILE);
    assert!(node.serves());
    assert!(produce(&calm, &batch(100)).into_iter().all(|offset| offset == 1), "every record is there");
}
