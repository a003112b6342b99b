//! Partitions take memory as long as they exist. A broker accepts as many as fit its share of `memory.budget.bytes`,
//! and rejects more with a precise message.

mod support;

use std::fs;
use std::thread;

use net::client::blocking::Client;
use net::errors::{self, ErrorCode};
use net::messages::create_partitions_request::CreatePartitionsTopic;
use net::messages::create_topics_request::CreatableTopic;
use net::messages::delete_topics_request::DeleteTopicState;
use net::messages::metadata_request::MetadataRequestTopic;
use net::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, FindCoordinatorRequest, MetadataRequest,
};

use support::PATIENCE;
use support::broker::Broker;
use support::cluster::{Cluster, wait_until};
use support::wire;

/// On one core, three sixteenths of the budget hold 1,536 replicas of 16 KiB.
const BUDGET: u64 = 128 << 20;
const REPLICAS: usize = 1536;
/// Memory of the program in addition to its budget.
const PROGRAM: u64 = 48 << 20;

type Answers = Vec<(Result<(), ErrorCode>, String)>;

/// Creates topics in one request.
fn create(client: &mut Client, names: impl IntoIterator<Item = String>, partitions: i32, replicas: i16) -> Answers {
    let topic = |name: String| {
        let topic = CreatableTopic::default().with_name(wire::topic_name(&name));
        topic.with_num_partitions(partitions).with_replication_factor(replicas)
    };
    let request = CreateTopicsRequest::default()
        .with_topics(names.into_iter().map(topic).collect())
        .with_timeout_ms(PATIENCE.as_millis() as i32);
    let response = client.call(request).expect("CreateTopics is answered");
    let answer = |topic: &net::messages::create_topics_response::CreatableTopicResult| {
        let message = topic.error_message.as_ref().map(ToString::to_string);
        (errors::check(topic.error_code), message.unwrap_or_default())
    };
    response.topics.iter().map(answer).collect()
}

fn create_one(client: &mut Client, name: &str, partitions: i32, replicas: i16) -> (Result<(), ErrorCode>, String) {
    create(client, [name.to_owned()], partitions, replicas).remove(0)
}

fn add_partitions(client: &mut Client, topic: &str, count: i32) -> (Result<(), ErrorCode>, String) {
    let topic =
        CreatePartitionsTopic::default().with_name(wire::topic_name(topic)).with_count(count).with_assignments(None);
    let request = CreatePartitionsRequest::default().with_topics(vec![topic]);
    let response = client.call(request.with_timeout_ms(PATIENCE.as_millis() as i32)).expect("it is answered");
    let result = &response.results[0];
    (errors::check(result.error_code), result.error_message.as_ref().map(ToString::to_string).unwrap_or_default())
}

fn delete(client: &mut Client, topic: &str) {
    let topic = DeleteTopicState::default().with_name(Some(wire::topic_name(topic)));
    let request = DeleteTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(PATIENCE.as_millis() as i32);
    let response = client.call(request).expect("DeleteTopics is answered");
    assert_eq!(errors::check(response.responses[0].error_code), Ok(()));
}

/// The answer to an automatic creation.
fn ask_for(client: &mut Client, topic: &str) -> Result<(), ErrorCode> {
    let topic = MetadataRequestTopic::default().with_name(Some(wire::topic_name(topic)));
    let request = MetadataRequest::default().with_topics(Some(vec![topic])).with_allow_auto_topic_creation(true);
    errors::check(wire::metadata(client, request).topics[0].error_code)
}

fn assert_refused((code, message): &(Result<(), ErrorCode>, String), words: &[String]) {
    assert_eq!(*code, Err(ErrorCode::PolicyViolation), "{message}");
    let remedy = ["raise memory.budget.bytes of broker", "delete topics"].map(str::to_owned);
    for words in words.iter().chain(&remedy) {
        assert!(message.contains(words), "{words}: {message}");
    }
}

