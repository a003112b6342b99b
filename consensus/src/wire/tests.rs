//! Every message survives encoding and decoding. Other bytes are rejected, and never stop the broker.

use crate::wire::*;
use crate::{
    metadata::{AskedTooLate, Command, Origin, Outcome, Query, QueryAnswer, Request},
    plane::{Accepted, Acks, Ask, Progress, Quorum, Refused, peer_id},
};
use raft_proto::eraftpb::ConfState;
use std::time::Duration;
use types::{GroupId, RaftIndex, Term};

fn hello() -> Hello {
    Hello {
        caller: Caller::Broker,
        cluster_id: Some("c".to_owned()),
        node: 3,
        peer: peer_id(3, 9),
        incarnation: 4,
        cores: 2,
        program: "0.1.0".to_owned(),
        peer_addr: "127.0.0.1:9291".to_owned(),
        seeds: vec![1, 2, 3],
        founding: vec![7, 8],
        core: 1,
    }
}

fn raft(kind: MessageType) -> Message {
    let mut message = Message {
        to: 1,
        from: 2,
        term: 3,
        log_term: 4,
        index: 5,
        commit: 6,
        commit_term: 7,
        request_snapshot: 8,
        reject: true,
        reject_hint: 9,
        context: Bytes::from_static(b"ctx"),
        priority: -10,
        ..Message::default()
    };
    message.set_msg_type(kind);
    if kind == MessageType::MsgAppend {
        let entry = |index, data| Entry { index, term: Term(4), entry_type: 0, data }.into_raft();
        message.set_entries(
            vec![entry(RaftIndex::new(6), Bytes::from_static(b"data")), entry(RaftIndex::new(7), Bytes::new())].into(),
        );
    }
    if kind == MessageType::MsgSnapshot {
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (11, 12);
        metadata.set_conf_state(ConfState::from((vec![1, 2], vec![3])));
    }
    message
}

fn messages() -> Vec<PeerMessage> {
    let ask = Ask { incarnation: 1, number: 2 };
    let origin = Some(Origin { node: 1, incarnation: 2, sequence: 3, lowest_open: 3 });
    let requests = vec![Request { origin, command: Command::AllocateProducerIds { count: 5 }, no_room: None }];
    let results = vec![Ok(Ok(Outcome::ProducerIds { first: 0, count: 5 })), Err(AskedTooLate)];
    let quorum = Quorum {
        leader: 1,
        term: Term(2),
        commit: RaftIndex::new(3),
        voters: vec![Progress { peer: 1, matched: RaftIndex::new(3), heard_ms_ago: Some(0), caught_up_ms_ago: None }],
        learners: Vec::new(),
    };
    let not_leader = Refused::NotLeader { leader: Some(5) };
    let planes = [
        PlaneMessage::Forward { ask, acks: Acks::Leader, requests },
        PlaneMessage::Forwarded { ask, answer: Ok(Accepted { term: Term(1), index: RaftIndex::new(2), results }) },
        PlaneMessage::Forwarded { ask, answer: Err(not_leader) },
        PlaneMessage::ReadIndex { ask },
        PlaneMessage::ReadIndexed { ask, answer: Ok(RaftIndex::new(9)) },
        PlaneMessage::ReadIndexed { ask, answer: Err(Refused::Busy) },
        PlaneMessage::Probe { incarnation: 1, sent_at: Duration::from_nanos(7) },
        PlaneMessage::Heartbeat {
            incarnation: 1,
            sent_at: Duration::from_nanos(7),
            term: Term(2),
            commit: RaftIndex::new(3),
        },
        PlaneMessage::Describe { ask },
        PlaneMessage::Described { ask, answer: Ok(quorum) },
        PlaneMessage::Described { ask, answer: Err(Refused::NotLeader { leader: None }) },
    ];
    let chunk = SnapshotChunk {
        group: GroupId(0),
        index: RaftIndex::new(1),
        term: Term(2),
        offset: 3,
        total: 9,
        crc: 4,
        bytes: Bytes::from_static(b"piece"),
    };
    let mut all: Vec<PeerMessage> = planes.into_iter().map(PeerMessage::Plane).collect();
    all.extend(KINDS.map(|kind| PeerMessage::Raft { group: GroupId(4), message: raft(kind) }));
    all.push(PeerMessage::SnapshotChunk(chunk));
    all
}

