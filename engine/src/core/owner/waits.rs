//! Waiting fetches: on the cores that own their partitions, and on the core that gathers their parts.
//!
//! `min_bytes` counts over the whole request. An owner that has some bytes, but not enough alone, reports its count
//! to the gathering core. That core calls all owners back once the sum is enough.

use crate::core::Core;
use runtime::sync::Marks;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use types::CoreId;

/// Identifies a fetch on all cores: the gathering core, and a number there.
pub type FetchId = (CoreId, u64);

/// The fetches of one core.
#[derive(Default)]
pub struct Fetches {
    next: Cell<u64>,
    /// Fetches that wait here, wherever they are gathered.
    waiting: RefCell<BTreeMap<FetchId, Waiting>>,
    /// Fetches that are gathered here from several cores.
    gathered: RefCell<BTreeMap<FetchId, Sum>>,
}

struct Waiting {
    /// `None` until the fetch waits.
    wake: Option<Rc<Marks>>,
    called_back: bool,
}

/// The owners' byte counts, as far as they were reported.
struct Sum {
    bytes_min: usize,
    /// The last count of each owner.
    known: Vec<(CoreId, usize)>,
    /// Owners that have not answered.
    owing: Vec<CoreId>,
    called_back: bool,
}

/// Removes a fetch from those that wait, when dropped.
pub struct Registered<'a> {
    fetches: &'a Fetches,
    id: FetchId,
}

/// Removes a fetch from those that are gathered, when dropped.
pub struct Gathered<'a> {
    fetches: &'a Fetches,
    id: FetchId,
}

impl Fetches {
    pub fn next_id(&self, origin: CoreId) -> FetchId {
        self.next.set(self.next.get() + 1);
        (origin, self.next.get())
    }

    /// From now on the fetch can be called back.
    pub fn register(&self, id: FetchId) -> Registered<'_> {
        self.waiting.borrow_mut().insert(id, Waiting { wake: None, called_back: false });
        Registered { fetches: self, id }
    }

    /// From now on these owners' counts are summed.
    pub fn gather(&self, id: FetchId, bytes_min: usize, owing: Vec<CoreId>) -> Gathered<'_> {
        let sum = Sum { bytes_min, known: Vec::with_capacity(owing.len()), owing, called_back: false };
        self.gathered.borrow_mut().insert(id, sum);
        Gathered { fetches: self, id }
    }

    /// An owner reports its byte count. Ignored if the fetch was answered meanwhile.
    pub fn has(&self, core: &Rc<Core>, id: FetchId, owner: CoreId, bytes: usize) {
        self.add_up(core, id, |sum| {
            sum.set(owner, bytes);
            false
        });
    }

    /// An owner has answered. `ends`: the whole fetch should end.
    pub fn has_answered(&self, core: &Rc<Core>, id: FetchId, owner: CoreId, bytes: usize, ends: bool) {
        self.add_up(core, id, |sum| {
            sum.set(owner, bytes);
            sum.owing.retain(|other| *other != owner);
            ends
        });
    }

    /// Updates the sum, and calls the owners back, once, when it is enough.
    fn add_up(&self, core: &Rc<Core>, id: FetchId, note: impl FnOnce(&mut Sum) -> bool) {
        let owing = {
            let mut gathered = self.gathered.borrow_mut();
            let Some(sum) = gathered.get_mut(&id) else { return };
            let ends = note(sum) || sum.total() >= sum.bytes_min;
            if !ends || std::mem::replace(&mut sum.called_back, true) {
                return;
            }
            sum.owing.clone()
        };
        for owner in owing {
            // This follows the request itself in the same lane, so the request is there before the call.
            core.tell_fetch_is_over(owner, id);
        }
    }

    /// Ends a wait. A fetch that does not wait (any more) is answered already.
    pub fn call_back(&self, id: FetchId) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&id) {
            waiting.call_back();
        }
    }

    /// The number of fetches that wait here or are gathered here.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len() + self.gathered.borrow().len()
    }

    /// Ends all waits, because the broker stops.
    pub fn cancel_all(&self) {
        self.waiting.borrow_mut().values_mut().for_each(Waiting::call_back);
    }
}

impl Sum {
    fn set(&mut self, owner: CoreId, bytes: usize) {
        match self.known.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, known)) => *known = bytes,
            None => self.known.push((owner, bytes)),
        }
    }

    fn total(&self) -> usize {
        self.known.iter().map(|(_, bytes)| bytes).sum()
    }
}

impl Waiting {
    fn call_back(&mut self) {
        self.called_back = true;
        self.wake.iter().for_each(|wake| wake.wake());
    }
}

impl Registered<'_> {
    /// Sets what wakes the fetch when it is called back.
    pub fn wake_by(&self, wake: Rc<Marks>) {
        if let Some(waiting) = self.fetches.waiting.borrow_mut().get_mut(&self.id) {
            waiting.wake = Some(wake);
        }
    }

    pub fn is_called_back(&self) -> bool {
        self.fetches.waiting.borrow().get(&self.id).is_some_and(|waiting| waiting.called_back)
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.fetches.waiting.borrow_mut().remove(&self.id);
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        self.fetches.gathered.borrow_mut().remove(&self.id);
    }
}
