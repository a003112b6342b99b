//! Checks whether the answers of clients about one key could come from a single copy of it that serves one call at
//! a time.
//!
//! The check uses only what clients saw: no log, no index, no state of a node. A history contains the calls on one
//! key. Each call has the time from which it may have taken effect, the time by which it must have, and its reply.
//! A call without a reply may have taken effect at any later time, with any result, or never. The history is
//! linearizable if the calls have an order in which
//!
//! - each answered call gets from the [`Model`] the reply that it got, and
//! - no call comes before one that had to end before it began, or before one that its `after` names.
//!
//! If every key is linearizable, all keys together are (Herlihy and Wing 1990, theorem 1). So each key is checked
//! alone.
//!
//! The search is that of Wing and Gong (1993). As Lowe (2017, "Testing for linearizability") proposes, it remembers
//! the configurations that it has visited. A configuration is the calls placed so far and the state that they lead
//! to. Some replies show that a call changed nothing. The search places such a call as soon as the model gives its
//! reply, since this rules out nothing later. Among equal unanswered calls, only the earliest is tried. The search
//! gives up after [`CONFIGURATIONS_MAX`] configurations; that is a verdict of its own.
//!
//! The module `promises` says which times a call has, for reads and writes of each consistency level.

use ahash::AHashSet;
use std::{fmt::Debug, hash::Hash, time::Duration};

/// The most configurations that one search visits. A key above it is counted as given up, neither right nor wrong.
pub(super) const CONFIGURATIONS_MAX: usize = 50_000;

/// The `until` of a call without a reply: it need not have taken effect by any time.
pub(super) const NEVER: Duration = Duration::MAX;

/// One key, as a single copy of it behaves. The default value is its state before the history.
pub(super) trait Model: Clone + Default + Eq + Hash + Debug {
    type Op: PartialEq + Debug;
    type Reply: PartialEq + Debug;

    fn apply(&mut self, op: &Self::Op) -> Self::Reply;

    /// Whether a call with this reply changes nothing, in any state.
    fn only_reads(reply: &Self::Reply) -> bool;
}

/// A call of a client.
#[derive(Debug)]
pub(super) struct Call<M: Model> {
    pub op: M::Op,
    /// The call took effect no earlier than this.
    pub from: Duration,
    /// Every call that begins after this comes after it.
    pub until: Duration,
    /// `None`: nobody knows whether the call took effect.
    pub reply: Option<M::Reply>,
    /// Answered calls that this call comes after, whatever their times. By place in the history.
    pub after: Vec<usize>,
}

impl<M: Model> Call<M> {
    /// Whether this unanswered call does the same as `other`, also unanswered, and may be placed wherever `other`
    /// may.
    fn stands_for(&self, other: &Self) -> bool {
        let unanswered = self.reply.is_none() && other.reply.is_none() && self.until == other.until;
        let same = unanswered && self.op == other.op && self.from <= other.from;
        same && self.after.iter().all(|before| other.after.contains(before))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    /// No order explains the answers. The text shows a person why.
    Impossible(String),
    /// The search reached its limit without a result.
    GaveUp,
}

/// Searches for an order of the calls that explains all answers.
pub(super) fn check<M: Model>(calls: &[Call<M>]) -> Verdict {
    check_within(calls, CONFIGURATIONS_MAX)
}

fn check_within<M: Model>(calls: &[Call<M>], configurations_max: usize) -> Verdict {
    let search = Search::new(calls);
    let mut met = AHashSet::new();
    let mut furthest = None;
    let mut open =
        vec![Configuration { done: vec![0; calls.len().div_ceil(64)], left: search.answered, state: M::default() }];
    while let Some(mut here) = open.pop() {
        let next = search.take_reads(&mut here);
        if here.left == 0 {
            return Verdict::Linearizable;
        }
        if met.contains(&here) {
            continue;
        }
        if met.len() == configurations_max {
            return Verdict::GaveUp;
        }
        search.go_on(&here, next, &mut open);
        if furthest.as_ref().is_none_or(|furthest: &Configuration<M>| here.left < furthest.left) {
            furthest = Some(here.clone());
        }
        met.insert(here);
    }
    Verdict::Impossible(search.explain(&furthest.expect("the search began somewhere")))
}

/// The calls placed so far, by their place in the search's order, and the state that they lead to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration<M> {
    done: Vec<u64>,
    /// The number of answered calls that are not placed yet.
    left: usize,
    state: M,
}

