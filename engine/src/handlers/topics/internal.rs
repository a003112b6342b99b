//! Internal topics: created on first use or by a client's request, and protected from changes by clients.

use super::{create_command, create_unasked};
use crate::{
    cluster::internal_topics::{self, InternalTopic, OFFSETS_TOPIC},
    config::topic as config_topic,
    core::Core,
};
use crate::{
    core::brokers,
    handlers::{metadata_topic, refusal::Refusal},
};
use consensus::metadata::{Command, Topic};
use net::{errors::ErrorCode, messages::create_topics_request::CreatableTopic};
use std::{collections::BTreeMap, rc::Rc, sync::Arc};

/// Why an internal topic can't be created yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{topic} waits until more founders of the cluster register: {registered} brokers are registered, and each \
     partition gets {wanted} replicas; try again, or lower offsets.topic.replication.factor if no more brokers will \
     come"
)]
struct TooFewBrokers {
    topic: &'static str,
    registered: usize,
    wanted: usize,
}

/// The topic of the group coordinator, created on first use. `Err` says why it can't be created yet.
pub async fn ensure_offsets_topic(core: &Rc<Core>) -> Result<Arc<Topic>, &'static str> {
    let internal = internal_topics::find(OFFSETS_TOPIC).expect("the registry has it");
    ensure(core, internal).await;
    core.view(|view| view.topic(OFFSETS_TOPIC).cloned()).ok_or("the offsets topic can't be created yet; try again")
}

/// Creates an internal topic if it does not exist, and waits until it can serve.
pub async fn ensure(core: &Rc<Core>, internal: &'static InternalTopic) {
    if core.view(|view| view.topic(internal.name).is_some()) {
        return;
    }
    match command(core, internal, BTreeMap::new()) {
        Ok(command) => create_unasked(core, vec![command]).await,
        Err(error) if core.placement.may_tell(runtime::clock::now()) => tracing::warn!("{error}"),
        Err(_) => {}
    }
}

/// The command that creates an internal topic, with the chosen settings in addition to the fixed ones.
fn command(
    core: &Core,
    internal: &'static InternalTopic,
    chosen: BTreeMap<String, String>,
) -> Result<Command, TooFewBrokers> {
    // The topic keeps its initial replicas, so brokers that are away get some too. The factor counts founding brokers
    // that are not registered yet, so creation waits until enough of them are.
    let registered = brokers::all(core);
    let factor = replicas(core, internal);
    if registered.len() < factor {
        return Err(TooFewBrokers { topic: internal.name, registered: registered.len(), wanted: factor });
    }
    // It is created even if brokers have no memory left for partitions, since no group could work without it.
    let candidates = brokers::placeable(core, factor, &[]);
    let placed = core.placement.spread(&candidates, internal.partitions(&core.config), factor);
    let mut configs = internal.settings();
    configs.extend(chosen);
    Ok(create_command(internal.name, placed, configs))
}

/// The number of replicas that each partition of an internal topic gets now.
fn replicas(core: &Core, internal: &InternalTopic) -> usize {
    let brokers = brokers::all(core).len().max(core.identity.founding.len());
    internal.replicas(&core.config, brokers)
}

/// Checks a client's CreateTopics of an internal topic. The registry decides on partitions and replicas, whatever
/// the client asks for.
pub fn check_new(core: &Core, internal: &'static InternalTopic, asked: &CreatableTopic) -> Result<Command, Refusal> {
    if !asked.assignments.is_empty() {
        let message =
            format!("{}: brokers place the replicas of an internal topic; leave assignments out", internal.name);
        return Err(Refusal::new(ErrorCode::InvalidReplicaAssignment, message));
    }
    let mut chosen = BTreeMap::new();
    for config in &asked.configs {
        let (name, value) = (config.name.as_str(), super::value_of(config)?);
        config_topic::validate(name, value).map_err(Refusal::invalid_config)?;
        internal.check_change(name, Some(value), replicas(core, internal)).map_err(Refusal::invalid_config)?;
        chosen.insert(name.to_owned(), value.to_owned());
    }
    command(core, internal, chosen)
        .map_err(|error| Refusal::new(ErrorCode::InvalidReplicationFactor, error.to_string()))
}

/// Rejects deleting or repartitioning a topic that belongs to the broker, with Kafka's code for such requests on
/// internal topics.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    metadata_topic::check_name(name)?;
    if internal_topics::find(name).is_none() {
        return Ok(());
    }
    let message = format!("{name} is an internal topic: deleting or growing it would lose the offsets of every group");
    Err(Refusal::new(ErrorCode::InvalidTopicException, message))
}

/// Rejects names that are reserved for future internal topics.
pub fn check_reserved(name: &str) -> Result<(), Refusal> {
    let Some(what) = internal_topics::reserved_for(name) else { return Ok(()) };
    let message =
        format!("'{name}' is the internal topic of {what}, which this broker does not serve yet; choose another name");
    Err(Refusal::new(ErrorCode::InvalidTopicException, message))
}
