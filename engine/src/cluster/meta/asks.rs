//! Questions from any core to the metadata plane. Every question has a deadline, by which it is answered, if only with
//! an error.

use super::{Meta, host::Host};
use consensus::{
    group::Group,
    metadata::{Command, Outcome, QueryAnswer, Rejection, RequestResult, slice_of_topic},
    plane::{self, ANSWER_MAX, Acks, ENTRY_BYTES, Plane, Quorum, Submission, Token, Until, WriteError, Written},
};
use runtime::{
    clock,
    sync::{Answer, Promise, promise},
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};
use types::{RaftIndex, Term, core_of_slice};

/// The outcome of one command.
pub type CommandResult = Result<Outcome, Rejection>;

/// Most commands of one write. A longer list becomes several writes, submitted at the same time. So does a list with
/// more than [`ENTRY_BYTES`].
const COMMANDS_MAX: usize = 512;

/// Why a submission has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the metadata group has no leader that this broker can reach; nothing was done; try again")]
    NoLeader,
    #[error("the metadata group did not answer in time; the request may still take effect")]
    TimedOut,
    #[error(
        "this broker's metadata group has stopped: its storage failed, or it can't apply an entry; see the broker's log"
    )]
    Storage,
}

impl From<WriteError> for SubmitError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::NoLeader => SubmitError::NoLeader,
            WriteError::TimedOut => SubmitError::TimedOut,
        }
    }
}

/// How a submission is to be acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Submitting {
    /// `None`: the present value of `metadata.acks`.
    pub acks: Option<Acks>,
    pub until: Until,
    pub within: Duration,
}

impl Default for Submitting {
    fn default() -> Self {
        Self { acks: None, until: Until::Shown, within: ANSWER_MAX }
    }
}

/// Submits commands from any core, of which none is larger than the largest entry.
pub(super) async fn submit_as_is(
    core: &Rc<impl Host>,
    commands: Vec<Command>,
    how: Submitting,
) -> Result<Vec<CommandResult>, SubmitError> {
    core.ask_submit(commands, how).await
}

/// On core 0: submits commands.
pub async fn submit_here(
    core: Rc<impl Host>,
    commands: Vec<Command>,
    how: Submitting,
) -> Result<Vec<CommandResult>, SubmitError> {
    let results = write_all(&core, commands, how).await?.results;
    // The outcome of a request asked too late is forgotten: it may have been done now or before.
    results.into_iter().map(|result: RequestResult| result.map_err(|_late| SubmitError::TimedOut)).collect()
}

/// On the metadata's core: submits commands, as several writes at the same time if they are too many for one. Returns
/// all results, with the place of the last write.
pub async fn write_all(core: &Rc<impl Host>, commands: Vec<Command>, how: Submitting) -> Result<Written, SubmitError> {
    let writes = split(founded(core, commands)).into_iter().map(|some| core.meta().write(core, some, how));
    let writes: Vec<_> = writes.collect();
    let mut all = Written { term: Term(0), index: RaftIndex::ZERO, results: Vec::new() };
    for write in writes {
        let Written { term, index, results } = written(write.await).map_err(|error| match error {
            // An earlier write has been done.
            SubmitError::NoLeader if !all.results.is_empty() => SubmitError::TimedOut,
            error => error,
        })?;
        (all.term, all.index) = (all.term, all.index).max((term, index));
        all.results.extend(results);
    }
    Ok(all)
}

/// Fills in the brokers' peer ids where commands create groups.
fn founded(core: &Rc<impl Host>, mut commands: Vec<Command>) -> Vec<Command> {
    for founders in commands.iter_mut().filter_map(Command::founding_peers) {
        *founders = core.view(|view| view.brokers().map(|broker| broker.peer).collect());
    }
    commands
}

/// Splits commands into writes, in order. A command that is too large for that has a write of its own.
fn split(commands: Vec<Command>) -> Vec<Vec<Command>> {
    let mut writes: Vec<Vec<Command>> = Vec::new();
    let mut bytes = 0;
    for command in commands {
        let more = plane::weight(&command);
        bytes += more;
        match writes.last_mut() {
            Some(last) if bytes <= ENTRY_BYTES && last.len() < COMMANDS_MAX => last.push(command),
            _ => {
                bytes = more;
                writes.push(vec![command]);
            }
        }
    }
    writes
}

fn written(answer: Option<Result<Written, WriteError>>) -> Result<Written, SubmitError> {
    answer.unwrap_or(Err(WriteError::TimedOut)).map_err(SubmitError::from)
}

