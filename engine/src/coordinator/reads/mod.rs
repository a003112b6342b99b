//! Requests that only read: OffsetFetch, DescribeGroups and ListGroups. Their answers come in parts that fit a turn,
//! since a small request may ask for much.
//!
//! Each group is described as it is at one moment. All offsets of a group come from one moment only if they fit one
//! part.

mod describe;
mod fetch;
mod part;

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{OffsetFetchRequest, offset_fetch_request::OffsetFetchRequestGroup},
};

use self::part::{GROUP_BYTES, MEMBER_BYTES, OFFSET_BYTES, TOPIC_BYTES};
pub use self::{
    describe::shorten_filter,
    part::{Cursor, Part},
};
use super::{
    Coordinator,
    api::{GroupRequest, GroupResponse},
    pieces::GoesOn,
    topics::Topics,
};

/// Approximate bytes of one listed group, with a name that is not very long.
const LISTED_BYTES: usize = 512;

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
    /// So many offsets, by their names. The topics take so many bytes.
    Offsets {
        count: usize,
        topic_bytes: usize,
    },
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
    let named = fetch
        .topics
        .as_ref()
        .map(|topics| named(topics.iter().map(|topic| (topic.name.len(), topic.partition_indexes.len()))));
    Wanted { group: fetch.group_id.0.clone(), what: named.unwrap_or(What::AllOffsets) }
}

fn wanted_offsets(group: &OffsetFetchRequestGroup) -> Wanted {
    let named = group
        .topics
        .as_ref()
        .map(|topics| named(topics.iter().map(|topic| (topic.name.len(), topic.partition_indexes.len()))));
    Wanted { group: group.group_id.0.clone(), what: named.unwrap_or(What::AllOffsets) }
}

/// The lengths of topics' names, and the numbers of their partitions.
fn named(topics: impl Iterator<Item = (usize, usize)>) -> What {
    let (mut count, mut topic_bytes) = (0, 0);
    for (name_bytes, partitions) in topics {
        count += partitions;
        topic_bytes += TOPIC_BYTES + name_bytes;
    }
    What::Offsets { count, topic_bytes }
}

impl<T> Coordinator<T> {
    /// The part of the answer to a request that begins at `from`. One part takes about a turn.
    pub fn read(&self, topics: &dyn Topics, version: i16, request: &GroupRequest, from: &Cursor) -> Part {
        if self.loading {
            let response = request.refuse(version, ErrorCode::CoordinatorLoadInProgress);
            return Part { response, entries: 0, bytes: 0, goes_on: false, next: None };
        }
        match request {
            GroupRequest::OffsetFetch(one) if version < 8 => fetch::fetch_one(&self.groups, topics, one, from),
            GroupRequest::OffsetFetch(several) => fetch::fetch(&self.groups, topics, several, from),
            GroupRequest::DescribeGroups(request) => describe::describe(&self.groups, version, request, from),
            GroupRequest::ListGroups(request) => describe::list(&self.groups, request, from),
            other => unreachable!("{other:?} does not only read"),
        }
    }

    /// Approximate bytes of the answer about one group, and the number of entries that were counted for it.
    pub fn weigh(&self, wanted: &Wanted) -> (usize, usize) {
        let group = self.groups.get(&wanted.group);
        let base = GROUP_BYTES + 2 * wanted.group.len();
        match wanted.what {
            What::Description => {
                let members = group.map_or(0, |group| group.members.len());
                (base + MEMBER_BYTES * members + group.map_or(0, |group| group.record_bytes()), 1 + members)
            }
            What::AllOffsets => (base + group.map_or(0, |group| group.bytes + group.offsets.len() * TOPIC_BYTES), 1),
            What::Offsets { count, topic_bytes } => {
                // Most clients name each partition once. Then all strings together are no larger than the group.
                let strings = group.map_or(0, |group| group.bytes.min(count * self.config.offset_metadata_max_bytes));
                (base + topic_bytes + count * OFFSET_BYTES + strings, 1)
            }
        }
    }

    /// Approximate bytes of the list of all groups.
    pub fn weigh_list(&self) -> usize {
        self.groups.keys().map(|id| LISTED_BYTES + id.len()).sum()
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
