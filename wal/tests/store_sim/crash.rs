//! Crashes at any operation, over several lives, with everything running at once; on a good disk and on bad ones.

use crate::{harness::fresh_disk, life::lives};
use std::{cell::RefCell, panic::AssertUnwindSafe, rc::Rc};
use wal::disk::sim::{Fate, Kind, Op, SimDisk};

/// Seeds per run; `STORE_SEED` replays one, `STORE_SEEDS` sets how many.
fn seeds(usual: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("STORE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STORE_SEEDS").unwrap_or(usual)).collect(),
    }
}

/// Runs lives with many seeds. Returns how many reads of each kind were compared, and how many lives ended with
/// batches in a checkpoint.
fn all(test: &str, usual: u64, prepare: impl Fn(u64, &SimDisk) + Copy) -> [u64; 3] {
    let mut seen = [0; 3];
    for seed in seeds(usual) {
        let replay = format!("replay with STORE_SEED={seed} cargo test -p wal --test store_sim {test}");
        let done = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let prepare = |disk: &SimDisk| prepare(seed, disk);
            lives(seed, fresh_disk(seed), 6, &prepare).map(|model| {
                let model = model.borrow();
                [model.reads[0], model.reads[1], model.carried]
            })
        }));
        match done {
            Ok(Ok(of_seed)) => seen.iter_mut().zip(of_seed).for_each(|(seen, of_seed)| *seen += of_seed),
            Ok(Err(wrong)) => panic!("seed {seed}: {wrong}; {replay}"),
            Err(panic) => {
                eprintln!("seed {seed} panicked; {replay}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    seen
}

/// Whether a flush or a snapshot writes this path.
fn is_flush(op: &Op) -> bool {
    let path = op.path.to_string_lossy();
    path.starts_with("/data/logs") || path.starts_with("/data/snapshots") || path.ends_with("checkpoint.tmp")
}

/// One in `every` such operations fails with `code`. On a full disk, writes may be cut short instead.
fn failing(seed: u64, disk: &SimDisk, kinds: &'static [Kind], every: u32, code: i32) {
    let rng = Rc::new(RefCell::new(fastrand::Rng::with_seed(seed)));
    disk.fates(move |op| {
        let mut rng = rng.borrow_mut();
        match kinds.contains(&op.kind) && is_flush(op) && rng.u32(..every) == 0 {
            true if code == ENOSPC && op.kind == Kind::Write && rng.bool() => Fate::Short,
            true => Fate::Fail(code),
            false => Fate::Go,
        }
    });
}

const ENOSPC: i32 = 28;

#[test]
fn acknowledged_records_survive_crashes_at_any_operation() {
    let [hot, cold, carried] = all("crashes_at_any_operation", 40, |_, _| {});
    assert!(hot > 0 && cold > 0, "both kinds of reads were compared, not {hot} and {cold}");
    assert!(carried > 0, "checkpoints carried batches");
}

#[test]
fn acknowledged_records_survive_on_a_disk_that_is_full_now_and_then() {
    all("full_now_and_then", 15, |seed, disk| {
        failing(seed, disk, &[Kind::Create, Kind::Write, Kind::Rename], 20, ENOSPC);
    });
}

#[test]
fn acknowledged_records_survive_on_a_disk_that_fails_now_and_then() {
    const EIO: i32 = 5;
    all("fails_now_and_then", 15, |seed, disk| {
        failing(seed, disk, &[Kind::Create, Kind::Write, Kind::Rename, Kind::Sync, Kind::SyncDir], 200, EIO);
    });
}
