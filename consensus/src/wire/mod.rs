//! The encoding of messages between brokers, and between brokers and tools (FlatBuffers). Bytes from a peer are
//! verified before anything is read from them.
//!
//! | module | is |
//! |---|---|
//! | `plane` | messages of the metadata plane |
//! | `tools` | requests of tools, and the answers |

mod plane;
mod tools;

pub use tools::{
    Consistency, MeshTimes, ToolAnswer, ToolAsk, ToolRequest, ToolResponse, decode_request, decode_response,
    encode_request, encode_response,
};

use crate::{
    generated::peer::millrace::peer as fb,
    group::{ConfigurationError, Entry, KINDS, Message, members as group_members},
    metadata::DecodeError,
    plane::PlaneMessage,
};
use bytes::Bytes;
use flatbuffers::{FlatBufferBuilder, InvalidFlatbuffer, VerifierOptions, WIPOffset};
use raft_proto::eraftpb::{self, MessageType};
use types::{GroupId, Position, RaftIndex, Term};

/// Version of the protocol between brokers.
pub const VERSION: u16 = 1;

/// The first message on a connection, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub caller: Caller,
    /// `None`: this broker belongs to no cluster yet.
    pub cluster_id: Option<String>,
    pub node: i32,
    pub peer: u64,
    pub incarnation: u64,
    pub cores: u16,
    /// The version of the program.
    pub program: String,
    /// The address at which other brokers reach this one, as host:port.
    pub peer_addr: String,
    /// The node ids of its `--seeds`, ascending.
    pub seeds: Vec<i32>,
    /// The cluster's first voters; none if it belongs to no cluster yet.
    pub founding: Vec<u64>,
    /// The receiver's core that the connection is for, modulo the receiver's number of cores.
    pub core: u16,
}

impl Hello {
    /// The greeting of a tool with this version. A tool is no broker, and belongs to no cluster.
    pub fn of_tool(program: &str) -> Self {
        Self {
            caller: Caller::Tool,
            cluster_id: None,
            node: -1,
            peer: 0,
            incarnation: 0,
            cores: 1,
            program: program.to_owned(),
            peer_addr: String::new(),
            seeds: Vec::new(),
            founding: Vec::new(),
            core: 0,
        }
    }
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
        group: GroupId,
        message: Message,
    },
    /// A Raft message with the batches of its entries, each with the place of its entry. The batches travel beside
    /// the message and are not copied.
    Append {
        group: GroupId,
        message: Message,
        payloads: Vec<(usize, Bytes)>,
    },
    Rest(Rest),
    Beat(Beat),
    /// Asks the group's leader to hand over to the group's preferred leader.
    Elect {
        group: GroupId,
    },
    Plane(PlaneMessage),
    SnapshotChunk(SnapshotChunk),
}

/// Announces that a group is idle: all its reachable replicas have everything up to this entry, and it is
/// committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    pub group: GroupId,
    pub at: Position,
}

/// A heartbeat of one core of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub incarnation: u64,
    pub core: u16,
    pub cores: u16,
    /// Whether its storage works, so that it can lead.
    pub healthy: bool,
}

/// A piece of a snapshot's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotChunk {
    pub group: GroupId,
    /// The index at which the snapshot was taken.
    pub index: RaftIndex,
    pub term: Term,
    pub offset: u64,
    /// Length in bytes of the whole state.
    pub total: u64,
    /// CRC-32C of `bytes`.
    pub crc: u32,
    pub bytes: Bytes,
}

/// Why bytes can't be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("not a message between brokers: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    #[error("protocol version {0} is newer than this program's {VERSION}; run the newer program here too")]
    Newer(u16),
    #[error("this version does not know message kind {0}")]
    UnknownKind(u8),
    #[error("core {0} is outside 0 to 65535")]
    Core(i32),
    #[error("the frame's batches are not those that its messages name")]
    Payloads,
    #[error("a Raft message can't be read: {0}")]
    Raft(String),
    #[error("the members in a Raft message's snapshot can't be read: {0}")]
    Members(#[from] ConfigurationError),
    #[error(transparent)]
    Metadata(#[from] DecodeError),
}

/// The most tables in one frame. More than this are a mistake or an attack.
const TABLES_MAX: usize = 1 << 20;
/// How many times larger than its bytes a frame's content may be. A builder shares little of it. A forged frame of
/// a few MiB, however, could refer to its largest part thousands of times.
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

/// Messages that are sent together, and the batches behind them.
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

    /// The parts to send. Without payloads this is the messages alone. With payloads it is the length of the
    /// messages, the messages, and the payloads.
    pub fn into_parts(self) -> Vec<Bytes> {
        if self.payloads.is_empty() {
            return vec![self.messages];
        }
        let length = Bytes::copy_from_slice(&(self.messages.len() as u32).to_le_bytes());
        [length, self.messages].into_iter().chain(self.payloads).collect()
    }
}

/// Reads a frame of messages with payloads behind them. The payloads are not copied.
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

/// Encodes messages that are sent together, in order.
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

