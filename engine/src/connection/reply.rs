//! How requests end for their connection.

use crate::memory::Held;
use net::codec::{api::ApiKey, header::RequestHeader, response::Response};
use std::pin::Pin;

/// How a request ends for its connection.
pub enum Reply {
    Send(Response),
    /// An answer whose memory is held until it is sent.
    SendHeld(Response, Held),
    /// The protocol has no answer here, as for a produce request with acks=0 that was appended.
    Nothing,
    /// The protocol has no answer, but the client must learn of an error. So its connection is closed.
    HangUp {
        why: String,
    },
}

impl Reply {
    pub fn response(self) -> Option<Response> {
        match self {
            Reply::Send(response) | Reply::SendHeld(response, _) => Some(response),
            Reply::Nothing | Reply::HangUp { .. } => None,
        }
    }
}

/// A reply in progress.
pub type Pending = Pin<Box<dyn Future<Output = Reply>>>;

/// Whether a request reads records, which may take a long time and much memory.
pub fn reads_records(api: ApiKey) -> bool {
    matches!(api, ApiKey::Fetch | ApiKey::ListOffsets)
}

/// Whether a request waits for other members of its group, which may take minutes. The group's coordinator needs no
/// client for it: dropping the wait only drops the answer.
pub fn waits_for_members(api: ApiKey) -> bool {
    matches!(api, ApiKey::JoinGroup | ApiKey::SyncGroup)
}

/// The header and answer for an ApiVersions version that is not served: version 0, error 35 and the table (KIP-511).
pub fn unknown_api_versions(correlation_id: i32) -> (RequestHeader, Pending) {
    let header = RequestHeader { api: ApiKey::ApiVersions, version: 0, correlation_id, client_id: None };
    (header, Box::pin(async { Reply::Send(net::codec::api::api_versions_fallback().into()) }))
}
