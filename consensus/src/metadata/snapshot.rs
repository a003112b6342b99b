//! All slices at one index, as bytes: the same slices give the same bytes.

use super::{
    Partition, SLICES, Slice, SliceId, Topic,
    command::{configs_in, configs_out, uuid_in, uuid_out},
    slice_answers::Answers,
};
use crate::generated::metadata::millrace::metadata as fb;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, VerifierOptions, WIPOffset};
use std::sync::Arc;

/// Why bytes are not a snapshot of all slices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("not a snapshot: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    #[error("a snapshot has the slices 0 to {}, in order", SLICES - 1)]
    Slices,
    #[error("the answer to request {sequence} of node {node} can't be read; it was written by a newer version")]
    Answer { node: i32, sequence: u64 },
}

/// The slices as of `index` as bytes. They may come in any order, but all of them.
pub fn join(index: u64, slices: &mut [Slice]) -> Bytes {
    slices.sort_unstable_by_key(Slice::id);
    assert!(slices.iter().map(Slice::id).eq(SliceId::all()), "a snapshot has every slice once");
    let mut out = FlatBufferBuilder::with_capacity(64 << 10);
    let slices: Vec<_> = slices
        .iter()
        .map(|slice| {
            let topics: Vec<_> = slice.topics().map(|topic| topic_out(&mut out, topic)).collect();
            let origins = slice.answers.write(&mut out);
            let args = fb::SliceArgs {
                number: slice.id().0,
                group_high: slice.group_high,
                next_producer_id: slice.next_producer_id,
                topics: Some(out.create_vector(&topics)),
                origins: origins.map(|origins| out.create_vector(&origins)),
            };
            fb::Slice::create(&mut out, &args)
        })
        .collect();
    let slices = Some(out.create_vector(&slices));
    let root = fb::Snapshot::create(&mut out, &fb::SnapshotArgs { index, slices });
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

pub(super) fn topic_out<'b>(out: &mut FlatBufferBuilder<'b>, topic: &Topic) -> WIPOffset<fb::Topic<'b>> {
    let partitions: Vec<_> = topic
        .partitions
        .iter()
        .map(|partition| {
            let replicas = Some(out.create_vector(&partition.replicas));
            fb::Partition::create(out, &fb::PartitionArgs { group: partition.group, replicas })
        })
        .collect();
    let configs = topic.configs.iter().map(|(name, value)| (name, Some(value)));
    let args = fb::TopicArgs {
        name: Some(out.create_string(&topic.name)),
        id: Some(&uuid_out(topic.id)),
        partitions: Some(out.create_vector(&partitions)),
        configs: Some(configs_out(out, configs)),
        created_ms: topic.created_ms,
    };
    fb::Topic::create(out, &args)
}

pub(super) fn topic_in(topic: fb::Topic<'_>) -> Topic {
    let partitions = topic.partitions().iter();
    let configs = configs_in(topic.configs()).into_iter();
    Topic {
        name: topic.name().into(),
        id: uuid_in(topic.id()),
        partitions: partitions
            .map(|partition| Partition { group: partition.group(), replicas: partition.replicas().iter().collect() })
            .collect(),
        configs: configs.map(|(name, value)| (name, value.unwrap_or_default())).collect(),
        created_ms: topic.created_ms(),
    }
}

/// Reads a snapshot back: its index and every slice, in order. The bytes are verified first.
pub fn restore(bytes: &[u8]) -> Result<(u64, Vec<Slice>), RestoreError> {
    // The verifier's default bound on tables is meant for messages from strangers; a snapshot has one per partition.
    let options =
        VerifierOptions { max_tables: usize::MAX, max_apparent_size: usize::MAX, ..VerifierOptions::default() };
    let snapshot = flatbuffers::root_with_opts::<fb::Snapshot<'_>>(&options, bytes)?;
    let slices: Vec<Slice> = snapshot.slices().iter().map(slice_in).collect::<Result<_, _>>()?;
    if !slices.iter().map(Slice::id).eq(SliceId::all()) {
        return Err(RestoreError::Slices);
    }
    Ok((snapshot.index(), slices))
}

fn slice_in(from: fb::Slice<'_>) -> Result<Slice, RestoreError> {
    let mut slice = Slice::new(SliceId(from.number()));
    slice.group_high = from.group_high();
    slice.next_producer_id = from.next_producer_id();
    slice.answers = Answers::read(from.origins().into_iter().flatten())?;
    slice.topics = from.topics().iter().map(topic_in).map(|topic| (topic.name.clone(), Arc::new(topic))).collect();
    Ok(slice)
}
