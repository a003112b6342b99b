//! Requests: from a frame to a header and a decoded message.
//!
//! Produce and Fetch decode themselves, without copying. The `kafka-protocol` crate decodes the control APIs.

#[cfg(test)]
mod tests;

use bytes::Bytes;
// The messages of the control APIs.
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable};

use crate::codec::api::{ApiKey, Unsupported};
use crate::codec::bounds;
pub use crate::codec::bounds::ELEMENT_BYTES_MAX;
use crate::codec::encode::{EncodeError, frame, write_control};
use crate::codec::fetch::FetchRequest;
use crate::codec::header::{RequestHeader, RequestPrefix};
use crate::codec::parts::{Parts, PartsBuilder};
use crate::codec::produce::ProduceRequest;
use crate::codec::table::each_api;
use crate::codec::wire::{Malformed, Reader};

/// Why a frame is not a request that can be handled. Each variant says how to react.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Answer with [`crate::codec::response::encode_api_versions_fallback`] and keep the connection (KIP-511).
    #[error("ApiVersions version {version} is not served")]
    ApiVersionsVersion { version: i16, correlation_id: i32 },
    /// Close: the client ignored the ApiVersions response, and no layout for an answer is known.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Close: the bytes are not the message that the header names.
    #[error("{}: {source}", of_api(*.api, *.version))]
    Malformed { api: Option<ApiKey>, version: i16, source: Malformed },
}

fn of_api(api: Option<ApiKey>, version: i16) -> String {
    match api {
        Some(api) => format!("malformed {} request, version {version}", api.api().name),
        None => "malformed request header".to_owned(),
    }
}

/// How a request's message is decoded and encoded.
trait Body: Sized {
    fn read_body(api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<Self, Malformed>;
    fn write_body(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError>;
}

impl Body for ProduceRequest {
    fn read_body(_: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<ProduceRequest, Malformed> {
        ProduceRequest::read(reader, version)
    }

    fn write_body(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        self.write(parts, version)
    }
}

impl Body for FetchRequest {
    fn read_body(_: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<FetchRequest, Malformed> {
        FetchRequest::read(reader, version)
    }

    fn write_body(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        self.write(parts.fields(), version)
    }
}

/// The codec decodes a control API's message after [`bounds::check_request`] has accepted it.
impl<T: Decodable + Encodable> Body for T {
    fn read_body(api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<T, Malformed> {
        let mut body = reader.rest();
        bounds::check_request(api, version, &body)?;
        let message = T::decode(&mut body, version).map_err(|e| Malformed::Codec(e.to_string()))?;
        let used = reader.remaining() - body.len();
        reader.skip("message", used)?;
        Ok(message)
    }

    fn write_body(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
        write_control(self, parts.fields(), version)
    }
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident($request:ident => $response:ident) $row:tt)*) => {
        /// A decoded request. Its strings and bytes are slices of the frame: copy what is kept for long.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Request { $($name($request),)* }

        impl Request {
            pub fn api(&self) -> ApiKey {
                match self { $(Request::$name(_) => ApiKey::$name,)* }
            }

            fn read(api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<Request, Malformed> {
                Ok(match api { $(ApiKey::$name => Request::$name(Body::read_body(api, version, reader)?),)* })
            }

            fn write(&self, parts: &mut PartsBuilder, version: i16) -> Result<(), EncodeError> {
                match self { $(Request::$name(request) => request.write_body(parts, version),)* }
            }
        }

        $(impl From<$request> for Request {
            fn from(request: $request) -> Request { Request::$name(request) }
        })*
    };
}

each_api!(requests);

/// A body of this size has too few elements to count.
const SMALL_BODY_BYTES: usize = 1 << 10;

/// A request whose header only has been decoded. It takes little more memory than its frame.
#[derive(Debug, Clone)]
pub struct Undecoded {
    pub header: RequestHeader,
    body: Bytes,
}

/// Decodes a frame without its length prefix.
pub fn decode(frame: &Bytes) -> Result<(RequestHeader, Request), DecodeError> {
    decode_header(frame)?.decode()
}

impl Undecoded {
    /// About as many bytes as the decoded body takes in addition to the frame. Bodies of up to 1 KiB count as 0.
    pub fn decoded_bytes(&self) -> Result<usize, DecodeError> {
        if self.body.len() <= SMALL_BODY_BYTES {
            return Ok(0);
        }
        let RequestHeader { api, version, .. } = self.header;
        let malformed = |source| DecodeError::Malformed { api: Some(api), version, source };
        bounds::decoded_bytes(api, version, &self.body).map_err(malformed)
    }

    /// The body's length on the wire.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// Decodes the body. The frame stays in memory only as far as the header or the request has slices of it.
    pub fn decode(self) -> Result<(RequestHeader, Request), DecodeError> {
        let RequestHeader { api, version, .. } = self.header;
        let malformed = |source| DecodeError::Malformed { api: Some(api), version, source };
        let request = Request::read(api, version, &mut Reader::new(&self.body)).map_err(malformed)?;
        Ok((self.header, request))
    }
}

/// Decodes the header of a frame without its length prefix.
pub fn decode_header(frame: &Bytes) -> Result<Undecoded, DecodeError> {
    let mut reader = Reader::new(frame);
    let prefix =
        RequestPrefix::read(&mut reader).map_err(|source| DecodeError::Malformed { api: None, version: 0, source })?;
    let api = prefix.supported().map_err(|unsupported| match unsupported {
        Unsupported::Version { api: ApiKey::ApiVersions, version } => {
            DecodeError::ApiVersionsVersion { version, correlation_id: prefix.correlation_id }
        }
        other => DecodeError::Unsupported(other),
    })?;
    let malformed = |source| DecodeError::Malformed { api: Some(api), version: prefix.version, source };
    let header = RequestHeader::read(prefix, api, &mut reader).map_err(malformed)?;
    Ok(Undecoded { header, body: reader.rest() })
}

/// For clients: encodes a request with its length prefix. Records are shared, not copied.
pub fn encode(header: &RequestHeader, request: &Request) -> Result<Parts, EncodeError> {
    if request.api() != header.api {
        return Err(EncodeError::OtherApi { header: header.api, message: request.api() });
    }
    frame(|parts| {
        header.write(parts.fields())?;
        request.write(parts, header.version)
    })
}
