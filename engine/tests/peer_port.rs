//! The peer port, for brokers and tools, of a real broker. A peer that does not know the secret learns and changes
//! nothing, and no message of a peer ends the process.

mod support;

use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use bytes::Bytes;
use consensus::group::descriptor::{Descriptor, EntryData};
use consensus::group::{Message, MessageType, RaftEntry};
use consensus::metadata::{
    Broker as Registered, BrokerStatus, Command, HostPort, LeaderReport, Query, QueryAnswer, Rejection, Request,
};
use consensus::plane::{Accepted, Acks, Ask, ENTRY_BYTES, PlaneMessage, Refused, peer_id, weight};
use consensus::wire::{self, Beat, Caller, Consistency, Hello, PeerMessage, Rest, SnapshotChunk, ToolAsk, ToolRequest};
use net::errors;
use net::peer::auth::{Handshake, SECRET_FILE, Secret, nonce};
use net::peer::{BlockingPeer, Kind, Lane, PeerError, PeerFrame};
use net::{Uuid, records::batch};
use types::{GroupId, Position, RaftIndex, Term};

use support::PATIENCE;
use support::broker::Broker;
use support::cluster::wait_until;
use support::tool::Tool;
use support::wire as client;

const META: GroupId = GroupId(0);
const REFUSED: &str = "millrace_raft_messages_refused_total";
const LOSSES: &str = "millrace_raft_possible_losses_total";

/// A connection to a broker whose secret is known.
struct Other {
    peer: BlockingPeer,
    me: Hello,
    there: Hello,
}

fn meet(broker: &Broker, me: &Hello, secret: Option<Secret>) -> Result<(BlockingPeer, Hello), PeerError> {
    let mut peer = BlockingPeer::connect(broker.peer(), PATIENCE)?;
    let there = peer.shake_hands(Handshake::caller(secret, Lane::Control, wire::encode_hello(me), nonce()), true)?;
    Ok((peer, wire::decode_hello(&there).expect("a broker's hello")))
}

fn as_tool(broker: &Broker) -> Other {
    let me = Hello::of_tool("test");
    let (peer, there) = meet(broker, &me, Some(broker.secret())).expect("a tool is taken");
    Other { peer, me, there }
}

/// Connects as broker 2 of the same cluster.
fn as_broker(broker: &Broker) -> Other {
    let cluster_id = as_tool(broker).there.cluster_id;
    let me = Hello {
        caller: Caller::Broker,
        cluster_id,
        node: 2,
        peer: peer_id(2, 7),
        incarnation: 1,
        ..Hello::of_tool("test")
    };
    let (peer, there) = meet(broker, &me, Some(broker.secret())).expect("a broker is taken");
    Other { peer, me, there }
}

impl Other {
    /// `false`: the broker has closed the connection.
    fn send(&mut self, messages: &[PeerMessage]) -> bool {
        let has_payloads = messages.iter().any(|message| matches!(message, PeerMessage::Append { .. }));
        let kind = if has_payloads { Kind::Batches } else { Kind::Messages };
        let parts = wire::Frame::new(messages).into_parts();
        self.peer.write(&PeerFrame::new(kind, Lane::Control, parts.concat().into())).is_ok()
    }

    fn message(&self, kind: MessageType, term: Term) -> Message {
        let mut message = Message { from: self.me.peer, to: self.there.peer, term: term.0, ..Message::default() };
        message.set_msg_type(kind);
        message
    }
}

fn raft(message: Message) -> PeerMessage {
    PeerMessage::Raft { group: META, message }
}

