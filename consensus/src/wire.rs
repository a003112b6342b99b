//! What brokers say to each other, and to tools, as bytes (FlatBuffers). Bytes of peers are verified before anything is read.

use crate::{
    generated::peer::millrace::peer as fb,
    group::{Entry, Message, Position},
    group_members,
    metadata::{self, DecodeError, Query, QueryAnswer, Request, RequestResult},
    plane::{Accepted, Acks, Ask, PlaneMessage, Progress, Quorum, Refused},
};
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, VerifierOptions, WIPOffset};
use raft::eraftpb::{self, MessageType};
use std::time::Duration;

/// Of the protocol between brokers.
pub const VERSION: u16 = 1;

/// How a connection begins, on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub caller: Caller,
    /// `None`: this broker belongs to no cluster yet.
    pub cluster_id: Option<String>,
    pub node: i32,
    pub peer: u64,
    pub incarnation: u64,
    pub cores: u16,
    /// The program's version.
    pub program: String,
    /// Where other brokers reach this one, as host:port.
    pub peer_addr: String,
    /// The node ids of its `--seeds`, ascending.
    pub seeds: Vec<i32>,
    /// The cluster's first voters; none if it belongs to no cluster yet.
    pub founding: Vec<u64>,
    /// The core of the other side that the connection is for, modulo how many it has.
    pub core: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Broker,
    Tool,
}

/// One message between brokers.
#[derive(Clone, Debug, PartialEq)]
pub enum PeerMessage {
    Raft {
        group: u64,
        message: Message,
    },
    /// With the batches of its entries, each with the place of its entry: they travel beside the message, and are not copied.
    Append {
        group: u64,
        message: Message,
        payloads: Vec<(usize, Bytes)>,
    },
    Rest(Rest),
    Beat(Beat),
    /// Whoever leads the group is to hand over to its preferred leader.
    Elect {
        group: u64,
    },
    Plane(PlaneMessage),
    SnapshotChunk(SnapshotChunk),
}

/// All replicas of a group that are there have everything up to this entry, committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    pub group: u64,
    pub at: Position,
}

/// A core of a broker is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub incarnation: u64,
    pub core: u16,
    pub cores: u16,
    /// Its storage works: it can lead.
    pub healthy: bool,
}

/// A piece of a snapshot's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    pub group: u64,
    /// Where the snapshot was cut.
    pub index: u64,
    pub term: u64,
    pub offset: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// CRC-32C of `bytes`.
    pub crc: u32,
    pub bytes: Bytes,
}

