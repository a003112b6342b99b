//! The command line.

use types::planted::Bug;

#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "sim",
    about = "Simulates whole Millrace clusters from seeds, and checks that every promise to their clients is kept.",
    after_help = "\
Each seed decides a cluster of three to five brokers, its clients and its faults: kills, power cuts, lost disks, full \
disks, cut networks, pauses. The same seed with the same options gives the same run. A failure prints the command \
that replays it.

Exit codes: 0 every seed kept its promises, or the planted bug was found; 1 otherwise; 2 an option is wrong.

Examples:
  cargo run --release -p sim -- --seeds 1000 --cores 2
  cargo run --release -p sim -- --minutes 30
  cargo run --release -p sim -- --seed 4711 --log engine=debug
  cargo run --release -p sim -- --planted mesh-message-lost"
)]
pub(crate) struct Options {
    /// Number of seeds to run, from --from on
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with_all = ["seed", "minutes"])]
    pub(crate) seeds: u64,

    /// The first seed [default: 0, with --planted 1000000]
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    pub(crate) from: Option<u64>,

    /// Runs this seed only
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    pub(crate) seed: Option<u64>,

    /// Runs seeds for so long instead of a number of them
    #[arg(long, value_name = "M")]
    pub(crate) minutes: Option<u64>,

    /// The most cores of a broker, 1 to 4. It begins with that many, and restarts with fewer now and then
    /// [default: as the seed decides]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub(crate) cores: Option<u8>,

    /// Plants this bug and runs seeds until one shows it
    #[arg(long, value_name = "BUG", value_parser = bug, long_help = bugs())]
    pub(crate) planted: Option<Bug>,

    /// Number of threads, each with a seed of its own [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Prints the brokers' logs with virtual time, filtered as log.filter does, for example engine=debug
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

/// A bug's name as the command line has it: words with dashes.
pub(crate) fn bug_name(bug: Bug) -> String {
    let mut name = String::new();
    for letter in format!("{bug:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('-');
        }
        name.extend(letter.to_lowercase());
    }
    name
}

#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no bug has this name; the bugs are {}", names())]
struct UnknownBug;

fn bug(name: &str) -> Result<Bug, UnknownBug> {
    Bug::OF_BROKERS.into_iter().find(|bug| bug_name(*bug) == name).ok_or(UnknownBug)
}

fn names() -> String {
    Bug::OF_BROKERS.map(bug_name).join(", ")
}

fn bugs() -> String {
    format!("Plants this bug and runs seeds until one shows it. The bugs: {}", names())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_sound_and_takes_each_bug_by_its_name() {
        Options::command().debug_assert();
        for bug in Bug::OF_BROKERS {
            let options = Options::try_parse_from(["sim", "--planted", &bug_name(bug)]).unwrap();
            assert_eq!(options.planted, Some(bug));
        }
        let unknown = Options::try_parse_from(["sim", "--planted", "no-such-bug"]).unwrap_err();
        assert!(unknown.to_string().contains("mesh-message-lost"), "{unknown}");
    }
}
