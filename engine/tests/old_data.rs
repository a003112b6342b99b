//! Data directories that an earlier version wrote open, and everything that clients saw then is there.

mod support;

use std::{collections::BTreeMap, thread};

use net::{
    client::blocking::Client,
    errors::{self, ErrorCode},
    messages::{
        DescribeConfigsRequest, FindCoordinatorRequest, GroupId, InitProducerIdRequest, ListGroupsRequest,
        MetadataRequest, OffsetFetchRequest, describe_configs_request::DescribeConfigsResource,
        metadata_response::MetadataResponseTopic, offset_fetch_request::OffsetFetchRequestGroup,
    },
    records::{
        batch::{BatchHeader, Batches},
        build::BatchBuilder,
    },
};
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    message::Message,
};
use support::{
    PATIENCE,
    broker::{Broker, secret_file},
    clients::{self, Record},
    cluster::wait_until,
    fixture, wire,
};

/// Settings with which the fixtures were written, so that nothing in them ages.
const SETTINGS: [&str; 3] =
    ["wal.ring.bytes=16777216", "offsets.retention.minutes=2147483647", "producer.id.expiration.ms=9223372036854775"];

/// The brokers of a fixture, on addresses of their own. The rest of the cluster's identity is in their data.
struct Old {
    brokers: Vec<Broker>,
}

impl Old {
    fn open(fixture: &str, count: usize, cores: &str) -> Old {
        let mut brokers: Vec<Broker> = (0..count).map(|_| Broker::new(&["--cores", cores])).collect();
        let seed = |(at, broker): (usize, &Broker)| format!("{}@{}", at + 1, broker.peer());
        let seeds: Vec<String> = brokers.iter().enumerate().map(seed).collect();
        for (at, broker) in brokers.iter_mut().enumerate() {
            fixture::unpack(fixture, at + 1, &broker.data_dir());
            SETTINGS.iter().for_each(|setting| broker.add_flags(&["--set", setting]));
            if count > 1 {
                let (node, seeds) = ((at + 1).to_string(), seeds.join(","));
                broker.add_flags(&["--node-id", &node, "--seeds", &seeds, "--cluster-secret-file", &secret_file()]);
            }
        }
        let mut old = Old { brokers };
        old.begin();
        old
    }

    fn begin(&mut self) {
        self.brokers.iter_mut().for_each(Broker::spawn);
        self.brokers.iter_mut().for_each(Broker::wait_until_serving);
        self.await_leaders();
    }

    /// Stops all brokers at the same time.
    fn stop(&mut self) {
        self.brokers.iter().for_each(|broker| broker.signal(libc::SIGTERM));
        for broker in &mut self.brokers {
            let (status, output) = broker.wait_for_end();
            assert!(status.success(), "a broker ended with {status}:\n{output}");
        }
    }

    fn first(&self) -> &Broker {
        &self.brokers[0]
    }

    /// Waits until each partition has a leader, so that no client is refused later.
    fn await_leaders(&self) {
        for broker in &self.brokers {
            let mut client = wire::connect(broker);
            wait_until("leaders of all partitions", || {
                let topics = topics(&mut client);
                let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
                !topics.is_empty() && partitions.all(|partition| partition.error_code == 0)
            });
        }
    }

    /// A connection to the leader of a partition.
    fn leader(&self, topic: &str, partition: i32) -> Client {
        let mut client = wire::connect(self.first());
        let mut leader = -1;
        wait_until("leader", || {
            let partitions = wire::partitions(&mut client, topic);
            leader = partitions.get(partition as usize).map_or(-1, |partition| partition.leader_id.0);
            leader > 0
        });
        wire::connect(&self.brokers[leader as usize - 1])
    }

