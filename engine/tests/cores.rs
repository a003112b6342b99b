//! The promises of a broker with several cores about its connections and about messages between cores.

mod support;

use net::{
    StrBytes,
    client::blocking::Client,
    codec::{
        api::ApiKey,
        fetch::{FetchPartition, FetchRequest, FetchTopic},
        produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
    },
    messages::{
        CreateTopicsRequest, ListOffsetsRequest, MetadataRequest, TopicName,
        create_topics_request::CreatableTopic,
        list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic},
    },
    records::{build::BatchBuilder, compression::Codec},
    turn::BYTES_A_TURN,
};
use std::{ops::Range, time::Instant};
use support::{PATIENCE, broker::Broker, tool::Tool, wire};

/// A figure of each core, in the order of the cores.
fn per_core(broker: &Broker, name: &str) -> Vec<u64> {
    let (status, page) = broker.admin_get("/metrics");
    assert_eq!(status, 200);
    let prefix = format!("millrace_{name}{{core=");
    page.lines()
        .filter(|line| line.starts_with(&prefix))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a figure is a number"))
        .collect()
}

/// Repeats the look at a figure until it satisfies the condition.
fn until(broker: &Broker, name: &str, wanted: impl Fn(&[u64]) -> bool) -> Vec<u64> {
    let started = Instant::now();
    loop {
        let figures = per_core(broker, name);
        if wanted(&figures) {
            return figures;
        }
        assert!(started.elapsed() < PATIENCE, "{name} stays at {figures:?}");
        std::thread::yield_now();
    }
}

#[test]
fn connections_are_spread_evenly_whatever_their_number() {
    let broker = Broker::start();
    let mut open = Vec::new();
    for count in 1..=11u64 {
        open.push(Client::connect(&broker.bootstrap(), "spread", PATIENCE).unwrap());
        let figures = until(&broker, "connections_open", |figures| figures.iter().sum::<u64>() == count);
        let most = count.div_ceil(figures.len() as u64) + 1;
        assert!(figures.iter().all(|of_core| *of_core <= most), "{count} connections: {figures:?}");
    }
}

/// Waits until every core has published its counters again, twice. Then they include everything that happened before.
fn published(broker: &Broker) {
    let before = per_core(broker, "loop_beats_total");
    until(broker, "loop_beats_total", |now| now.iter().zip(&before).all(|(now, before)| *now >= before + 2));
}

/// Creates a topic. Each core owns the same number of its partitions.
fn topic_on_all_cores(client: &mut Client, name: &'static str, partitions: i32) {
    let topic = CreatableTopic::default()
        .with_name(TopicName(StrBytes::from_static_str(name)))
        .with_num_partitions(partitions)
        .with_replication_factor(1);
    let created = client.call(CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000)).unwrap();
    assert_eq!(created.topics[0].error_code, 0);
    let described = wire::metadata(client, MetadataRequest::default().with_topics(None));
    assert_eq!(described.topics[0].error_code, 0);
    assert_eq!(described.topics[0].partitions.len() as i32, partitions);
    assert!(described.topics[0].partitions.iter().all(|partition| partition.error_code == 0), "{described:?}");
}

/// Produces one batch of one record to each of these partitions.
fn produce(client: &mut Client, topic: &'static str, partitions: Range<i32>) {
    let count = partitions.len();
    let mut batch = BatchBuilder::new(Codec::None);
    batch.push(1, None, Some(b"x"));
    let records = batch.finish();
    let partition = |index| ProducePartition { index, records: Some(records.clone()) };
    let topic = TopicRef::Name(StrBytes::from_static_str(topic));
    let topics = vec![ProduceTopic { topic, partitions: partitions.map(partition).collect() }];
    let request = ProduceRequest { transactional_id: None, acks: -1, timeout_ms: 30_000, topics };
    let answer = client.produce(request).unwrap();
    assert_eq!(answer.responses[0].partition_responses.len(), count);
    answer.responses[0].partition_responses.iter().for_each(|partition| assert_eq!(partition.error_code, 0));
}

/// Fetches the first batch of each of these partitions.
fn fetch(client: &mut Client, topic: &'static str, partitions: Range<i32>, wait_ms: i32) {
    fetch_at_least(client, topic, partitions, wait_ms, 1);
}

/// The same, with a minimum of bytes in all.
fn fetch_at_least(client: &mut Client, topic: &'static str, partitions: Range<i32>, wait_ms: i32, bytes_min: i32) {
    let count = partitions.len();
    let partitions = partitions.map(|partition| FetchPartition::of_consumer(partition, 0, 1 << 20)).collect();
    let topics = vec![FetchTopic { topic: TopicRef::Name(StrBytes::from_static_str(topic)), partitions }];
    let answer = client.fetch(FetchRequest::of_consumer(wait_ms, bytes_min, 1 << 20, topics)).unwrap();
    let partitions = &answer.responses[0].partitions;
    assert_eq!((answer.error_code, partitions.len()), (0, count));
    assert!(partitions.iter().all(|partition| partition.error_code == 0));
    assert!(partitions.iter().any(|partition| partition.records.as_ref().is_some_and(|records| !records.is_empty())));
}

