//! Clients that change topics through any broker while brokers may fail, and that record the answers they get.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fastrand::Rng;
use net::client::blocking::{Client, ClientError};
use net::errors::{self, ErrorCode};
use net::messages::create_partitions_request::CreatePartitionsTopic;
use net::messages::create_topics_request::CreatableTopic;
use net::messages::delete_topics_request::DeleteTopicState;
use net::messages::describe_configs_request::DescribeConfigsResource;
use net::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use net::messages::metadata_request::MetadataRequestTopic;
use net::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    IncrementalAlterConfigsRequest, MetadataRequest,
};
use net::{StrBytes, Uuid};

use super::PATIENCE;
use super::cluster::{Cluster, wait_until};
use super::metadata_history::{Change, Event, History, Outcome, Shown, Topic};
use super::wire::{text, topic_name};

/// The time that a broker gets for one change. The time that a client waits for the answer.
const CHANGE_MS: i32 = 4000;
const ANSWER: Duration = Duration::from_secs(8);
/// Pause between two changes of one client, and between two attempts to reach a broker that is down.
const PAUSE: Duration = Duration::from_millis(20);
/// A client takes another name after this number of events, or of changes with an unknown outcome.
const EVENTS_MAX: usize = 12;
const UNKNOWN_MAX: usize = 3;

/// The setting that the clients change, the type of its resource, and the source of a topic's own value (Kafka's
/// `ConfigResource.Type` and `ConfigSource`).
const SETTING: StrBytes = StrBytes::from_static_str("retention.ms");
const RESOURCE_TOPIC: i8 = 2;
const SOURCE_TOPIC: i8 = 1;

/// Running clients.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    history: Mutex<History>,
    done: AtomicBool,
}

impl Clients {
    pub fn start(bootstraps: &[String], count: usize, rng: &mut Rng) -> Clients {
        let shared = Arc::new(Shared::default());
        let start = |number| {
            let (shared, bootstraps, rng) = (shared.clone(), bootstraps.to_vec(), rng.fork());
            thread::spawn(move || One { shared, bootstraps, rng, number }.work())
        };
        let threads = (0..count).map(start).collect();
        Clients { shared, threads }
    }

    pub fn acked(&self) -> usize {
        self.shared.history.lock().unwrap().count(|outcome| matches!(outcome, Outcome::Acked(_)))
    }

    /// Waits until this number of further changes is acknowledged.
    pub fn wait_for_acks(&self, more: usize) {
        let target = self.acked() + more;
        wait_until("further acks", || self.acked() >= target);
    }

    /// The answers that the clients got until now.
    pub fn history(&self) -> History {
        self.shared.history.lock().unwrap().clone()
    }

    pub fn stop(self) -> History {
        self.shared.done.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().expect("a client goes on whatever it is told"));
        self.shared.history.lock().unwrap().clone()
    }
}

struct One {
    shared: Arc<Shared>,
    bootstraps: Vec<String>,
    rng: Rng,
    number: usize,
}

