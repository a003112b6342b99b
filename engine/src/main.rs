//! The program `millrace`. Everything is in the library; see `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::cli::run(std::env::args_os())
}
