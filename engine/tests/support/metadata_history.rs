//! Compares the answers that clients got for their changes to topics with what every broker shows in the end: the
//! checker of the cluster tests. Pure.
//!
//! Only one client at a time uses a topic's name, so the changes of a name have an order. Rules:
//! - an acknowledged change has happened once, at its place in that order; an acknowledged creation keeps its id;
//! - a rejected change was impossible for the topic as it was then;
//! - a change with an unknown outcome has happened once, at once or later, or never;
//! - a read through the broker that gave the last certain answer shows everything that is certain by then;
//! - in the end all brokers show the same, and nothing that no client asked for.

use std::collections::{BTreeMap, BTreeSet};

use net::Uuid;

/// A topic as one broker shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Topic {
    /// `None` occurs only in the checker's expectations: the topic comes from a creation with an unknown outcome.
    pub id: Option<Uuid>,
    pub partitions: i32,
    /// Its own value of one setting, if a client has set it.
    pub setting: Option<String>,
}

impl Topic {
    /// Whether a broker may show `seen` for this topic.
    fn is(&self, seen: &Topic) -> bool {
        (self.id.is_none() || self.id == seen.id) && self.partitions == seen.partitions && self.setting == seen.setting
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Create { partitions: i32 },
    Delete,
    Grow { to: i32 },
    Set { value: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With the id of the topic, if the change was a creation.
    Acked(Option<Uuid>),
    /// The change broke a rule: the topic existed already, or did not exist.
    Refused,
    Unknown,
}

#[derive(Debug, Clone)]
pub enum Event {
    Tried { change: Change, outcome: Outcome },
    Saw(Option<Topic>),
}

/// All topics that one broker shows.
pub type Shown = BTreeMap<String, Topic>;

/// A possible state of a topic, and the changes of unknown outcome that may still happen to it.
type Possible = (Option<Topic>, BTreeSet<usize>);

/// The events of each name, each with the broker that took part.
#[derive(Debug, Default, Clone)]
pub struct History {
    names: BTreeMap<String, Vec<(usize, Event)>>,
}

fn applied(topic: &Option<Topic>, change: &Change, id: Option<Uuid>) -> Option<Option<Topic>> {
    match (topic, change) {
        (None, Change::Create { partitions }) => Some(Some(Topic { id, partitions: *partitions, setting: None })),
        (Some(_), Change::Delete) => Some(None),
        (Some(topic), Change::Grow { to }) if *to > topic.partitions => {
            Some(Some(Topic { partitions: *to, ..topic.clone() }))
        }
        (Some(topic), Change::Set { value }) => Some(Some(Topic { setting: Some(value.clone()), ..topic.clone() })),
        _ => None,
    }
}

impl History {
    pub fn record(&mut self, name: &str, broker: usize, event: Event) {
        self.names.entry(name.to_owned()).or_default().push((broker, event));
    }

    pub fn count(&self, wanted: impl Fn(&Outcome) -> bool) -> usize {
        let events = self.names.values().flatten();
        events.filter(|(_, event)| matches!(event, Event::Tried { outcome, .. } if wanted(outcome))).count()
    }

    /// All contradictions, in words.
    pub fn check(&self, brokers: &[Shown]) -> Vec<String> {
        let mut found = Vec::new();
        let Some(first) = brokers.first() else { return found };
        for (number, shown) in brokers.iter().enumerate().skip(1) {
            let names: BTreeSet<&String> = first.keys().chain(shown.keys()).collect();
            for name in names.into_iter().filter(|name| first.get(*name) != shown.get(*name)) {
                let (a, b) = (first.get(name), shown.get(name));
                found.push(format!("{name}: broker 0 shows {a:?}, broker {number} shows {b:?}"));
            }
        }
        for name in first.keys().filter(|name| !self.names.contains_key(*name)) {
            found.push(format!("{name}: nobody asked for it"));
        }
        for (name, events) in &self.names {
            if let Err(why) = check_one(events, first.get(name)) {
                let told: Vec<String> = events.iter().map(|event| format!("\n    {event:?}")).collect();
                found.push(format!("{name}: {why}; its history:{}", told.concat()));
            }
        }
        found
    }
}

/// Adds the states that changes of unknown outcome may have produced meanwhile.
fn settle(possible: &mut BTreeSet<Possible>, events: &[(usize, Event)]) {
    let mut new: Vec<Possible> = possible.iter().cloned().collect();
    while let Some((topic, pending)) = new.pop() {
        for at in &pending {
            let Event::Tried { change, .. } = &events[*at].1 else { continue };
            if let Some(after) = applied(&topic, change, None) {
                let mut left = pending.clone();
                left.remove(at);
                if possible.insert((after.clone(), left.clone())) {
                    new.push((after, left));
                }
            }
        }
    }
}

fn matches(topic: &Option<Topic>, seen: Option<&Topic>) -> bool {
    match (topic, seen) {
        (None, None) => true,
        (Some(topic), Some(seen)) => topic.is(seen),
        _ => false,
    }
}

fn check_one(events: &[(usize, Event)], last: Option<&Topic>) -> Result<(), String> {
    let mut possible = BTreeSet::from([(None, BTreeSet::new())]);
    // The broker that gave the last certain answer.
    let mut certain = None;
    for (at, (broker, event)) in events.iter().enumerate() {
        settle(&mut possible, events);
        let before = std::mem::take(&mut possible);
        match event {
            Event::Tried { outcome: Outcome::Unknown, .. } => {
                let with = |(topic, mut pending): Possible| {
                    pending.insert(at);
                    (topic, pending)
                };
                possible = before.into_iter().map(with).collect();
                continue;
            }
            Event::Tried { change, outcome: Outcome::Acked(id) } => {
                let after = |(topic, pending): Possible| Some((applied(&topic, change, *id)?, pending));
                possible = before.into_iter().filter_map(after).collect();
            }
            Event::Tried { change, outcome: Outcome::Refused } => {
                possible = before.into_iter().filter(|(topic, _)| applied(topic, change, None).is_none()).collect();
            }
            Event::Saw(seen) if certain == Some(*broker) => {
                possible = before.into_iter().filter(|(topic, _)| matches(topic, seen.as_ref())).collect();
            }
            // Another broker may lag.
            Event::Saw(_) => {
                possible = before;
                continue;
            }
        }
        if possible.is_empty() {
            return Err(format!("event {at} contradicts those before it"));
        }
        certain = Some(*broker);
    }
    settle(&mut possible, events);
    if possible.iter().any(|(topic, _)| matches(topic, last)) {
        return Ok(());
    }
    let mut expected: Vec<&Option<Topic>> = possible.iter().map(|(topic, _)| topic).collect();
    expected.dedup();
    Err(format!("in the end it is {last:?}, where one of {expected:?} was expected"))
}
