//! Where new partitions go: spread over live brokers, in turn.

use std::cell::Cell;

/// Whose turn it is on this core. It begins anywhere, so that cores and brokers do not all begin with the same broker.
pub struct Placement {
    next: Cell<usize>,
}

impl Default for Placement {
    fn default() -> Self {
        Self { next: Cell::new(fastrand::u32(..) as usize) }
    }
}

impl Placement {
    /// The replicas of `count` new partitions, `factor` each, the preferred leader first: each takes the next of the `live` brokers, and
    /// so do those placed after them. With which others a broker shares its partitions changes from round to round.
    pub fn spread(&self, live: &[i32], count: usize, factor: usize) -> Vec<Vec<i32>> {
        assert!((1..=live.len()).contains(&factor), "{factor} replicas do not go on {} brokers", live.len());
        let start = self.next.get();
        self.next.set(start.wrapping_add(count));
        let brokers = live.len();
        let replicas = |at: usize| {
            let first = start.wrapping_add(at) % brokers;
            let shift = start.wrapping_add(at) / brokers % (brokers - 1).max(1);
            let other = |nth: usize| live[(first + 1 + (shift + nth) % (brokers - 1).max(1)) % brokers];
            std::iter::once(live[first]).chain((0..factor - 1).map(other)).collect()
        };
        (0..count).map(replicas).collect()
    }
}

/// The replicas of a partition that was assigned by hand; refuses in words.
pub fn assigned(live: &[i32], brokers: &[i32]) -> Result<Vec<i32>, String> {
    if brokers.is_empty() {
        return Err("an assignment names no broker; name one or more for each partition".to_owned());
    }
    if let Some(unknown) = brokers.iter().find(|broker| !live.contains(broker)) {
        let live: Vec<String> = live.iter().map(i32::to_string).collect();
        return Err(format!("broker {unknown} is not registered, or not alive; these are: {}", live.join(", ")));
    }
    let twice = (1..brokers.len()).find(|at| brokers[..*at].contains(&brokers[*at]));
    match twice {
        Some(at) => Err(format!("an assignment names broker {} twice", brokers[at])),
        None => Ok(brokers.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn partitions_go_round_all_live_brokers_and_on_from_where_the_last_were_put() {
        let placement = Placement { next: Cell::new(4) };
        assert_eq!(placement.spread(&[1, 2, 5], 4, 1), [[2], [5], [1], [2]]);
        assert_eq!(placement.spread(&[1, 2, 5], 1, 1), [[5]]);
        assert_eq!(placement.spread(&[1, 2], 3, 1), [[2], [1], [2]], "5 is gone");
        assert_eq!(placement.spread(&[7], 2, 1), [[7], [7]]);
        let last = Placement { next: Cell::new(usize::MAX) };
        assert_eq!(last.spread(&[1, 2], 2, 1).len(), 2, "the turn wraps around");
    }

    #[test]
    fn replicas_are_on_different_brokers_and_no_broker_gets_much_more_than_another() {
        for (brokers, factor) in [(1, 1), (2, 2), (3, 2), (3, 3), (5, 3), (7, 2)] {
            let live: Vec<i32> = (0..brokers).collect();
            let placement = Placement::default();
            let (mut held, mut led) = (vec![0usize; live.len()], vec![0usize; live.len()]);
            for topic in 0..100 {
                for replicas in placement.spread(&live, 1 + topic % 4, factor) {
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
            (&[3][..], "broker 3 is not registered, or not alive; these are: 1, 2"),
            (&[], "names no broker"),
            (&[1, 1], "names broker 1 twice"),
        ] {
            let refusal = assigned(&[1, 2], brokers).unwrap_err();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
