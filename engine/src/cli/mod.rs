//! The command line: `millrace [serve]`, `topic …`, `cluster describe`, `wal dump`, `config`, `version`.
//! Lives on: the main thread. The flags of `serve` come from the table of settings.

pub mod client;
pub mod cluster;
pub mod config;
pub mod status;
pub mod topic;
pub mod wal;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Arg, ArgAction, ArgMatches, Command, builder::PathBufValueParser};

use crate::{
    cli::status::{Failure, Status},
    config::{
        Config, ConfigError, SETTINGS,
        layers::{self, FlagValue},
        setting,
        value::Kind,
    },
    serve,
    stdout::print,
};

const ABOUT: &str = "Millrace, a Kafka-compatible streaming broker: one pinned thread per core";

const EXAMPLES: &str = "\
Examples:
  millrace                                         serve on 127.0.0.1:9092, data under ./millrace-data
  millrace --data-dir /srv/millrace --cores 0-3
  millrace serve --config millrace.toml --set num.partitions=8
  millrace topic create orders --partitions 12
  millrace topic list
  millrace cluster describe                        brokers, metadata quorum and lag
  millrace wal dump millrace-data/epoch-0/core-0/ring-0000.seg
  millrace config                                  every setting with its range and the value in force";

const SERVE_EXAMPLES: &str = "\
Settings come from defaults, the TOML file (--config), MILLRACE_… variables and flags; later ones win.
`millrace config` lists them all.

Examples:
  millrace serve
  millrace serve --kafka-addr 0.0.0.0:9092 --advertised-kafka-addr kafka.example:9092
  MILLRACE_DATA_DIR=/srv/millrace millrace serve --set log.retention.hours=24";

/// Runs the program.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version arrive here too. They go to stdout, and are no error. A closed pipe is none either.
            let _ = error.print();
            return exit(if error.use_stderr() { Status::Refused } else { Status::Done });
        }
    };
    match run_command(&matches) {
        Ok(()) => exit(Status::Done),
        Err(failure) => {
            eprintln!("millrace: {failure}");
            exit(failure.status())
        }
    }
}

fn exit(status: Status) -> ExitCode {
    ExitCode::from(status as u8)
}

fn run_command(matches: &ArgMatches) -> Result<(), Failure> {
    let text = match matches.subcommand() {
        None => return Ok(serve::run(settings(matches)?)?),
        Some(("serve", matches)) => return Ok(serve::run(settings(matches)?)?),
        Some(("config", matches)) => self::config::listing(&settings(matches)?),
        Some(("topic", matches)) => topic::run(matches)?,
        Some(("cluster", matches)) => cluster::run(matches)?,
        Some(("wal", matches)) => wal::run(matches)?,
        Some(("version", _)) => format!("millrace {}\n", env!("CARGO_PKG_VERSION")),
        Some((other, _)) => unreachable!("clap knows no subcommand '{other}'"),
    };
    Ok(print(&text)?)
}

fn command() -> Command {
    let serve = Command::new("serve").about("Run the broker (the default without a subcommand)");
    let config = Command::new("config").about("List every setting: name, value in force, source, meaning, range");
    with_settings(Command::new("millrace"))
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .disable_help_subcommand(true)
        .after_help(format!("{EXAMPLES}\n\n{}", status::help()))
        .subcommand(with_settings(serve).after_help(format!("{SERVE_EXAMPLES}\n\n{}", status::help())))
        .subcommand(topic::command())
        .subcommand(cluster::command())
        .subcommand(wal::command())
        .subcommand(with_settings(config).after_help("Example:\n  millrace config --config millrace.toml"))
        .subcommand(Command::new("version").about("Print the version").after_help("Example:\n  millrace version"))
}

/// Adds the flags that set settings.
fn with_settings(command: Command) -> Command {
    let flags = SETTINGS.iter().filter_map(|setting| {
        let flag = setting.flag?;
        let default = match setting.default {
            "" => String::new(),
            default => format!(" [default: {default}]"),
        };
        let help = format!("{}{default}", setting.doc().trim_end_matches('.'));
        let placeholder = match setting.kind {
            Kind::Addr | Kind::HostPort => "HOST:PORT",
            Kind::Path if setting.name.ends_with(".file") => "FILE",
            Kind::Path => "DIR",
            Kind::Cpus => "CPUS",
            Kind::LogFilter => "LEVEL",
            _ => "N",
        };
        Some(Arg::new(setting.name).long(flag).value_name(placeholder).help(help))
    });
    command
        .args(flags)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(PathBufValueParser::new())
                .help("TOML file with settings [env: MILLRACE_CONFIG]"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .value_parser(name_and_value)
                .help("Set any setting by name; may be repeated"),
        )
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("write it as NAME=VALUE")]
pub struct NoNameAndValue;

