//! One partition's replicas without a broker: what they append, answer, refuse and tell.

pub(crate) mod desk;
mod script;

use super::{Acks, Committed, FetchRead, Partition, PartitionError};
use bytes::Bytes;
use consensus::wire::PeerMessage;
use desk::{Machine, answer_of, exchange};
use net::records::{
    batch::{self, BatchHeader},
    build::BatchBuilder,
    compression::Codec,
};

/// A batch of one record, by an idempotent producer if `sequence` is given.
fn batch(bytes: usize, sequence: Option<i32>) -> (Bytes, BatchHeader) {
    let mut batch = BatchBuilder::new(Codec::None);
    if let Some(sequence) = sequence {
        batch = batch.producer(7, 0, sequence);
    }
    batch.push(1_000, None, Some(&vec![b'x'; bytes]));
    let batch = batch.finish();
    let header = batch::verify(&batch).expect("it was just built");
    (batch, header)
}

fn append(machine: &Machine, acks: Acks, sequence: Option<i32>) -> Result<Committed, PartitionError> {
    let (batch, header) = batch(10, sequence);
    machine.partition().append(&machine.desk, batch, &header, 2_000, acks)
}

/// A machine that leads alone.
fn alone(configs: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::new(1, &[1], configs);
    machine.settle();
    assert!(machine.partition().leads());
    machine
}

/// Three replicas. The first leads.
fn three(configs: &[(&str, &str)]) -> Vec<Machine> {
    let nodes = [1, 2, 3];
    let mut machines: Vec<Machine> = nodes.iter().map(|node| Machine::new(*node, &nodes, configs)).collect();
    exchange(&mut machines, |_, _| true);
    assert!(machines[0].partition().leads() && !machines[1].partition().leads());
    machines
}

fn all(_: i32, _: i32) -> bool {
    true
}

#[test]
fn a_batch_is_answered_once_it_is_durable_and_offsets_follow_each_other() {
    let mut machine = alone(&[]);
    let (mut first, mut second) =
        (append(&machine, Acks::All, None).expect("it leads"), append(&machine, Acks::Leader, None).expect("it leads"));
    assert_eq!((answer_of(&mut first), answer_of(&mut second)), (None, None), "nothing is durable yet");
    assert_eq!((machine.partition().end(), machine.partition().high_watermark()), (2, 0));
    machine.settle();
    assert_eq!((answer_of(&mut first), answer_of(&mut second)), (Some(Ok(0)), Some(Ok(1))));
    assert_eq!(machine.partition().high_watermark(), 2);
    let FetchRead::Hot(batches) = machine.partition().read(&machine.desk, 0, 2, 1 << 20, true) else {
        panic!("they are in memory")
    };
    assert_eq!(batches.len(), 2);
}

#[test]
fn a_write_that_ends_before_anybody_follows_the_ring_wakes_the_ready_loop() {
    let mut machine = alone(&[]);
    let mut answer = append(&machine, Acks::All, None).expect("it leads");
    let from = machine.write();
    assert!(machine.is_woken_from(from), "the ready loop waits for this write");
    let from = machine.write();
    assert!(!machine.is_woken_from(from), "nothing was written since");
    machine.settle();
    assert_eq!(answer_of(&mut answer), Some(Ok(0)));
}

#[test]
fn a_retry_gets_the_answer_of_its_original_and_a_gap_is_refused() {
    let mut machine = alone(&[]);
    let mut first = append(&machine, Acks::All, Some(0)).expect("it leads");
    let mut retry = append(&machine, Acks::All, Some(0)).expect("it leads");
    assert_eq!(answer_of(&mut retry), None, "its original is not durable yet");
    machine.settle();
    assert_eq!((answer_of(&mut first), answer_of(&mut retry)), (Some(Ok(0)), Some(Ok(0))));
    assert_eq!(machine.partition().end(), 1, "it was appended once");
    assert_eq!(append(&machine, Acks::All, Some(2)).err(), Some(PartitionError::Gap));
    let mut next = append(&machine, Acks::All, Some(1)).expect("it is the next one");
    machine.settle();
    assert_eq!(answer_of(&mut next), Some(Ok(1)));
}

#[test]
fn a_batch_above_the_topics_limit_is_refused() {
    let machine = alone(&[("max.message.bytes", "100")]);
    let (large, header) = batch(200, None);
    let refused = machine.partition().append(&machine.desk, large, &header, 2_000, Acks::All);
    assert_eq!(refused.err(), Some(PartitionError::TooLarge));
    assert_eq!(machine.partition().end(), 0);
}

#[test]
fn acks_all_waits_for_a_majority_and_acks_one_for_the_leaders_disk() {
    let mut machines = three(&[]);
    let mut by_all = append(&machines[0], Acks::All, None).expect("it leads");
    let mut by_leader = append(&machines[0], Acks::Leader, None).expect("it leads");
    exchange(&mut machines, |from, to| from != 1 && to != 1);
    assert_eq!((answer_of(&mut by_all), answer_of(&mut by_leader)), (None, Some(Ok(1))));
    assert_eq!(machines[0].partition().high_watermark(), 0);
    // A heartbeat finds out what the other has, and the rest follows.
    for _ in 0..3 {
        let leader = &machines[0];
        leader.partition().tick(&leader.desk, runtime::clock::now());
        exchange(&mut machines, |from, to| from != 3 && to != 3);
    }
    assert_eq!(answer_of(&mut by_all), Some(Ok(0)));
    assert_eq!([0, 1, 2].map(|at| machines[at].partition().end()), [2, 2, 0]);
}

