//! Kafka's messages as bytes: frames, headers, requests and responses in all their versions. Sans-IO.

pub mod api;
pub(crate) mod bounds;
pub(crate) mod encode;
pub mod fetch;
pub mod frame;
#[cfg(test)]
mod golden_tests;
pub mod header;
pub mod parts;
pub mod produce;
pub mod request;
pub mod response;
pub(crate) mod schema;
pub(crate) mod table;
pub mod wire;