#[test]
fn a_stranger_learns_and_changes_nothing() {
    let broker = Broker::start();
    let file = broker.data_dir().join(SECRET_FILE);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = |secret| meet(&broker, &Hello::of_tool("test"), secret).map(drop).unwrap_err().to_string();
    assert!(refused(None).contains("--secret-file FILE or --data-dir DIR"), "{}", refused(None));
    assert!(refused(Secret::new(&[8; 32])).contains("the secrets differ"));
    // Many connections that send nothing, and frames that never end.
    let mut idle: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(broker.peer()).unwrap()).collect();
    for stream in idle.iter_mut().take(50) {
        use std::io::Write;
        // The broker may have closed the connection already.
        let _ = stream.write_all(&[3, 0, 0, 0, b'M', b'R', 1, 6, 0, 0, 0, 0, 1, 2, 3]);
    }
    let mut tool = Tool::connect(&broker, PATIENCE).unwrap();
    tool.read(Consistency::Leased, Query::ListBrokers).unwrap();
    wait_until("refused strangers", || broker.metric("millrace_peer_refused_total") >= 200.0);
    wait_until("tool that is open", || broker.metric("millrace_peer_tools_open") == 1.0);
    let told = broker.output().lines().filter(|line| line.contains("on the peer port is closed")).count();
    assert!(told < 10, "{told} lines");
}

#[test]
fn others_in_the_seeds_need_a_secret() {
    let mut broker = Broker::new(&["--node-id", "1"]);
    let seeds = format!("1@{},2@127.0.0.1:2", broker.peer());
    broker.add_flags(&["--seeds", &seeds]);
    let output = broker.begin_or_end().unwrap_err();
    for part in ["seeds names broker 2", "cluster.secret.file", "peer.allow.insecure=true"] {
        assert!(output.contains(part), "{output}");
    }
}

#[test]
fn a_tool_may_not_act_in_a_brokers_place() {
    let broker = Broker::start();
    let mut tool = Tool::connect(&broker, PATIENCE).unwrap();
    let address = || HostPort { host: "attacker".to_owned(), port: 9 };
    let stranger = Registered {
        node: 9,
        peer: peer_id(9, 9),
        incarnation: 1,
        kafka: address(),
        peer_addr: address(),
        cores: 1,
        rack: None,
        version: String::new(),
        status: BrokerStatus::Alive,
        largest_entry: 0,
        replicas_max: 0,
        partitions_max: 0,
    };
    let (name, id) = ("t", Uuid::new_v4());
    let report = LeaderReport { partition: 0, term: Term(1 << 20), leader: 9, voters: vec![9] };
    for (command, called) in [
        (Command::RegisterBroker { broker: stranger }, "RegisterBroker"),
        (Command::UpdateBrokerStatus { node: 1, incarnation: 1, status: BrokerStatus::Fenced }, "UpdateBrokerStatus"),
        (Command::SetPartitionLeader { name: name.into(), id, leaders: vec![report] }, "SetPartitionLeader"),
        (Command::UpdateHighWatermark { name: name.into(), id, node: 1, watermarks: vec![] }, "UpdateHighWatermark"),
        (Command::SetFeatureLevel { name: "metadata.version".to_owned(), level: 9 }, "SetFeatureLevel"),
        (Command::AllocateProducerIds { count: 1000 }, "AllocateProducerIds"),
        (Command::UnregisterBroker { node: 1 }, "UnregisterBroker"),
    ] {
        for acks in [Acks::Quorum, Acks::Leader] {
            let refused = tool.write(acks, command.clone()).unwrap_err();
            assert!(
                refused.contains(&format!("a tool may not send {called}")) && refused.contains("error 31"),
                "{refused}"
            );
        }
    }
    tool.write(Acks::Quorum, support::tool::create_topic(name, 1)).unwrap();
}

#[test]
fn a_tools_commands_become_as_many_entries_as_they_need() {
    let broker = Broker::start();
    let mut tool = Tool::connect(&broker, PATIENCE).unwrap();
    // Together they take more than one entry that every broker can store.
    let name = |n: usize| format!("{n:0>249}");
    let deletes = (0..512).map(|n| Command::DeleteTopic { name: name(n).into(), id: Uuid::new_v4() });
    let commands: Vec<Command> = deletes.collect();
    assert!((ENTRY_BYTES..2 * ENTRY_BYTES).contains(&commands.iter().map(weight).sum()));
    let written = tool.write_many(Acks::Quorum, commands).unwrap();
    let expected = (0..512).map(|n| Ok(Err(Rejection::UnknownTopic(name(n).into()))));
    assert!(written.results.iter().cloned().eq(expected), "{:?}", written.results);
    let quorum = tool.describe().unwrap();
    assert!(quorum.commit >= written.index, "{quorum:?}, {}", written.index);
}

