//! A client that vanishes leaves nothing behind, whatever its request waits for. Each case first shows that the check
//! at the end of a run would see the request.

use super::{
    queues::queues,
    requests::{self, Sent},
};
use crate::{
    clients::text,
    cluster::Target,
    counts::{Calm, PARTITIONS, TOPIC},
    exec,
    node::{Ailment, Node},
};
use engine::{
    connection::{self, client::Client},
    core::{Core, decoders::Decoder},
    handlers,
    partition::Partition,
};
use net::{
    codec::{
        api::ApiKey,
        header::RequestHeader,
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
        request::{self, Request},
        response::Response,
    },
    errors::{self, ErrorCode},
    messages::{
        CreateTopicsRequest, FindCoordinatorRequest, GroupId as GroupName, MetadataRequest, OffsetCommitRequest,
        TopicName,
        create_topics_request::CreatableTopic,
        metadata_request::MetadataRequestTopic,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
    },
    records::{build::BatchBuilder, compression::Codec},
};
use runtime::sync::{self, Either, Flag, line::Place, race};
use std::{
    cell::{Cell, RefCell},
    future::pending,
    rc::Rc,
    time::Duration,
};
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

/// The partition of [`target`].
fn partition(core: &Core) -> Rc<Partition> {
    let group = core.view(|view| view.topic(TOPIC).expect("it was created").partitions[0].group);
    core.partition(group).expect("it has a replica here")
}

