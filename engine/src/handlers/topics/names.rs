//! How requests name topics: each topic once, in one way, and no two so alike that metrics could not tell them
//! apart.
//! Pure.

use crate::handlers::refusal::Refusal;
use net::{StrBytes, Uuid, errors::ErrorCode, messages::TopicName};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The topics that a request names so far, and those that it names more than once. Kafka answers such a topic once,
/// with INVALID_REQUEST ([`twice`]).
pub struct Named<K> {
    seen: BTreeSet<K>,
    pub repeats: BTreeSet<K>,
}

impl<K: Ord + Clone> Named<K> {
    pub fn new() -> Self {
        Self { seen: BTreeSet::new(), repeats: BTreeSet::new() }
    }

    /// Whether the request has not named this topic before.
    pub fn is_first(&mut self, key: K) -> bool {
        let is_first = self.seen.insert(key.clone());
        if !is_first {
            self.repeats.insert(key);
        }
        is_first
    }
}

pub fn twice() -> Refusal {
    Refusal::new(ErrorCode::InvalidRequest, "the request names this topic more than once; name it once")
}

/// A topic as DeleteTopics names it: by its name, or by its id and no name.
pub type Reference = (Option<TopicName>, Uuid);

/// Rejects a reference that gives both a name and an id, or neither.
pub fn check_reference((name, id): &Reference) -> Result<(), Refusal> {
    let why = match (name, id.is_nil()) {
        (Some(_), true) | (None, false) => return Ok(()),
        (Some(_), false) => "give the topic's name or its id, not both",
        (None, true) => "the request gives neither a topic's name nor its id",
    };
    Err(Refusal::new(ErrorCode::InvalidRequest, why))
}

impl Named<Reference> {
    /// Whether the request names one topic twice: `reference` names it by name or id, and another entry the other
    /// way.
    pub fn named_both_ways(&self, reference: &Reference, name: &str, id: Uuid) -> bool {
        self.seen.contains(&match reference.0 {
            Some(_) => (None, id),
            None => (Some(TopicName(StrBytes::from_string(name.to_owned()))), Uuid::nil()),
        })
    }
}

/// Whether a name can collide with others: Kafka maps '.' and '_' to the same character in names of metrics.
pub fn may_collide(name: &str) -> bool {
    name.contains(['.', '_'])
}

/// The names of one request, keyed by the name with '.' replaced by '_'.
#[derive(Default)]
pub struct Alike<'a>(BTreeMap<String, &'a str>);

impl<'a> Alike<'a> {
    pub fn add(&mut self, name: &'a str) {
        if may_collide(name) {
            self.0.entry(name.replace('.', "_")).or_insert(name);
        }
    }

    /// The first name of the request that differs from this one only in '.' and '_', if it comes before it.
    pub fn earlier(&self, name: &str) -> Option<&'a str> {
        self.0.get(&name.replace('.', "_")).copied().filter(|first| *first != name)
    }
}

/// The topics whose names differ from `name` only in '.' and '_'. `first_from` returns the first topic whose name
/// is at or after a text. The search follows only prefixes that some topic has, so its cost grows with the number
/// of similar topics.
pub fn colliding(name: &str, first_from: impl Fn(&str) -> Option<Arc<str>>) -> Vec<Arc<str>> {
    let mut colliding = Vec::new();
    if !may_collide(name) {
        return colliding;
    }
    let parts: Vec<&str> = name.split(['.', '_']).collect();
    // Prefixes of colliding names, each with the number of parts in it.
    let mut open = vec![(parts[0].to_owned(), 1)];
    while let Some((beginning, used)) = open.pop() {
        let Some(found) = first_from(&beginning).filter(|found| found.starts_with(&beginning)) else { continue };
        if used < parts.len() {
            open.extend(['.', '_'].map(|mark| (format!("{beginning}{mark}{}", parts[used]), used + 1)));
        } else if *found == *beginning && beginning != name {
            colliding.push(found);
        }
    }
    colliding
}

