//! Splits requests with many entries into pieces that fit a turn, and joins their answers.
//!
//! Kafka handles such a request in one go. Here the core serves other requests between two pieces. A commit of
//! several pieces becomes several batches in the log, so each partition's answer gives the outcome of its own batch.

use std::vec::IntoIter;

use net::{
    errors::NONE,
    messages::{
        DeleteGroupsRequest, DescribeGroupsRequest, GroupId, LeaveGroupRequest, OffsetCommitRequest,
        OffsetFetchRequest,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics},
    },
    turn::{BYTES_A_TURN, ENTRIES_A_TURN},
};

use super::api::{GroupRequest, GroupResponse};

/// Groups in one piece of a DeleteGroups request. It is small because each of a group's offsets needs a tombstone.
const DELETED_A_TURN: usize = 16;

/// Bytes that the group's id may take in the records of one piece of a commit (1 MiB). Each record repeats the id,
/// which may have 32 KiB.
const COMMITTED_IDS_BYTES: usize = 4 * BYTES_A_TURN;

/// The part of the previous piece that a piece's first entry continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoesOn {
    Nothing,
    /// The last group of the previous piece, with another topic.
    Group,
    /// The last topic of the previous piece.
    Topic,
}

/// A part of a request that is handled in one turn.
#[derive(Debug)]
pub struct Piece {
    pub request: GroupRequest,
    pub goes_on: GoesOn,
}

/// The pieces of a request, in its order. There is at least one.
pub struct Pieces {
    kind: Kind,
    begun: bool,
}

enum Kind {
    /// A request of one piece; `None` once it is taken.
    Whole(Option<GroupRequest>),
    /// The request without its topics, and the topics to split.
    Commit(OffsetCommitRequest, Cut<OffsetCommitRequestTopic>),
    /// OffsetFetch before version 8, for one group.
    FetchOne(OffsetFetchRequest, Cut<OffsetFetchRequestTopic>),
    Fetch(OffsetFetchRequest, CutGroups),
    Describe(DescribeGroupsRequest, IntoIter<GroupId>),
    Delete(DeleteGroupsRequest, IntoIter<GroupId>),
    /// LeaveGroup from version 3 on. Each piece may begin a rebalance.
    Leave(LeaveGroupRequest, IntoIter<MemberIdentity>),
}

impl GroupRequest {
    pub fn into_pieces(self) -> Pieces {
        let kind = match self {
            GroupRequest::OffsetCommit(mut commit) => {
                let topics = std::mem::take(&mut commit.topics);
                Kind::Commit(commit, Cut::new(topics))
            }
            GroupRequest::OffsetFetch(mut fetch) if fetch.groups.is_empty() => match fetch.topics.take() {
                Some(topics) => Kind::FetchOne(fetch, Cut::new(topics)),
                None => Kind::Whole(Some(fetch.into())),
            },
            GroupRequest::OffsetFetch(mut fetch) => {
                let groups = std::mem::take(&mut fetch.groups);
                Kind::Fetch(fetch, CutGroups { rest: groups.into_iter(), open: None })
            }
            GroupRequest::DescribeGroups(mut describe) => {
                let groups = std::mem::take(&mut describe.groups);
                Kind::Describe(describe, groups.into_iter())
            }
            GroupRequest::DeleteGroups(mut delete) => {
                let groups = std::mem::take(&mut delete.groups_names);
                Kind::Delete(delete, groups.into_iter())
            }
            GroupRequest::LeaveGroup(mut leave) if !leave.members.is_empty() => {
                let members = std::mem::take(&mut leave.members);
                Kind::Leave(leave, members.into_iter())
            }
            other => Kind::Whole(Some(other)),
        };
        Pieces { kind, begun: false }
    }
}

impl Pieces {
    fn is_over(&self) -> bool {
        match &self.kind {
            Kind::Whole(request) => request.is_none(),
            Kind::Commit(_, topics) => topics.is_over(),
            Kind::FetchOne(_, topics) => topics.is_over(),
            Kind::Fetch(_, groups) => groups.is_over(),
            Kind::Describe(_, groups) | Kind::Delete(_, groups) => groups.as_slice().is_empty(),
            Kind::Leave(_, members) => members.as_slice().is_empty(),
        }
    }

