//! Finds the broker's program: the named one, the one built from this source tree, or the one beside the harness.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::AnyError;

/// Finds the program `millrace`. A harness that runs from its own source tree first rebuilds the broker, so that it
/// measures the current source.
pub fn millrace(named: Option<&Path>) -> Result<PathBuf, AnyError> {
    if let Some(path) = named {
        let found = path.canonicalize();
        return found.map_err(|e| format!("{}: {e}; --binary must name the program millrace", path.display()).into());
    }
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("millrace");
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().filter(|tree| is_within(&own, tree));
    if let Some(tree) = tree {
        eprintln!("cargo build --release -p engine");
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--release", "--quiet", "-p", "engine"]).current_dir(tree).stdin(Stdio::null());
        // Put the build beside this program, wherever that was built.
        let target = beside.parent().and_then(Path::parent);
        build.envs(target.map(|target| ("CARGO_TARGET_DIR", target)));
        match build.status() {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(format!("cargo build --release -p engine in {}: {status}", tree.display()).into()),
            Err(e) if beside.exists() => eprintln!("cannot run cargo ({e}); using {} as it is", beside.display()),
            Err(e) => return Err(format!("cannot run cargo: {e}; name the broker's program with --binary").into()),
        }
    }
    if beside.exists() {
        return Ok(beside);
    }
    let at = beside.display();
    Err(format!("there is no {at}; build it with `cargo build --release -p engine`, or name it with --binary").into())
}

/// Whether `own` is a release build of `tree`: it lies in a `release` directory below the tree or below
/// CARGO_TARGET_DIR.
fn is_within(own: &Path, tree: &Path) -> bool {
    let in_release = own.parent().is_some_and(|dir| dir.ends_with("release"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let in_target = target.is_some_and(|target| target.canonicalize().is_ok_and(|target| own.starts_with(target)));
    in_release && tree.join("Cargo.toml").exists() && (own.starts_with(tree) || in_target)
}
