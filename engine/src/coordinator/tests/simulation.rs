//! Clients join, leave, sync, commit and fetch at random. The log fails at random, and the coordinator restarts at
//! random. After every event the coordinator's invariants hold; at the end every client has what it needs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use net::{
    StrBytes,
    errors::ErrorCode,
    messages::{
        DeleteGroupsRequest, DescribeGroupsRequest, GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse,
        LeaveGroupRequest, OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, SyncGroupRequest,
        SyncGroupResponse, TopicName,
        join_group_request::JoinGroupRequestProtocol,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
    records::record::Records,
};

use super::world::{World, text};
use crate::coordinator::{Config, Context, GroupRecord, GroupResponse, Incarnation, Topics};

const CLIENTS: usize = 5;
const GROUPS: [&str; 2] = ["g", "h"];

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Idle,
    Joining(u64),
    Joined { leads: bool, members: Vec<StrBytes> },
    Syncing(u64),
    Stable,
}

#[derive(Clone, Debug)]
struct Client {
    group: &'static str,
    instance: Option<StrBytes>,
    member: StrBytes,
    generation: i32,
    phase: Phase,
    /// The newest topic that existed when the client got its generation or assignment.
    known: u64,
}

/// A pending commit.
struct Committing {
    group: &'static str,
    partition: i32,
    offset: i64,
    /// The topic at that time, and for a member's commit the newest topic that the member knew.
    topic: Option<Incarnation>,
    known: Option<u64>,
}

struct Simulation {
    world: World,
    rng: Rng,
    clients: Vec<Client>,
    next_token: u64,
    committing: BTreeMap<u64, Committing>,
    /// The client of each SyncGroup, even if it has gone on without an answer.
    syncing: BTreeMap<u64, usize>,
    /// The last acknowledged offset, in log order.
    acked: BTreeMap<(&'static str, i32), i64>,
    deleting: BTreeSet<u64>,
    /// The highest generation that a client of the group has seen since the coordinator's start.
    generations: BTreeMap<&'static str, i32>,
    next_offset: i64,
    stable: usize,
    compared: usize,
}

fn context() -> Context {
    Context { version: 9, client_id: text("c"), client_host: text("/h") }
}

fn at(version: i16) -> Context {
    Context { version, ..context() }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let config = Config {
            group_initial_rebalance_delay_ms: 100,
            group_max_size: 4,
            offsets_retention_ms: i64::MAX / 2,
            ..Config::default()
        };
        let client = |n: usize| Client {
            group: GROUPS[n % GROUPS.len()],
            instance: (n < 2).then(|| text(&format!("i{n}"))),
            member: StrBytes::new(),
            generation: -1,
            phase: Phase::Idle,
            known: 0,
        };
        Simulation {
            world: World::new(config),
            rng: Rng::with_seed(seed),
            clients: (0..CLIENTS).map(client).collect(),
            next_token: 0,
            committing: BTreeMap::new(),
            syncing: BTreeMap::new(),
            acked: BTreeMap::new(),
            deleting: BTreeSet::new(),
            generations: BTreeMap::new(),
            next_offset: 0,
            stable: 0,
            compared: 0,
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn join(&mut self, n: usize) {
        let token = self.token();
        let client = &mut self.clients[n];
        client.phase = Phase::Joining(token);
        let names = [["range", "rr"], ["rr", "sticky"], ["rr", "range"]][self.rng.usize(..3)];
        let protocols = names.map(|name| JoinGroupRequestProtocol::default().with_name(text(name)));
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(client.group)))
            .with_group_instance_id(client.instance.clone())
            .with_member_id(client.member.clone())
            .with_session_timeout_ms(6_000)
            .with_rebalance_timeout_ms(self.rng.i32(0..5_000))
            .with_protocol_type(text("consumer"))
            .with_protocols(protocols.to_vec());
        let version = self.rng.i16(5..=9);
        let replies = self.world.step(token, &at(version), request);
        self.replies(replies);
    }

