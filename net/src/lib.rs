//! Kafka's wire protocol, the connections that carry it, and a minimal client.
//!
//! This crate knows nothing of storage or consensus. The modules [`codec`] and [`records`] are sans-IO. Sockets are
//! in [`transport`], [`peer`] and [`client::blocking`]. Only they name the runtime.
//!
//! Invariants:
//! - This crate never allocates memory by a length that a peer merely claims.
//! - It never re-encodes record batches, and it copies a batch only to correct a wrong maximum timestamp.
//! - No input makes it panic.

pub mod client;
pub mod codec;
pub mod errors;
pub mod peer;
pub mod records;
#[cfg(test)]
mod testing;
pub mod transport;
pub mod turn;

/// The message types of the control APIs, as the `kafka-protocol` crate generates them from Kafka's own schemas.
pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::StrBytes;
pub use uuid::Uuid;