/// Waits until a read may be answered from this core's view. That is at once under a lease; otherwise once the view
/// shows everything that the leader knows to be committed.
pub async fn may_read(core: &Rc<impl Host>) -> Result<(), SubmitError> {
    if core.has_read_lease() {
        core.metrics().lease_valid_reads_total.add(1);
        return Ok(());
    }
    core.metrics().lease_expired_reads_total.add(1);
    linearize(core).await
}

/// Returns once this core's view shows every write that was acknowledged before the call.
pub async fn linearize(core: &Rc<impl Host>) -> Result<(), SubmitError> {
    core.ask_linearize().await
}

/// On core 0: waits until every core's view shows every write that was acknowledged before the call.
pub async fn linearize_here(core: Rc<impl Host>) -> Result<(), SubmitError> {
    let meta = core.meta();
    if meta.failed.get() {
        return Err(SubmitError::Storage);
    }
    let answer = meta.ask(&core, &meta.read, |plane, raft, now| plane.read(raft, now, now + ANSWER_MAX));
    answer.await.unwrap_or(Err(WriteError::TimedOut)).map_err(SubmitError::from)
}

/// The metadata group as its leader sees it, on whichever broker that is.
pub async fn describe_quorum(core: &Rc<impl Host>) -> Result<Quorum, SubmitError> {
    core.ask_quorum().await
}

/// On core 0: the same.
pub async fn describe_quorum_here(core: Rc<impl Host>) -> Result<Quorum, SubmitError> {
    let meta = core.meta();
    if meta.failed.get() {
        return Err(SubmitError::Storage);
    }
    let answer = meta.ask(&core, &meta.described, |plane, raft, now| plane.describe(raft, now, now + ANSWER_MAX));
    answer.await.unwrap_or(Err(WriteError::TimedOut)).map_err(SubmitError::from)
}

/// A topic in the leader's slice, committed or not.
pub async fn overlay_topic(core: &Rc<impl Host>, name: String) -> QueryAnswer {
    let owner = core_of_slice(slice_of_topic(&name), core.cores());
    core.ask_topic(owner, name).await.map_or(QueryAnswer::NotFound, QueryAnswer::Topic)
}

type Waiting<T> = RefCell<BTreeMap<Token, Promise<Result<T, WriteError>>>>;

impl Meta {
    /// Puts a question to the plane. The answer may be there before this returns.
    fn ask<T>(
        self: &Rc<Self>,
        core: &Rc<impl Host>,
        waiting: &Waiting<T>,
        question: impl FnOnce(&mut Plane, &mut Group, Duration) -> Token,
    ) -> Answer<Result<T, WriteError>> {
        let (promise, answer) = promise();
        let token = self.replica.with(|raft| question(&mut self.plane.borrow_mut(), raft, clock::now()));
        waiting.borrow_mut().insert(token, promise);
        self.act(core);
        core.ready_loop().wake(self.clone());
        answer
    }

    /// Number of questions that wait for their answers.
    pub fn open_questions(&self) -> usize {
        self.written.borrow().len() + self.read.borrow().len() + self.described.borrow().len()
    }

    /// Hands a write to the plane.
    pub(super) fn write(
        self: &Rc<Self>,
        core: &Rc<impl Host>,
        commands: Vec<Command>,
        how: Submitting,
    ) -> Answer<Result<Written, WriteError>> {
        let acks = how.acks.unwrap_or_else(|| core.metadata_acks());
        self.ask(core, &self.written, |plane, _, now| {
            plane.submit(Submission { commands, acks, until: how.until, deadline: now + how.within })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn delete(name: &str) -> Command {
        Command::DeleteTopic { name: name.into(), id: Uuid::nil() }
    }

    fn create(partitions: usize) -> Command {
        let (name, id, first_group, peers) = ("t".into(), Uuid::nil(), 0, Vec::new());
        let replicas = vec![vec![1, 2, 3]; partitions];
        Command::CreateTopic { name, id, first_group, replicas, configs: BTreeMap::new(), created_ms: 0, peers }
    }

    #[test]
    fn long_lists_become_several_writes_in_order() {
        let sizes = |commands: Vec<Command>| -> Vec<usize> {
            let writes = split(commands.clone());
            assert_eq!(writes.concat(), commands);
            writes.iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(Vec::new()), [] as [usize; 0]);
        assert_eq!(sizes((0..1025).map(|n| delete(&n.to_string())).collect()), [512, 512, 1]);
        // Each takes some 140 KB, so that two are too large for one entry.
        assert_eq!(sizes(vec![create(5_000); 3]), [1, 1, 1]);
        assert_eq!(sizes(vec![create(4_000), create(4_000), create(50_000), delete("a"), delete("b")]), [2, 1, 2]);
    }
}
