//! How large answers about metadata become: memory for large ones is held before they are made.

use super::{Pending, Reply, metadata::DESCRIBED_PARTITIONS_MAX};
use crate::core::Core;
use net::codec::{produce::TopicRef, request::Request};
use std::{rc::Rc, time::Duration};

/// Answers that are smaller go uncounted until they are queued; each connection makes one at a time.
const LIGHT_BYTES: usize = 64 << 10;
/// What a partition takes in an answer while that is made, and a topic besides.
const PARTITION_BYTES: usize = 300;
const TOPIC_BYTES: usize = 200;
/// What a setting takes, and how many a topic or a broker has, about.
const SETTING_BYTES: usize = 250;
const SETTINGS: usize = 64;
/// What is known of a group, about.
const GROUP_BYTES: usize = 16 << 10;
/// How long an answer waits for memory before the connection is closed: longer than clients do, for who holds memory and does not move is
/// closed much sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// About how many bytes an answer takes while it is made.
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

/// The answer to this request is made once there is memory for it, if it is large.
pub fn weigh(core: &Rc<Core>, request: &Request) -> impl FnOnce(Pending) -> Pending + use<> {
    let (core, bytes) = (core.clone(), answer_bytes(core, request));
    move |answer| if bytes > LIGHT_BYTES { Box::pin(within(core, bytes, answer)) } else { answer }
}

async fn within(core: Rc<Core>, bytes: usize, answer: Pending) -> Reply {
    let Some(held) = core.memory.answers.hold(&core.metrics, bytes, PATIENCE).await else {
        let seconds = PATIENCE.as_secs();
        let why = format!(
            "for {seconds} s there was no memory for its answer of about {bytes} bytes, since others do not take theirs; ask for less \
             at once, or raise memory.budget.bytes"
        );
        return Reply::HangUp { why };
    };
    match answer.await {
        Reply::Send(response) => Reply::SendHeld(response, held),
        other => other,
    }
}
