//! The slices of the metadata that a core owns.

use super::{Core, messages::Notice};
use crate::cluster::meta::{Parts, SliceResults, SliceWork};
use consensus::metadata::{Applied, AskedTooLate, Request, Slice, Topic, slice_of_topic};
use std::{collections::BTreeMap, rc::Rc, sync::Arc};
use types::{META_CORE, SliceId};

impl Core {
    /// Does the work that the metadata plane asks of this core's slices, in order, and reports the results.
    pub fn work_on_slices(self: &Rc<Self>, work: Vec<SliceWork>) {
        let mut slices = self.slices.borrow_mut();
        let mut results = Vec::new();
        for work in work {
            match work {
                SliceWork::Speculate { generation, index, parts } => {
                    let results_of = apply_all(&mut slices, parts, |slice, request| slice.speculate(index, request));
                    results.push(SliceResults { generation, index, results: results_of });
                }
                SliceWork::Apply { generation, index, parts } => {
                    let results_of = apply_all(&mut slices, parts, Slice::apply_request);
                    results.push(SliceResults { generation, index, results: results_of });
                }
                SliceWork::Commit { index } => slices.values_mut().for_each(|slice| slice.commit(index)),
                SliceWork::RollBack => slices.values_mut().for_each(Slice::roll_back),
            }
        }
        drop(slices);
        if !results.is_empty() {
            self.tell(META_CORE, Notice::SlicesDid { results });
        }
    }

    /// Copies this core's slices as they are now (topics are shared, not copied). It is called from the queue that
    /// brings the slices their commands, so the copy holds exactly the commands before it.
    pub fn cut_slices(&self) -> Vec<Slice> {
        self.slices.borrow().values().map(Slice::committed).collect()
    }

    /// A topic as its slice here has it, committed or not.
    pub fn topic_in_slice(&self, name: &str) -> Option<Arc<Topic>> {
        self.slices.borrow().get(&slice_of_topic(name))?.topic(name).cloned()
    }
}

fn apply_all(
    slices: &mut BTreeMap<SliceId, Slice>,
    parts: Parts,
    mut apply: impl FnMut(&mut Slice, &Request) -> Result<Applied, AskedTooLate>,
) -> Vec<(usize, Result<Applied, AskedTooLate>)> {
    let apply_one = |(at, request): (usize, Request)| {
        let slice = slices.get_mut(&request.command.slice()).expect("a request goes to the owner of its slice");
        (at, apply(slice, &request))
    };
    parts.into_iter().map(apply_one).collect()
}
