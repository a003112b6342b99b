//! Clients of simulated brokers: producers, consumers and operators. They call the handlers of Kafka's APIs.
//!
//! Clients live in the outside world and never fail. A request may stay without an answer. Then nobody knows its
//! outcome, and idempotent clients retry it.

pub(super) mod group;

use super::{
    cluster::{Cluster, Target},
    exec::{self, OUTSIDE, World},
    ledger::{History, Value, Violation},
    node::Node,
};
use bytes::Bytes;
use engine::{
    connection::{GoingOn, client::Client},
    core::Core,
    handlers,
    partition::producers::CACHED_BATCHES,
};
use net::{
    StrBytes,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        header::RequestHeader,
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
        response::Response,
    },
    errors::{self, ErrorCode},
    messages::{
        CreateTopicsRequest, InitProducerIdRequest, TopicName,
        create_topics_request::{CreatableTopic, CreatableTopicConfig},
    },
    records::{
        batch::{self, Batches},
        build::BatchBuilder,
        compression::Codec,
        record::Records,
    },
};
use runtime::{
    self as rt, clock,
    sync::{Either, promise, race},
};
use std::{collections::VecDeque, rc::Rc, time::Duration};
use types::GroupId;

/// A client waits for an answer for a time in this range.
const PATIENCE: std::ops::Range<Duration> = Duration::from_millis(300)..Duration::from_secs(6);
/// The share of a node's answers that are lost on the way.
const LOST: f64 = 0.02;

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// Sends a request to a node, as a client does. `None`: no answer arrives.
async fn ask(node: &Rc<Node>, request: Request, version: i16) -> Option<Response> {
    let patience = exec::world().draw(PATIENCE);
    ask_within(node, request, version, patience).await
}

pub(super) async fn ask_within(
    node: &Rc<Node>,
    request: Request,
    version: i16,
    patience: Duration,
) -> Option<Response> {
    ask_in_order(node, vec![request], version, patience).await.pop()
}

/// Sends several requests to a node on one connection without waiting for answers in between. The node starts them and
/// answers them in this order until the connection is lost, so there may be fewer answers than requests.
async fn ask_in_order(node: &Rc<Node>, requests: Vec<Request>, version: i16, patience: Duration) -> Vec<Response> {
    let world = exec::world();
    rt::sleep(world.draw(Duration::from_micros(20)..Duration::from_millis(1))).await;
    let Some(core) = node.any_core(&world).filter(|_| node.serves()) else { return Vec::new() };
    let (promises, answers): (Vec<_>, Vec<_>) = requests.iter().map(|_| promise()).unzip();
    let apart = [Duration::from_micros(50), Duration::from_millis(3), Duration::from_millis(300)][world.place(3)];
    let process = node.process;
    world.spawn(process, async move {
        let world = exec::world();
        let (mut before, client) = (None, Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None)));
        for (place, (request, answered)) in requests.into_iter().zip(promises).enumerate() {
            if place > 0 {
                rt::sleep(world.draw(Duration::ZERO..apart)).await;
            }
            if core.is_stopping() {
                return;
            }
            let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
            let going_on = GoingOn::of(&core.connections);
            let answering = handlers::start(&core, &client, &header, request);
            let (left, this) = promise();
            let before = before.replace(this);
            world.spawn(process, async move {
                let response = answering.await;
                if let Some(before) = before {
                    let _: Option<()> = before.await;
                }
                if let Some(response) = response.response() {
                    answered.keep(response);
                    left.keep(());
                }
                drop(going_on);
            });
        }
    });
    let mut came = Vec::new();
    let given_up = clock::now() + patience;
    for answer in answers {
        match race(answer, rt::sleep(given_up.saturating_sub(clock::now()))).await {
            Either::First(Some(response)) if !world.chance(LOST) => came.push(response),
            _ => break,
        }
    }
    came
}

