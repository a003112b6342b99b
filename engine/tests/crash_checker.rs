//! Tests of the crash test's checker. Each kind of violation is planted in an otherwise correct log, and the checker
//! must detect it.

#[path = "support/history.rs"]
#[allow(dead_code)] // The crash test uses the rest.
mod history;

use history::{History, Id, Violation};

fn id(producer: u32, sequence: u64) -> Id {
    Id { producer, sequence }
}

/// Two producers that take turns. Every third record got no answer, all others were acknowledged, and the first half
/// was read.
fn sound() -> (History, Vec<(i64, Vec<u8>)>) {
    let mut history = History::default();
    let log: Vec<(i64, Vec<u8>)> = (0..100).map(|o| (o, id(o as u32 % 2, o as u64 / 2).payload())).collect();
    for (offset, payload) in &log {
        if offset % 3 != 0 {
            history.acked(Id::of_payload(payload).expect("a sent record"), *offset);
        }
        if *offset < 50 {
            history.seen(*offset, payload);
        }
    }
    (history, log)
}

/// Renumbers the log, as a broker would that loses or duplicates records without a trace.
fn renumber(log: Vec<(i64, Vec<u8>)>) -> Vec<(i64, Vec<u8>)> {
    log.into_iter().enumerate().map(|(offset, (_, payload))| (offset as i64, payload)).collect()
}

#[test]
fn a_sound_log_passes() {
    let (history, log) = sound();
    assert_eq!(history.check(&log), []);
    assert_eq!((history.acked_count(), history.seen_count()), (66, 50));
}

#[test]
fn an_unanswered_record_may_be_missing_at_the_end() {
    let (history, mut log) = sound();
    assert_eq!(log.pop().map(|(offset, _)| offset % 3), Some(0));
    assert_eq!(history.check(&log), []);
}

#[test]
fn a_lost_record_is_caught() {
    let (history, mut log) = sound();
    log.pop();
    log.pop();
    assert_eq!(history.check(&log), [Violation::Lost { id: id(0, 49), offset: 98 }]);
}

#[test]
fn a_loss_in_the_middle_is_caught_even_if_the_rest_moves_up() {
    let (history, mut log) = sound();
    log.remove(70);
    let violations = history.check(&renumber(log));
    assert!(violations.contains(&Violation::Lost { id: id(0, 35), offset: 70 }), "{violations:?}");
    assert!(violations.contains(&Violation::Moved { id: id(1, 35), acked: 71, found: 70 }), "{violations:?}");
}

#[test]
fn a_hole_in_the_offsets_is_caught() {
    let (history, mut log) = sound();
    assert_eq!(log[60].0 % 3, 0);
    log.remove(60);
    assert_eq!(history.check(&log), [Violation::Gap { before: Some(59), offset: 61 }]);
    let (history, log) = sound();
    let violations = history.check(&log[1..]);
    assert!(violations.contains(&Violation::Gap { before: None, offset: 1 }), "{violations:?}");
}

#[test]
fn a_duplicate_is_caught() {
    let (history, mut log) = sound();
    log.push((100, log[97].1.clone()));
    assert_eq!(history.check(&log), [Violation::Duplicated { id: id(1, 48), first: 97, again: 100 }]);
}

#[test]
fn a_duplicate_of_a_record_that_was_never_answered_is_caught() {
    let (history, mut log) = sound();
    log.push((100, log[99].1.clone()));
    assert_eq!(history.check(&log), [Violation::Duplicated { id: id(1, 49), first: 99, again: 100 }]);
}

#[test]
fn a_reorder_within_one_producer_is_caught() {
    let (_, mut log) = sound();
    // No record was acknowledged or read, so only the order shows the violation.
    let (a, b) = (log[80].1.clone(), log[82].1.clone());
    (log[80].1, log[82].1) = (b, a);
    assert_eq!(History::default().check(&log), [Violation::Reordered { id: id(0, 40), offset: 82, after: id(0, 41) }]);
}

#[test]
fn producers_may_come_in_any_order_to_each_other() {
    let (_, mut log) = sound();
    let (a, b) = (log[80].1.clone(), log[81].1.clone());
    (log[80].1, log[81].1) = (b, a);
    assert_eq!(History::default().check(&log), []);
}

#[test]
fn a_flipped_bit_is_caught() {
    let (history, mut log) = sound();
    *log[97].1.last_mut().expect("not empty") ^= 1;
    let violations = history.check(&log);
    assert!(violations.contains(&Violation::Foreign { offset: 97 }), "{violations:?}");
    assert!(violations.contains(&Violation::Lost { id: id(1, 48), offset: 97 }), "{violations:?}");
}

#[test]
fn a_record_that_changes_after_it_was_seen_is_caught() {
    let (mut history, log) = sound();
    history.seen(99, &log[98].1);
    assert_eq!(history.check(&log), [Violation::Unseen { id: id(0, 49), offset: 99, now: Some(id(1, 49)) }]);
    // Two different reads contradict each other, no matter which record the log has in the end.
    history.seen(99, &log[99].1);
    assert_eq!(history.check(&log), [Violation::Unseen { id: id(0, 49), offset: 99, now: Some(id(1, 49)) }]);
}

#[test]
fn two_acks_for_one_record_are_caught() {
    let (mut history, log) = sound();
    history.acked(id(1, 48), 97);
    assert_eq!(history.check(&log), [Violation::Duplicated { id: id(1, 48), first: 97, again: 97 }]);
}

#[test]
fn an_ack_without_an_offset_promises_the_record_and_no_place() {
    let (mut history, mut log) = sound();
    history.acked(id(1, 49), -1001);
    assert_eq!(history.check(&log), []);
    log.pop();
    assert_eq!(history.check(&log), [Violation::Lost { id: id(1, 49), offset: -1 }]);
}
