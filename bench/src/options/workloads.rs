//! The specific options of each workload.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::options::parse::{count, large_size, rate, size};
use crate::options::{Client, RecordOptions, RunOptions, TargetOptions, ThreadOptions};

#[derive(Debug, Clone, Args)]
pub struct ProduceOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    #[command(flatten)]
    pub records: RecordOptions,
    /// The client that sends.
    #[arg(long, value_enum, default_value_t = Client::Native)]
    pub client: Client,
}

#[derive(Debug, Clone, Args)]
pub struct ConsumeOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    /// The client that reads.
    #[arg(long, value_enum, default_value_t = Client::Native)]
    pub client: Client,
    /// Where to begin reading.
    #[arg(long, value_enum, default_value_t = From::Start)]
    pub from: From,
    /// Maximum bytes per partition in one fetch.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
    /// End when every partition has been read up to its end at the start of the run, however long that takes; all of
    /// it is measured, without a warm-up.
    #[arg(long)]
    pub to_end: bool,
}

#[derive(Debug, Clone, Args)]
pub struct EndToEndOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    #[command(flatten)]
    pub records: RecordOptions,
    /// Maximum bytes per partition in one fetch.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
}

#[derive(Debug, Clone, Args)]
pub struct MetadataOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// The operation to repeat.
    #[arg(long, value_enum, default_value_t = Operation::Write)]
    pub operation: Operation,
    /// A broker's peer address, for write and read; it may be another broker than --bootstrap.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// Any broker's address for clients, for create-topics and delete-topics; write and read create their topics
    /// through --peer.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Acknowledgement that a write waits for.
    #[arg(long, value_enum, default_value_t = MetadataAcks::Configured)]
    pub acks: MetadataAcks,
    /// Consistency of reads.
    #[arg(long, value_enum, default_value_t = Freshness::Leased)]
    pub consistency: Freshness,
    /// Number of topics to write and read; missing ones are created.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub topics: usize,
    /// Partitions of each topic that create-topics and delete-topics create.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: i32,
    /// Replication factor of each topic that create-topics and delete-topics create.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    /// Operations per second over all connections; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Maximum requests in flight per connection.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
    #[command(flatten)]
    pub threads: ThreadOptions,
}

/// How tools authenticate with a broker.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretOptions {
    /// File with the cluster's secret, the same as the brokers' cluster.secret.file.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub secret_file: Option<PathBuf>,
    /// Data directory of a broker that generated its own secret, or of deploy/cluster/start.sh [default:
    /// ./millrace-data, if it has a secret]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

const READY_LOOP_EXAMPLES: &str = "\
Examples: one broker; then three brokers, any of which may lead the metadata:
  millrace-bench ready-loop --in-flight 64 --duration 20s
  millrace-bench ready-loop --acks quorum --in-flight 64 --peer 127.0.0.1:9291 \\
      --admin 127.0.0.1:9644,127.0.0.1:9645,127.0.0.1:9646
Quantiles of a turn are upper bounds of the broker's buckets: at most a quarter too high, and never below 0.0041 ms.";

#[derive(Debug, Clone, Args)]
#[command(after_help = READY_LOOP_EXAMPLES)]
pub struct ReadyLoopOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Peer address of the broker that receives the writes.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// Admin addresses of all brokers whose ready loops are reported.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', default_value = "127.0.0.1:9644")]
    pub admin: Vec<String>,
    /// Acknowledgement that a write waits for.
    #[arg(long, value_enum, default_value_t = MetadataAcks::Configured)]
    pub acks: MetadataAcks,
    /// Number of topics to write; missing ones are created.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub topics: usize,
    /// Writes per second over all connections; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Maximum requests in flight per connection.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
    #[command(flatten)]
    pub threads: ThreadOptions,
}

impl ReadyLoopOptions {
    /// The options of the workload `metadata` that produce the same load.
    pub fn load(&self) -> MetadataOptions {
        MetadataOptions {
            run: self.run.clone(),
            operation: Operation::Write,
            peer: self.peer.clone(),
            secret: self.secret.clone(),
            // Unused: only create-topics and delete-topics use the Kafka API.
            bootstrap: String::new(),
            acks: self.acks,
            consistency: Freshness::Leased,
            topics: self.topics,
            partitions: 1,
            replication_factor: 1,
            rate: self.rate,
            in_flight: self.in_flight,
            threads: self.threads.clone(),
        }
    }
}

const MESH_EXAMPLES: &str = "\
Examples: to each other core of a broker on two CPUs or more; then many messages at a time to one core:
  millrace-bench mesh --duration 20s
  millrace-bench mesh --core 1 --in-flight 64 --json
Run it beside another workload to see how long messages wait when the cores are busy.";

