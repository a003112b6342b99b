//! The command line: the workloads, and the options that are the same for all of them.

pub(crate) mod compare;
pub(crate) mod parse;
pub(crate) mod sizes;
pub(crate) mod suite;
pub(crate) mod workloads;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use net::records::compression::Codec;

use crate::options::compare::CompareOptions;
use crate::options::parse::{count, duration, rate, size};
use crate::options::sizes::Sizes;
use crate::options::suite::SuiteOptions;
#[cfg(feature = "etcd")]
use crate::options::workloads::EtcdOptions;
use crate::options::workloads::{
    BacklogOptions, CommitsOptions, ConsumeOptions, EndToEndOptions, FailoverOptions, ManyPartitionsOptions,
    MeshOptions, MetadataOptions, ProduceOptions, ReadyLoopOptions, WalOptions,
};

/// A load harness for Kafka-compatible brokers.
///
/// Open loop: with --rate, each record has an intended send time, and its latency counts from that time. So every
/// record that a stall delayed shows the stall.
///
/// Every run first measures what the machine itself allows (raw writes, loopback). It states its figures as shares of
/// that, because machines differ.
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version, after_help = EXAMPLES)]
pub struct Command {
    #[command(subcommand)]
    pub workload: Workload,
}

const EXAMPLES: &str = "\
Examples, such as full speed, a fixed rate, many partitions, reads and the ring alone:
  millrace-bench produce --record-size 100 --duration 20s
  millrace-bench produce --rate 10000 --linger 0ms --json
  millrace-bench produce --rate 16000 --partitions 200 --linger 0ms
  millrace-bench produce --record-size 100:9,10KiB:1 --keys 1000 --codec lz4
  millrace-bench produce --client librdkafka --rate 10000 --repeat 5 --out results.json --report report.html
  millrace-bench consume --topic bench --to-end
  millrace-bench end-to-end --rate 10000 --linger 0ms --topic tail
  millrace-bench metadata --acks quorum --in-flight 64
  millrace-bench metadata --operation read --peer 127.0.0.1:9292 --in-flight 64
  millrace-bench metadata --operation create-topics --bootstrap 127.0.0.1:9093
  millrace-bench ready-loop --in-flight 64 --admin 127.0.0.1:9644
  millrace-bench mesh --in-flight 8
  millrace-bench commits --groups 100 --in-flight 8
  millrace-bench many-partitions --partitions 10,1000,10000 --rate 10000 --linger 0ms
  millrace-bench backlog --backlog 4GiB --data-dir ./millrace-data
  millrace-bench failover --kills 5
  millrace-bench failover --pid-dir /tmp/cluster --bootstrap 127.0.0.1:9092,127.0.0.1:9093,127.0.0.1:9094
  millrace-bench wal --record-size 4KiB --in-flight 8
  millrace-bench compare old.json new.json
  millrace-bench suite quick
Each workload's --help has all of its options.";

#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Send records and measure the time from each record's intended send time to its acknowledgement.
    Produce(ProduceOptions),
    /// Read a topic and measure throughput and the time of each fetch.
    Consume(ConsumeOptions),
    /// Produce and consume at once, and measure the time from each record's intended send time until a consumer has
    /// it.
    EndToEnd(EndToEndOptions),
    /// Write or read metadata over the peer port, or create and delete topics like any client.
    Metadata(MetadataOptions),
    /// Write metadata, and report what a turn of each broker's Raft ready loop costs meanwhile, in wall and CPU time.
    ReadyLoop(ReadyLoopOptions),
    /// Send messages from one core of a broker to another and back, through the broker's own queues.
    Mesh(MeshOptions),
    /// Commit offsets of consumer groups.
    Commits(CommitsOptions),
    /// Produce to topics with more and more partitions, one topic after the other.
    ManyPartitions(ManyPartitionsOptions),
    /// Drain a cold log while others produce and read at its tail: the drain's throughput, the tail's latency.
    Backlog(BacklogOptions),
    /// Kill the broker that leads a partition, repeatedly, and measure how long nothing is acknowledged.
    Failover(FailoverOptions),
    /// Measure the WAL ring on each disk backend beside raw O_DIRECT write + fdatasync. Needs no broker.
    Wal(WalOptions),
    /// Write or read keys of etcd, the peer that metadata is compared with.
    #[cfg(feature = "etcd")]
    Etcd(EtcdOptions),
    /// Run a set of workloads against brokers that the suite starts itself, and write a report.
    Suite(SuiteOptions),
    /// Compare two files of results, or two workloads in turns: ratios with confidence bounds.
    Compare(CompareOptions),
    /// Child process that measures the client's cap: serves librdkafka's mock cluster until standard input ends.
    #[cfg(feature = "librdkafka")]
    #[command(hide = true)]
    MockCluster(MockClusterOptions),
}

