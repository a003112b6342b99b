//! Requests to the coordinator and their answers: shared types, error answers in each request's own shape, and which
//! partition of `__consumer_offsets` a request belongs to.

use std::collections::{BTreeMap, VecDeque};

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, HeartbeatRequest,
        HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
        ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest,
        OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse,
        delete_groups_response::DeletableGroupResult,
        describe_groups_response::DescribedGroup,
        leave_group_response::MemberResponse,
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
        offset_fetch_response::{OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponseTopic},
    },
};

/// Where a request comes from, and its version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The request's API version: it decides some rules and the shape of the answer.
    pub version: i16,
    /// From the request's header; empty if null.
    pub client_id: StrBytes,
    /// As Java prints an address: `/127.0.0.1`.
    pub client_host: StrBytes,
}

macro_rules! apis {
    ($($name:ident($request:ty => $response:ty),)*) => {
        #[derive(Clone, Debug, PartialEq)]
        pub enum GroupRequest { $($name($request),)* }

        #[derive(Clone, Debug, PartialEq)]
        pub enum GroupResponse { $($name($response),)* }

        $(impl From<$request> for GroupRequest {
            fn from(request: $request) -> GroupRequest { GroupRequest::$name(request) }
        })*

        $(impl From<$response> for GroupResponse {
            fn from(response: $response) -> GroupResponse { GroupResponse::$name(response) }
        })*

        impl From<GroupResponse> for net::codec::response::Response {
            fn from(response: GroupResponse) -> net::codec::response::Response {
                match response { $(GroupResponse::$name(response) => response.into(),)* }
            }
        }

        /// Returns other requests unchanged as the error.
        impl TryFrom<net::codec::request::Request> for GroupRequest {
            type Error = net::codec::request::Request;

            fn try_from(request: net::codec::request::Request) -> Result<GroupRequest, net::codec::request::Request> {
                match request {
                    $(net::codec::request::Request::$name(request) => Ok(GroupRequest::$name(request)),)*
                    other => Err(other),
                }
            }
        }
    };
}

apis! {
    JoinGroup(JoinGroupRequest => JoinGroupResponse),
    SyncGroup(SyncGroupRequest => SyncGroupResponse),
    Heartbeat(HeartbeatRequest => HeartbeatResponse),
    LeaveGroup(LeaveGroupRequest => LeaveGroupResponse),
    OffsetCommit(OffsetCommitRequest => OffsetCommitResponse),
    OffsetFetch(OffsetFetchRequest => OffsetFetchResponse),
    DescribeGroups(DescribeGroupsRequest => DescribeGroupsResponse),
    ListGroups(ListGroupsRequest => ListGroupsResponse),
    DeleteGroups(DeleteGroupsRequest => DeleteGroupsResponse),
}

/// Java's `String.hashCode`: for each UTF-16 unit, 31 times the hash so far plus the unit, wrapping.
fn java_hash(string: &str) -> i32 {
    string.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(unit.into()))
}

/// The partition of `__consumer_offsets` that a group belongs to (`GroupMetadataManager.partitionFor`; `Utils.abs`
/// maps `i32::MIN` to 0).
pub fn partition_of(group_id: &str, partitions: i32) -> i32 {
    assert!(partitions > 0, "__consumer_offsets has partitions");
    java_hash(group_id).checked_abs().unwrap_or(0) % partitions
}

/// Where to send a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// To one partition's coordinator.
    One(i32, GroupRequest),
    /// To the coordinators of several partitions, in parts. [`GroupResponse::merge`] joins their answers in the order
    /// given. If there are no parts, answer [`GroupRequest::empty_response`].
    Parts(Vec<(i32, GroupRequest)>),
    /// To every coordinator. [`GroupResponse::merge`] joins their answers.
    All(GroupRequest),
}

/// Groups items by the partition they belong to. Partitions come in the order of their first item.
pub fn by_partition<T>(items: Vec<T>, partitions: i32, group: impl Fn(&T) -> &str) -> Vec<(i32, Vec<T>)> {
    let mut parts: Vec<(i32, Vec<T>)> = Vec::new();
    for item in items {
        let partition = partition_of(group(&item), partitions);
        match parts.iter_mut().find(|part| part.0 == partition) {
            Some(part) => part.1.push(item),
            None => parts.push((partition, vec![item])),
        }
    }
    parts
}

