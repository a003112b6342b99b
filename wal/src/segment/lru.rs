//! A bounded map: when it is full, it evicts the least recently used values.
//! Lives on: one core.
//!
//! Invariant: the sum of the costs is at most the bound, except when one value alone costs more.

use ahash::AHashMap;
use std::{collections::BTreeMap, hash::Hash};

pub struct Lru<K, V> {
    cost_max: u64,
    cost: u64,
    clock: u64,
    map: AHashMap<K, Slot<V>>,
    by_use: BTreeMap<u64, K>,
}

struct Slot<V> {
    value: V,
    cost: u64,
    used: u64,
}

impl<K: Clone + Eq + Hash, V: Clone> Lru<K, V> {
    pub fn new(cost_max: u64) -> Self {
        Self { cost_max, cost: 0, clock: 0, map: AHashMap::new(), by_use: BTreeMap::new() }
    }

    pub fn get(&mut self, key: &K) -> Option<V> {
        let slot = self.map.get_mut(key)?;
        self.clock += 1;
        self.by_use.remove(&slot.used);
        slot.used = self.clock;
        self.by_use.insert(self.clock, key.clone());
        Some(slot.value.clone())
    }

    /// Adds or replaces a value. Evicts the least recently used values that no longer fit beside it.
    pub fn insert(&mut self, key: K, value: V, cost: u64) {
        self.remove(&key);
        while self.cost + cost > self.cost_max {
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            self.cost -= self.map.remove(&oldest).expect("both maps hold the same keys").cost;
        }
        self.clock += 1;
        self.cost += cost;
        self.by_use.insert(self.clock, key.clone());
        self.map.insert(key, Slot { value, cost, used: self.clock });
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let slot = self.map.remove(key)?;
        self.by_use.remove(&slot.used);
        self.cost -= slot.cost;
        Some(slot.value)
    }

    /// Removes all keys for which `gone` returns true.
    pub fn remove_where(&mut self, gone: impl Fn(&K) -> bool) {
        let keys: Vec<K> = self.map.keys().filter(|key| gone(key)).cloned().collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    #[cfg(test)]
    pub fn cost(&self) -> u64 {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut lru = Lru::new(3);
        for key in 0..3 {
            lru.insert(key, key * 10, 1);
        }
        assert_eq!(lru.get(&0), Some(0));
        lru.insert(3, 30, 1);
        assert_eq!((lru.get(&0), lru.get(&1), lru.get(&2), lru.get(&3)), (Some(0), None, Some(20), Some(30)));
        assert_eq!((lru.len(), lru.cost()), (3, 3));
    }

    #[test]
    fn costs_are_bounded_and_given_back() {
        let mut lru = Lru::new(10);
        lru.insert('a', (), 4);
        lru.insert('b', (), 4);
        lru.insert('a', (), 6);
        assert_eq!((lru.cost(), lru.len()), (10, 2));
        lru.insert('c', (), 99);
        assert_eq!((lru.cost(), lru.len(), lru.get(&'c')), (99, 1, Some(())));
        lru.insert('d', (), 1);
        assert_eq!((lru.cost(), lru.get(&'c')), (1, None));
        lru.remove_where(|key| *key == 'd');
        assert_eq!((lru.cost(), lru.len()), (0, 0));
    }
}