/// How fresh the answer to a tool's read is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// At most a read lease old.
    #[default]
    Leased,
    /// Everything acknowledged at quorum before the request.
    Linearizable,
    /// On the leader: also what is not committed, and may be dropped.
    Overlay,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ToolRequest {
    pub id: u64,
    pub ask: ToolAsk,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ToolAsk {
    /// `acks`: `None` for what `metadata.acks` says.
    Write {
        acks: Option<Acks>,
        commands: Vec<metadata::Command>,
    },
    Read {
        consistency: Consistency,
        queries: Vec<Query>,
    },
    Describe,
    /// How long messages take to another core of the broker that is asked, and back.
    ProbeMesh {
        /// `None`: each other core, one after the other.
        to: Option<u16>,
        /// To each core.
        rounds: u32,
        /// How many are on their way at a time.
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
    /// Upper bounds in ns, inclusive and ascending, and how many took no longer than that, but longer than the bound before.
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
    /// One of Kafka's error codes, and why.
    Failed {
        code: u16,
        message: String,
    },
}

/// Why bytes say nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a message of brokers: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    #[error("protocol version {0} is newer than this program's {VERSION}; run the newer program here too")]
    Newer(u16),
    #[error("a message of a kind unknown to this version (number {0})")]
    UnknownKind(u8),
    #[error("core {0}: cores are numbered from 0 to 65535")]
    Core(i32),
    #[error("the batches of a frame are not those that its messages name")]
    Payloads,
    #[error("a Raft message that can't be read: {0}")]
    Raft(String),
    #[error(transparent)]
    Metadata(#[from] DecodeError),
}

/// Tables of one frame; more are a mistake or an attack.
const TABLES_MAX: usize = 1 << 20;
/// How often the bytes of a frame may be told in it: what a builder writes shares little, whereas a forged frame of a few MiB could
/// name its largest part thousands of times.
const SHARED_MAX: usize = 8;

fn verified<'b, T: flatbuffers::Follow<'b> + flatbuffers::Verifiable + 'b>(
    bytes: &'b [u8],
) -> Result<T::Inner, InvalidFlatbuffer> {
    let max_apparent_size = bytes.len().saturating_mul(SHARED_MAX);
    let options = VerifierOptions { max_tables: TABLES_MAX, max_apparent_size, ..VerifierOptions::default() };
    flatbuffers::root_with_opts::<T>(&options, bytes)
}

fn finished<T>(mut out: FlatBufferBuilder<'_>, root: WIPOffset<T>) -> Bytes {
    out.finish(root, None);
    let (buffer, start) = out.collapse();
    Bytes::from(buffer).slice(start..)
}

pub fn encode_hello(hello: &Hello) -> Bytes {
    let mut out = FlatBufferBuilder::with_capacity(256);
    let args = fb::HelloArgs {
        version: VERSION,
        caller: match hello.caller {
            Caller::Broker => fb::Caller::Broker,
            Caller::Tool => fb::Caller::Tool,
        },
        cluster_id: hello.cluster_id.as_ref().map(|id| out.create_string(id)),
        node: hello.node,
        peer: hello.peer,
        incarnation: hello.incarnation,
        cores: hello.cores,
        program: Some(out.create_string(&hello.program)),
        peer_addr: Some(out.create_string(&hello.peer_addr)),
        seeds: Some(out.create_vector(&hello.seeds)),
        founding: Some(out.create_vector(&hello.founding)),
        core: hello.core,
    };
    let root = fb::Hello::create(&mut out, &args);
    finished(out, root)
}

pub fn decode_hello(bytes: &[u8]) -> Result<Hello, WireError> {
    let hello = verified::<fb::Hello<'_>>(bytes)?;
    if hello.version() > VERSION {
        return Err(WireError::Newer(hello.version()));
    }
    Ok(Hello {
        caller: match hello.caller() {
            fb::Caller::Broker => Caller::Broker,
            fb::Caller::Tool => Caller::Tool,
            other => return Err(WireError::UnknownKind(other.0)),
        },
        cluster_id: hello.cluster_id().map(str::to_owned),
        node: hello.node(),
        peer: hello.peer(),
        incarnation: hello.incarnation(),
        cores: hello.cores(),
        program: hello.program().unwrap_or_default().to_owned(),
        peer_addr: hello.peer_addr().unwrap_or_default().to_owned(),
        seeds: hello.seeds().into_iter().flatten().collect(),
        founding: hello.founding().into_iter().flatten().collect(),
        core: hello.core(),
    })
}

/// Messages that leave together, and the batches behind them.
pub struct Frame {
    pub messages: Bytes,
    pub payloads: Vec<Bytes>,
}

impl Frame {
    pub fn new(messages: &[PeerMessage]) -> Self {
        let of = |message: &PeerMessage| match message {
            PeerMessage::Append { payloads, .. } => payloads.iter().map(|(_, bytes)| bytes.clone()).collect(),
            _ => Vec::new(),
        };
        Self { messages: encode(messages), payloads: messages.iter().flat_map(of).collect() }
    }

    /// What is sent: without payloads, the messages alone; else their length, the messages and the payloads.
    pub fn into_parts(self) -> Vec<Bytes> {
        if self.payloads.is_empty() {
            return vec![self.messages];
        }
        let length = Bytes::copy_from_slice(&(self.messages.len() as u32).to_le_bytes());
        [length, self.messages].into_iter().chain(self.payloads).collect()
    }
}

/// Reads a frame of messages with payloads behind them, which are not copied.
pub fn decode_with_payloads(frame: &Bytes) -> Result<Vec<PeerMessage>, WireError> {
    let length = frame.first_chunk::<4>().ok_or(WireError::Payloads)?;
    let behind = 4 + u32::from_le_bytes(*length) as usize;
    let messages = frame.get(4..behind).ok_or(WireError::Payloads)?;
    let mut payloads = frame.slice(behind..);
    let verified = verified::<fb::Messages<'_>>(messages)?;
    let messages = verified.messages().iter().map(|message| body_in(message, &mut payloads));
    let messages = messages.collect::<Result<_, _>>()?;
    if payloads.is_empty() { Ok(messages) } else { Err(WireError::Payloads) }
}

/// Messages that leave together, in order.
pub fn encode(messages: &[PeerMessage]) -> Bytes {
    let room: usize = messages.iter().map(own_bytes).sum();
    let mut out = FlatBufferBuilder::with_capacity(room);
    let written: Vec<_> = messages
        .iter()
        .map(|message| {
            let (body_type, body) = body_out(&mut out, message);
            fb::Message::create(&mut out, &fb::MessageArgs { body_type, body: Some(body) })
        })
        .collect();
    let messages = Some(out.create_vector(&written));
    let root = fb::Messages::create(&mut out, &fb::MessagesArgs { messages });
    finished(out, root)
}

/// About how many bytes a message takes.
pub fn weight(message: &PeerMessage) -> usize {
    own_bytes(message)
        + match message {
            PeerMessage::Append { payloads, .. } => payloads.iter().map(|(_, bytes)| bytes.len()).sum(),
            _ => 0,
        }
}

/// The same without what travels beside it.
fn own_bytes(message: &PeerMessage) -> usize {
    const BASE: usize = 160;
    const REQUEST: usize = 256;
    BASE + match message {
        PeerMessage::Raft { message, .. } => message.entries.iter().map(|entry| 48 + entry.data.len()).sum(),
        PeerMessage::Plane(PlaneMessage::Forward { requests, .. }) => REQUEST * requests.len(),
        PeerMessage::Plane(PlaneMessage::Forwarded { answer: Ok(accepted), .. }) => REQUEST * accepted.results.len(),
        PeerMessage::Plane(_) | PeerMessage::Rest(_) | PeerMessage::Beat(_) | PeerMessage::Elect { .. } => 0,
        PeerMessage::Append { message, payloads, .. } => {
            let entries: usize = message.entries.iter().map(|entry| 48 + entry.data.len()).sum();
            entries + 8 * payloads.len()
        }
        PeerMessage::SnapshotChunk(chunk) => chunk.bytes.len(),
    }
}

/// Reads one frame's messages; all of them can be read, or none is given out.
pub fn decode(bytes: &[u8]) -> Result<Vec<PeerMessage>, WireError> {
    verified::<fb::Messages<'_>>(bytes)?.messages().iter().map(|message| body_in(message, &mut Bytes::new())).collect()
}

type Out<'b> = FlatBufferBuilder<'b>;
type Union = WIPOffset<flatbuffers::UnionWIPOffset>;

fn body_out<'b>(out: &mut Out<'b>, message: &PeerMessage) -> (fb::Body, Union) {
    match message {
        PeerMessage::Raft { group, message } => (fb::Body::Raft, raft_out(out, *group, message, &[]).as_union_value()),
        PeerMessage::Append { group, message, payloads } => {
            (fb::Body::Raft, raft_out(out, *group, message, payloads).as_union_value())
        }
        PeerMessage::Rest(Rest { group, at: Position { index, term } }) => {
            let args = fb::RestArgs { group: *group, term: *term, index: *index };
            (fb::Body::Rest, fb::Rest::create(out, &args).as_union_value())
        }
        PeerMessage::Beat(Beat { incarnation, core, cores, healthy }) => {
            let args = fb::BeatArgs { incarnation: *incarnation, core: *core, cores: *cores, healthy: *healthy };
            (fb::Body::Beat, fb::Beat::create(out, &args).as_union_value())
        }
        PeerMessage::Elect { group } => {
            (fb::Body::Elect, fb::Elect::create(out, &fb::ElectArgs { group: *group }).as_union_value())
        }
        PeerMessage::Plane(message) => plane_out(out, message),
        PeerMessage::SnapshotChunk(SnapshotChunk { group, index, term, offset, total, crc, bytes }) => {
            let args = fb::SnapshotChunkArgs {
                group: *group,
                index: *index,
                term: *term,
                offset: *offset,
                total: *total,
                crc: *crc,
                bytes: Some(out.create_vector::<u8>(bytes)),
            };
            (fb::Body::SnapshotChunk, fb::SnapshotChunk::create(out, &args).as_union_value())
        }
    }
}

