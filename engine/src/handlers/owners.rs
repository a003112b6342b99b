//! Questions to the owners of partitions: one ask per core, with answers in the order of the questions. With many
//! questions, the work is done in turns.

use crate::{
    core::{
        Core,
        mesh::list::AskKind,
        owner::{Found, Placed},
    },
    long_work::Work,
};
use net::{codec::produce::TopicRef, errors::ErrorCode};
use runtime::sync;
use std::rc::Rc;
use types::CoreId;

/// A question to one partition.
pub struct Question<T> {
    pub topic: TopicRef,
    pub partition: i32,
    pub what: T,
}

/// Puts every question to its partition on its owning core. Partitions that are unknown or led elsewhere get their
/// error here. `to_ask` makes the ask with a core's questions, which
/// [`answer_all`](crate::core::owner::answer_all) answers there.
pub async fn ask_owners<T, R, K: AskKind<Core, Reply = Found<R>>>(
    core: &Rc<Core>,
    questions: Vec<Question<T>>,
    to_ask: impl Fn(Placed<T>) -> K,
) -> Vec<Result<R, ErrorCode>> {
    let mut work = Work::on(core);
    let mut answers: Vec<Result<R, ErrorCode>> = Vec::with_capacity(questions.len());
    let mut by_owner: Vec<Placed<T>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for (place, question) in questions.into_iter().enumerate() {
        work.entry().await;
        let group = core.find_group(&question.topic, question.partition);
        answers.push(Err(*group.as_ref().err().unwrap_or(&ErrorCode::NotLeaderOrFollower)));
        if let Ok(group) = group {
            by_owner[core.owner(group).0].push((place, group, question.what));
        }
    }
    let asked = by_owner.into_iter().enumerate().filter(|(_, questions)| !questions.is_empty());
    let asked = asked.map(|(owner, questions)| core.ask(CoreId(owner), to_ask(questions)));
    for (place, found) in sync::all(asked.collect()).await.into_iter().flatten() {
        answers[place] = found;
    }
    answers
}
