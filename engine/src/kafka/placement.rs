//! Where new partitions go: one live broker each, in turn.

use std::cell::Cell;

/// What a client is told that asks for more.
pub const ONE_REPLICA: &str = "partitions have one replica in this version";

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
    /// The replicas of `count` new partitions: each takes the next of the `live` brokers, and so do those placed after them.
    pub fn spread(&self, live: &[i32], count: usize) -> Vec<Vec<i32>> {
        assert!(!live.is_empty(), "the broker that places partitions is alive");
        let start = self.next.get();
        self.next.set(start.wrapping_add(count));
        (0..count).map(|at| vec![live[start.wrapping_add(at) % live.len()]]).collect()
    }
}

/// The replicas of a partition that was assigned by hand; refuses in words.
pub fn assigned(live: &[i32], brokers: &[i32]) -> Result<Vec<i32>, String> {
    match brokers {
        [broker] if live.contains(broker) => Ok(vec![*broker]),
        [broker] => {
            let live: Vec<String> = live.iter().map(i32::to_string).collect();
            Err(format!("broker {broker} is not registered, or not alive; these are: {}", live.join(", ")))
        }
        [] => Err("an assignment names no broker; name one for each partition".to_owned()),
        several => Err(format!("an assignment names {} brokers for a partition; {ONE_REPLICA}", several.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_go_round_all_live_brokers_and_on_from_where_the_last_were_put() {
        let placement = Placement { next: Cell::new(4) };
        assert_eq!(placement.spread(&[1, 2, 5], 4), [[2], [5], [1], [2]]);
        assert_eq!(placement.spread(&[1, 2, 5], 1), [[5]]);
        assert_eq!(placement.spread(&[1, 2], 3), [[2], [1], [2]], "5 is gone");
        assert_eq!(placement.spread(&[7], 2), [[7], [7]]);
        let last = Placement { next: Cell::new(usize::MAX) };
        assert_eq!(last.spread(&[1, 2], 2).len(), 2, "the turn wraps around");
    }

    #[test]
    fn no_broker_gets_two_more_than_another() {
        let placement = Placement::default();
        let mut held = [0usize; 3];
        for topic in 0..100 {
            for replicas in placement.spread(&[0, 1, 2], 1 + topic % 4) {
                held[replicas[0] as usize] += 1;
            }
        }
        assert!(held.iter().max().unwrap() - held.iter().min().unwrap() <= 1, "{held:?}");
    }

    #[test]
    fn assignments_by_hand_name_one_live_broker() {
        assert_eq!(assigned(&[1, 2], &[2]), Ok(vec![2]));
        for (brokers, words) in [
            (&[3][..], "broker 3 is not registered, or not alive; these are: 1, 2"),
            (&[], "names no broker"),
            (&[1, 2], "names 2 brokers for a partition; partitions have one replica in this version"),
        ] {
            let refusal = assigned(&[1, 2], brokers).unwrap_err();
            assert!(refusal.contains(words), "{refusal}");
        }
    }
}
