//! The options of `compare`.

use std::path::PathBuf;

use clap::Args;

use crate::options::parse::count;

const EXAMPLES: &str = "\
Examples: two builds that run side by side, in turns; then two existing files:
  millrace-bench compare old.json new.json --repeat 12 \\
      --run-a 'produce --bootstrap 127.0.0.1:9092 --rate 10000' --run-b 'produce --bootstrap 127.0.0.1:9093 --rate 10000'
  millrace-bench compare old.json new.json";

#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareOptions {
    /// Results, one JSON object a line, as --out writes them.
    #[arg(value_name = "A.json")]
    pub a: PathBuf,
    /// Results that the table states as multiples of A's.
    #[arg(value_name = "B.json")]
    pub b: PathBuf,
    /// Run this workload in turns with that of --run-b before comparing; its results are appended to A.json.
    #[arg(long, value_name = "OPTIONS", requires = "run_b")]
    pub run_a: Option<String>,
    /// The other workload of --run-a; its results are appended to B.json.
    #[arg(long, value_name = "OPTIONS", requires = "run_a")]
    pub run_b: Option<String>,
    /// How often --run-a and --run-b are run.
    #[arg(long, default_value_t = 12, value_name = "N", value_parser = count, requires = "run_a")]
    pub repeat: usize,
    /// The last line of output is one JSON object; the table goes to standard error.
    #[arg(long)]
    pub json: bool,
}