    fn take(&mut self) -> Piece {
        let mut left = ENTRIES_A_TURN;
        let (request, goes_on) = match &mut self.kind {
            Kind::Whole(request) => (request.take().expect("a whole request is taken once"), GoesOn::Nothing),
            Kind::Commit(rest, topics) => {
                // A topic and a partition are the least that a piece can have.
                left = left.min(COMMITTED_IDS_BYTES / rest.group_id.len().max(1)).max(2);
                let (topics, goes_on) = topics.take(&mut left);
                (rest.clone().with_topics(topics).into(), goes_on)
            }
            Kind::FetchOne(rest, topics) => {
                let (topics, goes_on) = topics.take(&mut left);
                (rest.clone().with_topics(Some(topics)).into(), goes_on)
            }
            Kind::Fetch(rest, groups) => {
                let (groups, goes_on) = groups.take(&mut left);
                (rest.clone().with_groups(groups).into(), goes_on)
            }
            Kind::Describe(rest, groups) => {
                (rest.clone().with_groups(groups.take(left).collect()).into(), GoesOn::Nothing)
            }
            Kind::Delete(rest, groups) => {
                let groups = groups.take(DELETED_A_TURN).collect();
                (rest.clone().with_groups_names(groups).into(), GoesOn::Nothing)
            }
            Kind::Leave(rest, members) => {
                (rest.clone().with_members(members.take(left).collect()).into(), GoesOn::Nothing)
            }
        };
        Piece { request, goes_on }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let is_over = std::mem::replace(&mut self.begun, true) && self.is_over();
        (!is_over).then(|| self.take())
    }
}

/// A topic of a request, with its partitions.
trait Topic: Clone {
    type Partition;

    fn partitions(&mut self) -> &mut Vec<Self::Partition>;
}

macro_rules! topics {
    ($($topic:ty, $field:ident: $partition:ty;)*) => {
        $(impl Topic for $topic {
            type Partition = $partition;

            fn partitions(&mut self) -> &mut Vec<$partition> {
                &mut self.$field
            }
        })*
    };
}

topics! {
    OffsetCommitRequestTopic, partitions: OffsetCommitRequestPartition;
    OffsetFetchRequestTopic, partition_indexes: i32;
    OffsetFetchRequestTopics, partition_indexes: i32;
}

/// Topics to split, between any two partitions.
struct Cut<T: Topic> {
    rest: IntoIter<T>,
    /// A split topic without its partitions, and its remaining partitions.
    open: Option<(T, IntoIter<T::Partition>)>,
}

impl<T: Topic> Cut<T> {
    fn new(topics: Vec<T>) -> Self {
        Self { rest: topics.into_iter(), open: None }
    }

    fn is_over(&self) -> bool {
        self.open.is_none() && self.rest.as_slice().is_empty()
    }

    /// Takes at most `left` entries and lowers `left` by their number. Each topic and each partition is one entry.
    fn take(&mut self, left: &mut usize) -> (Vec<T>, GoesOn) {
        let goes_on = if self.open.is_some() { GoesOn::Topic } else { GoesOn::Nothing };
        let mut taken = Vec::new();
        while *left > 0 {
            let Some((mut topic, mut partitions)) = self.open.take().or_else(|| self.begin()) else { break };
            *left -= 1;
            topic.partitions().extend(partitions.by_ref().take(*left));
            *left -= topic.partitions().len();
            if !partitions.as_slice().is_empty() {
                let mut bare = topic.clone();
                bare.partitions().clear();
                self.open = Some((bare, partitions));
            }
            taken.push(topic);
        }
        (taken, goes_on)
    }

    fn begin(&mut self) -> Option<(T, IntoIter<T::Partition>)> {
        let mut topic = self.rest.next()?;
        let partitions = std::mem::take(topic.partitions()).into_iter();
        Some((topic, partitions))
    }
}

/// Groups to split, between topics or partitions. A group that asks for all its offsets is one entry: its coordinator
/// answers in parts (`reads`).
struct CutGroups {
    rest: IntoIter<OffsetFetchRequestGroup>,
    /// A split group without its topics, and its remaining topics.
    open: Option<(OffsetFetchRequestGroup, Cut<OffsetFetchRequestTopics>)>,
}

impl CutGroups {
    fn is_over(&self) -> bool {
        self.open.is_none() && self.rest.as_slice().is_empty()
    }

