//! Responses: from a message to the parts of a frame, length prefix included.

mod shape;
#[cfg(test)]
mod tests;

use kafka_protocol::messages as kafka;

use crate::codec::api::{ApiKey, api_versions_fallback};
pub use crate::codec::encode::EncodeError;
use crate::codec::encode::{frame, write_control};
use crate::codec::fetch::FetchResponse;
use crate::codec::header::RequestHeader;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::ProduceResponse;

macro_rules! responses {
    ($($name:ident($type:ty)),* $(,)?) => {
        /// A response of the API that the variant names.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Response {
            Produce(ProduceResponse),
            Fetch(FetchResponse),
            $($name($type),)*
        }

        $(impl From<$type> for Response {
            fn from(response: $type) -> Response { Response::$name(response) }
        })*

        impl Response {
            pub fn api(&self) -> ApiKey {
                match self {
                    Response::Produce(_) => ApiKey::Produce,
                    Response::Fetch(_) => ApiKey::Fetch,
                    $(Response::$name(_) => ApiKey::$name,)*
                }
            }

            fn write(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
                match self {
                    Response::Produce(response) => response.write(parts.fields(), version),
                    Response::Fetch(response) => response.write(parts, version),
                    $(Response::$name(response) => write_control(&response, parts.fields(), version),)*
                }
            }
        }
    };
}

responses! {
    ListOffsets(kafka::ListOffsetsResponse),
    Metadata(kafka::MetadataResponse),
    OffsetCommit(kafka::OffsetCommitResponse),
    OffsetFetch(kafka::OffsetFetchResponse),
    FindCoordinator(kafka::FindCoordinatorResponse),
    JoinGroup(kafka::JoinGroupResponse),
    Heartbeat(kafka::HeartbeatResponse),
    LeaveGroup(kafka::LeaveGroupResponse),
    SyncGroup(kafka::SyncGroupResponse),
    DescribeGroups(kafka::DescribeGroupsResponse),
    ListGroups(kafka::ListGroupsResponse),
    SaslHandshake(kafka::SaslHandshakeResponse),
    ApiVersions(kafka::ApiVersionsResponse),
    CreateTopics(kafka::CreateTopicsResponse),
    DeleteTopics(kafka::DeleteTopicsResponse),
    InitProducerId(kafka::InitProducerIdResponse),
    OffsetForLeaderEpoch(kafka::OffsetForLeaderEpochResponse),
    DescribeConfigs(kafka::DescribeConfigsResponse),
    SaslAuthenticate(kafka::SaslAuthenticateResponse),
    CreatePartitions(kafka::CreatePartitionsResponse),
    DeleteGroups(kafka::DeleteGroupsResponse),
    ElectLeaders(kafka::ElectLeadersResponse),
    IncrementalAlterConfigs(kafka::IncrementalAlterConfigsResponse),
    DescribeQuorum(kafka::DescribeQuorumResponse),
    DescribeCluster(kafka::DescribeClusterResponse),
    UnregisterBroker(kafka::UnregisterBrokerResponse),
    DescribeTopicPartitions(kafka::DescribeTopicPartitionsResponse),
}

impl From<ProduceResponse> for Response {
    fn from(response: ProduceResponse) -> Response {
        Response::Produce(response)
    }
}

impl From<FetchResponse> for Response {
    fn from(response: FetchResponse) -> Response {
        Response::Fetch(response)
    }
}

/// Encodes the response to a request, in the request's version. Converts it from the API's newest shape first (see
/// [`shape`]).
pub fn encode(request: &RequestHeader, mut response: Response) -> Result<Parts, EncodeError> {
    if response.api() != request.api {
        return Err(EncodeError::OtherApi { header: request.api, message: response.api() });
    }
    shape::fit(&mut response, request.version);
    frame(|parts| {
        request.write_response_header(parts.fields());
        response.write(parts, request.version)
    })
}

/// The response to an ApiVersions request of a version that is not served: version 0, error 35 and the table
/// (KIP-511).
pub fn encode_api_versions_fallback(correlation_id: i32) -> Parts {
    let request = RequestHeader { api: ApiKey::ApiVersions, version: 0, correlation_id, client_id: None };
    encode(&request, api_versions_fallback().into()).expect("the table fits version 0")
}