/// The number of messages between cores while some work is done.
fn hops(broker: &Broker, work: impl FnOnce()) -> u64 {
    let sent = || -> u64 {
        published(broker);
        per_core(broker, "mesh_sent_total").iter().sum()
    };
    let before = sent();
    work();
    sent() - before
}

const REQUESTS: u64 = 300;

#[test]
fn a_request_for_one_partition_crosses_once_to_another_core_and_back_and_not_at_all_to_its_own() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker.bootstrap(), "hops", PATIENCE).unwrap();
    let cores = per_core(&broker, "loop_beats_total").len();
    topic_on_all_cores(&mut client, "hops", cores as i32);
    // Neighbouring partitions belong to different cores. One of these is the connection's own core.
    let mut of_produce = Vec::new();
    for partition in 0..cores as i32 {
        of_produce.push(hops(&broker, || {
            (0..REQUESTS).for_each(|_| produce(&mut client, "hops", partition..partition + 1));
        }));
    }
    let mut of_fetch = Vec::new();
    for partition in 0..cores as i32 {
        of_fetch.push(hops(&broker, || {
            (0..REQUESTS).for_each(|at| {
                fetch(&mut client, "hops", partition..partition + 1, if at % 2 == 0 { 0 } else { 500 });
            });
        }));
    }
    assert_eq!(of_produce, of_fetch);
    of_produce.sort_unstable();
    let mut expected = vec![2 * REQUESTS; cores];
    expected[0] = 0;
    assert_eq!(of_produce, expected);
}

#[test]
fn a_request_for_many_partitions_crosses_once_to_each_core_that_owns_some_and_back() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker.bootstrap(), "hops", PATIENCE).unwrap();
    let cores = per_core(&broker, "loop_beats_total").len();
    let partitions = 8 * cores as i32;
    topic_on_all_cores(&mut client, "hops", partitions);
    let others = cores as u64 - 1;
    let produced = hops(&broker, || (0..REQUESTS).for_each(|_| produce(&mut client, "hops", 0..partitions)));
    assert_eq!(produced, 2 * others * REQUESTS);
    let fetched = hops(&broker, || (0..REQUESTS).for_each(|_| fetch(&mut client, "hops", 0..partitions, 0)));
    assert_eq!(fetched, 2 * others * REQUESTS);
    // If a fetch waits and one core finds enough, the connection's core calls the fetch back from the others.
    let waiting = hops(&broker, || (0..REQUESTS).for_each(|_| fetch(&mut client, "hops", 0..partitions, 500)));
    assert!((2 * others * REQUESTS..=3 * others * REQUESTS).contains(&waiting), "{waiting} messages");
    // If no core has enough alone, each reports once how much it has. Then the connection's core calls all back.
    let mut batch = BatchBuilder::new(Codec::None);
    batch.push(1, None, Some(b"x"));
    let bytes_min = batch.finish().len() as i32 * partitions;
    let summed = hops(&broker, || {
        (0..REQUESTS)
            .for_each(|_| fetch_at_least(&mut client, "hops", 0..partitions, 60_000, bytes_min * REQUESTS as i32));
    });
    assert!((2 * others * REQUESTS..=4 * others * REQUESTS).contains(&summed), "{summed} messages");
}

#[test]
fn messages_between_cores_are_counted_by_kind() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker.bootstrap(), "kinds", PATIENCE).unwrap();
    let cores = per_core(&broker, "loop_beats_total").len();
    topic_on_all_cores(&mut client, "kinds", cores as i32);
    let sent = || {
        published(&broker);
        let (_, page) = broker.admin_get("/metrics");
        ["Append", "Read", "Reply", "Cancel"].map(|kind| -> u64 {
            let is_of_kind = |line: &&str| {
                line.starts_with("millrace_mesh_messages_total{") && line.contains(&format!("kind=\"{kind}\""))
            };
            let lines: Vec<&str> = page.lines().filter(is_of_kind).collect();
            assert_eq!(lines.len(), cores, "{kind}");
            lines.iter().map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        })
    };
    let before = sent();
    (0..REQUESTS).for_each(|_| produce(&mut client, "kinds", 0..cores as i32));
    (0..2 * REQUESTS).for_each(|_| fetch(&mut client, "kinds", 0..cores as i32, 0));
    let after = sent();
    let others = (cores - 1) as u64;
    let spent: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(spent, [1, 2, 3, 0].map(|each| each * others * REQUESTS));
}

#[test]
fn a_produce_request_of_many_partitions_costs_each_core_one_sync_and_a_broker_at_rest_makes_none() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker.bootstrap(), "syncs", PATIENCE).unwrap();
    let cores = per_core(&broker, "loop_beats_total").len();
    let partitions = 32 * cores as i32;
    topic_on_all_cores(&mut client, "syncs", partitions);
    let writes = || {
        published(&broker);
        per_core(&broker, "wal_writes_total")
    };
    // Work after the creation of a topic: reports of its leaders.
    let mut before = writes();
    loop {
        let now = writes();
        if now == before {
            break;
        }
        before = now;
    }
    (0..REQUESTS).for_each(|_| produce(&mut client, "syncs", 0..partitions));
    let after = writes();
    let spent: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
    assert_eq!(spent, vec![REQUESTS; cores]);
    assert_eq!(writes(), after);
}