    /// A connection to the coordinator of a group.
    fn coordinator(&self, group: &str) -> Client {
        let mut client = wire::connect(self.first());
        let mut coordinator = -1;
        wait_until("coordinator", || {
            let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![wire::text(group)]);
            let found = client.call(request).expect("FindCoordinator is answered").coordinators.remove(0);
            coordinator = found.node_id.0;
            found.error_code == 0
        });
        wire::connect(&self.brokers[coordinator as usize - 1])
    }

    /// What clients see, in the form of the fixture's text, sorted.
    fn seen(&self) -> Vec<String> {
        let mut client = wire::connect(self.first());
        let mut lines = Vec::new();
        for topic in topics(&mut client) {
            let name = topic.name.as_ref().expect("a topic has a name").to_string();
            if name.starts_with("__") {
                continue;
            }
            lines.push(format!("topic {name} {}", topic.topic_id.simple()));
            lines.extend(
                settings(&mut client, &name).map(|(setting, value)| format!("setting {name} {setting} {value}")),
            );
            for partition in &topic.partitions {
                let replicas: Vec<String> = partition.replica_nodes.iter().map(|node| node.0.to_string()).collect();
                self.see_log(&name, partition.partition_index, &replicas.join(","), &mut lines);
            }
        }
        self.see_groups(&mut lines);
        lines.sort_unstable();
        lines
    }

    fn see_log(&self, topic: &str, partition: i32, replicas: &str, lines: &mut Vec<String>) {
        let config = clients::config(self.first());
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut bounds = None;
        wait_until("bounds of a log", || {
            bounds = consumer.fetch_watermarks(topic, partition, PATIENCE).ok();
            bounds.is_some()
        });
        let (start, end) = bounds.expect("just told");
        lines.push(format!("log {topic} {partition} {start} {end} {replicas}"));
        let records = clients::read_from(&config, topic, partition, start);
        lines.extend(records.iter().map(|(offset, record)| record_line(topic, partition, *offset, record)));
    }

    fn see_groups(&self, lines: &mut Vec<String>) {
        let list = |broker| wire::connect(broker).call(ListGroupsRequest::default()).expect("ListGroups is answered");
        let mut groups = BTreeMap::new();
        // Each broker lists the groups that it coordinates.
        wait_until("list of groups", || {
            let answers: Vec<_> = self.brokers.iter().map(list).collect();
            let listed = answers.iter().flat_map(|answer| &answer.groups);
            groups = listed.map(|group| (group.group_id.to_string(), group.protocol_type.to_string())).collect();
            // Until each coordinator has read its groups, the answer is an error.
            answers.iter().all(|answer| answer.error_code == 0) && groups.len() == 2
        });
        for (group, protocol) in groups {
            lines.push(format!("group {group} {}", if protocol.is_empty() { "-" } else { &protocol }));
            lines.extend(self.committed(&group));
        }
    }

    /// All offsets of a group.
    fn committed(&self, group: &str) -> Vec<String> {
        let mut lines = Vec::new();
        wait_until("committed offsets", || {
            let mut client = self.coordinator(group);
            let asked = OffsetFetchRequestGroup::default().with_group_id(GroupId(wire::text(group))).with_topics(None);
            let request = OffsetFetchRequest::default().with_groups(vec![asked]);
            let answer = client.call(request).expect("OffsetFetch is answered").groups.remove(0);
            for topic in &answer.topics {
                lines.extend(topic.partitions.iter().map(|at| {
                    assert_eq!(errors::check(at.error_code), Ok(()));
                    // confluent-kafka sends the zero at the end of a C string, and does not show it.
                    let metadata = at.metadata.as_deref().unwrap_or_default().trim_end_matches('\0');
                    let metadata = if metadata.is_empty() { "-" } else { metadata };
                    let (topic, partition) = (topic.name.as_str(), at.partition_index);
                    format!("committed {group} {topic} {partition} {} {metadata}", at.committed_offset)
                }));
            }
            match errors::check(answer.error_code) {
                Ok(()) => true,
                Err(ErrorCode::CoordinatorLoadInProgress | ErrorCode::NotCoordinator) => false,
                Err(error) => panic!("OffsetFetch: {error}"),
            }
        });
        lines
    }
}

fn topics(client: &mut Client) -> Vec<MetadataResponseTopic> {
    let request = MetadataRequest::default().with_topics(None);
    client.call(request).expect("Metadata is answered").topics
}

/// The settings that a topic has of its own.
fn settings(client: &mut Client, topic: &str) -> impl Iterator<Item = (String, String)> + use<> {
    const TOPIC: i8 = 2;
    const OF_THE_TOPIC: i8 = 1;
    let resource = DescribeConfigsResource::default().with_resource_type(TOPIC).with_resource_name(wire::text(topic));
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let described = client.call(request).expect("DescribeConfigs is answered").results.remove(0);
    assert_eq!(errors::check(described.error_code), Ok(()));
    let own = described.configs.into_iter().filter(|config| config.config_source == OF_THE_TOPIC);
    own.map(|config| (config.name.to_string(), config.value.unwrap_or_default().to_string()))
}

