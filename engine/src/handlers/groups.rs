//! Consumer groups: finds the partition of `__consumer_offsets` that coordinates a group, and forwards the request
//! there.

use super::{
    operations,
    topics::{internal::ensure_offsets_topic, until_led},
    weight,
};
use crate::{
    cluster::{internal_topics::OFFSETS_TOPIC, meta},
    connection::{client::Client, reply::Reply},
    coordinator::{
        Context, GroupRequest, GroupResponse, Piece, Route, Wanted, by_partition, partition_of, shorten_filter,
    },
    core::{
        Core, brokers,
        messages::{ChangeGroups, LoadGroups, ReadGroups, WeighGroupList, WeighGroups},
    },
    long_work::Work,
    memory::Budget,
};
use ahash::AHashSet;
use net::{
    StrBytes,
    codec::produce::TopicRef,
    errors::{self, ErrorCode},
    messages::{
        BrokerId, FindCoordinatorRequest, FindCoordinatorResponse, JoinGroupRequest, OffsetCommitRequest,
        OffsetCommitResponse, SyncGroupRequest, TopicName,
        find_coordinator_response::Coordinator,
        join_group_response::JoinGroupResponseMember,
        offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic},
    },
    turn::ENTRIES_A_TURN,
};
use runtime::{
    clock,
    sync::{self, race},
};
use std::{collections::BTreeSet, rc::Rc, time::Duration};
use types::GroupId;

/// Approximate bytes of the answer for one entry of a request that changes something, and for a member that the leader
/// of its group is told of.
const ENTRY_BYTES: usize = 200;

/// How long FindCoordinator waits for a leader that is expected soon.
const LEADER_WAIT: Duration = Duration::from_secs(2);

/// FindCoordinator's key types: 0 a group, 1 a transactional id, 2 a share group.
const KEY_GROUP: i8 = 0;
const KEY_TRANSACTION: i8 = 1;

pub async fn find_coordinator(
    core: &Rc<Core>,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let keys = if version < 4 { vec![request.key] } else { request.coordinator_keys };
    let offsets = if request.key_type == KEY_TRANSACTION {
        // Clients give up on this error. InitProducerId answers the same.
        Err((
            ErrorCode::TransactionalIdAuthorizationFailed,
            "this broker serves no transactions; leave transactional.id out",
        ))
    } else if request.key_type != KEY_GROUP {
        Err((ErrorCode::InvalidRequest, "only groups (key type 0) have a coordinator here"))
    } else if meta::may_read(core).await.is_err() {
        Err((ErrorCode::CoordinatorNotAvailable, "this broker cannot confirm its metadata now; try again"))
    } else {
        ensure_offsets_topic(core).await.map_err(|why| (ErrorCode::CoordinatorNotAvailable, why))
    };
    let mut work = Work::on(core);
    let mut partitions = BTreeSet::new();
    if let Ok(offsets) = &offsets {
        for key in &keys {
            partitions.insert(partition_of(key, offsets.partitions.len() as i32) as usize);
            work.entry().await;
        }
        // The request that created the topic waited for its leaders. This broker may learn of them a moment later.
        let partitions = partitions.into_iter().map(|partition| offsets.partitions[partition].clone()).collect();
        race(until_led(core, partitions), runtime::sleep(LEADER_WAIT)).await;
    }
    let alive = brokers::alive(core);
    let find = |key: &str| {
        let offsets = offsets.as_ref().map_err(|refused| *refused)?;
        let partition = partition_of(key, offsets.partitions.len() as i32);
        let leader = core.leader_of(offsets.partitions[partition as usize].group);
        let node = leader.and_then(|leader| alive.iter().find(|node| node.id == leader.node));
        node.ok_or((ErrorCode::CoordinatorNotAvailable, "the group's partition of the offsets topic has no leader now"))
    };
    let mut coordinators = Vec::with_capacity(keys.len());
    for key in keys {
        let coordinator = Coordinator::default();
        coordinators.push(match find(key.as_str()) {
            Ok(node) => coordinator
                .with_key(key)
                .with_node_id(BrokerId(node.id))
                .with_host(node.host.clone())
                .with_port(i32::from(node.port)),
            Err((code, message)) => coordinator
                .with_key(key)
                .with_node_id(BrokerId(-1))
                .with_port(-1)
                .with_error_code(code.code())
                .with_error_message(Some(StrBytes::from_static_str(message))),
        });
        work.entry().await;
    }
    // Versions below 4 have one key and no list: encoding converts the list to their form.
    FindCoordinatorResponse::default().with_coordinators(coordinators)
}

