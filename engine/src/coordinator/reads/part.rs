//! A part of an answer, and what fits it.

use net::{StrBytes, turn::ENTRIES_A_TURN};

use crate::coordinator::api::GroupResponse;

/// Approximate bytes of one thing in an answer, decoded and encoded, without its strings.
pub(super) const GROUP_BYTES: usize = 300;
pub(super) const MEMBER_BYTES: usize = 320;
pub(super) const TOPIC_BYTES: usize = 160;
pub(super) const OFFSET_BYTES: usize = 128;
/// The place at which the next part of an answer begins. The default is the beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the request's groups that are answered.
    pub(super) groups: usize,
    /// The last answered offset of the next group, if the request asks for all its offsets.
    pub(super) offset: Option<(StrBytes, i32)>,
    /// The last group that ListGroups has looked at.
    pub(super) listed: Option<StrBytes>,
}

/// A part of an answer.
#[derive(Debug)]
pub struct Part {
    pub response: GroupResponse,
    /// Entries that were looked at.
    pub entries: usize,
    /// Approximate bytes of the answer, decoded and encoded.
    pub bytes: usize,
    /// The first group of this part is the last one of the part before.
    pub goes_on: bool,
    /// Where the next part begins; `None`: this is the last part.
    pub next: Option<Cursor>,
}

/// The size of a part so far.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) entries: usize,
    pub(super) bytes: usize,
}

impl Load {
    /// Whether another item of so many entries fits. The first one always does.
    pub(super) fn has_room(&self, entries: usize) -> bool {
        self.entries == 0 || self.entries + entries <= ENTRIES_A_TURN
    }

    pub(super) fn add(&mut self, entries: usize, bytes: usize) {
        self.entries += entries;
        self.bytes += bytes;
    }
}