/// A length and a CRC-32C.
fn blob(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{}:{:08x}", bytes.len(), crc32c::crc32c(bytes)))
}

fn record_line(topic: &str, partition: i32, offset: i64, record: &Record) -> String {
    let headers: Vec<String> =
        record.headers.iter().map(|(name, value)| format!("{name}={}", blob(value.as_deref()))).collect();
    let headers = if headers.is_empty() { "-".to_owned() } else { headers.join(",") };
    let (key, value) = (blob(record.key.as_deref()), blob(record.value.as_deref()));
    format!("record {topic} {partition} {offset} {} {key} {value} {headers}", record.timestamp_ms)
}

/// What clients are expected to see.
struct Expected(Vec<String>);

impl Expected {
    fn of(fixture: &str) -> Expected {
        let mut lines = fixture::seen_then(fixture);
        lines.sort_unstable();
        Expected(lines)
    }

    fn assert_seen(&self, old: &Old, when: &str) {
        let seen = old.seen();
        let lacks: Vec<&String> = self.0.iter().filter(|line| !seen.contains(line)).collect();
        let new: Vec<&String> = seen.iter().filter(|line| !self.0.contains(line)).collect();
        assert!(lacks.is_empty() && new.is_empty(), "{when}: not there: {lacks:#?}\nthere instead: {new:#?}");
        assert_eq!(seen.len(), self.0.len(), "{when}: a line is there twice");
    }

    /// The partitions with the ends of their logs.
    fn logs(&self) -> Vec<(String, i32, i64)> {
        let logs = self.0.iter().filter_map(|line| line.strip_prefix("log "));
        let of = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[0].to_owned(), words[1].parse().expect("a partition"), words[3].parse().expect("an end"))
        };
        logs.map(of).collect()
    }

    /// The committed offset of a partition. `None`: the group has none.
    fn committed(&self, group: &str, topic: &str, partition: i32) -> Option<i64> {
        let start = format!("committed {group} {topic} {partition} ");
        let rest = self.0.iter().find_map(|line| line.strip_prefix(&start))?;
        rest.split(' ').next()?.parse().ok()
    }

    /// A record was written at the end of a log.
    fn write(&mut self, topic: &str, partition: i32, offset: i64, record: &Record) {
        let start = format!("log {topic} {partition} ");
        let log = self.0.iter_mut().find(|line| line.starts_with(&start)).expect("the partition is known");
        let mut words: Vec<String> = log.split(' ').map(str::to_owned).collect();
        assert_eq!(words[4], offset.to_string(), "{topic}/{partition}: the record is at the log's end");
        words[4] = (offset + 1).to_string();
        *log = words.join(" ");
        self.0.push(record_line(topic, partition, offset, record));
    }
}

/// The header of the last batch of a log that ends at `end`.
fn last_batch(old: &Old, topic: &str, partition: i32, end: i64) -> BatchHeader {
    let mut last = None;
    // Leaders may change while the brokers have just started.
    wait_until("record at the log's end", || {
        let request = wire::fetch_request(topic, partition, end - 1, 0, 1);
        let answer = old.leader(topic, partition).fetch(request).expect("Fetch is answered");
        let records = answer.responses[0].partitions[0].records.clone().unwrap_or_default();
        last = Batches::new(records).last();
        last.is_some()
    });
    last.expect("just read").expect("a batch is whole").0
}