fn body_in(message: fb::Message<'_>, beside: &mut Bytes) -> Result<PeerMessage, WireError> {
    const VERIFIED: &str = "the verifier checked the union's type";
    Ok(match message.body_type() {
        fb::Body::Raft => {
            let raft = message.body_as_raft().expect(VERIFIED);
            let (group, message) = (raft.group(), raft_in(raft)?);
            match payloads_in(raft, &message, beside)? {
                payloads if payloads.is_empty() => PeerMessage::Raft { group, message },
                payloads => PeerMessage::Append { group, message, payloads },
            }
        }
        fb::Body::Rest => {
            let rest = message.body_as_rest().expect(VERIFIED);
            PeerMessage::Rest(Rest { group: rest.group(), at: Position { index: rest.index(), term: rest.term() } })
        }
        fb::Body::Beat => {
            let beat = message.body_as_beat().expect(VERIFIED);
            PeerMessage::Beat(Beat {
                incarnation: beat.incarnation(),
                core: beat.core(),
                cores: beat.cores(),
                healthy: beat.healthy(),
            })
        }
        fb::Body::Elect => PeerMessage::Elect { group: message.body_as_elect().expect(VERIFIED).group() },
        fb::Body::SnapshotChunk => {
            let chunk = message.body_as_snapshot_chunk().expect(VERIFIED);
            PeerMessage::SnapshotChunk(SnapshotChunk {
                group: chunk.group(),
                index: chunk.index(),
                term: chunk.term(),
                offset: chunk.offset(),
                total: chunk.total(),
                crc: chunk.crc(),
                bytes: Bytes::copy_from_slice(chunk.bytes().bytes()),
            })
        }
        _ => PeerMessage::Plane(plane_in(message)?),
    })
}

