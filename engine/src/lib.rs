//! The broker: cores, mesh, placement, partitions, group coordinator, Kafka handlers, metrics, CLI.

pub mod coordinator;
pub mod producers;
mod producers_blob;
#[cfg(test)]
mod producers_tests;
