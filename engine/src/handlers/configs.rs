//! DescribeConfigs and IncrementalAlterConfigs, for topics and brokers.

use super::{
    metadata_topic,
    refusal::{self, Refusal},
};
use crate::{
    cluster::{internal_topics, meta},
    config::{Described, RuntimeSettingError, cluster as config_cluster, topic as config_topic},
    core::{Core, brokers, metadata_topic::METADATA_TOPIC},
    long_work::Work,
};
use ahash::AHashSet;
use consensus::metadata::{Command, Outcome, Topic};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
        IncrementalAlterConfigsResponse,
        describe_configs_request::DescribeConfigsResource,
        describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym},
        incremental_alter_configs_request::AlterConfigsResource,
        incremental_alter_configs_response::AlterConfigsResourceResponse,
    },
};
use std::{collections::BTreeSet, rc::Rc, sync::Arc};

/// Kinds of resources (`ConfigResource.Type`).
pub(super) const RESOURCE_TOPIC: i8 = 2;
pub(super) const RESOURCE_BROKER: i8 = 4;

pub async fn describe(core: &Rc<Core>, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let fresh = meta::may_read(core).await.map_err(Refusal::from);
    let mut work = Work::on(core);
    let mut results = Vec::with_capacity(request.resources.len());
    for mut resource in request.resources {
        work.entry().await;
        let keys = distinct(&mut work, resource.configuration_keys.take()).await;
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        results.push(match fresh.clone().and_then(|()| settings_of(core, &resource)) {
            Ok(settings) => {
                work.share.take_entries(settings.len());
                let wanted =
                    |setting: &Described| keys.as_ref().is_none_or(|keys| keys.contains(setting.name.as_bytes()));
                let configs = settings
                    .into_iter()
                    .filter(wanted)
                    .map(|setting| row(setting, request.include_synonyms, request.include_documentation));
                result.with_configs(configs.collect())
            }
            Err(refusal) => result
                .with_error_code(refusal.code.code())
                .with_error_message(Some(StrBytes::from_string(refusal.message))),
        });
    }
    DescribeConfigsResponse::default().with_results(results)
}

/// The keys that a request names, as a set. `None`: all settings are wanted, since it names no keys, or an empty list
/// of them (Kafka's ConfigHelper).
async fn distinct(work: &mut Work<'_, Core>, keys: Option<Vec<StrBytes>>) -> Option<AHashSet<StrBytes>> {
    let keys = keys.filter(|keys| !keys.is_empty())?;
    let mut distinct = AHashSet::new();
    for key in keys {
        work.entry().await;
        distinct.insert(key);
    }
    Some(distinct)
}

fn settings_of(core: &Core, resource: &DescribeConfigsResource) -> Result<Vec<Described>, Refusal> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        // The metadata's log has no settings.
        RESOURCE_TOPIC if name == METADATA_TOPIC => Ok(Vec::new()),
        RESOURCE_TOPIC => {
            let topic = topic(core, name)?;
            let configs = internal_topics::in_force(name, &topic.configs);
            Ok(config_topic::describe(&configs, &core.config))
        }
        RESOURCE_BROKER => match broker(core, name)? {
            None => Ok(core.view(|view| config_cluster::describe_all(view.cluster_config()))),
            Some(node) if node == core.node() => {
                Ok(core.view(|view| config_cluster::describe(node, view.cluster_config(), &core.config)))
            }
            Some(node) => {
                let message = format!("this is broker {}; ask broker {node} for its own settings", core.node());
                Err(Refusal::new(ErrorCode::InvalidRequest, message))
            }
        },
        other => Err(other_resource(other)),
    }
}

fn topic(core: &Core, name: &str) -> Result<Arc<Topic>, Refusal> {
    core.view(|view| view.topic(name).cloned())
        .ok_or_else(|| Refusal::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic '{name}'")))
}

/// The broker with this name. `None`: all brokers.
fn broker(core: &Core, name: &str) -> Result<Option<i32>, Refusal> {
    if name.is_empty() {
        return Ok(None);
    }
    let node = name.parse().ok().filter(|node| brokers::all(core).iter().any(|broker| broker.id == *node));
    let unknown = || Refusal::new(ErrorCode::InvalidRequest, format!("no broker '{name}' is registered"));
    node.map(Some).ok_or_else(unknown)
}

fn other_resource(kind: i8) -> Refusal {
    let message =
        format!("resource type {kind} has no settings; topics ({RESOURCE_TOPIC}) and brokers ({RESOURCE_BROKER}) do");
    Refusal::new(ErrorCode::InvalidRequest, message)
}

fn row(setting: Described, synonyms: bool, documentation: bool) -> DescribeConfigsResourceResult {
    let synonyms = setting.synonyms.into_iter().filter(|_| synonyms).map(|(name, value, source)| {
        DescribeConfigsSynonym::default()
            .with_name(StrBytes::from_static_str(name))
            .with_value(Some(StrBytes::from_string(value)))
            .with_source(source)
    });
    DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(setting.name))
        .with_value(Some(StrBytes::from_string(setting.value)))
        .with_read_only(setting.read_only)
        .with_config_source(setting.source)
        .with_synonyms(synonyms.collect())
        .with_config_type(setting.config_type)
        .with_documentation(documentation.then(|| StrBytes::from_static_str(setting.doc)))
}

