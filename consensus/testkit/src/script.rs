//! Scripts with their expected traces: text files that a person can review.
//!
//! ```text
//! # A comment.
//! a command
//! another one
//! ----
//! what both have caused
//!
//! the next command
//! ----
//! ```
//!
//! An empty line ends a trace. `REWRITE_TESTDATA=1` writes the traces anew, to be reviewed as a diff.

use std::{fmt::Write, fs, path::Path};

/// Runs the commands of one script.
pub trait Walker {
    fn command(&mut self, line: &str);
    /// Takes what has happened since the last call, a line each.
    fn take_trace(&mut self) -> String;
}

/// Walks each script of a folder and compares its traces. Panics with the first difference, and if there are fewer
/// than `at_least` scripts.
pub fn check<W: Walker>(folder: &Path, at_least: usize, begin: impl Fn() -> W) {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= at_least, "the scripts are there");
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let walked = walk(&script, begin());
        if std::env::var_os("REWRITE_TESTDATA").is_some() {
            fs::write(&path, walked).unwrap();
        } else {
            let differs = script.lines().zip(walked.lines()).position(|(want, got)| want != got);
            let at = differs.unwrap_or(script.lines().count().min(walked.lines().count()));
            let around = |text: &str| text.lines().skip(at.saturating_sub(8)).take(16).collect::<Vec<_>>().join("\n");
            let name = path.file_name().unwrap().display();
            let (want, got) = (around(&script), around(&walked));
            assert!(script == walked, "{name} line {}:\n{want}\n\nbut it went:\n{got}", at + 1);
        }
    }
}

/// Runs a script and returns it with its actual traces.
fn walk(script: &str, mut walker: impl Walker) -> String {
    let mut out = String::new();
    let mut in_trace = false;
    for line in script.lines() {
        if in_trace {
            in_trace = !line.is_empty();
            if !in_trace {
                out.push('\n');
            }
        } else if line == "----" {
            in_trace = true;
            writeln!(out, "----\n{}", walker.take_trace()).unwrap();
            out.truncate(out.trim_end().len());
            out.push('\n');
        } else {
            writeln!(out, "{line}").unwrap();
            if !line.is_empty() && !line.starts_with('#') {
                walker.command(line);
            }
        }
    }
    assert!(walker.take_trace().is_empty(), "a script ends with a trace");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Echo(String);

    impl Walker for Echo {
        fn command(&mut self, line: &str) {
            writeln!(self.0, "did {line}").unwrap();
        }

        fn take_trace(&mut self) -> String {
            std::mem::take(&mut self.0)
        }
    }

    #[test]
    fn traces_are_written_behind_their_commands() {
        let walked = walk("# c\na\nb\n----\nold\n\nc\n----\n", Echo::default());
        assert_eq!(walked, "# c\na\nb\n----\ndid a\ndid b\n\nc\n----\ndid c\n");
        assert_eq!(walk(&walked, Echo::default()), walked);
    }
}
