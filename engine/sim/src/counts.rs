//! The cost of requests for a broker, in numbers that do not depend on the machine: writes and syncs of the ring,
//! copies of a payload, allocations.
//!
//! The requests go through the handlers of Kafka's APIs, on brokers of one core, without faults. ARCHITECTURE.md,
//! "Counts", has the figures.

use super::{
    allocations,
    exec::{self, World},
    net::net,
    node::{self, Founding, Node},
    running::Running,
};
use bytes::Bytes;
use engine::{
    connection::{client::Client, reply::Reply},
    handlers,
};
use net::{
    StrBytes,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        frame::FrameDecoder,
        header::RequestHeader,
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    messages::{CreateTopicsRequest, TopicName, create_topics_request::CreatableTopic},
    records::{batch::HEADER_BYTES, build::BatchBuilder, compression::Codec},
};
use runtime::sync;
use std::{
    cell::{Cell, RefCell},
    ops::Range,
    path::Path,
    rc::Rc,
    time::Duration,
};
use wal::{buf::BLOCK, disk::sim::Kind};

const SEEDS: Range<u64> = 0..10;
pub(super) const TOPIC: &str = "counts";
pub(super) const PARTITIONS: i32 = 32;
/// Large enough that nothing is flushed while a test runs. A flush begins when a quarter is full.
const RING_BYTES: u64 = 16 << 20;
/// Bounds for the allocations of one produce request with one partition, and of one fetch from memory: a tenth more
/// than measured.
const PRODUCE_ALLOCATIONS_MAX: u64 = 47;
const FETCH_ALLOCATIONS_MAX: u64 = 21;
/// Further allocations for a record of 100 KiB: sometimes another piece of the ring's memory, and a concurrent flush.
const LARGE_ALLOCATIONS_MAX: u64 = 6;
/// Number of requests over which allocations are averaged.
const ROUND: u64 = 16;
/// Longer than any work here takes: a request, a flush, the work after the creation of a topic.
const UNTIL_AT_REST: Duration = Duration::from_secs(30);

/// Idle brokers.
pub(super) struct Calm {
    pub(super) world: Rc<World>,
    pub(super) nodes: Vec<Rc<Node>>,
    _running: Running,
}

/// The operations of a disk.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    ring_writes: usize,
    ring_syncs: usize,
    /// Writes and syncs of all other files.
    writes: usize,
    syncs: usize,
}

const NOTHING: Cost = Cost { ring_writes: 0, ring_syncs: 0, writes: 0, syncs: 0 };
const ONE_RING_WRITE: Cost = Cost { ring_writes: 1, ring_syncs: 1, ..NOTHING };

impl Calm {
    /// Starts brokers, creates a topic with a replica on each of them, and waits until they are idle.
    pub(super) fn new(seed: u64, brokers: i32) -> Self {
        Self::with_rings(seed, &vec![RING_BYTES; brokers as usize])
    }

    /// The same, with a ring of this size for each broker.
    pub(super) fn with_rings(seed: u64, rings: &[u64]) -> Self {
        Self::with_budget(seed, rings, node::BUDGET)
    }

    /// The same, with this memory budget.
    pub(super) fn with_budget(seed: u64, rings: &[u64], budget: u64) -> Self {
        let brokers = rings.len() as i32;
        let running = Running::begin(seed, None);
        let world = exec::world();
        let founding = Founding::of((1..=brokers).collect());
        let nodes = founding.nodes.iter().zip(rings);
        let nodes = nodes.map(|(id, ring)| Node::new(&world, *id, founding.clone(), *ring, 1)).collect();
        let calm = Self { world, nodes, _running: running };
        calm.nodes.iter().for_each(|node| node.budget.set(budget));
        calm.nodes.iter().for_each(|node| node.start_if_down(&calm.world));
        calm.pass(UNTIL_AT_REST);
        assert!(calm.nodes.iter().all(|node| node.serves()), "the brokers start");
        let topic = CreatableTopic::default()
            .with_name(TopicName(StrBytes::from_static_str(TOPIC)))
            .with_num_partitions(PARTITIONS)
            .with_replication_factor(brokers as i16);
        let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
        let created = calm.ask(&calm.nodes[0], vec![(Request::CreateTopics(create), 7)]);
        assert!(matches!(&created[..], [Response::CreateTopics(response)] if response.topics[0].error_code == 0));
        calm.pass(UNTIL_AT_REST);
        calm.nodes.iter().for_each(|node| drop(node.disk().trace()));
        calm
    }

