//! The broker: cores, mesh, placement, partitions, group coordinator, Kafka handlers, metrics, command line.

pub mod admin;
pub mod broker;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod coordinator;
pub mod core;
pub mod handlers;
pub mod host;
pub mod liveness;
pub mod log_limit;
pub mod long_work;
pub mod memory;
pub mod metrics;
pub mod on_core;
pub mod pace;
pub mod partition;
pub mod serve;
pub mod start_error;
mod stdout;
