//! A client that vanishes leaves nothing behind, whatever its request waits for. Each case first shows that the check
//! at the end of a run would see the request.

use super::{
    queues::queues,
    requests::{self, Sent},
};
use crate::{
    clients::{Target, text},
    counts::{Calm, TOPIC},
    exec,
    node::{Ailment, Node},
};
use engine::{
    core::Core,
    handlers::{self, Client},
};
use net::{
    codec::{
        header::RequestHeader,
        request::{self, Request},
    },
    messages::{CreateTopicsRequest, FindCoordinatorRequest, TopicName, create_topics_request::CreatableTopic},
    records::compression::Codec,
};
use runtime::sync::{self, Either, Flag, race};
use std::{cell::Cell, rc::Rc, time::Duration};
use types::GroupId;

const MINUTE_MS: i32 = 60_000;

fn target() -> Target {
    Target { topic: TOPIC.to_owned(), partition: 0, group: GroupId(0), is_for_clients: false }
}

/// One client's work on a broker. It is dropped once the client is gone.
struct Begun {
    gone: Rc<Flag>,
    ended: Rc<Cell<bool>>,
}

fn begin(node: &Node, work: impl Future<Output = ()> + 'static) -> Begun {
    let begun = Begun { gone: Rc::default(), ended: Rc::default() };
    let (gone, ended) = (begun.gone.clone(), begun.ended.clone());
    exec::world().spawn(node.process, async move {
        ended.set(matches!(race(work, gone.wait()).await, Either::First(())));
    });
    begun
}

/// Sends requests on one connection.
fn send(node: &Node, client: &Rc<Client>, sent: Sent) -> Begun {
    let (core, client) = (node.core().expect("it runs"), client.clone());
    let start = move |request: Request| {
        let header = RequestHeader { api: request.api(), version: sent.version, correlation_id: 0, client_id: None };
        handlers::start(&core, &client, &header, request)
    };
    begin(node, async move { drop(sync::all(sent.requests.into_iter().map(start).collect()).await) })
}

fn client() -> Rc<Client> {
    Rc::new(Client::new(([127, 0, 0, 1], 1).into(), None))
}

fn waiting(core: &Core, what: &str) -> usize {
    queues(core).into_iter().find(|(name, _)| *name == what).expect("there is such a queue").1
}

/// Waits until the work is in the queue. Then its client vanishes, and the queue must become empty.
fn vanishes(calm: &Calm, node: &Node, what: &str, begun: &Begun) {
    let core = node.core().expect("it runs");
    calm.until(|| waiting(&core, what) > 0);
    begun.gone.set();
    calm.until(|| waiting(&core, what) == 0);
    assert!(!begun.ended.get(), "{what}: it was dropped while it waited");
}

fn produce(bytes: usize) -> Sent {
    let requests = vec![requests::produce(&exec::world(), &target(), Codec::None, bytes, MINUTE_MS)];
    Sent { requests, version: 9, bytes }
}

#[test]
fn reads_end_with_their_client() {
    let calm = Calm::new(1, 1);
    let node = &calm.nodes[0];
    vanishes(&calm, node, "records", &send(node, &client(), requests::fetch(&target(), MINUTE_MS, 1, 1 << 20)));
    let lookups = requests::list_offsets(&calm.world, &target(), 20_000);
    vanishes(&calm, node, "turns to read", &send(node, &client(), lookups));
    calm.ask(node, vec![(produce(1_000).requests.remove(0), 9)]);
    let core = node.core().expect("it runs");
    let all = core.memory.answers.try_hold(core.memory.answers.max()).expect("nothing is held");
    let fetch = || send(node, &client(), requests::fetch(&target(), 0, 1, 1 << 20));
    vanishes(&calm, node, "memory for answers", &fetch());
    drop(all);
    // Once there is more than fits in memory, the first record is on the disk only.
    for _ in 0..30 {
        calm.ask(node, vec![(produce(200_000).requests.remove(0), 9)]);
    }
    calm.pass(Duration::from_secs(5));
    let all = core.memory.cold_answers.try_hold(core.memory.cold_answers.max()).expect("nothing is held");
    vanishes(&calm, node, "memory for answers from the disk", &fetch());
    drop(all);
}

