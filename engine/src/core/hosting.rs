//! The core as the host of its partitions and of its group coordinators.

use super::{
    Core,
    messages::{
        CloseOldest, DescribeQuorum, EnterAddress, FindInSlice, LargestTaken, Linearize, Notice, Submit, Watermarks,
    },
    metadata_topic::{METADATA_TOPIC, METADATA_TOPIC_ID},
};
use crate::{
    cluster::{
        Identity,
        meta::{self, CommandResult, Mark, Meta, SliceWork, SubmitError, Submitting},
        peers::Peers,
    },
    config::Config,
    connection::{self, Connections, client::Client, reply::Pending},
    coordinator::{
        Incarnation, Topics,
        host::{Coordinators, Host},
        receipts::ReceiptId,
    },
    host::disk::Store,
    liveness::{self, Groups},
    log_limit::LogLimit,
    long_work::LongWork,
    memory::{GroupState, Lasting, Memory},
    metrics::CoreMetrics,
    on_core::OnCore,
    pace::Pace,
    partition::{
        Led, Partition,
        admission::Admission,
        host::{Events, Liveness, Parts, Way},
        producers::share::ProducersShare,
        replica::{ReadyLoop, Replicated},
    },
};
use consensus::{
    group::{Unfit, Unreadable},
    metadata::{Command, Delta, Slice, Topic, View},
    plane::{Acks, Quorum},
    wire::PeerMessage,
};
use net::{
    codec::{header::RequestHeader, request::Request},
    peer::Lane,
    transport::listen::Accepted,
};
use runtime::sync::{Flag, Notify, line::Line};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use types::{CoreId, GroupId, META_CORE, META_GROUP, RaftIndex};
use wal::store::RecoveredGroup;

impl OnCore for Core {
    fn id(&self) -> CoreId {
        Core::id(self)
    }

    fn cores(&self) -> usize {
        Core::cores(self)
    }

    fn node(&self) -> i32 {
        Core::node(self)
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn metrics(&self) -> &CoreMetrics {
        &self.metrics
    }

    fn stopping(&self) -> &Flag {
        &self.lifecycle.stopping
    }
}

impl Parts for Core {
    fn store(&self) -> &Store {
        &self.store
    }

    fn ready_loop(&self) -> &ReadyLoop<Self> {
        &self.ready_loop
    }

    fn admission(&self) -> &Admission {
        &self.admission
    }

    fn pace(&self) -> &Pace {
        &self.pace
    }

    fn producers_share(&self) -> &ProducersShare {
        &self.producers_share
    }

    fn partition_log(&self) -> &Rc<LogLimit> {
        &self.partition_log
    }

    fn partition(&self, group: GroupId) -> Option<Rc<Partition>> {
        Core::partition(self, group)
    }

    fn partition_from(&self, group: GroupId) -> Option<Rc<Partition>> {
        self.partitions.borrow().range(group..).next().map(|(_, partition)| partition.clone())
    }

    fn group(&self, group: GroupId) -> Option<Rc<dyn Replicated<Self>>> {
        if group == META_GROUP {
            return self.meta.get().map(|meta| meta.clone() as Rc<dyn Replicated<Self>>);
        }
        self.partition(group).map(|partition| partition as Rc<dyn Replicated<Self>>)
    }

    fn largest_entry(&self) -> usize {
        Core::largest_entry(self)
    }
}

impl Liveness for Core {
    fn wake_timers(&self, group: GroupId) {
        self.groups.wake_timers(group);
    }

    fn stop_timers(&self, group: GroupId) {
        self.groups.stop_timers(group);
    }

    fn sleeps_on(&self, group: GroupId) -> bool {
        self.groups.sleeps_on(group)
    }

    fn ran_for(&self) -> Duration {
        self.groups.ran_for()
    }

    fn is_there(&self, group: GroupId, node: i32) -> bool {
        self.groups.is_there(self, group, node)
    }

    fn can_lead(&self, group: GroupId, node: i32) -> bool {
        self.groups.can_lead(self, group, node)
    }

    fn is_well(&self) -> bool {
        liveness::is_well(self)
    }
}

impl Way for Core {
    fn send_on(&self, lane: Lane, to: u64, message: PeerMessage) {
        self.peers().send_on(lane, to, message);
    }

    async fn bulk_room(&self) {
        self.peers().bulk_room().await;
    }

