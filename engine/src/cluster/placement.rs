//! Placement of new partitions: live brokers in turn. Brokers that are away get replicas only if there are too few
//! live ones.

use crate::config::REPLICAS_MAX;
use std::{cell::Cell, time::Duration};

/// The next broker in turn on this core. It starts at random, so that cores and brokers do not all begin with the
/// same broker.
pub struct Placement {
    next: Cell<usize>,
    /// When it was last logged that brokers have no memory for topics that clients use.
    told: Cell<Option<Duration>>,
}

/// At most one such line is logged per this interval, since clients retry.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// The brokers that new partitions may go to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    pub live: Vec<i32>,
    /// Registered, but fenced for the moment. They catch up once they are back.
    pub away: Vec<i32>,
}

/// Why partitions can't have this many replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error("replication factor {factor}: the cluster has {brokers} brokers; ask for 1 to {most}")]
    Brokers { factor: i16, brokers: usize, most: usize },
    #[error(
        "replication factor {factor}: {live} of {brokers} brokers are alive, and a majority of each partition's \
         replicas must be; ask for 1 to {most}, or start the other brokers"
    )]
    Away { factor: i16, live: usize, brokers: usize, most: usize },
}

impl Candidates {
    /// Checks that each partition can have `factor` replicas, most of them on live brokers, so that it has a leader
    /// at once.
    pub fn check(&self, factor: i16) -> Result<usize, TooMany> {
        let live = self.live.len();
        let brokers = live + self.away.len();
        let possible = brokers.min(REPLICAS_MAX as usize);
        let most = possible.min((2 * live).saturating_sub(1));
        match usize::try_from(factor) {
            Ok(factor) if (1..=most).contains(&factor) => Ok(factor),
            Ok(wanted) if (1..=possible).contains(&wanted) => Err(TooMany::Away { factor, live, brokers, most }),
            _ => Err(TooMany::Brokers { factor, brokers, most }),
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self { next: Cell::new(fastrand::u32(..) as usize), told: Cell::default() }
    }
}

impl Placement {
    /// Whether enough time has passed to log a refusal again.
    pub fn may_tell(&self, now: Duration) -> bool {
        let may = self.told.get().is_none_or(|told| now >= told + TOLD_EVERY);
        if may {
            self.told.set(Some(now));
        }
        may
    }

    /// The replicas of `count` new partitions, `factor` each, the preferred leader first. Partitions take the live
    /// brokers in turn, and later calls continue where this one ends. The other replicas of a broker's partitions
    /// rotate from round to round. If there are fewer live brokers than replicas, brokers that are away get the
    /// rest, also in turn.
    pub fn spread(&self, candidates: &Candidates, count: usize, factor: usize) -> Vec<Vec<i32>> {
        let Candidates { live, away } = candidates;
        let brokers = live.len() + away.len();
        assert!((1..=brokers).contains(&factor) && !live.is_empty(), "{factor} replicas do not fit on {candidates:?}");
        let on_live = factor.min(live.len());
        let start = self.next.get();
        self.next.set(start.wrapping_add(count));
        let brokers = live.len();
        let replicas = |at: usize| {
            let first = start.wrapping_add(at) % brokers;
            let shift = start.wrapping_add(at) / brokers % (brokers - 1).max(1);
            let other = |nth: usize| live[(first + 1 + (shift + nth) % (brokers - 1).max(1)) % brokers];
            let absent = |nth: usize| away[start.wrapping_add(at + nth) % away.len()];
            let others = (0..on_live - 1).map(other).chain((0..factor - on_live).map(absent));
            std::iter::once(live[first]).chain(others).collect()
        };
        (0..count).map(replicas).collect()
    }
}

/// Why a client's assignment of replicas is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    #[error("an assignment names no broker; name one or more for each partition")]
    Empty,
    #[error("broker {unknown} is not registered or not alive; alive brokers: {}", list(live))]
    Unknown { unknown: i32, live: Vec<i32> },
    #[error("an assignment names broker {0} twice")]
    Twice(i32),
}

fn list(brokers: &[i32]) -> String {
    brokers.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
}