/// Answers a JoinGroup or SyncGroup, which may wait for other members for minutes. How large the answer is shows only
/// then. Without memory for it, the member is refused and asks again: its group still has it.
pub async fn wait(core: &Rc<Core>, client: &Client, request: GroupRequest, context: Context) -> Reply {
    let version = context.version;
    let answer = pass_on(core, client, request, context).await;
    let refused = match &answer {
        GroupResponse::JoinGroup(join) => JoinGroupRequest::default().with_member_id(join.member_id.clone()).into(),
        _ => GroupRequest::from(SyncGroupRequest::default()),
    };
    let within = Duration::from_millis(core.config.offsets_commit_timeout_ms);
    match weight::send(core, member_bytes(&answer), within, || answer.into()).await {
        Ok(reply) => reply,
        Err(_) => Reply::Send(refused.refuse(version, ErrorCode::CoordinatorNotAvailable).into()),
    }
}

/// Approximate bytes of what a member is told. Only its group's leader is told of all members.
fn member_bytes(answer: &GroupResponse) -> usize {
    match answer {
        GroupResponse::JoinGroup(join) => {
            let of = |member: &JoinGroupResponseMember| {
                let instance = member.group_instance_id.as_ref().map_or(0, |instance| instance.len());
                ENTRY_BYTES + member.member_id.len() + instance + member.metadata.len()
            };
            join.members.iter().map(of).sum()
        }
        GroupResponse::SyncGroup(sync) => sync.assignment.len(),
        _ => 0,
    }
}

/// Passes on the request of a member. The client's [`Client::copied`] is notified once the coordinator has its own
/// copy.
async fn pass_on(core: &Rc<Core>, client: &Client, request: GroupRequest, context: Context) -> GroupResponse {
    let refused = |request: GroupRequest| request.refuse(context.version, ErrorCode::NotCoordinator);
    let Some(partitions) = offsets_partitions(core) else { return refused(request) };
    let Route::One(partition, request) = request.route(context.version, partitions) else {
        unreachable!("a member belongs to one group")
    };
    let Ok(group) = offsets_group(core, partition) else { return refused(request) };
    let receipt = core.receipts.wait(core.id(), client.copied().clone());
    let ask = ChangeGroups { group, context, request, receipt: Some(receipt.id()) };
    core.ask(core.owner(group), ask).await
}

pub async fn handle(core: &Rc<Core>, mut request: GroupRequest, context: Context) -> Reply {
    shorten(core, &mut request).await;
    let bytes = weigh(core, &request, context.version).await;
    let patience = match request.only_reads() {
        true => weight::PATIENCE,
        false => Duration::from_millis(core.config.offsets_commit_timeout_ms),
    };
    match weight::allow(core, bytes, patience).await {
        Ok(allowance) => {
            let answer = respond(core, request, context, allowance.budget()).await;
            allowance.reply(answer)
        }
        Err(why) if request.only_reads() => Reply::HangUp { why: why.to_string() },
        Err(_) => Reply::Send(request.refuse(context.version, ErrorCode::CoordinatorNotAvailable).into()),
    }
}

/// Leaves out of a ListGroups what changes nothing, so that each group is compared with few names.
async fn shorten(core: &Rc<Core>, request: &mut GroupRequest) {
    let GroupRequest::ListGroups(list) = request else { return };
    let mut work = Work::on(core);
    for filter in [&mut list.states_filter, &mut list.types_filter] {
        for name in std::mem::take(filter) {
            shorten_filter(filter, name);
            work.entry().await;
        }
    }
}

