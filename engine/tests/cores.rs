//! What a broker on several cores promises of its connections and of the way between cores.

mod support;

use net::{
    StrBytes,
    batch_build::BatchBuilder,
    client_blocking::Client,
    compression::Codec,
    messages::{CreateTopicsRequest, MetadataRequest, TopicName, create_topics_request::CreatableTopic},
    produce::{ProducePartition, ProduceRequest, ProduceTopic, TopicRef},
};
use std::time::Instant;
use support::{PATIENCE, broker::Broker, tool::Tool};

/// A figure of each core, by the core's number.
fn per_core(broker: &Broker, name: &str) -> Vec<u64> {
    let (status, page) = broker.admin_get("/metrics");
    assert_eq!(status, 200);
    let prefix = format!("millrace_{name}{{core=");
    page.lines()
        .filter(|line| line.starts_with(&prefix))
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a figure is a number"))
        .collect()
}

/// Asks for a figure again and again until it is as wanted.
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

/// Waits until every core has published its counters anew, twice: what happened before is in them then.
fn published(broker: &Broker) {
    let before = per_core(broker, "loop_beats_total");
    until(broker, "loop_beats_total", |now| now.iter().zip(&before).all(|(now, before)| *now >= before + 2));
}

#[test]
fn a_request_for_another_core_goes_over_once_and_back_once() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker.bootstrap(), "hops", PATIENCE).unwrap();
    let name = || TopicName(StrBytes::from_static_str("hops"));
    let topic = CreatableTopic::default().with_name(name()).with_num_partitions(2).with_replication_factor(1);
    let created = client.call(CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(30_000)).unwrap();
    assert_eq!(created.topics[0].error_code, 0);
    let described = client.call(MetadataRequest::default().with_topics(None)).unwrap();
    assert_eq!(described.topics[0].partitions.len(), 2);

    let cores = per_core(&broker, "loop_beats_total").len() as u64;
    published(&broker);
    let before: u64 = per_core(&broker, "mesh_received_total").iter().sum();
    const REQUESTS: u64 = 50;
    for partition in [0, 1] {
        for _ in 0..REQUESTS {
            let mut batch = BatchBuilder::new(Codec::None);
            batch.push(1, None, Some(b"x"));
            let records = Some(batch.finish());
            let topic = TopicRef::Name(StrBytes::from_static_str("hops"));
            let partitions = vec![ProducePartition { index: partition, records }];
            let request = ProduceRequest {
                transactional_id: None,
                acks: -1,
                timeout_ms: 30_000,
                topics: vec![ProduceTopic { topic, partitions }],
            };
            let answer = client.produce(request).unwrap();
            assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
        }
    }
    published(&broker);
    let after: u64 = per_core(&broker, "mesh_received_total").iter().sum();
    // Neighbouring partitions are on different cores: with two, one is on the connection's own.
    match cores {
        1 => assert_eq!(after, before),
        2 => assert_eq!(after - before, 2 * REQUESTS),
        _ => assert!([2 * REQUESTS, 4 * REQUESTS].contains(&(after - before)), "{}", after - before),
    }
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
            // On a very slow machine the time may be up before the last of them.
            assert!((1..=500).contains(&of_core), "{times:?}");
            assert!(0 < times.min_ns && times.min_ns <= times.max_ns && times.max_ns <= times.sum_ns, "{times:?}");
            count += of_core;
        }
    }
    published(&broker);
    let after: u64 = per_core(&broker, "mesh_received_total").iter().sum();
    // Once over, once back; nothing else goes over the mesh of a broker at rest.
    assert_eq!(after - before, 2 * count);

    // What the broker refuses leaves the connection as it was.
    let refused = tool.probe_mesh(Some(u16::MAX), 1, 1).unwrap_err();
    assert!(refused.contains("core 65535 can't be asked"), "{refused}");
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
