//! The parts shared by all commands that talk to a running broker: its address, the connection and its errors.
//! Lives on: the main thread.

use std::{fmt, time::Duration};

use clap::Arg;
use net::{
    StrBytes,
    client::blocking::{Client, ClientError},
    errors::{self, ErrorCode},
};

use crate::stdout::StdoutError;

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

/// Why a command that talks to a broker failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("--bootstrap names no broker; write it as host:port")]
    NoBroker,
    #[error("{}; is the broker running there? (--bootstrap)", joined(.0, "; "))]
    Unreachable(Vec<ClientError>),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The broker refused some of the work. The command has done the rest.
    #[error("{}", joined(.0, "\nmillrace: "))]
    Refused(Vec<Refused>),
    #[error(transparent)]
    Stdout(#[from] StdoutError),
}

fn joined(errors: &[impl ToString], between: &str) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join(between)
}

impl From<Refused> for CommandError {
    fn from(refused: Refused) -> Self {
        Self::Refused(vec![refused])
    }
}

/// A broker's error for one thing that a command asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    what: String,
    code: ErrorCode,
    /// The broker's own words, if it sent any.
    message: Option<String>,
}

impl Refused {
    /// Reads the error in an answer. `what`: what the command cannot do because of it.
    pub fn check(what: impl Into<String>, code: i16, message: Option<&StrBytes>) -> Result<(), Self> {
        errors::check(code).map_err(|code| {
            let message = message.filter(|message| !message.is_empty()).map(|message| message.to_string());
            Self { what: what.into(), code, message }
        })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, code, message } = self;
        match message {
            Some(message) => write!(f, "{what}: {message} ({code:?})"),
            None if *code == ErrorCode::UnknownTopicOrPartition => write!(f, "{what}: there is no such topic"),
            None => write!(f, "{what}: {code} ({code:?})"),
        }
    }
}

impl std::error::Error for Refused {}

/// Connects to the first address in `bootstrap` that answers.
pub fn connect(bootstrap: &str) -> Result<Client, CommandError> {
    let mut failures = Vec::new();
    for addr in bootstrap.split(',').map(str::trim).filter(|addr| !addr.is_empty()) {
        match Client::connect(addr, "millrace-cli", TIMEOUT) {
            Ok(client) => return Ok(client),
            Err(error) => failures.push(error),
        }
    }
    Err(if failures.is_empty() { CommandError::NoBroker } else { CommandError::Unreachable(failures) })
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

    #[test]
    fn refusals_have_the_brokers_words() {
        let told = |what: &str, code, message| Refused::check(what, code, message).unwrap_err().to_string();
        assert_eq!(Refused::check("x", 0, None), Ok(()));
        let words = StrBytes::from_static_str("topic 'a' already exists");
        assert_eq!(
            told("cannot create topic 'a'", 36, Some(&words)),
            "cannot create topic 'a': topic 'a' already exists (TopicAlreadyExists)"
        );
        assert_eq!(told("cannot delete topic 'a'", 3, None), "cannot delete topic 'a': there is no such topic");
        assert!(told("x", 36, Some(&StrBytes::from_static_str(""))).contains("(TopicAlreadyExists)"));
    }

    #[test]
    fn each_refusal_has_a_line() {
        let refused = |what: &str| Refused::check(what, 3, None).unwrap_err();
        let error = CommandError::Refused(vec![refused("a"), refused("b")]);
        assert_eq!(error.to_string(), "a: there is no such topic\nmillrace: b: there is no such topic");
    }
}
