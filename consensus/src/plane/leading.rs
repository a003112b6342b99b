//! The leader's work: it turns the writes that reach it into entries and answers them. The answer follows the
//! commit, or takes the fast path while the lease holds.

use super::{
    Accepted, Acks, Ask, ENTRY_BYTES, Plane, PlaneMessage, Progress, Quorum, Refused, Written,
    asked::{Asked, AskedQueue},
    flow::{FlowEntry, Owner, Who},
    leases::LeaderLease,
    node_of,
};
use crate::{
    group::{Group, PeerProgress, ProposeError},
    metadata::{self, Broker, Command, Request},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use types::{Position, Term, planted};

/// One term in which this broker leads.
pub(super) struct Lead {
    pub(super) term: Term,
    /// Its first entry is applied, and therefore everything that was committed before.
    pub(super) established: bool,
    pub(super) lease: LeaderLease,
    /// Writes forwarded by other brokers that are not in the log yet.
    pub(super) asked: AskedQueue,
    /// All forwarded writes that have no answer yet.
    open: BTreeSet<(i32, Ask)>,
    /// It has started to hand over. In this term it never holds the lease again, because the candidate it named may
    /// still stand for election.
    pub(super) handed_over: bool,
    /// When the leader last heard from each broker, and when each broker last had the whole log.
    pub(super) heard: BTreeMap<i32, Heard>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Heard {
    /// The process that was heard. Another one of the broker begins a session of its own.
    pub(super) incarnation: u64,
    pub(super) at: Option<Duration>,
    pub(super) caught_up: Option<Duration>,
    /// Its new state is being written; that is retried after this time.
    pub(super) telling: Option<Duration>,
}

impl Lead {
    pub(super) fn new(term: Term) -> Self {
        Self {
            term,
            established: false,
            lease: LeaderLease::default(),
            asked: AskedQueue::default(),
            open: BTreeSet::new(),
            handed_over: false,
            heard: BTreeMap::new(),
        }
    }
}

/// An entry that is being filled.
#[derive(Default)]
struct Filling {
    requests: Vec<Request>,
    owners: Vec<Owner>,
    /// At most as many bytes as this.
    bytes: usize,
}

impl Plane {
    /// Handles a forwarded write of another broker. A repetition of a pending one is ignored.
    pub(super) fn asked_to_write(
        &mut self,
        group: &Group,
        now: Duration,
        from: i32,
        ask: Ask,
        acks: Acks,
        requests: Vec<Request>,
    ) {
        let may_lead = self.is_established() && !group.is_handing_over();
        // A request in another broker's name would be taken for that broker's own. A request without its number
        // could be applied twice; it is refused below.
        if requests.iter().any(|request| !is_of(from, request)) {
            if self.may_tell(now) {
                tracing::warn!(from, "dropped writes that a broker forwarded in another broker's name");
            }
            return;
        }
        if !may_lead || requests.is_empty() || requests.iter().any(|request| request.origin.is_none()) {
            let leader = group.leader().filter(|leader| *leader != group.peer());
            let answer = Err(Refused::NotLeader { leader });
            return self.send(from, PlaneMessage::Forwarded { ask, answer });
        }
        let lead = self.lead.as_mut().expect("it was just looked at");
        if lead.open.contains(&(from, ask)) {
            return;
        }
        if lead.asked.is_full() {
            return self.send(from, PlaneMessage::Forwarded { ask, answer: Err(Refused::Busy) });
        }
        lead.open.insert((from, ask));
        lead.asked.push(Asked::new(from, ask, acks, requests, now));
    }

    /// Drops forwarded writes whose askers have given up. Without room in the log they would keep back those behind
    /// them for ever.
    pub(super) fn tick_asked(&mut self, now: Duration) {
        while let Some(Asked { from, ask, .. }) = self.lead.as_mut().and_then(|lead| lead.asked.pop_late(now)) {
            self.answer(from, ask, Err(Refused::Busy));
        }
    }

    /// Proposes an entry with the pending writes: first those of this broker, then the forwarded ones. What does not
    /// fit waits for the next call.
    pub(super) fn propose_next(&mut self, group: &mut Group, now: Duration, mut has_room: impl FnMut(usize) -> bool) {
        if group.is_handing_over() {
            return;
        }
        let mut filling = Filling::default();
        while filling.requests.len() < self.config.entry_requests
            && let Some((who, more)) = self.next_write(group, now, &filling.requests)
        {
            let bytes = filling.bytes + more;
            let is_full = bytes > ENTRY_BYTES || self.check_size(bytes).is_err();
            if (is_full && !filling.requests.is_empty()) || !has_room(bytes) {
                break;
            }
            self.fill(&mut filling, who, more);
        }
        if !filling.requests.is_empty() {
            self.propose_filled(group, now, filling);
        }
    }

    /// The submitter of the next write, and the most bytes of the write. Rejects writes that are too large, and those
    /// that take the place of a broker that is alive. `filled`: the requests before it in its entry.
    fn next_write(&mut self, group: &Group, now: Duration, filled: &[Request]) -> Option<(Who, usize)> {
        while let Some((token, bytes)) = self.next_to_try(group) {
            let checked = self.check_living(now, self.requests(token), filled);
            let Err(rejection) = checked else { return Some((Who::Here(token), bytes)) };
            self.reject(group, token, &rejection);
        }
        loop {
            let Asked { from, ask, bytes, requests, .. } = self.lead.as_ref()?.asked.front()?;
            let (from, ask, bytes) = (*from, *ask, *bytes);
            let checked = self.check_size(bytes).and_then(|()| self.check_living(now, requests, filled));
            let Err(rejection) = checked else { return Some((Who::There(from, ask), bytes)) };
            let rejected = self.rejected(group, requests.len(), &rejection);
            self.take_asked();
            self.answer(from, ask, Ok(rejected));
        }
    }

    fn take_asked(&mut self) -> Asked {
        self.lead.as_mut().and_then(|lead| lead.asked.pop()).expect("it was just looked at")
    }

    /// Adds the next write to `filling`.
    fn fill(&mut self, filling: &mut Filling, who: Who, bytes: usize) {
        let (requests, acks, retried) = match who {
            Who::Here(token) => {
                self.to_try.pop_front();
                self.is_proposed(token);
                self.sent(token)
            }
            Who::There(..) => {
                let Asked { requests, acks, .. } = self.take_asked();
                (requests, acks, false)
            }
        };
        let (first, count) = (filling.requests.len(), requests.len());
        let acks = if requests.iter().any(|request| request.command.is_quorum_only()) { Acks::Quorum } else { acks };
        filling.owners.push(Owner { who, first, count, acks, retried, acked: false });
        filling.requests.extend(requests);
        filling.bytes += bytes;
    }

    fn propose_filled(&mut self, group: &mut Group, now: Duration, filling: Filling) {
        let Filling { mut requests, owners, bytes } = filling;
        self.refuse_without_room(&mut requests);
        let mut next_group = self.next_group;
        for (groups, first) in requests.iter_mut().filter_map(|request| request.command.new_groups()) {
            *first = next_group;
            next_group += groups as u64;
        }
        let data = metadata::encode_requests(&requests);
        assert!(data.len() <= bytes, "an entry of {} bytes, not of {bytes} at most", data.len());
        match group.propose(data) {
            Ok(Position { index, term }) => {
                self.next_group = next_group;
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

    /// Acknowledges writes on the fast path: they are durable here, their results are known, and the lease holds
    /// now.
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

    /// Publishes committed and complete entries in log order, and acknowledges their writes that have no answer
    /// yet.
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
            // A write of this broker may wait until the entry is shown, even if it was acknowledged before.
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

    /// Ends this broker's leadership of the old term. Uncommitted entries are rolled back, and their submitters
    /// retry with the new leader.
    pub(super) fn resign(&mut self, leader: Option<u64>, now: Duration) {
        let Some(mut lead) = self.lead.take() else { return };
        for entry in self.flow.roll_back(&mut self.out.slices) {
            for owner in entry.owners {
                match owner.who {
                    Who::Here(token) => self.try_again(token),
                    Who::There(from, ask) if !owner.acked => {
                        let answer = Err(Refused::NotLeader { leader });
                        self.send(from, PlaneMessage::Forwarded { ask, answer });
                    }
                    Who::There(..) => {}
                }
            }
        }
        while let Some(Asked { from, ask, .. }) = lead.asked.pop() {
            self.send(from, PlaneMessage::Forwarded { ask, answer: Err(Refused::NotLeader { leader }) });
        }
        self.refuse_reads(lead.lease, leader, now);
    }

    /// Hands leadership over to the able voter with the longest log, if there is one. This leader first gives up
    /// its lease for the rest of its term. Returns whether it has asked a voter.
    pub fn hand_over(&mut self, group: &mut Group, is_able: impl Fn(u64) -> bool) -> bool {
        let own = group.peer();
        let is_other = |peer: &PeerProgress| peer.voter && peer.active && peer.peer != own && is_able(peer.peer);
        let candidates = group.progress().into_iter().filter(is_other);
        let Some(best) = candidates.max_by_key(|peer| peer.matched) else { return false };
        let Some(lead) = &mut self.lead else { return false };
        if planted!(LeaseKeptAtHandover) {
            group.hand_over(best.peer);
            return true;
        }
        lead.handed_over = true;
        lead.lease.give_up();
        group.hand_over(best.peer);
        true
    }

    /// The state of the metadata group as its leader sees it.
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

/// Whether a broker forwards this request in its own name.
fn is_of(from: i32, request: &Request) -> bool {
    let is_own_broker = |broker: &Broker| broker.node == from && node_of(broker.peer) == from;
    let is_own = match &request.command {
        Command::RegisterBroker { broker } => is_own_broker(broker),
        _ => true,
    };
    is_own && request.origin.is_none_or(|origin| origin.node == from)
}

/// Marks some owners of a complete entry as acknowledged, and returns their answers.
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

pub(super) fn written(accepted: Accepted) -> Written {
    let Accepted { term, index, results } = accepted;
    Written { term, index, results }
}
