//! What only the leader does: it makes entries of the writes that reach it, and answers for them: by the commit, or on the fast
//! path while its lease holds.

use super::{
    Accepted, Acks, Ask, Plane, PlaneMessage, Progress, Quorum, Refused, Token, Written, flow::FlowEntry,
    leases::LeaderLease, node_of,
};
use crate::{
    group::{Group, PeerProgress, Position, ProposeError},
    metadata::{self, Broker, Command, Request},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// One term of this broker's lead.
pub(super) struct Lead {
    pub(super) term: u64,
    /// Its first entry is applied, and so all that was committed before.
    pub(super) established: bool,
    pub(super) lease: LeaderLease,
    /// Writes of others that came in and are not in the log yet.
    asked: VecDeque<Asked>,
    /// All writes of others that have no answer.
    open: BTreeSet<(i32, Ask)>,
    /// It was about to go: in this term it never holds the lease again, since a candidate that it named may still be on its way.
    pub(super) handed_over: bool,
    /// When each broker was last heard of, and last had everything.
    pub(super) heard: BTreeMap<i32, Heard>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    pub(super) at: Option<Duration>,
    pub(super) caught_up: Option<Duration>,
    /// A change of its state is being written, until then at most.
    pub(super) telling: Option<Duration>,
}

struct Asked {
    from: i32,
    ask: Ask,
    acks: Acks,
    requests: Vec<Request>,
}

/// Who waits for some requests of an entry.
pub(super) struct Owner {
    who: Who,
    /// Its requests within the entry.
    pub(super) first: usize,
    pub(super) count: usize,
    /// How it asked to be acknowledged, and whether that must be by the commit all the same.
    acks: Acks,
    retried: bool,
    acked: bool,
}

#[derive(Clone, Copy)]
enum Who {
    Here(Token),
    There(i32, Ask),
}

impl Lead {
    pub(super) fn new(term: u64) -> Self {
        Self {
            term,
            established: false,
            lease: LeaderLease::default(),
            asked: VecDeque::new(),
            open: BTreeSet::new(),
            handed_over: false,
            heard: BTreeMap::new(),
        }
    }
}

/// About how many bytes a command takes in the log.
fn weight(command: &Command) -> usize {
    const BASE: usize = 192;
    const PARTITION: usize = 32;
    match command {
        Command::CreateTopic { replicas, configs, .. } => BASE + PARTITION * replicas.len() + 64 * configs.len(),
        Command::CreatePartitions { replicas, .. } => BASE + PARTITION * replicas.len(),
        Command::SetPartitionLeader { leaders, .. } => BASE + PARTITION * leaders.len(),
        Command::UpdateHighWatermark { watermarks, .. } => BASE + PARTITION * watermarks.len(),
        _ => BASE,
    }
}

/// An entry that is being filled.
#[derive(Default)]
struct Filling {
    requests: Vec<Request>,
    owners: Vec<Owner>,
    bytes: usize,
    /// Requests of the entries before it.
    proposed: usize,
}

impl Plane {
    /// A broker asks this one to write. What it has asked before and is under way is not begun again.
    pub(super) fn asked_to_write(&mut self, group: &Group, from: i32, ask: Ask, acks: Acks, requests: Vec<Request>) {
        let may_lead = self.is_established() && !group.is_handing_over();
        // A request without its number could be applied twice, and one in another broker's name would be taken for that
        // one's own.
        if requests.iter().any(|request| !is_of(from, request)) {
            tracing::warn!(from, "writes that a broker has forwarded in another one's name were dropped");
            return;
        }
        if !may_lead || requests.is_empty() || requests.iter().any(|request| request.origin.is_none()) {
            let leader = group.leader().filter(|leader| *leader != group.peer());
            let answer = Err(Refused::NotLeader { leader });
            return self.send(from, PlaneMessage::Forwarded { ask, answer });
        }
        let lead = self.lead.as_mut().expect("it was just looked at");
        if lead.open.insert((from, ask)) {
            lead.asked.push_back(Asked { from, ask, acks, requests });
        }
    }

    /// Makes entries of the writes that have come in: those of this broker, then those of others. Others wait while what was
    /// proposed is much already.
    pub(super) fn propose_all(&mut self, group: &mut Group, now: Duration) {
        if group.is_handing_over() {
            return;
        }
        let (mut filling, much) = (Filling::default(), self.config.turn_requests_max);
        // What found no room has not been proposed: the others are put off too.
        while filling.proposed < much && self.take_next(group, now, &mut filling) {
            if filling.requests.len() >= much {
                self.propose_filled(group, now, &mut filling);
            }
        }
        self.propose_filled(group, now, &mut filling);
    }

    /// Adds the next write to `filling`, if there is one.
    fn take_next(&mut self, group: &mut Group, now: Duration, filling: &mut Filling) -> bool {
        if let Some(token) = self.next_to_try() {
            let (requests, acks, retried) = self.sent(token);
            self.is_proposed(token);
            self.fill(group, now, filling, Who::Here(token), acks, retried, requests);
            return true;
        }
        let Some(asked) = self.lead.as_mut().and_then(|lead| lead.asked.pop_front()) else { return false };
        let Asked { from, ask, acks, requests } = asked;
        self.fill(group, now, filling, Who::There(from, ask), acks, false, requests);
        true
    }

    /// Adds a write; what it does not fit behind is proposed first.
    #[expect(clippy::too_many_arguments, reason = "one write's parts, taken apart by its two callers")]
    fn fill(
        &mut self,
        group: &mut Group,
        now: Duration,
        filling: &mut Filling,
        who: Who,
        acks: Acks,
        retried: bool,
        requests: Vec<Request>,
    ) {
        let bytes: usize = requests.iter().map(|request| weight(&request.command)).sum();
        let too_many = filling.requests.len() + requests.len() > self.config.entry_requests_max;
        if !filling.requests.is_empty() && (too_many || filling.bytes + bytes > self.config.entry_bytes_max) {
            self.propose_filled(group, now, filling);
        }
        let (first, count) = (filling.requests.len(), requests.len());
        let acks = if requests.iter().any(|request| request.command.is_quorum_only()) { Acks::Quorum } else { acks };
        filling.owners.push(Owner { who, first, count, acks, retried, acked: false });
        filling.requests.extend(requests);
        filling.bytes += bytes;
    }

    fn propose_filled(&mut self, group: &mut Group, now: Duration, filling: &mut Filling) {
        let Filling { mut requests, owners, proposed, .. } = std::mem::take(filling);
        filling.proposed = proposed;
        if requests.is_empty() {
            return;
        }
        self.refuse_without_room(&mut requests);
        let mut next_group = self.next_group;
        for (groups, first) in requests.iter_mut().filter_map(|request| request.command.new_groups()) {
            *first = next_group;
            next_group += groups as u64;
        }
        match group.propose(metadata::encode_requests(&requests)) {
            Ok(Position { index, term }) => {
                self.next_group = next_group;
                filling.proposed += requests.len();
                self.flow.speculate(index, term, requests, owners, &mut self.out.slices);
            }
            Err(error) => owners.into_iter().for_each(|owner| self.not_proposed(group, now, owner, error)),
        }
    }

    fn not_proposed(&mut self, group: &Group, now: Duration, owner: Owner, error: ProposeError) {
        match owner.who {
            Who::Here(token) => self.put_off(token, now),
            Who::There(from, ask) => {
                let refused = match error {
                    ProposeError::Full => Refused::Busy,
                    ProposeError::NotLeader => Refused::NotLeader { leader: group.leader() },
                };
                self.answer(from, ask, Err(refused));
            }
        }
    }

    fn answer(&mut self, to: i32, ask: Ask, answer: Result<Accepted, Refused>) {
        if let Some(lead) = &mut self.lead {
            lead.open.remove(&(to, ask));
        }
        self.send(to, PlaneMessage::Forwarded { ask, answer });
    }

    /// Acknowledges what may leave on the fast path: durable here, its results known, and the lease holds now.
    pub(super) fn ack_fast(&mut self, group: &Group, now: Duration) {
        if !self.holds_lease(group, now) {
            return;
        }
        let durable = group.stable();
        let mut acked = Vec::new();
        for entry in self.flow.uncommitted().take_while(|entry| entry.index <= durable) {
            if entry.is_complete() && entry.owners.iter().any(Owner::may_be_fast) {
                acked.extend(accept(entry, Owner::may_be_fast));
            }
        }
        for (owner, accepted) in acked {
            self.stats.wal_writes += accepted.results.len() as u64;
            match owner {
                Who::Here(token) => self.proposed_is_acked(token, written(accepted)),
                Who::There(from, ask) => self.answer(from, ask, Ok(accepted)),
            }
        }
    }

    /// Publishes what is committed and complete, in log order, and acknowledges what was not yet.
    pub(super) fn publish(&mut self, group: &Group, now: Duration) {
        let lease = self.holds_lease(group, now);
        while let Some(mut entry) = self.flow.publish() {
            let deltas = entry.deltas();
            deltas.iter().for_each(|delta| self.cluster.follow(delta));
            self.out.publish.push((entry.index, deltas));
            for owner in entry.owners.iter().filter(|owner| !owner.acked) {
                let count = owner.count as u64;
                match owner.acks {
                    Acks::Quorum => self.stats.quorum_writes += count,
                    Acks::Leader if lease && !owner.retried => self.stats.wal_writes += count,
                    Acks::Leader => self.stats.fallbacks += count,
                }
            }
            // Who is here waits on until the entry is shown, whatever was acknowledged before.
            let mut owners = std::mem::take(&mut entry.owners);
            for owner in owners.iter_mut().filter(|owner| matches!(owner.who, Who::Here(_)) || !owner.acked) {
                let accepted = accepted(&entry, owner);
                match owner.who {
                    Who::Here(token) => self.proposed_is_published(token, written(accepted)),
                    Who::There(from, ask) => self.answer(from, ask, Ok(accepted)),
                }
            }
        }
    }

    /// This broker leads no more in the term in which it did: what is not committed is undone, and asked for again elsewhere.
    pub(super) fn resign(&mut self, leader: Option<u64>, now: Duration) {
        let Some(mut lead) = self.lead.take() else { return };
        for entry in self.flow.roll_back(&mut self.out.slices) {
            for owner in entry.owners {
                match owner.who {
                    Who::Here(token) => self.try_again(token, now),
                    Who::There(from, ask) if !owner.acked => {
                        let answer = Err(Refused::NotLeader { leader });
                        self.send(from, PlaneMessage::Forwarded { ask, answer });
                    }
                    Who::There(..) => {}
                }
            }
        }
        for Asked { from, ask, .. } in lead.asked.drain(..) {
            self.send(from, PlaneMessage::Forwarded { ask, answer: Err(Refused::NotLeader { leader }) });
        }
        self.refuse_reads(lead.lease, leader, now);
    }

    /// Hands the lead to the voter that has come furthest among those that are able to, if there is one; its lease is given up first, and
    /// for good. Returns whether somebody was asked.
    pub fn hand_over(&mut self, group: &mut Group, is_able: impl Fn(u64) -> bool) -> bool {
        let own = group.peer();
        let is_other = |peer: &PeerProgress| peer.voter && peer.active && peer.peer != own && is_able(peer.peer);
        let candidates = group.progress().into_iter().filter(is_other);
        let Some(best) = candidates.max_by_key(|peer| peer.matched) else { return false };
        let Some(lead) = &mut self.lead else { return false };
        #[cfg(any(test, feature = "sim"))]
        if self.bug == Some(crate::sim::Bug::LeaseKeptAtHandover) {
            group.hand_over(best.peer);
            return true;
        }
        lead.handed_over = true;
        lead.lease.give_up();
        group.hand_over(best.peer);
        true
    }

    /// The metadata group as its leader sees it.
    pub(super) fn quorum(&self, group: &Group, now: Duration) -> Quorum {
        let heard = self.lead.as_ref().map(|lead| &lead.heard);
        let ago = |at: Option<Duration>| at.map(|at| now.saturating_sub(at).as_millis() as u64);
        let mut quorum =
            Quorum { leader: group.peer(), term: group.term(), commit: group.commit(), ..Quorum::default() };
        for peer in group.progress() {
            let own = peer.peer == group.peer();
            let known = heard.and_then(|heard| heard.get(&node_of(peer.peer))).copied().unwrap_or_default();
            let progress = Progress {
                peer: peer.peer,
                matched: if own { group.last_index() } else { peer.matched },
                heard_ms_ago: if own { Some(0) } else { ago(known.at) },
                caught_up_ms_ago: if own { Some(0) } else { ago(known.caught_up) },
            };
            if peer.voter { &mut quorum.voters } else { &mut quorum.learners }.push(progress);
        }
        quorum.voters.sort_unstable_by_key(|peer| peer.peer);
        quorum.learners.sort_unstable_by_key(|peer| peer.peer);
        quorum
    }
}

/// Whether a broker forwards this for itself.
fn is_of(from: i32, request: &Request) -> bool {
    let is_own_broker = |broker: &Broker| broker.node == from && node_of(broker.peer) == from;
    let is_own = match &request.command {
        Command::RegisterBroker { broker } => is_own_broker(broker),
        _ => true,
    };
    is_own && request.origin.is_none_or(|origin| origin.node == from)
}

impl Owner {
    fn may_be_fast(&self) -> bool {
        self.acks == Acks::Leader && !self.retried && !self.acked
    }
}

/// Marks owners of a complete entry as acknowledged; the answers are theirs.
fn accept(entry: &mut FlowEntry, which: impl Fn(&Owner) -> bool) -> Vec<(Who, Accepted)> {
    let mut owners = std::mem::take(&mut entry.owners);
    let mut acked = Vec::new();
    for owner in owners.iter_mut().filter(|owner| which(owner)) {
        owner.acked = true;
        acked.push((owner.who, accepted(entry, owner)));
    }
    entry.owners = owners;
    acked
}

fn accepted(entry: &FlowEntry, owner: &Owner) -> Accepted {
    Accepted { term: entry.term, index: entry.index, results: entry.results(owner) }
}

fn written(accepted: Accepted) -> Written {
    let Accepted { term, index, results } = accepted;
    Written { term, index, results }
}