    fn take(&mut self, left: &mut usize) -> (Vec<OffsetFetchRequestGroup>, GoesOn) {
        let mut goes_on = if self.open.is_some() { GoesOn::Group } else { GoesOn::Nothing };
        let mut taken = Vec::new();
        while *left > 0 {
            let (group, mut topics) = match self.open.take() {
                Some(open) => open,
                None => {
                    let Some(mut group) = self.rest.next() else { break };
                    *left -= 1;
                    let Some(topics) = group.topics.take() else {
                        taken.push(group);
                        continue;
                    };
                    (group, Cut::new(topics))
                }
            };
            let (part, goes_on_within) = topics.take(left);
            if goes_on_within == GoesOn::Topic && taken.is_empty() {
                goes_on = GoesOn::Topic;
            }
            taken.push(group.clone().with_topics(Some(part)));
            if !topics.is_over() {
                self.open = Some((group, topics));
            }
        }
        (taken, goes_on)
    }
}

/// Appends `more` to `all`. If `goes_on`, the first item of `more` is joined with the last of `all`.
fn extend<T>(all: &mut Vec<T>, more: Vec<T>, goes_on: bool, join: impl FnOnce(&mut T, T)) {
    let mut more = more.into_iter();
    if goes_on
        && let Some(last) = all.last_mut()
        && let Some(first) = more.next()
    {
        join(last, first);
    }
    all.extend(more);
}

/// The first of two error codes that is an error.
fn or(error: i16, other: i16) -> i16 {
    if error == NONE { other } else { error }
}

