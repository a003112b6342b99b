//! CreateTopics: its answer has the same form for a created topic and for one that was only validated. Creation
//! itself is in [`crate::handlers::topics`].

use super::{
    change, check_new_topic, collisions,
    names::{self, Alike},
    room::Asked,
};
use crate::handlers::refusal::{self, Refusal};
use crate::{cluster::meta, config::topic as config_topic, core::Core};
use consensus::metadata::{Command, Outcome};
use net::{
    StrBytes, Uuid,
    messages::{
        CreateTopicsRequest, CreateTopicsResponse, TopicName,
        create_topics_request::CreatableTopic,
        create_topics_response::{CreatableTopicConfigs, CreatableTopicResult},
    },
};
use std::{collections::BTreeMap, rc::Rc};

pub async fn create(core: &Rc<Core>, mut request: CreateTopicsRequest, version: i16) -> CreateTopicsResponse {
    let repeats = names::take_repeats(&mut request.topics, |topic| topic.name.clone());
    let names: Vec<TopicName> = request.topics.iter().map(|topic| topic.name.clone()).collect();
    // Only the newest view shows for certain which names are taken.
    let newest = match names.iter().any(|name| collisions::is_new_and_possible(core, name)) {
        true => meta::linearize(core).await.map_err(Refusal::from),
        false => Ok(()),
    };
    let alike = Alike::of(names.iter().map(|name| name.0.as_str()));
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
    let results: Vec<Result<Made, Refusal>> = if request.validate_only {
        let check = |core: &Core| request.topics.iter().map(|topic| check_one(core, topic)).collect();
        refusal::check(core, check).await.into_iter().map(|checked| checked.map(Made::would_be)).collect()
    } else {
        let results = change(core, &request.topics, check_one, request.timeout_ms).await;
        results.into_iter().map(|result| result.map(|(_, outcome)| Made::is(outcome))).collect()
    };
    let topics =
        request.topics.into_iter().zip(results).map(|(topic, result)| topic_result(core, topic, result, version));
    CreateTopicsResponse::default().with_topics(topics.collect())
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
            let configs = config_topic::describe(&made.configs, &core.config).into_iter().map(|config| {
                CreatableTopicConfigs::default()
                    .with_name(StrBytes::from_string(config.name.to_owned()))
                    .with_value(Some(StrBytes::from_string(config.value)))
                    .with_config_source(config.source)
            });
            result
                .with_topic_id(made.id)
                .with_num_partitions(made.partitions as i32)
                .with_replication_factor(made.replicas as i16)
                .with_configs((version >= 5).then(|| configs.collect()))
        }
        Err(Refusal { code, message }) => result
            .with_error_code(code.code())
            .with_error_message(Some(StrBytes::from_string(message)))
            .with_num_partitions(-1)
            .with_replication_factor(-1),
    }
}