impl Cluster {
    /// The node that a client believes to lead a partition: the one that some node names, or any node.
    pub(super) fn leader_of(&self, target: &Target) -> Option<Rc<Node>> {
        let up: Vec<_> = self.nodes.iter().filter(|node| node.serves()).collect();
        if up.is_empty() {
            return None;
        }
        let world = exec::world();
        let any = |world: &exec::World| up[world.place(up.len())];
        let told = any(&world).any_core(&world)?.leader_of(target.group).map(|leader| leader.node);
        let leader = self.nodes.iter().find(|node| Some(node.id) == told && node.serves());
        Some(leader.filter(|_| !world.chance(0.05)).unwrap_or_else(|| any(&world)).clone())
    }

    pub(super) fn any_node(&self) -> Rc<Node> {
        let at = exec::world().place(self.nodes.len());
        self.nodes[at].clone()
    }

    fn history(&self, target: &Target, what: impl FnOnce(&mut History) -> Result<(), Violation>) {
        if self.is_lost(target) {
            return;
        }
        if let Err(Violation(why)) = what(self.ledger.borrow_mut().of(target.group)) {
            self.violated(format!("{}-{}: {why}", target.topic, target.partition));
        }
    }

    /// The partitions of a topic, if some node knows it.
    pub(super) fn partitions_of(&self, topic: &str) -> Option<Vec<GroupId>> {
        self.nodes.iter().filter_map(|node| node.core()).find_map(|core: Rc<Core>| {
            core.view(|view| Some(view.topic(topic)?.partitions.iter().map(|part| part.group).collect()))
        })
    }

    /// From now on, the checks of partitions include these.
    pub(super) fn add_targets(&self, topic: &str, groups: Vec<GroupId>, is_for_clients: bool) -> Vec<Target> {
        let target =
            |(partition, group)| Target { topic: topic.to_owned(), partition: partition as i32, group, is_for_clients };
        let new: Vec<Target> = groups.into_iter().enumerate().map(target).collect();
        self.targets.borrow_mut().extend(new.iter().cloned());
        new
    }

