//! Reports about this broker's partitions in the metadata: which ones it leads, and how far their logs have come.
//!
//! The partitions' groups are the truth; the reports follow it in batches. Leaderships are reported at once,
//! watermarks at most once a second. A broker that is alone in its cluster reports nothing.

use super::{Submitting, host::Host, submit_with};
use crate::partition::{Led, Partition, TopicPartition, host::in_turns};
use ahash::AHashMap;
use consensus::{
    metadata::{Command, LeaderReport, PartitionLeader, Topic, View, WatermarkReport},
    plane::{Acks, Until},
};
use runtime::sync;
use std::{collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};
use types::{CoreId, GroupId};

/// How often watermarks are reported.
const WATERMARKS_EVERY: Duration = Duration::from_secs(1);
/// Most partitions in one command, so that an entry of any size takes it. A topic with more has several commands.
const REPORTS_MAX: usize = 1024;
/// Pause after a failed report.
const RETRY: Duration = Duration::from_millis(200);
/// Above this many unreported leaderships, or twice as many as were left the last time, those of deleted topics are
/// removed.
const UNREPORTED_MIN: usize = 1024;

/// On core 0: reports every leadership of this broker.
pub async fn leaders(core: Rc<impl Host>) {
    let mut outdated_from = UNREPORTED_MIN;
    while !core.metadata_ended().is_set() {
        let seen = core.view_changed().version();
        if has_others(&core) && !core.unreported().borrow().is_empty() {
            let pending = core.unreported().take();
            let commands = core.view(|view| leader_commands(view, core.node(), &pending));
            if !commands.is_empty() && !report(&core, commands).await {
                put_back(&core, pending);
                runtime::sleep(RETRY).await;
            }
            continue;
        }
        if core.unreported().borrow().len() > outdated_from {
            core.view(|view| core.unreported().borrow_mut().retain(|group, _| view.has_group(*group)));
            outdated_from = UNREPORTED_MIN.max(2 * core.unreported().borrow().len());
        }
        core.view_changed().past(seen).await;
    }
}

/// Whether the topic that has this name now has the group as this partition.
fn is_of(view: &View, group: GroupId, topic: &str, partition: i32) -> bool {
    let partition = view.topic(topic).and_then(|topic| topic.partitions.get(partition as usize));
    partition.is_some_and(|partition| partition.group == group)
}

fn put_back(core: &Rc<impl Host>, pending: BTreeMap<GroupId, Led>) {
    let mut unreported = core.unreported().borrow_mut();
    for (group, led) in pending {
        // A leadership that came meanwhile is newer.
        unreported.entry(group).or_insert(led);
    }
}

fn has_others(core: &Rc<impl Host>) -> bool {
    core.view(|view| view.brokers().nth(1).is_some())
}

/// Builds the commands, at least one per topic. Leaves out what the metadata shows already.
pub fn leader_commands(view: &View, node: i32, led: &BTreeMap<GroupId, Led>) -> Vec<Command> {
    let mut by_topic: BTreeMap<&Arc<str>, Vec<LeaderReport>> = BTreeMap::new();
    for (group, Led { name: TopicPartition { topic, partition }, epoch, in_sync, .. }) in led {
        let term = epoch.term();
        // Not a partition of an earlier topic of this name.
        if !is_of(view, *group, topic, *partition) {
            continue;
        }
        let is_news = |known: &PartitionLeader| known.term < term || (known.term == term && known.voters != *in_sync);
        if view.leader(*group).is_none_or(is_news) {
            let report = LeaderReport { partition: *partition as u32, term, leader: node, voters: in_sync.clone() };
            by_topic.entry(topic).or_default().push(report);
        }
    }
    let mut commands = Vec::new();
    for (name, reports) in by_topic {
        let Some(Topic { name, id, .. }) = view.topic(name).map(|topic| &**topic) else { continue };
        commands.extend(reports.chunks(REPORTS_MAX).map(|leaders| Command::SetPartitionLeader {
            name: name.clone(),
            id: *id,
            leaders: leaders.to_vec(),
        }));
    }
    commands
}

/// How far the log of one partition has come.
pub struct Mark {
    name: TopicPartition,
    high_watermark: u64,
    log_start: u64,
    end_offset: u64,
}

/// On core 0: once a second, reports the watermarks that have moved since the last report.
pub async fn watermarks(core: Rc<impl Host>) {
    let mut told: AHashMap<GroupId, (u64, u64)> = AHashMap::new();
    while !core.metadata_ended().is_set() {
        runtime::sleep(WATERMARKS_EVERY).await;
        if !has_others(&core) || core.metadata_ended().is_set() {
            continue;
        }
        let marks = (0..core.cores()).map(|to| core.ask_watermarks(CoreId(to)));
        let marks: Vec<(GroupId, Mark)> = sync::all(marks.collect()).await.into_iter().flatten().collect();
        let mut by_topic: BTreeMap<Arc<str>, Vec<WatermarkReport>> = BTreeMap::new();
        let mut now_told = Vec::new();
        for (group, mark) in marks {
            let is = (mark.high_watermark, mark.log_start);
            if told.get(&group).is_some_and(|was| *was == is) || (is == (0, 0) && !told.contains_key(&group)) {
                continue;
            }
            if !core.view(|view| is_of(view, group, &mark.name.topic, mark.name.partition)) {
                continue;
            }
            now_told.push((group, is));
            let Mark { name, high_watermark, log_start, end_offset } = mark;
            let report = WatermarkReport { partition: name.partition as u32, high_watermark, log_start, end_offset };
            by_topic.entry(name.topic).or_default().push(report);
        }
        let node = core.node();
        let commands = core.view(|view| watermark_commands(view, node, by_topic));
        if !commands.is_empty() && report(&core, commands).await {
            told.extend(now_told);
        }
        told.retain(|group, _| core.view(|view| view.has_group(*group)));
    }
}

/// Builds the commands, at least one per topic.
fn watermark_commands(view: &View, node: i32, by_topic: BTreeMap<Arc<str>, Vec<WatermarkReport>>) -> Vec<Command> {
    let mut commands = Vec::new();
    for (name, reports) in by_topic {
        let Some(id) = view.topic(&name).map(|topic| topic.id) else { continue };
        commands.extend(reports.chunks(REPORTS_MAX).map(|watermarks| Command::UpdateHighWatermark {
            name: name.clone(),
            id,
            node,
            watermarks: watermarks.to_vec(),
        }));
    }
    commands
}

/// The watermarks of the partitions that this core leads.
pub async fn watermarks_here(core: Rc<impl Host>) -> Vec<(GroupId, Mark)> {
    let mut marks = Vec::new();
    let mark = |partition: &Rc<Partition>| {
        // An empty partition needs no report.
        if partition.leads() && partition.end() > 0 {
            let mark = Mark {
                name: partition.name.clone(),
                high_watermark: partition.high_watermark(),
                log_start: partition.log_start(&core),
                end_offset: partition.end(),
            };
            marks.push((partition.group(), mark));
        }
    };
    in_turns(&core, mark).await;
    marks
}

/// Submits a report and returns whether it succeeded. It is then shown here, so that the next one can be compared
/// with it.
async fn report(core: &Rc<impl Host>, commands: Vec<Command>) -> bool {
    let how = Submitting { acks: Some(Acks::Quorum), until: Until::Shown, ..Submitting::default() };
    match submit_with(core, commands, how).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%error, "cannot report partitions to the metadata leader");
            false
        }
    }
}
