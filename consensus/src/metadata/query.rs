//! Queries about the metadata from other processes, and the answers, with their encoding (FlatBuffers).

use super::{
    Broker, DecodeError, PartitionLeader, Topic, View, Watermark,
    command::verified,
    encoding::{broker_in, broker_out, topic_in, topic_out},
    snapshot::{watermark_in, watermark_out},
};
use crate::generated::metadata::millrace::metadata as fb;
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, UnionWIPOffset, WIPOffset};
use std::{ops::Bound, sync::Arc};
use types::{GroupId, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    GetTopic {
        name: String,
    },
    /// Topic names after `after`, in order. At most [`LIST_MAX`].
    ListTopics {
        after: Option<String>,
        limit: u32,
    },
    GetBroker {
        node: i32,
    },
    ListBrokers,
    GetPartitionAssignment {
        name: String,
        partition: u32,
    },
    GetHighWatermark {
        name: String,
        partition: u32,
    },
    GetPartitionCount {
        name: String,
    },
}

/// The most names in one answer.
pub const LIST_MAX: u32 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryAnswer {
    NotFound,
    Topic(Arc<Topic>),
    Names(Vec<Arc<str>>),
    Brokers(Vec<Arc<Broker>>),
    Assignment(Assignment),
    /// As the leader reported it, at most about a second ago.
    Watermark(Watermark),
    Count(u32),
    /// Left out, because the earlier answers already fill one response ([`ANSWERS_BYTES_MAX`]). The client must
    /// send this query alone.
    TooLarge,
}

/// A partition's assigned replicas, and what its leader reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub replicas: Vec<i32>,
    pub leader: Option<PartitionLeader>,
}

impl View {
    pub fn answer(&self, query: &Query) -> QueryAnswer {
        let found = match query {
            Query::GetTopic { name } => self.topic(name).cloned().map(QueryAnswer::Topic),
            Query::ListTopics { after, limit } => {
                let from = after.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
                let names = self.topics_from(from).take((*limit).min(LIST_MAX) as usize);
                Some(QueryAnswer::Names(names.map(|topic| topic.name.clone()).collect()))
            }
            Query::GetBroker { node } => self.broker(*node).map(|broker| QueryAnswer::Brokers(vec![broker.clone()])),
            Query::ListBrokers => Some(QueryAnswer::Brokers(self.brokers().cloned().collect())),
            Query::GetPartitionAssignment { name, partition } => self.partition(name, *partition).map(|found| {
                let (replicas, leader) = (found.replicas.clone(), self.leader(found.group).cloned());
                QueryAnswer::Assignment(Assignment { replicas, leader })
            }),
            Query::GetHighWatermark { name, partition } => {
                let group = self.partition(name, *partition).map(|found| found.group);
                group.and_then(|group| self.watermark(group)).map(QueryAnswer::Watermark)
            }
            Query::GetPartitionCount { name } => {
                self.topic(name).map(|topic| QueryAnswer::Count(topic.partitions.len() as u32))
            }
        };
        found.unwrap_or(QueryAnswer::NotFound)
    }

    fn partition(&self, name: &str, partition: u32) -> Option<&super::Partition> {
        self.topic(name)?.partitions.get(partition as usize)
    }
}

/// The most queries in one request. Bytes with more are rejected.
pub const QUERIES_MAX: usize = 512;
/// Once the answers to one request have this many bytes, the remaining ones are [`QueryAnswer::TooLarge`].
pub const ANSWERS_BYTES_MAX: usize = 16 << 20;

pub fn encode_queries(queries: &[Query]) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(64 * queries.len() + 64);
    let queries: Vec<_> = queries
        .iter()
        .map(|query| {
            let (body_type, body) = query_out(&mut out, query);
            fb::Query::create(&mut out, &fb::QueryArgs { body_type, body: Some(body) })
        })
        .collect();
    let queries = Some(out.create_vector(&queries));
    let root = fb::Queries::create(&mut out, &fb::QueriesArgs { queries });
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

type Body = WIPOffset<UnionWIPOffset>;