#[derive(Debug, Clone, Args)]
#[command(after_help = MESH_EXAMPLES)]
pub struct MeshOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// The broker's peer address.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// The core that messages go to, from core 0, which answers tools [default: each other core, one after the other]
    #[arg(long, value_name = "CORE")]
    pub core: Option<u16>,
    /// Maximum messages in flight; the broker allows at most 256.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub in_flight: u16,
    /// CPUs of the two threads whose round trips are the ceiling, preferably those of the broker's cores [default:
    /// the first two that this process may use]
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',')]
    pub ceiling_cpus: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Change a setting of a topic (raw command).
    Write,
    /// Look a topic up (raw query).
    Read,
    /// Create a topic through the Kafka API.
    CreateTopics,
    /// Alternately create a topic and delete one created earlier, through the Kafka API; both count.
    DeleteTopics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetadataAcks {
    /// As metadata.acks is configured.
    Configured,
    Quorum,
    Leader,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Freshness {
    Leased,
    Linearizable,
}

#[derive(Debug, Clone, Args)]
pub struct WalOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Bytes of each append.
    #[arg(long, default_value = "4KiB", value_parser = size)]
    pub record_size: usize,
    /// Maximum outstanding appends; appends that wait together share a write and a sync.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum From {
    Start,
    End,
}

#[derive(Debug, Clone, Args)]
pub struct CommitsOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    /// Number of consumer groups; each operation commits the offsets of all of the topic's partitions for one group,
    /// in turn.
    #[arg(long, default_value_t = 100, value_parser = count)]
    pub groups: usize,
    /// Commits per second over all connections; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Maximum requests in flight per connection.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
}

#[derive(Debug, Clone, Args)]
pub struct ManyPartitionsOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Any broker of the cluster.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Prefix of the topics: the topic with N partitions is called NAME-N, and is created if it is missing.
    #[arg(long, value_name = "NAME", default_value = "bench-many")]
    pub topic: String,
    /// Numbers of partitions: one step for each, each for the duration.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10,100,1000,10000",
          value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: Vec<i32>,
    /// Records per second to each partition, instead of a --rate over all partitions that is the same in each step.
    #[arg(long, value_parser = rate, conflicts_with = "rate")]
    pub rate_each: Option<u64>,
    /// Replication factor of topics that are created.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    #[command(flatten)]
    pub threads: ThreadOptions,
    #[command(flatten)]
    pub records: RecordOptions,
    /// The client that sends.
    #[arg(long, value_enum, default_value_t = Client::Native)]
    pub client: Client,
}

#[derive(Debug, Clone, Args)]
pub struct BacklogOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    #[command(flatten)]
    pub records: RecordOptions,
    /// Size to fill the topic with before the measurement; more than the broker's caches hold, so that the log is
    /// cold.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = large_size)]
    pub backlog: u64,
    /// The broker's data directory, if it is on this machine: the kernel is asked to drop it from the page cache.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Maximum bytes per partition in one fetch.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
}

#[derive(Debug, Clone, Args)]
pub struct FailoverOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// The --data-dir of brokers that deploy/cluster/start.sh started; brokers that are killed are restarted with the
    /// same command line [default: the harness starts brokers of its own]
    #[arg(long, value_name = "DIR", requires = "bootstrap")]
    pub pid_dir: Option<PathBuf>,
    /// Brokers of --pid-dir; name several, because any one may be down.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', requires = "pid_dir")]
    pub bootstrap: Vec<String>,
    /// Number of brokers that the harness starts, without --pid-dir.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=15), conflicts_with = "pid_dir")]
    pub brokers: u16,
    /// The broker's program, without --pid-dir [default: the one that this source tree builds, or millrace beside
    /// this program]
    #[arg(long, value_name = "FILE", conflicts_with = "pid_dir")]
    pub binary: Option<PathBuf>,
    /// Number of kills, spread over the duration; each waits until all replicas have caught up.
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub kills: usize,
    /// The topic; it is created if it is missing.
    #[arg(long, default_value = "bench-failover")]
    pub topic: String,
    /// Replication factor of the topic, if it is created.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    /// Records per second, at least 1.
    #[arg(long, default_value = "1000", value_parser = rate)]
    pub rate: u64,
    /// Bytes of each record's value; at least 8, because each value holds its record's number.
    #[arg(long, default_value = "100", value_parser = size)]
    pub record_size: usize,
}

#[cfg(feature = "etcd")]
#[derive(Debug, Clone, Args)]
pub struct EtcdOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// A member's address for clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2379")]
    pub bootstrap: String,
    /// The operation to repeat.
    #[arg(long, value_enum, default_value_t = EtcdOperation::Write)]
    pub operation: EtcdOperation,
    /// Number of different keys to write and read.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub keys: usize,
    /// Operations per second over all connections; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Connections, all on one thread.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub connections: usize,
    /// Maximum requests in flight per connection.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
}

#[cfg(feature = "etcd")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EtcdOperation {
    /// Put a key.
    Write,
    /// Read a key, linearizably.
    Read,
}