#[test]
fn a_tool_may_not_do_to_topics_what_clients_may_not() {
    const OFFSETS: &str = "__consumer_offsets";
    let broker = Broker::start();
    let mut client = client::connect(&broker);
    assert_eq!(client::create_topic(&mut client, OFFSETS, -1, -1, &[]).error_code, errors::NONE);
    let mut tool = Tool::connect(&broker, PATIENCE).unwrap();
    let read = |tool: &mut Tool| match tool
        .read(Consistency::Linearizable, Query::GetTopic { name: OFFSETS.to_owned() })
        .expect("a broker that serves answers")
    {
        QueryAnswer::Topic(topic) => topic,
        other => panic!("{other:?}"),
    };
    let topic = read(&mut tool);
    let (name, id, present) = (topic.name.clone(), topic.id, topic.partitions.len() as u32);
    let with = |name: &str, value: Option<&str>| vec![(name.to_owned(), value.map(str::to_owned))];
    let more = vec![vec![1]];
    for (command, why) in [
        (Command::DeleteTopic { name: name.clone(), id }, "is an internal topic"),
        (
            Command::CreatePartitions {
                name: name.clone(),
                id,
                present,
                first_group: 0,
                replicas: more,
                peers: Vec::new(),
            },
            "is an internal topic",
        ),
        (
            Command::UpdateTopicConfig { name: name.clone(), id, changes: with("retention.ms", Some("1000")) },
            "is always -1",
        ),
        (Command::UpdateTopicConfig { name, id, changes: with("no.such", None) }, "no.such"),
        (support::tool::create_topic("__transaction_state", 1), "is the internal topic of the transaction coordinator"),
        (support::tool::create_topic("__consumer.offsets", 1), "collides with topic '__consumer_offsets'"),
        (support::tool::create_topic("__millrace_metadata", 1), "__millrace_metadata"),
        (Command::UpdateClusterConfig { node: None, changes: with("node.id", Some("7")) }, "read-only"),
        (
            Command::UpdateClusterConfig { node: None, changes: with("largest.entry.bytes", Some("7")) },
            "unknown setting",
        ),
        (Command::UpdateClusterConfig { node: None, changes: with("metadata.acks", Some("never")) }, "never"),
    ] {
        let refused = tool.write(Acks::Quorum, command.clone()).unwrap_err();
        assert!(refused.contains(why), "{command:?}: {refused}");
    }
    assert_eq!(read(&mut tool), topic);
}

