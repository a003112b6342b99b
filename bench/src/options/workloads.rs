//! The options of each workload that are its own.

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
    /// Who sends.
    #[arg(long, value_enum, default_value_t = Client::Native)]
    pub client: Client,
}

#[derive(Debug, Clone, Args)]
pub struct ConsumeOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    /// Who reads.
    #[arg(long, value_enum, default_value_t = Client::Native)]
    pub client: Client,
    /// Where to begin.
    #[arg(long, value_enum, default_value_t = From::Start)]
    pub from: From,
    /// Bytes that one fetch may return per partition.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
    /// End when every partition's end of the beginning of the run is reached, however long that takes; measured whole,
    /// without a warm-up.
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
    /// Bytes that one fetch may return per partition.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
}

#[derive(Debug, Clone, Args)]
pub struct MetadataOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// What is done again and again.
    #[arg(long, value_enum, default_value_t = Operation::Write)]
    pub operation: Operation,
    /// A broker's address for other brokers and tools, for write and read; another broker than --bootstrap may be asked.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// Any broker, as clients reach it, for create-topics and delete-topics; the topics of write and read are made by --peer.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// What a write's answer waits for.
    #[arg(long, value_enum, default_value_t = MetadataAcks::Configured)]
    pub acks: MetadataAcks,
    /// How fresh a read's answer is.
    #[arg(long, value_enum, default_value_t = Freshness::Leased)]
    pub consistency: Freshness,
    /// Topics that are written and read, created if they are missing.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub topics: usize,
    /// Partitions of each topic that create-topics and delete-topics make.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: i32,
    /// Replication factor of each topic that create-topics and delete-topics make.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    /// Operations per second of all connections together; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Requests that one connection may have unanswered.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
    #[command(flatten)]
    pub threads: ThreadOptions,
}

/// By what a broker knows its tools.
#[derive(Debug, Clone, Default, Args)]
pub struct SecretOptions {
    /// File with the cluster's secret, as the brokers' cluster.secret.file.
    #[arg(long, value_name = "FILE", conflicts_with = "data_dir")]
    pub secret_file: Option<PathBuf>,
    /// Data directory of a broker that made its own secret, or of deploy/cluster/start.sh [default: ./millrace-data, if
    /// it has one]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

const READY_LOOP_EXAMPLES: &str = "\
Examples, one broker, and three of which any may lead the metadata:
  millrace-bench ready-loop --in-flight 64 --duration 20s
  millrace-bench ready-loop --acks quorum --in-flight 64 --peer 127.0.0.1:9291 \\
      --admin 127.0.0.1:9644,127.0.0.1:9645,127.0.0.1:9646
Quantiles of a turn are upper bounds of the broker's buckets: at most a quarter too high, and never below 0.0041 ms.";

#[derive(Debug, Clone, Args)]
#[command(after_help = READY_LOOP_EXAMPLES)]
pub struct ReadyLoopOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// The address for other brokers and tools of the broker that is asked to write.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// Admin addresses of all brokers whose ready loops are to be told of.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', default_value = "127.0.0.1:9644")]
    pub admin: Vec<String>,
    /// What a write's answer waits for.
    #[arg(long, value_enum, default_value_t = MetadataAcks::Configured)]
    pub acks: MetadataAcks,
    /// Topics that are written, created if they are missing.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub topics: usize,
    /// Writes per second of all connections together; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Requests that one connection may have unanswered.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
    #[command(flatten)]
    pub threads: ThreadOptions,
}

