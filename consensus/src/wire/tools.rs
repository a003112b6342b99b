//! The encoding of tools' requests to a broker, and of its answers.

use super::{
    WireError, finished,
    plane::{acks_in, acks_out, quorum_in, quorum_out},
    verified,
};
use crate::{
    generated::peer::millrace::peer as fb,
    metadata::{self, Query, QueryAnswer},
    plane::{Accepted, Acks, Quorum},
};
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, WIPOffset};
use types::{RaftIndex, Term};

/// How fresh the answer to a tool's read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// At most as old as a read lease.
    #[default]
    Leased,
    /// Contains everything that was acknowledged by a quorum before the request.
    Linearizable,
    /// On the leader, also contains uncommitted writes, which may still be lost.
    Overlay,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolRequest {
    pub id: u64,
    pub ask: ToolAsk,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ToolAsk {
    /// `acks`: `None` for the setting `metadata.acks`.
    Write {
        acks: Option<Acks>,
        commands: Vec<metadata::Command>,
    },
    Read {
        consistency: Consistency,
        queries: Vec<Query>,
    },
    Describe,
    /// Measures the round trip of messages to other cores of the broker that gets the request.
    ProbeMesh {
        /// `None`: every other core, one after the other.
        to: Option<u16>,
        /// Number of messages to each core.
        rounds: u32,
        /// Number of messages in flight at a time.
        in_flight: u16,
    },
}

/// Round trips from one core to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshTimes {
    pub to: u16,
    pub min_ns: u64,
    pub max_ns: u64,
    pub sum_ns: u64,
    /// A histogram, ascending: each bucket's inclusive upper bound in ns, and the number of round trips in the
    /// bucket.
    pub buckets: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolResponse {
    pub id: u64,
    pub answer: ToolAnswer,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ToolAnswer {
    Written(Accepted),
    Answers(Vec<QueryAnswer>),
    Quorum(Quorum),
    MeshProbed {
        /// The core that took the request.
        from: u16,
        times: Vec<MeshTimes>,
    },
    /// One of Kafka's error codes, and the reason.
    Failed {
        code: u16,
        message: String,
    },
}

fn mesh_times_out<'a>(out: &mut FlatBufferBuilder<'a>, times: &MeshTimes) -> WIPOffset<fb::MeshTimes<'a>> {
    let buckets: Vec<_> =
        times.buckets.iter().map(|(up_to_ns, count)| fb::MeshBucket::new(*up_to_ns, *count)).collect();
    let MeshTimes { to, min_ns, max_ns, sum_ns, .. } = *times;
    let args = fb::MeshTimesArgs { to, min_ns, max_ns, sum_ns, buckets: Some(out.create_vector(&buckets)) };
    fb::MeshTimes::create(out, &args)
}

fn mesh_times_in(times: fb::MeshTimes<'_>) -> MeshTimes {
    MeshTimes {
        to: times.to(),
        min_ns: times.min_ns(),
        max_ns: times.max_ns(),
        sum_ns: times.sum_ns(),
        buckets: times.buckets().iter().map(|bucket| (bucket.up_to_ns(), bucket.count())).collect(),
    }
}

pub fn encode_request(request: &ToolRequest) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(512);
    let (request_type, body) = match &request.ask {
        ToolAsk::Write { acks, commands } => {
            let args = fb::WriteArgs {
                own_acks: acks.is_some(),
                acks: acks_out(acks.unwrap_or_default()),
                commands: Some(out.create_vector::<u8>(&metadata::encode(commands))),
            };
            (fb::Request::Write, fb::Write::create(&mut out, &args).as_union_value())
        }
        ToolAsk::Read { consistency, queries } => {
            let consistency = match consistency {
                Consistency::Leased => fb::Consistency::Leased,
                Consistency::Linearizable => fb::Consistency::Linearizable,
                Consistency::Overlay => fb::Consistency::Overlay,
            };
            let queries = Some(out.create_vector::<u8>(&metadata::encode_queries(queries)));
            let args = fb::ReadArgs { consistency, queries };
            (fb::Request::Read, fb::Read::create(&mut out, &args).as_union_value())
        }
        ToolAsk::Describe => {
            let body = fb::DescribeQuorum::create(&mut out, &fb::DescribeQuorumArgs {});
            (fb::Request::DescribeQuorum, body.as_union_value())
        }
        ToolAsk::ProbeMesh { to, rounds, in_flight } => {
            let to = to.map_or(-1, i32::from);
            let args = fb::ProbeMeshArgs { to, rounds: *rounds, in_flight: *in_flight };
            (fb::Request::ProbeMesh, fb::ProbeMesh::create(&mut out, &args).as_union_value())
        }
    };
    let args = fb::ToolRequestArgs { id: request.id, request_type, request: Some(body) };
    let root = fb::ToolRequest::create(&mut out, &args);
    finished(out, root)
}

