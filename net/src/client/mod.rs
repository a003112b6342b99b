//! The client side of the protocol, sans-IO: it turns requests into frames and frames into responses.
//!
//! A broker answers the requests of one connection in order. A queue of the requests in flight is therefore the only
//! state.

pub mod blocking;

use std::collections::VecDeque;

use ahash::AHashMap;
use bytes::Bytes;
use kafka_protocol::messages::ApiVersionsResponse;
use kafka_protocol::protocol::{Decodable, Request as ControlRequest, StrBytes};

use crate::codec::api::ApiKey;
use crate::codec::bounds;
use crate::codec::header::RequestHeader;
use crate::codec::parts::Parts;
use crate::codec::request::{self, Request};
use crate::codec::response::EncodeError;
use crate::codec::wire::{Malformed, Reader};

/// Why a response can't be used. Requests and responses no longer match, so the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("got an answer with correlation id {got}, expected {awaited}")]
    OutOfOrder { awaited: i32, got: i32 },
    #[error("got an answer, but no request is pending")]
    Unasked,
    #[error("an answer to {got:?} can't be decoded as one to {wanted:?}")]
    OtherApi { wanted: ApiKey, got: ApiKey },
    #[error("malformed answer to {api:?} version {version}: {source}")]
    Malformed { api: ApiKey, version: i16, source: Malformed },
}

/// A response whose header has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub api: ApiKey,
    pub version: i16,
    pub correlation_id: i32,
    pub body: Bytes,
}

impl Answer {
    /// Decodes the body as the response to a request of type `R`. Bytes in it are slices of the frame.
    pub fn decode<R: ControlRequest>(mut self) -> Result<R::Response, AnswerError> {
        let (api, version) = (self.api, self.version);
        if R::KEY != api as i16 {
            let wanted = ApiKey::from_i16(R::KEY).unwrap_or(api);
            return Err(AnswerError::OtherApi { wanted, got: api });
        }
        let malformed = |source| AnswerError::Malformed { api, version, source };
        bounds::check_response(api, version, &self.body).map_err(malformed)?;
        let response =
            R::Response::decode(&mut self.body, version).map_err(|e| malformed(Malformed::Codec(e.to_string())))?;
        match self.body.len() {
            0 => Ok(response),
            remain => Err(malformed(Malformed::Trailing { at: 0, remain })),
        }
    }
}

/// The correlation ids and the requests in flight of one connection.
#[derive(Debug, Clone)]
pub struct ClientCodec {
    client_id: StrBytes,
    next_correlation_id: i32,
    in_flight: VecDeque<RequestHeader>,
}

impl ClientCodec {
    pub fn new(client_id: impl Into<String>) -> ClientCodec {
        let client_id = StrBytes::from_string(client_id.into());
        ClientCodec { client_id, next_correlation_id: 0, in_flight: VecDeque::new() }
    }

    /// Encodes a request with its length prefix and returns its correlation id. Then expects a response, except for
    /// Produce with acks=0, which gets none.
    pub fn encode(&mut self, version: i16, request: &Request) -> Result<(i32, Parts), EncodeError> {
        let correlation_id = self.next_correlation_id;
        let client_id = Some(self.client_id.clone());
        let header = RequestHeader { api: request.api(), version, correlation_id, client_id };
        let parts = request::encode(&header, request)?;
        self.next_correlation_id = correlation_id.wrapping_add(1);
        if !matches!(request, Request::Produce(produce) if produce.acks == 0) {
            self.in_flight.push_back(header);
        }
        Ok((correlation_id, parts))
    }

