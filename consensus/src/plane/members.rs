//! Membership of the metadata group, and liveness of brokers. The leader adapts the group's members to the
//! registered brokers, one change at a time. It also fences silent brokers.
//!
//! - A broker that registers becomes a learner.
//! - A learner that has caught up becomes a voter if there are fewer voters than wanted. It also becomes a voter if it
//!   replaces its own node's former disk.
//! - A peer is removed when its broker is unregistered, or when its node's new disk has taken its place.
//! - A broker is unregistered, or replaced by another disk with its node id, only while it is fenced. Its disk can
//!   never join again.
//! - The leader never removes a dead voter on its own. An operator has to.

use super::{Acks, Plane, Submission, Until, node_of};
use crate::{
    group::{Group, Member, PeerProgress},
    metadata::{Broker, BrokerStatus, Command, Delta, HostPort, Placed, Rejection, Request, Topic},
};
use ahash::AHashMap;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use types::RaftIndex;
use uuid::Uuid;

/// A learner counts as caught up when it lacks at most this many entries.
const CAUGHT_UP_WITHIN: u64 = 64;
/// The time limit for a write of the leader's own.
const OWN_WRITE_MAX: Duration = Duration::from_secs(5);

/// The published state of the cluster.
#[derive(Default)]
pub(super) struct Cluster {
    brokers: BTreeMap<i32, Arc<Broker>>,
    /// Removed peers, which must not come back.
    gone: Arc<BTreeSet<u64>>,
    /// The wanted number of voters, if the setting exists.
    pub(super) voters_wanted: Option<usize>,
    /// Topics by id, to update `placed` when one changes.
    topics: AHashMap<Uuid, Arc<Topic>>,
    placed: Placed,
}

impl Cluster {
    pub(super) fn follow(&mut self, delta: &Delta) {
        match delta {
            Delta::Broker(broker) => {
                self.brokers.insert(broker.node, broker.clone());
            }
            Delta::BrokerGone(node) => {
                self.brokers.remove(node);
            }
            Delta::Topic(topic) => {
                let before = self.topics.insert(topic.id, topic.clone());
                self.placed.replace(before.as_deref(), Some(topic));
            }
            Delta::TopicDeleted(topic) => {
                let before = self.topics.remove(&topic.id);
                self.placed.replace(before.as_deref(), None);
            }
            Delta::GonePeers(peers) => self.gone = peers.clone(),
            Delta::ClusterConfig(config) => {
                self.voters_wanted = config.get(None, VOTERS_SETTING).and_then(|value| value.parse().ok());
            }
            Delta::Leaders(_) | Delta::Watermarks(_) | Delta::Features(_) => {}
        }
    }

    pub(super) fn brokers(&self) -> impl Iterator<Item = &Arc<Broker>> {
        self.brokers.values()
    }

    /// The broker whose ring takes the smallest entries, and their size. Leaves out brokers that do not report it.
    pub(super) fn least_ring(&self) -> Option<(i32, u64)> {
        let reported = self.brokers.values().filter(|broker| broker.largest_entry > 0);
        reported.map(|broker| (broker.node, broker.largest_entry)).min_by_key(|(_, takes)| *takes)
    }

    /// The number of partitions and replicas in the published state.
    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }

    /// Whether this process of a broker is the registered one.
    pub(super) fn is_present(&self, node: i32, incarnation: u64) -> bool {
        self.brokers.get(&node).is_some_and(|broker| broker.incarnation == incarnation)
    }

    /// The next membership change; empty if none is due.
    pub(super) fn next_change(&self, group: &Group, voters_wanted: usize) -> Vec<Member> {
        let (voters, learners) = (group.voters(), group.learners());
        let is_member = |peer: &u64| voters.contains(peer) || learners.contains(peer);
        let registered = |peer: u64| self.brokers.get(&node_of(peer)).is_some_and(|broker| broker.peer == peer);
        // First remove the peers that are gone, but never this leader or the last voter.
        let gone: Vec<u64> = voters.iter().chain(&learners).copied().filter(|peer| self.gone.contains(peer)).collect();
        let replaced = |peer: u64| self.brokers.get(&node_of(peer)).is_some_and(|broker| broker.peer != peer);
        for peer in gone {
            // The peer of a replaced disk stays a voter, although it never votes, until the new disk's peer can
            // take its place.
            let keeps_place = replaced(peer) && voters.contains(&peer);
            if !keeps_place && (voters != [peer]) && peer != group.peer() {
                return vec![Member::Removed(peer)];
            }
        }
        let new = self.brokers.values().map(|broker| broker.peer).find(|peer| !is_member(peer));
        if let Some(peer) = new {
            return vec![Member::Learner(peer)];
        }
        let progress = group.progress();
        let ready = |peer: &&PeerProgress| {
            let caught_up = peer.matched > RaftIndex::ZERO && peer.matched.plus(CAUGHT_UP_WITHIN) >= group.last_index();
            !peer.voter && peer.active && registered(peer.peer) && caught_up
        };
        for learner in progress.iter().filter(ready) {
            let former = voters.iter().copied().find(|peer| node_of(*peer) == node_of(learner.peer));
            match former {
                Some(former) => return vec![Member::Voter(learner.peer), Member::Removed(former)],
                None if voters.len() < voters_wanted => return vec![Member::Voter(learner.peer)],
                None => {}
            }
        }
        Vec::new()
    }
}

