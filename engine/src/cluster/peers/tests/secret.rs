//! Brokers and tools with the right secret, with a wrong one, and without one.

use crate::cluster::peers::tests::*;
use crate::cluster::peers::{strangers::STRANGERS_MAX, tools::TOOLS_MAX};
use consensus::wire::Beat;
use net::{
    codec::parts::Parts,
    peer::{
        FRAME_BYTES_MAX,
        auth::{Handshake, Secret, nonce},
    },
};

pub(super) fn secret(byte: u8) -> Option<Secret> {
    Secret::new(&[byte; 32])
}

/// A broker that listens and requires a secret.
pub(super) fn guarded(me: Hello, seeds: &[(i32, SocketAddr)]) -> (Rc<Peers>, Rc<Inbox>, SocketAddr) {
    let (bound, addr) = bound();
    let peers = Peers::new(me, secret(7), seeds.iter().map(|(node, addr)| (*node, addr.to_string())));
    let inbox = Rc::new(Inbox::default());
    let accepting = peers.clone().accept(bound, inbox.clone());
    runtime::spawn(async move { accepting.await.unwrap() });
    (peers, inbox, addr)
}

pub(super) fn tool() -> Hello {
    Hello { caller: Caller::Tool, cluster_id: None, ..hello(0) }
}

impl Other {
    /// Performs the handshake and returns the other side's hello.
    pub(super) async fn prove(&mut self, me: &Hello, secret: Option<Secret>) -> Result<Hello, PeerError> {
        let handshake = Handshake::caller(secret, Lane::Control, wire::encode_hello(me), nonce());
        let there = peer::shake_hands(handshake, true, &mut self.reader, &mut self.writer).await?;
        Ok(wire::decode_hello(&there).unwrap())
    }

    pub(super) async fn ask(&mut self, id: u64) {
        self.write(Kind::Request, wire::encode_request(&ToolRequest { id, ask: ToolAsk::Describe })).await;
    }
}

#[test]
fn brokers_that_know_the_secret_meet_and_a_stranger_learns_and_changes_nothing() {
    on_a_core(|| async {
        let (one, one_inbox, one_addr) = guarded(hello(1), &[]);
        let (two, _, _) = guarded(hello(2), &[(1, one_addr)]);
        two.way(1, Lane::Control).until_there(true).await;
        two.send_to_node(1, probe(1));
        assert_eq!(one_inbox.next().await, (2, vec![probe(1)]));

        // Without a secret, the caller gets a nonce, and the connection ends.
        let mut plain = Other::connect(one_addr).await;
        plain.write(Kind::Hello, wire::encode_hello(&hello(3))).await;
        let told = plain.read().await.unwrap();
        assert_eq!((told.kind, told.bytes.len()), (Kind::Challenge, 32));
        assert_eq!(plain.read().await, None);
        // The same with another secret.
        let mut other = Other::connect(one_addr).await;
        assert!(matches!(other.prove(&hello(3), secret(8)).await, Err(PeerError::OtherSecret)));
        // A caller that cannot prove its identity: its messages are not read.
        let mut half = Other::connect(one_addr).await;
        let mut handshake = Handshake::caller(secret(7), Lane::Control, wire::encode_hello(&hello(3)), nonce());
        let mut frames = vec![handshake.begin()];
        for _ in 0..2 {
            for frame in frames.drain(..) {
                peer::push(&mut half.writer, frame);
            }
            half.writer.flush().await.unwrap();
            if let net::peer::auth::Step::Go(next) = handshake.take(half.read().await.unwrap()).unwrap() {
                frames = next;
            }
        }
        half.write(Kind::Messages, wire::encode(&[probe(9)])).await;
        while half.read().await.is_some() {}
        assert!(one_inbox.received.borrow().is_empty());
        assert_eq!((one.stats.received.get(), one.stats.refused.get()), (1, 3));
    });
}

#[test]
fn a_broker_does_not_send_to_whoever_lacks_the_secret() {
    on_a_core(|| async {
        let (bound, addr) = bound();
        let listener = Listener::new(bound).unwrap();
        let (one, _, _) = guarded(hello(1), &[(2, addr)]);
        for secret in [secret(8), None] {
            // Connections of other lanes arrive too; each is answered alike.
            let (mut reader, mut writer) = peer::open(listener.accept().await.unwrap()).unwrap();
            let handshake = Handshake::answerer(secret, wire::encode_hello(&hello(2)), nonce());
            peer::shake_hands(handshake, false, &mut reader, &mut writer).await.unwrap_err();
        }
        assert_eq!((one.is_there(2), one.stats.connected.get()), (false, 0));
    });
}