/// Approximate bytes of the answer. The coordinators know how large groups are.
async fn weigh(core: &Rc<Core>, request: &GroupRequest, version: i16) -> usize {
    let Some(partitions) = offsets_partitions(core) else { return request.entries() * ENTRY_BYTES };
    if matches!(request, GroupRequest::ListGroups(_)) {
        return weigh_list(core).await;
    }
    let (mut work, mut bytes) = (Work::on(core), request.entries() * ENTRY_BYTES);
    let mut wanted = request.wanted(version).peekable();
    while wanted.peek().is_some() {
        let piece = take_turn(&mut wanted);
        let parts = by_partition(piece, partitions, |wanted| &wanted.group);
        let asked = parts.into_iter().filter_map(|(partition, wanted)| {
            let group = offsets_group(core, partition).ok()?;
            Some(core.ask(core.owner(group), WeighGroups { group, wanted }))
        });
        bytes += sync::all(asked.collect()).await.into_iter().sum::<usize>();
        if wanted.peek().is_some() {
            work.pause().await;
        }
    }
    bytes
}

/// As much as may be weighed in one turn.
fn take_turn(wanted: &mut impl Iterator<Item = Wanted>) -> Vec<Wanted> {
    let (mut piece, mut entries) = (Vec::new(), 0);
    while entries < ENTRIES_A_TURN
        && let Some(next) = wanted.next()
    {
        entries += next.entries();
        piece.push(next);
    }
    piece
}

/// The same for the list of all groups that are coordinated here. Their coordinators load now.
async fn weigh_list(core: &Rc<Core>) -> usize {
    let here = replicas_here(core);
    sync::all(here.iter().map(|partition| load_soon(core, *partition)).collect()).await;
    let mut bytes = 0;
    for group in here.into_iter().filter_map(|partition| offsets_group(core, partition).ok()) {
        bytes += core.ask(core.owner(group), WeighGroupList { group }).await;
    }
    bytes
}

/// The partitions of the offsets topic with a replica on this broker.
fn replicas_here(core: &Core) -> Vec<i32> {
    let offsets = core.view(|view| view.topic(OFFSETS_TOPIC).cloned());
    let partitions = offsets.iter().flat_map(|offsets| offsets.partitions.iter().zip(0..));
    partitions.filter(|(partition, _)| partition.replicas.contains(&core.node())).map(|(_, at)| at).collect()
}

async fn respond(core: &Rc<Core>, request: GroupRequest, context: Context, budget: &Budget) -> GroupResponse {
    let tells_operations =
        matches!(&request, GroupRequest::DescribeGroups(describe) if describe.include_authorized_operations);
    let only_reads = request.only_reads();
    // Each piece waits for its coordinator. Those that have not begun by then are refused.
    let until = clock::now() + Duration::from_millis(core.config.offsets_commit_timeout_ms);
    let mut deleted = AHashSet::new();
    let mut work = Work::on(core);
    let mut whole: Option<GroupResponse> = None;
    for Piece { mut request, goes_on } in request.into_pieces() {
        if whole.is_some() {
            if only_reads { work.pause().await } else { work.give_way().await }
        }
        // As in Kafka, a group that is named twice is deleted, and answered, once.
        if let GroupRequest::DeleteGroups(delete) = &mut request {
            delete.groups_names.retain(|name| deleted.insert(name.clone()));
        }
        let mut response = match clock::now() < until {
            true => answer(core, request, context.clone(), budget, &mut work).await,
            false => request.refuse(context.version, ErrorCode::CoordinatorNotAvailable),
        };
        // Other tasks ran during the call.
        work.resume();
        if let GroupResponse::DescribeGroups(described) = &mut response {
            let told = operations::told(tells_operations, operations::GROUP);
            let found = described.groups.iter_mut().filter(|group| group.error_code == errors::NONE);
            found.for_each(|group| group.authorized_operations = told);
        }
        match &mut whole {
            Some(whole) => whole.add_piece(goes_on, response),
            None => whole = Some(response),
        }
    }
    whole.expect("there is at least one piece")
}