impl GroupRequest {
    pub fn route(self, version: i16, partitions: i32) -> Route {
        let one = |group: &StrBytes, request: GroupRequest| Route::One(partition_of(group, partitions), request);
        match self {
            GroupRequest::JoinGroup(ref r) => one(&r.group_id.clone(), self),
            GroupRequest::SyncGroup(ref r) => one(&r.group_id.clone(), self),
            GroupRequest::Heartbeat(ref r) => one(&r.group_id.clone(), self),
            GroupRequest::LeaveGroup(ref r) => one(&r.group_id.clone(), self),
            GroupRequest::OffsetCommit(ref r) => one(&r.group_id.clone(), self),
            GroupRequest::OffsetFetch(ref r) if version < 8 => one(&r.group_id.clone(), self),
            GroupRequest::OffsetFetch(mut request) => {
                let parts = by_partition(std::mem::take(&mut request.groups), partitions, |group| &group.group_id);
                let part = |(at, groups)| (at, GroupRequest::OffsetFetch(request.clone().with_groups(groups)));
                Route::Parts(parts.into_iter().map(part).collect())
            }
            GroupRequest::DescribeGroups(mut request) => {
                let parts = by_partition(std::mem::take(&mut request.groups), partitions, |group| group);
                let part = |(at, groups)| (at, GroupRequest::DescribeGroups(request.clone().with_groups(groups)));
                Route::Parts(parts.into_iter().map(part).collect())
            }
            GroupRequest::DeleteGroups(mut request) => {
                let parts = by_partition(std::mem::take(&mut request.groups_names), partitions, |group| group);
                let part = |(at, groups)| (at, GroupRequest::DeleteGroups(request.clone().with_groups_names(groups)));
                Route::Parts(parts.into_iter().map(part).collect())
            }
            GroupRequest::ListGroups(_) => Route::All(self),
        }
    }

