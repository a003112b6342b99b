//! Asks the owners of partitions: one call per core, with answers in the order of the questions. With many
//! questions, the work is done in turns.

use crate::{
    core::{Core, long_work::Work},
    partition::Partition,
    sync,
};
use net::{codec::produce::TopicRef, errors::ErrorCode};
use std::rc::Rc;
use types::{CoreId, GroupId};

/// A question to one partition.
pub struct Question<T> {
    pub topic: TopicRef,
    pub partition: i32,
    pub what: T,
}

/// Puts every question to its partition on its owning core. Partitions that are unknown or led elsewhere get their
/// error here.
pub async fn ask<T, R>(
    core: &Rc<Core>,
    questions: Vec<Question<T>>,
    answer: impl AsyncFn(&mut Work<'_>, Rc<Partition>, T) -> Result<R, ErrorCode> + Copy + Send + 'static,
) -> Vec<Result<R, ErrorCode>>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let mut work = Work::on(core);
    let mut answers: Vec<Result<R, ErrorCode>> = Vec::with_capacity(questions.len());
    let mut by_owner: Vec<Vec<(usize, GroupId, T)>> = (0..core.cores()).map(|_| Vec::new()).collect();
    for (place, question) in questions.into_iter().enumerate() {
        work.entry().await;
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
                let mut work = Work::on(&there);
                for (place, group, what) in questions {
                    work.entry().await;
                    let found = match there.partition(group) {
                        Some(partition) if partition.leads() => answer(&mut work, partition, what).await,
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
