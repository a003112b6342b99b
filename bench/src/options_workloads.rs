//! The options of each workload that are its own.

use clap::{Args, ValueEnum};

use crate::options::{RecordOptions, RunOptions, TargetOptions, ThreadOptions};
use crate::options_parse::{count, rate, size};

#[derive(Debug, Clone, Args)]
pub struct ProduceOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    #[command(flatten)]
    pub records: RecordOptions,
}

#[derive(Debug, Clone, Args)]
pub struct ConsumeOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
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
