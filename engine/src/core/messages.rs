//! Everything that one core says to another.
//! Lives on: between the cores of a broker. [`crate::core::mesh`] carries it.
//!
//! A core asks with [`Core::ask`] and waits for the reply, or tells with [`Core::tell`]. The code behind `= |core|` is
//! what the other core does then. [`crate::core::mesh::list`] makes the types from these rows. The metric
//! `millrace_mesh_messages_total` counts each kind.
//!
//! Order: asks from one core to another, and the notices of the lane `Work`, arrive in the order of sending. So do the
//! notices of the lane `Control`. Messages in different lanes arrive in any order. If one message must follow another,
//! both belong in one lane.

use super::{
    Core,
    mesh::{
        HasMesh, Mesh, Message,
        list::{AskKind, asks, notices},
    },
    owner::{
        Found, Placed,
        appending::{self, Outcome},
        finding::{self, AskedEpoch, EpochEnd, Place, Where},
        reading::{self, Brought, Wish},
        waits::FetchId,
    },
};
use crate::{
    cluster::{
        meta::{self, CommandResult, Mark, SliceResults, SliceWork, SubmitError, Submitting},
        peers::Begun,
    },
    connection,
    coordinator::{Context, GroupRequest, GroupResponse, Wanted, host, receipts::ReceiptId},
    liveness,
    memory::Budget,
    partition::Led,
};
use consensus::{
    metadata::{Command, Delta, Slice, Topic},
    plane::Quorum,
    wire::{Beat, PeerMessage},
};
use net::{errors::ErrorCode, transport::listen::Accepted};
use std::{future::ready, net::IpAddr, rc::Rc, sync::Arc, time::Duration};
use types::{CoreId, GroupId, META_CORE, RaftIndex};

impl HasMesh for Core {
    type Ask = Ask;
    type Reply = AskReply;
    type Notice = Notice;

    fn mesh(&self) -> &Mesh<Self> {
        &self.mesh
    }

    fn ping() -> impl AskKind<Self, Reply = ()> {
        Ping {}
    }
}

/// A cache line: each queue has room for [`super::mesh::QUEUE_MESSAGES`] of these. Large ones are boxed.
const _: () = assert!(size_of::<Message<Core>>() <= 64);