fn query_out(out: &mut FlatBufferBuilder<'_>, query: &Query) -> (fb::QueryBody, Body) {
    match query {
        Query::GetTopic { name } => {
            let name = Some(out.create_string(name));
            (fb::QueryBody::GetTopic, fb::GetTopic::create(out, &fb::GetTopicArgs { name }).as_union_value())
        }
        Query::ListTopics { after, limit } => {
            let after = after.as_ref().map(|after| out.create_string(after));
            let args = fb::ListTopicsArgs { after, limit: *limit };
            (fb::QueryBody::ListTopics, fb::ListTopics::create(out, &args).as_union_value())
        }
        Query::GetBroker { node } => {
            let body = fb::GetBroker::create(out, &fb::GetBrokerArgs { node: *node });
            (fb::QueryBody::GetBroker, body.as_union_value())
        }
        Query::ListBrokers => {
            let body = fb::ListBrokers::create(out, &fb::ListBrokersArgs {});
            (fb::QueryBody::ListBrokers, body.as_union_value())
        }
        Query::GetPartitionAssignment { name, partition } => {
            let args = fb::GetPartitionAssignmentArgs { name: Some(out.create_string(name)), partition: *partition };
            let body = fb::GetPartitionAssignment::create(out, &args);
            (fb::QueryBody::GetPartitionAssignment, body.as_union_value())
        }
        Query::GetHighWatermark { name, partition } => {
            let args = fb::GetHighWatermarkArgs { name: Some(out.create_string(name)), partition: *partition };
            (fb::QueryBody::GetHighWatermark, fb::GetHighWatermark::create(out, &args).as_union_value())
        }
        Query::GetPartitionCount { name } => {
            let args = fb::GetPartitionCountArgs { name: Some(out.create_string(name)) };
            (fb::QueryBody::GetPartitionCount, fb::GetPartitionCount::create(out, &args).as_union_value())
        }
    }
}

/// Decodes queries. The bytes are verified first.
pub fn decode_queries(bytes: &[u8]) -> Result<Vec<Query>, DecodeError> {
    let queries = verified::<fb::Queries<'_>>(bytes)?.queries();
    if queries.len() > QUERIES_MAX {
        return Err(DecodeError::TooManyQueries(queries.len()));
    }
    queries.iter().map(query_in).collect()
}

fn query_in(query: fb::Query<'_>) -> Result<Query, DecodeError> {
    const VERIFIED: &str = "the verifier checked the union's type";
    Ok(match query.body_type() {
        fb::QueryBody::GetTopic => {
            Query::GetTopic { name: query.body_as_get_topic().expect(VERIFIED).name().to_owned() }
        }
        fb::QueryBody::ListTopics => {
            let body = query.body_as_list_topics().expect(VERIFIED);
            Query::ListTopics { after: body.after().map(str::to_owned), limit: body.limit() }
        }
        fb::QueryBody::GetBroker => Query::GetBroker { node: query.body_as_get_broker().expect(VERIFIED).node() },
        fb::QueryBody::ListBrokers => Query::ListBrokers,
        fb::QueryBody::GetPartitionAssignment => {
            let body = query.body_as_get_partition_assignment().expect(VERIFIED);
            Query::GetPartitionAssignment { name: body.name().to_owned(), partition: body.partition() }
        }
        fb::QueryBody::GetHighWatermark => {
            let body = query.body_as_get_high_watermark().expect(VERIFIED);
            Query::GetHighWatermark { name: body.name().to_owned(), partition: body.partition() }
        }
        fb::QueryBody::GetPartitionCount => {
            Query::GetPartitionCount { name: query.body_as_get_partition_count().expect(VERIFIED).name().to_owned() }
        }
        other => return Err(DecodeError::UnknownKind(other.0)),
    })
}

pub fn encode_query_answers(answers: &[QueryAnswer]) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(256 * answers.len() + 64);
    let answers: Vec<_> = answers
        .iter()
        .map(|answer| {
            let is_full = out.unfinished_data().len() >= ANSWERS_BYTES_MAX;
            let answer = if is_full { &QueryAnswer::TooLarge } else { answer };
            let (body_type, body) = answer_out(&mut out, answer);
            fb::QueryAnswer::create(&mut out, &fb::QueryAnswerArgs { body_type, body: Some(body) })
        })
        .collect();
    let answers = Some(out.create_vector(&answers));
    let root = fb::QueryAnswers::create(&mut out, &fb::QueryAnswersArgs { answers });
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

