//! Counts of partitions and replicas, and rejections that pass through the encoding of the log.

use crate::metadata::*;
use std::collections::BTreeSet;
use types::RaftIndex;

fn broker(node: i32, replicas_max: u64, partitions_max: u64) -> Arc<Broker> {
    let address = || HostPort { host: String::new(), port: 1 };
    Arc::new(Broker {
        node,
        peer: node as u64,
        incarnation: 1,
        kafka: address(),
        peer_addr: address(),
        cores: 1,
        rack: None,
        version: String::new(),
        status: BrokerStatus::Alive,
        largest_entry: 0,
        replicas_max,
        partitions_max,
    })
}

#[test]
fn views_count_what_a_recount_gives() {
    let mut rng = fastrand::Rng::with_seed(15);
    let (mut slices, mut view, mut next_group) = (Slice::all(), View::default(), 1);
    let mut made = BTreeSet::new();
    for _ in 0..2000 {
        let number = rng.u128(0..12);
        let (name, id): (Arc<str>, Uuid) = (format!("t{number}").into(), Uuid::from_u128(number));
        let mut replicas = || (0..rng.usize(1..4)).map(|_| vec![1, rng.i32(2..5)]).collect::<Vec<Vec<i32>>>();
        let (replicas, first_group) = (replicas(), next_group);
        next_group += 4;
        let known = view.topic(&name).cloned();
        let command = match (known, rng.u8(0..4)) {
            (Some(topic), 0) => Command::DeleteTopic { name, id: topic.id },
            (Some(topic), 1) => {
                let present = topic.partitions[0].replicas.clone();
                Command::AssignPartition { name, id, partition: 0, present, replicas: vec![rng.i32(1..9)] }
            }
            (Some(topic), _) => {
                let present = topic.partitions.len() as u32;
                Command::CreatePartitions { name, id, present, first_group, replicas, peers: Vec::new() }
            }
            (None, _) => {
                made.insert(number);
                let (configs, peers) = (BTreeMap::new(), Vec::new());
                Command::CreateTopic { name, id, first_group, replicas, configs, created_ms: 0, peers }
            }
        };
        let applied = slices[usize::from(command.slice().0)].apply(&command);
        assert!(applied.outcome.is_ok(), "{applied:?}");
        view.apply(view.index().next(), &applied.deltas);
        view.check_counts();
    }
    assert!(made.len() == 12 && view.placed().partitions() > 0);
    let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
    let from_snapshot = View::new(view.index(), &image);
    from_snapshot.check_counts();
    assert_eq!(from_snapshot.placed(), view.placed());
}

#[test]
fn a_broker_takes_what_its_memory_takes() {
    let mut placed = Placed::of(&[vec![1, 2], vec![1], vec![2, 3]]);
    placed.join(&Placed::of(&[vec![1]]));
    assert_eq!((placed.partitions(), placed.replicas(1), placed.replicas(2), placed.replicas(9)), (4, 3, 2, 0));
    let brokers = [broker(1, 4, 6), broker(2, 2, 100), broker(3, 0, 0)];
    let check = |replicas: &[Vec<i32>]| placed.check_room(&brokers, &Placed::of(replicas));
    let no_room = |node, of_cluster, has, wanted, takes| Err(NoRoom { node, of_cluster, has, wanted, takes });
    assert_eq!(check(&[vec![1]]), Ok(()));
    assert_eq!(check(&[vec![3], vec![3]]), Ok(()), "a broker that does not say takes any number");
    assert_eq!(check(&[vec![1], vec![1]]), no_room(1, false, 3, 2, 4));
    assert_eq!(check(&[vec![1, 2]]), no_room(2, false, 2, 1, 2));
    assert_eq!(check(&vec![vec![3]; 3]), no_room(1, true, 4, 3, 6));
    assert_eq!(check(&[]), Ok(()));
    let words = |refusal: Result<(), NoRoom>| refusal.unwrap_err().to_string();
    let replicas = words(check(&[vec![1], vec![1]]));
    assert!(
        replicas.contains("broker 1 has 3 replicas of partitions (including those being created), 2 more are"),
        "{replicas}"
    );
    assert!(replicas.contains("takes 4; raise memory.budget.bytes of broker 1, add brokers, or delete"), "{replicas}");
    let partitions = words(check(&vec![vec![3]; 3]));
    assert!(
        partitions.contains("the cluster has 4 partitions (including those being created), 3 more are"),
        "{partitions}"
    );
    let total = |nodes: &[i32], count, factor| placed.check_total(&brokers, nodes, count, factor);
    assert_eq!(total(&[1], 1, 1), Ok(()));
    assert_eq!(total(&[1], 2, 1), no_room(1, false, 3, 2, 4));
    assert_eq!(total(&[1, 2], 1, 1), Ok(()), "one of both has room");
    assert_eq!(total(&[1, 2], 1, 2), no_room(2, false, 2, 1, 2));
    assert_eq!(total(&[1, 2, 3], 2, 3), Ok(()), "the third takes any number");
    assert_eq!(total(&[3], 3, 1), no_room(1, true, 4, 3, 6));
    let mut left = placed.clone();
    left.leave(&Placed::of(&[vec![1], vec![2, 3]]));
    assert_eq!(left, Placed::of(&[vec![1, 2], vec![1]]));
    // The broker is over its limit already. A topic on other brokers does not concern it.
    let over = Placed::of(&[vec![1]]).check_room(&[broker(1, 1, 0)], &Placed::of(&[vec![2]]));
    assert_eq!(over, Ok(()));
}

#[test]
fn a_refusal_goes_through_the_log_and_is_remembered() {
    let no_room = NoRoom { node: 2, of_cluster: true, has: 1 << 40, wanted: 3, takes: 7 };
    let origin = Some(Origin { node: 1, incarnation: 1, sequence: 1, lowest_open: 1 });
    let command = Command::CreateTopic {
        name: "t".into(),
        id: Uuid::from_u128(1),
        first_group: 1,
        replicas: Vec::new(),
        configs: BTreeMap::new(),
        created_ms: 0,
        peers: Vec::new(),
    };
    let request = Request { origin, command, no_room: Some(no_room) };
    let [read] = decode_requests(&encode_requests(std::slice::from_ref(&request))).unwrap().try_into().unwrap();
    assert_eq!(read, request);

    let mut slices = Slice::all();
    let at = usize::from(slice_of_topic("t").0);
    let refused: RequestResult = Ok(Err(Rejection::NoRoom(no_room)));
    for _ in 0..2 {
        let applied = slices[at].apply_request(&read).unwrap();
        assert_eq!((Ok(applied.outcome), applied.deltas.len()), (refused.clone(), 0));
    }
    assert_eq!(decode_results(&encode_results(std::slice::from_ref(&refused))).unwrap(), [refused]);
    assert_eq!(restore(&join(RaftIndex::new(1), &mut slices)).unwrap().1, slices);

    let registered = Command::RegisterBroker { broker: Broker::clone(&broker(3, 5, u64::MAX)) };
    assert_eq!(decode(&encode(std::slice::from_ref(&registered))).unwrap(), [registered]);
}
