//! How long a core goes between two turns of its executor: what comes from the network or the disk meanwhile waits as long.
//! Lives on: every core.
//!
//! The executor can't be asked, so a task does what a request does: it waits for a moment, then for the kernel. How late it gets through
//! is the turn that it met. It looks every 10 ms, so it sees each turn that takes longer, and shorter ones now and then.

use crate::{
    clock,
    core::Core,
    rt,
    sync::{Either, race},
};
use std::{rc::Rc, time::Duration};

const EVERY: Duration = Duration::from_millis(10);

/// Looks until the broker stops.
pub async fn run(core: Rc<Core>) {
    let mut longest = Duration::ZERO;
    loop {
        let due = clock::now() + EVERY;
        if let Either::Second(()) = race(rt::sleep(EVERY), core.lifecycle.stopping.wait()).await {
            return;
        }
        rt::give_way().await;
        let turn = clock::now().saturating_sub(due);
        core.metrics.core_turn_seconds.record(turn);
        if turn > longest {
            longest = turn;
            core.metrics.core_turn_longest_microseconds.set(u64::try_from(turn.as_micros()).unwrap_or(u64::MAX));
        }
    }
}
