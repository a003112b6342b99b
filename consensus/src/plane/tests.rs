//! Three planes in lockstep. Every message arrives at once unless its path is cut, and every disk is fast. (The
//! simulation covers faults.)

mod forwarded;
mod registrations;
mod script;

use crate::plane::*;
use crate::{
    group::{GroupConfig, Restored},
    metadata::{Broker, BrokerStatus, Command, HostPort, NoRoom, Origin, Outcome, Placed, Rejection, Request, Slice},
};
use std::{collections::BTreeMap, sync::Arc};
use types::{GroupId, RaftIndex};
use uuid::Uuid;

const TICK: Duration = Duration::from_millis(100);

struct Node {
    peer: u64,
    group: Group,
    plane: Plane,
    slices: Vec<Slice>,
    /// Applied to `slices`, but not committed.
    speculated: Vec<(u64, Vec<Request>)>,
    committed: Vec<Slice>,
    written: BTreeMap<Token, Result<Written, WriteError>>,
    read: BTreeMap<Token, Result<(), WriteError>>,
}

enum Wire {
    Raft(crate::group::Message),
    Plane(i32, i32, PlaneMessage),
}

struct World {
    nodes: Vec<Node>,
    now: Duration,
    wire: VecDeque<Wire>,
    /// The messages between planes that have arrived, a line each, but for those that renew leases.
    heard: Vec<String>,
    /// Cut paths: from and to, by node.
    cut: Vec<(i32, i32)>,
    /// Nothing becomes durable on this node.
    slow_disk: Option<i32>,
    /// The largest entry for which logs have room now, and the largest that was ever in one.
    room: usize,
    largest: usize,
}

impl World {
    fn new() -> Self {
        let peers: Vec<u64> = (1..=3).map(|node| peer_id(node, 7)).collect();
        let node = |peer: &u64| {
            let config = GroupConfig {
                voters: peers.clone(),
                election_jitter: 2 * node_of(*peer) as usize,
                ..GroupConfig::single(GroupId(0), *peer)
            };
            let mut plane = Plane::new(PlaneConfig::new(node_of(*peer), 1), RaftIndex::ZERO, 0);
            plane.set_contacts([1, 2, 3]);
            Node {
                peer: *peer,
                group: Group::new(config, Restored::default()).unwrap(),
                plane,
                slices: Slice::all(),
                speculated: Vec::new(),
                committed: Slice::all(),
                written: BTreeMap::new(),
                read: BTreeMap::new(),
            }
        };
        let nodes = peers.iter().map(node).collect();
        let mut world = Self {
            nodes,
            now: Duration::from_secs(100),
            wire: VecDeque::new(),
            heard: Vec::new(),
            cut: Vec::new(),
            slow_disk: None,
            room: usize::MAX,
            largest: 0,
        };
        world.run(30);
        assert_eq!(world.leader(), 1);
        world
    }

    fn leader(&self) -> i32 {
        let leading = self.nodes.iter().filter(|node| node.plane.is_established());
        node_of(leading.max_by_key(|node| node.group.term()).expect("somebody leads").peer)
    }

    fn node(&mut self, node: i32) -> &mut Node {
        &mut self.nodes[node as usize - 1]
    }

    fn run(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.now += TICK;
            for at in 0..self.nodes.len() {
                let node = &mut self.nodes[at];
                node.plane.tick(&mut node.group, self.now);
            }
            self.settle();
        }
    }

    fn settle(&mut self) {
        loop {
            for at in 0..self.nodes.len() {
                self.turn(at);
            }
            let Some(wire) = self.wire.pop_front() else { return };
            let (from, to) = match &wire {
                Wire::Raft(message) => (node_of(message.from), node_of(message.to)),
                Wire::Plane(from, to, _) => (*from, *to),
            };
            if self.cut.contains(&(from, to)) {
                continue;
            }
            if let Wire::Plane(_, _, message) = &wire
                && let Some(what) = script::described(message)
            {
                self.heard.push(format!("{from}>{to} {what}"));
            }
            let now = self.now;
            let node = self.node(to);
            match wire {
                Wire::Raft(message) => node.group.step(message),
                Wire::Plane(from, _, message) => node.plane.receive(&mut node.group, now, from, message),
            }
        }
    }

    fn turn(&mut self, at: usize) {
        let now = self.now;
        let slow = self.slow_disk == Some(node_of(self.nodes[at].peer));
        let node = &mut self.nodes[at];
        loop {
            node.plane.propose(&mut node.group, now, |bytes| bytes <= self.room);
            node.carry_out(now, &mut self.wire);
            if slow {
                return;
            }
            let Some(ready) = node.group.ready() else { return };
            self.largest = ready.entries.iter().map(|entry| entry.data.len()).fold(self.largest, usize::max);
            self.wire.extend(ready.messages.into_iter().map(Wire::Raft));
            node.group.on_persisted(ready.number);
            self.wire.extend(ready.persisted_messages.into_iter().map(Wire::Raft));
            node.plane.persisted(&node.group, now);
            node.plane.committed(&mut node.group, now, &ready.committed);
            node.plane.still_leads(&node.group, now, &ready.reads);
            node.carry_out(now, &mut self.wire);
        }
    }
}

