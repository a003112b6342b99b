//! Holds the sources against the structure that ARCHITECTURE.md describes.
//!
//! `violations.txt` lists the violations that the code still has. A new or larger one fails the test. So does a listed one that is gone or
//! smaller, so that the list only shrinks: `BLESS=1 cargo test -p engine --test architecture` then writes it anew.

mod sources;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use sources::{Source, module_name, root, sources};

const CRATES: [&str; 7] = ["engine", "engine/runtime", "engine/sim", "net", "wal", "consensus", "bench"];

/// The only crate that may name glommio.
const RUNTIME: &str = "engine/runtime";

/// What `consensus` may not name: it reads no clock, file, socket, thread or random number.
const NOT_IN_CONSENSUS: [&str; 8] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::process",
    "tokio",
    "glommio",
];

const FILES_PER_FOLDER_MAX: usize = 16;
const LINES_PER_FILE_MAX: usize = 600;
const LINES_PER_FUNCTION_MAX: usize = 60;
const COMMENT_COLUMNS_MAX: usize = 120;

/// Which crates a crate may depend on.
const MAY_KNOW: [(&str, &[&str]); 7] = [
    ("engine", &["runtime", "net", "wal", "consensus"]),
    ("bench", &["runtime", "net", "wal", "consensus"]),
    ("net", &["runtime"]),
    ("wal", &["runtime"]),
    ("consensus", &[]),
    (RUNTIME, &[]),
    ("engine/sim", &["engine", "runtime", "net", "wal", "consensus"]),
];

/// How far a rule is broken, by what breaks it.
type Violations = BTreeMap<String, usize>;

#[test]
fn one_crate_names_glommio() {
    for source in CRATES.iter().filter(|name| **name != RUNTIME).flat_map(|name| sources(name)) {
        if let Some(named) = source.paths.iter().find(|path| path[0] == "glommio") {
            panic!("{} names {}", source.path, named.join("::"));
        }
    }
}

#[test]
fn crates_know_only_those_that_they_may() {
    for (name, allowed) in MAY_KNOW {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("a crate has a manifest");
        for other in CRATES.map(|other| other.rsplit('/').next().expect("a crate has a name")) {
            let known = manifest.lines().any(|line| line.starts_with(&format!("{other}.workspace")));
            assert!(!known || allowed.contains(&other), "{name} depends on {other}");
        }
    }
}

#[test]
fn consensus_touches_no_clock_file_socket_or_thread() {
    for source in sources("consensus").iter().filter(|source| !source.is_test) {
        for forbidden in NOT_IN_CONSENSUS {
            let forbidden: Vec<&str> = forbidden.split("::").collect();
            let begins =
                |path: &&Vec<String>| path.len() >= forbidden.len() && path.iter().zip(&forbidden).all(|(a, b)| a == b);
            if let Some(named) = source.paths.iter().find(begins) {
                panic!("{} names {}", source.path, named.join("::"));
            }
        }
    }
}

#[test]
fn violations_only_shrink() {
    let list = root().join("engine/tests/architecture/violations.txt");
    let text = fs::read_to_string(&list).unwrap_or_default();
    let known: Violations = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (what, count) = line.rsplit_once(' ').expect("a line has a count");
            (what.to_owned(), count.parse().expect("the count is a number"))
        })
        .collect();
    let mut found = Violations::new();
    for name in CRATES {
        let sources = sources(name);
        cycles(name, &sources, &mut found);
        sizes(&sources, &mut found);
    }
    let worse: Vec<String> = found
        .iter()
        .filter(|(what, count)| known.get(*what).is_none_or(|known| known < count))
        .map(|(what, count)| format!("{what}: {count}, listed {}", known.get(what).copied().unwrap_or(0)))
        .collect();
    let better = known.iter().any(|(what, count)| found.get(what).is_none_or(|found| found < count));
    let bless = std::env::var_os("BLESS").is_some();
    assert!(worse.is_empty() || (bless && text.is_empty()), "the structure got worse:\n{}", worse.join("\n"));
    if bless {
        let head = "# Violations of the rules in architecture/main.rs that the code still has; see there.\n";
        let lines: String = found.iter().map(|(what, count)| format!("{what} {count}\n")).collect();
        fs::write(&list, format!("{head}{lines}")).expect("the list can be written");
    } else {
        assert!(!better, "the structure got better: run the test with BLESS=1 to shorten the list");
    }
}

/// Counts, for each folder of modules, the children that import each other in a circle. A module counts as one with all that lies below it.
fn cycles(crate_name: &str, sources: &[Source], found: &mut Violations) {
    let modules: BTreeSet<Vec<String>> = sources.iter().map(|source| source.module.clone()).collect();
    // By folder: which child imports which.
    let mut imports: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        for path in &source.paths {
            let Some(target) = source.resolve(path, &modules) else { continue };
            let common = source.module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (source.module.get(common), target.get(common)) {
                let folder = source.module[..common].to_vec();
                imports.entry(folder).or_default().entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    for (folder, graph) in imports {
        let reach = |from: &String| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(node) = next.pop() {
                for to in graph.get(node).into_iter().flatten() {
                    if seen.insert(to.clone()) {
                        next.push(to);
                    }
                }
            }
            seen
        };
        for node in graph.keys().filter(|node| reach(node).contains(*node)) {
            found.insert(format!("cycle {} {node}", module_name(crate_name, &folder)), 1);
        }
    }
}

/// Counts files in folders, lines in files and functions, and columns of comments.
fn sizes(sources: &[Source], found: &mut Violations) {
    let mut folders: BTreeMap<&str, usize> = BTreeMap::new();
    for source in sources {
        *folders.entry(source.path.rsplit_once('/').expect("a file lies in a folder").0).or_default() += 1;
        if source.lines > LINES_PER_FILE_MAX {
            found.insert(format!("lines {}", source.path), source.lines);
        }
        for (function, lines) in &source.functions {
            if *lines > LINES_PER_FUNCTION_MAX {
                let longest = found.entry(format!("function {} {function}", source.path)).or_default();
                *longest = (*longest).max(*lines);
            }
        }
        let wide = source.comments.iter().filter(|columns| **columns > COMMENT_COLUMNS_MAX).count();
        if wide > 0 {
            found.insert(format!("comments {}", source.path), wide);
        }
    }
    for (folder, files) in folders {
        if files > FILES_PER_FOLDER_MAX {
            found.insert(format!("files {folder}"), files);
        }
    }
}
