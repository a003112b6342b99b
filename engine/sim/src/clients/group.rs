//! Members of consumer groups: they join, read their partitions, commit, crash, pause and leave.
//!
//! Some are static members (KIP-345). Now and then two members have the same instance, and the later one fences the
//! other.
//!
//! Members behave like the consumer of Kafka's Java client, with one exception: after a long time without contact to
//! its group, a member still commits. The coordinator must not acknowledge that commit once there is a later
//! generation.

use super::{ask_within, text};
use crate::{
    cluster::{Cluster, Target},
    exec::{self, OUTSIDE, World},
    ledger::{
        Violation,
        commits::{CommitId, GroupHistory, Moment, Place, Who},
    },
    node::{Node, SESSION},
};
use bytes::Bytes;
use engine::handlers::OFFSETS_TOPIC;
use net::{
    StrBytes,
    codec::{request::Request, response::Response},
    errors::{self, ErrorCode},
    messages::{
        FindCoordinatorRequest, GroupId, HeartbeatRequest, JoinGroupRequest, LeaveGroupRequest, OffsetCommitRequest,
        OffsetFetchRequest, SyncGroupRequest, TopicName,
        join_group_request::JoinGroupRequestProtocol,
        join_group_response::JoinGroupResponseMember,
        leave_group_request::MemberIdentity,
        offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic},
        offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics},
        sync_group_request::SyncGroupRequestAssignment,
    },
};
use runtime::{self as rt};
use std::{cell::Cell, ops::Range, rc::Rc, time::Duration};

/// Members must join again within this time.
const REBALANCE: Duration = Duration::from_millis(2_000);
/// JoinGroup waits for other members.
const JOIN_PATIENCE: Range<Duration> = Duration::from_secs(2)..Duration::from_secs(6);
/// Without an answer, some members look for another coordinator soon, others late.
const PATIENCE: [Range<Duration>; 2] =
    [Duration::from_millis(100)..Duration::from_millis(400), Duration::from_millis(400)..Duration::from_secs(4)];
/// Time within which all offsets must be fetched at the end.
const FETCHING: Duration = Duration::from_secs(20);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn place(target: &Target) -> Place {
    (target.topic.clone(), target.partition)
}

/// Why a member cannot go on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Halt {
    /// It has to join again.
    Rejoin,
    /// It has to join again as a new member.
    Anew,
    /// Another member has taken over its instance.
    Fenced,
    /// The coordinator is elsewhere, or does not answer.
    Lost,
    /// It has to try again.
    NotNow,
}

impl Halt {
    fn of(code: ErrorCode) -> Self {
        match code {
            ErrorCode::RebalanceInProgress | ErrorCode::IllegalGeneration => Self::Rejoin,
            ErrorCode::UnknownMemberId => Self::Anew,
            ErrorCode::FencedInstanceId => Self::Fenced,
            ErrorCode::NotCoordinator | ErrorCode::CoordinatorNotAvailable => Self::Lost,
            _ => Self::NotNow,
        }
    }
}

/// Whether a commit with this answer will never count.
fn is_refusal(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::IllegalGeneration
            | ErrorCode::UnknownMemberId
            | ErrorCode::FencedInstanceId
            | ErrorCode::RebalanceInProgress
            | ErrorCode::GroupIdNotFound
            | ErrorCode::CoordinatorLoadInProgress
    )
}

/// A member of a group, or a process that wants to become one.
struct Member {
    cluster: Rc<Cluster>,
    world: Rc<World>,
    group: String,
    coordinator: Option<Rc<Node>>,
    /// Empty until the coordinator assigns one.
    id: StrBytes,
    /// The instance id of a static member. Another member may have the same one at the same time.
    instance: Option<StrBytes>,
    /// When it sent its last JoinGroup request, for the ledger.
    asked: Moment,
    generation: i32,
    /// If this member leads the group: the members to which it assigns partitions.
    others: Vec<StrBytes>,
    /// Its partitions, each with the offset at which it reads next.
    assigned: Vec<(Target, u64)>,
}

impl Cluster {
    /// Starts members that share the topics.
    pub(crate) fn begin_group(self: &Rc<Self>, world: &World, group: &str, members: u64) {
        for _ in 0..members {
            let instance = world.chance(0.4).then(|| text(&format!("instance-{}", world.place(2))));
            world.spawn(OUTSIDE, self.clone().belong(group.to_owned(), instance));
        }
        world.spawn(OUTSIDE, self.clone().await_offsets_topic());
        world.spawn(OUTSIDE, self.clone().watch_offsets(group.to_owned()));
    }