/// The payloads that a message names, off the front of what is behind the messages.
fn payloads_in(raft: fb::Raft<'_>, message: &Message, beside: &mut Bytes) -> Result<Vec<(usize, Bytes)>, WireError> {
    let mut payloads: Vec<(usize, Bytes)> = Vec::new();
    for payload in raft.payloads().into_iter().flatten() {
        let (place, length) = (payload.entry() as usize, payload.bytes() as usize);
        let follows = payloads.last().is_none_or(|(before, _)| *before < place);
        if !follows || place >= message.entries.len() || length > beside.len() {
            return Err(WireError::Payloads);
        }
        payloads.push((place, beside.split_to(length)));
    }
    Ok(payloads)
}

fn raft_out<'b>(
    out: &mut Out<'b>,
    group: u64,
    message: &Message,
    payloads: &[(usize, Bytes)],
) -> WIPOffset<fb::Raft<'b>> {
    let payloads: Vec<_> =
        payloads.iter().map(|(place, bytes)| fb::Payload::new(*place as u32, bytes.len() as u32)).collect();
    let entries: Vec<_> = message
        .entries
        .iter()
        .map(|entry| {
            let data = (!entry.data.is_empty()).then(|| out.create_vector::<u8>(&entry.data));
            let args = fb::EntryArgs { kind: entry.entry_type as u8, term: entry.term, index: entry.index, data };
            fb::Entry::create(out, &args)
        })
        .collect();
    let snapshot = message.get_snapshot().get_metadata();
    let has_snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
    let members = has_snapshot.then(|| group_members::encode(snapshot.get_conf_state()));
    let args = fb::RaftArgs {
        group,
        kind: message.get_msg_type() as u8,
        to: message.to,
        from: message.from,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: (!entries.is_empty()).then(|| out.create_vector(&entries)),
        commit: message.commit,
        commit_term: message.commit_term,
        snapshot_index: snapshot.index,
        snapshot_term: snapshot.term,
        snapshot_members: members.map(|members| out.create_vector::<u8>(&members)),
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: (!message.context.is_empty()).then(|| out.create_vector::<u8>(&message.context)),
        priority: message.priority,
        payloads: (!payloads.is_empty()).then(|| out.create_vector(&payloads)),
    };
    fb::Raft::create(out, &args)
}