impl ReadyLoopOptions {
    /// The same load as the workload `metadata` makes.
    pub fn load(&self) -> MetadataOptions {
        MetadataOptions {
            run: self.run.clone(),
            operation: Operation::Write,
            peer: self.peer.clone(),
            secret: self.secret.clone(),
            // Only topics made by Kafka's API go there.
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
Examples, to each other core of a broker on two CPUs or more; and many messages at a time to one of them:
  millrace-bench mesh --duration 20s
  millrace-bench mesh --core 1 --in-flight 64 --json
Run it beside another workload to see what messages wait for when the cores are busy.";

#[derive(Debug, Clone, Args)]
#[command(after_help = MESH_EXAMPLES)]
pub struct MeshOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// The broker's address for other brokers and tools.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    #[command(flatten)]
    pub secret: SecretOptions,
    /// The core that messages go to, from the one that answers tools (0) [default: each other core, one after the other]
    #[arg(long, value_name = "CORE")]
    pub core: Option<u16>,
    /// Messages that are on their way at a time; the broker takes at most 256.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub in_flight: u16,
    /// CPUs of the two threads whose round trips are the ceiling, best those of the broker's cores [default: the first two
    /// that this process may use]
    #[arg(long, value_name = "CPU,CPU", value_delimiter = ',')]
    pub ceiling_cpus: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Change a setting of a topic (raw command).
    Write,
    /// Look a topic up (raw query).
    Read,
    /// Create a topic by Kafka's API.
    CreateTopics,
    /// Create a topic, and delete one that was created before, in turn, by Kafka's API; both count.
    DeleteTopics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetadataAcks {
    /// As metadata.acks says.
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
    /// Appends that are outstanding at a time; those that wait together share a write and a sync.
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
    /// Consumer groups; each operation commits the offsets of all of the topic's partitions for one of them, in turn.
    #[arg(long, default_value_t = 100, value_parser = count)]
    pub groups: usize,
    /// Commits per second of all connections together; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Requests that one connection may have unanswered.
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
    /// The topic of N partitions is called NAME-N, and created if it is missing.
    #[arg(long, value_name = "NAME", default_value = "bench-many")]
    pub topic: String,
    /// How many partitions, one step after the other, each for the duration.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,10,100,1000,10000",
          value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: Vec<i32>,
    /// Records per second to each partition, instead of a --rate of all together that is the same in each step.
    #[arg(long, value_parser = rate, conflicts_with = "rate")]
    pub rate_each: Option<u64>,
    /// Replication factor of topics that are created.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    #[command(flatten)]
    pub threads: ThreadOptions,
    #[command(flatten)]
    pub records: RecordOptions,
    /// Who sends.
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
    /// What the topic is filled with before anything is measured; more than the broker's caches, to be cold.
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = large_size)]
    pub backlog: u64,
    /// The broker's data directory, where it is on this machine: the kernel is asked to drop what it caches of it.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Bytes that one fetch may return per partition.
    #[arg(long, default_value = "4MiB", value_parser = size)]
    pub fetch_size: usize,
}

#[derive(Debug, Clone, Args)]
pub struct FailoverOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// Brokers that deploy/cluster/start.sh started with this --data-dir; those that are killed are started again as they
    /// were [default: the harness starts brokers of its own]
    #[arg(long, value_name = "DIR", requires = "bootstrap")]
    pub pid_dir: Option<PathBuf>,
    /// With --pid-dir: several brokers, since any one may be down.
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',', requires = "pid_dir")]
    pub bootstrap: Vec<String>,
    /// How many brokers the harness starts, without --pid-dir.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=15), conflicts_with = "pid_dir")]
    pub brokers: u16,
    /// The broker's program, without --pid-dir [default: what this source tree builds, or millrace beside this program]
    #[arg(long, value_name = "FILE", conflicts_with = "pid_dir")]
    pub binary: Option<PathBuf>,
    /// Brokers killed, one after the other, spread over the duration; each once all replicas have caught up.
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub kills: usize,
    /// Created if it is missing.
    #[arg(long, default_value = "bench-failover")]
    pub topic: String,
    /// Replication factor of the topic, if it is created.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    /// Records per second, at least 1.
    #[arg(long, default_value = "1000", value_parser = rate)]
    pub rate: u64,
    /// Bytes of each record's value; each bears its number, so at least 8.
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
    /// What is done again and again.
    #[arg(long, value_enum, default_value_t = EtcdOperation::Write)]
    pub operation: EtcdOperation,
    /// Different keys that are written and read.
    #[arg(long, default_value_t = 256, value_parser = count)]
    pub keys: usize,
    /// Operations per second of all connections together; 0: as fast as they are answered.
    #[arg(long, default_value_t = 0, value_parser = rate)]
    pub rate: u64,
    /// Connections, all on one thread.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub connections: usize,
    /// Requests that one connection may have unanswered.
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