#[test]
fn strangers_shut_nobody_out() {
    on_a_core(|| async {
        let (peers, inbox, addr) = guarded(hello(1), &[]);
        let mut idle = Vec::new();
        for _ in 0..2 * STRANGERS_MAX {
            idle.push(Other::connect(addr).await);
        }
        // Endless frames: one is too large for a hello, the other claims to be small.
        for claimed in [60 << 20, 1024u32] {
            let mut endless = Other::connect(addr).await;
            let start = [&claimed.to_be_bytes()[..], b"MR\x01\x06\0\0\0\0"].concat();
            endless.writer.push(Parts::from(Bytes::from(start)));
            let _ = endless.writer.flush().await;
            idle.push(endless);
        }
        let mut broker = Other::connect(addr).await;
        assert_eq!(broker.prove(&hello(2), secret(7)).await.unwrap(), hello(1));
        broker.write(Kind::Messages, wire::encode(&[probe(1)])).await;
        assert_eq!(inbox.next().await, (2, vec![probe(1)]));
        let mut tools = Other::connect(addr).await;
        assert_eq!(tools.prove(&tool(), secret(7)).await.unwrap(), hello(1));
        // The oldest give way; others run out of time, which are more on a slow machine.
        assert!(peers.strangers_evicted() > 0);
        for stranger in &mut idle {
            assert_eq!(stranger.read().await, None);
        }
        assert_eq!(peers.stats.refused.get(), idle.len() as u64);
    });
}

#[test]
fn tools_have_a_number_of_their_own_and_an_idle_one_goes() {
    on_a_core(|| async {
        let (peers, inbox, addr) = guarded(hello(1), &[]);
        let mut tools = Vec::new();
        for _ in 0..TOOLS_MAX {
            let mut one = Other::connect(addr).await;
            one.prove(&tool(), secret(7)).await.unwrap();
            one.ask(1).await;
            tools.push(one);
        }
        inbox.has_asked(TOOLS_MAX).await;
        assert_eq!(peers.tools_open(), TOOLS_MAX);
        let mut too_many = Other::connect(addr).await;
        too_many.prove(&tool(), secret(7)).await.unwrap();
        assert_eq!(too_many.read().await, None);
        // The limit of tools does not affect brokers.
        let mut broker = Other::connect(addr).await;
        broker.prove(&hello(2), secret(7)).await.unwrap();
        broker.write(Kind::Messages, wire::encode(&[probe(1)])).await;
        assert_eq!(inbox.next().await, (2, vec![probe(1)]));
        drop(tools);
        for (request, promise) in inbox.asked.take() {
            promise.keep(ToolResponse { id: request.id, answer: ToolAnswer::Answers(Vec::new()) });
        }
        // A tool that waits for its answer is not idle, however long that takes.
        peers.tools.idle_max.set(Duration::from_millis(50));
        let mut waits = Other::connect(addr).await;
        while waits.prove(&tool(), secret(7)).await.is_err() || peers.tools_open() > 1 {
            waits = Other::connect(addr).await;
        }
        waits.ask(1).await;
        inbox.has_asked(1).await;
        let mut idle = Other::connect(addr).await;
        idle.prove(&tool(), secret(7)).await.unwrap();
        assert_eq!(idle.read().await, None);
        let (request, promise) = inbox.asked.borrow_mut().pop().unwrap();
        promise.keep(ToolResponse { id: request.id, answer: ToolAnswer::Answers(Vec::new()) });
        assert_eq!(waits.read().await.unwrap().kind, Kind::Response);
        // Now it is idle.
        assert_eq!(waits.read().await, None);
    });
}

#[test]
fn a_tools_request_has_a_size_and_is_no_message() {
    on_a_core(|| async {
        let (_peers, inbox, addr) = guarded(hello(1), &[]);
        let mut large = Other::connect(addr).await;
        large.prove(&tool(), secret(7)).await.unwrap();
        let start = [&(FRAME_BYTES_MAX as u32 / 2).to_be_bytes()[..], b"MR\x01\x03\0\0\0\0"].concat();
        large.writer.push(Parts::from(Bytes::from(start)));
        large.writer.flush().await.unwrap();
        assert_eq!(large.read().await, None);
        let mut posing = Other::connect(addr).await;
        posing.prove(&tool(), secret(7)).await.unwrap();
        posing.write(Kind::Messages, wire::encode(&[probe(1)])).await;
        assert_eq!(posing.read().await, None);
        assert!(inbox.received.borrow().is_empty());
    });
}

/// Core 0 of two: passes connections for the other core on.
#[derive(Default)]
struct HandingOn {
    there: Rc<Inbox>,
    other: RefCell<Option<Rc<Peers>>>,
}

impl Host for HandingOn {
    fn receive(&self, _from: i32, _messages: Vec<PeerMessage>) {
        panic!("they are for the other core");
    }

    fn answer(&self, _request: ToolRequest) -> Answering {
        panic!("there is no tool");
    }

    fn hand_on(&self, core: usize, connection: Begun) {
        assert_eq!(core, 1);
        let other = self.other.borrow().clone().expect("it is there");
        other.take_over(connection, self.there.clone());
    }
}

/// Core 0 of two cores, which passes everything on to the other.
fn of_two_cores() -> (Rc<Peers>, Rc<HandingOn>, SocketAddr) {
    let (bound, addr) = bound();
    let two_cores = |core| Hello { cores: 2, core, ..hello(1) };
    let peers = Peers::new(two_cores(0), secret(7), []);
    let host = Rc::new(HandingOn::default());
    *host.other.borrow_mut() = Some(Peers::new(two_cores(1), secret(7), []));
    let accepting = peers.clone().accept(bound, host.clone());
    runtime::spawn(async move { accepting.await.unwrap() });
    (peers, host, addr)
}

