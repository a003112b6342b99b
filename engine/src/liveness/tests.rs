//! Cores of other brokers that beat, fall silent and return, as one replica's host hears them.

use super::*;
use crate::partition::tests::desk::{GROUP, Machine, exchange};

const MS: Duration = Duration::from_millis(1);

fn beat(incarnation: u64, core: u16, cores: u16) -> Beat {
    Beat { incarnation, core, cores, healthy: true }
}

/// A machine of broker 1, whose partition has a replica on broker 2 too.
fn one() -> Machine {
    Machine::new(1, &[1, 2], &[])
}

/// Replicas on brokers 2, 1 and 3. The first leads.
fn three() -> Vec<Machine> {
    let nodes = [2, 1, 3];
    let mut machines: Vec<Machine> = nodes.map(|node| Machine::new(node, &nodes, &[])).into();
    exchange(&mut machines, |_, _| true);
    assert!(machines.iter().all(|machine| leader_seen_by(machine) == Some(2)));
    machines
}

fn leader_seen_by(machine: &Machine) -> Option<i32> {
    machine.desk.led.borrow().last().and_then(|led| led.node)
}

#[test]
fn a_core_is_silent_after_800_ms_or_after_300_without_a_connection() {
    let machine = one();
    let (desk, groups) = (&machine.desk, &machine.desk.groups);
    let is_there = || groups.is_there(&**desk, GROUP, 2);
    assert!(!is_there(), "it was never heard");
    for (ways, most) in [(BTreeSet::from([2]), SILENCE_MAX), (BTreeSet::new(), SILENCE_WITHOUT_WAY)] {
        *desk.ways.borrow_mut() = ways;
        let before = clock::now();
        groups.note(desk, 2, beat(7, 0, 1));
        mark_silent(desk, before + most);
        assert!(is_there());
        mark_silent(desk, clock::now() + most + MS);
        assert!(!is_there());
    }
}

#[test]
fn an_unhealthy_core_is_there_and_cannot_lead() {
    let machine = one();
    let (desk, groups) = (&machine.desk, &machine.desk.groups);
    groups.note(desk, 2, beat(7, 0, 1));
    assert!(groups.can_lead(&**desk, GROUP, 2) && !groups.is_ill(2));
    groups.note(desk, 2, Beat { healthy: false, ..beat(7, 0, 1) });
    assert!(groups.is_there(&**desk, GROUP, 2) && !groups.can_lead(&**desk, GROUP, 2) && groups.is_ill(2));
}

#[test]
fn cores_that_a_broker_no_longer_has_are_forgotten() {
    let machine = one();
    let (desk, groups) = (&machine.desk, &machine.desk.groups);
    (0..4).for_each(|core| groups.note(desk, 2, beat(7, core, 4)));
    groups.note(desk, 3, beat(7, 3, 4));
    groups.note(desk, 2, beat(8, 0, 2));
    assert_eq!(groups.heard.borrow().keys().copied().collect::<Vec<_>>(), [(2, 0), (2, 1), (3, 3)]);
}

#[test]
fn the_next_replica_leads_when_the_leaders_core_falls_silent() {
    let mut machines = three();
    for machine in &machines[1..] {
        let desk = &machine.desk;
        desk.groups.note(desk, 2, beat(7, 0, 1));
        desk.there.borrow_mut().remove(&2);
        mark_silent(desk, clock::now() + SILENCE_MAX + MS);
    }
    machines.iter_mut().for_each(Machine::settle);
    assert_eq!([1, 2].map(|at| leader_seen_by(&machines[at])), [None; 2]);
    // The first of them stands at once, without an election timeout.
    for _ in 0..2 {
        machines[1..].iter().for_each(|machine| machine.partition().tick(&machine.desk, clock::now()));
        exchange(&mut machines, |from, to| from != 2 && to != 2);
    }
    assert!(machines[1].partition().leads());
    assert_eq!([1, 2].map(|at| leader_seen_by(&machines[at])), [Some(1); 2]);
}

#[test]
fn another_process_of_the_leaders_broker_does_not_lead() {
    let mut machines = three();
    let follower = &mut machines[1];
    let desk = follower.desk.clone();
    for (incarnation, leader) in [(7, Some(2)), (7, Some(2)), (8, None)] {
        desk.groups.note(&desk, 2, beat(incarnation, 0, 1));
        follower.settle();
        assert_eq!(leader_seen_by(follower), leader, "process {incarnation}");
    }
}

#[test]
fn messages_for_unknown_groups_are_kept_up_to_a_bound() {
    let groups = Groups::default();
    let message = |from: u64| Message { from, ..Message::default() };
    let taken = |group| groups.take_early(group).into_iter().map(|(message, _)| message.from).collect::<Vec<_>>();
    groups.keep_early(GroupId(1), message(1), vec![(0, Bytes::from(vec![0; EARLY_BYTES_MAX + 1]))]);
    groups.keep_early(GroupId(1), message(2), vec![(0, Bytes::from(vec![0; EARLY_BYTES_MAX]))]);
    groups.keep_early(GroupId(2), message(3), Vec::new());
    assert_eq!((taken(GroupId(1)), taken(GroupId(1)), taken(GroupId(2))), (vec![2], vec![], vec![3]));
    groups.keep_early(GroupId(1), message(4), Vec::new());
    (0..EARLY_MAX as u64).for_each(|from| groups.keep_early(GroupId(2), message(from), Vec::new()));
    assert_eq!(taken(GroupId(1)), Vec::<u64>::new(), "the oldest makes room");
    assert_eq!(taken(GroupId(2)), (0..EARLY_MAX as u64).collect::<Vec<_>>());
}
