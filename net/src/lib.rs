//! Kafka's wire protocol, the connections that carry it, and a minimal client.
//!
//! Knows nothing of storage or consensus. The codec (`api`, `frame`, `bounds`, `request`, `response`, `produce`, `fetch`,
//! `batch`) is sans-IO; sockets are in `listen`, `conn` and `client_blocking`, and only `rt` names the runtime.
//!
//! Invariants: nothing here allocates by a length that a peer merely claims; record batches are never copied or
//! re-encoded on the way through; no input makes this crate panic.

pub mod client;
pub mod codec;
pub mod errors;
pub mod peer;
pub mod records;
mod rt;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod turn;

/// The message types of the control APIs, as the `kafka-protocol` crate generates them from Kafka's own schemas.
pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::StrBytes;
pub use uuid::Uuid;