/// The kinds that replicas send each other; others are raft-rs's own affairs within one replica.
const KINDS: [MessageType; 11] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

fn raft_in(raft: fb::Raft<'_>) -> Result<Message, WireError> {
    let kind = KINDS.into_iter().find(|kind| *kind as u8 == raft.kind());
    let kind = kind.ok_or_else(|| WireError::Raft(format!("kind {} is not sent between replicas", raft.kind())))?;
    let mut message = Message {
        to: raft.to(),
        from: raft.from(),
        term: raft.term(),
        log_term: raft.log_term(),
        index: raft.index(),
        commit: raft.commit(),
        commit_term: raft.commit_term(),
        request_snapshot: raft.request_snapshot(),
        reject: raft.reject(),
        reject_hint: raft.reject_hint(),
        priority: raft.priority(),
        ..Message::default()
    };
    message.set_msg_type(kind);
    if let Some(context) = raft.context() {
        message.context = Bytes::copy_from_slice(context.bytes());
    }
    let entries: Vec<eraftpb::Entry> = raft.entries().into_iter().flatten().map(entry_in).collect::<Result<_, _>>()?;
    // raft-rs counts on it: each entry has the index behind the one before.
    let after = |at: usize| raft.index().checked_add(at as u64 + 1);
    let follow = entries.iter().enumerate().all(|(at, entry)| after(at) == Some(entry.index));
    if kind == MessageType::MsgAppend && !follow {
        return Err(WireError::Raft("its entries do not follow each other".to_owned()));
    }
    message.set_entries(entries.into());
    if kind == MessageType::MsgSnapshot {
        let members = raft.snapshot_members().map(|members| members.bytes()).unwrap_or_default();
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = raft.snapshot_index();
        metadata.term = raft.snapshot_term();
        metadata.set_conf_state(group_members::decode(members).map_err(WireError::Raft)?);
    }
    Ok(message)
}

fn entry_in(entry: fb::Entry<'_>) -> Result<eraftpb::Entry, WireError> {
    if entry.kind() > Entry::KIND_MAX {
        return Err(WireError::Raft(format!("an entry of kind {}", entry.kind())));
    }
    let data = entry.data().map_or_else(Bytes::new, |data| Bytes::copy_from_slice(data.bytes()));
    Ok(Entry { index: entry.index(), term: entry.term(), entry_type: entry.kind(), data }.into_raft())
}

fn ask_out(ask: Ask) -> fb::Ask {
    fb::Ask::new(ask.incarnation, ask.number)
}

fn ask_in(ask: &fb::Ask) -> Ask {
    Ask { incarnation: ask.incarnation(), number: ask.number() }
}

fn acks_out(acks: Acks) -> fb::Acks {
    match acks {
        Acks::Quorum => fb::Acks::Quorum,
        Acks::Leader => fb::Acks::Leader,
    }
}

fn acks_in(acks: fb::Acks) -> Result<Acks, WireError> {
    match acks {
        fb::Acks::Quorum => Ok(Acks::Quorum),
        fb::Acks::Leader => Ok(Acks::Leader),
        other => Err(WireError::UnknownKind(other.0)),
    }
}

fn refusal_out<T>(answer: &Result<T, Refused>) -> (fb::Refusal, u64) {
    match answer {
        Ok(_) => (fb::Refusal::None, 0),
        Err(Refused::NotLeader { leader }) => (fb::Refusal::NotLeader, leader.unwrap_or(0)),
        Err(Refused::Busy) => (fb::Refusal::Busy, 0),
    }
}