    /// The node that leads partition 0.
    pub(super) fn leader(&self) -> &Rc<Node> {
        let leads = |node: &&Rc<Node>| {
            let core = node.core().expect("it runs");
            let group = core.view(|view| view.topic(TOPIC).expect("it was created").partitions[0].group);
            core.partition(group).is_some_and(|partition| partition.leads())
        };
        self.nodes.iter().find(leads).expect("somebody leads it")
    }

    /// Lets virtual time pass.
    pub(super) fn pass(&self, time: Duration) {
        let end = self.world.time() + time;
        while self.world.step(end).is_some() {}
    }

    /// Starts all requests at once, as a connection does that pipelines them.
    pub(super) fn start(&self, node: &Node, requests: Vec<(Request, i16)>) -> Rc<RefCell<Option<Vec<Response>>>> {
        let answers = Rc::new(RefCell::new(None));
        let (core, given) = (node.core().expect("it runs"), answers.clone());
        self.world.spawn(node.process, async move {
            let client = Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None));
            let start = |(request, version): (Request, i16)| {
                let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
                handlers::start(&core, &client, &header, request)
            };
            let answered = sync::all(requests.into_iter().map(start).collect()).await;
            *given.borrow_mut() = Some(answered.into_iter().filter_map(Reply::response).collect());
        });
        answers
    }

    pub(super) fn ask(&self, node: &Node, requests: Vec<(Request, i16)>) -> Vec<Response> {
        let answers = self.start(node, requests);
        self.until(|| answers.borrow().is_some());
        answers.take().expect("they have come")
    }

    pub(super) fn until(&self, mut so: impl FnMut() -> bool) {
        let end = self.world.time() + Duration::from_secs(60);
        while !so() {
            self.world.step(end).expect("it happens within a minute");
        }
    }
}

/// The operations of a broker's disk since the last call.
fn cost(node: &Node) -> Cost {
    let mut cost = Cost::default();
    for (kind, path) in node.disk().trace() {
        match (kind, is_ring(&path)) {
            (Kind::Write, true) => cost.ring_writes += 1,
            (Kind::Sync, true) => cost.ring_syncs += 1,
            (Kind::Write, false) => cost.writes += 1,
            (Kind::Sync | Kind::SyncDir, false) => cost.syncs += 1,
            _ => {}
        }
    }
    cost
}

fn is_ring(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ring-"))
}

/// A batch of one record with a value of this size, in memory of its own, as it comes from a socket.
pub(super) fn batch(bytes: usize) -> Bytes {
    let mut batch = BatchBuilder::new(Codec::None);
    let value: Vec<u8> = (0..bytes).map(|at| (at * 31 % 251) as u8).collect();
    batch.push(exec::world().time().as_millis() as i64, None, Some(&value));
    batch.finish()
}

/// A produce request with one batch for each of these partitions, acks=all.
pub(super) fn produce(partitions: Range<i32>, records: &Bytes) -> (Request, i16) {
    let partition = |index| ProducePartition { index, records: Some(records.clone()) };
    let topic = TopicRef::Name(StrBytes::from_static_str(TOPIC));
    let topics = vec![ProduceTopic { topic, partitions: partitions.map(partition).collect() }];
    (Request::Produce(ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 5_000, topics }), 9)
}

fn assert_stored(answers: &[Response]) {
    for answer in answers {
        let Response::Produce(response) = answer else { panic!("{answer:?}") };
        let partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
        partitions.for_each(|partition| assert_eq!(partition.error_code, 0, "{partition:?}"));
    }
}

