//! Where new partitions go so that brokers have memory for them, and the refusal where none has.
//!
//! Counted is what this core's view shows, and what the same request has asked for already. Requests of others may pass at
//! the same time; the leader of the metadata counts once more, in the order of the log (`consensus::plane`).

use crate::core::Core;
use crate::handlers::{cluster::brokers, refusal::Refusal};
use consensus::metadata::{NoRoom, Placed};
use std::{cell::RefCell, collections::BTreeMap};

/// What one request asks for, by topic: a topic that is checked again counts once.
#[derive(Default)]
pub struct Asked(RefCell<Topics>);

#[derive(Default)]
struct Topics {
    by_name: BTreeMap<String, Placed>,
    total: Placed,
}

impl Asked {
    /// The replicas of `count` new partitions of a topic, `factor` each: on brokers that are full only if there is no
    /// other way, which is refused. Brokers that are almost full may be left out though a few more would fit.
    pub fn place(&self, core: &Core, name: &str, count: usize, factor: usize) -> Result<Vec<Vec<i32>>, Refusal> {
        self.forget(name);
        let (mut full, mut refused) = (Vec::new(), None);
        loop {
            let candidates = brokers::placeable(core, factor, &full);
            if let Some(no_room) = refused.filter(|_| candidates.check(factor as i16).is_err()) {
                return Err(Refusal::from(no_room));
            }
            let nodes: Vec<i32> = candidates.live.iter().chain(&candidates.away).copied().collect();
            // Before lists are made that nothing but the request's few bytes would bound.
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

    /// Takes note of partitions whose replicas were assigned by hand, if brokers have memory for them.
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

    /// With what there is and what the request has asked for.
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