impl One {
    fn work(mut self) {
        let mut clients: Vec<Option<Client>> = self.bootstraps.iter().map(|_| None).collect();
        let mut names = 0;
        while !self.is_done() {
            names += 1;
            let name = format!("client-{}-{names}", self.number);
            let (mut events, mut unknown) = (0, 0);
            while events < EVENTS_MAX && unknown < UNKNOWN_MAX && !self.is_done() {
                let broker = self.rng.usize(..clients.len());
                let slot = &mut clients[broker];
                if slot.is_none() {
                    *slot = Client::connect(&self.bootstraps[broker], "cluster", ANSWER).ok();
                }
                if let Some(client) = slot {
                    // The first change is a creation. Otherwise most changes would be rejected.
                    let kind = if events == 0 { 0 } else { self.rng.u8(..12) };
                    let (event, goes_on) = step(client, &name, kind, &mut self.rng);
                    if !goes_on {
                        *slot = None;
                    }
                    if let Some(event) = event {
                        events += 1;
                        let is_unknown = matches!(event, Event::Tried { outcome: Outcome::Unknown, .. });
                        unknown += usize::from(is_unknown);
                        self.shared.history.lock().unwrap().record(&name, broker, event);
                    }
                }
                thread::sleep(PAUSE);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.shared.done.load(Ordering::Relaxed)
    }
}

/// One change or read. Returns the event to record, and whether the connection is still usable.
fn step(client: &mut Client, name: &str, kind: u8, rng: &mut Rng) -> (Option<Event>, bool) {
    let change = match kind {
        0 | 1 => Change::Create { partitions: rng.i32(1..3) },
        2 | 3 => Change::Delete,
        4 | 5 => Change::Grow { to: rng.i32(2..7) },
        6..=8 => Change::Set { value: rng.u32(1_000..).to_string() },
        _ => {
            return match see(client, Some(name)) {
                Ok(Some(shown)) => (Some(Event::Saw(shown.get(name).cloned())), true),
                Ok(None) => (None, true),
                Err(_) => (None, false),
            };
        }
    };
    let answer = try_change(client, name, &change);
    let goes_on = answer.is_ok();
    let outcome = match answer {
        Ok((Ok(()), id)) => Outcome::Acked(id),
        Ok((
            Err(ErrorCode::TopicAlreadyExists | ErrorCode::UnknownTopicOrPartition | ErrorCode::InvalidPartitions),
            _,
        )) => Outcome::Refused,
        Ok((
            Err(
                ErrorCode::NotController
                | ErrorCode::RequestTimedOut
                | ErrorCode::KafkaStorageError
                | ErrorCode::BrokerNotAvailable,
            ),
            _,
        ))
        | Err(_) => Outcome::Unknown,
        Ok((Err(other), _)) => panic!("{name}: {change:?} was answered {other:?}"),
    };
    (Some(Event::Tried { change, outcome }), goes_on)
}

type Answered = (Result<(), ErrorCode>, Option<Uuid>);

/// Tries one change and returns the outcome. If it created a topic, also returns the topic's id.
pub fn try_change(client: &mut Client, name: &str, change: &Change) -> Result<Answered, ClientError> {
    let (code, id) = match change {
        Change::Create { partitions } => {
            let topic = CreatableTopic::default()
                .with_name(topic_name(name))
                .with_num_partitions(*partitions)
                .with_replication_factor(1);
            let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(CHANGE_MS);
            let answer = client.call(request)?;
            (answer.topics[0].error_code, Some(answer.topics[0].topic_id))
        }
        Change::Delete => {
            let topics = vec![DeleteTopicState::default().with_name(Some(topic_name(name)))];
            let request = DeleteTopicsRequest::default().with_topics(topics).with_timeout_ms(CHANGE_MS);
            (client.call(request)?.responses[0].error_code, None)
        }
        Change::Grow { to } => {
            let topic =
                CreatePartitionsTopic::default().with_name(topic_name(name)).with_count(*to).with_assignments(None);
            let request = CreatePartitionsRequest::default().with_topics(vec![topic]).with_timeout_ms(CHANGE_MS);
            (client.call(request)?.results[0].error_code, None)
        }
        Change::Set { value } => {
            let config = AlterableConfig::default().with_name(SETTING).with_value(Some(text(value)));
            let resource = AlterConfigsResource::default()
                .with_resource_type(RESOURCE_TOPIC)
                .with_resource_name(text(name))
                .with_configs(vec![config]);
            let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
            (client.call(request)?.responses[0].error_code, None)
        }
    };
    Ok((errors::check(code), id))
}

/// Sets `metadata.acks` for all brokers.
pub fn set_acks(client: &mut Client, value: &str) {
    let config = AlterableConfig::default().with_name(text("metadata.acks")).with_value(Some(text(value)));
    // The settings of brokers (Kafka's `ConfigResource.Type`), with an empty name: those of all brokers.
    let resource = AlterConfigsResource::default().with_resource_type(4).with_configs(vec![config]);
    let answer = client.call(IncrementalAlterConfigsRequest::default().with_resources(vec![resource]));
    let answer = answer.expect("an answer");
    assert_eq!(answer.responses[0].error_code, errors::NONE, "{:?}", answer.responses[0].error_message);
}

/// Reads one topic, or all, from a broker. `None`: the broker may not answer now.
pub fn see(client: &mut Client, name: Option<&str>) -> Result<Option<Shown>, ClientError> {
    let asked = name.map(|name| vec![MetadataRequestTopic::default().with_name(Some(topic_name(name)))]);
    let request = MetadataRequest::default().with_topics(asked).with_allow_auto_topic_creation(false);
    let mut shown = Shown::new();
    let told = client.call(request)?;
    assert_eq!(told.error_code, errors::NONE);
    for topic in told.topics {
        match errors::check(topic.error_code) {
            Ok(()) => {}
            Err(ErrorCode::UnknownTopicOrPartition) => continue,
            Err(_) => return Ok(None),
        }
        let name = topic.name.expect("a topic that is there has a name").0.as_str().to_owned();
        let partitions = topic.partitions.len() as i32;
        shown.insert(name, Topic { id: Some(topic.topic_id), partitions, setting: None });
    }
    let resource = |name: &String| {
        DescribeConfigsResource::default()
            .with_resource_type(RESOURCE_TOPIC)
            .with_resource_name(text(name))
            .with_configuration_keys(Some(vec![SETTING]))
    };
    let request = DescribeConfigsRequest::default().with_resources(shown.keys().map(resource).collect());
    for result in client.call(request)?.results {
        if result.error_code != errors::NONE {
            return Ok(None);
        }
        let topic = shown.get_mut(result.resource_name.as_str()).expect("one that was asked for");
        let own = result.configs.into_iter().find(|config| config.config_source == SOURCE_TOPIC);
        topic.setting = own.and_then(|config| Some(config.value?.as_str().to_owned()));
    }
    Ok(Some(shown))
}

/// The topics that every broker shows, once all show the same. If they never do: the last ones when patience runs out.
pub fn converged(cluster: &Cluster) -> Vec<Shown> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let look = |i: usize| {
            let mut client = Client::connect(&cluster.broker(i).bootstrap(), "judge", PATIENCE).ok()?;
            see(&mut client, None).ok()?
        };
        let shown: Option<Vec<Shown>> = (0..cluster.len()).map(look).collect();
        let late = Instant::now() >= give_up;
        match shown {
            Some(shown) if late || shown.windows(2).all(|two| two[0] == two[1]) => return shown,
            None => assert!(!late, "not every broker tells what it shows"),
            Some(_) => {}
        }
        thread::sleep(PAUSE);
    }
}
