//! ListOffsets (earliest, latest, by timestamp) and OffsetForLeaderEpoch (KIP-101, KIP-320).

use super::owners::{Question, ask_owners};
use crate::{
    core::{
        Core,
        messages::{FindEpochEnds, FindInMetadata, FindOffsets},
        owner::finding::{AskedEpoch, Place, Where, timestamp},
    },
    long_work::Work,
};
use net::{
    codec::produce::TopicRef,
    errors::{self, ErrorCode},
    messages::{
        ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse,
        list_offsets_request::ListOffsetsPartition,
        list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse},
        offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult},
    },
};
use std::{collections::BTreeMap, rc::Rc};
use types::{LeaderEpoch, META_CORE, META_GROUP};

pub async fn list(core: &Rc<Core>, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let mut work = Work::on(core);
    let mut named = Named::default();
    for topic in &request.topics {
        for partition in &topic.partitions {
            work.entry().await;
            named.add(topic.name.as_str(), partition.partition_index);
        }
    }
    let (mut refused, mut questions, mut of_metadata) = (Vec::new(), Vec::new(), Vec::new());
    for topic in &request.topics {
        let name = TopicRef::Name(topic.name.0.clone());
        for partition in &topic.partitions {
            work.entry().await;
            let refusal = named.refusal(topic.name.as_str(), partition, version);
            refused.push(refusal);
            if refusal.is_some() {
                continue;
            }
            if core.find_group(&name, partition.partition_index) == Ok(META_GROUP) {
                of_metadata.push((questions.len(), partition.timestamp));
            }
            let what = Where {
                timestamp: partition.timestamp,
                leader_epoch: LeaderEpoch::new(partition.current_leader_epoch),
            };
            questions.push(Question { topic: name.clone(), partition: partition.partition_index, what });
        }
    }
    drop(named);
    let mut answers = ask_owners(core, questions, |questions| FindOffsets { questions }).await;
    for (place, timestamp) in of_metadata {
        answers[place] = core.ask(META_CORE, FindInMetadata { timestamp }).await;
    }
    work.resume();
    let (mut refused, mut answers) = (refused.into_iter(), answers.into_iter());
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            work.entry().await;
            let answer = match refused.next().expect("one for each partition") {
                Some(code) => Err(code),
                None => answers.next().expect("each question has an answer"),
            };
            partitions.push(row(asked.partition_index, answer));
        }
        topics.push(ListOffsetsTopicResponse::default().with_partitions(partitions).with_name(topic.name));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

fn row(partition: i32, answer: Result<Place, ErrorCode>) -> ListOffsetsPartitionResponse {
    let response = ListOffsetsPartitionResponse::default().with_partition_index(partition);
    match answer {
        Ok(place) => response
            .with_offset(place.offset)
            .with_timestamp(place.timestamp)
            .with_leader_epoch(place.leader_epoch.get()),
        Err(code) => response.with_error_code(code.code()).with_offset(-1).with_timestamp(-1),
    }
}

/// The partitions that a request names, and whether it names them more than once.
#[derive(Default)]
struct Named<'a>(BTreeMap<(&'a str, i32), bool>);

impl<'a> Named<'a> {
    fn add(&mut self, topic: &'a str, partition: i32) {
        self.0.entry((topic, partition)).and_modify(|twice| *twice = true).or_insert(false);
    }

    /// The error that a partition gets without a look at it, if any. As in Kafka, these are partitions that the
    /// request names more than once, and positions that the version does not have.
    fn refusal(&self, topic: &str, partition: &ListOffsetsPartition, version: i16) -> Option<ErrorCode> {
        match partition.timestamp {
            _ if self.0.get(&(topic, partition.partition_index)) == Some(&true) => Some(ErrorCode::InvalidRequest),
            unknown if !timestamp::is_known(unknown, version) => Some(ErrorCode::UnsupportedVersion),
            _ => None,
        }
    }
}

