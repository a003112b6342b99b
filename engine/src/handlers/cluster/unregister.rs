//! UnregisterBroker (KIP-631): removes a broker that is gone for good.

use crate::handlers::refusal::Refusal;
use crate::{cluster::meta, core::Core};
use consensus::metadata::{BrokerStatus, Command, Topic};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{UnregisterBrokerRequest, UnregisterBrokerResponse},
};
use std::{rc::Rc, sync::Arc};

/// Most partitions that a refusal names.
const NAMED_MAX: usize = 5;

pub async fn unregister(core: &Rc<Core>, request: UnregisterBrokerRequest) -> UnregisterBrokerResponse {
    let response = UnregisterBrokerResponse::default();
    match forget(core, request.broker_id.0).await {
        Ok(()) => response,
        Err(Refusal { code, message }) => {
            response.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
        }
    }
}

async fn forget(core: &Rc<Core>, node: i32) -> Result<(), Refusal> {
    // Otherwise a topic that this broker has not heard of yet could lose its partitions.
    meta::linearize(core).await?;
    if core.view(|view| view.broker(node).is_none()) {
        return Err(Refusal::new(ErrorCode::BrokerIdNotRegistered, format!("broker {node} is not registered")));
    }
    core.view(|view| holds_nothing_alone(node, view.topics()))?;
    if core.view(|view| view.broker(node).is_some_and(|broker| broker.status == BrokerStatus::Alive)) {
        let message = format!(
            "broker {node} is alive, and its disk could never join again; stop the broker, and try again once it is fenced"
        );
        return Err(Refusal::new(ErrorCode::InvalidRequest, message));
    }
    let outcome = meta::submit(core, vec![Command::UnregisterBroker { node }]).await?.pop();
    outcome.expect("a command has an outcome").map(drop).map_err(Refusal::from)
}

/// Rejects if some partition would lose its only replica.
fn holds_nothing_alone<'a>(node: i32, topics: impl Iterator<Item = &'a Arc<Topic>>) -> Result<(), Refusal> {
    let held = topics.flat_map(|topic| topic.partitions.iter().enumerate().map(move |partition| (topic, partition)));
    let alone = held.filter(|(_, (_, partition))| partition.replicas == [node]);
    let mut count = 0;
    let mut named = Vec::new();
    for (topic, (number, _)) in alone {
        count += 1;
        if named.len() < NAMED_MAX {
            named.push(format!("{}-{number}", topic.name));
        }
    }
    if count == 0 {
        return Ok(());
    }
    let more = if count > named.len() { ", …" } else { "" };
    let message = format!(
        "broker {node} holds the only replica of {count} partitions ({}{more}); delete their topics first",
        named.join(", ")
    );
    Err(Refusal::new(ErrorCode::InvalidRequest, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::metadata::Partition;
    use net::Uuid;
    use types::GroupId;

    fn topic(name: &str, replicas: &[&[i32]]) -> Arc<Topic> {
        let partitions = replicas.iter().map(|replicas| Partition {
            group: GroupId(1),
            replicas: replicas.to_vec(),
            founders: Vec::new(),
        });
        Arc::new(Topic {
            name: name.into(),
            id: Uuid::from_u128(1),
            partitions: partitions.collect(),
            configs: Default::default(),
            created_ms: 0,
        })
    }

    #[test]
    fn a_broker_that_holds_an_only_replica_is_kept() {
        let topics = [topic("a", &[&[1], &[2], &[2, 1]]), topic("b", &[&[2][..]; 9])];
        assert_eq!(holds_nothing_alone(3, topics.iter()), Ok(()));
        let refused = |node| holds_nothing_alone(node, topics.iter()).unwrap_err();
        assert_eq!(
            refused(1).message,
            "broker 1 holds the only replica of 1 partitions (a-0); delete their topics first"
        );
        assert_eq!(
            refused(2).message,
            "broker 2 holds the only replica of 10 partitions (a-1, b-0, b-1, b-2, b-3, …); delete their topics first"
        );
        assert_eq!(refused(2).code, ErrorCode::InvalidRequest);
    }
}