pub async fn alter(core: &Rc<Core>, request: IncrementalAlterConfigsRequest) -> IncrementalAlterConfigsResponse {
    let (mut work, mut named) = (Work::on(core), BTreeSet::new());
    let mut asked: Vec<(AlterConfigsResource, bool)> = Vec::new();
    for resource in request.resources {
        work.entry().await;
        let is_first = named.insert((resource.resource_type, resource.resource_name.clone()));
        asked.push((resource, is_first));
    }
    let check = |core: &Core, (resource, is_first): &(AlterConfigsResource, bool)| match is_first {
        true => check_change(core, resource),
        false => Err(Refusal::new(ErrorCode::InvalidRequest, "the request names this resource more than once")),
    };
    let refusals: Vec<Option<Refusal>> = if request.validate_only {
        refusal::check(&mut work, &asked, check).await.into_iter().map(Result::err).collect()
    } else {
        refusal::change(&mut work, &asked, check, async |commands| submit(core, commands).await)
            .await
            .into_iter()
            .map(Result::err)
            .collect()
    };
    let mut responses = Vec::with_capacity(asked.len());
    for ((resource, _), refusal) in asked.into_iter().zip(refusals) {
        work.entry().await;
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name);
        responses.push(match refusal {
            None => response,
            Some(refusal) => response
                .with_error_code(refusal.code.code())
                .with_error_message(Some(StrBytes::from_string(refusal.message))),
        });
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

async fn submit(core: &Rc<Core>, commands: Vec<Command>) -> Vec<Result<Outcome, Refusal>> {
    let count = commands.len();
    match meta::submit(core, commands).await {
        Ok(results) => results.into_iter().map(|result| result.map_err(Refusal::from)).collect(),
        Err(error) => (0..count).map(|_| Err(error.into())).collect(),
    }
}

fn check_change(core: &Core, resource: &AlterConfigsResource) -> Result<Command, Refusal> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        RESOURCE_TOPIC => {
            metadata_topic::check_name(name)?;
            let topic = topic(core, name)?;
            let check = |name: &str, value: Option<&str>| match value {
                Some(value) => config_topic::validate(name, value).map(|()| value.to_owned()),
                None => config_topic::validate_name(name).map(|()| String::new()),
            };
            let internal = internal_topics::find(&topic.name);
            let replicas = topic.partitions.iter().map(|partition| partition.replicas.len()).min().unwrap_or(0);
            let check = |name: &str, value: Option<&str>| {
                let kept = check(name, value).map_err(Refusal::invalid_config)?;
                let allowed = internal.map_or(Ok(()), |internal| internal.check_change(name, value, replicas));
                allowed.map(|()| kept).map_err(Refusal::invalid_config)
            };
            Ok(Command::UpdateTopicConfig {
                name: topic.name.clone(),
                id: topic.id,
                changes: changes(resource, check, |name| config_topic::list(name, &topic.configs, &core.config))?,
            })
        }
        RESOURCE_BROKER => {
            let node = broker(core, name)?;
            let check = |name: &str, value: Option<&str>| {
                let refuse = |error: RuntimeSettingError| Refusal::new(ErrorCode::InvalidRequest, error.to_string());
                config_cluster::check_name(node, name).map_err(refuse)?;
                let value = value.map(|value| config_cluster::check_value(name, value));
                value.unwrap_or_else(|| Ok(String::new())).map_err(Refusal::invalid_config)
            };
            // None of the settings that can be changed is a list.
            Ok(Command::UpdateClusterConfig { node, changes: changes(resource, check, |_| None)? })
        }
        other => Err(other_resource(other)),
    }
}

/// Operations of `AlterConfigOp.OpType`.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;

/// One setting's change: a new value, or `None` for back to the default.
type Change = (String, Option<String>);

