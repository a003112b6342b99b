//! What a group's owner says of the state that checkpoints keep for it.

use crate::{disk::Disk, record::GroupId, store::Store};

impl<D: Disk> Store<D> {
    /// A group's state has become less, though nothing was applied: the next checkpoint asks for it, and what is held
    /// of the former state goes. Nothing if the group is gone.
    pub fn app_has_changed(&self, group: GroupId) {
        if let Some(log) = self.shared.state.borrow_mut().groups.get_mut(&group) {
            log.app_has_changed = true;
        }
    }
}
