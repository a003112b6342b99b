//! Every sync of the store is needed: if any one is left out, some seed loses or leaks something.

use crate::{
    cores::cores_life,
    harness::{fresh_disk, quietly},
    life::lives,
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};
use wal::disk::sim::{Fate, Kind, Op, SimDisk};

/// A place where the store syncs, and how to recognise it.
struct Site {
    name: &'static str,
    is: fn(&Op, &Names) -> bool,
}

/// Directories in which names were created or removed since their last sync.
#[derive(Default)]
struct Names {
    made: BTreeSet<PathBuf>,
    removed: BTreeSet<PathBuf>,
}

impl Names {
    fn note(&mut self, op: &Op) {
        let parent = || op.path.parent().expect("not the root").to_path_buf();
        match op.kind {
            Kind::Create | Kind::CreateDir => drop(self.made.insert(parent())),
            Kind::Remove => drop(self.removed.insert(parent())),
            Kind::SyncDir => {
                self.made.remove(op.path);
                self.removed.remove(op.path);
            }
            _ => {}
        }
    }

    fn only_removed(&self, op: &Op) -> bool {
        op.kind == Kind::SyncDir && self.removed.contains(op.path) && !self.made.contains(op.path)
    }

    fn made(&self, op: &Op) -> bool {
        op.kind == Kind::SyncDir && self.made.contains(op.path)
    }
}

fn named(op: &Op, file: &str) -> bool {
    op.names.iter().any(|name| name.file_name().is_some_and(|name| name.to_string_lossy().starts_with(file)))
}

fn under(op: &Op, dir: &str) -> bool {
    op.path.parent() == Some(Path::new(dir))
}

fn ends(op: &Op, with: &str) -> bool {
    op.path.to_string_lossy().ends_with(with)
}

/// The syncs of one core's store.
const STORE: &[Site] = &[
    Site { name: "ring write", is: |op, _| op.kind == Kind::Sync && ends(op, ".seg") },
    Site { name: "segment file", is: |op, _| op.kind == Kind::Sync && ends(op, ".log") },
    Site { name: "group's directory with a new segment", is: |op, names| names.made(op) && under(op, "/data/logs") },
    Site {
        name: "group's directory without old ones",
        is: |op, names| names.only_removed(op) && under(op, "/data/logs"),
    },
    Site { name: "logs' directory with a new group", is: |op, names| names.made(op) && ends(op, "/data/logs") },
    Site { name: "logs' directory without a group", is: |op, names| names.only_removed(op) && ends(op, "/data/logs") },
    Site { name: "checkpoint file", is: |op, _| op.kind == Kind::Sync && ends(op, "checkpoint.tmp") },
    Site {
        name: "checkpoint's directory",
        is: |op, _| op.kind == Kind::SyncDir && ends(op, "/core-0") && named(op, "checkpoint"),
    },
    Site { name: "snapshot file", is: |op, _| op.kind == Kind::Sync && under(op, "/data/snapshots") },
    Site { name: "snapshots' directory", is: |op, _| op.kind == Kind::SyncDir && ends(op, "/snapshots") },
    Site { name: "core's parent", is: |op, _| op.kind == Kind::SyncDir && ends(op, "/epoch-1") },
    Site { name: "data directory", is: |op, _| op.kind == Kind::SyncDir && op.path == Path::new("/data") },
];

/// The additional syncs of setting up a data directory and of changing the number of cores.
const CORES: &[Site] = &[
    Site { name: "data directory's parent", is: |op, _| op.kind == Kind::SyncDir && op.path == Path::new("/") },
    Site { name: "manifest file", is: |op, _| op.kind == Kind::Sync && ends(op, "MANIFEST.next") },
    Site {
        name: "manifest's directory",
        is: |op, _| op.kind == Kind::SyncDir && op.path == Path::new("/data") && named(op, "MANIFEST"),
    },
    Site {
        name: "new epoch's name",
        is: |op, _| op.kind == Kind::SyncDir && op.path == Path::new("/data") && named(op, "epoch-"),
    },
    Site {
        name: "new cores' names",
        is: |op, _| op.kind == Kind::SyncDir && under(op, "/data") && ends(op, "epoch-2") && named(op, "core-"),
    },
    Site {
        name: "new checkpoint file",
        is: |op, _| op.kind == Kind::Sync && ends(op, "checkpoint.tmp") && op.path.starts_with("/data/epoch-2"),
    },
    Site {
        name: "new checkpoint's directory",
        is: |op, _| op.kind == Kind::SyncDir && op.path.starts_with("/data/epoch-2/") && named(op, "checkpoint"),
    },
    Site {
        name: "new ring's writes",
        is: |op, _| {
            op.kind == Kind::Sync
                && op.path.starts_with("/data/epoch-2")
                && op.path.to_string_lossy().contains("/ring-")
        },
    },
];

/// The first seed that detects the missing sync, of at most `seeds`.
fn first_noticed(
    seeds: u64,
    run: impl Fn(u64) -> Result<(), String> + std::panic::RefUnwindSafe,
) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| quietly(|| run(seed)).err().map(|wrong| (seed, wrong)))
}

fn skip(is: fn(&Op, &Names) -> bool) -> impl Fn(&SimDisk) {
    move |disk| {
        let mut names = Names::default();
        disk.fates(move |op| {
            let skipped = is(op, &names);
            names.note(op);
            if skipped { Fate::Skip } else { Fate::Go }
        });
    }
}

#[test]
fn leaving_out_any_sync_of_the_store_is_noticed() {
    for site in STORE {
        let is = site.is;
        let noticed = first_noticed(60, |seed| lives(seed, fresh_disk(seed), 8, &skip(is)).map(drop));
        let (seed, wrong) = noticed.unwrap_or_else(|| panic!("nothing is lost without the sync of the {}", site.name));
        assert!(!wrong.contains("nothing gets done"), "seed {seed} hangs without the sync of the {}", site.name);
        println!("{}: seed {seed}: {wrong}", site.name);
    }
}

#[test]
fn leaving_out_any_sync_of_a_change_of_cores_is_noticed() {
    for site in CORES {
        let is = site.is;
        let noticed = first_noticed(60, |seed| cores_life(seed, &skip(is)));
        let (seed, wrong) = noticed.unwrap_or_else(|| panic!("nothing is lost without the sync of the {}", site.name));
        assert!(!wrong.contains("nothing gets done"), "seed {seed} hangs without the sync of the {}", site.name);
        println!("{}: seed {seed}: {wrong}", site.name);
    }
}
