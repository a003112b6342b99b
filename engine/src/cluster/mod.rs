//! What brokers do together: how a cluster begins, its metadata, the connections between its brokers.

pub mod bootstrap;
pub mod internal_topics;
pub mod meta;
pub mod peers;
pub mod secret;
