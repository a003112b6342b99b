//! The recent answers of a slice, by origin. If the first answer was lost and the request is proposed again, the
//! slice repeats the answer and does not apply the request again.
//!
//! Invariants: a node's answers belong to its newest incarnation; every kept sequence is at least `lowest_open`; a
//! node has at most [`ANSWERS_MAX`].

use super::{
    DecodeError, NameError, Origin, Outcome, Rejection, RequestResult,
    command::verified,
    encoding::{RestoreError, topic_in, topic_out},
    room::{no_room_in, no_room_out},
};
use crate::generated::metadata::millrace::metadata as fb;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use std::{collections::BTreeMap, sync::Arc};

/// The most answers kept per node and slice. One more evicts the oldest; a retry of that request is rejected with
/// [`AskedTooLate`].
pub const ANSWERS_MAX: usize = 1024;

/// The request may have been applied before, but its answer is forgotten. The slice did nothing now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request is too old: its answer is no longer kept, and it may have been applied before")]
pub struct AskedTooLate;

type Answer = Result<Outcome, Rejection>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    incarnation: u64,
    lowest_open: u64,
    by_sequence: BTreeMap<u64, Answer>,
}

/// The undo record of one [`Answers::keep`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    node: i32,
    sequence: u64,
    /// The incarnation and lowest open sequence of the node before, if it had sent a request.
    before: Option<(u64, u64)>,
    /// The answers that were evicted.
    removed: BTreeMap<u64, Answer>,
}

/// The state of an incoming request: unknown, answered, or forgotten.
pub(super) enum Before {
    Nothing,
    Answered(Answer),
    Forgotten,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answers {
    by_node: BTreeMap<i32, Asked>,
}

impl Answers {
    pub(super) fn before(&self, origin: Origin) -> Before {
        match self.by_node.get(&origin.node) {
            Some(asked) if origin.incarnation < asked.incarnation => Before::Forgotten,
            Some(asked) if origin.incarnation == asked.incarnation => match asked.by_sequence.get(&origin.sequence) {
                Some(answer) => Before::Answered(answer.clone()),
                None if origin.sequence < asked.lowest_open => Before::Forgotten,
                None => Before::Nothing,
            },
            _ => Before::Nothing,
        }
    }

    /// Keeps the answer to a request that was not known before. Returns the undo record.
    pub(super) fn keep(&mut self, origin: Origin, answer: Answer) -> Kept {
        let Origin { node, incarnation, sequence, lowest_open } = origin;
        let new = || Asked { incarnation, lowest_open, by_sequence: BTreeMap::new() };
        let before = self.by_node.get(&node).map(|asked| (asked.incarnation, asked.lowest_open));
        let asked = self.by_node.entry(node).or_insert_with(new);
        let mut removed = BTreeMap::new();
        if asked.incarnation < incarnation {
            removed = std::mem::replace(asked, new()).by_sequence;
        }
        asked.by_sequence.insert(sequence, answer);
        // A request below its own `lowest_open` is a mistake of its origin. Its answer must not be evicted at once.
        let mut lowest_open = asked.lowest_open.max(lowest_open.min(sequence));
        let kept = asked.by_sequence.split_off(&lowest_open);
        removed.append(&mut std::mem::replace(&mut asked.by_sequence, kept));
        while asked.by_sequence.len() > ANSWERS_MAX {
            let (oldest, answer) = asked.by_sequence.pop_first().expect("there are more answers than the limit");
            removed.insert(oldest, answer);
            lowest_open = oldest + 1;
        }
        asked.lowest_open = lowest_open;
        Kept { node, sequence, before, removed }
    }

    /// Undoes the newest [`Answers::keep`].
    pub(super) fn forget(&mut self, kept: Kept) {
        let Kept { node, sequence, before, removed } = kept;
        let Some((incarnation, lowest_open)) = before else {
            self.by_node.remove(&node);
            return;
        };
        let asked = self.by_node.get_mut(&node).expect("the answer was just kept");
        if asked.incarnation == incarnation {
            asked.by_sequence.extend(removed);
            // This comes last: the answer may be among `removed`, if it was itself the oldest of too many and was
            // evicted at once.
            asked.by_sequence.remove(&sequence);
        } else {
            asked.by_sequence = removed;
        }
        (asked.incarnation, asked.lowest_open) = (incarnation, lowest_open);
    }