/// Reads the changes of a resource. `check` takes a setting's name, and its new value or `None` to unset it. It
/// returns the value in the form in which it is stored. `list` returns the value in force of a list setting, and
/// `None` for other settings.
fn changes(
    resource: &AlterConfigsResource,
    check: impl Fn(&str, Option<&str>) -> Result<String, Refusal>,
    list: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Change>, Refusal> {
    let mut named = BTreeSet::new();
    let invalid = |message: String| Refusal::new(ErrorCode::InvalidConfig, message);
    let mut changes = Vec::with_capacity(resource.configs.len());
    for config in &resource.configs {
        let name = config.name.as_str();
        if !named.insert(name) {
            return Err(Refusal::new(ErrorCode::InvalidRequest, format!("'{name}' is changed more than once")));
        }
        let value = match (config.config_operation, &config.value) {
            (SET, Some(value)) => Some(check(name, Some(value.as_str()))?),
            (SET | APPEND | SUBTRACT, None) => {
                let message = format!("the change of '{name}' has no value; operation 1 deletes the setting");
                return Err(Refusal::new(ErrorCode::InvalidRequest, message));
            }
            (DELETE, _) => {
                check(name, None)?;
                None
            }
            (APPEND | SUBTRACT, Some(value)) => {
                check(name, None)?;
                let Some(list) = list(name) else {
                    let message = format!("'{name}' is not a list: set the whole value, do not append or subtract");
                    return Err(invalid(message));
                };
                let changed = change_list(&list, value.as_str(), config.config_operation == APPEND);
                Some(check(name, Some(&changed))?)
            }
            (other, _) => {
                let message =
                    format!("operation {other} on '{name}' is unknown; 0 sets, 1 deletes, 2 appends, 3 subtracts");
                return Err(invalid(message));
            }
        };
        changes.push((name.to_owned(), value));
    }
    Ok(changes)
}

/// A list setting's value with items appended, or with items removed.
fn change_list(list: &str, items: &str, append: bool) -> String {
    fn split(text: &str) -> impl Iterator<Item = &str> {
        text.split(',').map(str::trim).filter(|item| !item.is_empty())
    }
    if append {
        let mut kept: BTreeSet<&str> = split(list).collect();
        let more = split(items).filter(|item| kept.insert(item)).collect::<Vec<_>>();
        return split(list).chain(more).collect::<Vec<_>>().join(",");
    }
    let removed: BTreeSet<&str> = split(items).collect();
    split(list).filter(|item| !removed.contains(item)).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::messages::incremental_alter_configs_request::AlterableConfig;
    use std::collections::BTreeMap;

    #[test]
    fn items_of_lists_are_added_once_and_taken_away() {
        for (list, items, append, expected) in [
            ("delete", "delete", true, "delete"),
            ("delete", "compact", true, "delete,compact"),
            ("", "a, b,,a", true, "a,b"),
            ("a,b,c", "b", false, "a,c"),
            ("a", "a,z", false, ""),
            ("a, b", "", true, "a,b"),
        ] {
            assert_eq!(change_list(list, items, append), expected, "{list:?} {items:?} {append}");
        }
    }

    /// One change of a topic's setting: its new value, or the refusal.
    fn change(name: &'static str, operation: i8, value: Option<&'static str>) -> Result<Option<String>, Refusal> {
        let config = AlterableConfig::default()
            .with_name(StrBytes::from_static_str(name))
            .with_config_operation(operation)
            .with_value(value.map(StrBytes::from_static_str));
        let resource = AlterConfigsResource::default().with_configs(vec![config]);
        let check = |name: &str, value: Option<&str>| {
            let checked = value.map_or_else(|| config_topic::validate_name(name), |v| config_topic::validate(name, v));
            checked.map(|()| value.unwrap_or_default().to_owned()).map_err(Refusal::invalid_config)
        };
        let list = |name: &str| config_topic::list(name, &BTreeMap::new(), &crate::config::Config::default());
        Ok(changes(&resource, check, list)?.remove(0).1)
    }

    #[test]
    fn only_lists_are_appended_to_and_subtracted_from() {
        assert_eq!(change("cleanup.policy", APPEND, Some("delete")), Ok(Some("delete".to_owned())));
        assert_eq!(change("cleanup.policy", SUBTRACT, Some("compact")), Ok(Some("delete".to_owned())));
        assert_eq!(change("cleanup.policy", DELETE, None), Ok(None));
        for (name, operation, value, code, words) in [
            (
                "cleanup.policy",
                APPEND,
                Some("compact"),
                ErrorCode::InvalidConfig,
                "'delete,compact': it must be delete",
            ),
            ("cleanup.policy", SUBTRACT, Some("delete"), ErrorCode::InvalidConfig, "'': it must be delete"),
            ("retention.ms", APPEND, Some("5"), ErrorCode::InvalidConfig, "'retention.ms' is not a list"),
            ("retention.mss", APPEND, Some("5"), ErrorCode::InvalidConfig, "no setting 'retention.mss'"),
            ("retention.ms", 9, Some("5"), ErrorCode::InvalidConfig, "operation 9"),
            ("retention.ms", SET, None, ErrorCode::InvalidRequest, "has no value"),
            ("cleanup.policy", APPEND, None, ErrorCode::InvalidRequest, "has no value"),
        ] {
            let refusal = change(name, operation, value).unwrap_err();
            assert!(refusal.code == code && refusal.message.contains(words), "{refusal:?}");
        }
    }
}
