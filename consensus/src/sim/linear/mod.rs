//! Whether what clients saw of one key is what a single copy of it, changed and read one call at a time, could have shown them.
//!
//! It believes nobody but the clients: no log, no index, no node's state. A history is the calls on one key, each with the time
//! from which it may have taken effect, the time by which it must have, and what it got. What got no answer may have happened at
//! any later time, with whatever result, or never. The history is linearizable if the calls can be put in one order in which
//!
//! - each answered call gets from the [`Model`] what it got, and
//! - no call stands before one that had to be over when it began, nor before one that it is said to come after.
//!
//! What is linearizable for each key is so for all keys together (Herlihy and Wing 1990, theorem 1), so keys are checked alone.
//!
//! The search is that of Wing and Gong (1993), with Lowe's memory (2017, "Testing for linearizability") of what it has been
//! through: which calls are behind it, and the state there. What can have changed nothing, since it got what only such calls get,
//! is taken as soon as it would get that: whatever is possible later is possible then too. Of unanswered calls that ask for the
//! same, only the earliest is tried. The search ends after [`CONFIGURATIONS_MAX`]; that is a verdict of its own.
//!
//! What the calls' times are for writes and reads of each strength: `promises`.

use ahash::AHashSet;
use std::{fmt::Debug, hash::Hash, time::Duration};

/// Configurations that one search looks at before it gives up. The key is counted then, and taken for neither right nor wrong.
pub(super) const CONFIGURATIONS_MAX: usize = 50_000;

/// No time at all: what got no answer needs not have happened by any.
pub(super) const NEVER: Duration = Duration::MAX;

/// One key, as a single copy of it would behave. The default is its state before the history.
pub(super) trait Model: Clone + Default + Eq + Hash + Debug {
    type Op: PartialEq + Debug;
    type Reply: PartialEq + Debug;

    fn apply(&mut self, op: &Self::Op) -> Self::Reply;

    /// Whether a call that got this changes nothing, in whatever state.
    fn only_reads(reply: &Self::Reply) -> bool;
}

/// Something that a client asked for.
#[derive(Debug)]
pub(super) struct Call<M: Model> {
    pub op: M::Op,
    /// It took effect no earlier.
    pub from: Duration,
    /// Whatever begins later comes after it.
    pub until: Duration,
    /// `None`: nobody knows whether it happened.
    pub reply: Option<M::Reply>,
    /// Answered calls, by their place in the history, that it comes after whatever the times say.
    pub after: Vec<usize>,
}

impl<M: Model> Call<M> {
    /// Whether this unanswered call can be wherever that unanswered one can, and does there what that does.
    fn stands_for(&self, other: &Self) -> bool {
        let unanswered = self.reply.is_none() && other.reply.is_none() && self.until == other.until;
        let same = unanswered && self.op == other.op && self.from <= other.from;
        same && self.after.iter().all(|before| other.after.contains(before))
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Linearizable,
    /// No order explains the answers; what a person needs to see that.
    Impossible(String),
    /// Nothing was found within the bound.
    GaveUp,
}

/// Looks for an order of the calls that explains all answers.
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

/// Which calls are behind the search, by their place in the search's order, and what they made of the key.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Configuration<M> {
    done: Vec<u64>,
    /// Answered calls that are still to be placed.
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
    /// The calls by when they may begin.
    order: Vec<usize>,
    /// Where each call stands in that order.
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

    /// The calls that may come next, by place.
    fn next(&self, here: &Configuration<M>) -> Vec<usize> {
        let mut next = Vec::new();
        let mut end = NEVER;
        for (place, call) in self.order.iter().map(|call| &self.calls[*call]).enumerate() {
            // Here something that is not placed had to be over, and so it is for all that begin later.
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

    /// Takes all that changes nothing, and returns what may be next then.
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

    /// All that may be one call later. What was answered is looked at first, so it comes last.
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
                // Without a change it may as well happen later.
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
        format!("at most so many can be explained, up to {:?}:{}", furthest.state, lines.collect::<String>())
    }
}

#[cfg(test)]
mod tests;
