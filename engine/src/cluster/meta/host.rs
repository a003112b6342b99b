//! The host of the metadata: the core that it runs on, and its way to the other cores.

use super::{CommandResult, Mark, Meta, SliceWork, SubmitError, Submitting};
use crate::{
    cluster::{Identity, peers::Peers},
    liveness,
    memory::Lasting,
    partition::Led,
};
use consensus::{
    metadata::{Command, Delta, Slice, Topic, View},
    plane::{Acks, Quorum},
};
use runtime::sync::{Flag, Notify};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};
use types::{CoreId, GroupId, RaftIndex};
use wal::store::RecoveredGroup;

/// A core, as the metadata sees it.
pub trait Host: liveness::Host + Asks + Tells {
    /// On core 0.
    fn meta(&self) -> &Rc<Meta>;
    fn hold_meta(&self, meta: Rc<Meta>);
    fn peers(&self) -> &Rc<Peers>;
    fn identity(&self) -> &Identity;
    /// Host and port that are advertised to clients.
    fn advertised(&self) -> (&str, u16);
    /// Shares of the broker's memory: bounds on partitions and on idempotent producers.
    fn shares(&self) -> &Lasting;
    /// Runs `look` on this core's view.
    fn view<R>(&self, look: impl FnOnce(&View) -> R) -> R;
    /// Notified whenever the view or a leader changes.
    fn view_changed(&self) -> &Notify;
    /// This broker's leaderships that are not reported to other brokers yet, the newest of each partition.
    fn unreported(&self) -> &RefCell<BTreeMap<GroupId, Led>>;
    /// Whether reads may be answered from the view now.
    fn has_read_lease(&self) -> bool;
    /// The acknowledgement level for metadata writes that do not give one.
    fn metadata_acks(&self) -> Acks;
    /// The largest batch that this core's ring and the frames between brokers can take.
    fn largest_taken(&self) -> u64;
    /// Takes the log that the store recovered of a group, unless it was taken before.
    fn take_recovered(&self, group: GroupId) -> Option<RecoveredGroup>;
    /// Applies published deltas to this core's view, and to its partitions.
    fn show(self: &Rc<Self>, deltas: &[(RaftIndex, Vec<Delta>)]);
    /// Set once the metadata is to change no more.
    fn metadata_ended(&self) -> &Flag;
}

/// Questions to other cores.
pub trait Asks {
    /// To core 0: submits commands.
    fn ask_submit(
        self: &Rc<Self>,
        commands: Vec<Command>,
        how: Submitting,
    ) -> impl Future<Output = Result<Vec<CommandResult>, SubmitError>>;
    /// To core 0: waits until this broker's views show everything that was acknowledged.
    fn ask_linearize(self: &Rc<Self>) -> impl Future<Output = Result<(), SubmitError>>;
    /// To core 0: the metadata group as its leader sees it.
    fn ask_quorum(self: &Rc<Self>) -> impl Future<Output = Result<Quorum, SubmitError>>;
    /// To the owner of the topic's slice: the topic, committed or not.
    fn ask_topic(self: &Rc<Self>, owner: CoreId, name: String) -> impl Future<Output = Option<Arc<Topic>>>;
    /// The watermarks of the partitions that a core leads.
    fn ask_watermarks(self: &Rc<Self>, of: CoreId) -> impl Future<Output = Vec<(GroupId, Mark)>>;
    /// The largest batch that a core's ring takes.
    fn ask_largest_taken(self: &Rc<Self>, of: CoreId) -> impl Future<Output = u64>;
}

/// Core 0 tells the cores. Each core hears it in the order of these calls.
pub trait Tells {
    /// A core's slices and the whole view, as of an index.
    fn tell_install(self: &Rc<Self>, to: CoreId, index: RaftIndex, slices: Vec<Slice>, image: Arc<[Delta]>);
    /// Work on a core's slices, in log order.
    fn tell_work(self: &Rc<Self>, to: CoreId, work: Vec<SliceWork>);
    /// A core is to copy its slices as the work before has left them.
    fn tell_cut(self: &Rc<Self>, to: CoreId, token: usize);
    /// Complete entries for a core's view, in log order, up to an index.
    fn tell_show(self: &Rc<Self>, to: CoreId, deltas: Arc<[(RaftIndex, Vec<Delta>)]>, last: RaftIndex);
    /// A core is to report that its view shows an index.
    fn tell_report_shown(self: &Rc<Self>, to: CoreId, index: RaftIndex);
    /// Until when reads may be answered from the view, and the broker that leads the metadata.
    fn tell_lease(self: &Rc<Self>, to: CoreId, until: Duration, controller: Option<i32>);
    /// The brokers that this one cannot reach.
    fn tell_away(self: &Rc<Self>, to: CoreId, nodes: Arc<[i32]>);
    /// The views show everything that was committed when the broker started.
    fn tell_complete(self: &Rc<Self>, to: CoreId);
}