    /// Adds the partitions of the offsets topic to the checks, once the topic exists.
    async fn await_offsets_topic(self: Rc<Self>) {
        while !self.over.get() {
            if let Some(groups) = self.partitions_of(OFFSETS_TOPIC) {
                // The topic must have three replicas, even if the first request for it came early.
                let targets = self.add_targets(OFFSETS_TOPIC, groups, false);
                let replicas = self.replicas_of(&targets[0]).map_or(0, |replicas| replicas.len());
                if replicas < 3 {
                    self.violated(format!("{OFFSETS_TOPIC} has {replicas} replicas"));
                }
                return;
            }
            rt::sleep(ms(100)).await;
        }
    }

    fn of_group(&self, group: &str, what: impl FnOnce(&mut GroupHistory) -> Result<(), Violation>) {
        if let Err(Violation(why)) = what(self.ledger.borrow_mut().of_members(group)) {
            self.violated(format!("{group}: {why}"));
        }
    }

    fn shared_targets(&self) -> Vec<Target> {
        self.targets.borrow().iter().filter(|target| target.is_for_clients).cloned().collect()
    }

    async fn belong(self: Rc<Self>, group: String, instance: Option<StrBytes>) {
        let world = exec::world();
        while !self.over.get() {
            let mut member = Member { instance: instance.clone(), ..Member::new(&self, &group) };
            member.live().await;
            rt::sleep(world.draw(ms(10)..ms(4_000))).await;
        }
    }

    /// A tool that shows the progress of a group. It keeps asking the coordinator that it knows.
    async fn watch_offsets(self: Rc<Self>, group: String) {
        let world = exec::world();
        let mut tool = Member::new(&self, &group);
        while !self.over.get() {
            tool.assigned = self.shared_targets().into_iter().map(|target| (target, 0)).collect();
            if world.chance(0.1) {
                tool.coordinator = Some(self.any_node());
            }
            if tool.fetch_offsets().await.is_err_and(|halt| halt == Halt::Lost && world.chance(0.5)) {
                tool.coordinator = None;
            }
            let pause = if self.quiet { ms(300)..ms(3_000) } else { ms(20)..ms(600) };
            rt::sleep(world.draw(pause)).await;
        }
    }

    /// Checks that the committed offsets at the end are those of the last commits.
    pub(crate) fn check_offsets(self: &Rc<Self>, group: &str) -> Result<(), Violation> {
        let world = exec::world();
        let done = Rc::new(Cell::new(false));
        let mut tool = Member::new(self, group);
        tool.assigned = self.shared_targets().into_iter().map(|target| (target, 0)).collect();
        let ended = done.clone();
        world.spawn(OUTSIDE, async move {
            while tool.fetch_offsets().await.is_err() {
                tool.coordinator = None;
                rt::sleep(ms(50)).await;
            }
            ended.set(true);
        });
        self.go_on(&world, FETCHING, || done.get())?;
        crate::ledger::expect(done.get(), || format!("the offsets of {group} can't be fetched"))
    }
}

impl Member {
    fn new(cluster: &Rc<Cluster>, group: &str) -> Self {
        Self {
            cluster: cluster.clone(),
            world: exec::world(),
            group: group.to_owned(),
            coordinator: None,
            id: StrBytes::new(),
            instance: None,
            asked: 0,
            generation: -1,
            others: Vec::new(),
            assigned: Vec::new(),
        }
    }

    fn who(&self) -> Who {
        let instance = self.instance.as_ref().map(|instance| instance.to_string());
        Who { id: self.id.to_string(), instance, asked: self.asked }
    }

    /// Runs until the member crashes or leaves.
    async fn live(&mut self) {
        while !self.cluster.over.get() {
            let Err(halt) = self.take_part().await else { return };
            match halt {
                Halt::Rejoin => {}
                Halt::Anew => self.id = StrBytes::new(),
                Halt::Fenced => {
                    self.cluster.summary.borrow_mut().fenced += 1;
                    return;
                }
                Halt::Lost => self.coordinator = None,
                Halt::NotNow => {}
            }
            rt::sleep(self.world.draw(ms(5)..ms(200))).await;
        }
    }

