//! Everything that brokers say comes back from its bytes; other bytes are refused, and never stop the broker.

use super::*;
use crate::{
    metadata::{AskedTooLate, Command, Origin, Outcome},
    plane::peer_id,
};
use raft::eraftpb::ConfState;

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
        let entry = |index, data| Entry { index, term: 4, entry_type: 0, data }.into_raft();
        message.set_entries(vec![entry(6, Bytes::from_static(b"data")), entry(7, Bytes::new())].into());
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
    let requests = vec![Request { origin, command: Command::AllocateProducerIds { count: 5 } }];
    let results = vec![Ok(Ok(Outcome::ProducerIds { first: 0, count: 5 })), Err(AskedTooLate)];
    let quorum = Quorum {
        leader: 1,
        term: 2,
        commit: 3,
        voters: vec![Progress { peer: 1, matched: 3, heard_ms_ago: Some(0), caught_up_ms_ago: None }],
        learners: Vec::new(),
    };
    let not_leader = Refused::NotLeader { leader: Some(5) };
    let planes = [
        PlaneMessage::Forward { ask, acks: Acks::Leader, requests },
        PlaneMessage::Forwarded { ask, answer: Ok(Accepted { term: 1, index: 2, results }) },
        PlaneMessage::Forwarded { ask, answer: Err(not_leader) },
        PlaneMessage::ReadIndex { ask },
        PlaneMessage::ReadIndexed { ask, answer: Ok(9) },
        PlaneMessage::ReadIndexed { ask, answer: Err(Refused::Busy) },
        PlaneMessage::Probe { incarnation: 1, sent_at: Duration::from_nanos(7) },
        PlaneMessage::Heartbeat { incarnation: 1, sent_at: Duration::from_nanos(7), term: 2, commit: 3 },
        PlaneMessage::Describe { ask },
        PlaneMessage::Described { ask, answer: Ok(quorum) },
        PlaneMessage::Described { ask, answer: Err(Refused::NotLeader { leader: None }) },
    ];
    let chunk =
        SnapshotChunk { group: 0, index: 1, term: 2, offset: 3, total: 9, crc: 4, bytes: Bytes::from_static(b"piece") };
    let mut all: Vec<PeerMessage> = planes.into_iter().map(PeerMessage::Plane).collect();
    all.extend(KINDS.map(|kind| PeerMessage::Raft { group: 4, message: raft(kind) }));
    all.push(PeerMessage::SnapshotChunk(chunk));
    all
}

#[test]
fn what_was_encoded_is_decoded() {
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
    ] {
        let request = ToolRequest { id: 7, ask };
        assert_eq!(decode_request(&encode_request(&request)), Ok(request));
    }
    for answer in [
        ToolAnswer::Written(Accepted { term: 1, index: 2, results: vec![Err(AskedTooLate)] }),
        ToolAnswer::Answers(vec![QueryAnswer::NotFound, QueryAnswer::Count(3)]),
        ToolAnswer::Quorum(Quorum::default()),
        ToolAnswer::Failed { code: 41, message: "why".to_owned() },
    ] {
        let response = ToolResponse { id: 8, answer };
        assert_eq!(decode_response(&encode_response(&response)), Ok(response));
    }
}

#[test]
fn other_bytes_never_stop_the_broker() {
    let good = [encode_hello(&hello()), encode(&messages())];
    let mut rng = fastrand::Rng::with_seed(1);
    for bytes in &good {
        for length in 0..bytes.len() {
            // A cut may leave what reads well, but never what reads beyond it.
            let _ = (decode_hello(&bytes[..length]), decode(&bytes[..length]), decode_request(&bytes[..length]));
        }
        for _ in 0..20_000 {
            let mut changed = bytes.to_vec();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..changed.len());
                changed[at] = rng.u8(..);
            }
            let _ = (decode_hello(&changed), decode(&changed), decode_request(&changed), decode_response(&changed));
        }
    }
    assert!(decode(&[]).is_err() && decode_hello(&[]).is_err());
}

#[test]
fn what_raft_could_not_bear_is_refused() {
    let mut gap = raft(MessageType::MsgAppend);
    gap.mut_entries()[1].index = 9;
    let refused = decode(&encode(&[PeerMessage::Raft { group: 0, message: gap }]));
    assert_eq!(refused, Err(WireError::Raft("its entries do not follow each other".to_owned())));
    let local = decode(&encode(&[PeerMessage::Raft { group: 0, message: raft(MessageType::MsgHup) }]));
    assert_eq!(local, Err(WireError::Raft("kind 0 is not sent between replicas".to_owned())));
}