#[test]
fn a_tool_learns_how_long_messages_take_between_cores() {
    let broker = Broker::start();
    let cores = per_core(&broker, "loop_beats_total").len();
    let mut tool = Tool::connect(&broker, PATIENCE).unwrap();
    if cores == 1 {
        eprintln!("NOT TESTED HERE: round trips between cores, as this process may run on one CPU only");
        return;
    }
    published(&broker);
    let before: u64 = per_core(&broker, "mesh_received_total").iter().sum();
    let mut count = 0;
    for in_flight in [1, 32] {
        let (from, times) = tool.probe_mesh(None, 500, in_flight).unwrap();
        let to: Vec<usize> = times.iter().map(|times| times.to.into()).collect();
        let others: Vec<usize> = (0..cores).filter(|core| *core != usize::from(from)).collect();
        assert_eq!(to, others);
        for times in &times {
            let of_core: u64 = times.buckets.iter().map(|(_, count)| count).sum();
            // On a very slow machine, the time may be up before the last round trip.
            assert!((1..=500).contains(&of_core), "{times:?}");
            assert!(0 < times.min_ns && times.min_ns <= times.max_ns && times.max_ns <= times.sum_ns, "{times:?}");
            count += of_core;
        }
    }
    published(&broker);
    let after: u64 = per_core(&broker, "mesh_received_total").iter().sum();
    // One message there and one back. On an idle broker, no other messages go between cores.
    assert_eq!(after - before, 2 * count);

    // A rejected probe leaves the connection usable.
    let refused = tool.probe_mesh(Some(u16::MAX), 1, 1).unwrap_err();
    assert!(refused.contains("core 65535 can't be probed"), "{refused}");
    let refused = tool.probe_mesh(None, 1_000_000, 1).unwrap_err();
    assert!(refused.contains("1000000 round trips"), "{refused}");
    assert_eq!(tool.probe_mesh(Some(1), 1, 1).unwrap().1.len(), 1);
}

#[test]
fn a_broker_of_one_core_says_what_it_takes_to_have_a_mesh() {
    let broker = Broker::start_with(&["--cores", "0"]);
    assert_eq!(per_core(&broker, "loop_beats_total").len(), 1);
    let refused = Tool::connect(&broker, PATIENCE).unwrap().probe_mesh(None, 1, 1).unwrap_err();
    assert!(refused.contains("has one core") && refused.contains("--cores"), "{refused}");
}

/// A lookup for which the broker must decompress all of these partitions' batches.
fn lookup_of_the_last_record(topic: &'static str, partitions: i32) -> ListOffsetsRequest {
    let last = |index| ListOffsetsPartition::default().with_partition_index(index).with_timestamp(2);
    let topic = ListOffsetsTopic::default()
        .with_name(TopicName(StrBytes::from_static_str(topic)))
        .with_partitions((0..partitions).map(last).collect());
    ListOffsetsRequest::default().with_topics(vec![topic])
}

#[test]
fn requests_of_a_gone_client_end_on_all_cores() {
    const MUCH: usize = 40 << 20;
    let broker = Broker::start();
    let mut client = wire::connect(&broker);
    let cores = per_core(&broker, "loop_beats_total").len();
    let partitions = 8 * cores as i32;
    topic_on_all_cores(&mut client, "unfolded", partitions);
    let mut batch = BatchBuilder::new(Codec::Gzip);
    batch.push(1, None, Some(&vec![0; MUCH]));
    batch.push(2, None, Some(b"last"));
    let batch = batch.finish();
    for partition in 0..partitions {
        assert_eq!(wire::produce(&mut client, "unfolded", partition, batch.clone()).error_code, 0);
    }
    let pauses = || per_core(&broker, "request_pauses_total").iter().sum::<u64>();
    let before = pauses();
    let mut gone = wire::connect(&broker);
    let version = gone.version(ApiKey::ListOffsets).expect("it is served");
    gone.send(version, &lookup_of_the_last_record("unfolded", partitions).into()).expect("sent");
    drop(gone);
    until(&broker, "connections_open", |open| open.iter().sum::<u64>() == 1);
    let mut last = pauses();
    loop {
        published(&broker);
        let now = pauses();
        if now == last {
            break;
        }
        last = now;
    }
    let whole = (partitions as usize * MUCH / BYTES_A_TURN) as u64;
    assert!(last - before < whole / 4, "{} turns, and {whole} for the whole answer", last - before);
    // Nothing is left that the next lookup would wait for.
    let answer = client.call(lookup_of_the_last_record("unfolded", 1)).expect("answered");
    assert_eq!((answer.topics[0].partitions[0].error_code, answer.topics[0].partitions[0].offset), (0, 1));
}
