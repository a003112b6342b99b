//! The protocols of a group's members: how many members support each, so that a join compares no lists.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use net::StrBytes;

use super::group::{Member, MemberSettings};

/// Number of members that support each protocol.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Supported(HashMap<StrBytes, usize, RandomState>);

/// The names of a member's protocols, each once.
fn names(settings: &MemberSettings) -> BTreeSet<&StrBytes> {
    settings.protocols.iter().map(|(name, _)| name).collect()
}

impl Supported {
    pub(super) fn of<'a>(members: impl Iterator<Item = &'a MemberSettings>) -> Self {
        let mut supported = Self::default();
        members.for_each(|settings| supported.add(settings));
        supported
    }

    pub(super) fn add(&mut self, settings: &MemberSettings) {
        for name in names(settings) {
            *self.0.entry(name.clone()).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, settings: &MemberSettings) {
        for name in names(settings) {
            let count = self.0.get_mut(name).expect("it was counted");
            *count -= 1;
            if *count == 0 {
                self.0.remove(name);
            }
        }
    }

    /// Number of members that support a protocol.
    pub(super) fn count(&self, name: &StrBytes) -> usize {
        self.0.get(name).copied().unwrap_or(0)
    }
}

/// The protocol with the most votes. Each member votes for its first protocol that all members support. On a tie, the
/// protocol that got a vote first wins.
pub(super) fn select<'a, T: 'a>(
    supported: &Supported,
    members: impl ExactSizeIterator<Item = &'a Member<T>>,
) -> Option<StrBytes> {
    let all = members.len();
    let mut votes: HashMap<&StrBytes, (usize, usize), RandomState> = HashMap::default();
    for (at, member) in members.enumerate() {
        let mut protocols = member.settings.protocols.iter();
        let (vote, _) = protocols.find(|(name, _)| supported.count(name) == all)?;
        votes.entry(vote).or_insert((0, all - at)).0 += 1;
    }
    votes.into_iter().max_by_key(|(_, votes_and_earliness)| *votes_and_earliness).map(|(name, _)| name.clone())
}