    fn has_peer(&self, peer: u64) -> bool {
        self.peers().has_peer(peer)
    }

    fn peer_of(&self, node: i32) -> Option<u64> {
        self.view(|view| view.broker(node).map(|broker| broker.peer))
    }

    fn refused(&self, group: GroupId, from: u64, unfit: &Unfit) {
        self.groups.refused(self, group, from, unfit);
    }
}

impl Events<Core> for Core {
    fn leader_of(&self, group: GroupId) -> Option<i32> {
        Core::leader_of(self, group).map(|leader| leader.node)
    }

    fn announce_leader(self: &Rc<Self>, led: Led) {
        self.untold.borrow_mut().push(led);
    }

    fn tell_leaders(self: &Rc<Self>) {
        Core::tell_leaders(self);
    }

    fn resigned(&self, group: GroupId) {
        self.coordinators.resign(group);
    }

    fn storage_failed(&self, why: &str) {
        Core::storage_failed(self, why);
    }

    fn group_stopped(&self, group: &dyn Replicated<Self>, why: &Unreadable) {
        Core::group_stopped(self, group, why);
    }
}

impl liveness::Host for Core {
    fn groups(&self) -> &Groups {
        &self.groups
    }

    fn cores_of(&self, node: i32) -> Option<u16> {
        self.view(|view| view.broker(node).map(|broker| broker.cores))
    }

    fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    fn knows_controller(&self) -> bool {
        self.controller().is_some()
    }

    fn give_metadata_away(self: &Rc<Self>) {
        meta::give_away(self);
    }

    fn has_failed(&self) -> bool {
        Core::has_failed(self)
    }

    fn has_full_disk(&self) -> bool {
        Core::has_full_disk(self)
    }

    fn peers_ended(&self) -> &Flag {
        &self.lifecycle.peers_ended
    }

    fn has_way_to(&self, node: i32) -> bool {
        self.peers().is_there(node)
    }

    fn reached(&self) -> BTreeSet<u64> {
        self.peers().reached()
    }

    fn send_to_all(&self, message: &PeerMessage) {
        self.peers().send_to_all(message);
    }

    fn partitions_that(&self, are: impl Fn(&Partition) -> bool) -> Vec<Rc<Partition>> {
        Core::partitions_that(self, are)
    }
}

impl connection::Host for Core {
    fn connections(&self) -> &Rc<Connections> {
        &self.connections
    }

    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn connection_log(&self) -> &LogLimit {
        &self.connection_log
    }

    fn beside(&self) -> &Line {
        &self.beside
    }

    fn start(self: &Rc<Self>, client: &Rc<Client>, header: &RequestHeader, request: Request) -> Pending {
        (self.entries.start)(self, client, header, request)
    }

    fn give(self: &Rc<Self>, to: CoreId, accepted: Accepted) {
        self.tell(to, Notice::Connection { accepted });
    }

    async fn enter_address(self: &Rc<Self>, on: CoreId, from: IpAddr, max: usize) -> bool {
        self.ask(on, EnterAddress { from, max }).await
    }

    fn leave_address(self: &Rc<Self>, on: CoreId, from: IpAddr) {
        self.tell(on, Notice::LeaveAddress { from });
    }

    async fn close_oldest(self: &Rc<Self>, on: CoreId) {
        self.ask(on, CloseOldest {}).await;
    }
}

impl meta::host::Host for Core {
    fn meta(&self) -> &Rc<Meta> {
        Core::meta(self)
    }

    fn hold_meta(&self, meta: Rc<Meta>) {
        Core::hold_meta(self, meta);
    }

    fn peers(&self) -> &Rc<Peers> {
        Core::peers(self)
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn advertised(&self) -> (&str, u16) {
        Core::advertised(self)
    }

    fn shares(&self) -> &Lasting {
        &self.shares
    }

    fn view<R>(&self, look: impl FnOnce(&View) -> R) -> R {
        Core::view(self, look)
    }

    fn view_changed(&self) -> &Notify {
        &self.view_changed
    }

    fn unreported(&self) -> &RefCell<BTreeMap<GroupId, Led>> {
        Core::unreported(self)
    }

    fn has_read_lease(&self) -> bool {
        Core::has_read_lease(self)
    }

    fn metadata_acks(&self) -> Acks {
        Core::metadata_acks(self)
    }

    fn largest_taken(&self) -> u64 {
        Core::largest_taken(self)
    }

    fn take_recovered(&self, group: GroupId) -> Option<RecoveredGroup> {
        Core::take_recovered(self, group)
    }

    fn show(self: &Rc<Self>, deltas: &[(RaftIndex, Vec<Delta>)]) {
        Core::show(self, deltas);
    }

    fn metadata_ended(&self) -> &Flag {
        &self.lifecycle.metadata_ended
    }
}

impl meta::host::Asks for Core {
    async fn ask_submit(
        self: &Rc<Self>,
        commands: Vec<Command>,
        how: Submitting,
    ) -> Result<Vec<CommandResult>, SubmitError> {
        self.ask(META_CORE, Submit { commands, how }).await
    }