#[test]
fn frames_and_turns_end_with_their_client() {
    let calm = Calm::new(2, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let frames = {
        let core = core.clone();
        async move {
            // One that fits, one that exceeds the room, and one that waits.
            let bytes = core.memory.requests.share() / 4;
            let mut frames = [(); 3].map(|()| core.memory.requests.reservation(bytes, true));
            for frame in &mut frames {
                frame.grow(bytes).await;
            }
        }
    };
    let begun = begin(node, frames);
    calm.until(|| waiting(&core, "requests that hold memory, in bytes") > 0);
    vanishes(&calm, node, "memory for frames", &begun);
    assert_eq!(waiting(&core, "requests that hold memory, in bytes"), 0);
    let pace = core.clone();
    let turns = async move {
        let _first = pace.pace.turn().await;
        pace.pace.turn().await;
    };
    vanishes(&calm, node, "turns for laggards", &begin(node, turns));
}

#[test]
fn batches_that_wait_for_room_end_with_their_client() {
    let calm = Calm::new(3, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    node.ail(Ailment { full: true, ..Ailment::default() });
    let waits = loop {
        let begun = send(node, &client(), produce(200_000));
        calm.until(|| begun.ended.get() || waiting(&core, "room in the ring") > 0);
        if !begun.ended.get() {
            break begun;
        }
    };
    let since = calm.world.time();
    vanishes(&calm, node, "room in the ring", &waits);
    assert!(calm.world.time() - since < Duration::from_secs(1), "not at its timeout");
}

/// A timeout of 24 days holds memory and places no longer than any other.
#[test]
fn requests_end_however_long_their_clients_would_wait() {
    let calm = Calm::new(6, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    node.ail(Ailment { full: true, ..Ailment::default() });
    let fetch = send(node, &client(), requests::fetch(&target(), i32::MAX, 1 << 30, 1 << 20));
    let batch = || {
        let mut sent = produce(200_000);
        if let Request::Produce(produce) = &mut sent.requests[0] {
            produce.timeout_ms = i32::MAX;
        }
        send(node, &client(), sent)
    };
    let produced = loop {
        let begun = batch();
        calm.until(|| begun.ended.get() || waiting(&core, "room in the ring") > 0);
        if !begun.ended.get() {
            break begun;
        }
    };
    assert!(!fetch.ended.get() && !produced.ended.get());
    calm.pass(handlers::TIMEOUT_MAX + Duration::from_secs(1));
    assert!(fetch.ended.get() && produced.ended.get());
    assert!(queues(&core).iter().all(|(_, length)| *length == 0), "{:?}", queues(&core));
}

#[test]
fn batches_in_a_lane_leave_it_with_their_client() {
    let calm = Calm::new(4, 1);
    let (node, client) = (&calm.nodes[0], client());
    let core = node.core().expect("it runs");
    let batch = |zeros| requests::produce(&calm.world, &target(), Codec::Gzip, zeros, MINUTE_MS);
    let begun = send(node, &client, Sent { requests: vec![batch(8 << 20), batch(10)], version: 9, bytes: 0 });
    calm.until(|| client.in_lane() == 2 && waiting(&core, "turns to write") == 1);
    begun.gone.set();
    calm.until(|| client.in_lane() == 0 && waiting(&core, "turns to write") == 0);
}

/// A request that waits for the members of its group has nothing of its frame, and its connection learns that.
#[test]
fn a_request_that_waits_for_members_lets_go_of_its_frame() {
    let calm = Calm::new(7, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("crowd")]);
    calm.ask(node, vec![(find.into(), 4)]);
    let Sent { mut requests, version, .. } = requests::join();
    let client_id = Some(text("member"));
    let header = RequestHeader { api: requests[0].api(), version, correlation_id: 0, client_id };
    let frame = request::encode(&header, &requests.remove(0)).expect("it is valid").into_bytes().slice(4..);
    let client = client();
    let start = {
        let (core, client, (header, request)) =
            (core.clone(), client.clone(), request::decode(&frame).expect("it was encoded"));
        move || handlers::start(&core, &client, &header, request)
    };
    let begun = begin(node, async move { drop(start().await) });
    calm.until(|| waiting(&core, "group coordinators") > 0);
    assert_eq!((waiting(&core, "receipts of group coordinators"), client.copied().version()), (1, 1));
    assert!(frame.is_unique() && !begun.ended.get());
    begun.gone.set();
    calm.until(|| waiting(&core, "receipts of group coordinators") == 0);
    calm.until(|| waiting(&core, "group coordinators") == 0);
}

/// What waits for other brokers, or for members, stays until that is decided.
#[test]
fn what_waits_for_others_is_decided_without_its_client() {
    let calm = Calm::new(5, 3);
    let leader = calm.leader().clone();
    let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("crowd")]);
    calm.ask(&leader, vec![(find.into(), 4)]);
    let joins = calm.nodes.iter().map(|node| send(node, &client(), requests::join())).collect::<Vec<_>>();
    let unanswered = || calm.nodes.iter().map(|node| waiting(&node.core().expect("it runs"), "group coordinators"));
    calm.until(|| unanswered().sum::<usize>() > 0);
    joins.iter().for_each(|join| join.gone.set());
    calm.until(|| unanswered().sum::<usize>() == 0);

    let stop = |stopped| {
        let others = calm.nodes.iter().filter(|node| node.id != leader.id);
        others.for_each(|node| calm.world.stop(node.process, stopped));
    };
    stop(true);
    let core = leader.core().expect("it runs");
    vanishes(
        &calm,
        &leader,
        "acknowledgements",
        &send(&leader, &client(), {
            let mut sent = produce(100);
            if let Request::Produce(produce) = &mut sent.requests[0] {
                produce.acks = -1;
            }
            sent
        }),
    );
    let topic =
        CreatableTopic::default().with_name(TopicName(text("unled"))).with_num_partitions(1).with_replication_factor(1);
    let create = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(MINUTE_MS);
    vanishes(&calm, &leader, "the metadata", &send(&leader, &client(), Sent::one(create, 7)));
    stop(false);
    calm.pass(Duration::from_secs(20));
    assert!(queues(&core).iter().all(|(_, length)| *length == 0), "{:?}", queues(&core));
}