    async fn take_part(&mut self) -> Result<(), Halt> {
        self.join().await?;
        self.sync().await?;
        self.fetch_offsets().await?;
        loop {
            let pause = if self.cluster.quiet { ms(300)..ms(700) } else { ms(20)..ms(250) };
            rt::sleep(self.world.draw(pause)).await;
            if self.cluster.over.get() {
                return Ok(());
            }
            match self.world.number(..1_000) {
                // It crashes.
                0..10 => return Ok(()),
                10..20 => {
                    self.leave().await;
                    return Ok(());
                }
                20..35 => {
                    // It takes long to process its records.
                    rt::sleep(self.world.draw(ms(500)..ms(5_000))).await;
                    self.commit().await?;
                }
                _ => {}
            }
            self.read().await;
            if self.world.chance(if self.cluster.quiet { 0.2 } else { 0.6 }) {
                self.commit().await?;
            }
            match self.heartbeat().await {
                Err(Halt::Rejoin) => {
                    // It commits what it has read while it still may.
                    let _ = self.commit().await;
                    return Err(Halt::Rejoin);
                }
                // A coordinator elsewhere knows this member too.
                Err(Halt::Lost) => self.coordinator = None,
                Err(Halt::NotNow) => {}
                other => other?,
            }
        }
    }

    async fn ask(&mut self, request: impl Into<Request>, version: i16, patience: Duration) -> Result<Response, Halt> {
        if self.coordinator.is_none() {
            self.coordinator = Some(self.find_coordinator().await.ok_or(Halt::Lost)?);
        }
        let coordinator = self.coordinator.clone().expect("it was found");
        ask_within(&coordinator, request.into(), version, patience).await.ok_or(Halt::Lost)
    }

    fn patience(&self) -> Duration {
        self.world.draw(PATIENCE[self.world.place(2)].clone())
    }

