//! Estimates the size of answers that contain no records. Memory for large ones is held before they are built, and
//! those above [`largest`] are not built at all.
//!
//! The estimates count an answer twice, decoded and encoded, since both are there for a moment.

use super::{
    configs::{RESOURCE_BROKER, RESOURCE_TOPIC},
    metadata::DESCRIBED_PARTITIONS_MAX,
    timeout_of,
};
use crate::{
    config::{SETTINGS, topic},
    connection::reply::Reply,
    core::Core,
    long_work::Work,
    memory::{ALONE_BYTES_MAX, Budget, Held},
};
use net::{
    StrBytes,
    codec::{produce::TopicRef, request::Request, response::Response},
    messages::{DescribeConfigsRequest, DescribeTopicPartitionsRequest, MetadataRequest},
};
use std::{rc::Rc, time::Duration};

/// Smaller answers are not counted until they are queued. Each connection builds one at a time.
const LIGHT_BYTES: usize = 64 << 10;
/// Approximate bytes of a partition in an answer, and of a topic in addition.
const PARTITION_BYTES: usize = 300;
const TOPIC_BYTES: usize = 200;
/// Approximate bytes of a setting, of its documentation and of its synonyms.
const SETTING_BYTES: usize = 320;
const DOCUMENTATION_BYTES: usize = 300;
const SYNONYMS_BYTES: usize = 250;
/// Approximate bytes of a setting in the answer to CreateTopics.
const CREATED_SETTING_BYTES: usize = 240;
/// Approximate bytes of a partition's offset, and of anything that may be refused with a message. The message may
/// repeat the name.
const OFFSET_BYTES: usize = 200;
const NAMED_BYTES: usize = 400;
const NAME_COPIES: usize = 3;
/// Approximate bytes of a coordinator's address.
const COORDINATOR_BYTES: usize = 300;
/// How long an answer waits for memory before the connection is closed. This is longer than clients wait: a
/// connection that holds memory and stalls is closed much sooner.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for requests that change something.
const CHANGE_PATIENCE: Duration = Duration::from_secs(5);

/// The memory that an answer may take, held until it is sent.
pub struct Allowance {
    held: Option<Held>,
    budget: Budget,
}

impl Allowance {
    /// The rest of it, for cores that build the answer.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    pub fn reply(self, response: impl Into<Response>) -> Reply {
        match self.held {
            Some(held) => Reply::SendHeld(response.into(), held),
            None => Reply::Send(response.into()),
        }
    }
}

/// The largest answer: one core's share, but at least [`ALONE_BYTES_MAX`] and everything about all topics. An answer
/// larger than the share waits until it is the only one of its core.
fn largest(core: &Core) -> usize {
    let settings = core.view(|view| view.topic_count()) * topic::settings_max();
    let everything = all_topics(core) + settings * (SETTING_BYTES + DOCUMENTATION_BYTES + SYNONYMS_BYTES);
    core.memory.answers.max().max(ALONE_BYTES_MAX).max(everything)
}

/// Why there is no memory for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMemory {
    #[error(
        "its answer would take about {bytes} bytes, and one may take {largest}; ask for less at once, or raise \
         memory.budget.bytes"
    )]
    TooLarge { bytes: usize, largest: usize },
    #[error(
        "for {} ms there was no memory for its answer of about {bytes} bytes, because other clients do not read theirs; \
         ask for less at once, or raise memory.budget.bytes",
        within.as_millis()
    )]
    TimedOut { bytes: usize, within: Duration },
}

/// Waits until there is memory for an answer of so many bytes.
pub async fn allow(core: &Core, bytes: usize, within: Duration) -> Result<Allowance, NoMemory> {
    let budget = Budget::new(bytes + LIGHT_BYTES);
    if bytes <= LIGHT_BYTES {
        return Ok(Allowance { held: None, budget });
    }
    let largest = largest(core);
    if bytes > largest {
        return Err(NoMemory::TooLarge { bytes, largest });
    }
    match core.memory.answers.hold(&core.metrics, bytes, within).await {
        Some(held) => Ok(Allowance { held: Some(held), budget }),
        None => Err(NoMemory::TimedOut { bytes, within }),
    }
}

/// Builds an answer of so many bytes once there is memory for it. `Err`: why there will be none.
pub async fn send(
    core: &Core,
    bytes: usize,
    within: Duration,
    build: impl FnOnce() -> Response,
) -> Result<Reply, NoMemory> {
    if bytes <= LIGHT_BYTES {
        return Ok(Reply::Send(build()));
    }
    let allowance = allow(core, bytes, within).await?;
    Ok(allowance.reply(build()))
}

/// Holds memory for the answer to a request, if it may be large.
pub async fn allow_for(core: &Rc<Core>, request: &Request, version: i16) -> Result<Allowance, NoMemory> {
    let bytes = answer_bytes(core, request, version).await;
    allow(core, bytes, patience(request)).await
}

/// How long a request waits for memory. A change must not be made long after its client has given up.
fn patience(request: &Request) -> Duration {
    let of_change = |timeout_ms: i32| timeout_of(timeout_ms).min(CHANGE_PATIENCE);
    match request {
        Request::CreateTopics(request) => of_change(request.timeout_ms),
        Request::DeleteTopics(request) => of_change(request.timeout_ms),
        Request::CreatePartitions(request) => of_change(request.timeout_ms),
        Request::ElectLeaders(request) => of_change(request.timeout_ms),
        Request::IncrementalAlterConfigs(_) => CHANGE_PATIENCE,
        _ => PATIENCE,
    }
}

