//! Request and response headers.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_messages>. Flexible headers: KIP-482. The exception for
//! ApiVersions: KIP-511.
//!
//! ```text
//! request   INT16 key | INT16 version | INT32 correlation id | NULLABLE_STRING client id | v2: tagged fields
//! response  INT32 correlation id | v1: tagged fields
//! ```

use bytes::{BufMut, BytesMut};
use kafka_protocol::protocol::StrBytes;

use crate::codec::api::{ApiKey, Unsupported, supported};
use crate::codec::wire::{Malformed, Reader, TooLong, Write};

/// The fields of a request's header that are kept until its response is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader {
    pub api: ApiKey,
    pub version: i16,
    pub correlation_id: i32,
    /// A slice of the request's frame: copy it to keep it for long.
    pub client_id: Option<StrBytes>,
}

/// The fixed part, read before the key and version are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestPrefix {
    pub key: i16,
    pub version: i16,
    pub correlation_id: i32,
}

impl RequestPrefix {
    pub fn read(reader: &mut Reader<'_>) -> Result<RequestPrefix, Malformed> {
        Ok(RequestPrefix {
            key: reader.i16("api key")?,
            version: reader.i16("api version")?,
            correlation_id: reader.i32("correlation id")?,
        })
    }

    pub fn supported(self) -> Result<ApiKey, Unsupported> {
        supported(self.key, self.version)
    }
}

impl RequestHeader {
    /// Reads the rest of the header after the fixed part. The client id is never compact: KIP-482 kept it readable
    /// for old brokers.
    pub fn read(prefix: RequestPrefix, api: ApiKey, reader: &mut Reader<'_>) -> Result<RequestHeader, Malformed> {
        let client_id = reader.nullable_string("client id", false)?;
        reader.skip_tags("header", api.request_header_version(prefix.version) >= 2)?;
        Ok(RequestHeader { api, version: prefix.version, correlation_id: prefix.correlation_id, client_id })
    }

    /// Whether the message after this header has compact lengths and tagged fields.
    pub fn is_flexible(&self) -> bool {
        self.api.is_flexible(self.version)
    }

    /// For clients: writes the request header.
    pub fn write(&self, out: &mut BytesMut) -> Result<(), TooLong> {
        out.put_i16(self.api as i16);
        out.put_i16(self.version);
        out.put_i32(self.correlation_id);
        out.put_nullable_string(self.client_id.as_deref(), false)?;
        out.put_no_tags(self.api.request_header_version(self.version) >= 2);
        Ok(())
    }

    /// Writes the header of the response to this request.
    pub fn write_response_header(&self, out: &mut BytesMut) {
        out.put_i32(self.correlation_id);
        out.put_no_tags(self.api.response_header_version(self.version) >= 1);
    }

    /// For clients: reads the header of the response to a request of this API and version. Returns its correlation
    /// id.
    pub fn read_response_header(api: ApiKey, version: i16, reader: &mut Reader<'_>) -> Result<i32, Malformed> {
        let correlation_id = reader.i32("correlation id")?;
        reader.skip_tags("response header", api.response_header_version(version) >= 1)?;
        Ok(correlation_id)
    }
}