#[test]
fn a_message_that_no_replica_can_have_sent_ends_nothing_and_is_counted() {
    let mut broker = Broker::start();
    let mut wire = client::connect(&broker);
    assert_eq!(client::create_topic(&mut wire, "before", 1, 1, &[]).error_code, errors::NONE);
    let mut other = as_broker(&broker);
    let quorum = Tool::connect(&broker, PATIENCE).unwrap().describe().unwrap();
    let (term, last) = (quorum.term, quorum.commit.get());
    let entry = |data: &'static [u8]| RaftEntry {
        index: last + 1,
        term: (term + 1).0,
        data: data.into(),
        ..RaftEntry::default()
    };
    let append = |other: &Other, entries: Vec<RaftEntry>| {
        let mut append = other.message(MessageType::MsgAppend, term + 1);
        (append.index, append.log_term, append.commit) = (last, term.0, last + 1);
        append.set_entries(entries.into());
        raft(append)
    };
    let heartbeat = |other: &Other, term, commit| {
        let mut heartbeat = other.message(MessageType::MsgHeartbeat, term);
        heartbeat.commit = commit;
        raft(heartbeat)
    };
    let sent = [
        heartbeat(&other, term + 1, last + 1_000_000),
        heartbeat(&other, term, 0),
        heartbeat(&other, Term(u64::MAX - 1), 0),
        heartbeat(&other, Term(0), 0),
        append(&other, vec![entry(b"no command")]),
        append(&other, vec![RaftEntry { term: (term + 2).0, ..entry(b"") }]),
        raft(Message { index: 1, log_term: u64::MAX, ..other.message(MessageType::MsgRequestVote, term + 1) }),
        raft(Message { reject: true, ..other.message(MessageType::MsgRequestPreVoteResponse, Term(u64::MAX)) }),
        raft(other.message(MessageType::MsgSnapshot, term + 1)),
    ];
    assert!(other.send(&sent));
    wait_until("refused messages", || broker.metric(REFUSED) >= sent.len() as f64);
    assert_eq!((broker.metric(REFUSED), broker.metric(LOSSES)), (sent.len() as f64, 1.0));
    broker.wait_for_log("a loss", |line| line.contains("may have lost a part of its log") && line.contains("ERROR"));
    assert_eq!(Tool::connect(&broker, PATIENCE).unwrap().describe().unwrap().term, term, "nobody was elected");
    assert_eq!(client::create_topic(&mut wire, "after", 1, 1, &[]).error_code, errors::NONE);
    // No log contains the rejected commands.
    broker.kill_and_begin();
    assert_eq!(broker.metric("millrace_groups_stopped"), 0.0);
    assert_eq!(client::partitions(&mut client::connect(&broker), "after").len(), 1);
}

/// Random messages, from a seed.
struct Fuzz {
    rng: fastrand::Rng,
    seed: u64,
    /// Roughly the term of the broker's metadata.
    term: Term,
    last: u64,
}

impl Drop for Fuzz {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with: PEER_FUZZ_SEED={} cargo test -p engine --test peer_port fields", self.seed);
        }
    }
}

impl Fuzz {
    fn number(&mut self) -> u64 {
        match self.rng.u8(..8) {
            0 => [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 60, i32::MAX as u64, 1 << 32][self.rng.usize(..6)],
            1 => self.rng.u64(..100),
            2 | 3 => (self.term + self.rng.u64(..3)).0,
            _ => (self.last + self.rng.u64(..6)).saturating_sub(3),
        }
    }

    fn bytes(&mut self, most: usize) -> Bytes {
        (0..self.rng.usize(..most)).map(|_| self.rng.u8(..)).collect::<Vec<_>>().into()
    }

    fn command(&mut self) -> Command {
        let (name, id, partition) = ("fuzzed".into(), Uuid::new_v4(), self.rng.u32(..3));
        let (number, node) = (self.number(), self.rng.i32(-1..4));
        match self.rng.u8(..8) {
            0 => Command::CreateTopic {
                name,
                id,
                first_group: number,
                replicas: (0..self.rng.usize(..3)).map(|_| vec![node; self.rng.usize(..3)]).collect(),
                configs: [("retention.ms".to_owned(), "x".to_owned())].into(),
                created_ms: number as i64,
                peers: vec![number],
            },
            1 => Command::DeleteTopic { name, id },
            2 => Command::CreatePartitions {
                name,
                id,
                present: partition,
                first_group: number,
                replicas: vec![vec![node]],
                peers: Vec::new(),
            },
            3 => Command::AllocateProducerIds { count: self.rng.u32(..) },
            4 => {
                let leaders = vec![LeaderReport { partition, term: Term(number), leader: node, voters: vec![node] }];
                Command::SetPartitionLeader { name, id, leaders }
            }
            5 => Command::UpdateBrokerStatus { node, incarnation: number, status: BrokerStatus::Fenced },
            6 => Command::SetFeatureLevel { name: "x".to_owned(), level: self.rng.u16(..) },
            _ => Command::UpdateClusterConfig { node: Some(node), changes: vec![("metadata.voters".to_owned(), None)] },
        }
    }

