//! Two brokers, or one broker and a test that plays the other side, on one core and real sockets.

mod secret;
mod tools;

use crate::cluster::peers::*;
use consensus::{
    group::{Message, MessageType},
    metadata::{Command, Request},
    plane::{Acks, Ask, PlaneMessage, peer_id},
    wire::{SnapshotChunk, ToolAnswer, ToolAsk},
};
use net::{
    peer::{self, CARRIED_BYTES_MAX, PeerFrame},
    transport::{
        conn::{self, FrameReader, FrameWriter},
        listen::{self, Bound, Listener},
    },
};
use runtime::sync::{Answer, Promise, promise};
use std::collections::BTreeSet;
use types::{GroupId, RaftIndex, Term};

/// Longer than any of these tests should take. Reaching it is a failure, never a pass.
const TIMEOUT: Duration = Duration::from_secs(60);

fn on_a_core<F: Future<Output = ()> + 'static>(main: impl FnOnce() -> F + Send + 'static) {
    let bounded = || async move {
        if let Either::Second(()) = race(main(), runtime::sleep(TIMEOUT)).await {
            panic!("it hangs");
        }
    };
    runtime::spawn_core(runtime::any_allowed_cpu(), "test", bounded).unwrap().join().unwrap();
}

fn hello(node: i32) -> Hello {
    Hello {
        caller: Caller::Broker,
        cluster_id: Some("ours".to_owned()),
        node,
        peer: peer_id(node, 7),
        incarnation: 1,
        cores: 1,
        program: "test".to_owned(),
        peer_addr: String::new(),
        seeds: Vec::new(),
        founding: Vec::new(),
        core: 0,
    }
}

fn bound() -> (Bound, SocketAddr) {
    let bound = listen::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap().pop().unwrap();
    let addr = bound.addr();
    (bound, addr)
}

/// Keeps received messages, and answers tools when the test says so.
#[derive(Default)]
struct Inbox {
    received: RefCell<VecDeque<(i32, Vec<PeerMessage>)>>,
    asked: RefCell<Vec<(ToolRequest, Promise<ToolResponse>)>>,
    changed: Notify,
}

impl Host for Inbox {
    fn receive(&self, from: i32, messages: Vec<PeerMessage>) {
        self.received.borrow_mut().push_back((from, messages));
        self.changed.notify();
    }

    fn answer(&self, request: ToolRequest) -> Answering {
        let (promise, answer): (_, Answer<ToolResponse>) = promise();
        self.asked.borrow_mut().push((request, promise));
        self.changed.notify();
        Box::pin(async { answer.await.expect("the test answers") })
    }

    fn hand_on(&self, core: usize, _connection: Begun) {
        panic!("there is no core {core}")
    }
}

impl Inbox {
    async fn next(&self) -> (i32, Vec<PeerMessage>) {
        loop {
            if let Some(received) = self.received.borrow_mut().pop_front() {
                return received;
            }
            self.changed.next().await;
        }
    }

    async fn has_asked(&self, count: usize) {
        while self.asked.borrow().len() < count {
            self.changed.next().await;
        }
    }
}

/// A broker that listens.
fn broker(me: Hello, seeds: &[(i32, SocketAddr)]) -> (Rc<Peers>, Rc<Inbox>, SocketAddr) {
    let (bound, addr) = bound();
    let peers = Peers::new(me, None, seeds.iter().map(|(node, addr)| (*node, addr.to_string())));
    let inbox = Rc::new(Inbox::default());
    let accepting = peers.clone().accept(bound, inbox.clone());
    runtime::spawn(async move { accepting.await.unwrap() });
    (peers, inbox, addr)
}

impl Peers {
    fn way(&self, node: i32, lane: Lane) -> Rc<Way> {
        self.book.borrow()[&node].lanes[lane as usize].clone()
    }

    async fn until_there(&self, node: i32, is_there: bool) {
        while self.is_there(node) != is_there {
            self.comings.next().await;
        }
    }
}