#[test]
fn encoded_values_are_decoded() {
    assert_eq!(decode_hello(&encode_hello(&hello())), Ok(hello()));
    let new = Hello { cluster_id: None, caller: Caller::Tool, ..hello() };
    assert_eq!(decode_hello(&encode_hello(&new)), Ok(new));
    assert_eq!(decode(&encode(&messages())), Ok(messages()));
    let commands = vec![Command::AllocateProducerIds { count: 1 }];
    for ask in [
        ToolAsk::Write { acks: None, commands: commands.clone() },
        ToolAsk::Write { acks: Some(Acks::Leader), commands },
        ToolAsk::Read { consistency: Consistency::Linearizable, queries: vec![Query::ListBrokers] },
        ToolAsk::Describe,
        ToolAsk::ProbeMesh { to: None, rounds: 100_000, in_flight: 64 },
        ToolAsk::ProbeMesh { to: Some(u16::MAX), rounds: 0, in_flight: 1 },
    ] {
        let request = ToolRequest { id: 7, ask };
        assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }
    for answer in [
        ToolAnswer::Written(Accepted { term: Term(1), index: RaftIndex::new(2), results: vec![Err(AskedTooLate)] }),
        ToolAnswer::Answers(vec![QueryAnswer::NotFound, QueryAnswer::Count(3)]),
        ToolAnswer::Quorum(Quorum::default()),
        ToolAnswer::MeshProbed { from: 0, times: mesh_times() },
        ToolAnswer::Failed { code: 41, message: "why".to_owned() },
    ] {
        let response = ToolResponse { id: 8, answer };
        assert_eq!(decode_response(&encode_response(&response)), Ok(response));
    }
}

/// The length and the CRC-32C of some bytes.
fn sum(bytes: &[u8]) -> (usize, u32) {
    (bytes.len(), crc32c::crc32c(bytes))
}

#[test]
fn the_bytes_stay_as_they_are() {
    // Brokers of the version before read these bytes while a cluster is upgraded.
    assert_eq!(sum(&encode_hello(&hello())), (168, 531_624_251), "a hello");
    assert_eq!(sum(&encode(&messages())), (2616, 2_238_144_258), "messages between brokers");
    let commands = vec![Command::AllocateProducerIds { count: 1 }];
    let request = ToolRequest { id: 7, ask: ToolAsk::Write { acks: Some(Acks::Leader), commands } };
    assert_eq!(sum(&encode_request(&request)), (136, 1_830_927_565), "a tool's request");
    let results = vec![Err(AskedTooLate)];
    let answer = ToolAnswer::Written(Accepted { term: Term(1), index: RaftIndex::new(2), results });
    assert_eq!(sum(&encode_response(&ToolResponse { id: 8, answer })), (128, 2_752_836_744), "its answer");
}

fn mesh_times() -> Vec<MeshTimes> {
    let buckets = vec![(1023, 7), (u64::MAX, 1)];
    vec![MeshTimes { to: 3, min_ns: 1000, max_ns: u64::MAX, sum_ns: 9, buckets }, MeshTimes::default()]
}

/// Random messages from a seed.
fn generated(rng: &mut fastrand::Rng) -> Vec<PeerMessage> {
    let bytes = |rng: &mut fastrand::Rng| -> Bytes {
        let length = rng.usize(..300);
        std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
    };
    let number = |rng: &mut fastrand::Rng| if rng.bool() { rng.u64(..) } else { rng.u64(..3) };
    let one = |rng: &mut fastrand::Rng| {
        if rng.u8(..4) == 0 {
            let (group, index, term) = (number(rng), number(rng), number(rng));
            let (offset, total, crc) = (number(rng), number(rng), rng.u32(..));
            return PeerMessage::SnapshotChunk(SnapshotChunk {
                group: GroupId(group),
                index: RaftIndex::new(index),
                term: Term(term),
                offset,
                total,
                crc,
                bytes: bytes(rng),
            });
        }
        let kind = KINDS[rng.usize(..KINDS.len())];
        let mut message = Message {
            to: number(rng),
            from: number(rng),
            term: number(rng),
            log_term: number(rng),
            index: number(rng),
            commit: number(rng),
            commit_term: number(rng),
            request_snapshot: number(rng),
            reject: rng.bool(),
            reject_hint: number(rng),
            context: bytes(rng),
            priority: rng.i64(..),
            ..Message::default()
        };
        message.set_msg_type(kind);
        if kind == MessageType::MsgAppend {
            message.index = rng.u64(..u64::MAX / 2);
            let first = message.index + 1;
            let entries = (first..first + rng.u64(..20)).map(|index| {
                let (index, term) = (RaftIndex::new(index), Term(number(rng)));
                Entry { index, term, entry_type: rng.u8(..=Entry::KIND_MAX), data: bytes(rng) }.into_raft()
            });
            message.set_entries(entries.collect::<Vec<_>>().into());
        }
        if kind == MessageType::MsgSnapshot {
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (number(rng), number(rng));
            let ids = |rng: &mut fastrand::Rng| (0..rng.u64(..5)).collect::<Vec<_>>();
            metadata.set_conf_state(ConfState::from((ids(rng), ids(rng))));
        }
        PeerMessage::Raft { group: GroupId(number(rng)), message }
    };
    (0..rng.usize(..20)).map(|_| one(rng)).collect()
}

