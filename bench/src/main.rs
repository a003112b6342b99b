//! `millrace-bench`: a load harness for any Kafka-compatible broker, and for Millrace's own parts.
//!
//! Talks to brokers as any client does, through `net`'s client codec; knows nothing of the broker's insides.

mod backlog;
mod batcher;
mod binary;
mod ceiling;
mod ceiling_cores;
mod chart;
mod client_cap;
mod clock;
mod commits;
mod compare;
mod compare_stats;
mod connection;
mod consume;
#[cfg(feature = "librdkafka")]
mod consume_librdkafka;
mod end_to_end;
mod environment;
#[cfg(feature = "etcd")]
mod etcd;
mod failover;
mod failover_client;
mod failover_cluster;
mod fetcher;
mod html;
mod load;
mod local;
mod many_partitions;
mod mesh;
mod metadata;
mod metadata_peer;
mod ops;
mod options;
mod options_compare;
mod options_parse;
mod options_suite;
mod options_workloads;
mod orphans;
mod produce;
mod produce_lane;
#[cfg(feature = "librdkafka")]
mod produce_librdkafka;
mod ready_loop;
mod report;
mod rt;
mod run;
mod schedule;
mod scrape;
mod session;
mod setup;
mod shares;
mod sizes;
mod stats;
mod suite;
mod suite_cases;
mod suite_peers;
mod tables;
mod tail;
mod tool;
mod wal_ring;
mod workload;

use std::error::Error;
use std::process::ExitCode;

use options::{Command, Workload};

fn main() -> ExitCode {
    let command = Command::parse_all(std::env::args()).unwrap_or_else(|e| e.exit());
    match perform(command.workload) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("millrace-bench: {}", in_full(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn perform(mut workload: Workload) -> Result<(), Box<dyn Error>> {
    match &workload {
        Workload::Suite(options) => return suite::run(options),
        Workload::Compare(options) => return compare::run(options),
        #[cfg(feature = "librdkafka")]
        Workload::MockCluster(options) => return client_cap::serve(options),
        _ => {}
    }
    let options = workload.run_options().expect("all others are runs").clone();
    session::run(&options, || workload::run_once(&workload))
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
