//! Estimates the size of answers about metadata. Memory for large ones is held before they are built.

use super::{Pending, Reply, metadata::DESCRIBED_PARTITIONS_MAX};
use crate::core::Core;
use net::codec::{produce::TopicRef, request::Request};
use std::{rc::Rc, time::Duration};

/// Smaller answers are not counted until they are queued. Each connection builds one at a time.
const LIGHT_BYTES: usize = 64 << 10;
/// Bytes of a partition in an answer under construction, and of a topic in addition.
const PARTITION_BYTES: usize = 300;
const TOPIC_BYTES: usize = 200;
/// Approximate bytes of a setting, and the number of settings of a topic or a broker.
const SETTING_BYTES: usize = 250;
const SETTINGS: usize = 64;
/// Approximate bytes of one group in an answer.
const GROUP_BYTES: usize = 16 << 10;
/// How long an answer waits for memory before the connection is closed. This is longer than clients wait: a
/// connection that holds memory and stalls is closed much sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// Approximate bytes of an answer under construction.
fn answer_bytes(core: &Core, request: &Request) -> usize {
    match request {
        Request::Metadata(request) => match &request.topics {
            None => all_topics(core),
            Some(topics) => {
                let named = topics.iter().map(|topic| match &topic.name {
                    Some(name) if topic.topic_id.is_nil() => one_topic(core, &TopicRef::Name(name.0.clone())),
                    _ => one_topic(core, &TopicRef::Id(topic.topic_id)),
                });
                named.sum::<usize>().max(if topics.is_empty() { all_topics(core) } else { 0 })
            }
        },
        Request::DescribeTopicPartitions(request) => {
            let partitions = request.response_partition_limit.clamp(1, DESCRIBED_PARTITIONS_MAX) as usize;
            partitions * (PARTITION_BYTES + TOPIC_BYTES)
        }
        Request::DescribeConfigs(request) => {
            let keys = request.resources.iter().map(|resource| match &resource.configuration_keys {
                Some(keys) if !keys.is_empty() => keys.len(),
                _ => SETTINGS,
            });
            keys.sum::<usize>() * SETTING_BYTES
        }
        Request::DescribeGroups(request) => request.groups.len() * GROUP_BYTES,
        Request::OffsetFetch(request) => request.groups.len() * GROUP_BYTES,
        _ => 0,
    }
}

fn all_topics(core: &Core) -> usize {
    core.view(|view| view.partition_count() * PARTITION_BYTES + view.topic_count() * TOPIC_BYTES)
}

fn one_topic(core: &Core, topic: &TopicRef) -> usize {
    TOPIC_BYTES + core.find_topic(topic).map_or(0, |topic| topic.partitions.len() * PARTITION_BYTES)
}

/// Delays a large answer until there is memory for it.
pub fn weigh(core: &Rc<Core>, request: &Request) -> impl FnOnce(Pending) -> Pending + use<> {
    let (core, bytes) = (core.clone(), answer_bytes(core, request));
    move |answer| if bytes > LIGHT_BYTES { Box::pin(within(core, bytes, answer)) } else { answer }
}

async fn within(core: Rc<Core>, bytes: usize, answer: Pending) -> Reply {
    let Some(held) = core.memory.answers.hold(&core.metrics, bytes, PATIENCE).await else {
        let seconds = PATIENCE.as_secs();
        let why = format!(
            "for {seconds} s there was no memory for its answer of about {bytes} bytes, because other clients do not \
             read theirs; ask for less at once, or raise memory.budget.bytes"
        );
        return Reply::HangUp { why };
    };
    match answer.await {
        Reply::Send(response) => Reply::SendHeld(response, held),
        other => other,
    }
}