/// The error for a name that collides with another.
pub fn collision(name: &str, other: &str) -> Refusal {
    let message = format!("topic '{name}' collides with topic '{other}': names must differ in more than '.' and '_'");
    Refusal::new(ErrorCode::InvalidTopicException, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use net::StrBytes;
    use std::ops::Bound;

    fn alike<'a>(names: &[&'a str]) -> Alike<'a> {
        let mut alike = Alike::default();
        names.iter().for_each(|name| alike.add(name));
        alike
    }

    #[test]
    fn repeats_are_taken_out_and_told() {
        let mut named = Named::new();
        let mut items = vec!["a", "b", "a", "c", "b", "a"];
        items.retain(|item| named.is_first(*item));
        assert_eq!((&named.repeats, &items[..]), (&BTreeSet::from(["a", "b"]), &["a", "b", "c"][..]));
        let mut named = Named::new();
        assert!(items.into_iter().all(|item| named.is_first(item)) && named.repeats.is_empty());
    }

    #[test]
    fn a_topic_is_named_one_way() {
        let name = |name: &'static str| Some(TopicName(StrBytes::from_static_str(name)));
        let (id, other) = (Uuid::from_u128(7), Uuid::from_u128(8));
        check_reference(&(name("a"), Uuid::nil())).unwrap();
        check_reference(&(None, id)).unwrap();
        assert_eq!(check_reference(&(name("a"), id)).unwrap_err().code, ErrorCode::InvalidRequest);
        assert_eq!(check_reference(&(None, Uuid::nil())).unwrap_err().code, ErrorCode::InvalidRequest);

        let asked = [(name("a"), Uuid::nil()), (None, id), (name("b"), Uuid::nil()), (None, other)];
        for (reference, expected) in asked.iter().zip([true, true, false, false]) {
            let (name, id) = match reference {
                (Some(name), _) if name.0.as_str() == "b" => ("b", Uuid::from_u128(9)),
                (None, id) if *id == other => ("c", other),
                _ => ("a", id),
            };
            let mut named = Named::new();
            assert!(asked.iter().all(|reference| named.is_first(reference.clone())));
            assert_eq!(named.named_both_ways(reference, name, id), expected, "{reference:?}");
        }
    }

    #[test]
    fn names_that_differ_only_in_dots_and_underscores_collide() {
        let topics: BTreeSet<Arc<str>> =
            ["a", "a.b", "a.b.c_d", "x_y", "x_y_", "x_y_z", "z-1", "__offsets"].map(Arc::from).into();
        let first_from = |from: &str| topics.range::<str, _>((Bound::Included(from), Bound::Unbounded)).next().cloned();
        for (name, other) in [
            ("a_b", Some("a.b")),
            ("a.b", None),
            ("a_b.c.d", Some("a.b.c_d")),
            ("a_b_c", None),
            ("a_", None),
            ("a-b", None),
            ("x.y", Some("x_y")),
            ("x.y.", Some("x_y_")),
            ("x_y_z", None),
            ("._offsets", Some("__offsets")),
            ("z.1", None),
            (".", None),
            ("ab", None),
        ] {
            let found = colliding(name, first_from);
            assert_eq!(found.iter().map(|found| &**found).collect::<Vec<_>>(), Vec::from_iter(other), "{name}");
            if let Some(other) = other {
                let alike = alike(&[other, "ab", name]);
                assert_eq!((alike.earlier(name), alike.earlier(other)), (Some(other), None));
            }
        }
        let all = colliding("p.q.r", |from: &str| {
            let topics = BTreeSet::from(["p.q_r", "p_q.r", "p_q_r", "p.q.r"]);
            topics.range::<str, _>((Bound::Included(from), Bound::Unbounded)).next().map(|found| Arc::from(*found))
        });
        assert_eq!(all.iter().map(|found| &**found).collect::<BTreeSet<_>>(), ["p.q_r", "p_q.r", "p_q_r"].into());
        let alike = alike(&["a.b", "a-b", "a_b_", "a.b"]);
        assert!(["a.b", "a-b", "a_b_"].iter().all(|name| alike.earlier(name).is_none()));
        let refusal = collision("a_b", "a.b");
        assert_eq!(refusal.code, ErrorCode::InvalidTopicException);
        assert!(refusal.message.contains("'a_b' collides with topic 'a.b'"), "{}", refusal.message);
    }
}