/// The approximate number of bytes that a message takes.
pub fn weight(message: &PeerMessage) -> usize {
    own_bytes(message)
        + match message {
            PeerMessage::Append { payloads, .. } => payloads.iter().map(|(_, bytes)| bytes.len()).sum(),
            _ => 0,
        }
}

/// Like [`weight`], without the payloads that travel beside the message.
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

/// Reads one frame's messages: all of them or, if one can't be read, none.
pub fn decode(bytes: &[u8]) -> Result<Vec<PeerMessage>, WireError> {
    verified::<fb::Messages<'_>>(bytes)?.messages().iter().map(|message| body_in(message, &mut Bytes::new())).collect()
}

const VERIFIED: &str = "the verifier checked the union's type";

type Out<'b> = FlatBufferBuilder<'b>;
type Union = WIPOffset<flatbuffers::UnionWIPOffset>;

fn body_out<'b>(out: &mut Out<'b>, message: &PeerMessage) -> (fb::Body, Union) {
    match message {
        PeerMessage::Raft { group, message } => (fb::Body::Raft, raft_out(out, *group, message, &[]).as_union_value()),
        PeerMessage::Append { group, message, payloads } => {
            (fb::Body::Raft, raft_out(out, *group, message, payloads).as_union_value())
        }
        PeerMessage::Rest(Rest { group, at: Position { index, term } }) => {
            let args = fb::RestArgs { group: group.0, term: term.0, index: index.get() };
            (fb::Body::Rest, fb::Rest::create(out, &args).as_union_value())
        }
        PeerMessage::Beat(Beat { incarnation, core, cores, healthy }) => {
            let args = fb::BeatArgs { incarnation: *incarnation, core: *core, cores: *cores, healthy: *healthy };
            (fb::Body::Beat, fb::Beat::create(out, &args).as_union_value())
        }
        PeerMessage::Elect { group } => {
            (fb::Body::Elect, fb::Elect::create(out, &fb::ElectArgs { group: group.0 }).as_union_value())
        }
        PeerMessage::Plane(message) => plane::plane_out(out, message),
        PeerMessage::SnapshotChunk(SnapshotChunk { group, index, term, offset, total, crc, bytes }) => {
            let args = fb::SnapshotChunkArgs {
                group: group.0,
                index: index.get(),
                term: term.0,
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
    Ok(match message.body_type() {
        fb::Body::Raft => {
            let raft = message.body_as_raft().expect(VERIFIED);
            let (group, message) = (GroupId(raft.group()), raft_in(raft)?);
            match payloads_in(raft, &message, beside)? {
                payloads if payloads.is_empty() => PeerMessage::Raft { group, message },
                payloads => PeerMessage::Append { group, message, payloads },
            }
        }
        fb::Body::Rest => {
            let rest = message.body_as_rest().expect(VERIFIED);
            PeerMessage::Rest(Rest {
                group: GroupId(rest.group()),
                at: Position { index: RaftIndex::new(rest.index()), term: Term(rest.term()) },
            })
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
        fb::Body::Elect => PeerMessage::Elect { group: GroupId(message.body_as_elect().expect(VERIFIED).group()) },
        fb::Body::SnapshotChunk => {
            let chunk = message.body_as_snapshot_chunk().expect(VERIFIED);
            PeerMessage::SnapshotChunk(SnapshotChunk {
                group: GroupId(chunk.group()),
                index: RaftIndex::new(chunk.index()),
                term: Term(chunk.term()),
                offset: chunk.offset(),
                total: chunk.total(),
                crc: chunk.crc(),
                bytes: Bytes::copy_from_slice(chunk.bytes().bytes()),
            })
        }
        _ => PeerMessage::Plane(plane::plane_in(message)?),
    })
}

/// Takes the payloads that a message names from the front of the bytes behind the messages.
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
    group: GroupId,
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
        group: group.0,
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
    // raft-rs relies on consecutive indices.
    let after = |at: usize| raft.index().checked_add(at as u64 + 1);
    let follow = entries.iter().enumerate().all(|(at, entry)| after(at) == Some(entry.index));
    if kind == MessageType::MsgAppend && !follow {
        return Err(WireError::Raft("its entries are not consecutive".to_owned()));
    }
    message.set_entries(entries.into());
    if kind == MessageType::MsgSnapshot {
        let members = raft.snapshot_members().map(|members| members.bytes()).unwrap_or_default();
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = raft.snapshot_index();
        metadata.term = raft.snapshot_term();
        metadata.set_conf_state(group_members::decode(members)?);
    }
    Ok(message)
}

fn entry_in(entry: fb::Entry<'_>) -> Result<eraftpb::Entry, WireError> {
    if entry.kind() > Entry::KIND_MAX {
        return Err(WireError::Raft(format!("it has an entry of the unknown kind {}", entry.kind())));
    }
    let data = entry.data().map_or_else(Bytes::new, |data| Bytes::copy_from_slice(data.bytes()));
    Ok(Entry { index: RaftIndex::new(entry.index()), term: Term(entry.term()), entry_type: entry.kind(), data }
        .into_raft())
}
#[cfg(test)]
mod tests;
