//! Responses: from a message to the parts of a frame, length prefix included.

#[cfg(test)]
mod tests;

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages as kafka;
use kafka_protocol::protocol::Encodable;

use crate::codec::api::{ApiKey, api_versions_fallback};
use crate::codec::fetch::FetchResponse;
use crate::codec::header::RequestHeader;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::ProduceResponse;
use crate::codec::shape;
use crate::codec::wire::TooLong;

/// Why a message can't be encoded. It is a bug in the code that made the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    #[error(transparent)]
    TooLong(#[from] TooLong),
    #[error("this API version identifies topics by {wanted}, but the message does not")]
    TopicByWrongKind { wanted: &'static str },
    #[error("a {message:?} message has a {header:?} header")]
    OtherApi { header: ApiKey, message: ApiKey },
    #[error("{0}")]
    Codec(String),
}

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
/// [`crate::codec::shape`]).
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

/// Runs `write` and puts the length before what it appends.
pub(crate) fn frame(write: impl FnOnce(&mut PartsBuilder) -> Result<(), EncodeError>) -> Result<Parts, EncodeError> {
    let mut parts = PartsBuilder::with_capacity(256);
    parts.fields().put_i32(0);
    write(&mut parts)?;
    let length = parts.byte_count() - 4;
    let prefix = i32::try_from(length).map_err(|_| TooLong { what: "frame", length })?;
    parts.fields()[..4].copy_from_slice(&prefix.to_be_bytes());
    Ok(parts.finish())
}

pub(crate) fn write_control<T: Encodable>(message: &T, out: &mut BytesMut, version: i16) -> Result<(), EncodeError> {
    message.encode(out, version).map_err(|e| EncodeError::Codec(e.to_string()))
}