    pub(super) fn check(&self) {
        for (node, asked) in &self.by_node {
            let lowest = asked.by_sequence.keys().next();
            assert!(
                lowest.is_none_or(|lowest| *lowest >= asked.lowest_open),
                "node {node} has answers that it no longer needs"
            );
            assert!(asked.by_sequence.len() <= ANSWERS_MAX, "node {node} has more answers than are kept");
        }
    }

    /// `None` if there are no answers.
    pub(super) fn write<'b>(&self, out: &mut FlatBufferBuilder<'b>) -> Option<Vec<WIPOffset<fb::Origin<'b>>>> {
        let origins = self.by_node.iter().map(|(node, asked)| {
            let answers: Vec<_> =
                asked.by_sequence.iter().map(|(sequence, answer)| write(out, *sequence, answer)).collect();
            let args = fb::OriginArgs {
                node: *node,
                incarnation: asked.incarnation,
                lowest_open: asked.lowest_open,
                answers: Some(out.create_vector(&answers)),
            };
            fb::Origin::create(out, &args)
        });
        let origins: Vec<_> = origins.collect();
        (!origins.is_empty()).then_some(origins)
    }

    pub(super) fn read<'b>(origins: impl Iterator<Item = fb::Origin<'b>>) -> Result<Self, RestoreError> {
        let mut by_node = BTreeMap::new();
        for origin in origins {
            let answers = origin.answers().iter().map(|answer| {
                let sequence = answer.sequence();
                let read = read(answer).ok_or(RestoreError::Answer { node: origin.node(), sequence })?;
                Ok((sequence, read))
            });
            let asked = Asked {
                incarnation: origin.incarnation(),
                lowest_open: origin.lowest_open(),
                by_sequence: answers.collect::<Result<_, RestoreError>>()?,
            };
            by_node.insert(origin.node(), asked);
        }
        Ok(Self { by_node })
    }
}

// Kinds of answers. A number never gets a second meaning.
const TOPIC_CREATED: u8 = 1;
const TOPIC_DELETED: u8 = 2;
const PARTITIONS_ADDED: u8 = 3;
const CONFIG_UPDATED: u8 = 4;
const PRODUCER_IDS: u8 = 5;
const TOPIC_EXISTS: u8 = 128;
const UNKNOWN_TOPIC: u8 = 129;
const NAME_LENGTH: u8 = 130;
const NAME_DOTS: u8 = 131;
const NAME_CHARACTER: u8 = 132;
const PARTITION_COUNT: u8 = 133;
const NO_PARTITIONS: u8 = 134;
const ASSIGNED: u8 = 6;
const LEADERS_SET: u8 = 7;
const WATERMARKS_UPDATED: u8 = 8;
const BROKER_REGISTERED: u8 = 9;
const BROKER_STATUS_UPDATED: u8 = 10;
const BROKER_UNREGISTERED: u8 = 11;
const FEATURE_SET: u8 = 12;
const CLUSTER_CONFIG_UPDATED: u8 = 13;
const UNKNOWN_PARTITION: u8 = 135;
const REPLICAS_CHANGED: u8 = 136;
const STALE_BROKER: u8 = 137;
const PEER_GONE: u8 = 138;
const UNKNOWN_BROKER: u8 = 139;
const FEATURE_DOWNGRADE: u8 = 140;
const LARGEST_ENTRY: u8 = 141;
const NO_ROOM: u8 = 142;
const ASKED_TOO_LATE: u8 = 255;

