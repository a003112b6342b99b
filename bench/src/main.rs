//! `millrace-bench`: a load harness for any Kafka-compatible broker, and for Millrace's own parts.
//!
//! Talks to brokers as any client does, through `net`'s client codec; knows nothing of the broker's insides.

mod batcher;
mod ceiling;
mod clock;
mod connection;
mod consume;
mod metadata;
mod options;
mod produce;
mod report;
mod rt;
mod run;
mod schedule;
mod setup;
mod stats;
mod wal_ring;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

use options::{Command, Workload};

fn main() -> ExitCode {
    let result = match Command::parse().workload {
        Workload::Produce(options) => produce::run(&options),
        Workload::Consume(options) => consume::run(&options),
        Workload::Metadata(options) => metadata::run(&options),
        Workload::Wal(options) => wal_ring::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("millrace-bench: {}", in_full(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes.
fn in_full(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text = format!("{text}: {own}");
        }
        cause = error.source();
    }
    text
}
