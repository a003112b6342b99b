//! Valid inputs, as the crate's own encoders make them.

use std::time::Duration;

use bytes::Bytes;
use consensus::group::descriptor::{Descriptor, EntryData};
use consensus::group::{Message, MessageType, RaftEntry};
use consensus::metadata::{
    self, AskedTooLate, Broker, BrokerStatus, Command, HostPort, LeaderReport, Origin, Outcome, Query, QueryAnswer,
    Request, WatermarkReport,
};
use consensus::plane::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused};
use consensus::wire::{
    Beat, Caller, Consistency, Frame, Hello, MeshTimes, PeerMessage, Rest, SnapshotChunk, ToolAnswer, ToolAsk,
    ToolRequest, ToolResponse, encode_hello, encode_request, encode_response,
};
use types::{GroupId, Position, RaftIndex, Term};
use uuid::Uuid;

const GROUP: GroupId = GroupId(4);
const ASK: Ask = Ask { incarnation: 1, number: 2 };

/// Frames of one message each, and one of all of them.
pub fn messages() -> Vec<Vec<u8>> {
    let mut all: Vec<PeerMessage> = plane().into_iter().map(PeerMessage::Plane).collect();
    all.extend([
        PeerMessage::Raft { group: GROUP, message: append() },
        PeerMessage::Raft { group: GROUP, message: snapshot() },
        PeerMessage::Append { group: GROUP, message: append(), payloads: vec![(1, Bytes::from_static(b"a batch"))] },
        PeerMessage::Rest(Rest { group: GROUP, at: Position { index: RaftIndex::new(7), term: Term(3) } }),
        PeerMessage::Beat(Beat { incarnation: 1, core: 0, cores: 2, healthy: true }),
        PeerMessage::Elect { group: GROUP },
        PeerMessage::SnapshotChunk(SnapshotChunk {
            group: GROUP,
            index: RaftIndex::new(1),
            term: Term(2),
            offset: 3,
            total: 9,
            crc: 4,
            bytes: Bytes::from_static(b"piece"),
        }),
    ]);
    let mut frames: Vec<Vec<u8>> = all.chunks(1).map(frame).collect();
    frames.push(frame(&all));
    frames
}

fn frame(messages: &[PeerMessage]) -> Vec<u8> {
    Frame::new(messages).into_parts().concat()
}

fn append() -> Message {
    let mut message = Message { to: 1, from: 2, term: 3, log_term: 3, index: 5, commit: 6, ..Message::default() };
    message.set_msg_type(MessageType::MsgAppend);
    let entry = |index, data| RaftEntry { index, term: 3, data, ..RaftEntry::default() };
    message.set_entries(vec![entry(6, Bytes::from_static(b"data")), entry(7, Bytes::new())].into());
    message
}

fn snapshot() -> Message {
    let mut message = Message { to: 1, from: 2, term: 3, ..Message::default() };
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (11, 2);
    metadata.mut_conf_state().set_voters(vec![1, 2]);
    metadata.mut_conf_state().set_learners(vec![3]);
    message
}

fn accepted() -> Accepted {
    let produced = Outcome::ProducerIds { first: 0, count: 5 };
    Accepted {
        term: Term(1),
        index: RaftIndex::new(2),
        results: vec![Ok(Ok(produced)), Ok(Ok(Outcome::LeadersSet)), Err(AskedTooLate)],
    }
}

fn quorum() -> Quorum {
    let voter = Progress { peer: 1, matched: RaftIndex::new(3), heard_ms_ago: Some(0), caught_up_ms_ago: None };
    Quorum { leader: 1, term: Term(2), commit: RaftIndex::new(3), voters: vec![voter], learners: vec![voter] }
}

fn plane() -> Vec<PlaneMessage> {
    let sent_at = Duration::from_nanos(7);
    vec![
        PlaneMessage::Forward { ask: ASK, acks: Acks::Leader, requests: requests() },
        PlaneMessage::Forwarded { ask: ASK, answer: Ok(accepted()) },
        PlaneMessage::ReadIndex { ask: ASK },
        PlaneMessage::ReadIndexed { ask: ASK, answer: Err(Refused::Busy) },
        PlaneMessage::Probe { incarnation: 1, sent_at },
        PlaneMessage::Heartbeat { incarnation: 1, sent_at, term: Term(2), commit: RaftIndex::new(3) },
        PlaneMessage::Describe { ask: ASK },
        PlaneMessage::Described { ask: ASK, answer: Ok(quorum()) },
        PlaneMessage::Described { ask: ASK, answer: Err(Refused::NotLeader { leader: Some(5) }) },
    ]
}

pub fn hellos() -> Vec<Vec<u8>> {
    let hello = Hello {
        caller: Caller::Broker,
        cluster_id: Some("cluster".to_owned()),
        node: 3,
        peer: 7,
        incarnation: 4,
        cores: 2,
        program: "0.1.0".to_owned(),
        peer_addr: "127.0.0.1:9291".to_owned(),
        seeds: vec![1, 2, 3],
        founding: vec![7, 8],
        core: 1,
    };
    [hello, Hello::of_tool("0.1.0")].iter().map(|hello| encode_hello(hello).to_vec()).collect()
}

