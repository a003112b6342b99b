//! Crashes at any operation, life after life, with everything going on at once.

use crate::{harness::fresh_disk, life::lives};

/// Seeds per run; `STORE_SEED` replays one, `STORE_SEEDS` sets how many.
fn seeds() -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("STORE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("STORE_SEEDS").unwrap_or(40)).collect(),
    }
}

#[test]
fn what_was_acked_survives_crashes_at_any_operation() {
    let (mut hot, mut cold) = (0, 0);
    for seed in seeds() {
        let replay = format!("replay with STORE_SEED={seed} cargo test -p wal --test store_sim crash");
        let done =
            std::panic::catch_unwind(|| lives(seed, fresh_disk(seed), 6, &|_| {}).map(|model| model.borrow().reads));
        match done {
            Ok(Ok(reads)) => {
                hot += reads[0];
                cold += reads[1];
            }
            Ok(Err(wrong)) => panic!("seed {seed}: {wrong}; {replay}"),
            Err(panic) => {
                eprintln!("seed {seed} panicked; {replay}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(hot > 0 && cold > 0, "both kinds of reads were compared, not {hot} and {cold}");
}