impl Node {
    fn carry_out(&mut self, now: Duration, wire: &mut VecDeque<Wire>) {
        loop {
            let turn = self.plane.take();
            if turn.is_empty() {
                return;
            }
            let own = node_of(self.peer);
            for op in turn.slices {
                self.work(now, op);
            }
            for (index, _) in turn.publish {
                self.plane.shown(&self.group, index);
            }
            wire.extend(turn.sends.into_iter().map(|(to, message)| Wire::Plane(own, to, message)));
            self.written.extend(turn.written);
            self.read.extend(turn.reads);
        }
    }

    fn work(&mut self, now: Duration, op: SliceOp) {
        match op {
            SliceOp::Speculate(SliceEntry { generation, index, requests }) => {
                let results = apply(&mut self.slices, &requests);
                self.speculated.push((index.get(), requests));
                self.plane.slices_did(&self.group, now, generation, index, results);
            }
            SliceOp::Apply(SliceEntry { generation, index, requests }) => {
                assert!(self.speculated.is_empty());
                let results = apply(&mut self.slices, &requests);
                self.committed.clone_from(&self.slices);
                self.plane.slices_did(&self.group, now, generation, index, results);
            }
            SliceOp::Commit { index } => {
                for (_, requests) in self.speculated.extract_if(.., |(at, _)| *at <= index.get()) {
                    apply(&mut self.committed, &requests);
                }
            }
            SliceOp::RollBack => {
                self.speculated.clear();
                self.slices.clone_from(&self.committed);
            }
        }
    }
}

type Results = Vec<(usize, Result<Applied, AskedTooLate>)>;

fn apply(slices: &mut [Slice], requests: &[Request]) -> Results {
    let one =
        |(at, request): (usize, &Request)| (at, slices[usize::from(request.command.slice().0)].apply_request(request));
    requests.iter().enumerate().map(one).collect()
}

fn create(name: &str) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: Uuid::from_u128(name.len() as u128),
        first_group: 0,
        replicas: vec![vec![1]; 2],
        configs: BTreeMap::new(),
        created_ms: 0,
        peers: Vec::new(),
    }
}

/// Each partition takes some 20 bytes in the log.
fn create_with(name: &str, partitions: usize) -> Command {
    let Command::CreateTopic { name, id, first_group, configs, created_ms, peers, .. } = create(name) else {
        unreachable!()
    };
    Command::CreateTopic { name, id, first_group, replicas: vec![vec![1]; partitions], configs, created_ms, peers }
}

fn register(node: i32, peer: u64, replicas_max: u64) -> Command {
    let address = || HostPort { host: "h".to_owned(), port: 1 };
    let (kafka, peer_addr, version) = (address(), address(), String::new());
    let status = BrokerStatus::Alive;
    let broker = Broker {
        node,
        peer,
        incarnation: 1,
        kafka,
        peer_addr,
        cores: 1,
        rack: None,
        version,
        status,
        largest_entry: 0,
        replicas_max,
        partitions_max: 2 * replicas_max,
    };
    Command::RegisterBroker { broker }
}

fn submit(world: &mut World, node: i32, name: &str, acks: Acks, until: Until) -> Token {
    let now = world.now;
    let deadline = now + Duration::from_secs(5);
    world.node(node).plane.submit(Submission { commands: vec![create(name)], acks, until, deadline })
}

/// Submits a write that waits for its commit, until it is shown.
fn submit_command(world: &mut World, node: i32, command: Command) -> Token {
    let (now, acks, until) = (world.now, Acks::Quorum, Until::Shown);
    let deadline = now + Duration::from_secs(5);
    world.node(node).plane.submit(Submission { commands: vec![command], acks, until, deadline })
}

fn topics(node: &Node) -> Vec<Arc<str>> {
    let mut names: Vec<_> = node.committed.iter().flat_map(Slice::topics).map(|topic| topic.name.clone()).collect();
    names.sort_unstable();
    names
}