/// Requests of tools, and responses.
pub fn tools() -> Vec<Vec<u8>> {
    let asks = [
        ToolAsk::Write { acks: Some(Acks::Leader), commands: commands() },
        ToolAsk::Read { consistency: Consistency::Linearizable, queries: queries() },
        ToolAsk::Describe,
        ToolAsk::ProbeMesh { to: Some(1), rounds: 100, in_flight: 64 },
    ];
    let times = MeshTimes { to: 3, min_ns: 10, max_ns: 20, sum_ns: 30, buckets: vec![(15, 1), (20, 1)] };
    let answers = [
        ToolAnswer::Written(accepted()),
        ToolAnswer::Answers(vec![
            QueryAnswer::NotFound,
            QueryAnswer::Count(3),
            QueryAnswer::Names(vec!["topic".into()]),
            QueryAnswer::Brokers(vec![broker().into()]),
        ]),
        ToolAnswer::Quorum(quorum()),
        ToolAnswer::MeshProbed { from: 0, times: vec![times] },
        ToolAnswer::Failed { code: 41, message: "why".to_owned() },
    ];
    let requests = asks.map(|ask| encode_request(&ToolRequest { id: 7, ask }).to_vec());
    let responses = answers.map(|answer| encode_response(&ToolResponse { id: 8, answer }).to_vec());
    requests.into_iter().chain(responses).collect()
}

fn queries() -> Vec<Query> {
    vec![
        Query::GetTopic { name: "topic".to_owned() },
        Query::ListTopics { after: Some("a".to_owned()), limit: 10 },
        Query::GetBroker { node: 1 },
        Query::ListBrokers,
        Query::GetHighWatermark { name: "topic".to_owned(), partition: 0 },
    ]
}

fn broker() -> Broker {
    let address = |port| HostPort { host: "localhost".to_owned(), port };
    Broker {
        node: 1,
        peer: 7,
        incarnation: 2,
        kafka: address(9092),
        peer_addr: address(9291),
        cores: 2,
        rack: Some("rack".to_owned()),
        version: "0.1.0".to_owned(),
        status: BrokerStatus::Alive,
        largest_entry: 1 << 20,
        replicas_max: 0,
        partitions_max: 9,
    }
}

fn commands() -> Vec<Command> {
    let (name, id) = ("topic", Uuid::from_u128(9));
    let watermark = WatermarkReport { partition: 0, high_watermark: 5, log_start: 1, end_offset: 6 };
    let leader = LeaderReport { partition: 0, term: Term(3), leader: 1, voters: vec![1, 2] };
    let setting = |value: &str| ("retention.ms".to_owned(), value.to_owned());
    vec![
        Command::CreateTopic {
            name: name.into(),
            id,
            first_group: 10,
            replicas: vec![vec![1, 2], vec![2]],
            configs: [setting("1000")].into(),
            created_ms: 1,
            peers: vec![7, 8],
        },
        Command::CreatePartitions {
            name: name.into(),
            id,
            present: 2,
            first_group: 12,
            replicas: vec![vec![1]],
            peers: vec![7],
        },
        Command::UpdateTopicConfig { name: name.into(), id, changes: vec![("retention.ms".to_owned(), None)] },
        Command::AssignPartition { name: name.into(), id, partition: 0, present: vec![1], replicas: vec![2] },
        Command::SetPartitionLeader { name: name.into(), id, leaders: vec![leader] },
        Command::UpdateHighWatermark { name: name.into(), id, node: 1, watermarks: vec![watermark] },
        Command::DeleteTopic { name: name.into(), id },
        Command::AllocateProducerIds { count: 5 },
        Command::RegisterBroker { broker: broker() },
        Command::UpdateBrokerStatus { node: 1, incarnation: 2, status: BrokerStatus::Fenced },
        Command::UnregisterBroker { node: 1 },
        Command::SetFeatureLevel { name: "feature".to_owned(), level: 2 },
        Command::UpdateClusterConfig { node: Some(1), changes: vec![("name".to_owned(), Some("value".to_owned()))] },
    ]
}

fn requests() -> Vec<Request> {
    let origin = |sequence| Origin { node: 1, incarnation: 2, sequence, lowest_open: 1 };
    let request = |(sequence, command)| Request { origin: Some(origin(sequence)), ..Request::from(command) };
    (1..).zip(commands()).map(request).collect()
}

/// Entries of a partition's log, and of the metadata log.
pub fn entries() -> Vec<Vec<u8>> {
    let batch = Descriptor { base_offset: 40, count: 3, bytes: 500, crc: 77, max_timestamp: -1 };
    let of_partition = [EntryData::Nothing, EntryData::Batch(batch), EntryData::LogStart { offset: 9 }];
    let mut entries: Vec<Vec<u8>> = of_partition.iter().map(|data| data.encode().to_vec()).collect();
    entries.push(metadata::encode_requests(&requests()).to_vec());
    entries.extend(commands().chunks(1).map(|command| metadata::encode(command).to_vec()));
    entries
}
