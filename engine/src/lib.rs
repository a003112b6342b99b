//! The broker: cores, mesh, placement, partitions, group coordinator, Kafka handlers, metrics, CLI.

pub mod admin;
pub mod admin_pages;
pub mod admission;
pub mod banner;
pub mod bootstrap;
pub mod broker;
pub mod cgroup;
pub mod cli;
pub mod cli_client;
pub mod cli_cluster;
pub mod cli_config;
pub mod cli_topic;
pub mod cli_wal;
pub mod clock;
pub mod config;
pub mod config_cluster;
pub mod config_layers;
pub mod config_topic;
pub mod config_value;
pub mod coordinator;
pub mod coordinators;
pub mod core;
pub mod cpus;
pub mod data_dir;
pub mod disk;
pub mod front;
pub mod groups;
pub mod kafka;
pub mod limits;
pub mod logging;
pub mod mesh;
pub mod meta;
pub mod metrics;
pub mod metrics_histogram;
pub mod partition;
pub mod peers;
pub mod producers;
mod producers_blob;
#[cfg(test)]
mod producers_tests;
pub mod replica;
pub mod retention;
pub mod rt;
pub mod serve;
#[cfg(test)]
mod sim;
pub mod sync;
