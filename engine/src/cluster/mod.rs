//! The cluster: how brokers found or join one, its metadata, and the connections between brokers.

pub mod bootstrap;
mod calling;
pub mod internal_topics;
pub mod meta;
pub mod node_id;
pub mod peers;
pub mod placement;
pub mod secret;