async fn answer(
    core: &Rc<Core>,
    request: GroupRequest,
    context: Context,
    budget: &Budget,
    work: &mut Work<'_, Core>,
) -> GroupResponse {
    let mut partitions = offsets_partitions(core);
    if partitions.is_none() && matches!(request, GroupRequest::DescribeGroups(_)) {
        // Another broker may have created the topic, and a group.
        if meta::linearize(core).await.is_err() {
            return request.refuse(context.version, ErrorCode::CoordinatorNotAvailable);
        }
        partitions = offsets_partitions(core);
    }
    let Some(partitions) = partitions else { return request.without_groups(context.version) };
    if let GroupRequest::OffsetCommit(commit) = request {
        return commit_known(core, commit, partitions, context).await.into();
    }
    let (mut response, named) = (request.empty_response(), request.named_groups());
    let parts = match request.route(context.version, partitions) {
        Route::One(partition, request) => return ask(core, partition, request, context, budget).await,
        Route::Parts(parts) => parts,
        // ListGroups returns the groups that are coordinated here; clients ask every broker. A replica that does
        // not lead answers NOT_COORDINATOR, which merging skips.
        Route::All(request) => {
            // All load at once. Then one partition after the other answers, since each may have many groups.
            let here = replicas_here(core);
            let loaded = sync::all(here.iter().map(|partition| load_soon(core, *partition)).collect()).await;
            for (partition, is_loaded) in here.into_iter().zip(loaded) {
                let part = match is_loaded {
                    true => ask(core, partition, request.clone(), context.clone(), budget).await,
                    false => request.refuse(context.version, ErrorCode::CoordinatorLoadInProgress),
                };
                let count = part.listed();
                response.merge(part);
                work.entries(count).await;
            }
            return response;
        }
    };
    let asked = parts.into_iter().map(|(partition, request)| ask(core, partition, request, context.clone(), budget));
    sync::all(asked.collect()).await.into_iter().for_each(|answer| response.merge(answer));
    response.arrange(&named);
    response
}

/// The number of partitions of the offsets topic. `None`: no group was ever created here.
fn offsets_partitions(core: &Core) -> Option<i32> {
    core.view(|view| view.topic(OFFSETS_TOPIC).map(|topic| topic.partitions.len() as i32))
}

/// The Raft group of a partition of the offsets topic.
fn offsets_group(core: &Core, partition: i32) -> Result<GroupId, ErrorCode> {
    core.find_group(&TopicRef::Name(StrBytes::from_static_str(OFFSETS_TOPIC)), partition)
}

async fn load_soon(core: &Rc<Core>, partition: i32) -> bool {
    match offsets_group(core, partition) {
        Ok(group) => core.ask(core.owner(group), LoadGroups { group }).await,
        Err(_) => true,
    }
}

async fn ask(
    core: &Rc<Core>,
    partition: i32,
    request: GroupRequest,
    context: Context,
    budget: &Budget,
) -> GroupResponse {
    let Ok(group) = offsets_group(core, partition) else {
        return request.refuse(context.version, ErrorCode::NotCoordinator);
    };
    let (owner, budget) = (core.owner(group), budget.clone());
    if request.only_reads() {
        return core.ask(owner, ReadGroups { group, context, request, budget }).await;
    }
    core.ask(owner, ChangeGroups { group, context, request, receipt: None }).await
}

/// Commits to the partitions that exist. The others are answered UNKNOWN_TOPIC_OR_PARTITION, each in its place.
async fn commit_known(
    core: &Rc<Core>,
    commit: OffsetCommitRequest,
    partitions: i32,
    context: Context,
) -> OffsetCommitResponse {
    let count = |name: &TopicName| {
        let topic = core.find_topic(&TopicRef::Name(name.0.clone()));
        topic.map_or(0, |topic| topic.partitions.len() as i32)
    };
    let (whole, known) = cut_unknown(commit, count);
    let partition = partition_of(&known.group_id, partitions);
    // Only what reads takes from a budget.
    match ask(core, partition, known.into(), context, &Budget::new(0)).await {
        GroupResponse::OffsetCommit(answer) => fill_in(whole, answer),
        other => unreachable!("{other:?} answers no OffsetCommit"),
    }
}