    async fn ask_linearize(self: &Rc<Self>) -> Result<(), SubmitError> {
        self.ask(META_CORE, Linearize {}).await
    }

    async fn ask_quorum(self: &Rc<Self>) -> Result<Quorum, SubmitError> {
        self.ask(META_CORE, DescribeQuorum {}).await
    }

    async fn ask_topic(self: &Rc<Self>, owner: CoreId, name: String) -> Option<Arc<Topic>> {
        self.ask(owner, FindInSlice { name }).await
    }

    async fn ask_watermarks(self: &Rc<Self>, of: CoreId) -> Vec<(GroupId, Mark)> {
        self.ask(of, Watermarks {}).await
    }

    async fn ask_largest_taken(self: &Rc<Self>, of: CoreId) -> u64 {
        self.ask(of, LargestTaken {}).await
    }
}

impl meta::host::Tells for Core {
    fn tell_install(self: &Rc<Self>, to: CoreId, index: RaftIndex, slices: Vec<Slice>, image: Arc<[Delta]>) {
        self.tell(to, Notice::Install { index, slices, image });
    }

    fn tell_work(self: &Rc<Self>, to: CoreId, work: Vec<SliceWork>) {
        self.tell(to, Notice::WorkOnSlices { work });
    }

    fn tell_cut(self: &Rc<Self>, to: CoreId, token: usize) {
        self.tell(to, Notice::CutSlices { token });
    }

    fn tell_show(self: &Rc<Self>, to: CoreId, deltas: Arc<[(RaftIndex, Vec<Delta>)]>, last: RaftIndex) {
        self.tell(to, Notice::Show { deltas, last });
    }

    fn tell_report_shown(self: &Rc<Self>, to: CoreId, index: RaftIndex) {
        self.tell(to, Notice::ReportShown { index });
    }

    fn tell_lease(self: &Rc<Self>, to: CoreId, until: Duration, controller: Option<i32>) {
        self.tell(to, Notice::Lease { until, controller });
    }

    fn tell_away(self: &Rc<Self>, to: CoreId, nodes: Arc<[i32]>) {
        self.tell(to, Notice::Away { nodes });
    }

    fn tell_complete(self: &Rc<Self>, to: CoreId) {
        self.tell(to, Notice::MetadataComplete);
    }
}

impl AsRef<LongWork> for Core {
    fn as_ref(&self) -> &LongWork {
        &self.long_work
    }
}

/// The topics in this core's view.
struct Shown<'a>(&'a View);

impl Topics for Shown<'_> {
    fn find(&self, name: &str) -> Option<Incarnation> {
        // The topic of the metadata's own log always exists.
        if name == METADATA_TOPIC {
            return Some(Incarnation { id: METADATA_TOPIC_ID, made: 0, made_ms: 0 });
        }
        let topic = self.0.topic(name)?;
        Some(Incarnation { id: topic.id, made: topic.partitions[0].group.0, made_ms: topic.created_ms })
    }

    fn newest(&self) -> u64 {
        self.0.newest_group()
    }
}

impl Host for Core {
    fn coordinators(&self) -> &Coordinators {
        &self.coordinators
    }

    fn group_state(&self) -> &GroupState {
        &self.memory.group_state
    }

    fn topics<R>(&self, look: impl FnOnce(&dyn Topics) -> R) -> R {
        self.view(|view| look(&Shown(view)))
    }

    async fn linearize(self: &Rc<Self>) -> Result<(), String> {
        meta::linearize(self).await.map_err(|error| error.to_string())
    }

    fn received(self: &Rc<Self>, receipt: ReceiptId) {
        self.tell(receipt.awaited_by(), Notice::Receipt { receipt });
    }
}