impl Way {
    async fn until_there(&self, is_there: bool) {
        while self.there.get().is_some() != is_there {
            self.room.next().await;
        }
    }
}

/// The other side of one connection, played by the test.
struct Other {
    reader: FrameReader,
    writer: FrameWriter,
}

impl Other {
    async fn connect(addr: SocketAddr) -> Other {
        let (mut reader, writer) = peer::open(conn::connect(addr).await.unwrap()).unwrap();
        peer::trust(&mut reader, peer::FRAME_BYTES_MAX);
        Other { reader, writer }
    }

    /// Takes the next connection of a lane and answers its hello. Connections of other lanes are closed.
    async fn accept(listener: &Listener, lane: Lane, me: &Hello) -> Other {
        loop {
            let (mut reader, writer) = peer::open(listener.accept().await.unwrap()).unwrap();
            peer::trust(&mut reader, peer::FRAME_BYTES_MAX);
            let mut other = Other { reader, writer };
            let asked = other.read().await.unwrap();
            assert_eq!(asked.kind, Kind::Hello);
            if asked.lane == lane {
                other.write(Kind::Hello, wire::encode_hello(me)).await;
                return other;
            }
        }
    }

    async fn write(&mut self, kind: Kind, bytes: Bytes) {
        peer::push(&mut self.writer, PeerFrame::new(kind, Lane::Control, bytes));
        self.writer.flush().await.unwrap();
    }

    /// `None` once the other side has closed.
    async fn read(&mut self) -> Option<PeerFrame> {
        peer::read(&mut self.reader).await.unwrap_or_default()
    }

    /// Sends a hello and returns the answer.
    async fn greet(&mut self, me: &Hello) -> Hello {
        self.write(Kind::Hello, wire::encode_hello(me)).await;
        let answer = self.read().await.unwrap();
        assert_eq!(answer.kind, Kind::Hello);
        wire::decode_hello(&answer.bytes).unwrap()
    }
}

fn probe(number: u64) -> PeerMessage {
    PeerMessage::Plane(PlaneMessage::ReadIndex { ask: Ask { incarnation: 1, number } })
}

fn raft(from: u64, to: u64) -> PeerMessage {
    let mut message = Message { from, to, term: 3, ..Message::default() };
    message.set_msg_type(MessageType::MsgHeartbeat);
    PeerMessage::Raft { group: GroupId(0), message }
}

fn chunk(bytes: usize) -> PeerMessage {
    let bytes = Bytes::from(vec![7; bytes]);
    PeerMessage::SnapshotChunk(SnapshotChunk {
        group: GroupId(0),
        index: RaftIndex::new(1),
        term: Term(1),
        offset: 0,
        total: 1,
        crc: 0,
        bytes,
    })
}

#[test]
fn messages_of_one_turn_leave_in_one_frame_and_answers_come_on_the_others_connection() {
    on_a_core(|| async {
        let (one, one_inbox, one_addr) = broker(hello(1), &[]);
        let (two, two_inbox, two_addr) = broker(hello(2), &[(1, one_addr)]);
        one.set_address(2, two_addr.to_string());
        assert_eq!((one.nodes(), two.nodes()), (vec![2], vec![1]));
        one.way(2, Lane::Control).until_there(true).await;
        two.way(1, Lane::Control).until_there(true).await;
        let sent: Vec<_> = (0..10).map(probe).chain([raft(peer_id(1, 7), peer_id(2, 7))]).collect();
        for message in &sent {
            one.send(peer_id(2, 7), message.clone());
        }
        assert_eq!(two_inbox.next().await, (1, sent));
        two.send_to_node(1, probe(99));
        assert_eq!(one_inbox.next().await, (2, vec![probe(99)]));
        let stats =
            [&one, &two].map(|peers| (peers.stats.sent.get(), peers.stats.received.get(), peers.stats.dropped.get()));
        assert_eq!(stats, [(11, 1, 0), (1, 11, 0)]);
        assert_eq!(one.stats.sent_bytes.get(), two.stats.received_bytes.get());
    });
}