/// Checks the replicas of a partition that a client assigned.
pub fn assigned(live: &[i32], brokers: &[i32]) -> Result<Vec<i32>, AssignmentError> {
    if brokers.is_empty() {
        return Err(AssignmentError::Empty);
    }
    if let Some(unknown) = brokers.iter().find(|broker| !live.contains(broker)) {
        return Err(AssignmentError::Unknown { unknown: *unknown, live: live.to_vec() });
    }
    match (1..brokers.len()).find(|at| brokers[..*at].contains(&brokers[*at])) {
        Some(at) => Err(AssignmentError::Twice(brokers[at])),
        None => Ok(brokers.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn live(nodes: &[i32]) -> Candidates {
        Candidates { live: nodes.to_vec(), away: Vec::new() }
    }

    #[test]
    fn brokers_that_are_away_get_what_live_ones_leave_but_never_the_majority() {
        let candidates = Candidates { live: vec![1, 3, 4], away: vec![2, 5] };
        let placement = Placement::default();
        for replicas in placement.spread(&candidates, 20, 5) {
            assert_eq!(replicas.iter().copied().collect::<BTreeSet<_>>(), (1..=5).collect(), "{replicas:?}");
            assert!(replicas[..3].iter().all(|node| candidates.live.contains(node)), "live ones lead: {replicas:?}");
        }
        let fourth: BTreeSet<i32> = placement.spread(&candidates, 2, 4).iter().map(|replicas| replicas[3]).collect();
        assert_eq!(fourth, BTreeSet::from([2, 5]), "in turn");
        assert!(placement.spread(&candidates, 9, 3).concat().iter().all(|node| candidates.live.contains(node)));

        let of = |live: i32, away: i32| Candidates { live: (0..live).collect(), away: (live..live + away).collect() };
        for (live, away, factor) in [(1, 0, 1), (2, 1, 3), (2, 3, 3), (3, 2, 5), (4, 3, 7), (1, 2, 1)] {
            assert_eq!(of(live, away).check(factor), Ok(factor as usize), "{live} {away}");
        }
        for (live, away, factor, words) in [
            (2, 0, 3, "replication factor 3: the cluster has 2 brokers; ask for 1 to 2"),
            (2, 0, 0, "ask for 1 to 2"),
            (2, 0, -2, "ask for 1 to 2"),
            (1, 2, 3, "1 of 3 brokers are alive, and a majority of each partition's replicas must be; ask for 1 to 1"),
            (1, 2, 2, "ask for 1 to 1"),
            (2, 3, 5, "2 of 5 brokers are alive"),
            (9, 0, 8, "ask for 1 to 7"),
        ] {
            let refusal = of(live, away).check(factor).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
    }

    #[test]
    fn partitions_go_round_all_live_brokers_and_on_from_where_the_last_were_put() {
        let placement = Placement { next: Cell::new(4), ..Placement::default() };
        assert_eq!(placement.spread(&live(&[1, 2, 5]), 4, 1), [[2], [5], [1], [2]]);
        assert_eq!(placement.spread(&live(&[1, 2, 5]), 1, 1), [[5]]);
        assert_eq!(placement.spread(&live(&[1, 2]), 3, 1), [[2], [1], [2]], "5 is gone");
        assert_eq!(placement.spread(&live(&[7]), 2, 1), [[7], [7]]);
        let last = Placement { next: Cell::new(usize::MAX), ..Placement::default() };
        assert_eq!(last.spread(&live(&[1, 2]), 2, 1).len(), 2, "the turn wraps around");
    }

    #[test]
    fn replicas_are_on_different_brokers_and_no_broker_gets_much_more_than_another() {
        for (brokers, factor) in [(1, 1), (2, 2), (3, 2), (3, 3), (5, 3), (7, 2)] {
            let candidates = live(&(0..brokers).collect::<Vec<i32>>());
            let placement = Placement::default();
            let (mut held, mut led) = (vec![0usize; brokers as usize], vec![0usize; brokers as usize]);
            for topic in 0..100 {
                for replicas in placement.spread(&candidates, 1 + topic % 4, factor) {
                    assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), factor, "{replicas:?}");
                    led[replicas[0] as usize] += 1;
                    replicas.iter().for_each(|node| held[*node as usize] += 1);
                }
            }
            let spread = |counts: &[usize]| counts.iter().max().unwrap() - counts.iter().min().unwrap();
            assert!(spread(&led) <= 1 && spread(&held) <= 2 * brokers as usize, "{brokers} {factor}: {led:?} {held:?}");
        }
    }

    #[test]
    fn assignments_by_hand_name_live_brokers_once_each() {
        assert_eq!(assigned(&[1, 2], &[2]), Ok(vec![2]));
        assert_eq!(assigned(&[1, 2], &[2, 1]), Ok(vec![2, 1]));
        for (brokers, words) in [
            (&[3][..], "broker 3 is not registered or not alive; alive brokers: 1, 2"),
            (&[], "names no broker"),
            (&[1, 1], "names broker 1 twice"),
        ] {
            let refusal = assigned(&[1, 2], brokers).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