/// The broker that a request makes alive, and its incarnation.
pub(super) fn returning(request: &Request) -> Option<(i32, u64)> {
    match &request.command {
        Command::RegisterBroker { broker } => Some((broker.node, broker.incarnation)),
        Command::UpdateBrokerStatus { node, incarnation, status: BrokerStatus::Alive } => Some((*node, *incarnation)),
        _ => None,
    }
}

/// The setting for the number of voters.
const VOTERS_SETTING: &str = "metadata.voters";

impl Plane {
    /// Rejects a write that takes the place of a broker that is alive, or that the log before the write makes alive:
    /// one that unregisters it, and one that registers another disk with its node id. `filled`: the requests before it
    /// in its entry.
    ///
    /// The slices don't check, because those of older versions would not either. Older versions know the rejections.
    pub(super) fn check_living(
        &self,
        now: Duration,
        requests: &[Request],
        filled: &[Request],
    ) -> Result<(), Rejection> {
        requests.iter().try_for_each(|request| match &request.command {
            Command::UnregisterBroker { node } => self.check_unregistered(*node, filled),
            Command::RegisterBroker { broker } => self.check_node_id(now, broker, filled),
            _ => Ok(()),
        })
    }

    /// The broker that a client asks checks too, but the write may have waited since, and the broker has returned.
    fn check_unregistered(&self, node: i32, filled: &[Request]) -> Result<(), Rejection> {
        let known = self.cluster.brokers.get(&node).filter(|broker| broker.status == BrokerStatus::Alive);
        let alive = known.map(|broker| (node, broker.incarnation)).into_iter();
        match alive.chain(self.returning(filled)).find(|(alive, _)| *alive == node) {
            Some((node, incarnation)) => Err(Rejection::StaleBroker { node, incarnation }),
            None => Ok(()),
        }
    }

    /// A broker with a new disk gets its node id once the session of the old disk's process has ended.
    fn check_node_id(&self, now: Duration, broker: &Broker, filled: &[Request]) -> Result<(), Rejection> {
        let Broker { node, peer, incarnation, .. } = *broker;
        let holder = self.cluster.brokers.get(&node);
        // The slice rejects a disk that is gone for good.
        if holder.is_some_and(|holder| holder.peer == peer) || self.cluster.gone.contains(&peer) {
            return Ok(());
        }
        if let Some(holder) = holder.filter(|holder| self.is_alive(now, holder)) {
            let HostPort { host, port } = &holder.kafka;
            let (incarnation, address) = (holder.incarnation, format!("{host}:{port}").into());
            return Err(Rejection::NodeIdTaken { node, incarnation, address });
        }
        // The log has not been published that far.
        match self.returning(filled).find(|(other, of)| *other == node && *of != incarnation) {
            Some((node, incarnation)) => Err(Rejection::StaleBroker { node, incarnation }),
            None => Ok(()),
        }
    }

    /// Whether a broker is alive, or has returned and is about to be.
    fn is_alive(&self, now: Duration, broker: &Broker) -> bool {
        let heard = self.lead.as_ref().and_then(|lead| lead.heard.get(&broker.node)?.at);
        broker.status == BrokerStatus::Alive || heard.is_some_and(|at| now < at + self.config.session_timeout)
    }

    /// The brokers that the unpublished log makes alive, and their incarnations.
    fn returning(&self, filled: &[Request]) -> impl Iterator<Item = (i32, u64)> {
        self.flow.returning().chain(filled.iter().filter_map(returning))
    }

    /// Proposes the next membership change and fences or unfences brokers, if this broker leads.
    pub(super) fn tick_members(&mut self, group: &mut Group, now: Duration) {
        let Some(lead) = self.lead.as_mut().filter(|lead| lead.established && !group.is_handing_over()) else { return };
        let wanted = self.cluster.voters_wanted.unwrap_or(self.config.voters_wanted);
        let change = self.cluster.next_change(group, wanted);
        if !change.is_empty() && group.propose_members(&change).is_ok() {
            tracing::info!(?change, "changing the members of the metadata group");
        }
        let session = self.config.session_timeout;
        let mut changed = Vec::new();
        for broker in self.cluster.brokers.values() {
            let own = broker.node == self.config.node;
            let heard = lead.heard.entry(broker.node).or_default();
            if heard.incarnation != broker.incarnation {
                (heard.incarnation, heard.at) = (broker.incarnation, None);
            }
            let at = match broker.status {
                // A new leader gives every broker that is alive one session to be heard in. So does any leader to a
                // broker that has just registered.
                BrokerStatus::Alive => Some(*heard.at.get_or_insert(now)),
                BrokerStatus::Fenced => heard.at,
            };
            let alive = own || at.is_some_and(|at| now < at + session);
            let status = if alive { BrokerStatus::Alive } else { BrokerStatus::Fenced };
            if status != broker.status && heard.telling.is_none_or(|until| until <= now) {
                heard.telling = Some(now + OWN_WRITE_MAX);
                let (node, incarnation) = (broker.node, broker.incarnation);
                changed.push(Command::UpdateBrokerStatus { node, incarnation, status });
            } else if status == broker.status {
                heard.telling = None;
            }
        }
        if !changed.is_empty() {
            let deadline = now + OWN_WRITE_MAX;
            let token =
                self.submit(Submission { commands: changed, acks: Acks::Quorum, until: Until::Acked, deadline });
            self.own_writes.insert(token);
        }
    }
}