/// Refusals of requests that arrive together. Those being created count, too: the replicas of `broker` reach one bound
/// (`words`), or the partitions of the cluster reach the bound of its metadata first.
fn assert_all_refused(refusals: &[(Result<(), ErrorCode>, String)], broker: i32, words: &[String]) {
    let metadata = ["the cluster has".to_owned(), format!("broker {broker} takes the metadata of")];
    for refusal in refusals {
        let of_metadata = refusal.1.contains(&metadata[0]);
        assert_refused(refusal, if of_metadata { &metadata } else { words });
    }
}

/// Current memory, in bytes.
fn resident(broker: &Broker) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", broker.pid())).expect("the broker runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    line.trim().strip_suffix(" kB").and_then(|kb| kb.parse::<u64>().ok()).expect("a number") << 10
}

fn held(broker: &Broker) -> usize {
    broker.metric("millrace_replicas") as usize
}

#[test]
fn a_broker_takes_the_partitions_that_fit_its_budget_and_serves_them_with_a_smaller_one() {
    let budget = format!("memory.budget.bytes={BUDGET}");
    let mut broker = Broker::start_with(&["--cores", "0", "--set", &budget]);
    let mut client = wire::connect(&broker);
    assert_eq!(create_one(&mut client, "served", 100, 1).0, Ok(()));
    assert_eq!(errors::check(wire::produce(&mut client, "served", 99, wire::batch(&[b"before"])).error_code), Ok(()));
    let too_many = create_one(&mut client, "too-many", 100_000, 1);
    assert_refused(&too_many, &["100000 more are requested".to_owned()]);
    let refused = ["broker 1 has 100 replicas".to_owned(), "2000 more".to_owned(), format!("takes {REPLICAS}")];
    assert_refused(&create_one(&mut client, "too-many", 2000, 1), &refused);

    // 40,000 partitions in large requests that arrive at the same time.
    let all: Vec<Answers> = thread::scope(|scope| {
        let one = |n: usize| {
            let mut client = wire::connect(&broker);
            scope.spawn(move || create(&mut client, (0..100).map(|topic| format!("many-{n}-{topic}")), 100, 1))
        };
        let askers: Vec<_> = (0..4).map(one).collect();
        askers.into_iter().map(|asker| asker.join().expect("it is answered")).collect()
    });
    let all: Answers = all.concat();
    assert_eq!(all.iter().filter(|(code, _)| code.is_ok()).count(), 14, "100 partitions each, and 100 there before");
    let refusals: Answers = all.into_iter().filter(|(code, _)| code.is_err()).collect();
    assert_all_refused(&refusals, 1, &[format!("its memory takes {REPLICAS}")]);
    wait_until("count of 1,500 replicas", || held(&broker) == 1500);

    let refused = ["broker 1 has 1500 replicas".to_owned(), "37 more".to_owned(), format!("takes {REPLICAS}")];
    assert_refused(&add_partitions(&mut client, "served", 137), &refused);
    assert_eq!(add_partitions(&mut client, "served", 136).0, Ok(()), "the last ones that fit");
    assert_eq!(ask_for(&mut client, "automatic"), Err(ErrorCode::PolicyViolation));
    // New groups can still start.
    let keys = vec![wire::text("group")];
    let find = FindCoordinatorRequest::default().with_coordinator_keys(keys);
    wait_until("coordinator", || {
        let found = client.call(find.clone()).expect("FindCoordinator is answered");
        errors::check(found.coordinators[0].error_code) == Ok(())
    });
    wait_until("count of the offsets topic", || held(&broker) == REPLICAS + 50);
    assert_eq!(broker.metric("millrace_replicas_max"), REPLICAS as f64);
    let status: serde_json::Value = serde_json::from_str(&broker.admin_get("/status").1).expect("JSON");
    assert_eq!(status["replicas"], serde_json::json!({ "held": REPLICAS + 50, "max": REPLICAS }));
    let resident_bytes = resident(&broker);
    assert!(resident_bytes < BUDGET + PROGRAM, "{resident_bytes} bytes of memory");

    // Half of the budget, which would fit half of the partitions.
    broker.set("memory.budget.bytes", &(BUDGET / 2).to_string());
    broker.restart();
    let told = broker.wait_for_log("warning", |log| log.contains("replicas of partitions"));
    let words = format!("holds {} replicas of partitions, but memory.budget.bytes is enough for 768", REPLICAS + 50);
    assert!(told.contains(&words), "{told}");
    let mut client = wire::connect(&broker);
    let answer = wire::produce(&mut client, "served", 99, wire::batch(&[b"after"]));
    assert_eq!((errors::check(answer.error_code), answer.base_offset), (Ok(()), 1));
    let fetched = client.fetch(wire::fetch_request("served", 99, 0, 0, 1)).expect("Fetch is answered");
    let partition = wire::only_partition(&fetched);
    assert_eq!(errors::check(partition.error_code), Ok(()));
    let records = partition.records.as_ref().map_or(0, |records| records.len());
    assert!(records > 0, "what was there is read");
    let refused = [format!("the cluster has {} partitions", REPLICAS + 50), "takes the metadata of 1260".to_owned()];
    assert_refused(&create_one(&mut client, "one-more", 1, 1), &refused);

    broker.set("memory.budget.bytes", &BUDGET.to_string());
    broker.restart();
    let mut client = wire::connect(&broker);
    assert_refused(&create_one(&mut client, "one-more", 100, 1), &[format!("takes {REPLICAS}")]);
    delete(&mut client, "served");
    assert_eq!(create_one(&mut client, "one-more", 86, 1).0, Ok(()), "136 less, and 50 of the offsets topic");
    assert_refused(&create_one(&mut client, "another", 1, 1), &[]);
}