#[test]
fn any_broker_takes_a_write_and_all_have_it() {
    let mut world = World::new();
    for node in 1..=3 {
        let token = submit(&mut world, node, &format!("from-{node}"), Acks::Quorum, Until::Shown);
        world.settle();
        world.run(1);
        let written = world.node(node).written.remove(&token).expect("an answer").expect("a result");
        assert!(matches!(&written.results[..], [Ok(Ok(Outcome::TopicCreated(_)))]), "{written:?}");
    }
    world.run(1);
    for node in &world.nodes {
        assert_eq!(topics(node), ["from-1".into(), "from-2".into(), "from-3".into()]);
    }
    assert_eq!(world.node(1).plane.stats().quorum_writes, 3);
    assert_eq!(world.node(2).plane.stats().forwarded_writes, 1);
}

#[test]
fn large_writes_that_come_together_are_all_done() {
    let mut world = World::new();
    let deadline = world.now + Duration::from_secs(10);
    // Two fit into an entry, and a third does not.
    let tokens: Vec<Token> = (0..40)
        .map(|n| {
            let commands = vec![create_with(&format!("large-{n}"), 5000)];
            let submission = Submission { commands, acks: Acks::Quorum, until: Until::Shown, deadline };
            world.node(1).plane.submit(submission)
        })
        .collect();
    world.run(3);
    for token in tokens {
        assert!(matches!(world.node(1).written.get(&token), Some(Ok(_))), "{:?}", world.node(1).written.get(&token));
    }
    assert!((ENTRY_BYTES / 2..=ENTRY_BYTES).contains(&world.largest), "an entry of {} bytes", world.largest);
}

/// The only result of a write.
fn result(world: &mut World, node: i32, token: Token) -> Result<Outcome, Rejection> {
    let written = world.node(node).written.remove(&token).expect("an answer").expect("a result");
    let [Ok(result)] = &written.results[..] else { panic!("{written:?}") };
    result.clone()
}

#[test]
fn a_write_that_a_broker_cannot_store_is_rejected_by_name_and_others_go_on() {
    let mut world = World::new();
    for node in 1..=3 {
        let Command::RegisterBroker { broker } = register(node, peer_id(node, 7), 0) else { unreachable!() };
        let broker = Broker { largest_entry: if node == 3 { 300_000 } else { 1 << 20 }, ..broker };
        submit_command(&mut world, 1, Command::RegisterBroker { broker });
    }
    world.run(3);
    let end = world.node(1).group.last_index();
    for node in 1..=3 {
        let token = submit_command(&mut world, node, create_with("large", 20_000));
        world.settle();
        let Err(Rejection::LargestEntry { node: 3, takes: 300_000, largest }) = result(&mut world, node, token) else {
            panic!("the ring of broker 3 does not take it")
        };
        assert!((400_000..401_000).contains(&largest), "{largest}");
    }
    // A broker whose view lags behind forwards a write that only the leader can reject.
    world.node(1).plane.config.largest_entry = 200_000;
    let token = submit_command(&mut world, 2, create_with("less", 12_000));
    world.settle();
    let rejected = result(&mut world, 2, token);
    assert!(matches!(rejected, Err(Rejection::LargestEntry { node: 1, takes: 200_000, .. })), "{rejected:?}");
    assert_eq!(world.node(1).group.last_index(), end, "the log has none of them");
    for node in 1..=3 {
        let token = submit_command(&mut world, node, create_with(&format!("small-{node}"), 9_000));
        world.run(1);
        assert!(result(&mut world, node, token).is_ok());
    }
    assert!(world.largest < 200_000, "an entry of {} bytes", world.largest);
}

#[test]
fn a_write_without_room_in_the_log_waits_and_those_behind_it_do_not_pass() {
    let mut world = World::new();
    world.room = 100_000;
    let end = world.node(1).group.last_index();
    let large = submit_command(&mut world, 1, create_with("large", 10_000));
    let small = submit_command(&mut world, 1, create("small"));
    let forwarded = submit_command(&mut world, 2, create("forwarded"));
    world.run(3);
    assert_eq!(world.node(1).group.last_index(), end);
    world.room = usize::MAX;
    world.run(10);
    let places = [(1, large), (1, small), (2, forwarded)].map(|(node, token)| {
        let written = world.node(node).written.remove(&token).expect("an answer").expect("a result");
        assert!(matches!(&written.results[..], [Ok(Ok(_))]), "{written:?}");
        written.index
    });
    assert!(places.is_sorted(), "{places:?}");
    // A write that finds no room at all has an answer by its deadline.
    world.room = 0;
    let late = submit_command(&mut world, 1, create("late"));
    world.run(60);
    assert!(world.node(1).written.remove(&late).expect("an answer").is_err());
}

