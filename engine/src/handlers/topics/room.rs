//! Places new partitions on brokers that have memory for them, and rejects them if there are none.
//!
//! It counts what this core's view shows, and what the same request has asked for already. Other requests may pass
//! at the same time. The metadata leader counts again, in the order of the log (`consensus::plane`).

use crate::core::Core;
use crate::{core::brokers, handlers::refusal::Refusal};
use consensus::metadata::{NoRoom, Placed};
use std::{cell::RefCell, collections::BTreeMap};

/// The partitions that one request asks for, by topic. A topic that is checked again counts once.
#[derive(Default)]
pub struct Asked(RefCell<Topics>);

#[derive(Default)]
struct Topics {
    by_name: BTreeMap<String, Placed>,
    total: Placed,
}

impl Asked {
    /// The replicas of `count` new partitions of a topic, `factor` each. Leaves out full brokers, and fails if the
    /// others are too few. A broker that is almost full may be left out even if a few more would fit.
    pub fn place(&self, core: &Core, name: &str, count: usize, factor: usize) -> Result<Vec<Vec<i32>>, Refusal> {
        self.forget(name);
        let (mut full, mut refused) = (Vec::new(), None);
        loop {
            let candidates = brokers::placeable(core, factor, &full);
            if let Some(no_room) = refused.filter(|_| candidates.check(factor as i16).is_err()) {
                return Err(Refusal::from(no_room));
            }
            let nodes: Vec<i32> = candidates.live.iter().chain(&candidates.away).copied().collect();
            // This check comes before lists are built whose size only the request's numbers determine.
            self.check(core, |placed, core| {
                core.view(|view| placed.check_total(view.brokers(), &nodes, count, factor))
            })?;
            let replicas = core.placement.spread(&candidates, count, factor);
            match self.take(core, name, &replicas) {
                Ok(()) => return Ok(replicas),
                Err(no_room) if no_room.of_cluster => return Err(no_room.into()),
                Err(no_room) => {
                    full.push(no_room.node);
                    refused = refused.or(Some(no_room));
                }
            }
        }
    }

    /// Records partitions whose replicas the client assigned, if brokers have memory for them.
    pub fn assigned(&self, core: &Core, name: &str, replicas: Vec<Vec<i32>>) -> Result<Vec<Vec<i32>>, Refusal> {
        self.forget(name);
        self.take(core, name, &replicas)?;
        Ok(replicas)
    }

    fn take(&self, core: &Core, name: &str, replicas: &[Vec<i32>]) -> Result<(), NoRoom> {
        let more = Placed::of(replicas);
        self.check(core, |placed, core| core.view(|view| placed.check_room(view.brokers(), &more)))?;
        let mut topics = self.0.borrow_mut();
        topics.total.join(&more);
        topics.by_name.insert(name.to_owned(), more);
        Ok(())
    }

    /// Runs `check` on the existing partitions plus those that the request has asked for.
    fn check<R>(&self, core: &Core, check: impl FnOnce(&Placed, &Core) -> R) -> R {
        let mut placed = core.view(|view| view.placed().clone());
        placed.join(&self.0.borrow().total);
        check(&placed, core)
    }

    fn forget(&self, name: &str) {
        let mut topics = self.0.borrow_mut();
        if let Some(before) = topics.by_name.remove(name) {
            topics.total.leave(&before);
        }
    }
}
