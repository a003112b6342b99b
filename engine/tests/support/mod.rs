//! The common parts of the black-box tests: a real broker process, real clients, and the checker of acknowledged
//! records.

// Each test binary uses only some of these modules.
#![allow(dead_code)]

pub mod broker;
pub mod clients;
pub mod cluster;
pub mod faults;
pub mod fixture;
pub mod history;
pub mod ledger;
pub mod metadata_clients;
pub mod metadata_history;
pub mod program;
pub mod proxy;
pub mod small_disk;
pub mod tool;
pub mod wire;

use std::time::Duration;

/// Time that anything may take before a test gives up. A bound, never a measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);
