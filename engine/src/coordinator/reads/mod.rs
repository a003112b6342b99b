//! Requests that only read: OffsetFetch, DescribeGroups and ListGroups. Their answers come in parts that fit a turn,
//! since a small request may ask for much.
//!
//! Each group is described as it is at one moment. All offsets of a group come from one moment only if they fit one
//! part.

mod describe;
mod fetch;
mod part;

use net::{StrBytes, errors::ErrorCode, turn::ENTRIES_A_TURN};

use self::part::{GROUP_BYTES, MEMBER_BYTES, OFFSET_BYTES, TOPIC_BYTES};
pub use self::{
    describe::shorten_filter,
    part::{Cursor, Part},
};
use super::{
    Coordinator,
    api::{GroupRequest, GroupResponse},
    incarnation::Topics,
    pieces::GoesOn,
};

/// Approximate bytes of one listed group, with a name that is not very long.
const LISTED_BYTES: usize = 512;

/// A group, or a part of it, of a request that reads.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub group: StrBytes,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// Its members.
    Description,
    AllOffsets,
    /// Nothing but its name. Parts with its offsets follow.
    Name,
    /// Offsets of one topic, by their names: at most a turn's.
    Offsets {
        topic: StrBytes,
        partitions: Vec<i32>,
    },
}

impl Wanted {
    /// Entries of the request that it has.
    pub fn entries(&self) -> usize {
        match &self.what {
            What::Description | What::AllOffsets | What::Name => 1,
            What::Offsets { partitions, .. } => 1 + partitions.len(),
        }
    }
}

impl GroupRequest {
    /// Whether the request changes nothing, so that [`Coordinator::read`] answers it.
    pub fn only_reads(&self) -> bool {
        matches!(self, GroupRequest::OffsetFetch(_) | GroupRequest::DescribeGroups(_) | GroupRequest::ListGroups(_))
    }

    /// The answer of a cluster without an offsets topic, and so without groups. No broker coordinates any, so requests
    /// to a coordinator are refused, as in Kafka. Kafka refuses DescribeGroups as well. This broker knows that the
    /// groups do not exist, and says so.
    pub fn without_groups(&self, version: i16) -> GroupResponse {
        match self {
            GroupRequest::ListGroups(_) => self.empty_response(),
            GroupRequest::DescribeGroups(request) => describe::without_groups(version, request),
            _ => self.refuse(version, ErrorCode::NotCoordinator),
        }
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

    /// The groups that an OffsetFetch or a DescribeGroups asks about, with repeats. Offsets that are named come in
    /// parts.
    pub fn wanted(&self, version: i16) -> Box<dyn Iterator<Item = Wanted> + '_> {
        match self {
            GroupRequest::OffsetFetch(fetch) if version < 8 => {
                let topics = fetch.topics.as_ref();
                let topics =
                    topics.map(|topics| topics.iter().map(|topic| (&topic.name.0, &topic.partition_indexes[..])));
                wanted_offsets(&fetch.group_id.0, topics)
            }
            GroupRequest::OffsetFetch(fetch) => Box::new(fetch.groups.iter().flat_map(|group| {
                let topics = group.topics.as_ref();
                let topics =
                    topics.map(|topics| topics.iter().map(|topic| (&topic.name.0, &topic.partition_indexes[..])));
                wanted_offsets(&group.group_id.0, topics)
            })),
            GroupRequest::DescribeGroups(describe) => {
                Box::new(describe.groups.iter().map(|id| Wanted { group: id.0.clone(), what: What::Description }))
            }
            _ => Box::new(std::iter::empty()),
        }
    }
}

/// The parts of one group. `topics`: the names of topics with their partitions; `None`: all offsets.
fn wanted_offsets<'a>(
    group: &'a StrBytes,
    topics: Option<impl Iterator<Item = (&'a StrBytes, &'a [i32])> + 'a>,
) -> Box<dyn Iterator<Item = Wanted> + 'a> {
    let wanted = move |what| Wanted { group: group.clone(), what };
    let Some(topics) = topics else { return Box::new(std::iter::once(wanted(What::AllOffsets))) };
    let parts = topics.flat_map(|(topic, partitions)| {
        // A topic without partitions is answered, too.
        let empty = partitions.is_empty().then_some(partitions);
        let parts = empty.into_iter().chain(partitions.chunks(ENTRIES_A_TURN));
        parts.map(move |part| What::Offsets { topic: topic.clone(), partitions: part.to_vec() })
    });
    Box::new(std::iter::once(What::Name).chain(parts).map(wanted))
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

    /// Approximate bytes of the answer about one group or a part of it, and the number of entries that were counted for
    /// it.
    pub fn weigh(&self, wanted: &Wanted) -> (usize, usize) {
        let group = self.groups.get(&wanted.group);
        let base = GROUP_BYTES + 2 * wanted.group.len();
        match &wanted.what {
            What::Description => {
                let members = group.map_or(0, |group| group.members.len());
                (base + MEMBER_BYTES * members + group.map_or(0, |group| group.record_bytes()), 1 + members)
            }
            What::AllOffsets => (base + group.map_or(0, |group| group.bytes + group.offsets.len() * TOPIC_BYTES), 1),
            What::Name => (base, 1),
            What::Offsets { topic, partitions } => {
                let offsets = group.and_then(|group| group.offsets.get(topic));
                let metadata = |index: &i32| Some(offsets?.get(index)?.metadata.len());
                let strings: usize = partitions.iter().filter_map(metadata).sum();
                (TOPIC_BYTES + topic.len() + partitions.len() * OFFSET_BYTES + strings, wanted.entries())
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