impl GroupResponse {
    /// Appends the answer to a piece. Pieces must be added in order.
    pub fn add_piece(&mut self, goes_on: GoesOn, answer: GroupResponse) {
        let in_group = goes_on != GoesOn::Nothing;
        let in_topic = goes_on == GoesOn::Topic;
        match (self, answer) {
            (GroupResponse::OffsetCommit(all), GroupResponse::OffsetCommit(more)) => {
                extend(&mut all.topics, more.topics, in_topic, |last, first| last.partitions.extend(first.partitions));
            }
            (GroupResponse::OffsetFetch(all), GroupResponse::OffsetFetch(more)) => {
                all.error_code = or(all.error_code, more.error_code);
                extend(&mut all.topics, more.topics, in_topic, |last, first| last.partitions.extend(first.partitions));
                extend(&mut all.groups, more.groups, in_group, |last, first| {
                    last.error_code = or(last.error_code, first.error_code);
                    extend(&mut last.topics, first.topics, in_topic, |last, first| {
                        last.partitions.extend(first.partitions);
                    });
                });
            }
            (GroupResponse::LeaveGroup(all), GroupResponse::LeaveGroup(more)) => {
                all.error_code = or(all.error_code, more.error_code);
                all.members.extend(more.members);
            }
            (all, answer) => all.merge(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use net::{
        StrBytes,
        messages::{
            DescribeGroupsResponse, OffsetCommitResponse, OffsetFetchResponse, TopicName,
            describe_groups_response::DescribedGroup,
            offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
            offset_fetch_response::{
                OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
                OffsetFetchResponseTopic, OffsetFetchResponseTopics,
            },
        },
    };

    use super::*;

    fn text(prefix: &str, number: usize) -> StrBytes {
        StrBytes::from_string(format!("{prefix}-{number}"))
    }

    /// Topics with the given numbers of partitions. Partition indexes count on from topic to topic.
    fn rows(sizes: &[usize]) -> Vec<(StrBytes, Vec<i32>)> {
        let mut next = 0..;
        let topic = |(at, size): (usize, &usize)| (text("topic", at), next.by_ref().take(*size).collect());
        sizes.iter().enumerate().map(topic).collect()
    }

    const SIZES: [&[usize]; 9] = [
        &[],
        &[0],
        &[1, 2, 3],
        &[1023],
        &[1024, 0, 5],
        &[1022, 1, 1],
        &[0, 3000, 7],
        &[ENTRIES_A_TURN / 2 - 1, ENTRIES_A_TURN / 2 - 1, 1],
        &[5000, 5000, 0, 0],
    ];

    /// Answers each piece separately. Returns the joined answer and the number of pieces.
    fn join(request: GroupRequest, answer: impl Fn(GroupRequest) -> GroupResponse) -> (GroupResponse, usize) {
        let mut pieces = request.into_pieces();
        let first = pieces.next().expect("there is at least one piece");
        assert_eq!(first.goes_on, GoesOn::Nothing);
        let (mut whole, mut count) = (answer(first.request), 1);
        for Piece { request, goes_on } in pieces {
            whole.add_piece(goes_on, answer(request));
            count += 1;
        }
        (whole, count)
    }

    fn commit(request: GroupRequest) -> GroupResponse {
        let GroupRequest::OffsetCommit(commit) = request else { panic!("{request:?}") };
        assert_eq!(commit.group_id.as_str(), "g");
        let entries: usize = commit.topics.iter().map(|topic| 1 + topic.partitions.len()).sum();
        assert!(entries <= ENTRIES_A_TURN, "{entries}");
        let topics = commit.topics.into_iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                OffsetCommitResponsePartition::default().with_partition_index(partition.partition_index)
            });
            OffsetCommitResponseTopic::default().with_partitions(partitions.collect()).with_name(topic.name)
        });
        OffsetCommitResponse::default().with_topics(topics.collect()).into()
    }

    #[test]
    fn a_commit_in_pieces_is_answered_as_the_whole() {
        for sizes in SIZES {
            let topics = rows(sizes).into_iter().map(|(name, indexes)| {
                let partition = |index| OffsetCommitRequestPartition::default().with_partition_index(index);
                let partitions = indexes.into_iter().map(partition).collect();
                OffsetCommitRequestTopic::default().with_name(TopicName(name)).with_partitions(partitions)
            });
            let request = OffsetCommitRequest::default()
                .with_group_id(GroupId(StrBytes::from_static_str("g")))
                .with_topics(topics.collect());
            let (GroupResponse::OffsetCommit(answer), pieces) = join(request.into(), commit) else { panic!() };
            let told = answer.topics.into_iter().map(|topic| {
                (topic.name.0, topic.partitions.iter().map(|partition| partition.partition_index).collect())
            });
            assert_eq!(told.collect::<Vec<(StrBytes, Vec<i32>)>>(), rows(sizes), "{sizes:?}");
            let entries = sizes.iter().map(|size| 1 + size).sum::<usize>();
            assert!(
                (entries.div_ceil(ENTRIES_A_TURN)..=1 + entries / (ENTRIES_A_TURN - sizes.len())).contains(&pieces)
            );
        }
    }

    #[test]
    fn a_commit_for_a_long_group_id_comes_in_smaller_pieces() {
        const PARTITIONS: usize = 300;
        let id = text(&"g".repeat(30_000), 0);
        let partition = |index| OffsetCommitRequestPartition::default().with_partition_index(index);
        let topic =
            OffsetCommitRequestTopic::default().with_partitions((0..PARTITIONS as i32).map(partition).collect());
        let request = OffsetCommitRequest::default().with_group_id(GroupId(id.clone())).with_topics(vec![topic]);
        let mut told = 0;
        for piece in GroupRequest::from(request).into_pieces() {
            let GroupRequest::OffsetCommit(commit) = piece.request else { panic!("{:?}", piece.request) };
            let partitions: usize = commit.topics.iter().map(|topic| topic.partitions.len()).sum();
            assert!((1..=COMMITTED_IDS_BYTES / id.len()).contains(&partitions), "{partitions}");
            told += partitions;
        }
        assert_eq!(told, PARTITIONS);
    }

    fn fetch(request: GroupRequest) -> GroupResponse {
        let GroupRequest::OffsetFetch(fetch) = request else { panic!("{request:?}") };
        let one = fetch.topics.unwrap_or_default().into_iter().map(|topic| {
            let partitions = topic.partition_indexes.into_iter();
            let partitions =
                partitions.map(|index| OffsetFetchResponsePartition::default().with_partition_index(index));
            OffsetFetchResponseTopic::default().with_partitions(partitions.collect()).with_name(topic.name)
        });
        let groups = fetch.groups.into_iter().map(|group| {
            let topics = group.topics.unwrap_or_default().into_iter().map(|topic| {
                let partitions = topic.partition_indexes.into_iter();
                let partitions =
                    partitions.map(|index| OffsetFetchResponsePartitions::default().with_partition_index(index));
                OffsetFetchResponseTopics::default().with_partitions(partitions.collect()).with_name(topic.name)
            });
            OffsetFetchResponseGroup::default().with_topics(topics.collect()).with_group_id(group.group_id)
        });
        OffsetFetchResponse::default().with_topics(one.collect()).with_groups(groups.collect()).into()
    }

    #[test]
    fn a_fetch_of_offsets_in_pieces_is_answered_as_the_whole() {
        for sizes in SIZES {
            let topics = rows(sizes).into_iter().map(|(name, indexes)| {
                OffsetFetchRequestTopic::default().with_name(TopicName(name)).with_partition_indexes(indexes)
            });
            let request = OffsetFetchRequest::default().with_topics(Some(topics.collect()));
            let (GroupResponse::OffsetFetch(answer), _) = join(request.into(), fetch) else { panic!() };
            let told = answer.topics.into_iter().map(|topic| {
                (topic.name.0, topic.partitions.iter().map(|partition| partition.partition_index).collect())
            });
            assert_eq!(told.collect::<Vec<(StrBytes, Vec<i32>)>>(), rows(sizes), "{sizes:?}");
        }
    }

    #[test]
    fn a_fetch_for_several_groups_is_cut_in_groups_and_topics() {
        let groups = SIZES.iter().enumerate().map(|(at, sizes)| {
            let topics = rows(sizes).into_iter().map(|(name, indexes)| {
                OffsetFetchRequestTopics::default().with_name(TopicName(name)).with_partition_indexes(indexes)
            });
            // One group asks for all its offsets.
            let topics = (at != 3).then(|| topics.collect());
            OffsetFetchRequestGroup::default().with_group_id(GroupId(text("group", at))).with_topics(topics)
        });
        let request = OffsetFetchRequest::default().with_groups(groups.collect());
        let (GroupResponse::OffsetFetch(answer), pieces) = join(request.into(), fetch) else { panic!() };
        let told: BTreeMap<StrBytes, Vec<(StrBytes, Vec<i32>)>> = answer
            .groups
            .into_iter()
            .map(|group| {
                let topics = group.topics.into_iter().map(|topic| {
                    (topic.name.0, topic.partitions.iter().map(|partition| partition.partition_index).collect())
                });
                (group.group_id.0, topics.collect())
            })
            .collect();
        let asked = SIZES.iter().enumerate().map(|(at, sizes)| {
            let topics = if at == 3 { Vec::new() } else { rows(sizes) };
            (text("group", at), topics)
        });
        assert_eq!(told, asked.collect());
        assert!((16..=18).contains(&pieces), "{pieces}");
    }

    #[test]
    fn a_refused_piece_refuses_what_it_is_part_of() {
        let refused = |goes_on| {
            let group = |code| OffsetFetchResponseGroup::default().with_error_code(code);
            let answer = |codes: &[i16]| {
                let groups = codes.iter().map(|code| group(*code)).collect();
                GroupResponse::from(OffsetFetchResponse::default().with_groups(groups))
            };
            let mut whole = answer(&[0, 0]);
            whole.add_piece(goes_on, answer(&[16, 0]));
            let GroupResponse::OffsetFetch(whole) = whole else { panic!("{whole:?}") };
            whole.groups.iter().map(|group| group.error_code).collect::<Vec<_>>()
        };
        assert_eq!(refused(GoesOn::Topic), [0, 16, 0]);
        assert_eq!(refused(GoesOn::Group), [0, 16, 0]);
        assert_eq!(refused(GoesOn::Nothing), [0, 0, 16, 0]);
    }

    #[test]
    fn groups_are_described_in_pieces() {
        let describe = |request| {
            let GroupRequest::DescribeGroups(request) = request else { panic!("{request:?}") };
            assert!(request.groups.len() <= ENTRIES_A_TURN);
            let groups = request.groups.into_iter().map(|id| DescribedGroup::default().with_group_id(id));
            DescribeGroupsResponse::default().with_groups(groups.collect()).into()
        };
        for count in [0, 1, ENTRIES_A_TURN, 3 * ENTRIES_A_TURN + 1] {
            let groups: Vec<GroupId> = (0..count).map(|at| GroupId(text("group", at))).collect();
            let (answer, pieces) = join(DescribeGroupsRequest::default().with_groups(groups.clone()).into(), describe);
            let GroupResponse::DescribeGroups(answer) = answer else { panic!("{answer:?}") };
            assert!(answer.groups.iter().map(|group| &group.group_id).eq(&groups));
            assert_eq!(pieces, count.div_ceil(ENTRIES_A_TURN).max(1));
        }
    }
}