impl Workload {
    /// The options of a single run; `None` for commands that are not one run.
    pub fn run_options(&mut self) -> Option<&mut RunOptions> {
        match self {
            Workload::Produce(options) => Some(&mut options.run),
            Workload::Consume(options) => Some(&mut options.run),
            Workload::EndToEnd(options) => Some(&mut options.run),
            Workload::Metadata(options) => Some(&mut options.run),
            Workload::ReadyLoop(options) => Some(&mut options.run),
            Workload::Mesh(options) => Some(&mut options.run),
            Workload::Commits(options) => Some(&mut options.run),
            Workload::ManyPartitions(options) => Some(&mut options.run),
            Workload::Backlog(options) => Some(&mut options.run),
            Workload::Failover(options) => Some(&mut options.run),
            Workload::Wal(options) => Some(&mut options.run),
            #[cfg(feature = "etcd")]
            Workload::Etcd(options) => Some(&mut options.run),
            Workload::Suite(_) | Workload::Compare(_) => None,
            #[cfg(feature = "librdkafka")]
            Workload::MockCluster(_) => None,
        }
    }
}

impl Command {
    /// Parses a command line that begins with the program's name. Records the effective value of every option, given
    /// or default, for the results.
    pub fn parse_all(arguments: impl IntoIterator<Item = String>) -> Result<Command, clap::Error> {
        let matches = Command::command().try_get_matches_from(arguments)?;
        let mut command = Command::from_arg_matches(&matches)?;
        if let (Some(run), Some((name, matches))) = (command.workload.run_options(), matches.subcommand()) {
            run.config = effective(name, matches);
        }
        Ok(command)
    }
}

/// Every option of a workload with its effective value, as it would be written on the command line.
fn effective(name: &str, matches: &clap::ArgMatches) -> BTreeMap<String, String> {
    let command = Command::command();
    let workload = command.find_subcommand(name).expect("it was parsed");
    let value = |argument: &clap::Arg| {
        let long = argument.get_long()?.to_owned();
        let values = matches.try_get_raw(argument.get_id().as_str()).ok().flatten()?;
        let values: Vec<String> = values.map(|value| value.to_string_lossy().into_owned()).collect();
        Some((long, values.join(",")))
    };
    workload.get_arguments().filter_map(value).collect()
}

#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// How long to measure, after the warm-up: 20s, 500ms, 2m.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// How long to run before the measurement starts; not measured.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warm_up: Duration,
    /// Print one JSON object as the last line of output; text for people goes to standard error.
    #[arg(long)]
    pub json: bool,
    /// Run this many times, one after the other; --json prints the run with the median throughput.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count)]
    pub repeat: usize,
    /// Append each run's JSON object to this file, one per line; `compare` reads such files.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write a report of all runs as one HTML page that needs no other file.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Do not measure what the machine itself allows (raw writes and reads, loopback, the client's cap) before the run.
    #[arg(long)]
    pub no_ceiling: bool,
    /// Where raw writes are measured: a directory on the disk that the broker uses.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub disk_dir: PathBuf,
    /// The effective values of all options.
    #[arg(skip)]
    pub config: BTreeMap<String, String>,
}

#[cfg(feature = "librdkafka")]
#[derive(Debug, Clone, Args)]
pub struct MockClusterOptions {
    #[arg(long)]
    pub topic: String,
    #[arg(long)]
    pub partitions: i32,
}

#[derive(Debug, Clone, Args)]
pub struct ThreadOptions {
    /// Connections, spread over the leaders and the threads [default: one for each leader]
    #[arg(long, value_parser = count)]
    pub connections: Option<usize>,
    /// Load threads.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub threads: usize,
    /// CPUs that the load threads are pinned to, in turn, as in 1 or 0,2,3.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Vec<usize>,
}

#[derive(Debug, Clone, Args)]
pub struct TargetOptions {
    /// Any broker of the cluster.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// The topic; it is created if it is missing.
    #[arg(long, default_value = "bench")]
    pub topic: String,
    /// Partitions of the topic [default: those that it has, or 1 if it is created]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: Option<i32>,
    /// Replication factor of a topic that is created.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    #[command(flatten)]
    pub threads: ThreadOptions,
}

