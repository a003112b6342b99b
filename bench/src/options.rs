//! Options that read the same in every workload.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use net::compression::Codec;

/// A load harness for Kafka-compatible brokers.
///
/// Open loop: with --rate, each record has a time at which it is meant to be sent, and its latency counts from that time,
/// so that a stall of the broker is seen by every record that it held up.
#[derive(Debug, Parser)]
#[command(name = "millrace-bench", version, after_help = EXAMPLES)]
pub struct Command {
    #[command(subcommand)]
    pub workload: Workload,
}

const EXAMPLES: &str = "\
Examples, as fast as it goes, at a fixed rate, the shape that hurts, a read, the ring alone:
  millrace-bench produce --record-size 100 --duration 20s
  millrace-bench produce --rate 10000 --linger 0ms --json
  millrace-bench produce --rate 16000 --partitions 200 --linger 0ms
  millrace-bench consume --topic bench --to-end
  millrace-bench metadata --acks quorum --in-flight 64
  millrace-bench metadata --operation read --peer 127.0.0.1:9292 --in-flight 64
  millrace-bench metadata --operation create-topics --bootstrap 127.0.0.1:9093
  millrace-bench wal --record-size 4KiB --in-flight 8";

#[derive(Debug, Subcommand)]
pub enum Workload {
    /// Send records and measure the time from when each was meant to be sent to its acknowledgement.
    Produce(ProduceOptions),
    /// Read a topic and measure throughput, and the time of each fetch.
    Consume(ConsumeOptions),
    /// Write or read metadata over the port between brokers, or create topics as any client does.
    Metadata(MetadataOptions),
    /// Measure the WAL ring on each disk backend beside raw O_DIRECT write + fdatasync. Needs no broker.
    Wal(WalOptions),
}

#[derive(Debug, Args)]
pub struct RunOptions {
    /// How long to measure, after the warm-up: 20s, 500ms, 2m.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// The last line of output is one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Do not measure what the machine itself allows (raw write + fdatasync, loopback round trip) before the run.
    #[arg(long)]
    pub no_ceiling: bool,
    /// Where raw writes are measured: a directory on the disk that the broker uses.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub disk_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct TargetOptions {
    /// Any broker of the cluster.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    pub bootstrap: String,
    /// Created if it is missing.
    #[arg(long, default_value = "bench")]
    pub topic: String,
    /// Partitions of the topic [default: all that it has, or 1 if it is created]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub partitions: Option<i32>,
    /// Replication factor of a topic that is created.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i16).range(1..))]
    pub replication_factor: i16,
    /// Connections, spread over the leaders and the threads.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub connections: usize,
    /// Requests that one connection may have unanswered.
    #[arg(long, default_value_t = 5, value_parser = count)]
    pub in_flight: usize,
    /// Load threads.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub threads: usize,
    /// CPUs that the load threads are pinned to, in turn: 1 or 0,2,3.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Not measured, before the duration.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warm_up: Duration,
}

#[derive(Debug, Args)]
pub struct ProduceOptions {
    #[command(flatten)]
    pub run: RunOptions,
    #[command(flatten)]
    pub target: TargetOptions,
    /// What an answer waits for; with 0 there is none, and latency ends when the kernel has taken the request.
    #[arg(long, value_enum, default_value_t = Acks::All)]
    pub acks: Acks,
    /// Records per second of all connections together; 0: as fast as they are taken.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Bytes of each record's value.
    #[arg(long, default_value = "100", value_parser = size)]
    pub record_size: usize,
    /// How long a batch may wait for more records.
    #[arg(long, default_value = "5ms", value_parser = duration)]
    pub linger: Duration,
    /// Bytes at which a batch leaves without further waiting.
    #[arg(long, default_value = "1MB", value_parser = size)]
    pub batch_size: usize,
    /// Codec of the batches; compressing costs the client.
    #[arg(long, value_enum, default_value_t = CodecOption::None)]
    pub codec: CodecOption,
}

#[derive(Debug, Args)]
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
    /// End when every partition's end of the beginning of the run is reached, however long that takes.
    #[arg(long)]
    pub to_end: bool,
}

#[derive(Debug, Args)]
pub struct MetadataOptions {
    #[command(flatten)]
    pub run: RunOptions,
    /// What is done again and again.
    #[arg(long, value_enum, default_value_t = Operation::Write)]
    pub operation: Operation,
    /// A broker's address for other brokers and tools.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9291")]
    pub peer: String,
    /// Any broker, as clients reach it; for create-topics.
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
    /// Connections, spread over the threads.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub connections: usize,
    /// Requests that one connection may have unanswered.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub in_flight: usize,
    /// Load threads.
    #[arg(long, default_value_t = 1, value_parser = count)]
    pub threads: usize,
    /// CPUs that the load threads are pinned to, in turn: 1 or 0,2,3.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cpus: Vec<usize>,
    /// Not measured, before the duration.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub warm_up: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// Change a setting of a topic (raw command).
    Write,
    /// Look a topic up (raw query).
    Read,
    /// Create a topic with one partition, one after the other, by Kafka's API.
    CreateTopics,
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

#[derive(Debug, Args)]
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
pub enum From {
    Start,
    End,
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

/// A number and a unit, which may be missing. `None` if there is no number or it is not finite.
fn split_unit(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..at].parse().ok()?;
    number.is_finite().then_some((number, text[at..].trim()))
}

/// 20s, 500ms, 200us, 2m; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 20s, 500ms or 2m");
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1e3,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    // The rounding makes 5ms exactly 5,000,000 ns.
    let nanos = (seconds * 1e9).round();
    if nanos > 86_400e9 * 365.0 { Err(wrong()) } else { Ok(Duration::from_nanos(nanos as u64)) }
}

/// 100, 4KiB, 1MB; at most 1 GiB.
fn size(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text:?} is no size such as 100, 4KiB or 1MB, at most 1GiB");
    let (number, unit) = split_unit(text).ok_or_else(wrong)?;
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "kb" => 1e3,
        "m" | "mib" => 1024.0 * 1024.0,
        "mb" => 1e6,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let bytes = number * factor;
    if bytes.fract() == 0.0 && bytes <= f64::from(1 << 30) { Ok(bytes as usize) } else { Err(wrong()) }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=100_000) => Ok(count),
        _ => Err(format!("{text:?} is not a number from 1 to 100000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, nanos) in [
            ("20s", 20_000_000_000),
            ("5ms", 5_000_000),
            ("0ms", 0),
            ("250us", 250_000),
            ("1.5", 1_500_000_000),
            ("2m", 120_000_000_000),
            ("1h", 3_600_000_000_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "s", "-1s", "1d", "1 2", "1e9", "9999999h", "..s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("100", 100), ("4KiB", 4096), ("1MB", 1_000_000), ("1.5k", 1536), ("1GiB", 1 << 30), ("0", 0)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-1", "0.3", "2GiB", "1TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
