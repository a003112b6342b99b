//! Starts the metadata: from what the store recovered to a broker that knows everything committed.

use super::{Meta, Submitting, follow_peers, host::Host, largest, reports, snapshot_when_wanted, submit_with, tick};
use crate::{
    cluster::{
        internal_topics,
        node_id::{Claim, Members, NodeId},
    },
    memory::Lasting,
    partition::restored,
    start_error::StartError,
};
use consensus::{
    group::{Group, GroupConfig, Restored, SnapshotMark},
    metadata::{self, Broker, BrokerStatus, Command, Delta, HostPort, Rejection, Slice},
    plane::{Plane, PlaneConfig},
};
use runtime::{
    clock,
    sync::{Either, race},
};
use std::{
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use types::{CoreId, META_GROUP, Position, RaftIndex, core_of_slice};
use wal::{
    log::LogOptions,
    store::{RecoveredGroup, StoreDirs, snapshot},
};

/// Bytes of the log applied at a time, but at least one entry: some ten to twenty commands.
const COMMITTED_BYTES_A_TURN: u64 = 2 << 10;
/// Ticks without a leader before a broker stands for election. Each broker waits up to as many again: see [`jitter`].
const ELECTION_TICKS: usize = 8;

/// How often a broker that cannot join logs the reason.
const JOIN_TOLD_EVERY: Duration = Duration::from_secs(5);
/// Pause before a broker registers again because a leader of an earlier version stored only part of its registration.
const REGISTER_AGAIN: Duration = Duration::from_secs(5);
/// Pause between attempts to join.
const JOIN_RETRY: Duration = Duration::from_millis(200);

/// Runs on core 0 before the broker serves anybody. Hands the newest snapshot's slices to their owners and the image
/// of all topics to every core. Then joins the cluster; `accept` takes in connections from other brokers, and `members`
/// can tell who has this broker's node id. Returns once every core shows everything committed until now, or once the
/// broker is asked to stop.
pub async fn start(
    core: &Rc<impl Host>,
    accept: impl Future<Output = ()> + 'static,
    members: &Members,
) -> Result<(), StartError> {
    let recovered = core.take_recovered(META_GROUP);
    let (slices, applied) = match &recovered {
        Some(recovered) if !recovered.app.blob.is_empty() => {
            let restored = metadata::restore(&recovered.app.blob);
            let (index, slices) = restored.map_err(|why| StartError::snapshot(snapshot_path(core, recovered), why))?;
            assert_eq!(index, recovered.app.index, "a snapshot knows its index");
            (slices, index)
        }
        _ => (Slice::all(), RaftIndex::ZERO),
    };
    if recovered.is_none() {
        core.store().create_group(META_GROUP, LogOptions::default());
    }
    let found = recovered.as_ref().map_or_else(Restored::default, restored);
    let raft = Group::new(group_config(core), found)?;
    let group_high = slices.iter().map(Slice::group_high).max().unwrap_or(META_GROUP.0);
    let image: Arc<[Delta]> = slices.iter().flat_map(Slice::image).collect();
    let mut plane = Plane::new(plane_config(core), applied, group_high);
    plane.begin_from(&image[..]);
    let meta = Rc::new(Meta::new(raft, plane, applied, core.cores()));
    core.hold_meta(meta.clone());
    if let Some(recovered) = recovered.filter(|recovered| !recovered.app.blob.is_empty())
        && let Some(term) = meta.with(|_, raft| raft.term_at(applied))
    {
        let conf_state = recovered.app.conf_state.clone();
        meta.has_snapshot(SnapshotMark { at: Position { index: applied, term }, conf_state }, recovered.app.blob);
    }
    install(core, applied, slices, &image);
    let alone = meta.with(|_, raft| raft.voters() == [raft.peer()]);
    if alone {
        // A single voter need not ask or wait for others.
        meta.replica.with(Group::campaign);
    }
    core.ready_loop().wake(meta.clone());
    runtime::spawn(accept);
    meta.follow_contacts(core);
    runtime::spawn(tick(core.clone()));
    runtime::spawn(follow_peers(core.clone()));
    // Joining takes room in the ring, and perhaps only a snapshot can make it.
    runtime::spawn(snapshot_when_wanted(core.clone()));
    match race(join(core, members), core.stopping().wait()).await {
        Either::First(joined) => joined?,
        // The metadata is not complete, so no core may conclude from it that something was deleted.
        Either::Second(()) => return Ok(()),
    }
    runtime::spawn(reports::leaders(core.clone()));
    runtime::spawn(reports::watermarks(core.clone()));
    for to in (0..core.cores()).map(CoreId) {
        core.tell_complete(to);
    }
    Ok(())
}

fn snapshot_path(core: &Rc<impl Host>, found: &RecoveredGroup) -> PathBuf {
    let dirs = StoreDirs::new(&core.config().data_dir, 0, 0);
    snapshot::path(&dirs, META_GROUP, found.flushed_index, found.flushed_term)
}

fn group_config(core: &Rc<impl Host>) -> GroupConfig {
    GroupConfig {
        voters: core.identity().founding.clone(),
        election_ticks: ELECTION_TICKS,
        election_jitter: jitter(core.node()),
        // Keeps the turns of the ready loop short.
        committed_bytes_max: COMMITTED_BYTES_A_TURN,
        holds: consensus::plane::check_entry,
        ..GroupConfig::single(META_GROUP, core.identity().peer)
    }
}

fn plane_config(core: &Rc<impl Host>) -> PlaneConfig {
    PlaneConfig {
        voters_wanted: core.config().metadata_voters.unwrap_or(core.identity().founding.len()),
        session_timeout: core.config().broker_session_timeout(),
        always_made: |name| internal_topics::find(name).is_some(),
        largest_entry: core.largest_taken(),
        ..PlaneConfig::new(core.node(), core.identity().incarnation)
    }
}

/// Hands every core its slices and the whole view.
pub(super) fn install(core: &Rc<impl Host>, index: RaftIndex, slices: Vec<Slice>, image: &Arc<[Delta]>) {
    let mut by_owner: Vec<Vec<Slice>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for slice in slices {
        by_owner[core_of_slice(slice.id(), core.cores()).0].push(slice);
    }
    for (owner, slices) in by_owner.into_iter().enumerate() {
        core.tell_install(CoreId(owner), index, slices, image.clone());
    }
}

/// Ticks that this broker waits beyond the minimum election timeout. Brokers with consecutive ids wait for different
/// times, so that one has won before the next stands for election.
fn jitter(node: i32) -> usize {
    2 * node.unsigned_abs() as usize % (ELECTION_TICKS + 1)
}

/// Registers this broker with the cluster. When this returns, this broker's view shows the registration and
/// everything before it. `Err`: the cluster rejects this broker for good.
async fn join(core: &Rc<impl Host>, members: &Members) -> Result<(), StartError> {
    let mut told = None;
    let mut node_id = NodeId::new(core.node(), core.identity().peer, core.config().broker_session_timeout());
    let takes = largest::taken_here(core).await;
    loop {
        // The limit never falls, so this broker's own view suffices, also while the cluster has no quorum.
        if let Some(largest) = core.view(|view| view.cluster_config().largest_entry()).filter(|it| *it > takes) {
            let (rings, cores) = (core.config().wal_ring_bytes, core.cores());
            return Err(StartError::SmallRings { rings, cores, takes, largest });
        }
        let failure = match submit_with(core, vec![registration(core, takes)], Submitting::default()).await {
            Ok(results) => match results.into_iter().next().expect("a command has a result") {
                Ok(_) => break,
                Err(Rejection::LargestEntry { largest, .. }) => {
                    let (rings, cores) = (core.config().wal_ring_bytes, core.cores());
                    return Err(StartError::SmallRings { rings, cores, takes, largest });
                }
                Err(rejection) => rejection.to_string(),
            },
            Err(error) => error.to_string(),
        };
        // If another broker has the node id, the answer went to that one.
        let failure = match node_id.claim(Instant::now(), members.holders().await.into_iter()) {
            Claim::Taken(rejection) => return Err(StartError::NodeIdTaken(rejection)),
            Claim::Wait(why) if node_id.is_taken() => why.to_string(),
            Claim::Wait(_) | Claim::Free => failure,
        };
        let now = clock::now();
        if told.is_none_or(|told| now >= told + JOIN_TOLD_EVERY) {
            told = Some(now);
            tracing::warn!(why = failure, "cannot join the cluster yet; retrying");
        }
        runtime::sleep(JOIN_RETRY).await;
    }
    tell_if_over(core);
    if !is_registered(core, takes) {
        runtime::spawn(register_again(core.clone(), takes));
    }
    let wanted = core.config().message_max_bytes as u64;
    match largest::raise(core, wanted.max(largest::allowed_by_topics(core))).await {
        Ok(largest) if largest < wanted => {
            let why = largest::why_largest(largest as usize);
            tracing::warn!(largest, "message.max.bytes = {wanted} is more than the cluster takes: {why}");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "cannot raise the largest batch to message.max.bytes = {wanted}"),
    }
    Ok(())
}

/// Whether the metadata has this broker's memory and ring limits. A leader of an earlier version leaves them out.
fn is_registered(core: &Rc<impl Host>, largest_entry: u64) -> bool {
    let Command::RegisterBroker { broker } = registration(core, largest_entry) else { unreachable!("it registers") };
    core.view(|view| view.broker(core.node()).is_some_and(|known| Broker { status: known.status, ..broker } == **known))
}

/// Registers again until the metadata has the whole registration; at the latest when all brokers have been upgraded.
async fn register_again(core: Rc<impl Host>, largest_entry: u64) {
    while let Either::First(()) = race(runtime::sleep(REGISTER_AGAIN), core.stopping().wait()).await {
        if is_registered(&core, largest_entry) {
            return;
        }
        if let Err(error) = submit_with(&core, vec![registration(&core, largest_entry)], Submitting::default()).await {
            tracing::debug!(%error, "cannot register this broker's limits yet; retrying");
        }
    }
}

fn registration(core: &Rc<impl Host>, largest_entry: u64) -> Command {
    let (host, port) = core.advertised();
    let peer = core.identity().peer_addr.clone();
    Command::RegisterBroker {
        broker: Broker {
            node: core.node(),
            peer: core.identity().peer,
            incarnation: core.identity().incarnation,
            kafka: HostPort { host: host.to_owned(), port },
            peer_addr: HostPort { host: peer.host, port: peer.port },
            cores: core.cores() as u16,
            rack: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            status: BrokerStatus::Alive,
            largest_entry,
            replicas_max: core.shares().replicas_max,
            partitions_max: core.shares().partitions_max,
        },
    }
}

/// Warns of more partitions than the memory budget allows, because it was lowered or other brokers created them. The
/// broker still serves all.
fn tell_if_over(core: &Rc<impl Host>) {
    let (replicas, partitions) = core.view(|view| (view.placed().replicas(core.node()), view.placed().partitions()));
    let Lasting { replicas_max, partitions_max, .. } = *core.shares();
    if replicas > replicas_max {
        tracing::warn!(
            "this broker holds {replicas} replicas of partitions, but memory.budget.bytes is enough for \
             {replicas_max}: the broker serves all of them, may use more memory, and refuses new ones; raise \
             memory.budget.bytes, add brokers, or delete topics"
        );
    }
    if partitions > partitions_max {
        tracing::warn!(
            "the cluster has {partitions} partitions, but this broker's memory.budget.bytes is enough for the \
             metadata of {partitions_max}: the broker may use more memory, and the cluster refuses new partitions; \
             raise memory.budget.bytes, or delete topics"
        );
    }
}