asks! { Core:
    /// Appends batches to partitions. The reply has the place of each in its request.
    Append { items: Vec<appending::Item>, timeout: Duration } -> Vec<(usize, Outcome)> =
        |core| appending::append_all(core, items, timeout);

    /// Reads a fetch's partitions, and waits until the fetch has enough.
    Read as Box { items: Vec<reading::Item>, wish: Wish } -> Brought =
        |core| async move { reading::read_here(&core, items, wish).await };

    /// Finds offsets by timestamps.
    FindOffsets { questions: Placed<Where> } -> Found<Place> = |core| finding::find_all(core, questions);

    /// Finds the ends of leader epochs.
    FindEpochEnds { questions: Placed<AskedEpoch> } -> Found<EpochEnd> =
        |core| finding::find_epoch_ends(core, questions);

    /// On core 0: finds an offset in the metadata's log.
    FindInMetadata { timestamp: i64 } -> Result<Place, ErrorCode> =
        |core| ready(finding::find_in_metadata(&core, timestamp));

    /// A request that may change groups, for the coordinator of one offsets partition.
    ChangeGroups as Box { group: GroupId, context: Context, request: GroupRequest, receipt: Option<ReceiptId> }
        -> GroupResponse as Box = |core| host::ask(core, group, context, request, receipt);

    /// A request that only reads groups.
    ReadGroups as Box { group: GroupId, context: Context, request: GroupRequest, budget: Budget }
        -> GroupResponse as Box = |core| host::read(core, group, context, request, budget);

    /// Loads a coordinator. The reply says whether requests need not wait for it.
    LoadGroups { group: GroupId } -> bool = |core| host::load_soon(core, group);

    /// Estimates the bytes of answers about groups.
    WeighGroups { group: GroupId, wanted: Vec<Wanted> } -> usize = |core| host::weigh(core, group, wanted);

    /// Estimates the bytes of the list of groups.
    WeighGroupList { group: GroupId } -> usize = |core| host::weigh_list(core, group);

    /// On the core that counts an address: counts one more connection from it, unless the maximum is reached.
    EnterAddress { from: IpAddr, max: usize } -> bool =
        |core| ready(core.connections.addresses.enter(from, max));

    /// Closes the connection that has been silent for longest, to make room for another.
    CloseOldest {} -> () = |core| async move { core.connections.silent.close_oldest(&core).await };

    /// On core 0: submits commands to the metadata.
    Submit { commands: Vec<Command>, how: Submitting } -> Result<Vec<CommandResult>, SubmitError> =
        |core| meta::submit_here(core, commands, how);

    /// On core 0: waits until this broker's views show everything that was acknowledged.
    Linearize {} -> Result<(), SubmitError> = |core| meta::linearize_here(core);

    /// On core 0: the metadata group as its leader sees it.
    DescribeQuorum {} -> Result<Quorum, SubmitError> as Box = |core| meta::describe_quorum_here(core);

    /// On the owner of the topic's slice: the topic, committed or not.
    FindInSlice { name: String } -> Option<Arc<Topic>> = |core| ready(core.topic_in_slice(&name));

    /// The watermarks of the partitions that the core leads.
    Watermarks {} -> Vec<(GroupId, Mark)> = |core| meta::watermarks_here(core);

    /// The largest batch that the core's ring takes.
    LargestTaken {} -> u64 = |core| ready(core.largest_taken());

    /// Hands over the core's leaderships, before the broker stops.
    HandOver {} -> () = |core| liveness::hand_over(core);

    /// Replies at once, for tools that measure the mesh.
    Ping {} -> () = |_core| ready(());
}

notices! { Core:
    in Work {
        /// To the core that gathers a fetch: the bytes that another core has for it. It precedes that core's reply.
        FetchHas { id: FetchId, owner: CoreId, bytes: usize } = |core| core.fetches.has(core, id, owner, bytes);

        /// The fetch has enough. This follows its ask.
        CallBackFetch { id: FetchId } = |core| core.fetches.call_back(id);

        /// Messages of another broker for groups of the core.
        PeerMessages { from: i32, messages: Vec<PeerMessage> } = |core| core.receive_peer_messages(from, messages);

        /// To the core that counts an address: a connection from it is gone. This follows its `EnterAddress`.
        LeaveAddress { from: IpAddr } = |core| core.connections.addresses.leave(from);

        /// Another core, or this one, has drained. This follows the last of its asks.
        Drained = |core| core.count_drained();
    }
    in Control {
        /// A client's connection, for the core that is to serve it.
        Connection { accepted: Accepted } = |core| connection::take_over(core, accepted);

        /// Another broker's connection, for the core that is to serve it.
        PeerConnection { connection: Box<Begun> } = |core| core.take_over_peer(*connection);

        /// The beat of a broker that has another number of cores: it counts for all cores here.
        Beat { from: i32, beat: Beat } = |core| core.groups.note(core, from, beat);

        /// The preferred replica of a partition is to lead.
        Prefer { group: GroupId } = |core| if let Some(partition) = core.partition(group) {
            partition.prefer(core);
        };

        /// Partitions whose leaders have changed.
        Led { led: Arc<[Led]> } = |core| core.are_led(&led);

        /// To the core that passed a request on: another core has its own copy of it.
        Receipt { receipt: ReceiptId } = |core| core.receipts.receive(receipt);

        /// The core's slices and the whole view, as of an index.
        Install { index: RaftIndex, slices: Vec<Slice>, image: Arc<[Delta]> } = |core| core.install(index, slices, &image);

        /// Work on the core's slices, in log order.
        WorkOnSlices { work: Vec<SliceWork> } = |core| core.work_on_slices(work);

        /// To core 0: the results of that work.
        SlicesDid { results: Vec<SliceResults> } = |core| core.meta().slices_did(core, results);

        /// Copies the core's slices as the work before has left them.
        CutSlices { token: usize } =
            |core| core.tell(META_CORE, Notice::SlicesCut { token, slices: core.cut_slices() });

        /// To core 0: the copy.
        SlicesCut { token: usize, slices: Vec<Slice> } = |core| core.meta().slices_cut(token, slices);

        /// Complete entries for the core's view, in log order, up to an index.
        Show { deltas: Arc<[(RaftIndex, Vec<Delta>)]>, last: RaftIndex } = |core| {
            core.show(&deltas);
            core.tell(META_CORE, Notice::Shown { by: core.id(), index: last });
        };

        /// Reports that the core's view shows an index. This follows the message that brings the view there.
        ReportShown { index: RaftIndex } = |core| core.tell(META_CORE, Notice::Shown { by: core.id(), index });

        /// To core 0: a core's view shows everything up to an index.
        Shown { by: CoreId, index: RaftIndex } = |core| core.meta().is_shown(core, by, index);

        /// Until when reads may be answered from the view, and the broker that leads the metadata.
        Lease { until: Duration, controller: Option<i32> } = |core| core.set_lease(until, controller);

        /// The brokers that this one cannot reach.
        Away { nodes: Arc<[i32]> } = |core| core.set_away(nodes);

        /// The views show everything that was committed when the broker started.
        MetadataComplete = |core| core.lifecycle.metadata_complete.set();

        /// The broker stops: the core is to take no more connections and requests.
        BeginStop = |core| core.begin_stop();
    }
}