fn refusal_in(refusal: fb::Refusal, leader: u64) -> Result<Option<Refused>, WireError> {
    match refusal {
        fb::Refusal::None => Ok(None),
        fb::Refusal::NotLeader => Ok(Some(Refused::NotLeader { leader: (leader != 0).then_some(leader) })),
        fb::Refusal::Busy => Ok(Some(Refused::Busy)),
        other => Err(WireError::UnknownKind(other.0)),
    }
}

fn plane_out<'b>(out: &mut Out<'b>, message: &PlaneMessage) -> (fb::Body, Union) {
    match message {
        PlaneMessage::Forward { ask, acks, requests } => {
            let args = fb::ForwardArgs {
                ask: Some(&ask_out(*ask)),
                acks: acks_out(*acks),
                requests: Some(out.create_vector::<u8>(&metadata::encode_requests(requests))),
            };
            (fb::Body::Forward, fb::Forward::create(out, &args).as_union_value())
        }
        PlaneMessage::Forwarded { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let accepted = answer.as_ref().ok();
            let args = fb::ForwardedArgs {
                ask: Some(&ask_out(*ask)),
                refusal,
                leader,
                term: accepted.map_or(0, |accepted| accepted.term),
                index: accepted.map_or(0, |accepted| accepted.index),
                results: accepted.map(|accepted| out.create_vector::<u8>(&metadata::encode_results(&accepted.results))),
            };
            (fb::Body::Forwarded, fb::Forwarded::create(out, &args).as_union_value())
        }
        PlaneMessage::ReadIndex { ask } => {
            let args = fb::ReadIndexArgs { ask: Some(&ask_out(*ask)) };
            (fb::Body::ReadIndex, fb::ReadIndex::create(out, &args).as_union_value())
        }
        PlaneMessage::ReadIndexed { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let index = answer.unwrap_or(0);
            let args = fb::ReadIndexedArgs { ask: Some(&ask_out(*ask)), refusal, leader, index };
            (fb::Body::ReadIndexed, fb::ReadIndexed::create(out, &args).as_union_value())
        }
        PlaneMessage::Probe { incarnation, sent_at } => {
            let args = fb::ProbeArgs { incarnation: *incarnation, sent_at: sent_at.as_nanos() as u64 };
            (fb::Body::Probe, fb::Probe::create(out, &args).as_union_value())
        }
        PlaneMessage::Heartbeat { incarnation, sent_at, term, commit } => {
            let sent_at = sent_at.as_nanos() as u64;
            let args = fb::HeartbeatArgs { incarnation: *incarnation, sent_at, term: *term, commit: *commit };
            (fb::Body::Heartbeat, fb::Heartbeat::create(out, &args).as_union_value())
        }
        PlaneMessage::Describe { ask } => {
            let args = fb::DescribeArgs { ask: Some(&ask_out(*ask)) };
            (fb::Body::Describe, fb::Describe::create(out, &args).as_union_value())
        }
        PlaneMessage::Described { ask, answer } => {
            let (refusal, leader) = refusal_out(answer);
            let quorum = answer.as_ref().ok().map(|quorum| quorum_out(out, quorum));
            let args = fb::DescribedArgs { ask: Some(&ask_out(*ask)), refusal, leader, quorum };
            (fb::Body::Described, fb::Described::create(out, &args).as_union_value())
        }
    }
}