    async fn find_coordinator(&self) -> Option<Rc<Node>> {
        let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(&self.group)]);
        let patience = self.patience();
        let answer = ask_within(&self.cluster.any_node(), request.into(), 4, patience).await?;
        let Response::FindCoordinator(response) = answer else { return None };
        let found = &response.coordinators[0];
        let mut nodes = self.cluster.nodes.iter();
        nodes.find(|node| found.error_code == 0 && node.id == found.node_id.0).cloned()
    }

    async fn join(&mut self) -> Result<(), Halt> {
        let request = JoinGroupRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_session_timeout_ms(SESSION.as_millis() as i32)
            .with_rebalance_timeout_ms(REBALANCE.as_millis() as i32)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(text("consumer"))
            .with_protocols(vec![JoinGroupRequestProtocol::default().with_name(text("any"))]);
        self.asked = self.cluster.ledger.borrow_mut().of_members(&self.group).now();
        let Response::JoinGroup(response) = self.ask(request, 9, self.world.draw(JOIN_PATIENCE)).await? else {
            return Err(Halt::NotNow);
        };
        match errors::check(response.error_code) {
            Ok(()) => {}
            Err(ErrorCode::MemberIdRequired) => {
                self.id = response.member_id;
                return Err(Halt::Rejoin);
            }
            Err(code) => return Err(Halt::of(code)),
        }
        (self.id, self.generation) = (response.member_id, response.generation_id);
        // If a static member comes back, the assignment stays as it is.
        let leads = response.leader == self.id && !response.skip_assignment;
        let id = |member: JoinGroupResponseMember| member.member_id;
        self.others = response.members.into_iter().map(id).filter(|_| leads).collect();
        Ok(())
    }

    /// The group's leader assigns each partition to a random member. An assignment is a list of indexes into the shared
    /// targets.
    fn assign(&self) -> Vec<SyncGroupRequestAssignment> {
        if self.others.is_empty() {
            return Vec::new();
        }
        let mut shares = vec![Vec::new(); self.others.len()];
        for place in 0..self.cluster.shared_targets().len() {
            shares[self.world.place(self.others.len())].push(place as u8);
        }
        let shares = self.others.iter().zip(shares);
        let assignment = |(member, share): (&StrBytes, Vec<u8>)| {
            SyncGroupRequestAssignment::default().with_member_id(member.clone()).with_assignment(share.into())
        };
        shares.map(assignment).collect()
    }

    async fn sync(&mut self) -> Result<(), Halt> {
        let request = SyncGroupRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_protocol_type(Some(text("consumer")))
            .with_protocol_name(Some(text("any")))
            .with_assignments(self.assign());
        let Response::SyncGroup(response) = self.ask(request, 5, self.world.draw(JOIN_PATIENCE)).await? else {
            return Err(Halt::NotNow);
        };
        errors::check(response.error_code).map_err(Halt::of)?;
        let share: Bytes = response.assignment;
        let targets = self.cluster.shared_targets();
        self.assigned = share.iter().map(|place| (targets[usize::from(*place)].clone(), 0)).collect();
        let places: Vec<Place> = self.assigned.iter().map(|(target, _)| place(target)).collect();
        self.cluster.of_group(&self.group, |group| group.assigned(self.generation, &self.who(), &places));
        Ok(())
    }

    /// Fetches the offsets at which to continue. The ledger checks them.
    async fn fetch_offsets(&mut self) -> Result<(), Halt> {
        let topics = self.assigned.iter().map(|(target, _)| {
            OffsetFetchRequestTopics::default()
                .with_name(TopicName(text(&target.topic)))
                .with_partition_indexes(vec![target.partition])
        });
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_topics(Some(topics.collect()));
        let request = OffsetFetchRequest::default().with_require_stable(true).with_groups(vec![group]);
        let asked = self.cluster.ledger.borrow_mut().of_members(&self.group).now();
        let Response::OffsetFetch(response) = self.ask(request, 8, self.patience()).await? else {
            return Err(Halt::NotNow);
        };
        let found = &response.groups[0];
        errors::check(found.error_code).map_err(Halt::of)?;
        let partitions = found.topics.iter().map(|topic| &topic.partitions[0]);
        for ((target, at), found) in self.assigned.iter_mut().zip(partitions) {
            errors::check(found.error_code).map_err(Halt::of)?;
            let metadata = found.metadata.as_deref().unwrap_or_default();
            let offset = (found.committed_offset >= 0).then_some((found.committed_offset as u64, metadata));
            self.cluster.of_group(&self.group, |group| group.is_fetched(&place(target), asked, offset));
            *at = offset.map_or(0, |(offset, _)| offset);
        }
        Ok(())
    }

    async fn read(&mut self) {
        for (target, at) in &mut self.assigned {
            *at = self.cluster.read_from(target, *at, self.world.draw(ms(0)..ms(60))).await;
        }
    }

    async fn commit(&mut self) -> Result<(), Halt> {
        if self.assigned.is_empty() {
            return Ok(());
        }
        let mut ids: Vec<CommitId> = Vec::new();
        let who = self.who();
        let topics = self.assigned.iter().map(|(target, at)| {
            self.cluster.of_group(&self.group, |group| {
                ids.push(group.asks(&who, self.generation, place(target), *at));
                Ok(())
            });
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(target.partition)
                .with_committed_offset(*at as i64)
                .with_committed_metadata(ids.last().map(|id| text(&id.text())));
            OffsetCommitRequestTopic::default()
                .with_name(TopicName(text(&target.topic)))
                .with_partitions(vec![partition])
        });
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id_or_member_epoch(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone())
            .with_topics(topics.collect());
        let answer = self.ask(request, 9, self.patience()).await;
        let Response::OffsetCommit(response) = answer? else { return Err(Halt::NotNow) };
        let codes = response.topics.iter().flat_map(|topic| &topic.partitions).map(|partition| partition.error_code);
        let mut outcome = Ok(());
        for (id, code) in ids.into_iter().zip(codes) {
            match errors::check(code) {
                Ok(()) => self.cluster.of_group(&self.group, |group| group.is_acked(id)),
                Err(code) => {
                    if is_refusal(code) {
                        self.cluster.of_group(&self.group, |group| group.is_refused(id));
                    }
                    outcome = Err(Halt::of(code));
                }
            }
        }
        match outcome {
            // The commit may be repeated: the next one includes its offset.
            Err(Halt::Lost) => {
                self.coordinator = None;
                Ok(())
            }
            Err(Halt::NotNow) => Ok(()),
            other => other,
        }
    }

    async fn heartbeat(&mut self) -> Result<(), Halt> {
        let request = HeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_generation_id(self.generation)
            .with_member_id(self.id.clone())
            .with_group_instance_id(self.instance.clone());
        let Response::Heartbeat(response) = self.ask(request, 4, self.patience()).await? else {
            return Err(Halt::NotNow);
        };
        errors::check(response.error_code).map_err(Halt::of)
    }

    async fn leave(&mut self) {
        let member =
            MemberIdentity::default().with_member_id(self.id.clone()).with_group_instance_id(self.instance.clone());
        let request = LeaveGroupRequest::default().with_group_id(GroupId(text(&self.group))).with_members(vec![member]);
        let _ = self.ask(request, 5, self.patience()).await;
    }
}
