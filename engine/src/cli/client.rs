//! The parts shared by all commands that talk to a running broker: its address and the connection.
//! Lives on: the main thread.

use std::time::Duration;

use clap::Arg;
use net::client::blocking::{Client, ClientError};

use crate::failure::Failure;

/// Maximum time for connecting, and for each answer.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// The option `--bootstrap`, for a command and all its subcommands.
pub fn bootstrap() -> Arg {
    Arg::new("bootstrap")
        .long("bootstrap")
        .value_name("HOST:PORT,…")
        .global(true)
        .default_value("127.0.0.1:9092")
        .help("Brokers to try in order; the first that answers is used")
}

/// Connects to the first address in `bootstrap` that answers.
pub fn connect(bootstrap: &str) -> Result<Client, Failure> {
    let mut failures = Vec::new();
    for addr in bootstrap.split(',').map(str::trim).filter(|addr| !addr.is_empty()) {
        match Client::connect(addr, "millrace-cli", TIMEOUT) {
            Ok(client) => return Ok(client),
            Err(error) => failures.push(error.to_string()),
        }
    }
    Err(Failure::Other(match failures.is_empty() {
        true => "--bootstrap names no broker; write it as host:port".to_owned(),
        false => format!("{}; is the broker running there? (--bootstrap)", failures.join("; ")),
    }))
}

pub fn failed(error: ClientError) -> Failure {
    Failure::other(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_to_ask_is_told() {
        let refused = connect("127.0.0.1:1").unwrap_err().to_string();
        assert!(
            refused.contains("cannot connect to 127.0.0.1:1") && refused.contains("is the broker running"),
            "{refused}"
        );
        assert!(connect(" , ").unwrap_err().to_string().contains("names no broker"));
    }
}