impl<M> Configuration<M> {
    fn has(&self, place: usize) -> bool {
        self.done[place / 64] & (1 << (place % 64)) != 0
    }
}

struct Search<'a, M: Model> {
    calls: &'a [Call<M>],
    /// The calls in the order in which they may begin.
    order: Vec<usize>,
    /// The place of each call in that order.
    places: Vec<usize>,
    answered: usize,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(calls: &'a [Call<M>]) -> Self {
        let mut order: Vec<usize> = (0..calls.len()).collect();
        order.sort_by_key(|call| calls[*call].from);
        let mut places = vec![0; calls.len()];
        order.iter().enumerate().for_each(|(place, call)| places[*call] = place);
        let answered = calls.iter().filter(|call| call.reply.is_some()).count();
        Self { calls, order, places, answered }
    }

    /// The places of the calls that may come next.
    fn next(&self, here: &Configuration<M>) -> Vec<usize> {
        let mut next = Vec::new();
        let mut end = NEVER;
        for (place, call) in self.order.iter().map(|call| &self.calls[*call]).enumerate() {
            // A call that is not placed had to end before this one began, and so before all later ones.
            if call.from > end {
                break;
            }
            if !here.has(place) {
                end = end.min(call.until);
                next.push(place);
            }
        }
        next.retain(|place| {
            let call = self.call(*place);
            call.from <= end && call.after.iter().all(|before| here.has(self.places[*before]))
        });
        next
    }

    fn call(&self, place: usize) -> &Call<M> {
        &self.calls[self.order[place]]
    }

    /// Places all calls that change nothing, and returns the places of the calls that may come next.
    fn take_reads(&self, here: &mut Configuration<M>) -> Vec<usize> {
        loop {
            let before = here.left;
            let next = self.next(here);
            for &place in &next {
                let call = self.call(place);
                let Some(reply) = call.reply.as_ref().filter(|reply| M::only_reads(reply)) else { continue };
                if here.state.clone().apply(&call.op) == *reply {
                    here.done[place / 64] |= 1 << (place % 64);
                    here.left -= 1;
                }
            }
            if here.left == before {
                return next;
            }
        }
    }

    /// Adds every configuration that is one call further. Answered calls come last, since the search takes the last
    /// one first.
    fn go_on(&self, here: &Configuration<M>, mut next: Vec<usize>, open: &mut Vec<Configuration<M>>) {
        let is_second = |place: usize| {
            let before = next.iter().take_while(|earlier| **earlier < place).map(|earlier| self.call(*earlier));
            before.into_iter().any(|earlier| earlier.stands_for(self.call(place)))
        };
        let seconds: Vec<usize> = next.iter().copied().filter(|place| is_second(*place)).collect();
        next.retain(|place| !seconds.contains(place));
        next.sort_by_key(|place| (self.call(*place).reply.is_some(), std::cmp::Reverse(self.call(*place).until)));
        for place in next {
            let call = self.call(place);
            let mut state = here.state.clone();
            let gets = state.apply(&call.op);
            let goes_on = match &call.reply {
                Some(reply) => *reply == gets && !M::only_reads(reply),
                // A call that changes nothing here can be placed later as well.
                None => state != here.state,
            };
            if !goes_on {
                continue;
            }
            let mut done = here.done.clone();
            done[place / 64] |= 1 << (place % 64);
            open.push(Configuration { done, left: here.left - usize::from(call.reply.is_some()), state });
        }
    }

    fn explain(&self, furthest: &Configuration<M>) -> String {
        let next = self.next(furthest);
        let lines = self.order.iter().enumerate().map(|(place, call)| {
            let Call { op, from, until, reply, after } = &self.calls[*call];
            let mark = match (furthest.has(place), next.contains(&place)) {
                (true, _) => "explained",
                (false, true) => "may be next",
                (false, false) => "later",
            };
            let until = if *until == NEVER { "...".to_owned() } else { until.as_micros().to_string() };
            let reply = reply.as_ref().map_or("no answer".to_owned(), |reply| format!("{reply:?}"));
            let after = if after.is_empty() { String::new() } else { format!(" after {after:?}") };
            format!("\n  {call:>3} {} .. {until} µs {op:?} -> {reply}{after} [{mark}]", from.as_micros())
        });
        format!("at most these calls can be explained, up to {:?}:{}", furthest.state, lines.collect::<String>())
    }
}

#[cfg(test)]
mod tests;