/// Removes the partitions that do not exist from a commit. Also returns an answer to all partitions in the order of
/// the request, which rejects those. `count` returns the number of a topic's partitions.
fn cut_unknown(
    mut commit: OffsetCommitRequest,
    count: impl Fn(&TopicName) -> i32,
) -> (OffsetCommitResponse, OffsetCommitRequest) {
    let unknown = ErrorCode::UnknownTopicOrPartition.code();
    let mut whole = Vec::with_capacity(commit.topics.len());
    for topic in &mut commit.topics {
        let known = 0..count(&topic.name);
        let answers = topic.partitions.iter().map(|partition| {
            let index = partition.partition_index;
            let code = if known.contains(&index) { errors::NONE } else { unknown };
            OffsetCommitResponsePartition::default().with_partition_index(index).with_error_code(code)
        });
        let answers = answers.collect();
        whole.push(OffsetCommitResponseTopic::default().with_name(topic.name.clone()).with_partitions(answers));
        topic.partitions.retain(|partition| known.contains(&partition.partition_index));
    }
    commit.topics.retain(|topic| !topic.partitions.is_empty());
    (OffsetCommitResponse::default().with_topics(whole), commit)
}

/// Puts the coordinator's answers, which come in the order of the request to it, into their places.
fn fill_in(mut whole: OffsetCommitResponse, answer: OffsetCommitResponse) -> OffsetCommitResponse {
    let mut answers = answer.topics.into_iter().flat_map(|topic| topic.partitions);
    let partitions = whole.topics.iter_mut().flat_map(|topic| &mut topic.partitions);
    for partition in partitions.filter(|partition| partition.error_code == errors::NONE) {
        let answer = answers.next().expect("the coordinator answers for every partition that it was asked for");
        assert_eq!(answer.partition_index, partition.partition_index, "the coordinator answers in the order asked");
        partition.error_code = answer.error_code;
    }
    whole.with_throttle_time_ms(answer.throttle_time_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};

    type Rows<'a> = &'a [(&'static str, &'a [i32])];

    fn name(topic: &'static str) -> TopicName {
        TopicName(StrBytes::from_static_str(topic))
    }

    fn commit(rows: Rows<'_>) -> OffsetCommitRequest {
        let topics = rows.iter().map(|(topic, partitions)| {
            let partition = |index: &i32| OffsetCommitRequestPartition::default().with_partition_index(*index);
            let partitions = partitions.iter().map(partition).collect();
            OffsetCommitRequestTopic::default().with_name(name(topic)).with_partitions(partitions)
        });
        OffsetCommitRequest::default().with_topics(topics.collect())
    }

    #[test]
    fn a_commit_is_answered_in_the_order_asked_each_partition_once() {
        let asked: Rows<'_> = &[("gone", &[0, 1]), ("two", &[5, 0, 7, 1, -1]), ("gone", &[2]), ("two", &[1])];
        let count = |topic: &TopicName| if topic.as_str() == "two" { 2 } else { 0 };
        let (whole, known) = cut_unknown(commit(asked), count);
        assert_eq!(known, commit(&[("two", &[0, 1]), ("two", &[1])]));
        let refused = GroupRequest::from(known).refuse(9, ErrorCode::IllegalGeneration);
        let GroupResponse::OffsetCommit(refused) = refused else { panic!("{refused:?} answers no OffsetCommit") };
        let answered: Vec<(String, Vec<(i32, i16)>)> = fill_in(whole, refused)
            .topics
            .iter()
            .map(|topic| {
                let rows = topic.partitions.iter().map(|partition| (partition.partition_index, partition.error_code));
                (topic.name.to_string(), rows.collect())
            })
            .collect();
        let rows = |topic: &str, rows: &[(i32, i16)]| (topic.to_owned(), rows.to_vec());
        assert_eq!(
            answered,
            [
                rows("gone", &[(0, 3), (1, 3)]),
                rows("two", &[(5, 3), (0, 22), (7, 3), (1, 22), (-1, 3)]),
                rows("gone", &[(2, 3)]),
                rows("two", &[(1, 22)]),
            ]
        );
    }
}