    /// The group ids in a request that names several groups, in its order and with duplicates. Empty for other
    /// requests.
    pub fn named_groups(&self) -> Vec<StrBytes> {
        match self {
            GroupRequest::OffsetFetch(request) => request.groups.iter().map(|group| group.group_id.0.clone()).collect(),
            GroupRequest::DescribeGroups(request) => request.groups.iter().map(|group| group.0.clone()).collect(),
            GroupRequest::DeleteGroups(request) => request.groups_names.iter().map(|group| group.0.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// The empty answer, for a request that names no group.
    pub fn empty_response(&self) -> GroupResponse {
        match self {
            GroupRequest::JoinGroup(_) => JoinGroupResponse::default().into(),
            GroupRequest::SyncGroup(_) => SyncGroupResponse::default().into(),
            GroupRequest::Heartbeat(_) => HeartbeatResponse::default().into(),
            GroupRequest::LeaveGroup(_) => LeaveGroupResponse::default().into(),
            GroupRequest::OffsetCommit(_) => OffsetCommitResponse::default().into(),
            GroupRequest::OffsetFetch(_) => OffsetFetchResponse::default().into(),
            GroupRequest::DescribeGroups(_) => DescribeGroupsResponse::default().into(),
            GroupRequest::ListGroups(_) => ListGroupsResponse::default().into(),
            GroupRequest::DeleteGroups(_) => DeleteGroupsResponse::default().into(),
        }
    }

    /// The answer that rejects the whole request with one error.
    pub fn refuse(&self, version: i16, error: ErrorCode) -> GroupResponse {
        let code = error.code();
        match self {
            GroupRequest::JoinGroup(request) => {
                // A copy, since this answer may be kept while the request waits for members.
                join_error(version, StrBytes::from_string(request.member_id.to_string()), error).into()
            }
            GroupRequest::SyncGroup(_) => sync_error(error).into(),
            GroupRequest::Heartbeat(_) => HeartbeatResponse::default().with_error_code(code).into(),
            GroupRequest::LeaveGroup(_) => LeaveGroupResponse::default().with_error_code(code).into(),
            GroupRequest::OffsetCommit(request) => offset_commit_error(request, error).into(),
            GroupRequest::OffsetFetch(request) => offset_fetch_error(request, version, error).into(),
            GroupRequest::DescribeGroups(request) => {
                let group = |id: &net::messages::GroupId| {
                    DescribedGroup::default().with_group_id(id.clone()).with_error_code(code)
                };
                DescribeGroupsResponse::default().with_groups(request.groups.iter().map(group).collect()).into()
            }
            GroupRequest::ListGroups(_) => ListGroupsResponse::default().with_error_code(code).into(),
            GroupRequest::DeleteGroups(request) => {
                let group = |id: &net::messages::GroupId| {
                    DeletableGroupResult::default().with_group_id(id.clone()).with_error_code(code)
                };
                DeleteGroupsResponse::default().with_results(request.groups_names.iter().map(group).collect()).into()
            }
        }
    }
}

/// Sorts answers into the order of `asked`. Answers with the same name keep their order.
fn arrange<T>(answers: &mut Vec<T>, asked: &[StrBytes], name: impl Fn(&T) -> &StrBytes) {
    let mut places: BTreeMap<&str, VecDeque<usize>> = BTreeMap::new();
    for (place, asked) in asked.iter().enumerate() {
        places.entry(asked).or_default().push_back(place);
    }
    let mut placed: Vec<(usize, T)> = Vec::with_capacity(answers.len());
    for answer in answers.drain(..) {
        let place = places.get_mut(name(&answer).as_str()).and_then(VecDeque::pop_front);
        placed.push((place.expect("every answer is to a group that was asked for"), answer));
    }
    placed.sort_unstable_by_key(|(place, _)| *place);
    answers.extend(placed.into_iter().map(|(_, answer)| answer));
}

impl GroupResponse {
    /// Sorts the answers for several groups into the order in which the request named them
    /// ([`GroupRequest::named_groups`]). Some clients match answers to questions by position.
    pub fn arrange(&mut self, asked: &[StrBytes]) {
        match self {
            GroupResponse::OffsetFetch(response) => arrange(&mut response.groups, asked, |group| &group.group_id),
            GroupResponse::DescribeGroups(response) => arrange(&mut response.groups, asked, |group| &group.group_id),
            GroupResponse::DeleteGroups(response) => arrange(&mut response.results, asked, |group| &group.group_id),
            _ => {}
        }
    }

    /// Number of groups in a ListGroups answer; 0 for other answers.
    pub fn listed(&self) -> usize {
        match self {
            GroupResponse::ListGroups(response) => response.groups.len(),
            _ => 0,
        }
    }

    /// Adds another part's answer to this one. A ListGroups answer keeps the first error of its parts, because the
    /// list is then incomplete. NOT_COORDINATOR is no such error: those groups are listed by the broker that
    /// coordinates them.
    pub fn merge(&mut self, other: GroupResponse) {
        match (self, other) {
            (GroupResponse::OffsetFetch(all), GroupResponse::OffsetFetch(more)) => all.groups.extend(more.groups),
            (GroupResponse::DescribeGroups(all), GroupResponse::DescribeGroups(more)) => all.groups.extend(more.groups),
            (GroupResponse::DeleteGroups(all), GroupResponse::DeleteGroups(more)) => all.results.extend(more.results),
            (GroupResponse::ListGroups(all), GroupResponse::ListGroups(more)) => {
                all.groups.extend(more.groups);
                if all.error_code == net::errors::NONE && more.error_code != ErrorCode::NotCoordinator.code() {
                    all.error_code = more.error_code;
                }
            }
            (all, more) => panic!("{more:?} is no part of {all:?}"),
        }
    }
}

/// Before version 7, the answer has no protocol type, and its protocol name cannot be null.
pub(crate) fn shape_join(version: i16, mut response: JoinGroupResponse) -> JoinGroupResponse {
    if version < 7 {
        response.protocol_type = None;
        response.protocol_name.get_or_insert_default();
    }
    response
}

pub(crate) fn join_error(version: i16, member_id: StrBytes, error: ErrorCode) -> JoinGroupResponse {
    let response = JoinGroupResponse::default().with_member_id(member_id).with_error_code(error.code());
    shape_join(version, response.with_protocol_name(None))
}

pub(crate) fn sync_error(error: ErrorCode) -> SyncGroupResponse {
    SyncGroupResponse::default().with_error_code(error.code())
}

/// Before version 3, the answer covers one member and has one error (`LeaveGroupResponse`).
pub(crate) fn shape_leave(version: i16, members: Vec<MemberResponse>) -> LeaveGroupResponse {
    if version >= 3 {
        return LeaveGroupResponse::default().with_members(members);
    }
    let error = members.iter().map(|member| member.error_code).find(|&code| code != net::errors::NONE);
    LeaveGroupResponse::default().with_error_code(error.unwrap_or(net::errors::NONE))
}

pub(crate) fn offset_commit_error(request: &OffsetCommitRequest, error: ErrorCode) -> OffsetCommitResponse {
    let topics = request.topics.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(error.code())
        });
        OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// Up to version 7 the answer covers one group. Version 1 has no error field for the group, so each partition bears
/// the error.
fn offset_fetch_error(request: &OffsetFetchRequest, version: i16, error: ErrorCode) -> OffsetFetchResponse {
    let code = error.code();
    if version >= 8 {
        let groups = request.groups.iter().map(|group| {
            OffsetFetchResponseGroup::default().with_group_id(group.group_id.clone()).with_error_code(code)
        });
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    if version >= 2 {
        return OffsetFetchResponse::default().with_error_code(code);
    }
    let topics = request.topics.iter().flatten().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|&index| {
            OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_committed_offset(-1)
                .with_metadata(Some(StrBytes::new()))
                .with_error_code(code)
        });
        OffsetFetchResponseTopic::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
    });
    OffsetFetchResponse::default().with_topics(topics.collect())
}

