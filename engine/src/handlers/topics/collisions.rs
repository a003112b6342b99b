//! Topics whose names differ only in '.' and '_'. Only one of them may be created (Kafka's `Topic.hasCollision`).
//!
//! They are in different slices, so no slice sees both. Collisions with existing topics are rejected by the newest
//! view. If several brokers create colliding topics at once, the later ones in the log are deleted again.

use super::names;
use crate::handlers::refusal::Refusal;
use crate::{
    cluster::{internal_topics, meta},
    core::Core,
};
use consensus::metadata::{Command, Outcome, Topic};
use std::{ops::Bound, rc::Rc, sync::Arc};

/// Whether a topic of this name would be new and could collide with another. The check then needs the newest view.
pub fn is_new_and_possible(core: &Core, name: &str) -> bool {
    names::may_collide(name) && core.view(|view| view.topic(name).is_none())
}

/// The names of the topics that `name` collides with.
fn colliding(core: &Core, name: &str) -> Vec<Arc<str>> {
    let first_from =
        |from: &str| core.view(|view| view.topics_from(Bound::Included(from)).next().map(|topic| topic.name.clone()));
    names::colliding(name, first_from)
}

/// Rejects a name that collides with an existing topic's, or with an internal topic's, whether that exists or not.
pub fn check(core: &Core, name: &str) -> Result<(), Refusal> {
    if let Some(internal) = internal_topics::like(name) {
        return Err(names::collision(name, internal));
    }
    colliding(core, name).first().map_or(Ok(()), |other| Err(names::collision(name, other)))
}

/// Deletes new topics that come after a colliding one in the log, and rejects them. The view shows the entries that
/// created them, and so all entries before those. An internal topic stays: groups need it, and an earlier version may
/// have let a client take a name like it.
pub async fn undo(core: &Rc<Core>, results: Vec<Result<Outcome, Refusal>>) -> Vec<Result<Outcome, Refusal>> {
    let mut deletions = Vec::new();
    let results = results.into_iter().map(|result| match result {
        Ok(Outcome::TopicCreated(topic)) if internal_topics::find(&topic.name).is_none() => {
            match behind(core, &topic) {
                Some(other) => {
                    deletions.push(Command::DeleteTopic { name: topic.name.clone(), id: topic.id });
                    Err(names::collision(&topic.name, &other))
                }
                None => Ok(Outcome::TopicCreated(topic)),
            }
        }
        result => result,
    });
    let results = results.collect();
    if !deletions.is_empty() {
        let count = deletions.len();
        match meta::submit(core, deletions).await {
            Ok(_) => tracing::info!(count, "deleted colliding topics created at the same time"),
            Err(error) => tracing::warn!(count, %error, "cannot delete colliding topics created at the same time"),
        }
    }
    results
}

/// The name of a colliding topic that comes before this one in the log. Group ids are assigned in the order of the
/// log.
fn behind(core: &Core, topic: &Topic) -> Option<Arc<str>> {
    let first_group = |topic: &Topic| topic.partitions.first().map(|partition| partition.group);
    let is_before = |other: &Arc<str>| {
        core.view(|view| view.topic(other).is_some_and(|other| first_group(other) < first_group(topic)))
    };
    colliding(core, &topic.name).into_iter().find(is_before)
}
