//! The results of a run and its samples over time.

use serde::{Deserialize, Serialize};

use crate::figures::stats::Tally;

/// Figures of the interval between two moments of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// End of the interval, counted from the start of the run, warm-up included.
    pub seconds: f64,
    pub per_s: f64,
    pub mb_per_s: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Errors since the start of the run.
    pub errors: u64,
    /// The busy share of each CPU of the machine, 0 to 1.
    pub cpus: Vec<f64>,
}

/// The results of a run, the CPU share of its busiest thread, and its samples over time.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tally: Tally,
    pub thread_cpu_share_max: f64,
    pub series: Vec<Sample>,
}