    /// Creates a topic and starts clients that use it.
    pub(super) async fn create_topic(
        self: Rc<Self>,
        name: String,
        partitions: i32,
        replicas: i16,
        settings: Vec<(&'static str, String)>,
    ) {
        while !self.over.get() {
            let config = |(name, value): &(&str, String)| {
                CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
            };
            let topic = CreatableTopic::default()
                .with_name(TopicName(text(&name)))
                .with_num_partitions(partitions)
                .with_replication_factor(replicas)
                .with_configs(settings.iter().map(config).collect());
            let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
            let answer = ask(&self.any_node(), Request::CreateTopics(request), 7).await;
            let code = match answer {
                Some(Response::CreateTopics(response)) => errors::check(response.topics[0].error_code),
                _ => Err(ErrorCode::RequestTimedOut),
            };
            match code {
                Ok(()) | Err(ErrorCode::TopicAlreadyExists) => break,
                Err(_) => rt::sleep(Duration::from_millis(200)).await,
            }
        }
        // The topic is committed now, no matter which attempt created it.
        let groups: Vec<GroupId> = loop {
            if self.over.get() {
                return;
            }
            if let Some(groups) = self.partitions_of(&name) {
                break groups;
            }
            rt::sleep(Duration::from_millis(100)).await;
        };
        self.summary.borrow_mut().topics += 1;
        self.creating.set(self.creating.get() - 1);
        let world = exec::world();
        for target in self.add_targets(&name, groups, true) {
            for _ in 0..world.number(1..=2) {
                world.spawn(OUTSIDE, self.clone().produce(target.clone()));
            }
            world.spawn(OUTSIDE, self.clone().consume(target));
        }
    }

    async fn producer_id(&self) -> Option<(i64, i16)> {
        while !self.over.get() {
            let request =
                InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(1_000);
            let answer = ask(&self.any_node(), Request::InitProducerId(request), 4).await;
            if let Some(Response::InitProducerId(response)) = answer
                && response.error_code == 0
            {
                return Some((response.producer_id.0, response.producer_epoch));
            }
            rt::sleep(Duration::from_millis(100)).await;
        }
        None
    }

    /// An idempotent producer with up to five batches in flight. Now and then it gives up, and another producer takes
    /// its place.
    async fn produce(self: Rc<Self>, target: Target) {
        let world = exec::world();
        let pause = if self.quiet { 2_000..10_000 } else { 1..120 };
        let pause = world.draw(Duration::from_millis(pause.start)..Duration::from_millis(pause.end));
        let size_max = [60, 400, 3_000][world.place(3)];
        let acks = if world.chance(0.2) { 1 } else { -1 };
        let in_flight_max = [1, 1, 2, CACHED_BATCHES][world.place(4)];
        self.producing.set(self.producing.get() + 1);
        while !self.over.get() {
            let Some((id, epoch)) = self.producer_id().await else { break };
            let mut producer = Producer { id, epoch, name: self.next_producer(), ..Producer::default() };
            while !self.over.get() {
                let wanted = world.number(1..=in_flight_max as u64) as usize;
                while producer.window.len() < wanted {
                    producer.make_batch(&world, size_max);
                }
                let sent = self.send_window(&target, &mut producer, acks).await;
                if sent.is_ok() && producer.window.is_empty() {
                    rt::sleep(pause).await;
                    continue;
                }
                self.summary.borrow_mut().retried += u64::from(sent.is_ok());
                if sent.is_err() || world.chance(0.03) {
                    self.summary.borrow_mut().given_up += 1;
                    break;
                }
                rt::sleep(world.draw(Duration::from_millis(5)..Duration::from_millis(150))).await;
            }
        }
        self.producing.set(self.producing.get() - 1);
    }

    /// Sends all unacknowledged batches in their order, and handles the answers.
    async fn send_window(&self, target: &Target, producer: &mut Producer, acks: i16) -> Result<(), GiveUp> {
        let Some(node) = self.leader_of(target) else {
            rt::sleep(Duration::from_millis(50)).await;
            return Ok(());
        };
        let request = |batch: &Sent| {
            // In memory of its own, as it comes from a socket.
            let records = Some(Bytes::copy_from_slice(&batch.bytes));
            let partitions = vec![ProducePartition { index: target.partition, records }];
            let topics = vec![ProduceTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
            Request::Produce(ProduceRequest { transactional_id: None, acks, timeout_ms: 3_000, topics })
        };
        let open = || producer.window.iter().filter(|batch| !batch.acked);
        let requests: Vec<Request> = open().map(request).collect();
        self.summary.borrow_mut().pipelined += requests.len() as u64 - 1;
        let patience = exec::world().draw(PATIENCE);
        let answers = ask_in_order(&node, requests, 9, patience).await;
        let open = producer.window.iter_mut().filter(|batch| !batch.acked);
        for (batch, answer) in open.zip(answers) {
            let Response::Produce(response) = answer else { continue };
            let partition = &response.topics[0].partitions[0];
            match errors::check(partition.error_code) {
                Ok(()) => {
                    batch.acked = true;
                    for (offset, value) in (partition.base_offset as u64..).zip(&batch.values).filter(|_| acks == -1) {
                        self.history(target, |history| history.acked(offset, *value));
                    }
                }
                // A record that was acknowledged with acks=1 may be lost with its leader. Then the next batch leaves a
                // gap.
                Err(ErrorCode::OutOfOrderSequenceNumber) if acks == 1 || self.is_lost(target) => return Err(GiveUp),
                Err(code @ (ErrorCode::OutOfOrderSequenceNumber | ErrorCode::InvalidProducerEpoch)) => {
                    let first = batch.values[0];
                    self.violated(format!("{target:?}: {first:?}, which waits for acks=all, is told {code:?}"));
                    return Err(GiveUp);
                }
                Err(_) => {}
            }
        }
        while producer.window.front().is_some_and(|batch| batch.acked) {
            producer.window.pop_front();
        }
        Ok(())
    }

    /// A consumer: mostly at the end of the log, now and then at an earlier offset.
    async fn consume(self: Rc<Self>, target: Target) {
        let world = exec::world();
        let mut at = 0;
        while !self.over.get() {
            at = self.read_from(&target, at, world.draw(Duration::ZERO..Duration::from_millis(400))).await;
            if world.chance(0.05) {
                at = world.number(..=at).max(self.start_of(&target).unwrap_or(0));
            }
            rt::sleep(world.draw(Duration::from_millis(5)..Duration::from_millis(200))).await;
        }
    }

    /// Fetches once, and returns the offset at which to continue.
    pub(super) async fn read_from(&self, target: &Target, from: u64, wait: Duration) -> u64 {
        let Some(node) = self.leader_of(target) else { return from };
        let partitions = vec![FetchPartition::of_consumer(target.partition, from as i64, 8 << 10)];
        let topics = vec![FetchTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
        let request = FetchRequest::of_consumer(wait.as_millis() as i32, 1, 8 << 10, topics);
        let Some(Response::Fetch(response)) = ask(&node, Request::Fetch(request), 11).await else { return from };
        let Some(partition) = response.topics.first().map(|topic| &topic.partitions[0]) else { return from };
        match errors::check(response.error_code).and(errors::check(partition.error_code)) {
            Ok(()) => self.read_all(target, from, &partition.records),
            Err(ErrorCode::OffsetOutOfRange) => match u64::try_from(partition.log_start_offset) {
                Ok(start) => start,
                Err(_) => self.start_of(target).unwrap_or(from),
            },
            Err(_) => from,
        }
    }

    /// The log's start at its leader, as ListOffsets would return it.
    fn start_of(&self, target: &Target) -> Option<u64> {
        let core = self.leader_of(target)?.owner(target.group)?;
        Some(core.partition(target.group)?.log_start(&core))
    }

    fn read_all(&self, target: &Target, from: u64, records: &[Bytes]) -> u64 {
        let mut next = from;
        for bytes in records {
            for (offset, value) in self.values(target, bytes) {
                if offset >= from {
                    self.history(target, |history| history.seen(offset, value));
                    next = offset + 1;
                }
            }
        }
        next
    }

    /// The records of some batches.
    pub(super) fn values(&self, target: &Target, batches: &Bytes) -> Vec<(u64, Value)> {
        let mut values = Vec::new();
        for batch in Batches::new(batches.clone()) {
            let read = batch.map_err(|error| error.to_string()).and_then(|(_, bytes)| {
                batch::verify(&bytes).map_err(|error| error.to_string())?;
                Records::open(&bytes, 1 << 20).map_err(|error| error.to_string())
            });
            match read {
                Ok(records) => {
                    for record in records.iter().flatten() {
                        let value = record.value.and_then(Value::read).expect("every record has a value of ours");
                        values.push((record.offset as u64, value));
                    }
                }
                Err(why) => self.violated(format!("{target:?}: a batch that was read is damaged: {why}")),
            }
        }
        values
    }
}

/// A producer, and its batches from the first unacknowledged one on.
#[derive(Default)]
struct Producer {
    id: i64,
    epoch: i16,
    /// The number that identifies the producer in its records.
    name: u32,
    /// The number of the next record, which is also its sequence number.
    next: u32,
    window: VecDeque<Sent>,
}

struct Sent {
    bytes: Bytes,
    values: Vec<Value>,
    acked: bool,
}

/// The producer cannot go on with its producer id.
struct GiveUp;

impl Producer {
    fn make_batch(&mut self, world: &World, size_max: u64) {
        let first = self.next;
        self.next += world.number(1..=4) as u32;
        let values: Vec<Value> = (first..self.next).map(|number| Value { producer: self.name, number }).collect();
        let mut batch = BatchBuilder::new(Codec::None).producer(self.id, self.epoch, first as i32);
        for value in &values {
            let size = world.number(8..size_max) as usize;
            batch.push(world.time().as_millis() as i64, None, Some(&value.bytes(size)));
        }
        self.window.push_back(Sent { bytes: batch.finish(), values, acked: false });
    }
}
