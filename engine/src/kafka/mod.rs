//! What Kafka requests mean: one handler per API.
//! Lives on: the core of the client's connection; a handler reaches partitions and metadata through [`Core`].

mod api_versions;
mod cluster;
mod configs;
mod fetch;
mod groups;
mod list_offsets;
mod producer_ids;
mod produce;
mod topics;

use crate::core::Core;
use net::{
    api::ApiKey,
    header::RequestHeader,
    request::Request,
    response::Response,
};
use std::{future::Future, pin::Pin, rc::Rc};

/// An answer on its way; `None` where the protocol has none (produce with acks=0).
pub type Pending = Pin<Box<dyn Future<Output = Option<Response>>>>;

/// Starts a request. Produce has taken its place in the logs when this returns; the others begin when the answers before
/// theirs have left.
pub fn start(core: &Rc<Core>, header: &RequestHeader, request: Request) -> Pending {
    let core = core.clone();
    let version = header.version;
    let client = header.client_id.clone();
    match request {
        Request::Produce(request) => produce::start(&core, request, version),
        Request::Fetch(request) => reply(async move { fetch::handle(&core, request, version).await.into() }),
        Request::ApiVersions(request) => reply(async move { api_versions::handle(request, version).into() }),
        Request::Metadata(request) => reply(async move { topics::metadata(&core, request, version).await.into() }),
        Request::CreateTopics(request) => reply(async move { topics::create(&core, request, version).await.into() }),
        Request::DeleteTopics(request) => reply(async move { topics::delete(&core, request, version).await.into() }),
        Request::CreatePartitions(request) => reply(async move { topics::add_partitions(&core, request).await.into() }),
        _ => unimplemented!("{client:?}"),
    }
}

fn reply(answer: impl Future<Output = Response> + 'static) -> Pending {
    Box::pin(async move { Some(answer.await) })
}

/// The header and answer for an ApiVersions version that is not served: version 0, error 35 and the table (KIP-511).
pub fn unknown_api_versions(correlation_id: i32) -> (RequestHeader, Pending) {
    let header = RequestHeader { api: ApiKey::ApiVersions, version: 0, correlation_id, client_id: None };
    (header, reply(async { net::api::api_versions_fallback().into() }))
}