#[test]
fn a_message_for_a_disk_that_is_gone_reaches_nobody() {
    on_a_core(|| async {
        let (_two, inbox, addr) = broker(hello(2), &[]);
        let (one, _, _) = broker(hello(1), &[(2, addr)]);
        one.way(2, Lane::Control).until_there(true).await;
        one.send(peer_id(2, 6), raft(peer_id(1, 7), peer_id(2, 6)));
        assert_eq!(one.stats.dropped.get(), 1);
        // A message sent before the disk was replaced, or written by another peer, does not arrive either.
        let mut other = Other::connect(addr).await;
        assert_eq!(other.greet(&hello(3)).await, hello(2));
        let mine = raft(peer_id(3, 7), peer_id(2, 7));
        let sent = [raft(peer_id(3, 7), peer_id(2, 6)), raft(peer_id(3, 6), peer_id(2, 7)), mine.clone()];
        other.write(Kind::Messages, wire::encode(&sent)).await;
        assert_eq!(inbox.next().await, (3, vec![mine]));
    });
}

#[test]
fn a_broker_that_comes_back_is_found_again_and_gets_nothing_old() {
    on_a_core(|| async {
        let (bound, addr) = bound();
        let listener = Listener::new(bound).unwrap();
        let (one, _, _) = broker(hello(1), &[(2, addr)]);
        one.send_to_node(2, probe(0));
        assert_eq!((one.is_there(2), one.away()), (false, vec![2]));
        let first = Other::accept(&listener, Lane::Control, &hello(2)).await;
        one.until_there(2, true).await;
        first.writer.shutdown();
        drop(first);
        one.until_there(2, false).await;
        one.send_to_node(2, probe(1));
        // The broker returns with another disk.
        let new = Hello { peer: peer_id(2, 8), ..hello(2) };
        let mut second = Other::accept(&listener, Lane::Control, &new).await;
        one.until_there(2, true).await;
        one.send(peer_id(2, 7), probe(2));
        one.send(peer_id(2, 8), probe(3));
        let frame = second.read().await.unwrap();
        assert_eq!((frame.kind, frame.lane), (Kind::Messages, Lane::Control));
        assert_eq!(wire::decode(&frame.bytes), Ok(vec![probe(3)]));
        assert_eq!(one.stats.dropped.get(), 3);
    });
}

#[test]
fn the_other_end_must_be_the_wanted_node_of_this_cluster() {
    on_a_core(|| async {
        let others = [
            Hello { cluster_id: Some("theirs".to_owned()), ..hello(2) },
            Hello { cluster_id: None, ..hello(2) },
            hello(3),
        ];
        for there in others {
            let (bound, addr) = bound();
            let listener = Listener::new(bound).unwrap();
            let (one, _, _) = broker(hello(1), &[(2, addr)]);
            for _ in 0..2 {
                let mut other = Other::accept(&listener, Lane::Control, &there).await;
                one.send_to_node(2, probe(1));
                assert_eq!(other.read().await, None, "{there:?}");
            }
            assert_eq!((one.stats.dropped.get(), one.stats.connected.get()), (2, 0));
            one.stop();
        }
    });
}

#[test]
fn a_broker_that_connects_must_be_of_this_cluster() {
    on_a_core(|| async {
        let (peers, inbox, addr) = broker(hello(1), &[]);
        let strangers = [
            Hello { cluster_id: Some("theirs".to_owned()), ..hello(2) },
            Hello { cluster_id: Some("theirs".to_owned()), caller: Caller::Tool, ..hello(2) },
            Hello { cluster_id: None, ..hello(2) },
            // Two brokers with one node id.
            Hello { peer: peer_id(1, 8), ..hello(1) },
            // A broker with the peer id of another.
            Hello { peer: peer_id(3, 7), ..hello(2) },
        ];
        for stranger in strangers {
            let mut other = Other::connect(addr).await;
            assert_eq!(other.greet(&stranger).await, hello(1));
            // The connection may be closed already.
            peer::push(&mut other.writer, PeerFrame::new(Kind::Messages, Lane::Control, wire::encode(&[probe(1)])));
            let _ = other.writer.flush().await;
            assert_eq!(other.read().await, None, "{stranger:?}");
        }
        assert!(inbox.received.borrow().is_empty());
        assert_eq!(peers.stats.received.get(), 0);
    });
}

