//! Lines that take turns: one [`Line`] for each key. The first tasks of all lines take turns, so a key with many
//! waiting tasks delays other keys by one task at a time.
//! Lives on: one core.
//!
//! Within a key it is first come, first served. A task that gives up leaves, wherever it stands.
//!
//! Bound: one entry per living [`Spot`]. Each user states what bounds those.

use crate::sync::line::{Line, Place};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// The lines of all keys.
pub struct Lines<K: Copy + Ord>(Rc<Inner<K>>);

struct Inner<K> {
    /// Only keys with a waiting task.
    by_key: RefCell<BTreeMap<K, Line>>,
    /// The first of each key's line, in the order in which they became first.
    firsts: Line,
}

/// A task's position in its key's line. Dropping it lets the next task go.
pub struct Spot<K: Copy + Ord> {
    lines: Rc<Inner<K>>,
    key: K,
    /// Its place among the firsts, once it is first of its key.
    first: Option<Place>,
    /// `None` only during the drop.
    place: Option<Place>,
}

impl<K: Copy + Ord> Default for Lines<K> {
    fn default() -> Self {
        Self(Rc::new(Inner { by_key: RefCell::default(), firsts: Line::default() }))
    }
}

impl<K: Copy + Ord> Lines<K> {
    /// Joins the end of the key's line.
    pub fn join(&self, key: K) -> Spot<K> {
        let place = self.0.by_key.borrow_mut().entry(key).or_default().join();
        Spot { lines: self.0.clone(), key, first: None, place: Some(place) }
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.0.by_key.borrow().is_empty()
    }

    /// Whether no task waits for this key, and none is first of its key and waits for its turn among the keys.
    pub fn is_free(&self, key: K) -> bool {
        self.0.firsts.is_empty() && !self.0.by_key.borrow().contains_key(&key)
    }

    /// The number of spots held.
    pub fn waiting(&self) -> usize {
        self.0.by_key.borrow().values().map(Line::len).sum()
    }
}

impl<K: Copy + Ord> Spot<K> {
    /// Resolves once this spot is the first of its key. It then delays only this key, until it awaits its turn.
    pub async fn first_of_key(&self) {
        if let Some(place) = &self.place {
            place.first().await;
        }
    }

    /// Resolves once it is this spot's turn. The turn lasts until the spot is dropped.
    pub async fn turn(&mut self) {
        self.first_of_key().await;
        self.first.get_or_insert_with(|| self.lines.firsts.join()).first().await;
    }
}

impl<K: Copy + Ord> Drop for Spot<K> {
    fn drop(&mut self) {
        // The next task of this key queues behind the firsts of other keys.
        self.first = None;
        self.place = None;
        let mut by_key = self.lines.by_key.borrow_mut();
        if by_key.get(&self.key).is_some_and(Line::is_empty) {
            by_key.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Waker},
    };

    fn has_turn(spot: &mut Spot<u8>) -> bool {
        pin!(spot.turn()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn one_key_is_served_in_the_order_of_joining() {
        let lines = Lines::default();
        let (mut first, mut second) = (lines.join(1), lines.join(1));
        assert!(!has_turn(&mut second) && has_turn(&mut first));
        drop(first);
        assert!(has_turn(&mut second));
        drop(second);
        assert!(lines.is_empty());
    }

    #[test]
    fn keys_take_turns_however_many_wait_for_one() {
        let lines = Lines::default();
        let mut many: Vec<_> = (0..3).map(|_| lines.join(1)).collect();
        assert!(has_turn(&mut many[0]));
        let mut other = lines.join(2);
        assert!(!has_turn(&mut other));
        many.remove(0);
        assert!(!has_turn(&mut many[0]), "the other key's first came before it");
        assert!(has_turn(&mut other));
        drop(other);
        assert!(has_turn(&mut many[0]));
        assert_eq!(lines.waiting(), 2);
    }

    #[test]
    fn the_first_of_a_key_delays_no_other_key_before_it_awaits_its_turn() {
        let lines = Lines::default();
        let mut slow = lines.join(1);
        assert!(pin!(slow.first_of_key()).poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(lines.is_free(2) && !lines.is_free(1));
        assert!(has_turn(&mut lines.join(2)));
        assert!(has_turn(&mut slow));
        assert!(!lines.is_free(2));
    }

    #[test]
    fn a_spot_that_is_given_up_holds_nobody_up() {
        let lines = Lines::default();
        let (mut first, second, mut third, mut other) = (lines.join(1), lines.join(1), lines.join(1), lines.join(2));
        assert!(has_turn(&mut first) && !has_turn(&mut other));
        drop(second);
        drop(first);
        assert!(has_turn(&mut other) && !has_turn(&mut third));
        drop(other);
        assert!(has_turn(&mut third));
    }
}