/// A fetch from the log's beginning.
fn fetch_request(partition: i32, bytes_max: i32) -> (Request, i16) {
    let partitions = vec![FetchPartition::of_consumer(partition, 0, bytes_max)];
    let topics = vec![FetchTopic { topic: TopicRef::Name(StrBytes::from_static_str(TOPIC)), partitions }];
    (Request::Fetch(FetchRequest::of_consumer(0, 1, 1 << 20, topics)), 11)
}

/// The buffers of the answer to a consumer.
fn fetch(calm: &Calm, node: &Node) -> Vec<Bytes> {
    let answers = calm.ask(node, vec![fetch_request(0, 1 << 20)]);
    let [Response::Fetch(response)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((response.error_code, response.topics[0].partitions[0].error_code), (0, 0));
    response.topics[0].partitions[0].records.clone()
}

/// Whether a buffer is a part of another one's memory.
fn lies_in(part: &Bytes, whole: &Bytes) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

/// The only ring write that holds a batch of this size, among the recorded ones. There may be at most one other write:
/// while a cluster's watermarks move, the broker stores them in the metadata once a second.
fn ring_write(node: &Node, batch_bytes: usize) -> Bytes {
    let writes = node.disk().writes();
    assert!(writes.iter().all(|(path, _)| is_ring(path)) && writes.len() <= 2, "{} writes", writes.len());
    let mut of_batch = writes.into_iter().map(|(_, data)| data).filter(|data| data.len() >= batch_bytes);
    let written = of_batch.next().expect("it was written");
    assert!(of_batch.next().is_none(), "it was written twice");
    written
}

#[test]
fn brokers_at_rest_write_and_sync_nothing() {
    for (brokers, seed) in [1, 3].into_iter().flat_map(|brokers| SEEDS.map(move |seed| (brokers, seed))) {
        let calm = Calm::new(seed, brokers);
        calm.pass(Duration::from_secs(60));
        for node in &calm.nodes {
            assert_eq!(cost(node), NOTHING, "seed {seed}, broker {} of {brokers}", node.id);
        }
    }
}

#[test]
fn a_produce_request_of_32_partitions_costs_one_ring_write_with_one_sync() {
    for seed in SEEDS {
        let calm = Calm::new(seed, 1);
        let node = &calm.nodes[0];
        assert_stored(&calm.ask(node, vec![produce(0..PARTITIONS, &batch(100))]));
        assert_eq!(cost(node), ONE_RING_WRITE, "seed {seed}");
        // Committing the batches needs no further write.
        calm.pass(Duration::from_secs(20));
        assert_eq!(cost(node), NOTHING, "seed {seed}");
    }
}

#[test]
fn a_replicated_batch_costs_each_replica_one_ring_write_with_one_sync() {
    const PAYLOAD: usize = 20_000;
    for seed in SEEDS {
        let calm = Calm::new(seed, 3);
        calm.nodes.iter().for_each(|node| drop(node.disk().writes()));
        assert_stored(&calm.ask(calm.leader(), vec![produce(0..1, &batch(PAYLOAD))]));
        calm.pass(Duration::from_secs(20));
        for node in &calm.nodes {
            ring_write(node, PAYLOAD);
            let cost = cost(node);
            assert_eq!(cost, Cost { ring_writes: cost.ring_writes, ring_syncs: cost.ring_writes, ..NOTHING });
        }
    }
}

#[test]
fn requests_that_come_while_a_write_is_under_way_share_the_next_one() {
    for seed in SEEDS {
        let calm = Calm::new(seed, 1);
        let node = &calm.nodes[0];
        let first = calm.start(node, vec![produce(0..1, &batch(100))]);
        let mut seen = NOTHING;
        calm.until(|| {
            seen = cost(node);
            seen != NOTHING
        });
        assert_eq!(seen, ONE_RING_WRITE);
        let others = (0..63).map(|at| produce(at % PARTITIONS..at % PARTITIONS + 1, &batch(100))).collect();
        assert_stored(&calm.ask(node, others));
        assert_stored(&first.take().expect("it came first"));
        assert_eq!(cost(node), ONE_RING_WRITE, "seed {seed}");
    }
}

#[test]
fn a_payload_is_copied_into_the_ring_once_and_sent_and_served_from_there() {
    const PAYLOAD: usize = 20_000;
    for seed in SEEDS {
        let calm = Calm::new(seed, 3);
        let leader = calm.leader();
        calm.nodes.iter().for_each(|node| drop(node.disk().writes()));
        *net().sent.borrow_mut() = Some(Vec::new());
        let produced = batch(PAYLOAD);
        assert_stored(&calm.ask(leader, vec![produce(0..1, &produced)]));
        calm.pass(Duration::from_secs(1));
        let sent = net().sent.take().expect("it was recorded");
        let of_batch: Vec<&Bytes> = sent.iter().flatten().filter(|part| part.len() >= PAYLOAD).collect();
        let served = fetch(&calm, leader);
        let written = ring_write(leader, PAYLOAD);
        // The write has room for only one copy of the batch.
        assert!(written.len() < produced.len() + 2 * BLOCK, "seed {seed}: {} bytes", written.len());
        // The leader sends it to each follower as a separate part of the message.
        assert_eq!(of_batch.len(), 2, "seed {seed}");
        assert_eq!(served.len(), 1, "seed {seed}");
        for shared in of_batch.into_iter().chain(&served) {
            assert!(lies_in(shared, &written), "seed {seed}: {shared:?} is a copy");
            assert_eq!(shared[HEADER_BYTES..], produced[HEADER_BYTES..], "seed {seed}");
        }
        for follower in calm.nodes.iter().filter(|node| node.id != leader.id) {
            let written = ring_write(follower, PAYLOAD);
            assert!(written.len() < produced.len() + 2 * BLOCK, "seed {seed}: {} bytes", written.len());
        }
    }
}

/// The allocations of one request from its frame to its encoded answer, averaged over many requests one after the
/// other.
fn allocations_of(calm: &Calm, node: &Node, (request, version): (Request, i16)) -> u64 {
    let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
    let parts = net::codec::request::encode(&header, &request).expect("it can be written");
    let mut frame = FrameDecoder::new(1 << 20);
    parts.into_iter().for_each(|part| frame.extend(&part));
    let frame = frame.next_frame().expect("it is one").expect("it is whole");
    let (core, spent) = (node.core().expect("it runs"), Rc::new(Cell::new(0)));
    for round in 0..2 {
        let (core, spent, frame, done) = (core.clone(), spent.clone(), frame.clone(), Rc::new(Cell::new(false)));
        let ended = done.clone();
        calm.world.spawn(node.process, async move {
            let client = Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None));
            let before = allocations::so_far();
            for _ in 0..ROUND {
                let (header, request) = net::codec::request::decode(&frame).expect("it is well formed");
                let answer = handlers::start(&core, &client, &header, request).await;
                net::codec::response::encode(&header, answer.response().expect("there is an answer"))
                    .expect("it can be written");
            }
            // The first round is a warm-up.
            spent.set((allocations::so_far() - before) * round / ROUND);
            ended.set(true);
        });
        calm.until(|| done.get());
    }
    spent.get()
}

#[test]
fn a_produce_request_and_a_fetch_allocate_little_whatever_the_size_of_their_records() {
    for seed in SEEDS {
        let calm = Calm::new(seed, 1);
        let node = &calm.nodes[0];
        let [small, large] = [(0, 100), (1, 100 << 10)].map(|(partition, bytes)| {
            let produced = allocations_of(&calm, node, produce(partition..partition + 1, &batch(bytes)));
            let fetched = allocations_of(&calm, node, fetch_request(partition, 1));
            (produced, fetched)
        });
        println!("seed {seed}: produce and fetch {small:?}, with a large record {large:?}");
        let found = format!("seed {seed}: {small:?}, with a large record {large:?}");
        assert!(small.0 <= PRODUCE_ALLOCATIONS_MAX && small.1 <= FETCH_ALLOCATIONS_MAX, "{found}");
        assert!(large.0 <= small.0 + LARGE_ALLOCATIONS_MAX && large.1 <= small.1, "{found}");
    }
}
