//! The protocols of a group's members: how many members support each, so that a join compares no lists.

use std::collections::{BTreeSet, HashMap};

use ahash::RandomState;
use bytes::Bytes;
use net::{StrBytes, messages::JoinGroupRequest};

/// A member's protocols in order of preference: the assignor's name and the member's metadata for it.
pub(super) type Protocols = Vec<(StrBytes, Bytes)>;

/// A member's own settings. A static member may return with different ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberSettings {
    pub(crate) rebalance_timeout_ms: u64,
    pub(crate) session_timeout_ms: u64,
    pub(super) protocols: Protocols,
}

impl MemberSettings {
    /// Copies the settings from a request, because the request's strings borrow from a whole frame.
    pub(crate) fn from_request(request: &JoinGroupRequest, version: i16) -> MemberSettings {
        let session_timeout_ms = request.session_timeout_ms.max(0) as u64;
        let own_timeout = version == 0 || request.rebalance_timeout_ms < 0;
        MemberSettings {
            rebalance_timeout_ms: if own_timeout { session_timeout_ms } else { request.rebalance_timeout_ms as u64 },
            session_timeout_ms,
            protocols: request.protocols.iter().map(|p| (own(&p.name), Bytes::copy_from_slice(&p.metadata))).collect(),
        }
    }

    /// Whether the request has the same protocols and metadata.
    pub(crate) fn matches(&self, request: &JoinGroupRequest) -> bool {
        let theirs = request.protocols.iter().map(|protocol| (&protocol.name, &protocol.metadata));
        self.protocols.iter().map(|(name, metadata)| (name, metadata)).eq(theirs)
    }

    /// The member's metadata for a protocol; empty if it has none.
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| **name == *protocol)
            .map_or_else(Bytes::new, |(_, metadata)| metadata.clone())
    }
}

/// An owned copy. A request's strings are slices of a whole frame, which would stay in memory with them.
pub(crate) fn own(string: &str) -> StrBytes {
    StrBytes::from_string(string.to_owned())
}

/// Number of members that support each protocol.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Supported(HashMap<StrBytes, usize, RandomState>);

/// The names of a member's protocols, each once.
fn names(protocols: &Protocols) -> BTreeSet<&StrBytes> {
    protocols.iter().map(|(name, _)| name).collect()
}

impl Supported {
    pub(super) fn of<'a>(members: impl Iterator<Item = &'a Protocols>) -> Self {
        let mut supported = Self::default();
        members.for_each(|protocols| supported.add(protocols));
        supported
    }

    pub(super) fn add(&mut self, protocols: &Protocols) {
        for name in names(protocols) {
            *self.0.entry(name.clone()).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, protocols: &Protocols) {
        for name in names(protocols) {
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
pub(super) fn select<'a>(
    supported: &Supported,
    members: impl ExactSizeIterator<Item = &'a Protocols>,
) -> Option<StrBytes> {
    let all = members.len();
    let mut votes: HashMap<&StrBytes, (usize, usize), RandomState> = HashMap::default();
    for (at, protocols) in members.enumerate() {
        let (vote, _) = protocols.iter().find(|(name, _)| supported.count(name) == all)?;
        votes.entry(vote).or_insert((0, all - at)).0 += 1;
    }
    votes.into_iter().max_by_key(|(_, votes_and_earliness)| *votes_and_earliness).map(|(name, _)| name.clone())
}