/// Owners of partitions and gathering cores tell each other about fetches.
impl Core {
    /// Tells the core that gathers a fetch how many bytes this one has for it.
    pub fn tell_fetch_has(self: &Rc<Self>, to: CoreId, id: FetchId, bytes: usize) {
        self.tell(to, Notice::FetchHas { id, owner: self.id(), bytes });
    }

    /// Tells an owner that the fetch has enough.
    pub fn tell_fetch_is_over(self: &Rc<Self>, to: CoreId, id: FetchId) {
        self.tell(to, Notice::CallBackFetch { id });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::mesh::{
        Lane,
        list::{AskList, NoticeList},
    };
    use std::collections::BTreeSet;

    #[test]
    fn kinds_have_names_of_their_own() {
        let names: Vec<_> = [Ask::NAMES, Notice::NAMES, &["Reply", "Cancel"]].concat();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        let (ping, drained) = (Ask::Ping(Ping {}), Notice::Drained);
        assert_eq!((Ask::NAMES[ping.kind()], Notice::NAMES[drained.kind()]), ("Ping", "Drained"));
    }

    #[test]
    fn messages_that_depend_on_their_order_share_a_lane() {
        let (id, from) = ((CoreId(0), 1), IpAddr::from([10, 0, 0, 1]));
        // These follow asks.
        for notice in [Notice::CallBackFetch { id }, Notice::LeaveAddress { from }, Notice::Drained] {
            assert_eq!(notice.lane(), Lane::Work);
        }
        // These change slices and views in log order, and tell how far that is.
        for notice in [
            Notice::Install { index: RaftIndex::new(1), slices: Vec::new(), image: Arc::from([]) },
            Notice::WorkOnSlices { work: Vec::new() },
            Notice::CutSlices { token: 0 },
            Notice::Show { deltas: Arc::from([]), last: RaftIndex::new(1) },
            Notice::ReportShown { index: RaftIndex::new(1) },
        ] {
            assert_eq!(notice.lane(), Lane::Control);
        }
    }
}
