//! DescribeGroups and ListGroups: groups as administrators see them.

use std::{collections::BTreeMap, ops::Bound};

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        DescribeGroupsRequest, DescribeGroupsResponse, GroupId, ListGroupsRequest, ListGroupsResponse,
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
    },
};

use super::part::{Cursor, GROUP_BYTES, Load, MEMBER_BYTES, Part};
use crate::coordinator::{
    api::GroupResponse,
    group::{Group, State},
};

/// The first version that answers an unknown group with an error (KIP-1043).
const NOT_FOUND_FROM: i16 = 6;
/// The only kind of group here, by its name in KIP-848.
const GROUP_TYPE: &str = "classic";

pub(crate) fn describe<T>(
    groups: &BTreeMap<StrBytes, Group<T>>,
    version: i16,
    request: &DescribeGroupsRequest,
    from: &Cursor,
) -> Part {
    let (mut described, mut load, mut next) = (Vec::new(), Load::default(), None);
    for (at, id) in request.groups.iter().enumerate().skip(from.groups) {
        let group = groups.get(&id.0);
        let entries = 1 + group.map_or(0, |group| group.members.len());
        if !load.has_room(entries) {
            next = Some(Cursor { groups: at, ..Cursor::default() });
            break;
        }
        let answer = group.map_or_else(|| unknown(id, version), describe_group);
        load.add(entries, bytes(&answer));
        described.push(answer);
    }
    let response = DescribeGroupsResponse::default().with_groups(described).into();
    Part { response, entries: load.entries, bytes: load.bytes, goes_on: false, next }
}

/// The answer where no group exists.
pub(super) fn without_groups(version: i16, request: &DescribeGroupsRequest) -> GroupResponse {
    let described = request.groups.iter().map(|id| unknown(id, version));
    DescribeGroupsResponse::default().with_groups(described.collect()).into()
}

/// Approximate bytes of a description.
fn bytes(group: &DescribedGroup) -> usize {
    let member = |member: &DescribedGroupMember| {
        let instance = member.group_instance_id.as_ref().map_or(0, |instance| instance.len());
        let strings = member.member_id.len() + instance + member.client_id.len() + member.client_host.len();
        MEMBER_BYTES + strings + member.member_metadata.len() + member.member_assignment.len()
    };
    GROUP_BYTES + 2 * group.group_id.len() + group.members.iter().map(member).sum::<usize>()
}

fn unknown(id: &GroupId, version: i16) -> DescribedGroup {
    let dead = DescribedGroup::default()
        .with_group_id(id.clone())
        .with_group_state(StrBytes::from_static_str(State::Dead.name()));
    if version < NOT_FOUND_FROM {
        return dead;
    }
    let message = StrBytes::from_string(format!("Group {} not found.", id.as_str()));
    dead.with_error_code(ErrorCode::GroupIdNotFound.code()).with_error_message(Some(message))
}

fn describe_group<T>(group: &Group<T>) -> DescribedGroup {
    // Until the group is stable, the protocol and the members' metadata for it mean nothing.
    let protocol = group.protocol.as_ref().filter(|_| group.state == State::Stable);
    let members = group.members.iter().map(|(id, member)| {
        DescribedGroupMember::default()
            .with_member_id(id.clone())
            .with_group_instance_id(member.instance_id.clone())
            .with_client_id(member.client_id.clone())
            .with_client_host(member.client_host.clone())
            .with_member_assignment(member.assignment.clone())
            .with_member_metadata(protocol.map(|protocol| member.settings.metadata(protocol)).unwrap_or_default())
    });
    DescribedGroup::default()
        .with_group_id(GroupId(group.id.clone()))
        .with_group_state(StrBytes::from_static_str(group.state.name()))
        .with_protocol_type(group.protocol_type.clone().unwrap_or_default())
        .with_protocol_data(protocol.cloned().unwrap_or_default())
        .with_members(members.collect())
}

/// The groups of one coordinator, sorted by id. Filters ignore case, as in Kafka; an empty filter matches all groups.
pub(crate) fn list<T>(groups: &BTreeMap<StrBytes, Group<T>>, request: &ListGroupsRequest, from: &Cursor) -> Part {
    let passes = |filter: &[StrBytes], name: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
    };
    let after = from.listed.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let (mut listed, mut load, mut last, mut next) = (Vec::new(), Load::default(), None, None);
    for (id, group) in groups.range((after, Bound::Unbounded)) {
        if !load.has_room(1) {
            next = Some(Cursor { listed: last, ..Cursor::default() });
            break;
        }
        last = Some(id.clone());
        load.add(1, 0);
        if !passes(&request.states_filter, group.state.name()) || !passes(&request.types_filter, GROUP_TYPE) {
            continue;
        }
        load.bytes += GROUP_BYTES + id.len();
        listed.push(
            ListedGroup::default()
                .with_group_id(GroupId(id.clone()))
                .with_protocol_type(group.protocol_type.clone().unwrap_or_default())
                .with_group_state(StrBytes::from_static_str(group.state.name()))
                .with_group_type(StrBytes::from_static_str(GROUP_TYPE)),
        );
    }
    let response = ListGroupsResponse::default().with_groups(listed).into();
    Part { response, entries: load.entries, bytes: load.bytes, goes_on: false, next }
}

/// Adds a name to a filter of ListGroups unless it changes nothing. Of all names that no group has, it keeps one.
pub fn shorten_filter(filter: &mut Vec<StrBytes>, more: StrBytes) {
    let is_known = |name: &StrBytes| {
        State::ALL.iter().map(|state| state.name()).chain([GROUP_TYPE]).any(|known| name.eq_ignore_ascii_case(known))
    };
    let is_same = |name: &StrBytes| name.eq_ignore_ascii_case(&more) || !(is_known(name) || is_known(&more));
    if !filter.iter().any(is_same) {
        filter.push(more);
    }
}