pub async fn for_leader_epoch(core: &Rc<Core>, request: OffsetForLeaderEpochRequest) -> OffsetForLeaderEpochResponse {
    let (mut work, mut questions) = (Work::on(core), Vec::new());
    for topic in &request.topics {
        let name = TopicRef::Name(topic.topic.0.clone());
        for partition in &topic.partitions {
            work.entry().await;
            let current = LeaderEpoch::new(partition.current_leader_epoch);
            let what = AskedEpoch { current, wanted: LeaderEpoch::new(partition.leader_epoch) };
            questions.push(Question { topic: name.clone(), partition: partition.partition, what });
        }
    }
    let answers = ask_owners(core, questions, |questions| FindEpochEnds { questions }).await;
    let mut answers = answers.into_iter();
    work.resume();
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let mut partitions = Vec::with_capacity(topic.partitions.len());
        for asked in topic.partitions {
            work.entry().await;
            let response = EpochEndOffset::default().with_partition(asked.partition);
            partitions.push(match answers.next().expect("each question has an answer") {
                Ok(Some((epoch, end))) => {
                    response.with_error_code(errors::NONE).with_leader_epoch(epoch.get()).with_end_offset(end as i64)
                }
                Ok(None) => response.with_leader_epoch(-1).with_end_offset(-1),
                Err(code) => response.with_error_code(code.code()).with_leader_epoch(-1).with_end_offset(-1),
            });
        }
        topics.push(OffsetForLeaderTopicResult::default().with_partitions(partitions).with_topic(topic.topic));
    }
    OffsetForLeaderEpochResponse::default().with_topics(topics)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::{
        StrBytes,
        messages::{TopicName, list_offsets_request::ListOffsetsTopic},
    };

    /// Topics with partitions, each with its timestamp.
    fn request(topics: &[(&'static str, &[(i32, i64)])]) -> ListOffsetsRequest {
        let topics = topics.iter().map(|(name, partitions)| {
            let partition = |(index, timestamp): &(i32, i64)| {
                ListOffsetsPartition::default().with_partition_index(*index).with_timestamp(*timestamp)
            };
            ListOffsetsTopic::default()
                .with_name(TopicName(StrBytes::from_static_str(name)))
                .with_partitions(partitions.iter().map(partition).collect())
        });
        ListOffsetsRequest::default().with_topics(topics.collect())
    }

    fn refused(request: &ListOffsetsRequest, version: i16) -> Vec<Option<ErrorCode>> {
        let asked = || {
            let topics = request.topics.iter();
            topics.flat_map(|topic| topic.partitions.iter().map(move |partition| (topic.name.as_str(), partition)))
        };
        let mut named = Named::default();
        asked().for_each(|(topic, partition)| named.add(topic, partition.partition_index));
        asked().map(|(topic, partition)| named.refusal(topic, partition, version)).collect()
    }

    #[test]
    fn a_partition_that_is_asked_for_twice_is_refused_and_no_other() {
        let request = request(&[("a", &[(0, -1), (1, -1), (0, -2)]), ("b", &[(0, -1)]), ("a", &[(2, 5), (1, -1)])]);
        let twice = Some(ErrorCode::InvalidRequest);
        assert_eq!(refused(&request, 10), [twice, twice, twice, None, None, twice]);
    }

    #[test]
    fn positions_are_known_from_the_version_that_brought_them() {
        for (timestamp, from) in [(-1, 1), (-2, 1), (0, 1), (i64::MAX, 1), (-3, 7), (-4, 8), (-5, 9)] {
            for version in 1..=10 {
                let expected = (version < from).then_some(ErrorCode::UnsupportedVersion);
                assert_eq!(
                    refused(&request(&[("a", &[(0, timestamp)])]), version),
                    [expected],
                    "{timestamp} {version}"
                );
            }
        }
        for unknown in [-6, -7, i64::MIN] {
            assert_eq!(refused(&request(&[("a", &[(0, unknown)])]), 10), [Some(ErrorCode::UnsupportedVersion)]);
        }
    }
}
