//! Asking the partitions' owners: one call per core, results in the order of the questions.

use crate::{
    core::{Core, CoreId},
    partition::Partition,
    sync,
};
use net::{errors::ErrorCode, produce::TopicRef};
use std::{future::Future, rc::Rc};
use wal::record::GroupId;

/// A question to one partition.
pub struct Question<T> {
    pub topic: TopicRef,
    pub partition: i32,
    pub what: T,
}

/// Puts every question to its partition on its owning core; what is unknown or led elsewhere is answered here.
pub async fn ask<T, R, F>(
    core: &Rc<Core>,
    questions: Vec<Question<T>>,
    answer: fn(Rc<Core>, Rc<Partition>, T) -> F,
) -> Vec<Result<R, ErrorCode>>
where
    T: Send + 'static,
    R: Send + 'static,
    F: Future<Output = Result<R, ErrorCode>> + 'static,
{
    let mut answers: Vec<Result<R, ErrorCode>> = Vec::with_capacity(questions.len());
    let mut by_owner: Vec<Vec<(usize, GroupId, T)>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for (place, question) in questions.into_iter().enumerate() {
        let group = core.find_group(&question.topic, question.partition);
        answers.push(Err(*group.as_ref().err().unwrap_or(&ErrorCode::NotLeaderOrFollower)));
        if let Ok(group) = group {
            by_owner[core.owner(group).0].push((place, group, question.what));
        }
    }
    let calls =
        by_owner.into_iter().enumerate().filter(|(_, questions)| !questions.is_empty()).map(|(owner, questions)| {
            core.call(CoreId(owner), move |there| async move {
                let mut answers = Vec::with_capacity(questions.len());
                for (place, group, what) in questions {
                    let found = match there.partition(group) {
                        Some(partition) if partition.leads() => answer(there.clone(), partition, what).await,
                        Some(partition) => Err(partition.why_not_led_here(&there)),
                        None => Err(ErrorCode::NotLeaderOrFollower),
                    };
                    answers.push((place, found));
                }
                answers
            })
            .result()
        });
    for (place, found) in sync::all(calls.collect()).await.into_iter().flatten() {
        answers[place] = found;
    }
    answers
}
