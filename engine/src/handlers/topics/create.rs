//! CreateTopics: its answer has the same form for a created topic and for one that was only validated. Creation
//! itself is in [`crate::handlers::topics`].

use super::{
    change, check_new_topic, collisions,
    names::{self, Alike},
    room::Asked,
    take_repeats,
};
use crate::handlers::refusal::{self, Refusal};
use crate::{
    cluster::meta,
    config::{Described, topic as config_topic},
    core::Core,
    long_work::Work,
};
use consensus::metadata::{Command, Outcome};
use net::{
    StrBytes, Uuid,
    messages::{
        CreateTopicsRequest, CreateTopicsResponse,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
    },
};
use std::{collections::BTreeMap, rc::Rc};

/// An answer has this many settings for each topic.
fn settings(version: i16) -> usize {
    if version < 5 { 0 } else { config_topic::settings_max() }
}

pub async fn create(core: &Rc<Core>, mut request: CreateTopicsRequest, version: i16) -> CreateTopicsResponse {
    let mut work = Work::on(core);
    let repeats = take_repeats(&mut work, &mut request.topics, |topic| topic.name.clone()).await;
    let (mut alike, mut may_collide) = (Alike::default(), false);
    for topic in &request.topics {
        work.entry().await;
        alike.add(topic.name.as_str());
        may_collide |= collisions::is_new_and_possible(core, &topic.name);
    }
    // Only the newest view shows for certain which names are taken.
    let newest = if may_collide { meta::linearize(core).await.map_err(Refusal::from) } else { Ok(()) };
    let room = Asked::default();
    let check_one = |core: &Core, topic: &CreatableTopic| {
        if repeats.contains(&topic.name) {
            return Err(names::twice());
        }
        let command = check_new_topic(core, topic, &room)?;
        if names::may_collide(&topic.name) {
            newest.clone()?;
            let name = topic.name.as_str();
            collisions::check(core, name)?;
            if let Some(earlier) = alike.earlier(name) {
                return Err(names::collision(name, earlier));
            }
        }
        Ok(command)
    };
    let mut results = Vec::with_capacity(request.topics.len());
    if request.validate_only {
        for checked in refusal::check(&mut work, &request.topics, check_one).await {
            work.entry().await;
            results.push(checked.map(Made::would_be));
        }
    } else {
        for result in change(&mut work, &request.topics, check_one, request.timeout_ms).await {
            work.entry().await;
            results.push(result.map(|(_, outcome)| Made::is(outcome)));
        }
    }
    let mut topics = Vec::with_capacity(results.len());
    for (topic, result) in request.topics.into_iter().zip(results) {
        work.entries(1 + settings(version)).await;
        topics.push(topic_result(core, topic, result, version));
    }
    CreateTopicsResponse::default().with_topics(topics)
}

/// A topic that was created, or could have been if the request had not asked for validation only. The answer is the
/// same for both, except that the latter has no id.
struct Made {
    id: Uuid,
    partitions: usize,
    replicas: usize,
    configs: BTreeMap<String, String>,
}

impl Made {
    fn is(outcome: Outcome) -> Made {
        let Outcome::TopicCreated(topic) = outcome else { unreachable!("{outcome:?} creates no topic") };
        Made {
            id: topic.id,
            partitions: topic.partitions.len(),
            replicas: topic.partitions[0].replicas.len(),
            configs: topic.configs.clone(),
        }
    }

    fn would_be(command: Command) -> Made {
        let Command::CreateTopic { replicas, configs, .. } = command else {
            unreachable!("{command:?} creates no topic")
        };
        Made { id: Uuid::nil(), partitions: replicas.len(), replicas: replicas[0].len(), configs }
    }
}

fn topic_result(
    core: &Core,
    topic: CreatableTopic,
    outcome: Result<Made, Refusal>,
    version: i16,
) -> CreatableTopicResult {
    let result = CreatableTopicResult::default().with_name(topic.name);
    match outcome {
        Ok(made) => {
            let configs = || {
                let row = |config: Described| {
                    CreatableTopicConfigs::default()
                        .with_name(StrBytes::from_static_str(config.name))
                        .with_value(Some(StrBytes::from_string(config.value)))
                        .with_config_source(config.source)
                };
                config_topic::describe(&made.configs, &core.config).into_iter().map(row).collect()
            };
            result
                .with_topic_id(made.id)
                .with_num_partitions(made.partitions as i32)
                .with_replication_factor(made.replicas as i16)
                .with_configs((version >= 5).then(configs))
        }
        Err(Refusal { code, message }) => result
            .with_error_code(code.code())
            .with_error_message(Some(StrBytes::from_string(message)))
            .with_num_partitions(-1)
            .with_replication_factor(-1),
    }
}