/// Maps the error of a failed append to the error that the client gets (`CoordinatorOperationExceptionHelper`).
pub(crate) fn append_error(error: ErrorCode) -> ErrorCode {
    match error {
        ErrorCode::UnknownTopicOrPartition | ErrorCode::NotEnoughReplicas | ErrorCode::RequestTimedOut => {
            ErrorCode::CoordinatorNotAvailable
        }
        ErrorCode::NotLeaderOrFollower | ErrorCode::KafkaStorageError => ErrorCode::NotCoordinator,
        ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidFetchSize => {
            ErrorCode::UnknownServerError
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use net::messages::{GroupId, list_groups_response::ListedGroup, offset_fetch_request::OffsetFetchRequestGroup};

    use super::*;

    fn id(name: &'static str) -> GroupId {
        GroupId(StrBytes::from_static_str(name))
    }

    #[test]
    fn groups_hash_as_in_java() {
        // Known values of java.lang.String.hashCode.
        #[rustfmt::skip]
        let rows = [
            ("", 0), ("a", 97), ("hello", 99_162_322), ("polygenelubricants", i32::MIN),
            ("The quick brown fox jumps over the lazy dog", -609_428_141),
            // Two UTF-16 units: 0xd83d * 31 + 0xde00.
            ("\u{1f600}", 0xd83d * 31 + 0xde00), ("é", 0xe9),
        ];
        for (string, hash) in rows {
            assert_eq!(java_hash(string), hash, "{string}");
        }
        assert_eq!(partition_of("hello", 50), 22);
        assert_eq!(partition_of("polygenelubricants", 50), 0, "the least integer has no absolute value");
        assert_eq!(partition_of("The quick brown fox jumps over the lazy dog", 50), 41);
        for n in 0..1000 {
            assert!((0..7).contains(&partition_of(&format!("group-{n}"), 7)));
        }
    }

    #[test]
    fn requests_for_several_groups_are_cut_and_joined() {
        let names = ["a", "b", "c", "d", "e"];
        let request = GroupRequest::from(DescribeGroupsRequest::default().with_groups(names.map(id).to_vec()));
        let Route::Parts(parts) = request.clone().route(5, 2) else { panic!("it goes to several") };
        assert_eq!(parts.iter().map(|part| part.0).collect::<Vec<_>>(), [1, 0], "a is 97, b is 98");
        let mut answer = request.empty_response();
        for (_, part) in parts {
            answer.merge(part.refuse(5, ErrorCode::NotCoordinator));
        }
        let GroupResponse::DescribeGroups(answer) = answer else { panic!("it is of the request's kind") };
        let described: Vec<_> =
            answer.groups.iter().map(|group| (group.group_id.to_string(), group.error_code)).collect();
        assert_eq!(described, ["a", "c", "e", "b", "d"].map(|name| (name.to_owned(), 16)));
    }

    #[test]
    fn answers_for_several_groups_come_in_the_order_of_the_request() {
        // With 2 partitions, "a" and "c" belong to one, "b" and "d" to the other.
        let names = ["b", "a", "d", "b", "c", "a"];
        let ids = || names.map(id).to_vec();
        let fetched = names.map(|name| OffsetFetchRequestGroup::default().with_group_id(id(name)));
        for (version, request) in [
            (5, GroupRequest::from(DescribeGroupsRequest::default().with_groups(ids()))),
            (2, GroupRequest::from(DeleteGroupsRequest::default().with_groups_names(ids()))),
            (8, GroupRequest::from(OffsetFetchRequest::default().with_groups(fetched.to_vec()))),
        ] {
            let asked = request.named_groups();
            let mut answer = request.empty_response();
            let Route::Parts(parts) = request.route(version, 2) else { panic!("it goes to several") };
            assert_eq!(parts.len(), 2);
            for (_, part) in parts {
                answer.merge(part.refuse(version, ErrorCode::NotCoordinator));
            }
            answer.arrange(&asked);
            let answered: Vec<String> = match answer {
                GroupResponse::DescribeGroups(r) => r.groups.iter().map(|group| group.group_id.to_string()).collect(),
                GroupResponse::DeleteGroups(r) => r.results.iter().map(|group| group.group_id.to_string()).collect(),
                GroupResponse::OffsetFetch(r) => r.groups.iter().map(|group| group.group_id.to_string()).collect(),
                other => panic!("{other:?} answers another request"),
            };
            assert_eq!(answered, names);
        }
    }

    #[test]
    fn a_list_of_groups_passes_over_what_others_coordinate_and_tells_other_errors() {
        let list = |error: Option<ErrorCode>, names: &[&'static str]| {
            let group = |name: &&'static str| ListedGroup::default().with_group_id(id(name));
            let response = ListGroupsResponse::default().with_groups(names.iter().map(group).collect());
            GroupResponse::from(response.with_error_code(error.map_or(net::errors::NONE, |error| error.code())))
        };
        let mut all = GroupRequest::from(ListGroupsRequest::default()).empty_response();
        all.merge(list(Some(ErrorCode::NotCoordinator), &[]));
        all.merge(list(None, &["a"]));
        all.merge(list(Some(ErrorCode::NotCoordinator), &[]));
        all.merge(list(None, &["b"]));
        assert_eq!(all, list(None, &["a", "b"]));
        all.merge(list(Some(ErrorCode::CoordinatorLoadInProgress), &[]));
        assert_eq!(all, list(Some(ErrorCode::CoordinatorLoadInProgress), &["a", "b"]));
    }

    #[test]
    fn an_offset_fetch_is_one_group_before_version_8() {
        let old = GroupRequest::from(OffsetFetchRequest::default().with_group_id(id("a")));
        assert!(matches!(old.route(7, 10), Route::One(7, _)));
        let new = OffsetFetchRequest::default()
            .with_require_stable(true)
            .with_groups(vec![OffsetFetchRequestGroup::default().with_group_id(id("b"))]);
        let Route::Parts(parts) = GroupRequest::from(new.clone()).route(8, 10) else { panic!("it goes to several") };
        assert_eq!(parts, [(8, GroupRequest::from(new))]);
        assert_eq!(GroupRequest::from(OffsetFetchRequest::default()).route(8, 10), Route::Parts(vec![]));
    }

    #[test]
    fn append_errors_are_told_as_coordinator_errors() {
        assert_eq!(append_error(ErrorCode::NotLeaderOrFollower), ErrorCode::NotCoordinator);
        assert_eq!(append_error(ErrorCode::NotEnoughReplicas), ErrorCode::CoordinatorNotAvailable);
        assert_eq!(append_error(ErrorCode::MessageTooLarge), ErrorCode::UnknownServerError);
        assert_eq!(append_error(ErrorCode::InvalidRecord), ErrorCode::InvalidRecord);
    }
}
