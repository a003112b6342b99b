//! The answers that members of a group got, and the invariants that must hold.
//!
//! Each commit covers one partition and has a number of its own, which is also its metadata. So an answer shows which
//! commit it comes from. A commit without an answer may still count, once, at any time until a later generation is
//! known. The ledger numbers all events, so that they have an order:
//!
//! | event | invariant |
//! |---|---|
//! | a commit is acknowledged | nobody knew of a later generation when the member sent the commit |
//! | an offset is fetched | its commit was not rejected, and no later commit was known to count when the fetch began |
//! | no offset is fetched | no commit was known to count when the fetch began |
//! | partitions are assigned | no other member of the generation has one of them |
//! | a static member's commit is acknowledged | when it was sent, no later owner of the instance was known |
//!
//! Commit B is later than commit A if A was known to count before B was sent, or if B belongs to a later generation. A
//! commit is known to count once it is acknowledged or fetched. A generation is known once a member got its assignment.

use super::{Violation, expect};
use std::collections::BTreeMap;

/// A topic's partition.
pub(crate) type Place = (String, i32);
/// The number of events so far.
pub(crate) type Moment = u64;

/// The number of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommitId(usize);

impl CommitId {
    pub(crate) fn text(self) -> String {
        format!("commit {}", self.0)
    }
}

/// A member, as its group knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) id: String,
    /// The instance id of a static member, which stays the same when it comes back (KIP-345).
    pub(crate) instance: Option<String>,
    /// When it sent its JoinGroup request.
    pub(crate) asked: Moment,
}

impl Who {
    /// The owner of assigned partitions. A member that takes over an instance also takes over its partitions.
    fn owner(&self) -> &str {
        self.instance.as_ref().unwrap_or(&self.id)
    }
}

#[derive(Debug)]
struct Commit {
    who: Who,
    place: Place,
    generation: i32,
    offset: u64,
    asked: Moment,
    /// When it became known that the commit counts.
    counts: Option<Moment>,
    refused: bool,
}

impl Commit {
    /// Whether this commit must come before another one that counts.
    fn is_before(&self, other: &Commit) -> bool {
        self.generation < other.generation || self.counts.is_some_and(|counts| counts < other.asked)
    }
}

/// The history of one group.
#[derive(Default)]
pub(crate) struct GroupHistory {
    now: Moment,
    commits: Vec<Commit>,
    /// By generation, when it became known.
    known: BTreeMap<i32, Moment>,
    /// By generation and partition, the owner.
    owners: BTreeMap<(i32, Place), String>,
    /// Static members, each with the time when it became known.
    statics: Vec<(Who, Moment)>,
    fetched: u64,
}

impl GroupHistory {
    /// Number of commits that are known to count.
    pub(crate) fn counted(&self) -> u64 {
        self.commits.iter().filter(|commit| commit.counts.is_some()).count() as u64
    }

    /// Number of commits that were rejected.
    pub(crate) fn refused(&self) -> u64 {
        self.commits.iter().filter(|commit| commit.refused).count() as u64
    }

    /// Number of known generations.
    pub(crate) fn generations(&self) -> u64 {
        self.known.len() as u64
    }

    /// Number of fetched offsets.
    pub(crate) fn fetched(&self) -> u64 {
        self.fetched
    }

    /// A member got its partitions.
    pub(crate) fn assigned(&mut self, generation: i32, who: &Who, places: &[Place]) -> Result<(), Violation> {
        let now = self.now();
        self.known.entry(generation).or_insert(now);
        if who.instance.is_some() && self.since(who).is_none() {
            self.statics.push((who.clone(), now));
        }
        let member = who.owner();
        for place in places {
            let owner = self.owners.entry((generation, place.clone())).or_insert_with(|| member.to_owned());
            expect(owner == member, || format!("{owner} and {member} both have {place:?} in generation {generation}"))?;
        }
        Ok(())
    }

    /// When a static member became known.
    fn since(&self, who: &Who) -> Option<Moment> {
        self.statics.iter().find(|(known, _)| known.id == who.id).map(|(_, since)| *since)
    }

    /// A member that took over the instance later, and was known at this moment.
    fn successor(&self, of: &Who, at: Moment) -> Option<&Who> {
        let since = self.since(of)?;
        let is_next = |other: &Who| other.instance == of.instance && other.asked > since;
        self.statics.iter().find(|(other, known)| is_next(other) && *known < at).map(|(other, _)| other)
    }

    /// A member sends a commit.
    pub(crate) fn asks(&mut self, who: &Who, generation: i32, place: Place, offset: u64) -> CommitId {
        let asked = self.now();
        let who = who.clone();
        self.commits.push(Commit { who, place, generation, offset, asked, counts: None, refused: false });
        CommitId(self.commits.len() - 1)
    }

    /// A member learns that its commit will never count.
    pub(crate) fn is_refused(&mut self, CommitId(id): CommitId) -> Result<(), Violation> {
        let commit = &mut self.commits[id];
        commit.refused = true;
        expect(commit.counts.is_none(), || format!("commit {id} was seen, and then refused: {commit:?}"))
    }

