//! The options of `suite`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::options::parse::count;

const EXAMPLES: &str = "\
Examples, with nothing else at hand; the figures of a release; and beside others, in turns:
  millrace-bench suite quick
  millrace-bench suite full --markdown
  millrace-bench suite peers --peers kafka,kafka-flush,etcd --repeat 3";

#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct SuiteOptions {
    /// Which set is run.
    #[arg(value_enum)]
    pub set: Set,
    /// Where results go: SET.html, SET.json; and the brokers' data while it lasts, so on the disk that is to be measured
    /// [default: target/bench within a source tree, else the current directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The broker's program [default: what this source tree builds, or millrace beside this program]
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Only the cases whose name contains this.
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// How often the whole set is run, one time after the other, so that repeats of a case are spread over time; of the set peers, how
    /// often each case, with all systems in turns.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count)]
    pub repeat: usize,
    /// For the set peers: beside whom Millrace is measured [default: all three]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    pub peers: Vec<Peer>,
    /// Print the tables of bench/RESULTS.md.
    #[arg(long)]
    pub markdown: bool,
    /// The last line of output is one JSON object: where the results are, and how many there are.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Set {
    /// A look at everything in less than three minutes.
    Quick,
    /// The same and more, 20 s a case: the figures of a release.
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
    /// Apache Kafka in KRaft mode as it comes: it does not sync before it acknowledges. Needs Java and Maven.
    Kafka,
    /// The same with flush.messages=1.
    KafkaFlush,
    /// For metadata; needs a program etcd, and a build with the feature etcd.
    Etcd,
}