    fn sync(&mut self, n: usize, members: Vec<StrBytes>) {
        let token = self.token();
        let client = &mut self.clients[n];
        client.phase = Phase::Syncing(token);
        self.syncing.insert(token, n);
        let assignments = members.into_iter().map(|member| {
            SyncGroupRequestAssignment::default().with_assignment(Bytes::from(member.clone())).with_member_id(member)
        });
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(client.group)))
            .with_group_instance_id(client.instance.clone())
            .with_member_id(client.member.clone())
            .with_generation_id(client.generation)
            .with_assignments(assignments.collect());
        let replies = self.world.step(token, &at(4), request);
        self.replies(replies);
    }

    fn heartbeat(&mut self, n: usize) {
        let token = self.token();
        let client = &self.clients[n];
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(client.group)))
            .with_group_instance_id(client.instance.clone())
            .with_member_id(client.member.clone())
            .with_generation_id(client.generation);
        let replies = self.world.step(token, &at(4), request);
        let [(_, GroupResponse::Heartbeat(response))] = &replies[..] else { panic!("{replies:?}") };
        let error = ErrorCode::try_from_code(response.error_code);
        self.heed(n, error);
    }

    fn commit(&mut self, n: usize) {
        let token = self.token();
        self.next_offset += 1;
        let mut client = self.clients[n].clone();
        if self.rng.u32(..5) == 0 {
            // A client that only stores offsets. The group rejects it while it has members.
            (client.instance, client.member, client.generation) = (None, StrBytes::new(), -1);
        }
        let partition = self.rng.i32(0..3);
        let committing = Committing {
            group: client.group,
            partition,
            offset: self.next_offset,
            topic: self.world.topics.find("t"),
            known: (client.generation >= 0).then_some(client.known),
        };
        self.committing.insert(token, committing);
        let partition = OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(self.next_offset);
        let topic =
            OffsetCommitRequestTopic::default().with_name(TopicName(text("t"))).with_partitions(vec![partition]);
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(client.group)))
            .with_group_instance_id(client.instance.clone())
            .with_member_id(client.member.clone())
            .with_generation_id_or_member_epoch(client.generation)
            .with_topics(vec![topic]);
        let replies = self.world.step(token, &context(), request);
        self.replies(replies);
    }

    fn leave(&mut self, n: usize) {
        let token = self.token();
        let client = &mut self.clients[n];
        let identity = MemberIdentity::default()
            .with_member_id(client.member.clone())
            .with_group_instance_id(client.instance.clone());
        let request =
            LeaveGroupRequest::default().with_group_id(GroupId(text(client.group))).with_members(vec![identity]);
        (client.phase, client.member, client.generation) = (Phase::Idle, StrBytes::new(), -1);
        let replies = self.world.step(token, &at(5), request);
        self.replies(replies);
    }

    fn delete(&mut self) {
        let token = self.token();
        self.deleting.insert(token);
        let group = GroupId(text(GROUPS[self.rng.usize(..GROUPS.len())]));
        let request = DeleteGroupsRequest::default().with_groups_names(vec![group]);
        let replies = self.world.step(token, &at(2), request);
        self.replies(replies);
    }

    /// How a client reacts to an error.
    fn heed(&mut self, n: usize, error: Option<ErrorCode>) {
        let client = &mut self.clients[n];
        match error {
            None => {}
            Some(ErrorCode::UnknownMemberId | ErrorCode::FencedInstanceId | ErrorCode::GroupMaxSizeReached) => {
                (client.phase, client.member, client.generation) = (Phase::Idle, StrBytes::new(), -1);
            }
            Some(
                ErrorCode::RebalanceInProgress
                | ErrorCode::IllegalGeneration
                | ErrorCode::NotCoordinator
                | ErrorCode::CoordinatorNotAvailable
                | ErrorCode::InconsistentGroupProtocol
                | ErrorCode::GroupIdNotFound,
            ) => client.phase = Phase::Idle,
            Some(other) => panic!("a client is told {other:?}"),
        }
    }

    fn replies(&mut self, replies: Vec<(u64, GroupResponse)>) {
        for (token, response) in replies {
            let waits = |phase: &Phase| *phase == Phase::Joining(token) || *phase == Phase::Syncing(token);
            let client = self.clients.iter().position(|client| waits(&client.phase));
            if let (Some(n), GroupResponse::SyncGroup(SyncGroupResponse { error_code: 0, .. })) =
                (self.syncing.remove(&token), &response)
            {
                self.clients[n].known = self.world.topics.newest();
            }
            match (response, client) {
                (GroupResponse::JoinGroup(response), Some(n)) => self.joined(n, response),
                (GroupResponse::SyncGroup(response), Some(n)) => self.synced(n, &response),
                (GroupResponse::OffsetCommit(response), _) => self.committed(token, &response),
                (GroupResponse::DeleteGroups(response), _) => {
                    assert!(self.deleting.remove(&token));
                    let result = &response.results[0];
                    if result.error_code == 0 {
                        self.acked.retain(|(group, _), _| **group != **result.group_id);
                        self.generations.retain(|group, _| **group != **result.group_id);
                    }
                }
                // Answers to clients that have gone on without them.
                (GroupResponse::JoinGroup(_) | GroupResponse::SyncGroup(_) | GroupResponse::LeaveGroup(_), _) => {}
                (other, _) => panic!("{other:?}"),
            }
        }
    }

    fn joined(&mut self, n: usize, response: JoinGroupResponse) {
        match ErrorCode::try_from_code(response.error_code) {
            Some(ErrorCode::MemberIdRequired) => {
                self.clients[n].member = response.member_id;
                self.clients[n].phase = Phase::Idle;
            }
            None => {
                let client = &mut self.clients[n];
                let told = self.generations.entry(client.group).or_default();
                assert!(response.generation_id >= *told, "generations never go back");
                *told = response.generation_id;
                let members: Vec<_> = response.members.into_iter().map(|member| member.member_id).collect();
                let leads = response.leader == response.member_id;
                assert_eq!(leads, !members.is_empty(), "the leader is told of the members");
                (client.member, client.generation) = (response.member_id, response.generation_id);
                client.phase = Phase::Joined { leads, members };
                client.known = self.world.topics.newest();
            }
            error => self.heed(n, error),
        }
    }

    fn synced(&mut self, n: usize, response: &SyncGroupResponse) {
        let error = ErrorCode::try_from_code(response.error_code);
        if error.is_some() {
            return self.heed(n, error);
        }
        let client = &mut self.clients[n];
        client.phase = Phase::Stable;
        self.stable += 1;
        // A returning static member has the assignment made for its old id.
        if client.instance.is_none() && !response.assignment.is_empty() {
            assert_eq!(response.assignment, Bytes::from(client.member.clone()), "an assignment of its own");
        }
    }

    fn committed(&mut self, token: u64, response: &OffsetCommitResponse) {
        let commit = self.committing.remove(&token).unwrap();
        if response.topics[0].partitions[0].error_code != 0 {
            return;
        }
        let topic = commit.topic.expect("nobody commits to a topic that is not there");
        assert!(commit.known.is_none_or(|known| topic.made <= known), "it read an earlier topic");
        if Some(topic) == self.world.topics.find("t") {
            self.acked.insert((commit.group, commit.partition), commit.offset);
        }
    }

    fn client_turn(&mut self, n: usize) {
        match self.clients[n].phase.clone() {
            Phase::Idle if self.rng.u32(..4) == 0 => self.commit(n),
            Phase::Idle => self.join(n),
            // The client stops waiting and joins again.
            Phase::Joining(_) if self.rng.u32(..10) == 0 => self.join(n),
            Phase::Joining(_) => {}
            Phase::Joined { leads, members } => match self.rng.u32(..10) {
                0 => self.join(n),
                1 => self.leave(n),
                2 if leads => self.sync(n, vec![]),
                _ => self.sync(n, members),
            },
            Phase::Syncing(_) => match self.rng.u32(..10) {
                0 => self.clients[n].phase = Phase::Idle,
                // The client got no answer and sends SyncGroup again, with another assignment if it leads.
                1 => self.sync(n, vec![]),
                _ => self.heartbeat(n),
            },
            Phase::Stable => match self.rng.u32(..20) {
                0 => self.leave(n),
                1 => self.join(n),
                // The client forgets its member id. The group still knows it if it is static.
                2 => (self.clients[n].phase, self.clients[n].member) = (Phase::Idle, StrBytes::new()),
                3..10 => self.commit(n),
                _ => self.heartbeat(n),
            },
        }
    }

    fn turn(&mut self) {
        match self.rng.u32(..100) {
            0..60 => {
                let n = self.rng.usize(..CLIENTS);
                self.client_turn(n);
            }
            60..80 if !self.world.appending.is_empty() => {
                let replies = self.world.commit();
                self.replies(replies);
            }
            80..82 if !self.world.appending.is_empty() => {
                let at = self.rng.usize(..self.world.appending.len());
                let replies = self.world.fail(at, ErrorCode::NotEnoughReplicas);
                self.replies(replies);
                self.check_offsets();
            }
            82..95 => {
                let most = [10, 300, 4_000][self.rng.usize(..3)];
                let ms = self.rng.u64(..most);
                self.pass(ms);
            }
            95 if self.rng.u32(..5) == 0 => self.restart(),
            96 => self.delete(),
            99 => self.change_topic(),
            97 => self.check_offsets(),
            98 if self.world.appending.is_empty() => self.check_log(),
            _ => {}
        }
    }

    /// The topic is deleted, created again, or both before any client notices.
    fn change_topic(&mut self) {
        if self.world.topics.find("t").is_some() {
            self.world.delete_topic("t");
            self.acked.clear();
            self.check_offsets();
        }
        if self.rng.bool() {
            self.world.make_topic("t");
            self.check_offsets();
        }
    }

    /// The log has no offset of a deleted topic.
    fn check_swept(&self) {
        let mut offsets = BTreeMap::new();
        for batch in &self.world.log {
            let records = Records::open(batch, 1 << 20).unwrap();
            for record in records.iter().map(Result::unwrap) {
                if let Ok(GroupRecord::Offset { group, topic, partition, value }) =
                    GroupRecord::decode(record.key, record.value)
                {
                    offsets.insert((group, topic, partition), value);
                }
            }
        }
        let topic = self.world.topics.find("t");
        for (place, offset) in offsets.into_iter().filter_map(|(place, offset)| Some((place, offset?))) {
            assert_eq!(Some(offset.topic_id), topic.map(|topic| topic.id), "{place:?}");
        }
    }

    fn pass(&mut self, ms: u64) {
        for (_, replies) in self.world.pass(ms) {
            self.replies(replies);
        }
    }

    fn restart(&mut self) {
        assert!(self.world.restart().is_empty(), "all that is in the log can be used");
        for client in &mut self.clients {
            if matches!(client.phase, Phase::Joining(_) | Phase::Syncing(_)) {
                client.phase = Phase::Idle;
            }
        }
        self.committing.clear();
        self.deleting.clear();
        self.generations.clear();
        self.check_offsets();
    }

    /// Every acknowledged offset is served, or a newer one that was in flight.
    fn check_offsets(&mut self) {
        for group in GROUPS {
            let topics = OffsetFetchRequestTopics::default()
                .with_name(TopicName(text("t")))
                .with_partition_indexes((0..3).collect());
            let request = OffsetFetchRequest::default().with_groups(vec![
                OffsetFetchRequestGroup::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topics])),
            ]);
            let token = self.token();
            let replies = self.world.step(token, &context(), request);
            let [(_, GroupResponse::OffsetFetch(response))] = &replies[..] else { panic!("{replies:?}") };
            for partition in &response.groups[0].topics[0].partitions {
                let acked = self.acked.get(&(group, partition.partition_index)).copied().unwrap_or(-1);
                assert_eq!(partition.committed_offset, acked, "{group} {}", partition.partition_index);
            }
        }
    }

    /// A stable group is the same in the log as in memory, so a restart now would change nothing.
    fn check_log(&mut self) {
        for group in GROUPS {
            let describe = || DescribeGroupsRequest::default().with_groups(vec![GroupId(text(group))]);
            let token = self.token();
            let replies = self.world.step(token, &at(5), describe());
            let [(_, GroupResponse::DescribeGroups(now))] = &replies[..] else { panic!("{replies:?}") };
            if *now.groups[0].group_state == *"Stable" {
                let again = self.world.replayed(&at(5), describe());
                assert_eq!(again, GroupResponse::DescribeGroups(now.clone()));
                self.compared += 1;
            }
        }
    }

    /// Without further faults, every client gets an assignment.
    fn settle(&mut self) {
        for _ in 0..400 {
            let replies = self.world.commit_all();
            self.replies(replies);
            for n in 0..CLIENTS {
                match self.clients[n].phase.clone() {
                    Phase::Idle => self.join(n),
                    Phase::Joined { members, .. } => self.sync(n, members),
                    Phase::Stable => self.heartbeat(n),
                    Phase::Joining(_) | Phase::Syncing(_) => {}
                }
            }
            self.pass(500);
        }
        let phases: Vec<_> = self.clients.iter().map(|client| &client.phase).collect();
        assert!(phases.iter().all(|phase| **phase == Phase::Stable), "{phases:?}");
        self.check_offsets();
        self.check_swept();
        self.compared = 0;
        self.check_log();
        assert_eq!(self.compared, GROUPS.len());
    }
}

#[test]
fn clients_come_to_rest_whatever_happens() {
    for seed in 0..60 {
        let run = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            for _ in 0..600 {
                simulation.turn();
            }
            assert!(simulation.stable > 0, "nobody ever got an assignment");
            simulation.settle();
        });
        if let Err(panic) = run {
            eprintln!("seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
