//! The broker: cores, mesh, placement, partitions, group coordinator, Kafka handlers, metrics, command line.

pub mod admin;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod coordinator;
pub mod core;
pub mod failure;
pub mod handlers;
pub mod host;
pub mod liveness;
pub mod log_limit;
pub mod memory;
pub mod metrics;
pub mod partition;
pub mod rt;
pub mod serve;
#[cfg(test)]
mod sim;
pub mod start_error;
pub mod sync;
