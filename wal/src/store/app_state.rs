//! Notes changes of the state that checkpoints keep for a group.

use crate::{disk::Disk, store::Store};
use types::GroupId;

impl<D: Disk> Store<D> {
    /// Notes that a group's state shrank although nothing was applied. The next checkpoint asks for the new state,
    /// and the space of the former state is freed. Does nothing if the group is gone.
    pub fn app_has_changed(&self, group: GroupId) {
        if let Some(log) = self.shared.state.borrow_mut().groups.get_mut(&group) {
            log.app_has_changed = true;
        }
    }
}