fn answer_out(out: &mut FlatBufferBuilder<'_>, answer: &QueryAnswer) -> (fb::QueryAnswerBody, Body) {
    match answer {
        QueryAnswer::NotFound => {
            let body = fb::NotFound::create(out, &fb::NotFoundArgs {});
            (fb::QueryAnswerBody::NotFound, body.as_union_value())
        }
        QueryAnswer::Topic(topic) => (fb::QueryAnswerBody::Topic, topic_out(out, topic).as_union_value()),
        QueryAnswer::Names(names) => {
            let names: Vec<_> = names.iter().map(|name| out.create_string(name)).collect();
            let names = Some(out.create_vector(&names));
            (fb::QueryAnswerBody::Names, fb::Names::create(out, &fb::NamesArgs { names }).as_union_value())
        }
        QueryAnswer::Brokers(brokers) => {
            let brokers: Vec<_> = brokers.iter().map(|broker| broker_out(out, broker)).collect();
            let brokers = Some(out.create_vector(&brokers));
            (fb::QueryAnswerBody::Brokers, fb::Brokers::create(out, &fb::BrokersArgs { brokers }).as_union_value())
        }
        QueryAnswer::Assignment(Assignment { replicas, leader }) => {
            let voters = leader.as_ref().map(|leader| &leader.voters[..]).unwrap_or_default();
            let args = fb::AssignmentArgs {
                replicas: Some(out.create_vector(replicas)),
                term: leader.as_ref().map_or(0, |leader| leader.term.0),
                leader: leader.as_ref().map_or(-1, |leader| leader.leader),
                voters: Some(out.create_vector(voters)),
            };
            (fb::QueryAnswerBody::Assignment, fb::Assignment::create(out, &args).as_union_value())
        }
        QueryAnswer::Watermark(watermark) => {
            (fb::QueryAnswerBody::Watermark, watermark_out(out, GroupId(0), *watermark).as_union_value())
        }
        QueryAnswer::Count(count) => {
            (fb::QueryAnswerBody::Count, fb::Count::create(out, &fb::CountArgs { count: *count }).as_union_value())
        }
        QueryAnswer::TooLarge => {
            let body = fb::TooLarge::create(out, &fb::TooLargeArgs {});
            (fb::QueryAnswerBody::TooLarge, body.as_union_value())
        }
    }
}

/// Decodes answers. The bytes are verified first.
pub fn decode_query_answers(bytes: &[u8]) -> Result<Vec<QueryAnswer>, DecodeError> {
    verified::<fb::QueryAnswers<'_>>(bytes)?.answers().iter().map(answer_in).collect()
}

fn answer_in(answer: fb::QueryAnswer<'_>) -> Result<QueryAnswer, DecodeError> {
    const VERIFIED: &str = "the verifier checked the union's type";
    Ok(match answer.body_type() {
        fb::QueryAnswerBody::NotFound => QueryAnswer::NotFound,
        fb::QueryAnswerBody::Topic => QueryAnswer::Topic(Arc::new(topic_in(answer.body_as_topic().expect(VERIFIED)))),
        fb::QueryAnswerBody::Names => {
            QueryAnswer::Names(answer.body_as_names().expect(VERIFIED).names().iter().map(Arc::from).collect())
        }
        fb::QueryAnswerBody::Brokers => {
            let brokers = answer.body_as_brokers().expect(VERIFIED).brokers();
            QueryAnswer::Brokers(brokers.iter().map(broker_in).map(Arc::new).collect())
        }
        fb::QueryAnswerBody::Assignment => {
            let body = answer.body_as_assignment().expect(VERIFIED);
            let (term, leader, voters) = (body.term(), body.leader(), body.voters().iter().collect());
            QueryAnswer::Assignment(Assignment {
                replicas: body.replicas().iter().collect(),
                leader: (term > 0).then_some(PartitionLeader { term: Term(term), leader, voters }),
            })
        }
        fb::QueryAnswerBody::Watermark => {
            QueryAnswer::Watermark(watermark_in(answer.body_as_watermark().expect(VERIFIED)))
        }
        fb::QueryAnswerBody::Count => QueryAnswer::Count(answer.body_as_count().expect(VERIFIED).count()),
        fb::QueryAnswerBody::TooLarge => QueryAnswer::TooLarge,
        other => return Err(DecodeError::UnknownKind(other.0)),
    })
}
