//! Kafka's wire protocol, the connections that carry it, and a minimal client.
//!
//! Knows nothing of storage or consensus. The codec (`api`, `frame`, `bounds`, `request`, `response`, `produce`, `fetch`,
//! `batch`) is sans-IO; sockets are in `listen`, `conn` and `client_blocking`, and only `rt` names the runtime.
//!
//! Invariants: nothing here allocates by a length that a peer merely claims; record batches are never copied or
//! re-encoded on the way through; no input makes this crate panic.

pub mod api;
pub mod batch;
pub mod batch_build;
#[cfg(test)]
mod batch_tests;
mod bounds;
pub mod client;
pub mod client_blocking;
pub mod compression;
pub mod conn;
#[cfg(test)]
mod conn_tests;
pub mod errors;
pub mod fetch;
pub mod frame;
#[cfg(test)]
mod golden_tests;
pub mod header;
pub mod listen;
pub mod parts;
pub mod peer;
pub mod peer_auth;
pub mod produce;
pub mod record;
pub mod request;
#[cfg(test)]
mod request_tests;
pub mod response;
#[cfg(test)]
mod response_tests;
mod rt;
pub mod scan;
#[cfg(test)]
mod scan_tests;
mod schema;
mod schema_response;
pub mod shape;
#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod testing;
pub mod turn;
mod unfold;
pub mod wire;

/// The message types of the control APIs, as the `kafka-protocol` crate generates them from Kafka's own schemas.
pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::StrBytes;
pub use uuid::Uuid;
