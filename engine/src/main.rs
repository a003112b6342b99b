//! The program `millrace`. All code is in the library. See `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    engine::cli::run(std::env::args_os())
}
