//! OffsetFetch: committed offsets, from memory.

use std::{collections::BTreeMap, ops::Bound};

use net::{
    StrBytes,
    messages::{
        OffsetFetchRequest, OffsetFetchResponse, TopicName,
        offset_fetch_response::{
            OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
            OffsetFetchResponseTopic, OffsetFetchResponseTopics,
        },
    },
};

use super::part::{Cursor, GROUP_BYTES, Load, OFFSET_BYTES, Part, TOPIC_BYTES};
use crate::coordinator::{group::Group, incarnation::Topics, records::CommittedOffset};

/// The offset in the answer for a partition without a committed offset.
const NO_OFFSET: i64 = -1;

/// The committed offsets of one group in an answer. `None`: the partition has none.
type Found<'a> = Vec<(TopicName, Vec<(i32, Option<&'a CommittedOffset>)>)>;

type Groups<T> = BTreeMap<StrBytes, Group<T>>;

/// Answers for several groups, from committed state. Without transactions no offset is unstable, so `require_stable`
/// (KIP-447) changes nothing. Offsets of deleted topics do not count.
pub(crate) fn fetch<T>(groups: &Groups<T>, topics: &dyn Topics, request: &OffsetFetchRequest, from: &Cursor) -> Part {
    let (mut answered, mut load, mut next) = (Vec::new(), Load::default(), None);
    for (at, asked) in request.groups.iter().enumerate().skip(from.groups) {
        let named = asked.topics.as_ref();
        // A group of which all offsets are wanted begins in this part if a topic and an offset fit, too.
        let rows = named.map_or(2, |topics| topics.iter().map(|topic| 1 + topic.partition_indexes.len()).sum());
        if !load.has_room(1 + rows) {
            next = Some(Cursor { groups: at, ..Cursor::default() });
            break;
        }
        load.add(1 + named.map_or(0, |_| rows), GROUP_BYTES + asked.group_id.len());
        let group = groups.get(&asked.group_id.0);
        let (found, last) = match named {
            Some(named) => {
                (find_named(group, topics, named.iter().map(|topic| (&topic.name, &topic.partition_indexes))), None)
            }
            None => find_all(group, topics, from.offset.as_ref().filter(|_| at == from.groups), &mut load),
        };
        load.bytes += found_bytes(&found);
        let topics = found.into_iter().map(|(name, partitions)| {
            let partitions = partitions.into_iter().map(|(index, offset)| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(index)
                    .with_committed_offset(offset.map_or(NO_OFFSET, |o| o.offset))
                    .with_committed_leader_epoch(offset.map_or(-1, |o| o.leader_epoch))
                    .with_metadata(Some(offset.map_or_else(StrBytes::new, |o| o.metadata.clone())))
            });
            OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
        });
        let group = OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone());
        answered.push(group.with_topics(topics.collect()));
        if last.is_some() {
            next = Some(Cursor { groups: at, offset: last, listed: None });
            break;
        }
    }
    let response = OffsetFetchResponse::default().with_groups(answered).into();
    Part { response, entries: load.entries, bytes: load.bytes, goes_on: from.offset.is_some(), next }
}

/// The same before version 8, for one group.
pub(crate) fn fetch_one<T>(
    groups: &Groups<T>,
    topics: &dyn Topics,
    request: &OffsetFetchRequest,
    from: &Cursor,
) -> Part {
    let (group, mut load) = (groups.get(&request.group_id.0), Load::default());
    let (found, last) = match &request.topics {
        Some(named) => {
            load.entries += named.iter().map(|topic| 1 + topic.partition_indexes.len()).sum::<usize>();
            (find_named(group, topics, named.iter().map(|topic| (&topic.name, &topic.partition_indexes))), None)
        }
        None => find_all(group, topics, from.offset.as_ref(), &mut load),
    };
    load.bytes += found_bytes(&found);
    let topics = found.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, offset)| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_committed_offset(offset.map_or(NO_OFFSET, |o| o.offset))
                .with_committed_leader_epoch(offset.map_or(-1, |o| o.leader_epoch))
                .with_metadata(Some(offset.map_or_else(StrBytes::new, |o| o.metadata.clone())))
        });
        OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    let response = OffsetFetchResponse::default().with_topics(topics.collect()).into();
    let next = last.map(|last| Cursor { offset: Some(last), ..Cursor::default() });
    Part { response, entries: load.entries, bytes: load.bytes, goes_on: from.offset.is_some(), next }
}

/// Approximate bytes of offsets in an answer.
fn found_bytes(found: &Found<'_>) -> usize {
    let offset = |offset: &Option<&CommittedOffset>| OFFSET_BYTES + offset.map_or(0, |offset| offset.metadata.len());
    let topic = |(name, offsets): &(TopicName, Vec<(i32, Option<&CommittedOffset>)>)| {
        TOPIC_BYTES + name.len() + offsets.iter().map(|(_, found)| offset(found)).sum::<usize>()
    };
    found.iter().map(topic).sum()
}

/// The offsets that a request names.
fn find_named<'a, 'r, T>(
    group: Option<&'a Group<T>>,
    topics: &dyn Topics,
    named: impl Iterator<Item = (&'r TopicName, &'r Vec<i32>)>,
) -> Found<'a> {
    let find = |(topic, indexes): (&TopicName, &Vec<i32>)| {
        let (offsets, incarnation) = (group.and_then(|group| group.offsets.get(&**topic)), topics.find(topic));
        let counting = |index| offsets?.get(&index).filter(|offset| offset.is_of(incarnation));
        (topic.clone(), indexes.iter().map(|&index| (index, counting(index))).collect())
    };
    named.map(find).collect()
}

/// The group's offsets behind `after`, in their order, as many as fit the part. Returns the last one that was looked
/// at if there are more.
fn find_all<'a, T>(
    group: Option<&'a Group<T>>,
    topics: &dyn Topics,
    after: Option<&(StrBytes, i32)>,
    load: &mut Load,
) -> (Found<'a>, Option<(StrBytes, i32)>) {
    let mut found: Found<'a> = Vec::new();
    let Some(group) = group else { return (found, None) };
    let mut last: Option<(StrBytes, i32)> = after.cloned();
    let first = after.map_or(Bound::Unbounded, |(topic, _)| Bound::Included(topic.clone()));
    for (topic, offsets) in group.offsets.range((first, Bound::Unbounded)) {
        let from = match after.filter(|(first, _)| first == topic) {
            Some((_, partition)) => Bound::Excluded(*partition),
            None => Bound::Unbounded,
        };
        let incarnation = topics.find(topic);
        let mut rows = Vec::new();
        let mut is_full = false;
        load.entries += 1;
        for (&partition, offset) in offsets.range((from, Bound::Unbounded)) {
            is_full = !load.has_room(1);
            if is_full {
                break;
            }
            load.entries += 1;
            last = Some((topic.clone(), partition));
            if offset.is_of(incarnation) {
                rows.push((partition, Some(offset)));
            }
        }
        if !rows.is_empty() {
            found.push((TopicName(topic.clone()), rows));
        }
        if is_full {
            return (found, last);
        }
    }
    (found, None)
}
