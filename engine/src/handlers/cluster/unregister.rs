//! UnregisterBroker (KIP-631): removes a broker that is gone for good.

use crate::handlers::refusal::Refusal;
use crate::{cluster::meta, core::Core, long_work::Work};
use consensus::metadata::{BrokerStatus, Command, Rejection, Topic};
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{UnregisterBrokerRequest, UnregisterBrokerResponse},
};
use std::{ops::Bound, rc::Rc};

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
    let (mut work, mut alone) = (Work::on(core), Alone::default());
    let mut page = core.next_topics(Bound::Unbounded);
    while let Some(last) = page.last().map(|topic| topic.name.clone()) {
        for topic in page {
            work.entries(topic.partitions.len()).await;
            alone.add(node, &topic);
        }
        page = core.next_topics(Bound::Excluded(&last));
    }
    alone.check(node)?;
    if core.view(|view| view.broker(node).is_some_and(|broker| broker.status == BrokerStatus::Alive)) {
        return Err(is_alive(node));
    }
    let outcome = meta::submit(core, vec![Command::UnregisterBroker { node }]).await?.pop();
    outcome.expect("a command has an outcome").map(drop).map_err(|rejection| match rejection {
        // It has returned since.
        Rejection::StaleBroker { .. } => is_alive(node),
        rejection => rejection.into(),
    })
}

fn is_alive(node: i32) -> Refusal {
    let message = format!(
        "broker {node} is alive, and its disk could never join again; stop the broker, and try again once it is fenced"
    );
    Refusal::new(ErrorCode::InvalidRequest, message)
}

/// The partitions that would lose their only replica.
#[derive(Default)]
struct Alone {
    count: usize,
    named: Vec<String>,
}

impl Alone {
    fn add(&mut self, node: i32, topic: &Topic) {
        for (number, _) in topic.partitions.iter().enumerate().filter(|(_, partition)| partition.replicas == [node]) {
            self.count += 1;
            if self.named.len() < NAMED_MAX {
                self.named.push(format!("{}-{number}", topic.name));
            }
        }
    }

    /// Rejects if there are any.
    fn check(&self, node: i32) -> Result<(), Refusal> {
        let Alone { count, named } = self;
        if *count == 0 {
            return Ok(());
        }
        let more = if *count > named.len() { ", …" } else { "" };
        let message = format!(
            "broker {node} holds the only replica of {count} partitions ({}{more}); delete their topics first",
            named.join(", ")
        );
        Err(Refusal::new(ErrorCode::InvalidRequest, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::metadata::Partition;
    use net::Uuid;
    use std::sync::Arc;
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
        let check = |node: i32| {
            let mut alone = Alone::default();
            topics.iter().for_each(|topic| alone.add(node, topic));
            alone.check(node)
        };
        assert_eq!(check(3), Ok(()));
        let refused = |node| check(node).unwrap_err();
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
