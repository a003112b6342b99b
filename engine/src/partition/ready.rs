//! The ready loop, which drives all of a core's replicas.
//! Lives on: the owning core.
//!
//! The loop never waits: it takes what a group has ready, hands entries to the ring and goes on. The ring later
//! reports the position up to which it is durable. No borrow is held across an await.
//!
//! Invariants: completions reach a group in the order of its Readys; nothing is applied before it is committed; a
//! message that promises durability leaves only once that is true.

use super::{
    host::Host,
    replica::{Payload, Persisting, Replica, Replicated},
};
use consensus::group::{Group, Message};
use std::{rc::Rc, time::Instant};
use types::{META_GROUP, Position};
use wal::store::{AppendError, LogPos};

/// Completions, and groups, that the ready loop handles in one turn. The others follow in the next one. A topic with
/// 10,000 partitions wakes as many groups at once.
const GROUPS_A_TURN: usize = 512;

impl Replica {
    /// Steps the group with a peer's message. A message that no replica of the group can have sent is dropped,
    /// counted and logged.
    pub fn step(&self, core: &Rc<impl Host>, message: Message) {
        let from = message.from;
        let unfit = self.with(|raft| {
            raft.step(message);
            raft.take_unfit()
        });
        if let Some(unfit) = unfit {
            core.refused(self.id, from, &unfit);
        }
    }

    /// Whether a peer's message may be stepped. If not, it is counted and logged.
    pub fn is_fit(&self, core: &Rc<impl Host>, message: &Message) -> bool {
        let checked = self.with(|raft| raft.check_message(message));
        if let Err(unfit) = &checked {
            core.refused(self.id, message.from, unfit);
        }
        checked.is_ok()
    }

    /// Steps a leader's entries, with all their payloads. The entries that the group accepts are in its next Ready,
    /// which the caller must take at once.
    pub fn step_with(&self, core: &Rc<impl Host>, message: Message, payloads: Vec<(Position, Payload)>) {
        let mut held = self.payloads.borrow_mut();
        assert!(held.is_empty(), "group {}: a follower stages entries when it takes them", self.id.0);
        held.extend(payloads);
        drop(held);
        self.step(core, message);
    }
}

/// Runs the ready loop of this core until its ring fails or the core stops.
pub async fn run(core: Rc<impl Host>) {
    // Not what is durable when the task first runs: the loop may have gone to wait for that by then.
    let (follow, durable) = (core.clone(), core.store().durable());
    runtime::spawn(async move { follow_durable(follow, durable).await });
    loop {
        let seen = core.ready_loop().work.version();
        let (started, cpu) = (Instant::now(), runtime::clock::thread_cpu());
        if let Err(error) = turn(&core) {
            core.storage_failed(&error.to_string());
            return;
        }
        core.metrics().raft_ready_loop_latency_seconds.record(started.elapsed());
        core.metrics().raft_ready_loop_cpu_seconds.record(runtime::clock::thread_cpu() - cpu);
        if core.ready_loop().is_idle(core.store().durable()) {
            core.ready_loop().work.past(seen).await;
        } else {
            // Other tasks run first if this one's time is up. Otherwise the next turn's entries join the same
            // write.
            runtime::yield_if_needed().await;
        }
    }
}

/// Wakes the loop whenever the ring has become durable beyond `durable`, and each time beyond that.
pub(super) async fn follow_durable(core: Rc<impl Host>, mut durable: LogPos) {
    loop {
        match core.store().durable_past(durable).await {
            Ok(position) => durable = position,
            Err(poisoned) => return core.storage_failed(&poisoned.to_string()),
        }
        core.ready_loop().work.notify();
    }
}

/// One turn: takes completions, stages entries and applies committed entries, for the groups queued at its start, as
/// many as a turn takes.
pub(super) fn turn(core: &Rc<impl Host>) -> Result<(), AppendError> {
    let ready_loop = core.ready_loop();
    let durable = core.store().durable();
    core.admission().written(durable);
    let mut oldest: Option<Instant> = None;
    for _ in 0..GROUPS_A_TURN {
        let done = ready_loop.persisting.borrow_mut().pop_front_if(|next| next.position <= durable);
        let Some(done) = done else { break };
        oldest.get_or_insert(done.since);
        if done.group == META_GROUP {
            core.metrics().metadata_wal_write_latency_seconds.record(done.since.elapsed());
        }
        // A group that was removed meanwhile needs no completions.
        if let Some(group) = core.group(done.group) {
            group.replica().with(|raft| raft.on_persisted(done.number));
            group.send(core, done.messages);
            group.persisted(core);
            ready_loop.wake(group);
        }
    }
    if let Some(oldest) = oldest {
        core.metrics().wal_write_latency_seconds.record(oldest.elapsed());
    }
    // Groups that these wake wait for the next turn, after other tasks of this core.
    let waiting = ready_loop.queued.borrow().len();
    for _ in 0..waiting.min(GROUPS_A_TURN) {
        let Some(group) = ready_loop.queued.borrow_mut().pop_front() else { break };
        group.replica().queued.set(false);
        if group.replica().id != META_GROUP {
            settle(core, &*group)?;
        } else if step(core, &*group)? {
            // One Ready a turn, so that a burst of metadata delays no partition.
            ready_loop.wake(group);
        }
    }
    core.tell_leaders();
    Ok(())
}

/// Stages, sends and applies everything that the group has ready.
fn settle<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) -> Result<(), AppendError> {
    while step(core, group)? {}
    Ok(())
}

/// Does this for the group's next Ready. Returns `false` if there was none.
fn step<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) -> Result<bool, AppendError> {
    let replica = group.replica();
    if replica.closed.get() {
        return Ok(false);
    }
    group.before_ready(core);
    let Some(mut ready) = replica.with(Group::ready) else {
        if let Some(unreadable) = replica.with(|raft| raft.unreadable().cloned())
            && !replica.told_stop.replace(true)
        {
            core.group_stopped(group, &unreadable);
        }
        group.settled(core);
        return Ok(false);
    };
    let restored = ready.snapshot.as_ref().map(|mark| group.restore(core, mark)).transpose()?;
    let position = replica.persist(core.store(), group, &mut ready)?.or(restored);
    group.send(core, ready.messages);
    // A Ready without a write of its own counts as durable with the last write staged before it, never earlier.
    let mut persisting = core.ready_loop().persisting.borrow_mut();
    match position.or_else(|| persisting.back().map(|last| last.position)) {
        Some(position) => {
            let (group, number, since) = (replica.id, ready.number, Instant::now());
            let messages = ready.persisted_messages;
            persisting.push_back(Persisting { position, group, number, since, messages });
            drop(persisting);
        }
        None => {
            drop(persisting);
            replica.with(|raft| raft.on_persisted(ready.number));
            group.send(core, ready.persisted_messages);
            group.persisted(core);
        }
    }
    if !ready.committed.is_empty() {
        group.apply(core, ready.committed);
    }
    if !ready.reads.is_empty() {
        group.still_leads(core, &ready.reads);
    }
    Ok(true)
}

/// Stages what was just proposed, so that the next caller sees how much room the ring has left.
pub fn stage<H: Host>(core: &Rc<H>, group: &dyn Replicated<H>) {
    if let Err(error) = settle(core, group) {
        core.storage_failed(&error.to_string());
    }
}
