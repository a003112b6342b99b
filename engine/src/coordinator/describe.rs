//! DescribeGroups and ListGroups: groups as administrators see them.

use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        DescribeGroupsRequest, DescribeGroupsResponse, GroupId, ListGroupsRequest, ListGroupsResponse,
        describe_groups_response::{DescribedGroup, DescribedGroupMember},
        list_groups_response::ListedGroup,
    },
};

use super::group::{Group, State};

/// The first version that answers an unknown group with an error (KIP-1043).
const NOT_FOUND_FROM: i16 = 6;
/// The only kind of group here, by its name in KIP-848.
const GROUP_TYPE: &str = "classic";

pub(crate) fn describe<'a, T: 'a>(
    find: impl Fn(&StrBytes) -> Option<&'a Group<T>>,
    version: i16,
    request: &DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let groups = request.groups.iter().map(|id| match find(id) {
        Some(group) => describe_group(group),
        None => {
            let dead = DescribedGroup::default()
                .with_group_id(id.clone())
                .with_group_state(StrBytes::from_static_str(State::Dead.name()));
            if version < NOT_FOUND_FROM {
                return dead;
            }
            let message = StrBytes::from_string(format!("Group {} not found.", id.as_str()));
            dead.with_error_code(ErrorCode::GroupIdNotFound.code()).with_error_message(Some(message))
        }
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
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
pub(crate) fn list<'a, T: 'a>(
    groups: impl Iterator<Item = &'a Group<T>>,
    request: &ListGroupsRequest,
) -> ListGroupsResponse {
    let passes = |filter: &[StrBytes], name: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(name))
    };
    let mut groups: Vec<ListedGroup> = groups
        .filter(|group| passes(&request.states_filter, group.state.name()) && passes(&request.types_filter, GROUP_TYPE))
        .map(|group| {
            ListedGroup::default()
                .with_group_id(GroupId(group.id.clone()))
                .with_protocol_type(group.protocol_type.clone().unwrap_or_default())
                .with_group_state(StrBytes::from_static_str(group.state.name()))
                .with_group_type(StrBytes::from_static_str(GROUP_TYPE))
        })
        .collect();
    groups.sort_unstable_by(|a, b| a.group_id.cmp(&b.group_id));
    ListGroupsResponse::default().with_groups(groups)
}