#[test]
fn too_few_replicas_in_sync_take_no_batch_with_acks_all() {
    let mut machines = three(&[("min.insync.replicas", "2")]);
    machines[0].desk.there.borrow_mut().retain(|node| *node == 1);
    let leader = &machines[0];
    leader.partition().tick(&leader.desk, runtime::clock::now());
    exchange(&mut machines, all);
    assert_eq!(append(&machines[0], Acks::All, None).err(), Some(PartitionError::TooFewInSync));
    assert!(append(&machines[0], Acks::Leader, None).is_ok());
    assert_eq!(machines[0].partition().in_sync(), Some(vec![1]));
    assert_eq!(machines[0].desk.led.borrow().last().map(|led| led.in_sync.clone()), Some(vec![1]));
}

#[test]
fn appends_wait_while_8_mib_are_not_committed() {
    let mut machines = three(&[]);
    let leader = &machines[0];
    // Nobody waits for replicas that are away.
    leader.desk.there.borrow_mut().retain(|node| *node == 1);
    let (large, header) = batch(900_000, None);
    let has_room = |leader: &Machine| leader.partition().has_room(&leader.desk, large.len());
    let mut waiting = Vec::new();
    while has_room(leader) {
        let appended = leader.partition().append(&leader.desk, large.clone(), &header, 2_000, Acks::All);
        waiting.push(appended.expect("it leads"));
    }
    assert_eq!(waiting.len(), Partition::ROOM_BYTES / large.len());
    machines[0].settle();
    assert!(!has_room(&machines[0]), "its own disk alone commits nothing");
    assert_eq!(machines[0].partition().unapplied_bytes(), waiting.len() * large.len());
    machines[0].desk.there.borrow_mut().extend([2, 3]);
    for _ in 0..10 {
        let leader = &machines[0];
        leader.partition().tick(&leader.desk, runtime::clock::now());
        exchange(&mut machines, all);
    }
    assert!(has_room(&machines[0]));
    let answers: Vec<_> = waiting.iter_mut().map(answer_of).collect();
    assert_eq!(answers, (0..waiting.len() as u64).map(|offset| Some(Ok(offset))).collect::<Vec<_>>());
}

#[test]
fn a_deposed_leader_refuses_what_waits_and_gives_up_its_coordinators() {
    let mut machines = three(&[]);
    let mut waits = append(&machines[0], Acks::All, None).expect("it leads");
    // The others lose sight of the leader and elect the second.
    exchange(&mut machines, |from, to| from != 1 && to != 1);
    for _ in 0..100 {
        for machine in &machines[1..] {
            machine.desk.there.borrow_mut().remove(&1);
            machine.partition().tick(&machine.desk, runtime::clock::now());
        }
        exchange(&mut machines, |from, to| from != 1 && to != 1);
        if machines[1..].iter().any(|machine| machine.partition().leads()) {
            break;
        }
    }
    assert_eq!(answer_of(&mut waits), None, "it does not know yet");
    let next = machines.iter().position(|machine| machine.partition().leads() && machine.desk.led.borrow().len() > 1);
    let next = next.expect("one of the others leads");
    assert!(next > 0);
    for _ in 0..3 {
        let leader = &machines[next];
        leader.partition().tick(&leader.desk, runtime::clock::now());
        exchange(&mut machines, all);
    }
    assert_eq!(answer_of(&mut waits), Some(Err(PartitionError::NotLeader)));
    assert_eq!(machines[0].desk.resigned.get(), 1);
    assert_eq!([0, 1, 2].map(|at| machines[at].partition().end()), [0; 3], "nobody acknowledged it");
    assert_eq!(append(&machines[0], Acks::All, None).err(), Some(PartitionError::NotLeader));
}

#[test]
fn a_follower_takes_no_batch_that_is_damaged_on_its_way() {
    let mut machines = three(&[]);
    let _waits = append(&machines[0], Acks::All, None).expect("it leads");
    machines[0].settle();
    for (to, message) in machines[0].take_sent() {
        let PeerMessage::Append { group, message, mut payloads } = message else { continue };
        let follower = if consensus::plane::node_of(to) == 2 { &machines[1] } else { &machines[2] };
        let (_, bytes) = payloads.first_mut().expect("the entry has a batch");
        let mut damaged = bytes.to_vec();
        *damaged.last_mut().expect("it has bytes") ^= 1;
        *bytes = damaged.into();
        follower.receive(PeerMessage::Append { group, message, payloads });
        assert_eq!(follower.desk.metrics.replication_damaged_total.get(), 1);
    }
    assert_eq!([1, 2].map(|at: usize| machines[at].partition().end()), [0, 0]);
    // The leader sends it again.
    for _ in 0..10 {
        let leader = &machines[0];
        leader.partition().tick(&leader.desk, runtime::clock::now());
        exchange(&mut machines, all);
    }
    assert_eq!([0, 1, 2].map(|at| machines[at].partition().high_watermark()), [1; 3]);
}
