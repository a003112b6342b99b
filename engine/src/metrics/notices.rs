//! Messages for people.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};
use types::GroupId;

/// Messages for people about some groups, by group. They are seldom written, so a lock does no harm.
#[derive(Debug, Default)]
pub struct Notices(Mutex<BTreeMap<GroupId, String>>);

impl Notices {
    /// Maximum number of groups with a message. The groups with the lowest numbers keep theirs, so the metadata's
    /// group 0 always does. The others only count in `groups_stopped`.
    const MAX: usize = 100;

    pub fn add(&self, group: GroupId, notice: String) {
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notices.insert(group, notice);
        if notices.len() > Self::MAX {
            notices.pop_last();
        }
    }

    pub fn all(&self) -> Vec<(GroupId, String)> {
        let notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().map(|(group, notice)| (*group, notice.clone())).collect()
    }
}
