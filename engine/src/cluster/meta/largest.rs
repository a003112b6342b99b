//! The largest entry of any log of the cluster, a partition's batch or the metadata's commands: a setting in the
//! metadata that only rises.
//!
//! A follower that cannot store an entry that its leader has acknowledged could never catch up again. So the setting
//! rises only as far as the rings of all registered brokers allow, and a broker with smaller rings cannot join. It
//! rises by itself: when a broker starts, to its `message.max.bytes` and to what topics allow; when a topic's
//! `max.message.bytes` is set, to that value; before a command that is larger, to its size. Where it cannot rise that
//! far, larger batches are rejected with MESSAGE_TOO_LARGE, and larger commands with POLICY_VIOLATION
//! (`consensus::plane`).

use super::{SubmitError, Submitting, asks::submit_as_is, host::Host, linearize};
use consensus::{
    metadata::{Command, LARGEST_ENTRY, Topic, View},
    plane::{self, Acks, ENTRY_BYTES},
};
use net::peer::CARRIED_BYTES_MAX;
use std::{rc::Rc, sync::Arc};
use types::CoreId;

/// The name of a topic's own limit.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// Room in a frame to another broker for everything besides the batch.
const FRAME_BYTES: usize = 64 << 10;

/// The largest batch that a frame to another broker takes.
pub const FRAMED_BYTES_MAX: usize = CARRIED_BYTES_MAX - FRAME_BYTES;

/// Attempts to raise the setting, when other brokers register in between.
const TRIES: usize = 3;

/// Names the limit that holds batches to `largest` bytes, and the remedy.
pub fn why_largest(largest: usize) -> String {
    if largest >= FRAMED_BYTES_MAX {
        return format!(
            "frames between brokers take batches of at most {largest} bytes, and no setting raises this limit; \
             send smaller batches"
        );
    }
    format!(
        "the brokers' write-ahead rings take batches of at most {largest} bytes (largest.entry.bytes); raise \
         wal.ring.bytes, or give the brokers fewer cores, and then set the topic's max.message.bytes"
    )
}

/// The largest batch that all cores of this broker can take.
pub(super) async fn taken_here(core: &Rc<impl Host>) -> u64 {
    let asked = (0..core.cores()).map(|to| core.ask_largest_taken(CoreId(to)));
    let taken: Vec<u64> = runtime::sync::all(asked.collect()).await;
    taken.into_iter().min().expect("there is a core")
}

/// The present setting in a view, and how far it may rise: to the least of all registered brokers.
fn range(view: &View) -> (u64, u64) {
    let takes = view.brokers().map(|broker| broker.largest_entry).min().unwrap_or(0);
    (view.cluster_config().largest_entry().unwrap_or(0), takes)
}

/// Raises the setting towards `wanted`, as far as possible. Returns its new value.
pub(super) async fn raise(core: &Rc<impl Host>, wanted: u64) -> Result<u64, SubmitError> {
    for _ in 0..TRIES {
        let (present, most) = core.view(range);
        let to = wanted.min(most);
        if to <= present {
            break;
        }
        let changes = vec![(LARGEST_ENTRY.to_owned(), Some(to.to_string()))];
        let command = Command::UpdateClusterConfig { node: None, changes };
        let how = Submitting { acks: Some(Acks::Quorum), ..Submitting::default() };
        match submit_as_is(core, vec![command], how).await?.into_iter().next() {
            Some(Err(rejection)) => {
                tracing::info!(to, %rejection, "cannot raise the cluster's largest entry yet");
                linearize(core).await?;
            }
            _ => {
                tracing::info!(from = present, to, "brokers accept larger entries from now on ({LARGEST_ENTRY})");
                break;
            }
        }
    }
    Ok(core.view(range).0)
}

/// Called before commands are submitted: raises the setting to the topic limits that they set, and to the size of
/// larger commands.
pub async fn rise_for(core: &Rc<impl Host>, commands: &[Command]) -> Result<(), SubmitError> {
    let (present, most) = core.view(range);
    // The peer ids of founders are added later.
    let founders = core.view(|view| view.brokers().count()) * size_of::<u64>();
    let sizes = commands.iter().map(|command| plane::weight(command) + founders);
    let sizes = sizes.filter(|bytes| *bytes > ENTRY_BYTES).map(|bytes| bytes as u64).filter(|bytes| *bytes <= most);
    let wanted = commands.iter().filter_map(allowed_by).chain(sizes).max().unwrap_or(0);
    if wanted > present && present < most {
        raise(core, wanted).await?;
    }
    Ok(())
}

/// The highest limit that any topic sets for itself.
pub(super) fn allowed_by_topics(core: &Rc<impl Host>) -> u64 {
    let own = |topic: &Arc<Topic>| topic.configs.get(MAX_MESSAGE_BYTES)?.parse().ok();
    core.view(|view| view.topics().filter_map(own).max()).unwrap_or(0)
}

/// The topic limit that a command sets.
fn allowed_by(command: &Command) -> Option<u64> {
    let value = match command {
        Command::CreateTopic { configs, .. } => configs.get(MAX_MESSAGE_BYTES),
        Command::UpdateTopicConfig { changes, .. } => {
            changes.iter().rev().find(|(name, _)| name == MAX_MESSAGE_BYTES).and_then(|(_, value)| value.as_ref())
        }
        _ => None,
    };
    value?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_that_is_reached_is_named() {
        assert!(why_largest(FRAMED_BYTES_MAX - 1).contains("raise wal.ring.bytes"));
        let framed = why_largest(FRAMED_BYTES_MAX);
        assert!(framed.starts_with("frames between brokers") && !framed.contains("wal.ring.bytes"), "{framed}");
    }
}