#[test]
fn generated_messages_come_back() {
    for seed in 0..500 {
        let messages = generated(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(decode(&encode(&messages)), Ok(messages), "seed {seed}");
    }
}

#[test]
fn many_small_messages_go_into_one_frame() {
    let probe = PeerMessage::Plane(PlaneMessage::Probe { incarnation: 0, sent_at: Duration::ZERO });
    let mut message = raft(MessageType::MsgAppend);
    let entry = |index| {
        let entry = Entry { index: RaftIndex::new(index), term: Term(0), entry_type: 0, data: Bytes::new() };
        entry.into_raft()
    };
    message.set_entries((6..20_006).map(entry).collect::<Vec<_>>().into());
    let mut messages = vec![probe; 20_000];
    messages.push(PeerMessage::Raft { group: GroupId(0), message });
    assert_eq!(decode(&encode(&messages)), Ok(messages));
}

#[test]
fn a_hello_of_a_newer_protocol_is_refused_by_name() {
    let mut out = FlatBufferBuilder::new();
    let root = fb::Hello::create(&mut out, &fb::HelloArgs { version: VERSION + 1, ..fb::HelloArgs::default() });
    let refused = decode_hello(&finished(out, root)).unwrap_err();
    assert_eq!(refused, WireError::Newer(VERSION + 1));
    assert!(refused.to_string().contains("protocol version 2 is newer"), "{refused}");
}

#[test]
fn truncated_messages_are_refused() {
    let (greeting, sent) = (encode_hello(&hello()), encode(&messages()));
    let request = encode_request(&ToolRequest { id: 7, ask: ToolAsk::Describe });
    let response = encode_response(&ToolResponse { id: 7, answer: ToolAnswer::Quorum(Quorum::default()) });
    // Only zeros of the padding at the end may be missing.
    let needed = |bytes: &[u8]| bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    for length in 0..needed(&greeting) {
        assert!(decode_hello(&greeting[..length]).is_err(), "{length} bytes of a hello");
    }
    for length in 0..needed(&sent) {
        assert!(decode(&sent[..length]).is_err(), "{length} bytes of messages");
    }
    for length in 0..needed(&request) {
        assert!(decode_request(&request[..length]).is_err(), "{length} bytes of a request");
    }
    for length in 0..needed(&response) {
        assert!(decode_response(&response[..length]).is_err(), "{length} bytes of a response");
    }
}

/// Passes if nothing panics. Changed bytes may well be another valid message.
#[test]
fn changed_bytes_never_stop_the_broker() {
    let good = [
        encode_hello(&hello()),
        encode(&messages()),
        encode_request(&ToolRequest { id: 7, ask: ToolAsk::Describe }),
        encode_response(&ToolResponse { id: 7, answer: ToolAnswer::Quorum(Quorum::default()) }),
        encode_request(&ToolRequest { id: 7, ask: ToolAsk::ProbeMesh { to: Some(1), rounds: 2, in_flight: 3 } }),
        encode_response(&ToolResponse { id: 7, answer: ToolAnswer::MeshProbed { from: 0, times: mesh_times() } }),
    ];
    let mut rng = fastrand::Rng::with_seed(1);
    let mut refused = 0;
    for bytes in &good {
        for _ in 0..10_000 {
            let mut changed = bytes.to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..changed.len());
                changed[at] = if rng.bool() { rng.u8(..) } else { changed[at] ^ (1 << rng.u8(..8)) };
            }
            refused += usize::from(decode_hello(&changed).is_err())
                + usize::from(decode(&changed).is_err())
                + usize::from(decode_request(&changed).is_err())
                + usize::from(decode_response(&changed).is_err());
        }
    }
    assert!(refused > 0);
    assert!(decode(&[]).is_err() && decode_hello(&[]).is_err());
}

#[test]
fn a_small_frame_that_names_one_large_part_often_is_refused() {
    let mut out = FlatBufferBuilder::new();
    let data = out.create_vector::<u8>(&vec![7; 1 << 20]);
    let entry = fb::Entry::create(&mut out, &fb::EntryArgs { index: 1, data: Some(data), ..fb::EntryArgs::default() });
    let entries = Some(out.create_vector(&[entry; 1000]));
    let raft = fb::Raft::create(&mut out, &fb::RaftArgs { entries, kind: 4, ..fb::RaftArgs::default() });
    let args = fb::MessageArgs { body_type: fb::Body::Raft, body: Some(raft.as_union_value()) };
    let message = fb::Message::create(&mut out, &args);
    let messages = Some(out.create_vector(&[message]));
    let root = fb::Messages::create(&mut out, &fb::MessagesArgs { messages });
    assert_eq!(decode(&finished(out, root)), Err(WireError::Invalid(InvalidFlatbuffer::ApparentSizeTooLarge)));
}

#[test]
fn messages_that_raft_cannot_handle_are_refused() {
    let mut gap = raft(MessageType::MsgAppend);
    gap.mut_entries()[1].index = 9;
    let refused = decode(&encode(&[PeerMessage::Raft { group: GroupId(0), message: gap }]));
    assert_eq!(refused, Err(WireError::Raft("its entries are not consecutive".to_owned())));
    let local = decode(&encode(&[PeerMessage::Raft { group: GroupId(0), message: raft(MessageType::MsgHup) }]));
    assert_eq!(local, Err(WireError::Raft("kind 0 is not sent between replicas".to_owned())));
    let mut last = raft(MessageType::MsgAppend);
    last.index = u64::MAX;
    let refused = decode(&encode(&[PeerMessage::Raft { group: GroupId(0), message: last }]));
    assert_eq!(refused, Err(WireError::Raft("its entries are not consecutive".to_owned())));
}
