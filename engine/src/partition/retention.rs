//! Retention: moves log starts by time and size, as the topics' settings ask, and evicts producers that are long
//! idle.
//! Lives on: every core, for its own partitions. A log start moves by a committed entry, so it is the same after a
//! restart.

use super::{
    Partition,
    host::{Host, in_turns, in_turns_while},
    producers::share::cut,
};
use runtime::{
    clock,
    sync::{Either, race},
};
use std::{rc::Rc, time::Duration};

/// Most producers that are sampled to find the least recent. With more, only each second, third, … is looked at.
const SAMPLES: usize = 65_536;
/// Pause when no producer may be evicted: all candidates have uncommitted batches.
const PAUSE: Duration = Duration::from_secs(1);

/// Checks every partition of this core each `log.retention.check.interval.ms`, until the broker stops.
pub async fn run(core: Rc<impl Host>) {
    loop {
        let pause = runtime::sleep(core.config().retention_check_interval());
        if let Either::Second(()) = race(pause, core.stopping().wait()).await {
            return;
        }
        let mut of_unknown_age = Vec::new();
        let look = |partition: &Rc<Partition>| {
            let limited = partition.config().retention_ms.is_some();
            if limited && core.store().needs_file_times(partition.group(), clock::wall_ms()) {
                of_unknown_age.push(partition.clone());
            }
            look_at(&core, partition);
        };
        in_turns(&core, look).await;
        let mut turns = runtime::Turns::begin();
        for partition in of_unknown_age {
            look_at_files(&core, &partition).await;
            turns.give_way().await;
        }
    }
}

/// Timestamps that say nothing about a segment's age (such as -1, or microseconds) must not keep it for ever. Its
/// file's time counts instead.
async fn look_at_files(core: &Rc<impl Host>, partition: &Rc<Partition>) {
    match core.store().learn_file_times(partition.group(), clock::wall_ms()).await {
        Ok(()) => look_at(core, partition),
        Err(error) => {
            tracing::warn!(partition = %partition.name, %error, "cannot read the modification time of a segment file")
        }
    }
}

fn look_at(core: &Rc<impl Host>, partition: &Rc<Partition>) {
    let config = partition.config();
    partition.expire_producers(core, clock::wall_ms(), core.config().producer_id_expiration_ms);
    let wanted = core.store().retention(
        partition.group(),
        clock::wall_ms(),
        config.retention_ms,
        config.retention_bytes,
        partition.high_watermark(),
    );
    if let Some(start) = wanted
        && partition.leads()
    {
        tracing::info!(partition = %partition.name, start, "retention moves the log start");
        if let Err(error) = partition.trim(core, start) {
            tracing::warn!(partition = %partition.name, %error, "cannot move the log start");
        }
    }
}

/// Keeps this core's producers within their share, until the broker stops.
pub async fn keep_producers(core: Rc<impl Host>) {
    loop {
        let share = core.producers_share();
        while share.is_over() && !core.stopping().is_set() {
            if forget(&core).await == 0 {
                race(runtime::sleep(PAUSE), core.stopping().wait()).await;
            }
        }
        if let Either::Second(()) = race(share.over.next(), core.stopping().wait()).await {
            return;
        }
    }
}

/// Looks through all partitions, then evicts. Returns the number evicted.
async fn forget(core: &Rc<impl Host>) -> usize {
    let every = core.producers_share().remembered().div_ceil(SAMPLES).max(1);
    let (mut samples, mut seen) = (Vec::new(), 0);
    in_turns_while(core, |partition| {
        partition.with_producers(|producers| {
            for written in producers.written() {
                if seen % every == 0 {
                    samples.push(written);
                }
                seen += 1;
            }
        });
        true
    })
    .await;
    let excess = core.producers_share().excess();
    let Some(mut cut) = cut(samples, seen, excess) else { return 0 };
    in_turns_while(core, |partition| {
        cut.at_most -= partition.forget_producers(core, cut);
        cut.at_most > 0
    })
    .await;
    let forgotten = excess - cut.at_most;
    core.metrics().producers_forgotten_total.add(forgotten as u64);
    tracing::debug!(forgotten, "forgot idempotent producers, since their share of memory is full");
    forgotten
}