    /// A member learns that its commit is stored.
    pub(crate) fn is_acked(&mut self, CommitId(id): CommitId) -> Result<(), Violation> {
        let now = self.now();
        self.commits[id].counts.get_or_insert(now);
        let commit = &self.commits[id];
        let successor = self.successor(&commit.who, commit.asked);
        expect(successor.is_none(), || {
            format!("commit {id} was acknowledged, though another had its instance: {commit:?}, {successor:?}")
        })?;
        let mut later = self.known.range(commit.generation + 1..);
        let later = later.find(|(_, known)| **known < commit.asked);
        expect(later.is_none(), || {
            format!("commit {id} was acknowledged, though a later generation was known before: {commit:?}, {later:?}")
        })
    }

    /// Advances the clock of events, before a request for offsets or to join.
    pub(crate) fn now(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// Checks the offset of a partition that was fetched by a request sent at `asked`.
    pub(crate) fn is_fetched(
        &mut self,
        place: &Place,
        asked: Moment,
        found: Option<(u64, &str)>,
    ) -> Result<(), Violation> {
        let now = self.now();
        self.fetched += 1;
        let counted = |commit: &Commit| commit.place == *place && commit.counts.is_some_and(|counts| counts < asked);
        let Some((offset, metadata)) = found else {
            let lost = self.commits.iter().find(|commit| counted(commit));
            return expect(lost.is_none(), || format!("no offset was fetched of {place:?}, and there is {lost:?}"));
        };
        let id = metadata.strip_prefix("commit ").and_then(|id| id.parse::<usize>().ok());
        let shown = id.filter(|id| *id < self.commits.len());
        let shown = shown.ok_or_else(|| Violation(format!("{metadata:?} was fetched, and is nobody's commit")))?;
        let commit = &self.commits[shown];
        expect(commit.place == *place && commit.offset == offset && !commit.refused, || {
            format!("offset {offset} of {place:?} was fetched, as commit {shown}'s: {commit:?}")
        })?;
        let lost = self.commits.iter().enumerate().find(|(_, other)| counted(other) && commit.is_before(other));
        expect(lost.is_none(), || {
            format!("commit {shown} was fetched, though another comes behind it: {commit:?}, {lost:?}")
        })?;
        self.commits[shown].counts.get_or_insert(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        ("topic".to_owned(), 0)
    }

    fn who(id: &str) -> Who {
        Who { id: id.to_owned(), ..Who::default() }
    }

    /// A commit that is acknowledged at once.
    fn acked(history: &mut GroupHistory, generation: i32, offset: u64) -> CommitId {
        let id = history.asks(&who("a"), generation, place(), offset);
        history.is_acked(id).unwrap();
        id
    }

    fn fetched(history: &mut GroupHistory, id: CommitId, offset: u64) -> Result<(), Violation> {
        let asked = history.now();
        history.is_fetched(&place(), asked, Some((offset, &id.text())))
    }

    #[test]
    fn an_acknowledged_commit_is_not_lost() {
        let mut history = GroupHistory::default();
        let asked = history.now();
        history.is_fetched(&place(), asked, None).unwrap();
        let (first, second) = (acked(&mut history, 1, 10), acked(&mut history, 1, 20));
        history.is_fetched(&place(), asked, Some((10, &first.text()))).unwrap();
        history.is_fetched(&place(), asked, None).unwrap();
        fetched(&mut history, second, 20).unwrap();
        fetched(&mut history, second, 10).unwrap_err();
        fetched(&mut history, first, 10).unwrap_err();
        let asked = history.now();
        history.is_fetched(&place(), asked, None).unwrap_err();
    }

    #[test]
    fn an_unanswered_commit_may_count_once() {
        let mut history = GroupHistory::default();
        let open = history.asks(&who("a"), 1, place(), 5);
        let first = acked(&mut history, 1, 10);
        fetched(&mut history, first, 10).unwrap();
        fetched(&mut history, open, 5).unwrap();
        let second = acked(&mut history, 1, 20);
        fetched(&mut history, second, 20).unwrap();
        fetched(&mut history, open, 5).unwrap_err();
        let refused = history.asks(&who("a"), 1, place(), 30);
        history.is_refused(refused).unwrap();
        fetched(&mut history, refused, 30).unwrap_err();
    }

    #[test]
    fn later_generations_come_behind_earlier_ones() {
        let mut history = GroupHistory::default();
        let open = history.asks(&who("a"), 1, place(), 5);
        history.assigned(2, &who("a"), &[place()]).unwrap();
        history.assigned(2, &who("a"), &[place()]).unwrap();
        history.assigned(2, &who("b"), &[place()]).unwrap_err();
        let stale = history.asks(&who("a"), 1, place(), 7);
        history.is_acked(open).unwrap();
        history.is_acked(stale).unwrap_err();
        let second = acked(&mut history, 2, 3);
        fetched(&mut history, second, 3).unwrap();
        fetched(&mut history, open, 5).unwrap_err();
    }

    #[test]
    fn a_member_that_lost_its_instance_commits_no_more() {
        let mut history = GroupHistory::default();
        let member = |id: &str, asked| Who { instance: Some("instance".to_owned()), asked, ..who(id) };
        let first = member("first", history.now());
        history.assigned(1, &first, &[place()]).unwrap();
        let second = member("second", history.now());
        let open = history.asks(&first, 1, place(), 5);
        history.assigned(1, &second, &[place()]).unwrap();
        let stale = history.asks(&first, 1, place(), 7);
        let new = history.asks(&second, 1, place(), 9);
        history.is_acked(open).unwrap();
        history.is_acked(stale).unwrap_err();
        history.is_acked(new).unwrap();
        history.assigned(1, &who("another"), &[place()]).unwrap_err();
    }
}