    fn raft(&mut self, other: &Other) -> PeerMessage {
        const KINDS: [MessageType; 12] = [
            MessageType::MsgAppend,
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
        let kind = KINDS[self.rng.usize(..KINDS.len())];
        let term = self.number();
        let mut message = other.message(kind, Term(term));
        (message.index, message.log_term, message.commit) = (self.number(), self.number(), self.number());
        (message.commit_term, message.reject, message.reject_hint) = (self.number(), self.rng.bool(), self.number());
        message.context = self.bytes(12);
        if kind == MessageType::MsgSnapshot {
            let (index, term) = (self.number(), self.number());
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (index, term);
            let voters =
                (0..self.rng.usize(..3)).map(|_| [other.there.peer, other.me.peer][self.rng.usize(..2)]).collect();
            metadata.mut_conf_state().voters = voters;
            if self.rng.bool() {
                // Where a partition's log begins, and no idempotent producers.
                let mut producers = [0u8; 20];
                producers[4] = 1;
                let crc = crc32c::crc32c(&producers[4..]);
                producers[..4].copy_from_slice(&crc.to_le_bytes());
                message.context = [&self.number().to_le_bytes()[..], &producers].concat().into();
            }
        }
        let (mut entries, mut payloads) = (Vec::new(), Vec::new());
        for at in 0..self.rng.usize(..3) {
            let data = match self.rng.u8(..5) {
                0 => self.bytes(40),
                1 => consensus::metadata::encode(&[self.command()]),
                2 => EntryData::LogStart { offset: self.number() }.encode(),
                3 => {
                    let bytes = client::batch(&[b"fuzzed"]);
                    let header = batch::verify(&bytes).expect("a batch");
                    let count = if self.rng.bool() { 1 } else { self.rng.u32(..) };
                    let descriptor = Descriptor {
                        base_offset: if self.rng.bool() { 0 } else { self.number() },
                        count,
                        bytes: bytes.len() as u32,
                        crc: header.crc,
                        max_timestamp: header.max_timestamp,
                    };
                    payloads.push((at, bytes));
                    EntryData::Batch(descriptor).encode()
                }
                _ => Bytes::new(),
            };
            let index = message.index.wrapping_add(at as u64 + 1);
            entries.push(RaftEntry { index, term, data, ..RaftEntry::default() });
        }
        if kind == MessageType::MsgAppend {
            message.set_entries(entries.into());
        } else {
            payloads.clear();
        }
        let group = GroupId(self.rng.u64(..3));
        match payloads.is_empty() {
            true => PeerMessage::Raft { group, message },
            false => PeerMessage::Append { group, message, payloads },
        }
    }

    fn plane(&mut self) -> PlaneMessage {
        let ask = Ask { incarnation: self.number(), number: self.number() };
        let refused = Err(Refused::NotLeader { leader: Some(self.number()) });
        let (number, time) = (self.number(), Duration::from_nanos(self.number()));
        match self.rng.u8(..8) {
            0 => {
                let command = self.command();
                PlaneMessage::Forward {
                    ask,
                    acks: Acks::Leader,
                    requests: vec![Request { origin: None, command, no_room: None }],
                }
            }
            1 => PlaneMessage::Forwarded {
                ask,
                answer: Ok(Accepted { term: Term(number), index: RaftIndex::new(number), results: vec![] }),
            },
            2 => PlaneMessage::ReadIndex { ask },
            3 => PlaneMessage::ReadIndexed {
                ask,
                answer: if self.rng.bool() { Ok(RaftIndex::new(number)) } else { refused.map(|()| RaftIndex::ZERO) },
            },
            4 => PlaneMessage::Probe { incarnation: number, sent_at: time },
            5 => PlaneMessage::Heartbeat {
                incarnation: number,
                sent_at: time,
                term: Term(number),
                commit: RaftIndex::new(number),
            },
            6 => PlaneMessage::Describe { ask },
            _ => PlaneMessage::Described { ask, answer: refused.map(|()| Default::default()) },
        }
    }

    fn message(&mut self, other: &Other) -> PeerMessage {
        let number = self.number();
        match self.rng.u8(..10) {
            0 => PeerMessage::Rest(Rest {
                group: GroupId(self.rng.u64(..3)),
                at: Position { index: RaftIndex::new(number), term: Term(self.number()) },
            }),
            1 => PeerMessage::Beat(Beat {
                incarnation: number,
                core: self.rng.u16(..),
                cores: self.rng.u16(..),
                healthy: self.rng.bool(),
            }),
            2 => PeerMessage::Elect { group: GroupId(self.rng.u64(..3)) },
            3 => PeerMessage::Plane(self.plane()),
            4 => {
                let bytes = self.bytes(64);
                let crc = crc32c::crc32c(&bytes);
                let offset = if self.rng.bool() { 0 } else { number };
                let total = if self.rng.bool() { bytes.len() as u64 } else { self.number() };
                let term = self.number();
                PeerMessage::SnapshotChunk(SnapshotChunk {
                    group: GroupId(0),
                    index: RaftIndex::new(number),
                    term: Term(term),
                    offset,
                    total,
                    crc,
                    bytes,
                })
            }
            _ => self.raft(other),
        }
    }
}

#[test]
fn wrong_fields_in_valid_frames_end_nothing() {
    const ROUNDS: usize = 60;
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("PEER_FUZZ_SEED").unwrap_or(1);
    let rounds = number("PEER_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds as usize);
    let mut broker = Broker::start();
    let mut wire = client::connect(&broker);
    assert_eq!(client::create_topic(&mut wire, "fuzzed", 2, 1, &[]).error_code, errors::NONE);
    let quorum = Tool::connect(&broker, PATIENCE).unwrap().describe().unwrap();
    let mut fuzz = Fuzz { rng: fastrand::Rng::with_seed(seed), seed, term: quorum.term, last: quorum.commit.get() };
    for round in 0..rounds {
        fuzz.term = Term(broker.metric("millrace_metadata_term") as u64);
        fuzz.last = broker.metric("millrace_metadata_shown_index") as u64;
        let mut other = as_broker(&broker);
        for _ in 0..30 {
            let messages: Vec<PeerMessage> = (0..fuzz.rng.usize(1..5)).map(|_| fuzz.message(&other)).collect();
            if !other.send(&messages) {
                break;
            }
        }
        let mut tool = as_tool(&broker);
        for id in 0..5 {
            let ask = match fuzz.rng.u8(..3) {
                0 => ToolAsk::Write { acks: None, commands: vec![fuzz.command()] },
                1 => ToolAsk::ProbeMesh { to: Some(fuzz.rng.u16(..)), rounds: 1, in_flight: fuzz.rng.u16(..) },
                _ => ToolAsk::Describe,
            };
            // Nobody waits for the answer.
            let request = PeerFrame::new(Kind::Request, Lane::Control, wire::encode_request(&ToolRequest { id, ask }));
            if tool.peer.write(&request).is_err() {
                break;
            }
        }
        assert!(broker.is_alive(), "round {round}");
    }
    let (status, body) = broker.admin_get("/health/live");
    assert_eq!((status, broker.is_alive()), (200, true), "{body}");
    assert!(broker.metric(REFUSED) > 100.0, "wrong fields are among them");
    // Entries that have got into a log do not end the process either, although a peer can depose and remove its broker.
    broker.kill();
    broker.spawn();
    broker.wait_for_log("its start", |line| {
        line.contains("cannot join the cluster yet") || line.starts_with("listening kafka")
    });
    assert!(broker.is_alive(), "{}", broker.output());
}