fn plane_in(message: fb::Message<'_>) -> Result<PlaneMessage, WireError> {
    const VERIFIED: &str = "the verifier checked the union's type";
    Ok(match message.body_type() {
        fb::Body::Forward => {
            let body = message.body_as_forward().expect(VERIFIED);
            let requests: Vec<Request> = metadata::decode_requests(body.requests().bytes())?;
            PlaneMessage::Forward { ask: ask_in(body.ask()), acks: acks_in(body.acks())?, requests }
        }
        fb::Body::Forwarded => {
            let body = message.body_as_forwarded().expect(VERIFIED);
            let answer = match refusal_in(body.refusal(), body.leader())? {
                Some(refused) => Err(refused),
                None => Ok(Accepted {
                    term: body.term(),
                    index: body.index(),
                    results: results_in(body.results().map(|results| results.bytes()))?,
                }),
            };
            PlaneMessage::Forwarded { ask: ask_in(body.ask()), answer }
        }
        fb::Body::ReadIndex => {
            PlaneMessage::ReadIndex { ask: ask_in(message.body_as_read_index().expect(VERIFIED).ask()) }
        }
        fb::Body::ReadIndexed => {
            let body = message.body_as_read_indexed().expect(VERIFIED);
            let refused = refusal_in(body.refusal(), body.leader())?;
            PlaneMessage::ReadIndexed { ask: ask_in(body.ask()), answer: refused.map_or(Ok(body.index()), Err) }
        }
        fb::Body::Probe => {
            let body = message.body_as_probe().expect(VERIFIED);
            PlaneMessage::Probe { incarnation: body.incarnation(), sent_at: Duration::from_nanos(body.sent_at()) }
        }
        fb::Body::Heartbeat => {
            let body = message.body_as_heartbeat().expect(VERIFIED);
            PlaneMessage::Heartbeat {
                incarnation: body.incarnation(),
                sent_at: Duration::from_nanos(body.sent_at()),
                term: body.term(),
                commit: body.commit(),
            }
        }
        fb::Body::Describe => PlaneMessage::Describe { ask: ask_in(message.body_as_describe().expect(VERIFIED).ask()) },
        fb::Body::Described => {
            let body = message.body_as_described().expect(VERIFIED);
            let answer = match (refusal_in(body.refusal(), body.leader())?, body.quorum()) {
                (Some(refused), _) => Err(refused),
                (None, Some(quorum)) => Ok(quorum_in(quorum)),
                (None, None) => Err(Refused::NotLeader { leader: None }),
            };
            PlaneMessage::Described { ask: ask_in(body.ask()), answer }
        }
        other => return Err(WireError::UnknownKind(other.0)),
    })
}

fn results_in(bytes: Option<&[u8]>) -> Result<Vec<RequestResult>, WireError> {
    Ok(bytes.map(metadata::decode_results).transpose()?.unwrap_or_default())
}

fn quorum_out<'b>(out: &mut Out<'b>, quorum: &Quorum) -> WIPOffset<fb::Quorum<'b>> {
    let mut peers = |peers: &[Progress]| {
        let ago = |ago: Option<u64>| ago.map_or(-1, |ago| i64::try_from(ago).unwrap_or(i64::MAX));
        let peers: Vec<_> = peers
            .iter()
            .map(|peer| {
                let args = fb::ProgressArgs {
                    peer: peer.peer,
                    matched: peer.matched,
                    heard_ago: ago(peer.heard_ms_ago),
                    caught_up_ago: ago(peer.caught_up_ms_ago),
                };
                fb::Progress::create(out, &args)
            })
            .collect();
        out.create_vector(&peers)
    };
    let (voters, learners) = (peers(&quorum.voters), peers(&quorum.learners));
    let args = fb::QuorumArgs {
        leader: quorum.leader,
        term: quorum.term,
        commit: quorum.commit,
        voters: Some(voters),
        learners: Some(learners),
    };
    fb::Quorum::create(out, &args)
}

fn quorum_in(quorum: fb::Quorum<'_>) -> Quorum {
    let peer = |peer: fb::Progress<'_>| Progress {
        peer: peer.peer(),
        matched: peer.matched(),
        heard_ms_ago: u64::try_from(peer.heard_ago()).ok(),
        caught_up_ms_ago: u64::try_from(peer.caught_up_ago()).ok(),
    };
    Quorum {
        leader: quorum.leader(),
        term: quorum.term(),
        commit: quorum.commit(),
        voters: quorum.voters().iter().map(peer).collect(),
        learners: quorum.learners().iter().map(peer).collect(),
    }
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
            let args = fb::WrittenArgs { term: *term, index: *index, results };
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
        ToolAnswer::Written(Accepted { term: written.term(), index: written.index(), results })
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

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
