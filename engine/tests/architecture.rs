//! Checks that the sources keep the rules of structure in ARCHITECTURE.md.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// All Rust sources below a crate's `src`.
fn sources(crate_name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(crate_name).join("src")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a crate has sources") {
            let path = entry.expect("the directory is readable").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

/// Source lines that are code, not comments.
fn code(path: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(path).expect("a source is text");
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}

const CRATES: [&str; 5] = ["engine", "net", "wal", "consensus", "bench"];

/// The only files that may name the runtime. A change of runtime would touch only these.
const NAME_GLOMMIO: [&str; 5] =
    ["engine/src/rt.rs", "net/src/rt.rs", "wal/src/rt.rs", "wal/src/disk/glommio.rs", "bench/src/rt.rs"];

/// Whether a path in this line begins with the crate's name.
fn names(line: &str, crate_name: &str) -> bool {
    let part_of_a_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    line.match_indices(&format!("{crate_name}::")).any(|(at, _)| !line[..at].ends_with(part_of_a_word))
}

#[test]
fn the_runtime_is_named_in_few_files() {
    for path in CRATES.iter().flat_map(|name| sources(name)) {
        let relative = path.strip_prefix(root()).expect("sources lie in the workspace").to_string_lossy().into_owned();
        if NAME_GLOMMIO.contains(&relative.as_str()) {
            continue;
        }
        if let Some(line) = code(&path).find(|line| names(line, "glommio")) {
            panic!("{relative} names the runtime: {line}");
        }
    }
}

#[test]
fn crates_know_only_those_that_they_may() {
    let may_know: [(&str, &[&str]); 5] = [
        ("engine", &["net", "wal", "consensus"]),
        ("bench", &["net", "wal", "consensus"]),
        ("net", &[]),
        ("wal", &[]),
        ("consensus", &[]),
    ];
    for (name, allowed) in may_know {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a crate has a manifest");
        for other in CRATES {
            let known = manifest.lines().any(|line| line.starts_with(&format!("{other}.workspace")));
            assert!(!known || allowed.contains(&other), "{name} depends on {other}");
        }
    }
}

#[test]
fn consensus_touches_no_clock_file_socket_or_thread() {
    for path in sources("consensus") {
        for line in code(&path) {
            for forbidden in ["std::time::Instant", "SystemTime", "std::fs", "std::net", "std::thread", "tokio"] {
                assert!(!line.contains(forbidden), "{}: {line}", path.display());
            }
        }
    }
}