/// The producer of a log's last batch sends that batch again, and then its next one.
fn continue_producer(old: &Old, expected: &mut Expected, topic: &str, partition: i32, end: i64) -> i64 {
    let last = last_batch(old, topic, partition, end);
    assert!(last.is_idempotent(), "{topic}/{partition}: {last:?}");
    let record = Record::of(format!("{topic}/{partition} by a producer of then"));
    let produce = |sequence, count| {
        let mut batch = BatchBuilder::default().producer(last.producer_id, last.producer_epoch, sequence);
        (0..count).for_each(|_| batch.push(record.timestamp_ms, None, record.value.as_deref()));
        let batch = batch.finish();
        let mut result = Err(ErrorCode::NotLeaderOrFollower);
        wait_until("answer of the leader", || {
            let answer = wire::produce(&mut old.leader(topic, partition), topic, partition, batch.clone());
            result = errors::check(answer.error_code).map(|()| answer.base_offset);
            result != Err(ErrorCode::NotLeaderOrFollower)
        });
        result
    };
    assert_eq!(
        produce(last.base_sequence, last.record_count),
        Ok(last.base_offset),
        "{topic}/{partition}: a duplicate"
    );
    assert_eq!(produce(last.last_sequence() + 1, 1), Ok(end), "{topic}/{partition}: the next batch");
    expected.write(topic, partition, end, &record);
    last.producer_id
}

/// The broker hands out no producer id again.
fn new_producer_is_another(old: &Old, producers: &[i64]) {
    let request = InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(60_000);
    let answer = wire::connect(old.first()).call(request).expect("InitProducerId is answered");
    assert_eq!(errors::check(answer.error_code), Ok(()));
    let (id, highest) = (answer.producer_id.0, producers.iter().max().expect("there were some"));
    assert!(id > *highest, "the id {id} is new, {producers:?} are not");
}

/// A new member of a group reads each partition from the group's committed offset on.
fn group_goes_on(old: &Old, expected: &Expected, group: &str, topic: &str, partitions: i32) {
    let consumer = clients::consumer(&clients::config(old.first()), group);
    consumer.subscribe(&[topic]).expect("a subscription");
    let mut first = BTreeMap::new();
    while first.len() < partitions as usize {
        let message = clients::next(&consumer).expect("no end was asked for");
        first.entry(message.partition()).or_insert(message.offset());
    }
    for (partition, offset) in first {
        assert_eq!(offset, expected.committed(group, topic, partition).unwrap_or(0), "{group} at {topic}/{partition}");
    }
}

/// Opens a fixture twice. In between, clients write, read and end their groups.
fn opens(fixture: &str, count: usize, cores: &str) {
    let mut expected = Expected::of(fixture);
    let mut old = Old::open(fixture, count, cores);
    expected.assert_seen(&old, "after the first start");

    let plain: Vec<_> = expected.logs().into_iter().filter(|(topic, ..)| topic == "plain").collect();
    let continued =
        |(topic, partition, end): &(String, i32, i64)| continue_producer(&old, &mut expected, topic, *partition, *end);
    let producers: Vec<i64> = plain.iter().map(continued).collect();
    new_producer_is_another(&old, &producers);
    for (topic, partition, end) in expected.logs() {
        let mut record = Record::of(format!("{topic}/{partition} by this version"));
        let offsets =
            clients::offsets(clients::produce(&clients::config(old.first()), &topic, partition, &[record.clone()]));
        assert_eq!(offsets, [end], "{topic}/{partition}");
        if topic == "stamped" {
            // The broker's clock stamps these records.
            let read = clients::read_from(&clients::config(old.first()), &topic, partition, end);
            record.timestamp_ms = read[0].1.timestamp_ms;
        }
        expected.write(&topic, partition, end, &record);
    }
    expected.assert_seen(&old, "after new records");
    group_goes_on(&old, &expected, "workers", "plain", plain.len() as i32);

    old.stop();
    old.begin();
    expected.assert_seen(&old, "after the second start");
}

/// As many cores as the fixtures of one broker have, or as there are.
fn two_cores() -> &'static str {
    match thread::available_parallelism() {
        Ok(cpus) if cpus.get() > 1 => "0,1",
        _ => "0",
    }
}

#[test]
fn data_of_a_broker_that_was_stopped_open() {
    opens("one-stopped", 1, two_cores());
}

#[test]
fn data_of_a_broker_that_was_killed_open() {
    opens("one-killed", 1, two_cores());
}

#[test]
fn data_of_a_broker_that_was_killed_open_on_another_number_of_cores() {
    opens("one-killed", 1, "0");
}

#[test]
fn data_of_three_brokers_that_were_stopped_open() {
    opens("three-stopped", 3, "0");
}

#[test]
fn data_of_three_brokers_that_were_killed_open() {
    opens("three-killed", 3, "0");
}
