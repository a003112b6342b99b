//! Responses: from a message to the parts of a frame, length prefix included.

mod shape;
#[cfg(test)]
mod tests;

// The messages of the control APIs.
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Encodable;

use crate::codec::api::{ApiKey, api_versions_fallback};
pub use crate::codec::encode::EncodeError;
use crate::codec::encode::{frame, write_control};
use crate::codec::fetch::FetchResponse;
use crate::codec::header::RequestHeader;
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::ProduceResponse;
use crate::codec::table::each_api;

/// How a response's message is encoded.
trait Body {
    fn write_body(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError>;
}

impl Body for ProduceResponse {
    fn write_body(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        self.write(parts.fields(), version)
    }
}

impl Body for FetchResponse {
    fn write_body(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        self.write(parts, version)
    }
}

impl<T: Encodable> Body for T {
    fn write_body(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        write_control(&self, parts.fields(), version)
    }
}

macro_rules! responses {
    ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*) => {
        /// A response of the API that the variant names.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Response { $($name($response),)* }

        impl Response {
            pub fn api(&self) -> ApiKey {
                match self { $(Response::$name(_) => ApiKey::$name,)* }
            }

            fn write(self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
                match self { $(Response::$name(response) => response.write_body(parts, version),)* }
            }
        }

        $(impl From<$response> for Response {
            fn from(response: $response) -> Response { Response::$name(response) }
        })*
    };
}

each_api!(responses);

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