/// The error of the only batch of a request that was [started](Calm::start).
fn outcome(answers: &RefCell<Option<Vec<Response>>>) -> Result<(), ErrorCode> {
    let answers = answers.take().expect("it is answered");
    let [Response::Produce(answer)] = &answers[..] else { panic!("{answers:?}") };
    errors::check(answer.topics[0].partitions[0].error_code)
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

/// Sends batches to a broker with a full disk until one waits for room.
fn fill(calm: &Calm, node: &Node) -> Begun {
    let core = node.core().expect("it runs");
    node.ail(Ailment { full: true, ..Ailment::default() });
    loop {
        let begun = send(node, &client(), produce(200_000));
        calm.until(|| begun.ended.get() || waiting(&core, "room in the ring") > 0);
        if !begun.ended.get() {
            return begun;
        }
    }
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

/// Takes all places that there are.
fn all_places(join: impl FnMut() -> Place) -> Vec<Place> {
    std::iter::repeat_with(join).take_while(Place::is_first).collect()
}

/// Others have all places to decode, to look up and to read from the disk.
#[test]
fn a_request_that_waits_for_one_of_few_places_leaves_its_queue() {
    let calm = Calm::new(11, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let leaves = |what: &str, sent: Sent| {
        let others = waiting(&core, what);
        assert!(others > 0, "{what}: others have all places");
        let begun = send(node, &client(), sent);
        calm.until(|| waiting(&core, what) > others);
        begun.gone.set();
        calm.until(|| waiting(&core, what) == others);
        assert!(!begun.ended.get(), "{what}: it was dropped while it waited");
    };
    let one_more = || {
        let mut decoder = Decoder::new(1);
        decoder.try_keep(&core.decoders).then_some(decoder)
    };
    let kept: Vec<Decoder> = std::iter::from_fn(one_more).collect();
    // It takes several turns to check.
    let compressed = requests::produce(&calm.world, &target(), Codec::Gzip, 1 << 20, MINUTE_MS);
    leaves("decoders", Sent { requests: vec![compressed], version: 9, bytes: 3_000 });
    drop(kept);
    // Once there is more than fits in memory, the first record is on the disk only.
    for _ in 0..30 {
        calm.ask(node, vec![(produce(200_000).requests.remove(0), 9)]);
    }
    calm.pass(Duration::from_secs(5));
    let places = all_places(|| core.cold_reads.join());
    leaves("reads from the disk", requests::fetch(&target(), 0, 1, 1 << 20));
    drop(places);
    let places = all_places(|| core.lookups.join());
    calm.ask(node, vec![(produce(1_000).requests.remove(0), 9)]);
    leaves("lookups by timestamp", requests::list_offsets(&calm.world, &target(), 1));
    drop(places);
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
fn requests_that_wait_to_be_decoded_end_with_their_client() {
    let calm = Calm::new(10, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    // One request may take more than there is room for. The others wait.
    let first = {
        let core = core.clone();
        begin(node, async move {
            let mut decoded = core.memory.requests.decoded_reservation();
            decoded.grow(core.memory.requests.share()).await;
            pending().await
        })
    };
    calm.until(|| core.memory.requests.held() > 0);
    let topic = |at: usize| MetadataRequestTopic::default().with_name(Some(TopicName(text(&format!("topic-{at}")))));
    let request = MetadataRequest::default().with_topics(Some((0..1_000).map(topic).collect()));
    let header = RequestHeader { api: ApiKey::Metadata, version: 9, correlation_id: 0, client_id: None };
    let frame = request::encode(&header, &request.into()).expect("it is valid").into_bytes().slice(4..);
    let ask = || {
        let undecoded = request::decode_header(&frame).expect("it was encoded");
        let bytes = undecoded.decoded_bytes().expect("it is within bounds");
        let answered = Rc::new(RefCell::new(None));
        let (core, given) = (core.clone(), answered.clone());
        let begun = begin(node, async move {
            let reply = connection::later(core, client(), undecoded, bytes).await;
            given.replace(Some(reply.response()));
        });
        (begun, answered)
    };
    let ((gone, _), (next, answered)) = (ask(), ask());
    calm.until(|| waiting(&core, "memory to be decoded") == 2);
    gone.gone.set();
    calm.until(|| waiting(&core, "memory to be decoded") == 1);
    first.gone.set();
    calm.until(|| next.ended.get());
    let answer = answered.take().expect("it has ended");
    let Some(Response::Metadata(answer)) = answer else { panic!("{answer:?}") };
    assert_eq!(answer.topics.len(), 1_000);
    assert!(!gone.ended.get());
    drop(answer);
    assert_eq!((waiting(&core, "memory to be decoded"), core.memory.requests.held()), (0, 0));
}

#[test]
fn batches_that_wait_for_room_end_with_their_client() {
    let calm = Calm::new(3, 1);
    let node = &calm.nodes[0];
    let waits = fill(&calm, node);
    let since = calm.world.time();
    vanishes(&calm, node, "room in the ring", &waits);
    assert!(calm.world.time() - since < Duration::from_secs(1), "not at its timeout");
}

/// A commit of many offsets with all the metadata that they may have.
fn commit() -> Request {
    let partition = |index| {
        OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_metadata(Some(text(&"m".repeat(4096))))
    };
    let partitions = (0..PARTITIONS).map(partition).collect();
    let topic = OffsetCommitRequestTopic::default().with_name(TopicName(text(TOPIC))).with_partitions(partitions);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupName(text("crowd")))
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    request.into()
}

#[test]
fn group_requests_that_wait_for_room_end_with_their_client() {
    let calm = Calm::new(8, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let find = FindCoordinatorRequest::default().with_coordinator_keys(vec![text("crowd")]);
    calm.ask(node, vec![(find.into(), 4)]);
    calm.ask(node, vec![(commit(), 8)]);
    let batch = fill(&calm, node);
    // Commits pass the batch until they have taken as much room as it needs.
    let gone = loop {
        let begun = send(node, &client(), Sent::one(commit(), 8));
        calm.until(|| begun.ended.get() || waiting(&core, "room in the ring") > 1);
        if !begun.ended.get() {
            break begun;
        }
    };
    let next = calm.start(node, vec![(commit(), 8)]);
    calm.until(|| waiting(&core, "room in the ring") == 3);
    gone.gone.set();
    calm.until(|| waiting(&core, "room in the ring") == 2);
    batch.gone.set();
    calm.until(|| waiting(&core, "room in the ring") == 1);
    assert!(!gone.ended.get() && !batch.ended.get() && next.borrow().is_none());
    node.ail(Ailment::default());
    calm.until(|| next.borrow().is_some());
    let answers = next.take().expect("it was just seen");
    let [Response::OffsetCommit(answer)] = &answers[..] else { panic!("{answers:?}") };
    assert!(answer.topics[0].partitions.iter().all(|partition| errors::check(partition.error_code) == Ok(())));
    assert_eq!((waiting(&core, "room in the ring"), waiting(&core, "group coordinators")), (0, 0));
}

/// While the disk stalls, some clients time out and the others vanish.
#[test]
fn a_disk_that_stalls_for_longer_than_clients_wait_leaves_nobody_in_a_queue() {
    const TIMEOUT_MS: i32 = 2_000;
    let calm = Calm::new(9, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let batch = |partition| {
        let target = Target { partition, ..target() };
        let mut request = requests::produce(&calm.world, &target, Codec::None, 200_000, TIMEOUT_MS);
        if let Request::Produce(produce) = &mut request {
            produce.acks = -1;
        }
        (request, 9)
    };
    let stalls_until = calm.world.time() + Duration::from_secs(30);
    node.ail(Ailment { stalls_until, ..Ailment::default() });
    let mut rounds = 0;
    while calm.world.time() < stalls_until - Duration::from_secs(3) {
        let patient: Vec<_> = (0..40).map(|at| calm.start(node, vec![batch(at % PARTITIONS)])).collect();
        let vanishing: Vec<_> = (0..40)
            .map(|at| {
                let (request, version) = batch(at % PARTITIONS);
                send(node, &client(), Sent { requests: vec![request], version, bytes: 200_000 })
            })
            .collect();
        calm.until(|| waiting(&core, "room in the ring") > 0);
        vanishing.iter().for_each(|vanishing| vanishing.gone.set());
        calm.until(|| patient.iter().all(|answers| answers.borrow().is_some()));
        assert!(patient.iter().all(|answers| outcome(answers) == Err(ErrorCode::RequestTimedOut)));
        assert_eq!(waiting(&core, "room in the ring"), 0, "round {rounds}");
        rounds += 1;
    }
    assert!(rounds > 10 && core.metrics.admission_timed_out_total.get() > 0, "{rounds} rounds");
    calm.until(|| calm.world.time() >= stalls_until);
    // The next one waits for nothing but the first flush.
    let next = calm.start(node, vec![batch(0)]);
    calm.until(|| next.borrow().is_some());
    assert_eq!(outcome(&next), Ok(()));
    calm.pass(Duration::from_secs(5));
    assert!(queues(&core).iter().all(|(_, length)| *length == 0), "{:?}", queues(&core));
}

/// While the disk stalls, a core stages few of its own appends, so that others' entries need not wait behind them.
#[test]
fn appends_wait_before_the_ring_and_not_in_it() {
    const APPENDS: i32 = 40;
    let calm = Calm::new(9, 1);
    let node = &calm.nodes[0];
    let core = node.core().expect("it runs");
    let stalls_until = calm.world.time() + Duration::from_secs(5);
    node.ail(Ailment { stalls_until, ..Ailment::default() });
    let batch = |at| {
        let target = Target { partition: at % PARTITIONS, ..target() };
        (requests::produce(&calm.world, &target, Codec::None, 200_000, MINUTE_MS), 9)
    };
    let appends: Vec<_> = (0..APPENDS).map(|at| calm.start(node, vec![batch(at)])).collect();
    calm.until(|| waiting(&core, "room in the ring") > 0);
    calm.pass(Duration::from_secs(1));
    let staged = core.store.staged().0 - core.store.durable().0;
    assert!((3 << 20..5 << 20).contains(&staged), "{staged} bytes");
    calm.until(|| appends.iter().all(|answers| answers.borrow().is_some()));
    assert!(calm.world.time() >= stalls_until);
    assert!(appends.iter().all(|answers| outcome(answers) == Ok(())));
    assert_eq!(waiting(&core, "room in the ring"), 0);
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

/// A request that waits for other brokers, or for members, stays until they decide.
#[test]
fn a_group_request_that_waits_for_others_is_decided_without_its_client() {
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

/// A batch that meets a hand-over stays until its end, also without its client, and no longer.
#[test]
fn an_append_that_meets_a_hand_over_ends_with_it() {
    let calm = Calm::new(11, 3);
    let leader = calm.leader().clone();
    let core = leader.core().expect("it runs");
    let shared = partition(&core);
    let heir = shared.replicas().into_iter().find(|node| *node != leader.id).expect("there are others");
    let heir = calm.nodes.iter().find(|node| node.id == heir).expect("it is one of them");
    // It cannot vote for itself, so the leader gives up.
    heir.ail(Ailment { stalls_until: calm.world.time() + Duration::from_secs(30), ..Ailment::default() });
    let batch = || produce(100).requests.remove(0);
    for round in 0..3 {
        let handed = {
            let (shared, core, to) = (shared.clone(), core.clone(), heir.id);
            begin(&leader, async move { assert!(shared.hand_over(&core, Some(to))) })
        };
        calm.until(|| handed.ended.get());
        let gone = send(&leader, &client(), produce(100));
        let stays = calm.start(&leader, vec![(batch(), 9)]);
        calm.until(|| waiting(&core, "acknowledgements") == 2);
        gone.gone.set();
        calm.until(|| stays.borrow().is_some());
        assert_eq!(outcome(&stays), Err(ErrorCode::NotLeaderOrFollower), "round {round}");
        assert_eq!((waiting(&core, "acknowledgements"), gone.ended.get()), (0, false), "round {round}");
        let next = calm.start(&leader, vec![(batch(), 9)]);
        calm.until(|| next.borrow().is_some());
        assert_eq!(outcome(&next), Ok(()), "round {round}");
    }
}

/// A batch of an idempotent producer in this epoch.
fn of_producer(epoch: i16) -> Request {
    let mut batch = BatchBuilder::new(Codec::None).producer(7, epoch, 0);
    batch.push(exec::world().time().as_millis() as i64, None, Some(b"value"));
    let partitions = vec![ProducePartition { index: 0, records: Some(batch.finish()) }];
    let topics = vec![ProduceTopic { topic: TopicRef::Name(text(TOPIC)), partitions }];
    Request::Produce(ProduceRequest { transactional_id: None, acks: -1, timeout_ms: MINUTE_MS, topics })
}

/// A read, or a refusal because of a producer's state, stays until a majority has answered or the leader steps down,
/// also without its client, and no longer.
#[test]
fn a_read_that_waits_for_proof_of_leadership_ends_with_it() {
    for (steps_down, refused, read) in [
        (false, ErrorCode::InvalidProducerEpoch, Ok(())),
        (true, ErrorCode::NotLeaderOrFollower, Err(ErrorCode::NotLeaderOrFollower)),
    ] {
        let calm = Calm::new(12, 3);
        let leader = calm.leader().clone();
        let core = leader.core().expect("it runs");
        let shared = partition(&core);
        let stop = |stopped| {
            let others = calm.nodes.iter().filter(|node| node.id != leader.id);
            others.for_each(|node| calm.world.stop(node.process, stopped));
        };
        let first = calm.start(&leader, vec![(of_producer(1), 9)]);
        calm.until(|| first.borrow().is_some());
        assert_eq!(outcome(&first), Ok(()));
        stop(true);
        let asks = || {
            let answered = Rc::new(Cell::new(None));
            let (shared, core, given) = (shared.clone(), core.clone(), answered.clone());
            (begin(&leader, async move { given.set(Some(shared.still_leading(&core).await)) }), answered)
        };
        // The producer's epoch has ended.
        let gone =
            [send(&leader, &client(), Sent { requests: vec![of_producer(0)], version: 9, bytes: 100 }), asks().0];
        let stays = calm.start(&leader, vec![(of_producer(0), 9)]);
        let (reading, answered) = asks();
        calm.until(|| waiting(&core, "acknowledgements") == 4);
        gone.iter().for_each(|begun| begun.gone.set());
        if !steps_down {
            stop(false);
        }
        calm.until(|| stays.borrow().is_some() && reading.ended.get());
        assert_eq!(
            (outcome(&stays), answered.get().map(|read| read.map_err(ErrorCode::from))),
            (Err(refused), Some(read)),
            "it steps down: {steps_down}"
        );
        // Both may be told in the same turn.
        calm.pass(Duration::from_millis(1));
        assert_eq!(waiting(&core, "acknowledgements"), 0, "it steps down: {steps_down}");
        assert!(gone.iter().all(|begun| !begun.ended.get()), "it steps down: {steps_down}");
    }
}
