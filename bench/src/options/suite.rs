//! The options of `suite`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::options::parse::count;

const EXAMPLES: &str = "\
Examples: a quick run; the figures of a release; other systems, in turns:
  millrace-bench suite quick
  millrace-bench suite full --markdown
  millrace-bench suite peers --peers kafka,kafka-flush,etcd --repeat 3";

#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct SuiteOptions {
    /// The set to run.
    #[arg(value_enum)]
    pub set: Set,
    /// Directory for results (SET.html, SET.json) and for the brokers' data during the run, so choose the disk to be
    /// measured [default: target/bench within a source tree, else the current directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The broker's program [default: the one that this source tree builds, or millrace beside this program]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Run only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// How often to run the whole set, one time after the other, so that repeats of a case are spread over time; for
    /// the set peers, how often to run each case, with all systems in turns.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count)]
    pub repeat: usize,
    /// For the set peers: the systems to compare Millrace with [default: all three]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub peers: Vec<Peer>,
    /// Print the tables of bench/RESULTS.md.
    #[arg(long)]
    pub markdown: bool,
    /// Print one JSON object as the last line of output: where the results are, and how many there are.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Set {
    /// All workloads briefly, in less than three minutes.
    Quick,
    /// The same and more, with 20 s per case: the figures of a release.
    Full,
    /// A few workloads against several systems, in turns.
    Peers,
}

impl Set {
    pub fn name(self) -> &'static str {
        match self {
            Set::Quick => "quick",
            Set::Full => "full",
            Set::Peers => "peers",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Apache Kafka in KRaft mode with its defaults: it does not sync before it acknowledges. Needs Java and Maven.
    Kafka,
    /// The same with flush.messages=1.
    KafkaFlush,
    /// For metadata; needs a program etcd, and a build with the feature etcd.
    Etcd,
}