#[test]
fn the_fast_path_needs_the_lease_and_nobody_else() {
    let mut world = World::new();
    world.cut = vec![(2, 1), (3, 1), (1, 2), (1, 3)];
    let fast = submit(&mut world, 1, "fast", Acks::Leader, Until::Acked);
    world.settle();
    assert!(world.node(1).written.remove(&fast).expect("an answer at once").is_ok());
    assert_eq!(world.node(1).plane.stats().wal_writes, 1);
    assert!(topics(world.node(1)).is_empty(), "it is not committed");
    // The lease runs out; check_quorum deposes the leader later.
    world.run(7);
    let late = submit(&mut world, 1, "late", Acks::Leader, Until::Acked);
    world.settle();
    assert!(!world.node(1).written.contains_key(&late));
    world.run(20);
    assert_ne!(world.leader(), 1);
    world.cut.clear();
    world.run(20);
    let stats: Vec<_> = world.nodes.iter().map(|node| node.plane.stats()).collect();
    assert_eq!(stats.iter().map(|stats| stats.wal_writes).sum::<u64>(), 1);
    let first = topics(world.node(1));
    assert_eq!(first, ["late".into()], "what was acknowledged alone is gone; what was not is done once");
    assert!(world.nodes.iter().all(|node| topics(node) == first));
}

#[test]
fn a_write_that_is_durable_nowhere_is_not_acknowledged() {
    let mut world = World::new();
    world.slow_disk = Some(1);
    let token = submit(&mut world, 1, "slow", Acks::Leader, Until::Acked);
    world.settle();
    assert!(!world.node(1).written.contains_key(&token));
    world.slow_disk = None;
    world.settle();
    assert!(world.node(1).written.contains_key(&token));
}

#[test]
fn followers_hold_read_leases_and_ask_the_leader_without_one() {
    let mut world = World::new();
    world.run(15);
    let now = world.now;
    for node in 1..=3 {
        assert!(world.node(node).plane.read_lease().is_some_and(|until| until > now + Duration::from_secs(3)));
    }
    let before: u64 = world.nodes.iter().map(|node| node.plane.stats().heartbeats_sent).sum();
    world.run(100);
    let after: u64 = world.nodes.iter().map(|node| node.plane.stats().heartbeats_sent).sum();
    assert_eq!(after - before, 20, "one a second and follower");
    let now = world.now;
    let node = world.node(2);
    let token = node.plane.read(&mut node.group, now, now + Duration::from_secs(5));
    world.settle();
    assert_eq!(world.node(2).read.get(&token), Some(&Ok(())));
}

