//! Measures how long a core's executor takes between two polls. Network and disk events wait for that long.
//! Lives on: every core.
//!
//! The executor does not report this, so a task does what a request does: it waits for a moment, then for the
//! kernel. Its delay is the length of the turn that it met. It runs every 10 ms, so it sees every longer turn, and
//! some shorter ones.

use crate::core::Core;
use runtime::{
    clock,
    sync::{Either, race},
};
use std::{rc::Rc, time::Duration};

const EVERY: Duration = Duration::from_millis(10);

/// Measures until the broker stops.
pub async fn run(core: Rc<Core>) {
    let mut longest = Duration::ZERO;
    loop {
        let due = clock::now() + EVERY;
        if let Either::Second(()) = race(runtime::sleep(EVERY), core.lifecycle.stopping.wait()).await {
            return;
        }
        runtime::give_way().await;
        let turn = clock::now().saturating_sub(due);
        core.metrics.core_turn_seconds.record(turn);
        if turn > longest {
            longest = turn;
            core.metrics.core_turn_longest_microseconds.set(u64::try_from(turn.as_micros()).unwrap_or(u64::MAX));
        }
    }
}