/// Approximate bytes of the answer to a request.
async fn answer_bytes(core: &Rc<Core>, request: &Request, version: i16) -> usize {
    match request {
        Request::Metadata(request) => of_metadata(core, request).await,
        Request::DescribeTopicPartitions(request) => of_partitions(core, request),
        Request::DescribeConfigs(request) => of_configs(core, request).await,
        Request::CreateTopics(request) => {
            let settings = if version < 5 { 0 } else { topic::settings_max() * CREATED_SETTING_BYTES };
            named(request.topics.iter().map(|topic| &topic.name.0)) + request.topics.len() * settings
        }
        Request::DeleteTopics(request) => {
            let by_name = request.topics.iter().filter_map(|topic| topic.name.as_ref());
            named(by_name.chain(&request.topic_names).map(|name| &name.0)) + request.topics.len() * NAMED_BYTES
        }
        Request::CreatePartitions(request) => named(request.topics.iter().map(|topic| &topic.name.0)),
        Request::IncrementalAlterConfigs(request) => {
            named(request.resources.iter().map(|resource| &resource.resource_name))
        }
        Request::ElectLeaders(request) => match &request.topic_partitions {
            Some(topics) => {
                let of = |name: &StrBytes| NAMED_BYTES + NAME_COPIES * name.len();
                topics.iter().map(|topic| of(&topic.topic.0) * (1 + topic.partitions.len())).sum()
            }
            None => core.view(|view| view.partition_count()) * PARTITION_BYTES,
        },
        Request::ListOffsets(request) => {
            request.topics.iter().map(|topic| TOPIC_BYTES + topic.partitions.len() * OFFSET_BYTES).sum()
        }
        Request::OffsetForLeaderEpoch(request) => {
            request.topics.iter().map(|topic| TOPIC_BYTES + topic.partitions.len() * OFFSET_BYTES).sum()
        }
        Request::DescribeQuorum(request) => {
            request.topics.iter().map(|topic| TOPIC_BYTES + topic.partitions.len() * PARTITION_BYTES).sum()
        }
        Request::FindCoordinator(request) => request.coordinator_keys.len() * COORDINATOR_BYTES,
        _ => 0,
    }
}

fn named<'a>(names: impl Iterator<Item = &'a StrBytes>) -> usize {
    names.map(|name| NAMED_BYTES + NAME_COPIES * name.len()).sum()
}

async fn of_metadata(core: &Rc<Core>, request: &MetadataRequest) -> usize {
    let all = all_topics(core);
    let Some(topics) = request.topics.as_ref().filter(|topics| !topics.is_empty()) else { return all };
    let (mut work, mut known, mut names) = (Work::on(core), 0, 0);
    for topic in topics {
        work.entry().await;
        known += match &topic.name {
            Some(name) if topic.topic_id.is_nil() => partitions_of(core, &TopicRef::Name(name.0.clone())),
            _ => partitions_of(core, &TopicRef::Id(topic.topic_id)),
        };
        names += TOPIC_BYTES + topic.name.as_ref().map_or(0, |name| name.len());
    }
    // Each topic is described once, however often it is named.
    names + known.min(all)
}

/// A topic has at least one partition. An unknown one has none, and does not count for the limit.
fn of_partitions(core: &Core, request: &DescribeTopicPartitionsRequest) -> usize {
    let limit = request.response_partition_limit.clamp(1, DESCRIBED_PARTITIONS_MAX) as usize;
    let partitions = limit.min(core.view(|view| view.partition_count()));
    let names = request.topics.iter().map(|topic| TOPIC_BYTES + topic.name.len()).sum::<usize>();
    let topics = if request.topics.is_empty() { partitions * TOPIC_BYTES } else { names };
    partitions * PARTITION_BYTES + topics
}

async fn of_configs(core: &Rc<Core>, request: &DescribeConfigsRequest) -> usize {
    let setting = SETTING_BYTES
        + if request.include_documentation { DOCUMENTATION_BYTES } else { 0 }
        + if request.include_synonyms { SYNONYMS_BYTES } else { 0 };
    let (mut work, mut bytes) = (Work::on(core), 0);
    for resource in &request.resources {
        work.entry().await;
        let all = match resource.resource_type {
            RESOURCE_TOPIC if core.view(|view| view.topic(&resource.resource_name).is_some()) => topic::settings_max(),
            RESOURCE_BROKER => SETTINGS.len(),
            _ => 0,
        };
        let count = match &resource.configuration_keys {
            Some(keys) if !keys.is_empty() => keys.len().min(all),
            _ => all,
        };
        bytes += NAMED_BYTES + NAME_COPIES * resource.resource_name.len() + count * setting;
    }
    bytes
}

fn all_topics(core: &Core) -> usize {
    core.view(|view| view.partition_count() * PARTITION_BYTES + view.topic_count() * TOPIC_BYTES)
}

fn partitions_of(core: &Core, topic: &TopicRef) -> usize {
    core.find_topic(topic).map_or(0, |topic| topic.partitions.len() * PARTITION_BYTES)
}