/// Records and how they are sent.
#[derive(Debug, Clone, Args)]
pub struct RecordOptions {
    /// Acknowledgement to wait for; with 0 there is none, and the latency ends when the kernel has accepted the
    /// request.
    #[arg(long, value_enum, default_value_t = Acks::All)]
    pub acks: Acks,
    /// Records per second over all connections; 0: as fast as possible [default: 0 for produce, else 10000]
    #[arg(long, value_parser = rate)]
    pub rate: Option<u64>,
    /// Maximum requests in flight per connection.
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub in_flight: usize,
    /// Bytes of each record's value: a size (100), a range with equal chances (100-2KiB), or sizes with weights
    /// (100:9,10KiB:1).
    #[arg(long, value_name = "SIZES", default_value = "100")]
    pub record_size: Sizes,
    /// Number of different keys, each bound to one partition and equally likely; 0: records have no key.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub keys: u64,
    /// How long a batch may wait for more records.
    #[arg(long, default_value = "5ms", value_parser = duration)]
    pub linger: Duration,
    /// Bytes at which a batch is sent without further waiting.
    #[arg(long, default_value = "1MB", value_parser = size)]
    pub batch_size: usize,
    /// Compression codec of the batches; compressing costs the client CPU.
    #[arg(long, value_enum, default_value_t = CodecOption::None)]
    pub codec: CodecOption,
}

/// The client that sends and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// The harness's own client: one thread per --threads, open loop.
    Native,
    /// librdkafka, the client that most people use: one instance per --threads; needs a build with the feature
    /// librdkafka.
    Librdkafka,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Acks {
    #[value(name = "0")]
    None,
    #[value(name = "1")]
    Leader,
    #[value(name = "all", alias = "-1")]
    All,
}

impl Acks {
    pub fn code(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CodecOption {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl CodecOption {
    /// The codec's name in librdkafka.
    #[cfg(feature = "librdkafka")]
    pub fn name(self) -> &'static str {
        match self {
            CodecOption::None => "none",
            CodecOption::Gzip => "gzip",
            CodecOption::Snappy => "snappy",
            CodecOption::Lz4 => "lz4",
            CodecOption::Zstd => "zstd",
        }
    }

    pub fn codec(self) -> Codec {
        match self {
            CodecOption::None => Codec::None,
            CodecOption::Gzip => Codec::Gzip,
            CodecOption::Snappy => Codec::Snappy,
            CodecOption::Lz4 => Codec::Lz4,
            CodecOption::Zstd => Codec::Zstd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::workloads::{MetadataAcks, Operation};

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn the_effective_value_of_every_option_is_known() {
        let line = "millrace-bench produce --rate 10k --json --cpus 1,3";
        let command = Command::parse_all(line.split(' ').map(str::to_owned)).unwrap();
        let Workload::Produce(options) = command.workload else { panic!("it is produce") };
        let config = options.run.config;
        for (option, want) in
            [("rate", "10k"), ("json", "true"), ("cpus", "1,3"), ("linger", "5ms"), ("no-ceiling", "false")]
        {
            assert_eq!(config.get(option).map(String::as_str), Some(want), "{option}");
        }
        assert_eq!(config.get("out"), None);
        assert_eq!(options.records.rate, Some(10_000));
    }

    #[test]
    fn a_ready_loop_loads_as_metadata_does_and_asks_every_broker() {
        let line =
            "millrace-bench ready-loop --peer p:1 --admin a:1,b:2 --acks quorum --in-flight 64 --rate 2k --topics 3";
        let command = Command::parse_all(line.split(' ').map(str::to_owned)).unwrap();
        let Workload::ReadyLoop(options) = command.workload else { panic!("it is ready-loop") };
        assert_eq!(options.admin, ["a:1", "b:2"]);
        let load = options.load();
        assert_eq!((load.peer.as_str(), load.in_flight, load.rate, load.topics), ("p:1", 64, 2000, 3));
        assert_eq!((load.operation, load.acks), (Operation::Write, MetadataAcks::Quorum));
    }

    #[test]
    fn a_mesh_run_names_a_core_or_means_all() {
        let parsed =
            |line: &str| Command::parse_all(line.split(' ').map(str::to_owned)).map(|command| command.workload);
        let Ok(Workload::Mesh(options)) = parsed("millrace-bench mesh") else { panic!("it is mesh") };
        assert_eq!((options.core, options.in_flight, options.ceiling_cpus), (None, 1, vec![]));
        let line = "millrace-bench mesh --core 3 --in-flight 256 --ceiling-cpus 0,3";
        let Ok(Workload::Mesh(options)) = parsed(line) else { panic!("it is mesh") };
        assert_eq!((options.core, options.in_flight, options.ceiling_cpus), (Some(3), 256, vec![0, 3]));
        for wrong in ["--in-flight 0", "--core -1", "--core 70000", "--ceiling-cpus a"] {
            assert!(parsed(&format!("millrace-bench mesh {wrong}")).is_err(), "{wrong}");
        }
    }
}