#[test]
fn refusals_say_what_to_do() {
    let ours = Peers::new(hello(1), None, []);
    let theirs = Hello { cluster_id: Some("theirs".to_owned()), peer_addr: "b:2".to_owned(), ..hello(2) };
    let refused = ours.check_cluster(&theirs).unwrap_err();
    assert!(refused.needs_a_hand());
    let why = refused.to_string();
    for part in ["broker 2 at b:2", "cluster theirs", "this broker to ours", "--seeds", "empty the data directory"] {
        assert!(why.contains(part), "{why}");
    }
    let why = LinkError::SameNode { node: 1, address: "a:1".to_owned() }.to_string();
    assert!(why.contains("the broker at a:1 has the node id 1, too") && why.contains("--node-id"), "{why}");
}

#[test]
fn an_unknown_message_ends_the_connection() {
    on_a_core(|| async {
        let (_peers, inbox, addr) = broker(hello(1), &[]);
        for (kind, bytes) in [
            (Kind::Messages, Bytes::from_static(b"not a message")),
            (Kind::Messages, Bytes::new()),
            (Kind::Request, wire::encode_request(&ToolRequest { id: 1, ask: ToolAsk::Describe })),
            (Kind::Hello, wire::encode_hello(&hello(2))),
        ] {
            let mut other = Other::connect(addr).await;
            other.greet(&hello(2)).await;
            other.write(kind, bytes).await;
            assert_eq!(other.read().await, None, "{kind:?}");
        }
        for (kind, bytes) in [(Kind::Messages, wire::encode(&[probe(1)])), (Kind::Hello, Bytes::new())] {
            let mut other = Other::connect(addr).await;
            other.write(kind, bytes).await;
            // Without a secret, any caller's hello is answered first.
            while let Some(told) = other.read().await {
                assert_eq!(told.kind, Kind::Hello, "{kind:?} at first");
            }
        }
        assert!(inbox.received.borrow().is_empty());
        // Other connections are still accepted.
        let mut other = Other::connect(addr).await;
        other.greet(&hello(2)).await;
        other.write(Kind::Messages, wire::encode(&[probe(1)])).await;
        assert_eq!(inbox.next().await, (2, vec![probe(1)]));
    });
}

/// Valid bytes with random errors: the sender may lose its connection, but no other connection is affected.
#[test]
fn spoiled_bytes_harm_nobody_else() {
    on_a_core(|| async {
        let (_peers, inbox, addr) = broker(hello(1), &[]);
        let mut good = Other::connect(addr).await;
        good.greet(&hello(2)).await;
        let mut rng = fastrand::Rng::with_seed(1);
        let framed = |kind: u8, bytes: &[u8]| {
            let length = (8 + bytes.len() as u32).to_be_bytes();
            [&length[..], &[b'M', b'R', 1, kind, 0, 0, 0, 0], bytes].concat()
        };
        let tool = Hello { caller: Caller::Tool, cluster_id: None, ..hello(0) };
        let request = wire::encode_request(&ToolRequest { id: 1, ask: ToolAsk::Describe });
        let streams = [
            [framed(1, &wire::encode_hello(&hello(3))), framed(2, &wire::encode(&[probe(1), chunk(100)]))].concat(),
            [framed(1, &wire::encode_hello(&tool)), framed(3, &request)].concat(),
        ];
        for round in 0..400 {
            let mut stream = streams[round % 2].clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..stream.len());
                stream[at] = rng.u8(..);
            }
            stream.truncate(rng.usize(1..=stream.len()));
            let mut other = Other::connect(addr).await;
            other.writer.push(net::codec::parts::Parts::from(Bytes::from(stream)));
            // The connection may be closed meanwhile.
            let _ = other.writer.flush().await;
        }
        // The valid connection's messages arrive, whatever happened to the others.
        good.write(Kind::Messages, wire::encode(&[probe(7)])).await;
        while inbox.next().await != (2, vec![probe(7)]) {}
    });
}

