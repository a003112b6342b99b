//! Receipts: a core tells that it has its own copy of a request, long before it answers.
//! Lives on: the core that waits for the receipt.
//!
//! Bound: one for each request that is passed on, until it is answered or dropped.

use runtime::sync::Notify;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};
use types::CoreId;

/// Identifies a receipt on all cores: the core that waits for it, and a number there.
#[derive(Clone, Copy, Debug)]
pub struct ReceiptId(CoreId, u64);

/// The receipts that one core waits for.
#[derive(Default)]
pub struct Receipts {
    next: Cell<u64>,
    awaited: RefCell<BTreeMap<u64, Rc<Notify>>>,
}

/// Waits for a receipt. Dropping it ends the wait.
pub struct Awaited<'a> {
    receipts: &'a Receipts,
    id: ReceiptId,
}

impl Receipts {
    /// Lets the receipt notify `on_receipt`. `me`: this core.
    pub fn wait(&self, me: CoreId, on_receipt: Rc<Notify>) -> Awaited<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.awaited.borrow_mut().insert(number, on_receipt);
        Awaited { receipts: self, id: ReceiptId(me, number) }
    }

    /// Takes a receipt. Ignored if nobody waits for it any more.
    pub fn receive(&self, ReceiptId(_, number): ReceiptId) {
        if let Some(on_receipt) = self.awaited.borrow().get(&number) {
            on_receipt.notify();
        }
    }
}

impl Receipts {
    /// Receipts that are waited for.
    pub fn waiting(&self) -> usize {
        self.awaited.borrow().len()
    }
}

impl Awaited<'_> {
    pub fn id(&self) -> ReceiptId {
        self.id
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.receipts.awaited.borrow_mut().remove(&self.id.1);
    }
}

impl ReceiptId {
    /// The core that waits for the receipt.
    pub fn awaited_by(self) -> CoreId {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_notifies_the_one_that_waits_for_it() {
        let receipts = Receipts::default();
        let notified = [(); 3].map(|()| Rc::new(Notify::default()));
        let [first, second, third] = [0, 1, 2].map(|at: usize| receipts.wait(CoreId(0), notified[at].clone()));
        let third_id = third.id();
        drop(third);
        receipts.receive(second.id());
        receipts.receive(third_id);
        assert_eq!(notified.each_ref().map(|notify| notify.version()), [0, 1, 0]);
        drop((first, second));
        assert_eq!(receipts.waiting(), 0);
    }
}