fn write<'b>(out: &mut FlatBufferBuilder<'b>, sequence: u64, answer: &Answer) -> WIPOffset<fb::Answer<'b>> {
    let mut to = fb::AnswerArgs { sequence, ..fb::AnswerArgs::default() };
    to.kind = match answer {
        Ok(Outcome::TopicCreated(topic)) => {
            to.topic = Some(topic_out(out, topic));
            TOPIC_CREATED
        }
        Ok(Outcome::TopicDeleted) => TOPIC_DELETED,
        Ok(Outcome::PartitionsAdded { topic, first_new }) => {
            to.topic = Some(topic_out(out, topic));
            to.second = u64::from(*first_new);
            PARTITIONS_ADDED
        }
        Ok(Outcome::ConfigUpdated) => CONFIG_UPDATED,
        Ok(Outcome::ProducerIds { first, count }) => {
            (to.first, to.second) = (*first, u64::from(*count));
            PRODUCER_IDS
        }
        Err(Rejection::TopicExists(name)) => {
            to.name = Some(out.create_string(name));
            TOPIC_EXISTS
        }
        Err(Rejection::UnknownTopic(name)) => {
            to.name = Some(out.create_string(name));
            UNKNOWN_TOPIC
        }
        Err(Rejection::InvalidName(NameError::Length(length))) => {
            to.second = *length as u64;
            NAME_LENGTH
        }
        Err(Rejection::InvalidName(NameError::Dots)) => NAME_DOTS,
        Err(Rejection::InvalidName(NameError::Character(found))) => {
            to.second = u64::from(u32::from(*found));
            NAME_CHARACTER
        }
        Err(Rejection::PartitionCount { expected, found }) => {
            (to.first, to.second) = (i64::from(*expected), u64::from(*found));
            PARTITION_COUNT
        }
        Err(Rejection::NoPartitions) => NO_PARTITIONS,
        Ok(Outcome::PartitionAssigned(topic)) => {
            to.topic = Some(topic_out(out, topic));
            ASSIGNED
        }
        Ok(Outcome::LeadersSet) => LEADERS_SET,
        Ok(Outcome::WatermarksUpdated) => WATERMARKS_UPDATED,
        Ok(Outcome::BrokerRegistered) => BROKER_REGISTERED,
        Ok(Outcome::BrokerStatusUpdated) => BROKER_STATUS_UPDATED,
        Ok(Outcome::BrokerUnregistered) => BROKER_UNREGISTERED,
        Ok(Outcome::FeatureSet) => FEATURE_SET,
        Ok(Outcome::ClusterConfigUpdated) => CLUSTER_CONFIG_UPDATED,
        Err(Rejection::UnknownPartition(partition)) => {
            to.second = u64::from(*partition);
            UNKNOWN_PARTITION
        }
        Err(Rejection::ReplicasChanged) => REPLICAS_CHANGED,
        Err(Rejection::StaleBroker { node, incarnation }) => of_broker(&mut to, *node, *incarnation, STALE_BROKER),
        // Versions that don't know this rejection read the one without the address.
        Err(Rejection::NodeIdTaken { node, incarnation, address }) => {
            to.name = Some(out.create_string(address));
            of_broker(&mut to, *node, *incarnation, STALE_BROKER)
        }
        Err(Rejection::PeerGone { node, peer }) => of_broker(&mut to, *node, *peer, PEER_GONE),
        Err(Rejection::UnknownBroker(node)) => {
            to.first = i64::from(*node);
            UNKNOWN_BROKER
        }
        Err(Rejection::FeatureDowngrade { from, to: level }) => {
            (to.first, to.second) = (i64::from(*from), u64::from(*level));
            FEATURE_DOWNGRADE
        }
        Err(Rejection::LargestEntry { node, takes, largest }) => {
            (to.first, to.second) = (i64::from(*node), *takes);
            to.name = Some(out.create_string(&largest.to_string()));
            LARGEST_ENTRY
        }
        Err(Rejection::NoRoom(no_room)) => {
            to.no_room = Some(no_room_out(out, *no_room));
            NO_ROOM
        }
    };
    fb::Answer::create(out, &to)
}

/// Fills in a rejection that concerns a broker. Returns its kind.
fn of_broker(to: &mut fb::AnswerArgs<'_>, node: i32, number: u64, kind: u8) -> u8 {
    (to.first, to.second) = (i64::from(node), number);
    kind
}

