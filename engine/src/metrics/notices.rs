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
    /// Maximum number of groups with a message. Further groups only count in `groups_stopped`.
    const MAX: usize = 100;

    pub fn add(&self, group: GroupId, notice: String) {
        let mut notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notices.len() < Self::MAX {
            notices.insert(group, notice);
        }
    }

    pub fn all(&self) -> Vec<(GroupId, String)> {
        let notices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notices.iter().map(|(group, notice)| (*group, notice.clone())).collect()
    }
}
