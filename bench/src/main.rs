//! `millrace-bench`: a load harness for any Kafka-compatible broker, and for Millrace's own parts.
//!
//! It talks to brokers like any client, through `net`'s client codec, and does not depend on the broker's crate.

pub mod brokers;
mod clock;
mod compare;
mod error;
mod figures;
pub mod load;
pub mod machine;
mod options;
mod report;
mod rt;
mod run;
mod session;
mod suite;
mod workloads;

use std::error::Error;
use std::process::ExitCode;

use error::AnyError;
use options::{Command, Workload};

fn main() -> ExitCode {
    let command = Command::parse_all(std::env::args()).unwrap_or_else(|e| e.exit());
    match perform(command.workload) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("millrace-bench: {}", in_full(&*e));
            ExitCode::FAILURE
        }
    }
}

fn perform(mut workload: Workload) -> Result<(), AnyError> {
    match &workload {
        Workload::Suite(options) => return suite::run(options),
        Workload::Compare(options) => return compare::run(options),
        #[cfg(feature = "librdkafka")]
        Workload::MockCluster(options) => return workloads::produce::client_cap::serve(options),
        _ => {}
    }
    let options = workload.run_options().expect("all others are runs").clone();
    session::run(&options, || workloads::run_once(&workload))
}

/// The text of an error and of all its causes.
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