#[test]
fn the_queue_of_a_slow_broker_is_bounded() {
    on_a_core(|| async {
        let (bound, addr) = bound();
        let listener = Listener::new(bound).unwrap();
        let (one, _, _) = broker(hello(1), &[(2, addr)]);
        let mut slow = Other::accept(&listener, Lane::Control, &hello(2)).await;
        let way = one.way(2, Lane::Control);
        way.until_there(true).await;
        const BYTES: usize = 1 << 20;
        // All within one turn, so that nothing is sent meanwhile.
        let asked = 2 * CONTROL_BYTES_MAX / BYTES;
        for _ in 0..asked {
            one.send_to_node(2, chunk(BYTES));
        }
        assert!(way.queued_bytes.get() <= CONTROL_BYTES_MAX);
        let kept = way.queue.borrow().len();
        assert!(kept > 0 && one.stats.dropped.get() as usize == asked - kept, "{kept} kept");
        let mut received = 0;
        while received < kept {
            received += wire::decode(&slow.read().await.unwrap().bytes).unwrap().len();
        }
        assert_eq!((way.queued_bytes.get(), way.queue.borrow().len()), (0, 0));
        one.send_to_node(2, probe(1));
        assert_eq!(wire::decode(&slow.read().await.unwrap().bytes), Ok(vec![probe(1)]));
    });
}

#[test]
fn bulk_waits_for_room_and_ends_with_the_connection() {
    on_a_core(|| async {
        let (bound, addr) = bound();
        let listener = Listener::new(bound).unwrap();
        let (one, _, _) = broker(hello(1), &[(2, addr)]);
        assert!(!one.send_bulk(peer_id(2, 7), chunk(1)).await, "nobody is there yet");
        let mut slow = Other::accept(&listener, Lane::Bulk, &hello(2)).await;
        one.way(2, Lane::Bulk).until_there(true).await;
        assert!(!one.send_bulk(peer_id(2, 6), chunk(1)).await, "another peer is there");
        const CHUNKS: usize = 60;
        const BYTES: usize = 256 << 10;
        let (sent, done) = promise();
        let sending = one.clone();
        runtime::spawn(async move {
            let mut count = 0;
            while sending.send_bulk(peer_id(2, 7), chunk(BYTES)).await {
                assert!(sending.way(2, Lane::Bulk).queued_bytes.get() <= BULK_BYTES_MAX);
                assert_eq!(sending.stats.dropped.get(), 0);
                count += 1;
            }
            sent.keep(count);
        });
        let mut received = 0;
        while received < CHUNKS {
            let frame = slow.read().await.unwrap();
            assert_eq!(frame.lane, Lane::Bulk);
            received += wire::decode(&frame.bytes).unwrap().len();
        }
        // Nothing reads any more: what is sent now waits until the connection ends.
        slow.writer.shutdown();
        drop(slow);
        assert!(done.await.unwrap() >= CHUNKS);
    });
}

#[test]
fn a_message_too_large_for_a_frame_is_dropped_alone() {
    on_a_core(|| async {
        let (_two, inbox, addr) = broker(hello(2), &[]);
        let (one, _, _) = broker(hello(1), &[(2, addr)]);
        one.way(2, Lane::Control).until_there(true).await;
        let command = Command::SetFeatureLevel { name: "x".repeat(CARRIED_BYTES_MAX), level: 1 };
        let requests = vec![Request { origin: None, command, no_room: None }];
        let ask = Ask { incarnation: 1, number: 1 };
        let forward = PlaneMessage::Forward { ask, acks: Acks::Quorum, requests };
        for message in [probe(1), PeerMessage::Plane(forward), probe(2)] {
            one.send_to_node(2, message);
        }
        assert_eq!(inbox.next().await, (1, vec![probe(1)]));
        assert_eq!(inbox.next().await, (1, vec![probe(2)]));
        assert_eq!(one.stats.dropped.get(), 1);
    });
}