#[test]
fn without_a_leader_there_is_an_answer_in_time() {
    let mut world = World::new();
    world.cut = vec![(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
    world.run(30);
    let token = submit(&mut world, 2, "nobody", Acks::Quorum, Until::Shown);
    let now = world.now;
    let node = world.node(2);
    let read = node.plane.read(&mut node.group, now, now + Duration::from_secs(5));
    world.run(51);
    assert!(world.node(2).written.remove(&token).expect("an answer").is_err());
    assert!(world.node(2).read.remove(&read).expect("an answer").is_err());
}

#[test]
fn a_leader_that_goes_is_followed_at_once() {
    let mut world = World::new();
    let node = world.node(1);
    assert!(node.plane.hand_over(&mut node.group, |_| true));
    world.settle();
    assert!(!world.node(1).group.is_leader());
    world.run(2);
    assert_ne!(world.leader(), 1);
}

#[test]
fn a_lead_is_handed_over_only_to_who_is_able() {
    let mut world = World::new();
    let now = world.now;
    let node = world.node(1);
    assert!(!node.plane.hand_over(&mut node.group, |_| false));
    assert!(node.plane.holds_lease(&node.group, now) && !node.group.is_handing_over(), "then nothing has changed");
    assert!(node.plane.hand_over(&mut node.group, |peer| node_of(peer) == 3));
    world.settle();
    world.run(2);
    assert_eq!(world.leader(), 3);
}

#[test]
fn a_broker_forwards_for_itself_alone() {
    let mut world = World::new();
    let forward = |origin: i32, number: u64, command: Command| {
        let origin = Some(Origin { node: origin, incarnation: 1, sequence: number, lowest_open: 1 });
        let (ask, requests) = (Ask { incarnation: 1, number }, vec![Request { origin, command, no_room: None }]);
        Wire::Plane(2, 1, PlaneMessage::Forward { ask, acks: Acks::Quorum, requests })
    };
    let broker = |node: i32, peer: u64| register(node, peer, 0);
    world.wire.extend([
        forward(3, 1001, create("anothers")),
        forward(2, 1002, broker(3, peer_id(3, 9))),
        forward(2, 1003, broker(2, peer_id(3, 9))),
        forward(2, 1004, broker(2, peer_id(2, 7))),
        forward(2, 1005, create("its-own")),
    ]);
    world.run(3);
    let slices = &world.nodes[0].committed;
    let has = |name: &str| slices.iter().any(|slice| slice.topic(name).is_some());
    assert_eq!((has("anothers"), has("its-own")), (false, true));
    let registered = slices.iter().flat_map(Slice::image).filter(|delta| matches!(delta, Delta::Broker(_))).count();
    assert_eq!(registered, 1);
}

#[test]
fn writes_that_come_together_get_no_more_replicas_than_a_broker_takes() {
    let mut world = World::new();
    let now = world.now;
    let deadline = now + Duration::from_secs(5);
    let write = |world: &mut World, node: i32, command: Command| {
        let submission = Submission { commands: vec![command], acks: Acks::Quorum, until: Until::Shown, deadline };
        (node, world.node(node).plane.submit(submission))
    };
    let results = |world: &mut World, tokens: Vec<(i32, Token)>| -> Vec<Result<Outcome, Rejection>> {
        world.run(3);
        let mut result = |(node, token)| world.node(node).written.remove(&token).expect("an answer").expect("a result");
        let results = tokens.into_iter().map(|asked| result(asked).results.remove(0).expect("asked in time"));
        results.collect()
    };
    let created = |results: &[Result<Outcome, Rejection>]| results.iter().filter(|result| result.is_ok()).count();
    // As long as one broker does not report its limit, nothing is refused.
    let told =
        (1..=3).map(|node| write(&mut world, node, register(node, peer_id(node, 7), if node == 3 { 0 } else { 7 })));
    let told: Vec<_> = told.collect();
    assert_eq!(created(&results(&mut world, told)), 3);
    let asked = (1..=4).map(|n| write(&mut world, 1, create(&"a".repeat(n)))).collect();
    assert_eq!(created(&results(&mut world, asked)), 4, "8 replicas on a broker that takes 7");
    let told = vec![write(&mut world, 3, register(3, peer_id(3, 7), 100))];
    results(&mut world, told);
    let delete = |n: usize| Command::DeleteTopic { name: "a".repeat(n).into(), id: Uuid::from_u128(n as u128) };
    let deleted = (1..=3).map(|n| write(&mut world, 1, delete(n))).collect();
    assert_eq!(created(&results(&mut world, deleted)), 3);
    // 2 of 7 replicas exist. All brokers get requests in the same turn, each for 2 or 4 more.
    let asked = (5..=10).map(|n| write(&mut world, 1 + (n % 3) as i32, create(&"a".repeat(n)))).collect();
    let results = results(&mut world, asked);
    assert_eq!(created(&results), 2, "{results:?}");
    let refusal = Rejection::from(NoRoom { node: 1, of_cluster: false, has: 6, wanted: 2, takes: 7 });
    assert!(
        results.iter().filter(|result| result.is_err()).all(|result| *result == Err(refusal.clone())),
        "{results:?}"
    );
    for node in &world.nodes {
        assert_eq!(topics(node).len(), 3, "the slices of all say the same");
        assert_eq!(node.plane.cluster.placed().replicas(1), 6);
        assert_eq!(node.plane.flow.placed(), Placed::default());
    }
}

#[test]
fn topics_that_brokers_need_are_made_without_room() {
    let mut world = World::new();
    world.nodes.iter_mut().for_each(|node| node.plane.config.always_made = |name| name == "needed");
    let now = world.now;
    let deadline = now + Duration::from_secs(5);
    let mut commands: Vec<Command> = (1..=3).map(|node| register(node, peer_id(node, 7), 1)).collect();
    commands.truncate(1);
    let submission = |commands| Submission { commands, acks: Acks::Quorum, until: Until::Shown, deadline };
    world.node(1).plane.submit(submission(commands));
    world.run(3);
    let token = world.node(1).plane.submit(submission(vec![create("needed"), create("others")]));
    world.run(3);
    let written = world.node(1).written.remove(&token).expect("an answer").expect("a result");
    assert!(matches!(&written.results[..], [Ok(Ok(_)), Ok(Err(Rejection::NoRoom(_)))]), "{written:?}");
}
