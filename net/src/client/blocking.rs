//! A blocking client with one connection, for command-line tools and tests.

use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::{self, ApiVersionsRequest, ApiVersionsResponse, FetchResponse, ProduceResponse};
use kafka_protocol::protocol::{Request as ControlRequest, StrBytes};

use crate::client::{Answer, AnswerError, BrokerVersions, ClientCodec};
use crate::codec::api::ApiKey;
use crate::codec::fetch::FetchRequest;
use crate::codec::frame::{FrameDecoder, FrameError};
use crate::codec::parts::Parts;
use crate::codec::produce::{ProduceRequest, TOPIC_NAME_TO, TopicRef};
use crate::codec::request::Request;
use crate::codec::response::EncodeError;
use crate::errors::{self, ErrorCode};

/// A response may be as large as a frame can be.
const ANSWER_BYTES_MAX: usize = i32::MAX as usize;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: String, source: io::Error },
    #[error("no answer from {addr} within {} ms", .timeout.as_millis())]
    Timeout { addr: String, timeout: Duration },
    #[error("{addr} closed the connection")]
    Closed { addr: String },
    #[error("{addr} and this program support no common version of {api:?}")]
    NoCommonVersion { addr: String, api: ApiKey },
    #[error("{addr} refused {api:?}: {error}")]
    Refused { addr: String, api: ApiKey, error: ErrorCode },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// A connection whose versions have been negotiated.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    addr: String,
    timeout: Duration,
    codec: ClientCodec,
    decoder: FrameDecoder,
    versions: BrokerVersions,
}

impl Client {
    /// Connects to `addr` (host and port; tries every address of the host) and negotiates versions. `timeout` applies
    /// to connecting and then to each response.
    pub fn connect(addr: &str, client_id: &str, timeout: Duration) -> Result<Client, ClientError> {
        let failed = |source| ClientError::Connect { addr: addr.to_owned(), source };
        let stream = connect_any(addr, timeout).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_read_timeout(Some(timeout)).map_err(failed)?;
        stream.set_write_timeout(Some(timeout)).map_err(failed)?;
        let mut client = Client {
            stream,
            addr: addr.to_owned(),
            timeout,
            codec: ClientCodec::new(client_id),
            decoder: FrameDecoder::new(ANSWER_BYTES_MAX),
            versions: BrokerVersions::default(),
        };
        client.negotiate()?;
        Ok(client)
    }

    /// Sends ApiVersions in the newest version. A broker that does not know it answers in version 0 with its own
    /// range (KIP-511).
    fn negotiate(&mut self) -> Result<(), ClientError> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("millrace"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let version = ApiKey::ApiVersions.api().highest;
        let mut answer = self.ask(version, &request.into())?;
        if answer.body.starts_with(&ErrorCode::UnsupportedVersion.code().to_be_bytes()) {
            answer.version = 0;
            let fallback = answer.decode::<ApiVersionsRequest>()?;
            let version = BrokerVersions::from(&fallback).pick(ApiKey::ApiVersions).unwrap_or(0);
            answer = self.ask(version, &ApiVersionsRequest::default().into())?;
        }
        let response: ApiVersionsResponse = answer.decode::<ApiVersionsRequest>()?;
        errors::check(response.error_code).map_err(|error| ClientError::Refused {
            addr: self.addr.clone(),
            api: ApiKey::ApiVersions,
            error,
        })?;
        self.versions = BrokerVersions::from(&response);
        Ok(())
    }

    /// The highest version that both sides support.
    pub fn version(&self, api: ApiKey) -> Result<i16, ClientError> {
        self.versions.pick(api).ok_or_else(|| ClientError::NoCommonVersion { addr: self.addr.clone(), api })
    }

    /// Sends a request in the highest common version and waits for the response.
    pub fn call<R>(&mut self, request: R) -> Result<R::Response, ClientError>
    where
        R: ControlRequest + Into<Request>,
    {
        let request = request.into();
        let version = self.version(request.api())?;
        Ok(self.ask(version, &request)?.decode::<R>()?)
    }

    /// Produces by topic name or id; the request must use one of them throughout. Not for acks=0, which gets no
    /// response.
    pub fn produce(&mut self, request: ProduceRequest) -> Result<ProduceResponse, ClientError> {
        let by_id = request.topics.iter().any(|topic| matches!(topic.topic, TopicRef::Id(_)));
        let version = self.version_naming(ApiKey::Produce, by_id)?;
        Ok(self.ask(version, &request.into())?.decode::<messages::ProduceRequest>()?)
    }

    /// Fetches by topic name or id; the request must use one of them throughout.
    pub fn fetch(&mut self, request: FetchRequest) -> Result<FetchResponse, ClientError> {
        let by_id = request.topics.iter().any(|topic| matches!(topic.topic, TopicRef::Id(_)));
        let version = self.version_naming(ApiKey::Fetch, by_id)?;
        Ok(self.ask(version, &request.into())?.decode::<messages::FetchRequest>()?)
    }

    fn version_naming(&self, api: ApiKey, by_id: bool) -> Result<i16, ClientError> {
        let at_most = if by_id { i16::MAX } else { TOPIC_NAME_TO };
        let version = self.versions.pick_at_most(api, at_most).filter(|version| !by_id || *version > TOPIC_NAME_TO);
        version.ok_or_else(|| ClientError::NoCommonVersion { addr: self.addr.clone(), api })
    }

    /// Sends a request in a version that the caller picks, and waits for the response. Does not decode its body.
    pub fn ask(&mut self, version: i16, request: &Request) -> Result<Answer, ClientError> {
        self.send(version, request)?;
        self.receive()
    }

    /// Sends a request without waiting for the response. Returns its correlation id.
    pub fn send(&mut self, version: i16, request: &Request) -> Result<i32, ClientError> {
        let (correlation_id, parts) = self.codec.encode(version, request)?;
        self.write_all(&parts)?;
        Ok(correlation_id)
    }

    /// Waits for the next response.
    pub fn receive(&mut self) -> Result<Answer, ClientError> {
        let frame = self.read_frame()?;
        Ok(self.codec.answer(&frame)?)
    }

    fn write_all(&mut self, parts: &Parts) -> Result<(), ClientError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.stream.write_vectored(left) {
                Ok(0) => return Err(ClientError::Closed { addr: self.addr.clone() }),
                Ok(byte_count) => IoSlice::advance_slices(&mut left, byte_count),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io_error(e)),
            }
        }
        Ok(())
    }

    fn read_frame(&mut self) -> Result<Bytes, ClientError> {
        let mut chunk = [0u8; 64 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed { addr: self.addr.clone() }),
                Ok(byte_count) => self.decoder.extend(&chunk[..byte_count]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io_error(e)),
            }
        }
    }

    fn io_error(&self, error: io::Error) -> ClientError {
        match error.kind() {
            // The platform determines which of the two errors a timeout is.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout { addr: self.addr.clone(), timeout: self.timeout }
            }
            _ => error.into(),
        }
    }
}

fn connect_any(addr: &str, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addr.to_socket_addrs()? {
        match TcpStream::connect_timeout(&addr, timeout) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}