/// Parses `NAME=VALUE`. The value may contain further equals signs.
pub fn name_and_value(text: &str) -> Result<(String, String), NoNameAndValue> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(NoNameAndValue),
    }
}

fn settings(matches: &ArgMatches) -> Result<Config, ConfigError> {
    let own = SETTINGS.iter().filter_map(|setting| {
        let flag = format!("--{}", setting.flag?);
        let value = matches.get_one::<String>(setting.name)?;
        Some(FlagValue { name: setting.name.to_owned(), value: value.clone(), flag })
    });
    let by_name = matches.get_many::<(String, String)>("set").into_iter().flatten();
    let by_name =
        by_name.map(|(name, value)| FlagValue { name: name.clone(), value: value.clone(), flag: "--set".to_owned() });
    let flags: Vec<FlagValue> = by_name.chain(own).collect();
    for (at, flag) in flags.iter().enumerate() {
        if setting(&flag.name).is_some() && flags[..at].iter().any(|earlier| earlier.name == flag.name) {
            return Err(ConfigError::Twice { name: flag.name.clone() });
        }
    }
    // A value that is not UTF-8 is invalid. The loop must still report it if the variable is ours, or it would be lost
    // silently.
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => variables.push((name, value)),
            (Ok(name), Err(_)) if name.starts_with(crate::config::VARIABLE_PREFIX) => {
                return Err(ConfigError::NotUtf8 { name });
            }
            _ => {}
        }
    }
    let file = matches.get_one::<PathBuf>("config").cloned();
    let file = file.or_else(|| std::env::var_os("MILLRACE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    layers::load(file.as_deref(), variables.into_iter(), &flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let matches = command().try_get_matches_from([&["millrace"], args].concat()).map_err(|e| e.to_string())?;
        let matches = matches.subcommand().map_or(&matches, |(_, matches)| matches);
        settings(matches).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn flags_set_settings_with_and_without_serve() {
        for serve in [&["serve"][..], &[]] {
            let flags = ["--data-dir", "/d", "--node-id", "4", "--set", "num.partitions=3", "--set", "cores=0"];
            let config = parse(&[serve, &flags[..]].concat()).unwrap();
            assert_eq!((config.data_dir.to_str(), config.node_id, config.num_partitions), (Some("/d"), 4, 3));
        }
    }

    #[test]
    fn wrong_arguments_are_refused_by_name() {
        for (args, part) in [
            (&["--node-id", "x"][..], "node.id = 'x' (--node-id): it must be 0 to 2147483647"),
            (&["--set", "num.partitions"], "write it as NAME=VALUE"),
            (&["--set", "nm.partitions=1"], "did you mean 'num.partitions'?"),
            (&["--set", "node.id=1", "--node-id", "2"], "node.id is given more than once"),
            (&["--set", "num.partitions=1", "--set", "num.partitions=2"], "given more than once"),
            (&["--kafka-adr", "x"], "--kafka-addr"),
            (&["--config", "/no/such.toml"], "/no/such.toml"),
        ] {
            let refusal = parse(args).unwrap_err();
            assert!(refusal.contains(part), "{refusal}");
        }
    }

    #[test]
    fn the_help_of_the_broker_lists_every_exit_status() {
        let mut command = command();
        command.build();
        let serve = command.find_subcommand_mut("serve").expect("the broker is a subcommand").render_help();
        for help in [command.render_help(), serve] {
            let help = help.to_string();
            for (status, meaning) in status::STATUSES {
                let line = format!("  {}  {}\n", *status as u8, meaning.trim());
                assert!(help.contains(&line), "no '{line}' in: {help}");
            }
        }
    }

    #[test]
    fn every_help_has_examples() {
        fn walk(command: &mut Command, path: &str) {
            let help = command.render_help().to_string();
            assert!(help.contains("Example"), "{path}: {help}");
            for inner in command.get_subcommands_mut() {
                let path = format!("{path} {}", inner.get_name());
                walk(inner, &path);
            }
        }
        walk(&mut command(), "millrace");
    }
}