/// Connects as broker 2 and proves it, for core 1. The last proof is queued and not sent yet.
async fn proved(addr: SocketAddr) -> Other {
    let mut other = Other::connect(addr).await;
    let me = Hello { core: 1, ..hello(2) };
    let mut handshake = Handshake::caller(secret(7), Lane::Control, wire::encode_hello(&me), nonce());
    peer::push(&mut other.writer, handshake.begin());
    loop {
        other.writer.flush().await.unwrap();
        match handshake.take(other.read().await.unwrap()).unwrap() {
            net::peer::auth::Step::Go(frames) => {
                frames.into_iter().for_each(|frame| peer::push(&mut other.writer, frame));
            }
            net::peer::auth::Step::Met { send, .. } => {
                send.into_iter().for_each(|frame| peer::push(&mut other.writer, frame));
                return other;
            }
        }
    }
}

#[test]
fn bytes_right_behind_the_proof_reach_the_core_that_they_are_for() {
    on_a_core(|| async {
        let (_peers, host, addr) = of_two_cores();
        for round in 0..20 {
            let mut other = proved(addr).await;
            // The last proof and the first messages leave in one write.
            for number in 0..3 {
                let bytes = wire::encode(&[probe(number), chunk(5_000)]);
                peer::push(&mut other.writer, PeerFrame::new(Kind::Messages, Lane::Control, bytes));
            }
            other.writer.flush().await.unwrap();
            for number in 0..3 {
                assert_eq!(host.there.next().await, (2, vec![probe(number), chunk(5_000)]), "round {round}");
            }
        }
    });
}

#[test]
fn connections_on_all_cores_count_towards_the_limit() {
    on_a_core(|| async {
        let (peers, host, addr) = of_two_cores();
        peers.serve_at_most(2);
        let mut open = Vec::new();
        for number in 0..2 {
            let mut other = proved(addr).await;
            other.write(Kind::Messages, wire::encode(&[probe(number)])).await;
            assert_eq!(host.there.next().await, (2, vec![probe(number)]));
            open.push(other);
        }
        let mut third = proved(addr).await;
        third.writer.flush().await.unwrap();
        assert_eq!(third.read().await, None, "it is closed");
        assert_eq!(peers.stats().refused.get(), 1);
        // One that ends makes room for the next.
        open.pop();
        loop {
            let mut next = proved(addr).await;
            peer::push(&mut next.writer, PeerFrame::new(Kind::Messages, Lane::Control, wire::encode(&[probe(9)])));
            next.writer.flush().await.unwrap();
            if let Either::First(received) = race(host.there.next(), next.read()).await {
                assert_eq!(received, (2, vec![probe(9)]));
                break;
            }
        }
    });
}

#[test]
fn beats_count_only_from_the_registered_peer_of_a_broker() {
    on_a_core(|| async {
        let (one, one_inbox, one_addr) = guarded(hello(1), &[]);
        let beat = || PeerMessage::Beat(Beat { incarnation: 1, core: 0, cores: 1, healthy: true });
        one.set_registered(2, peer_id(2, 7));
        let mut stranger = Other::connect(one_addr).await;
        stranger.prove(&Hello { peer: peer_id(2, 8), ..hello(2) }, secret(7)).await.unwrap();
        // It may register all the same.
        stranger.write(Kind::Messages, wire::encode(&[beat(), probe(1)])).await;
        assert_eq!(one_inbox.next().await, (2, vec![probe(1)]));
        one.set_registered(2, peer_id(2, 8));
        stranger.write(Kind::Messages, wire::encode(&[beat()])).await;
        assert_eq!(one_inbox.next().await, (2, vec![beat()]));
    });
}

#[test]
fn a_removed_peer_is_refused_and_its_connections_end() {
    on_a_core(|| async {
        let (one, one_inbox, one_addr) = guarded(hello(1), &[]);
        let (two, _, two_addr) = guarded(hello(2), &[(1, one_addr)]);
        one.set_address(2, two_addr.to_string());
        two.way(1, Lane::Control).until_there(true).await;
        one.way(2, Lane::Control).until_there(true).await;
        one.set_gone(Arc::new([peer_id(2, 7)].into()));
        // Messages under way are not accepted, nor are later ones.
        two.send_to_node(1, probe(1));
        one.way(2, Lane::Control).until_there(false).await;
        two.way(1, Lane::Control).until_there(false).await;
        let mut again = Other::connect(one_addr).await;
        again.prove(&hello(2), secret(7)).await.unwrap();
        assert_eq!(again.read().await, None);
        // The same broker with another disk is another peer.
        let mut next = Other::connect(one_addr).await;
        next.prove(&Hello { peer: peer_id(2, 8), ..hello(2) }, secret(7)).await.unwrap();
        next.write(Kind::Messages, wire::encode(&[probe(2)])).await;
        assert_eq!(one_inbox.next().await, (2, vec![probe(2)]));
    });
}