    /// Reads the header of the next response. `frame` has no length prefix.
    pub fn answer(&mut self, frame: &Bytes) -> Result<Answer, AnswerError> {
        let RequestHeader { api, version, correlation_id, .. } =
            self.in_flight.pop_front().ok_or(AnswerError::Unasked)?;
        let mut reader = Reader::new(frame);
        let got = RequestHeader::read_response_header(api, version, &mut reader)
            .map_err(|source| AnswerError::Malformed { api, version, source })?;
        if got != correlation_id {
            return Err(AnswerError::OutOfOrder { awaited: correlation_id, got });
        }
        Ok(Answer { api, version, correlation_id, body: reader.rest() })
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

/// The versions that a broker serves, from its ApiVersions response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BrokerVersions(AHashMap<i16, (i16, i16)>);

impl From<&ApiVersionsResponse> for BrokerVersions {
    fn from(response: &ApiVersionsResponse) -> BrokerVersions {
        let rows = response.api_keys.iter();
        BrokerVersions(rows.map(|row| (row.api_key, (row.min_version, row.max_version))).collect())
    }
}

impl BrokerVersions {
    /// The highest version that both sides support. `None` if there is none, or if the broker lacks the API.
    pub fn pick(&self, api: ApiKey) -> Option<i16> {
        self.pick_at_most(api, i16::MAX)
    }

    /// The same, but at most `at_most`. Needed because Produce and Fetch name topics by id from version 13 on.
    pub fn pick_at_most(&self, api: ApiKey, at_most: i16) -> Option<i16> {
        let (lowest, highest) = *self.0.get(&(api as i16))?;
        let row = api.api();
        let version = highest.min(row.highest).min(at_most);
        // Versions 0–2 of Produce are advertised, but the broker stores nothing sent with them.
        let floor = if api == ApiKey::Produce { 3 } else { row.lowest };
        (version >= lowest && version >= floor).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages as kafka;
    use kafka_protocol::messages::api_versions_response::ApiVersion;

    fn broker(rows: &[(ApiKey, i16, i16)]) -> BrokerVersions {
        let row = |&(api, low, high): &(ApiKey, i16, i16)| {
            ApiVersion::default().with_api_key(api as i16).with_min_version(low).with_max_version(high)
        };
        BrokerVersions::from(&ApiVersionsResponse::default().with_api_keys(rows.iter().map(row).collect()))
    }

    #[test]
    fn the_highest_common_version_is_picked() {
        let versions = broker(&[
            (ApiKey::Fetch, 0, 11),
            (ApiKey::Metadata, 20, 30),
            (ApiKey::Produce, 0, 2),
            (ApiKey::ListOffsets, 0, 0),
            (ApiKey::JoinGroup, 2, 99),
        ]);
        assert_eq!(versions.pick(ApiKey::Fetch), Some(11));
        assert_eq!(versions.pick_at_most(ApiKey::Fetch, 6), Some(6));
        assert_eq!(versions.pick(ApiKey::JoinGroup), Some(9));
        for api in [ApiKey::Metadata, ApiKey::Produce, ApiKey::ListOffsets, ApiKey::Heartbeat] {
            assert_eq!(versions.pick(api), None, "{api:?}");
        }
        let own = BrokerVersions::from(&crate::codec::api::api_versions_response());
        for api in crate::codec::api::TABLE {
            assert_eq!(own.pick(api.key), Some(api.highest));
        }
    }

    #[test]
    fn answers_are_matched_to_requests_in_order() {
        let mut codec = ClientCodec::new("me");
        let heartbeat = Request::from(kafka::HeartbeatRequest::default());
        let metadata = Request::from(kafka::MetadataRequest::default());
        assert_eq!(codec.encode(0, &heartbeat).unwrap().0, 0);
        assert_eq!(codec.encode(9, &metadata).unwrap().0, 1);
        let unanswered = Request::from(crate::codec::produce::ProduceRequest::default());
        assert_eq!(codec.encode(9, &unanswered).unwrap().0, 2);
        assert_eq!(codec.encode(0, &heartbeat).unwrap().0, 3);
        assert_eq!(codec.in_flight(), 3);

        let first = codec.answer(&Bytes::from_static(&[0, 0, 0, 0, 0, 27])).unwrap();
        assert_eq!((first.api, first.version, first.correlation_id), (ApiKey::Heartbeat, 0, 0));
        let wrong = first.clone().decode::<kafka::MetadataRequest>();
        assert_eq!(wrong, Err(AnswerError::OtherApi { wanted: ApiKey::Metadata, got: ApiKey::Heartbeat }));
        assert_eq!(first.decode::<kafka::HeartbeatRequest>().unwrap().error_code, 27);
        let out_of_order = codec.answer(&Bytes::from_static(&[0, 0, 0, 9, 0]));
        assert_eq!(out_of_order, Err(AnswerError::OutOfOrder { awaited: 1, got: 9 }));
        let long = codec.answer(&Bytes::from_static(&[0, 0, 0, 3, 0, 0, 0])).unwrap();
        assert!(matches!(long.decode::<kafka::HeartbeatRequest>(), Err(AnswerError::Malformed { .. })));
        assert_eq!(codec.answer(&Bytes::new()), Err(AnswerError::Unasked));
    }
}
