//! A crowd of clients that send more than a broker can store, do not read their answers, give up soon, or vanish during
//! a request. Their own results do not matter. But all other clients must be served, and nothing of the crowd may be
//! left behind.

#[cfg(test)]
mod abandoned;
mod queues;
mod requests;

use super::{
    clients::{ask_within, text},
    cluster::{Cluster, Target},
    exec::{self, OUTSIDE, World},
    node::Node,
};
use engine::{
    connection::{GoingOn, client::Client},
    coordinator::partition_of,
    core::Core,
    handlers::{self, OFFSETS_TOPIC},
    memory::FREE_BYTES,
};
use net::{
    codec::{header::RequestHeader, request::Request},
    messages::{CreateTopicsRequest, FindCoordinatorRequest, TopicName, create_topics_request::CreatableTopic},
};
use requests::Sent;
use runtime::{
    self as rt,
    sync::{self, Either, race},
};
use std::{rc::Rc, time::Duration};
use types::planted;

/// The crowd's own topic and group.
const TOPIC: &str = "crowd";
const GROUP: &str = "crowd";
/// The share of requests whose connection breaks before the answer is read.
const VANISHING: f64 = 0.5;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The partitions that the crowd uses.
#[derive(Clone)]
struct Targets {
    own: Vec<Target>,
    /// The partition that coordinates its group.
    group: Target,
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
                world.spawn(OUTSIDE, self.clone().jostle(targets.clone(), until));
            }
        }
    }

    /// Creates the crowd's topic, and that of all groups.
    async fn gather(&self, world: &World) -> Option<Targets> {
        let replicas = [1, 3][world.place(2)];
        while !self.over.get() {
            let topic = CreatableTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_num_partitions(2)
                .with_replication_factor(replicas);
            let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(5_000);
            let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(GROUP)]);
            // The answers do not matter: the topics exist, or the loop asks again.
            drop(ask_within(&self.any_node(), Request::CreateTopics(create), 7, ms(6_000)).await);
            drop(ask_within(&self.any_node(), Request::FindCoordinator(find), 4, ms(6_000)).await);
            if let (Some(own), Some(groups)) = (self.partitions_of(TOPIC), self.partitions_of(OFFSETS_TOPIC)) {
                let target = |topic: &str, partition: usize, group| Target {
                    topic: topic.to_owned(),
                    partition: partition as i32,
                    group,
                    is_for_clients: false,
                };
                let at = partition_of(GROUP, groups.len() as i32) as usize;
                let own = own.into_iter().enumerate().map(|(partition, group)| target(TOPIC, partition, group));
                return Some(Targets { own: own.collect(), group: target(OFFSETS_TOPIC, at, groups[at]) });
            }
            rt::sleep(ms(200)).await;
        }
        None
    }

    async fn jostle(self: Rc<Self>, targets: Targets, until: Duration) {
        let world = exec::world();
        let own = &targets.own[world.place(targets.own.len())];
        while world.time() < until && !self.over.get() {
            let (node, sent) = match world.number(..10) {
                0 => (Some(self.any_node()), requests::to_any(&world)),
                1 | 2 => (self.leader_of(&targets.group), requests::to_coordinator(&world, own)),
                _ => (self.leader_of(own), requests::to_leader(&world, own)),
            };
            let Some(node) = node else { return };
            self.summary.borrow_mut().jostled += 1;
            if world.chance(VANISHING) {
                self.vanish(&node, sent);
                rt::sleep(world.draw(Duration::ZERO..ms(10))).await;
            } else {
                let Sent { mut requests, version, .. } = sent;
                drop(ask_within(&node, requests.swap_remove(0), version, ms(60)).await);
            }
        }
    }

    /// Sends requests on a connection that breaks soon. Everything that the broker has started for them then ends.
    fn vanish(self: &Rc<Self>, node: &Rc<Node>, sent: Sent) {
        let may_ask = |core: &Rc<Core>| node.serves() && !core.is_stopping();
        let Some(core) = node.any_core(&exec::world()).filter(may_ask) else { return };
        let breaks_in = exec::world().draw(Duration::ZERO..ms(40));
        let client = Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None));
        if sent.requests.len() > 1 {
            self.summary.borrow_mut().lanes += 1;
            self.lanes.borrow_mut().push(client.clone());
        }
        let cluster = self.clone();
        exec::world().spawn(node.process, async move {
            // A core that stops reads no more requests, and then waits only for those that it has read.
            if core.is_stopping() {
                return;
            }
            let world = exec::world();
            let _going_on = GoingOn::of(&core.connections);
            let serving = async {
                let mut reserved = core.memory.requests.reservation(sent.bytes, true);
                if sent.bytes > FREE_BYTES {
                    // The second half of the frame comes later.
                    reserved.grow(sent.bytes / 2).await;
                    rt::sleep(world.draw(Duration::ZERO..ms(20))).await;
                    cluster.summary.borrow_mut().frames_waited += u64::from(!reserved.has_room(sent.bytes));
                    reserved.grow(sent.bytes).await;
                }
                let start = |request: Request| {
                    let version = sent.version;
                    let header = RequestHeader { api: request.api(), version, correlation_id: 0, client_id: None };
                    handlers::start(&core, &client, &header, request)
                };
                let answers = sync::all(sent.requests.into_iter().map(start).collect()).await;
                (answers, reserved)
            };
            let mut serving = Box::pin(serving);
            match race(serving.as_mut(), rt::sleep(breaks_in)).await {
                // The client does not read the answers. After a while the broker closes the connection.
                Either::First(unread) => {
                    rt::sleep(exec::world().draw(Duration::ZERO..ms(3_000))).await;
                    drop(unread);
                }
                Either::Second(()) if planted!(AbandonedRequestStays) => std::mem::forget(serving),
                Either::Second(()) => {}
            }
        });
    }
}
