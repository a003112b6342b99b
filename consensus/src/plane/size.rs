//! The check that every broker can store an entry. An entry that a ring does not take would stop the broker, and the
//! next leader after it.
//!
//! Brokers register the largest entry that their rings take. The leader checks a write before it proposes it. The
//! broker that a client asks checks too, so that it sends no message that is too large for a frame.

use super::{Accepted, Plane};
use crate::{
    group::Group,
    metadata::{Rejection, RequestResult},
};
use types::Term;

/// Bytes of an entry that every ring takes. A larger entry holds one write only.
pub const ENTRY_BYTES: usize = 256 << 10;

impl Plane {
    /// Checks that the rings of this broker and of all registered ones take an entry of this many bytes.
    pub(super) fn check_size(&self, bytes: usize) -> Result<(), Rejection> {
        let own = (self.config.node, self.config.largest_entry);
        let (node, takes) = self.cluster.least_ring().filter(|(_, takes)| *takes < own.1).unwrap_or(own);
        let largest = bytes as u64;
        if largest > takes { Err(Rejection::LargestEntry { node, takes, largest }) } else { Ok(()) }
    }

    /// The answer to a write that is too large to be in the log. Its place is what every view shows already.
    pub(super) fn rejected(&self, group: &Group, requests: usize, rejection: &Rejection) -> Accepted {
        let index = self.flow.published();
        let result: RequestResult = Ok(Err(rejection.clone()));
        Accepted { term: Term(group.term_at(index).unwrap_or(Term(0)).0), index, results: vec![result; requests] }
    }
}
