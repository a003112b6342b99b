//! Requests that only read: OffsetFetch, DescribeGroups and ListGroups. Their answers come in parts that fit a turn,
//! since a small request may ask for much.
//!
//! Each group is described as it is at one moment. All offsets of a group come from one moment only if they fit one
//! part.

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{OffsetFetchRequest, offset_fetch_request::OffsetFetchRequestGroup},
    turn::ENTRIES_A_TURN,
};

use super::{
    Coordinator,
    api::{GroupRequest, GroupResponse},
    describe, offsets,
    pieces::GoesOn,
    topics::Topics,
};

/// Approximate bytes of one thing in an answer, decoded and encoded, without its strings.
pub(super) const GROUP_BYTES: usize = 300;
pub(super) const MEMBER_BYTES: usize = 320;
pub(super) const TOPIC_BYTES: usize = 160;
pub(super) const OFFSET_BYTES: usize = 128;
/// Approximate bytes of one listed group, with a name that is not very long.
const LISTED_BYTES: usize = 512;

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

/// What a part holds so far.
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

/// A group of a request that reads.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub group: StrBytes,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Its members.
    Description,
    AllOffsets,
    /// So many offsets, by their names.
    Offsets(usize),
}

impl GroupRequest {
    /// Whether the request changes nothing, so that [`Coordinator::read`] answers it.
    pub fn only_reads(&self) -> bool {
        matches!(self, GroupRequest::OffsetFetch(_) | GroupRequest::DescribeGroups(_) | GroupRequest::ListGroups(_))
    }

    /// Entries of the request that each get an answer of about the same size, whatever the coordinator knows.
    pub fn entries(&self) -> usize {
        match self {
            GroupRequest::OffsetCommit(commit) => commit.topics.iter().map(|topic| 1 + topic.partitions.len()).sum(),
            GroupRequest::OffsetFetch(fetch) => fetch.groups.len(),
            GroupRequest::DescribeGroups(describe) => describe.groups.len(),
            GroupRequest::DeleteGroups(delete) => delete.groups_names.len(),
            GroupRequest::LeaveGroup(leave) => leave.members.len(),
            _ => 0,
        }
    }

    /// The groups that an OffsetFetch or a DescribeGroups asks about, with repeats.
    pub fn wanted(&self, version: i16) -> Box<dyn Iterator<Item = Wanted> + '_> {
        match self {
            GroupRequest::OffsetFetch(fetch) if version < 8 => Box::new(std::iter::once(wanted_before_8(fetch))),
            GroupRequest::OffsetFetch(fetch) => Box::new(fetch.groups.iter().map(wanted_offsets)),
            GroupRequest::DescribeGroups(describe) => {
                Box::new(describe.groups.iter().map(|id| Wanted { group: id.0.clone(), what: What::Description }))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

fn wanted_before_8(fetch: &OffsetFetchRequest) -> Wanted {
    let count = fetch.topics.as_ref().map(|topics| topics.iter().map(|topic| topic.partition_indexes.len()).sum());
    Wanted { group: fetch.group_id.0.clone(), what: count.map_or(What::AllOffsets, What::Offsets) }
}

fn wanted_offsets(group: &OffsetFetchRequestGroup) -> Wanted {
    let count = group.topics.as_ref().map(|topics| topics.iter().map(|topic| topic.partition_indexes.len()).sum());
    Wanted { group: group.group_id.0.clone(), what: count.map_or(What::AllOffsets, What::Offsets) }
}

impl<T> Coordinator<T> {
    /// The part of the answer to a request that begins at `from`. One part takes about a turn.
    pub fn read(&self, topics: &dyn Topics, version: i16, request: &GroupRequest, from: &Cursor) -> Part {
        if self.loading {
            let response = request.refuse(version, ErrorCode::CoordinatorLoadInProgress);
            return Part { response, entries: 0, bytes: 0, goes_on: false, next: None };
        }
        match request {
            GroupRequest::OffsetFetch(fetch) if version < 8 => offsets::fetch_one(&self.groups, topics, fetch, from),
            GroupRequest::OffsetFetch(fetch) => offsets::fetch(&self.groups, topics, fetch, from),
            GroupRequest::DescribeGroups(request) => describe::describe(&self.groups, version, request, from),
            GroupRequest::ListGroups(request) => describe::list(&self.groups, request, from),
            other => unreachable!("{other:?} does not only read"),
        }
    }

    /// Approximate bytes of the answer about one group, and the number of entries that were counted for it.
    pub fn weigh(&self, wanted: &Wanted) -> (usize, usize) {
        let group = self.groups.get(&wanted.group);
        let base = GROUP_BYTES + wanted.group.len();
        match wanted.what {
            What::Description => {
                let members = group.map_or(0, |group| group.members.len());
                (base + MEMBER_BYTES * members + group.map_or(0, |group| group.record_bytes()), 1 + members)
            }
            What::AllOffsets => (base + group.map_or(0, |group| group.bytes), 1),
            What::Offsets(count) => {
                // Most clients name each partition once. Then all strings together are no larger than the group.
                let strings = group.map_or(0, |group| group.bytes.min(count * self.config.offset_metadata_max_bytes));
                (base + count * (OFFSET_BYTES + TOPIC_BYTES) + strings, 1)
            }
        }
    }

    /// Approximate bytes of the list of all groups.
    pub fn weigh_list(&self) -> usize {
        self.groups.len() * LISTED_BYTES
    }
}

impl GroupResponse {
    fn first_topic(&self) -> Option<&StrBytes> {
        match self {
            GroupResponse::OffsetFetch(r) if r.groups.is_empty() => r.topics.first().map(|topic| &topic.name.0),
            GroupResponse::OffsetFetch(r) => r.groups[0].topics.first().map(|topic| &topic.name.0),
            _ => None,
        }
    }

    fn last_topic(&self) -> Option<&StrBytes> {
        match self {
            GroupResponse::OffsetFetch(r) => match r.groups.last() {
                Some(group) => group.topics.last().map(|topic| &topic.name.0),
                None => r.topics.last().map(|topic| &topic.name.0),
            },
            _ => None,
        }
    }

    /// Appends the next part of the answer.
    pub fn add_part(&mut self, goes_on: bool, part: GroupResponse) {
        let goes_on = match goes_on {
            false => GoesOn::Nothing,
            true if self.last_topic().is_some() && self.last_topic() == part.first_topic() => GoesOn::Topic,
            true => GoesOn::Group,
        };
        self.add_piece(goes_on, part);
    }
}