#[test]
fn the_smallest_broker_of_a_cluster_gets_no_more_than_it_takes_whoever_is_asked() {
    const SMALL: usize = 2;
    let mut cluster = Cluster::start(3, &["--cores", "0"]);
    cluster.stop(SMALL);
    cluster.set(SMALL, "memory.budget.bytes", &(64u64 << 20).to_string());
    cluster.begin(SMALL);
    let mut client = wire::connect(cluster.broker(0));
    wait_until("three brokers", || wire::alive(&mut client) == 3);
    // It would get 100 partitions of each topic.
    let names: Vec<String> = (0..30).map(|topic| format!("everywhere-{topic}")).collect();
    let answers: Vec<Answers> = thread::scope(|scope| {
        let one = |at: usize| {
            let (mut client, names) = (wire::connect(cluster.broker(at)), &names[10 * at..10 * at + 10]);
            scope.spawn(move || create(&mut client, names.iter().cloned(), 100, 3))
        };
        let askers: Vec<_> = (0..3).map(one).collect();
        askers.into_iter().map(|asker| asker.join().expect("it is answered")).collect()
    });
    let answers: Answers = answers.concat();
    assert_eq!(answers.iter().filter(|(code, _)| code.is_ok()).count(), 7, "{answers:?}");
    let refused = ["broker 3 has 700 replicas".to_owned(), "100 more".to_owned(), "takes 768".to_owned()];
    let refusals: Answers = answers.into_iter().filter(|(code, _)| code.is_err()).collect();
    assert_all_refused(&refusals, 3, &refused);
    wait_until("count of 700 replicas", || held(cluster.broker(SMALL)) == 700);
    // A third of them would be 100, too.
    assert_eq!(create_one(&mut client, "elsewhere", 300, 1), (Ok(()), String::new()));
    let on_small = |client: &mut Client, topic: &str| {
        let partitions = wire::partitions(client, topic);
        partitions.iter().filter(|partition| partition.replica_nodes.iter().any(|node| node.0 == 3)).count()
    };
    assert_eq!(on_small(&mut client, "elsewhere"), 0);
    // This broker keeps the metadata of all partitions.
    let refused = ["the cluster has 1000 partitions".to_owned(), "broker 3 takes the metadata of 1260".to_owned()];
    assert_refused(&create_one(&mut client, "elsewhere-too", 261, 1), &refused);
    assert_eq!(create_one(&mut client, "elsewhere-too", 260, 1).0, Ok(()));
}
