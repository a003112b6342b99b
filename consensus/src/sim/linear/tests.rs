//! Handwritten histories of a register.

use crate::sim::linear::*;

/// A register that can be written, swapped and read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Register(u32);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Op {
    Write(u32),
    /// From, to. Swaps only if the register has the first value.
    Swap(u32, u32),
    Read,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    /// The value before the change.
    Was(u32),
    Is(u32),
    Refused,
}

impl Model for Register {
    type Op = Op;
    type Reply = Reply;

    fn apply(&mut self, op: &Op) -> Reply {
        let before = self.0;
        match *op {
            Op::Write(value) => self.0 = value,
            Op::Swap(from, to) if from == before => self.0 = to,
            Op::Swap(..) => return Reply::Refused,
            Op::Read => return Reply::Is(before),
        }
        Reply::Was(before)
    }

    fn only_reads(reply: &Reply) -> bool {
        !matches!(reply, Reply::Was(_))
    }
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn call(from: u64, until: u64, op: Op, reply: Reply) -> Call<Register> {
    Call { op, from: at(from), until: at(until), reply: Some(reply), after: Vec::new() }
}

fn write(from: u64, until: u64, value: u32, before: u32) -> Call<Register> {
    call(from, until, Op::Write(value), Reply::Was(before))
}

fn read(from: u64, until: u64, value: u32) -> Call<Register> {
    call(from, until, Op::Read, Reply::Is(value))
}

/// Nobody knows whether it took effect.
fn unanswered(from: u64, op: Op) -> Call<Register> {
    Call { op, from: at(from), until: NEVER, reply: None, after: Vec::new() }
}

fn holds(calls: &[Call<Register>]) -> bool {
    match check(calls) {
        Verdict::Linearizable => true,
        Verdict::Impossible(_) => false,
        Verdict::GaveUp => panic!("a small history was too much"),
    }
}

#[test]
fn operations_one_after_the_other_are_seen_in_that_order() {
    assert!(holds(&[]));
    assert!(holds(&[write(0, 1, 7, 0), read(2, 3, 7), write(4, 5, 8, 7), read(6, 7, 8)]));
    assert!(!holds(&[write(0, 1, 7, 0), read(2, 3, 0)]), "stale");
    assert!(!holds(&[write(0, 1, 7, 0), write(2, 3, 8, 7), read(4, 5, 7)]), "older than the newest");
    assert!(!holds(&[read(0, 1, 7), write(2, 3, 7, 0)]), "from the future");
    assert!(!holds(&[read(0, 1, 9)]), "nobody wrote it");
}

#[test]
fn overlapping_operations_may_be_in_any_order_but_only_one() {
    assert!(holds(&[write(0, 10, 7, 0), read(1, 2, 0), read(3, 4, 7)]));
    assert!(!holds(&[write(0, 10, 7, 0), read(1, 2, 7), read(3, 4, 0)]), "it was there, and then not");
    assert!(holds(&[write(0, 10, 7, 0), read(1, 4, 7), read(3, 5, 0)]), "the reads overlap too");
    // Two concurrent writes. All later reads must see the same one as the last.
    let writes = || [write(0, 10, 7, 8), write(0, 10, 8, 0)];
    assert!(holds(&both(writes().into(), vec![read(11, 12, 7), read(13, 14, 7)])));
    assert!(!holds(&both(writes().into(), vec![read(11, 12, 8)])), "the answers tell which was last");
}

fn both(first: Vec<Call<Register>>, then: Vec<Call<Register>>) -> Vec<Call<Register>> {
    first.into_iter().chain(then).collect()
}

#[test]
fn answers_of_writes_count_too() {
    assert!(
        !holds(&[write(0, 1, 7, 0), call(2, 3, Op::Swap(7, 8), Reply::Refused)]),
        "it was refused without a reason"
    );
    assert!(
        !holds(&[call(0, 1, Op::Swap(0, 7), Reply::Was(0)), call(0, 1, Op::Swap(0, 8), Reply::Was(0))]),
        "both can't be first"
    );
    assert!(holds(&[call(0, 1, Op::Swap(0, 7), Reply::Was(0)), call(0, 1, Op::Swap(0, 8), Reply::Refused)]));
}

#[test]
fn an_unanswered_operation_may_have_happened_once_and_not_before_its_start() {
    let lost = || unanswered(0, Op::Write(7));
    assert!(holds(&[lost(), read(1, 2, 0)]), "never");
    assert!(holds(&[lost(), read(1, 2, 7)]), "at once");
    assert!(holds(&[lost(), read(1, 2, 0), write(3, 4, 8, 0), read(5, 6, 8), read(7, 8, 7)]), "much later");
    assert!(!holds(&[lost(), read(1, 2, 7), read(3, 4, 0)]), "it does not go away");
    let twice = [lost(), read(1, 2, 7), write(3, 4, 8, 7), read(5, 6, 7)];
    assert!(!holds(&twice), "twice");
    assert!(!holds(&[read(0, 1, 7), unanswered(2, Op::Write(7))]), "before it was asked for");
    // Two unanswered calls. Either or both explain what is read.
    let two = || vec![unanswered(0, Op::Swap(0, 7)), unanswered(0, Op::Swap(7, 8))];
    assert!(holds(&both(two(), vec![read(1, 2, 8)])));
    assert!(!holds(&both(two(), vec![read(1, 2, 8), read(3, 4, 7)])));
}

#[test]
fn a_read_that_may_be_stale_has_its_bound_and_never_goes_back() {
    let stale = |from, value, after: Vec<usize>| Call { after, ..read(from, 100, value) };
    let writes = || vec![write(0, 1, 7, 0), write(10, 11, 8, 7)];
    assert!(holds(&both(writes(), vec![stale(5, 7, vec![])])), "no staler than it may be");
    assert!(!holds(&both(writes(), vec![stale(12, 7, vec![])])), "staler than it may be");
    assert!(!holds(&both(writes(), vec![stale(5, 0, vec![])])));
    assert!(holds(&both(writes(), vec![stale(5, 8, vec![]), stale(5, 7, vec![])])), "two brokers");
    assert!(!holds(&both(writes(), vec![stale(5, 8, vec![]), stale(5, 7, vec![2])])), "one, that goes back");
    assert!(!holds(&both(writes(), vec![stale(5, 7, vec![1])])), "it has shown that write");
}

#[test]
fn the_search_ends_and_says_so() {
    // Any subset of these may have taken effect, but none explains what is read.
    let calls: Vec<_> = (1..=16).map(|value| unanswered(0, Op::Write(value))).chain([read(1, 2, 99)]).collect();
    assert_eq!(check_within(&calls, 1000), Verdict::GaveUp);
    assert!(matches!(check_within(&calls[12..], 1000), Verdict::Impossible(_)));
}

#[test]
fn long_histories_of_many_clients_are_no_trouble() {
    // Eight calls at a time. A write returns the value of the write before it, and one call in ten has no answer.
    let mut calls = Vec::new();
    for n in 0..2000u32 {
        let from = u64::from(n / 8) * 10;
        calls.push(match n % 10 {
            3 => unanswered(from, Op::Swap(u32::MAX, n)),
            _ if n % 3 == 0 => call(from, from + 9, Op::Swap(u32::MAX, n), Reply::Refused),
            _ => {
                let before = calls.iter().rev().find_map(|call: &Call<Register>| match call.op {
                    Op::Write(value) => Some(value),
                    _ => None,
                });
                write(from, from + 9, n, before.unwrap_or(0))
            }
        });
    }
    assert!(holds(&calls));
    let last = calls.len() - 1;
    calls[last].reply = Some(Reply::Was(5));
    assert!(!holds(&calls));
}

#[test]
fn an_impossible_history_is_told_so_that_it_can_be_understood() {
    let Verdict::Impossible(told) = check(&[write(0, 1, 7, 0), read(2, 3, 0)]) else { panic!("a stale read") };
    assert!(told.contains("up to Register(7)"), "{told}");
    assert!(told.contains("0 .. 1000 µs Write(7) -> Was(0) [explained]"), "{told}");
    assert!(told.contains("2000 .. 3000 µs Read -> Is(0) [may be next]"), "{told}");
}

#[test]
fn an_operation_without_effect_now_may_have_one_later() {
    // Written while the value is there already, or after it was overwritten. Only the latter explains the read.
    let overwritten = write(0, 10, 8, 7);
    assert!(holds(&[write(0, 1, 7, 0), overwritten, call(2, 10, Op::Write(7), Reply::Was(8)), read(11, 12, 7)]));
    let idle = || unanswered(2, Op::Write(7));
    assert!(holds(&[write(0, 1, 7, 0), idle(), write(3, 4, 8, 7), read(5, 6, 7)]));
}
