//! A crowd of clients that send more than a broker can store, do not read their answers, give up soon, or vanish during
//! a request. Their own results do not matter. But all other clients must be served, and nothing of the crowd may be
//! left behind.

use super::{
    clients::{Target, ask_within, text},
    cluster::Cluster,
    exec::{self, OUTSIDE, World},
    ledger::{Violation, expect},
    node::Node,
};
use crate::{
    handlers, rt,
    sync::{Either, race},
};
use net::{
    StrBytes,
    codec::{
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        header::RequestHeader,
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::Request,
    },
    messages::{
        CreateTopicsRequest, GroupId, JoinGroupRequest, OffsetFetchRequest, TopicName,
        create_topics_request::CreatableTopic, join_group_request::JoinGroupRequestProtocol,
        offset_fetch_request::OffsetFetchRequestGroup,
    },
    records::{build::BatchBuilder, compression::Codec},
};
use std::{rc::Rc, time::Duration};

/// The crowd's own topic and group.
const TOPIC: &str = "crowd";
const GROUP: &str = "crowd";
/// The share of requests whose connection breaks before the answer is read.
const VANISHING: f64 = 0.5;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl Cluster {
    /// Starts one or two bursts of impatient clients.
    pub(super) async fn crowd(self: Rc<Self>) {
        let world = exec::world();
        let Some(targets) = self.gather(&world).await else { return };
        for _ in 0..world.number(1..=2) {
            rt::sleep(world.draw(ms(500)..ms(8_000))).await;
            let until = world.time() + world.draw(ms(150)..ms(350));
            for _ in 0..world.number(6..=12) {
                let target = targets[world.place(targets.len())].clone();
                world.spawn(OUTSIDE, self.clone().jostle(target, until));
            }
        }
    }

    /// Creates the crowd's topic.
    async fn gather(&self, world: &World) -> Option<Vec<Target>> {
        let replicas = [1, 3][world.place(2)];
        while !self.over.get() {
            let topic = CreatableTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_num_partitions(2)
                .with_replication_factor(replicas);
            let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
            // The answer does not matter: the topic exists, or the loop asks again.
            drop(ask_within(&self.any_node(), Request::CreateTopics(request), 7, ms(6_000)).await);
            if let Some(groups) = self.partitions_of(TOPIC) {
                let target = |(partition, group)| Target {
                    topic: TOPIC.to_owned(),
                    partition: partition as i32,
                    group,
                    is_for_clients: false,
                };
                return Some(groups.into_iter().enumerate().map(target).collect());
            }
            rt::sleep(ms(200)).await;
        }
        None
    }

    async fn jostle(self: Rc<Self>, target: Target, until: Duration) {
        let world = exec::world();
        while world.time() < until && !self.over.get() {
            let Some(node) = self.leader_of(&target) else { return };
            let (request, version) = impatient(&world, &target);
            self.summary.borrow_mut().jostled += 1;
            if world.chance(VANISHING) {
                self.vanish(&node, request, version);
                rt::sleep(world.draw(Duration::ZERO..ms(10))).await;
            } else {
                drop(ask_within(&node, request, version, ms(60)).await);
            }
        }
    }

    /// Sends a request on a connection that breaks soon. Everything that the broker has started for it then ends.
    fn vanish(&self, node: &Rc<Node>, request: Request, version: i16) {
        let Some(core) = node.core().filter(|_| node.serves()) else { return };
        let breaks_in = exec::world().draw(Duration::ZERO..ms(40));
        exec::world().spawn(node.process, async move {
            let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
            let client = Rc::new(handlers::Client::new(([127, 0, 0, 1], 1).into(), None));
            let answering = handlers::start(&core, &client, &header, request);
            if let Either::First(unread) = race(answering, rt::sleep(breaks_in)).await {
                // The client does not read the answer. After a while the broker closes the connection.
                rt::sleep(exec::world().draw(Duration::ZERO..ms(3_000))).await;
                drop(unread);
            }
        });
    }

    /// Checks that running counts equal a full recount: partitions, replicas, idempotent producers.
    pub(super) fn check_counts(&self) -> Result<(), Violation> {
        for node in &self.nodes {
            let Some(core) = node.core() else { continue };
            core.view(|view| view.check_counts());
            let partitions = core.partitions();
            let remembered = partitions.iter().map(|partition| partition.with_producers(|known| known.remembered()));
            let (recounted, counted) = (remembered.sum::<usize>(), core.producers_share.remembered());
            expect(recounted == counted, || {
                format!("broker {} counts {counted} idempotent producers, and remembers {recounted}", node.id)
            })?;
        }
        Ok(())
    }

    /// Describes some wait that has not ended on some broker.
    pub(super) fn left_waiting(&self) -> Option<String> {
        self.nodes.iter().find_map(|node| {
            let core = node.core()?;
            core.publish_queues();
            let metrics = &core.metrics;
            let acks: usize = core.partitions().iter().map(|partition| partition.waiters()).sum();
            let (answers, cold_answers) = (&core.memory.answers, &core.memory.cold_answers);
            let queues = [
                ("room in the ring", metrics.admission_waiting.get()),
                ("records", metrics.fetches_waiting.get()),
                ("the metadata", metrics.metadata_questions_open.get()),
                ("acknowledgements", acks as u64),
                ("memory for answers", (answers.waiting() + cold_answers.waiting()) as u64),
                ("answers to be taken, in bytes", (answers.held() + cold_answers.held()) as u64),
            ];
            let (what, length) = queues.into_iter().find(|(_, length)| *length > 0)?;
            Some(format!("broker {}: {length} wait for {what}", node.id))
        })
    }
}

/// A request of a client that does not wait long, and its version.
fn impatient(world: &World, target: &Target) -> (Request, i16) {
    match world.number(..10) {
        0 => {
            let partitions = vec![FetchPartition::of_consumer(target.partition, 0, 8 << 10)];
            let topics = vec![FetchTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
            (Request::Fetch(FetchRequest::of_consumer(2_000, 1 << 20, 8 << 10, topics)), 11)
        }
        1 => {
            let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
            let request = JoinGroupRequest::default()
                .with_group_id(GroupId(text(GROUP)))
                .with_session_timeout_ms(1_000)
                .with_rebalance_timeout_ms(2_000)
                .with_member_id(StrBytes::new())
                .with_protocol_type(text("consumer"))
                .with_protocols(vec![protocol]);
            (Request::JoinGroup(request), 2)
        }
        2 => {
            let partitions = vec![FetchPartition::of_consumer(target.partition, 0, 1 << 20)];
            let topics = vec![FetchTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
            (Request::Fetch(FetchRequest::of_consumer(0, 1, 1 << 20, topics)), 11)
        }
        3 => {
            let group = OffsetFetchRequestGroup::default().with_group_id(GroupId(text(GROUP)));
            (Request::OffsetFetch(OffsetFetchRequest::default().with_groups(vec![group])), 8)
        }
        _ => {
            let mut batch = BatchBuilder::new(Codec::None);
            batch.push(world.time().as_millis() as i64, None, Some(&vec![0; world.number(1_000..40_000) as usize]));
            let partitions = vec![ProducePartition { index: target.partition, records: Some(batch.finish()) }];
            let topics = vec![ProduceTopic { topic: TopicRef::Name(text(&target.topic)), partitions }];
            let (acks, timeout_ms) = ([-1, 1][world.place(2)], world.number(1..=40) as i32);
            (Request::Produce(ProduceRequest { transactional_id: None, acks, timeout_ms, topics }), 9)
        }
    }
}