/// `None`: this version does not know the answer.
fn read(answer: fb::Answer<'_>) -> Option<Answer> {
    let topic = || Some(Arc::new(topic_in(answer.topic()?)));
    let name = || Some(Arc::<str>::from(answer.name()?));
    let second = || u32::try_from(answer.second()).ok();
    let node = || i32::try_from(answer.first()).ok();
    Some(match answer.kind() {
        TOPIC_CREATED => Ok(Outcome::TopicCreated(topic()?)),
        TOPIC_DELETED => Ok(Outcome::TopicDeleted),
        PARTITIONS_ADDED => Ok(Outcome::PartitionsAdded { topic: topic()?, first_new: second()? }),
        CONFIG_UPDATED => Ok(Outcome::ConfigUpdated),
        PRODUCER_IDS => Ok(Outcome::ProducerIds { first: answer.first(), count: second()? }),
        TOPIC_EXISTS => Err(Rejection::TopicExists(name()?)),
        UNKNOWN_TOPIC => Err(Rejection::UnknownTopic(name()?)),
        NAME_LENGTH => Err(NameError::Length(answer.second() as usize).into()),
        NAME_DOTS => Err(NameError::Dots.into()),
        NAME_CHARACTER => Err(NameError::Character(char::from_u32(second()?)?).into()),
        PARTITION_COUNT => {
            Err(Rejection::PartitionCount { expected: u32::try_from(answer.first()).ok()?, found: second()? })
        }
        NO_PARTITIONS => Err(Rejection::NoPartitions),
        ASSIGNED => Ok(Outcome::PartitionAssigned(topic()?)),
        LEADERS_SET => Ok(Outcome::LeadersSet),
        WATERMARKS_UPDATED => Ok(Outcome::WatermarksUpdated),
        BROKER_REGISTERED => Ok(Outcome::BrokerRegistered),
        BROKER_STATUS_UPDATED => Ok(Outcome::BrokerStatusUpdated),
        BROKER_UNREGISTERED => Ok(Outcome::BrokerUnregistered),
        FEATURE_SET => Ok(Outcome::FeatureSet),
        CLUSTER_CONFIG_UPDATED => Ok(Outcome::ClusterConfigUpdated),
        UNKNOWN_PARTITION => Err(Rejection::UnknownPartition(second()?)),
        REPLICAS_CHANGED => Err(Rejection::ReplicasChanged),
        STALE_BROKER if answer.name().is_some() => {
            Err(Rejection::NodeIdTaken { node: node()?, incarnation: answer.second(), address: name()? })
        }
        STALE_BROKER => Err(Rejection::StaleBroker { node: node()?, incarnation: answer.second() }),
        PEER_GONE => Err(Rejection::PeerGone { node: node()?, peer: answer.second() }),
        UNKNOWN_BROKER => Err(Rejection::UnknownBroker(node()?)),
        FEATURE_DOWNGRADE => Err(Rejection::FeatureDowngrade {
            from: u16::try_from(answer.first()).ok()?,
            to: u16::try_from(answer.second()).ok()?,
        }),
        LARGEST_ENTRY => Err(Rejection::LargestEntry {
            node: node()?,
            takes: answer.second(),
            largest: answer.name()?.parse().ok()?,
        }),
        NO_ROOM => Err(no_room_in(answer.no_room()?).into()),
        _ => return None,
    })
}

/// Encodes the results of requests for another broker.
pub fn encode_results(results: &[RequestResult]) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(64 * results.len() + 64);
    let answers: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(answer) => write(&mut out, 0, answer),
            Err(AskedTooLate) => {
                fb::Answer::create(&mut out, &fb::AnswerArgs { kind: ASKED_TOO_LATE, ..fb::AnswerArgs::default() })
            }
        })
        .collect();
    let answers = Some(out.create_vector(&answers));
    let root = fb::Results::create(&mut out, &fb::ResultsArgs { answers });
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

/// Decodes the results of requests. The bytes are verified first.
pub fn decode_results(bytes: &[u8]) -> Result<Vec<RequestResult>, DecodeError> {
    let results = verified::<fb::Results<'_>>(bytes)?.answers().iter().map(|answer| match answer.kind() {
        ASKED_TOO_LATE => Ok(Err(AskedTooLate)),
        kind => read(answer).map(Ok).ok_or(DecodeError::UnknownKind(kind)),
    });
    results.collect()
}