pub fn decode_request(bytes: &[u8]) -> Result<ToolRequest, WireError> {
    let request = verified::<fb::ToolRequest<'_>>(bytes)?;
    let ask = if let Some(write) = request.request_as_write() {
        let acks = if write.own_acks() { Some(acks_in(write.acks())?) } else { None };
        ToolAsk::Write { acks, commands: metadata::decode(write.commands().bytes())? }
    } else if let Some(read) = request.request_as_read() {
        let consistency = match read.consistency() {
            fb::Consistency::Leased => Consistency::Leased,
            fb::Consistency::Linearizable => Consistency::Linearizable,
            fb::Consistency::Overlay => Consistency::Overlay,
            other => return Err(WireError::UnknownKind(other.0)),
        };
        ToolAsk::Read { consistency, queries: metadata::decode_queries(read.queries().bytes())? }
    } else if request.request_as_describe_quorum().is_some() {
        ToolAsk::Describe
    } else if let Some(probe) = request.request_as_probe_mesh() {
        let to = match probe.to() {
            -1 => None,
            to => Some(u16::try_from(to).map_err(|_| WireError::Core(to))?),
        };
        ToolAsk::ProbeMesh { to, rounds: probe.rounds(), in_flight: probe.in_flight() }
    } else {
        return Err(WireError::UnknownKind(request.request_type().0));
    };
    Ok(ToolRequest { id: request.id(), ask })
}

pub fn encode_response(response: &ToolResponse) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(512);
    let (response_type, body) = match &response.answer {
        ToolAnswer::Written(Accepted { term, index, results }) => {
            let results = Some(out.create_vector::<u8>(&metadata::encode_results(results)));
            let args = fb::WrittenArgs { term: term.0, index: index.get(), results };
            (fb::Response::Written, fb::Written::create(&mut out, &args).as_union_value())
        }
        ToolAnswer::Answers(answers) => {
            let answers = Some(out.create_vector::<u8>(&metadata::encode_query_answers(answers)));
            (fb::Response::Answered, fb::Answered::create(&mut out, &fb::AnsweredArgs { answers }).as_union_value())
        }
        ToolAnswer::Quorum(quorum) => (fb::Response::Quorum, quorum_out(&mut out, quorum).as_union_value()),
        ToolAnswer::MeshProbed { from, times } => {
            let times: Vec<_> = times.iter().map(|times| mesh_times_out(&mut out, times)).collect();
            let times = Some(out.create_vector(&times));
            let args = fb::MeshProbedArgs { from: *from, times };
            (fb::Response::MeshProbed, fb::MeshProbed::create(&mut out, &args).as_union_value())
        }
        ToolAnswer::Failed { code, message } => {
            let args = fb::FailedArgs { code: *code, message: Some(out.create_string(message)) };
            (fb::Response::Failed, fb::Failed::create(&mut out, &args).as_union_value())
        }
    };
    let args = fb::ToolResponseArgs { id: response.id, response_type, response: Some(body) };
    let root = fb::ToolResponse::create(&mut out, &args);
    finished(out, root)
}

pub fn decode_response(bytes: &[u8]) -> Result<ToolResponse, WireError> {
    let response = verified::<fb::ToolResponse<'_>>(bytes)?;
    let answer = if let Some(written) = response.response_as_written() {
        let results = metadata::decode_results(written.results().bytes())?;
        ToolAnswer::Written(Accepted { term: Term(written.term()), index: RaftIndex::new(written.index()), results })
    } else if let Some(answered) = response.response_as_answered() {
        ToolAnswer::Answers(metadata::decode_query_answers(answered.answers().bytes())?)
    } else if let Some(quorum) = response.response_as_quorum() {
        ToolAnswer::Quorum(quorum_in(quorum))
    } else if let Some(probed) = response.response_as_mesh_probed() {
        ToolAnswer::MeshProbed { from: probed.from(), times: probed.times().iter().map(mesh_times_in).collect() }
    } else if let Some(failed) = response.response_as_failed() {
        ToolAnswer::Failed { code: failed.code(), message: failed.message().to_owned() }
    } else {
        return Err(WireError::UnknownKind(response.response_type().0));
    };
    Ok(ToolResponse { id: response.id(), answer })
}
