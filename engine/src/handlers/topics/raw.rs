//! Raw commands about topics, as tools send them on the peer port. They may do nothing that Kafka's requests may not.

use super::{collisions, internal};
use crate::handlers::refusal::Refusal;
use crate::{
    cluster::internal_topics,
    config::{cluster as config_cluster, topic as config_topic},
    core::Core,
};
use consensus::metadata::Command;

/// Rejects commands that would lose or hide what the broker keeps in internal topics, and settings that no request
/// may set.
pub fn check(core: &Core, command: &Command) -> Result<(), Refusal> {
    match command {
        Command::CreateTopic { name, configs, .. } => {
            internal::check_reserved(name)?;
            internal::check_name(name)?;
            collisions::check(core, name)?;
            configs
                .iter()
                .try_for_each(|(name, value)| config_topic::validate(name, value))
                .map_err(Refusal::invalid_config)
        }
        Command::CreatePartitions { name, .. } | Command::DeleteTopic { name, .. } => internal::check_name(name),
        Command::UpdateTopicConfig { name, changes, .. } => {
            changes.iter().try_for_each(|(setting, value)| check_setting(core, name, setting, value.as_deref()))
        }
        Command::UpdateClusterConfig { node, changes } => {
            let check = |(name, value): &(String, Option<String>)| {
                config_cluster::check_name(*node, name)?;
                value.as_ref().map_or(Ok(()), |value| config_cluster::check_value(name, value).map(drop))
            };
            changes.iter().try_for_each(check).map_err(Refusal::invalid_config)
        }
        _ => Ok(()),
    }
}

fn check_setting(core: &Core, topic: &str, name: &str, value: Option<&str>) -> Result<(), Refusal> {
    match value {
        Some(value) => config_topic::validate(name, value),
        None => config_topic::validate_name(name),
    }
    .map_err(Refusal::invalid_config)?;
    let Some(known) = internal_topics::find(topic) else { return Ok(()) };
    let replicas = core.view(|view| {
        let partitions = view.topic(topic).map(|topic| topic.partitions.iter());
        partitions.into_iter().flatten().map(|partition| partition.replicas.len()).min().unwrap_or(0)
    });
    known.check_change(name, value, replicas).map_err(Refusal::invalid_config)
}