#[test]
fn a_tool_asks_on_before_it_is_answered_and_is_answered_as_it_comes() {
    on_a_core(|| async {
        let (_peers, inbox, addr) = broker(hello(1), &[]);
        let mut tool = Other::connect(addr).await;
        tool.greet(&Hello { caller: Caller::Tool, cluster_id: None, ..hello(0) }).await;
        for id in 0..20 {
            tool.write(Kind::Request, wire::encode_request(&ToolRequest { id, ask: ToolAsk::Describe })).await;
        }
        inbox.has_asked(20).await;
        // The first request is answered last.
        for (request, promise) in inbox.asked.take().into_iter().rev() {
            let message = format!("answer {}", request.id);
            promise.keep(ToolResponse { id: request.id, answer: ToolAnswer::Failed { code: 1, message } });
        }
        let mut answered = BTreeSet::new();
        while answered.len() < 20 {
            let frame = tool.read().await.unwrap();
            assert_eq!(frame.kind, Kind::Response);
            let response = wire::decode_response(&frame.bytes).unwrap();
            let message = format!("answer {}", response.id);
            assert_eq!(response.answer, ToolAnswer::Failed { code: 1, message });
            answered.insert(response.id);
        }
        assert_eq!(answered, (0..20).collect());
    });
}

#[test]
fn a_stop_ends_everything() {
    on_a_core(|| async {
        let (bound_two, addr_two) = bound();
        let listener = Listener::new(bound_two).unwrap();
        let (bound, addr) = bound();
        let one = Peers::new(hello(1), None, [(2, addr_two.to_string())]);
        let accepting = one.clone().accept(bound, Rc::new(Inbox::default()));
        let (ended, has_ended) = promise();
        runtime::spawn(async move { ended.keep(accepting.await.is_ok()) });
        let mut two = Other::accept(&listener, Lane::Control, &hello(2)).await;
        one.way(2, Lane::Control).until_there(true).await;
        let mut from_two = Other::connect(addr).await;
        from_two.greet(&hello(2)).await;
        one.send_to_node(2, probe(1));
        one.stop();
        one.send_to_node(2, probe(2));
        // Queued messages are sent; new ones are dropped.
        assert_eq!(wire::decode(&two.read().await.unwrap().bytes), Ok(vec![probe(1)]));
        assert_eq!((two.read().await, from_two.read().await), (None, None));
        assert_eq!(has_ended.await, Some(true));
        assert_eq!(one.stats.dropped.get(), 1);
        assert!(conn::connect(addr).await.is_err(), "nobody listens any more");
    });
}

#[test]
fn a_forgotten_broker_is_left_alone_and_one_that_moved_is_found() {
    on_a_core(|| async {
        let (first, first_addr) = bound();
        let (second, second_addr) = bound();
        let (first, second) = (Listener::new(first).unwrap(), Listener::new(second).unwrap());
        let (one, _, _) = broker(hello(1), &[]);
        one.set_address(2, first_addr.to_string());
        let mut other = Other::accept(&first, Lane::Control, &hello(2)).await;
        one.way(2, Lane::Control).until_there(true).await;
        drop(first);
        one.set_address(2, second_addr.to_string());
        drop(other);
        other = Other::accept(&second, Lane::Control, &hello(2)).await;
        one.way(2, Lane::Control).until_there(true).await;
        one.forget(2);
        assert_eq!(other.read().await, None);
        one.send_to_node(2, probe(1));
        assert_eq!((one.nodes(), one.stats.dropped.get()), (vec![], 1));
    });
}
