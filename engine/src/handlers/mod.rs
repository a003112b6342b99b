//! Handlers of Kafka requests, one per API.
//! Lives on: the core of the client's connection. A handler reaches partitions and metadata through [`Core`].

mod api_versions;
pub mod cluster;
mod configs;
pub(crate) mod fetch;
mod groups;
pub(crate) mod list_offsets;
mod metadata;
mod metadata_topic;
mod operations;
pub(crate) mod owners;
pub(crate) mod produce;
mod producer_ids;
pub(crate) mod refusal;
mod sasl;
pub mod tools;
pub mod topics;
mod weight;

pub use crate::cluster::internal_topics::OFFSETS_TOPIC;

use self::cluster::{elect_leaders, quorum, unregister};
use crate::{
    connection::{
        client::Client,
        reply::{Pending, Reply, waits_for_members},
    },
    coordinator::{Context, GroupRequest},
    core::Core,
};
use net::{
    StrBytes,
    codec::{header::RequestHeader, request::Request, response::Response},
};
use std::{future::Future, rc::Rc, time::Duration};

/// Longest time that a request waits because its client names a timeout. Until it is answered, a request holds memory
/// of which others may be in need, and Kafka's type allows 24 days. Clients name 30 s by default and seldom more than
/// 2 minutes.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Starts a request of this client. Produce requests take their places in the logs in the order of these calls.
/// Other requests begin once the answers before theirs have left.
pub fn start(core: &Rc<Core>, client: &Rc<Client>, header: &RequestHeader, request: Request) -> Pending {
    let (core, client) = (core.clone(), client.clone());
    let version = header.version;
    match request {
        Request::Produce(request) => produce::start(&core, client.lane(), request, version),
        Request::Fetch(request) => reply(async move { fetch::handle(&core, &client, request, version).await }),
        request => match GroupRequest::try_from(request) {
            Ok(request) => {
                // A copy, since a slice would keep the whole frame in memory while the request waits.
                let client_id = header.client_id.as_deref().unwrap_or_default().to_owned();
                // The format in which Java prints an address.
                let client_host = StrBytes::from_string(format!("/{}", client.peer().ip()));
                let context = Context { version, client_id: StrBytes::from_string(client_id), client_host };
                match waits_for_members(header.api) {
                    true => Box::pin(async move { groups::wait(&core, &client, request, context).await }),
                    false => Box::pin(async move { groups::handle(&core, request, context).await }),
                }
            }
            Err(request) => Box::pin(async move {
                match weight::allow_for(&core, &request, version).await {
                    Ok(allowance) => allowance.reply(respond(&core, request, version).await),
                    Err(why) => Reply::HangUp { why: why.to_string() },
                }
            }),
        },
    }
}

/// Answers a request that has nothing to do with records and groups.
async fn respond(core: &Rc<Core>, request: Request, version: i16) -> Response {
    match request {
        Request::SaslHandshake(_) => sasl::refuse_handshake().into(),
        Request::SaslAuthenticate(_) => sasl::refuse_authentication().into(),
        Request::ApiVersions(request) => api_versions::handle(&request, version).into(),
        Request::Metadata(request) => metadata::metadata(core, request, version).await.into(),
        Request::CreateTopics(request) => topics::create::create(core, request, version).await.into(),
        Request::DeleteTopics(request) => topics::delete(core, request, version).await.into(),
        Request::CreatePartitions(request) => topics::add_partitions(core, request).await.into(),
        Request::ListOffsets(request) => list_offsets::list(core, request, version).await.into(),
        Request::OffsetForLeaderEpoch(request) => list_offsets::for_leader_epoch(core, request).await.into(),
        Request::InitProducerId(request) => producer_ids::init(core, request).await.into(),
        Request::DescribeCluster(request) => cluster::describe(core, request).await.into(),
        Request::DescribeQuorum(request) => quorum::describe(core, request).await.into(),
        Request::ElectLeaders(request) => elect_leaders::elect(core, request).await.into(),
        Request::UnregisterBroker(request) => unregister::unregister(core, request).await.into(),
        Request::DescribeTopicPartitions(request) => metadata::describe_partitions(core, request).await.into(),
        Request::DescribeConfigs(request) => configs::describe(core, request).await.into(),
        Request::IncrementalAlterConfigs(request) => configs::alter(core, request).await.into(),
        Request::FindCoordinator(request) => groups::find_coordinator(core, request, version).await.into(),
        elsewhere @ (Request::Produce(_)
        | Request::Fetch(_)
        | Request::OffsetCommit(_)
        | Request::OffsetFetch(_)
        | Request::JoinGroup(_)
        | Request::Heartbeat(_)
        | Request::LeaveGroup(_)
        | Request::SyncGroup(_)
        | Request::DescribeGroups(_)
        | Request::ListGroups(_)
        | Request::DeleteGroups(_)) => unreachable!("{:?} is answered by `start`", elsewhere.api()),
    }
}

/// How long a request waits whose client names this timeout.
fn timeout_of(timeout_ms: i32) -> Duration {
    Duration::from_millis(timeout_ms.max(0) as u64).min(TIMEOUT_MAX)
}

fn reply<R: Into<Response>>(answer: impl Future<Output = R> + 'static) -> Pending {
    Box::pin(async move { Reply::Send(answer.await.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_a_client_names_has_bounds() {
        let bounded = [i32::MIN, -1, 0, 30_000, 299_999, 300_001, i32::MAX].map(|ms| timeout_of(ms).as_millis());
        assert_eq!(bounded, [0, 0, 0, 30_000, 299_999, 300_000, 300_000]);
    }
}
