//! The broker: cores, mesh, placement, partitions, group coordinator, Kafka handlers, metrics, CLI.

pub mod admin;
pub mod admin_pages;
pub mod banner;
pub mod cgroup;
pub mod cli;
pub mod cli_config;
pub mod cli_topic;
pub mod config;
pub mod config_layers;
pub mod config_topic;
pub mod config_value;
pub mod coordinator;
pub mod cpus;
pub mod data_dir;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod metrics_histogram;
pub mod producers;
mod producers_blob;
#[cfg(test)]
mod producers_tests;
