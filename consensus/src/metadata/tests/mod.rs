//! Commands, slices, snapshots and views together.

mod bounds;
mod room;
mod rules;
mod speculation;

use crate::metadata::*;
use types::RaftIndex;

fn create(name: &str, first_group: u64, partitions: usize) -> Command {
    Command::CreateTopic {
        name: name.into(),
        id: Uuid::from_u128(u128::from(first_group) << 64 | 7),
        first_group,
        replicas: vec![vec![1]; partitions],
        configs: BTreeMap::from([("retention.ms".to_owned(), "1000".to_owned())]),
        created_ms: 42,
        peers: Vec::new(),
    }
}

fn id(first_group: u64) -> Uuid {
    Uuid::from_u128(u128::from(first_group) << 64 | 7)
}

/// A broker's slices and one view of them.
struct Model {
    slices: Vec<Slice>,
    view: View,
    index: RaftIndex,
}

impl Model {
    fn new() -> Self {
        Self { slices: Slice::all(), view: View::default(), index: RaftIndex::ZERO }
    }

    fn run(&mut self, command: Command) -> Result<Outcome, Rejection> {
        // Through the encoding of the log, as in the broker.
        let [command] = decode(&encode(&[command])).unwrap().try_into().unwrap();
        let slice = &mut self.slices[usize::from(command.slice().0)];
        let applied = slice.apply(&command);
        slice.check();
        self.index = self.index.next();
        self.view.apply(self.index, &applied.deltas);
        applied.outcome
    }
}

#[test]
fn a_topic_lives_from_creation_to_deletion() {
    let mut model = Model::new();
    let Ok(Outcome::TopicCreated(topic)) = model.run(create("a", 10, 3)) else { panic!("not created") };
    assert_eq!(topic.partitions.iter().map(|partition| partition.group.0).collect::<Vec<_>>(), [10, 11, 12]);
    assert_eq!(model.view.topic("a"), Some(&topic));
    assert_eq!(model.view.topic_by_id(id(10)), Some(&topic));
    assert!(model.view.has_group(GroupId(12)) && !model.view.has_group(GroupId(13)));

    assert_eq!(model.run(create("a", 20, 1)), Err(Rejection::TopicExists("a".into())));
    let more = |present| Command::CreatePartitions {
        name: "a".into(),
        id: id(10),
        present,
        first_group: 30,
        replicas: vec![vec![1]; 2],
        peers: Vec::new(),
    };
    assert_eq!(model.run(more(4)), Err(Rejection::PartitionCount { expected: 4, found: 3 }));
    assert!(matches!(model.run(more(3)), Ok(Outcome::PartitionsAdded { first_new: 3, .. })));
    assert_eq!(model.view.topic("a").unwrap().partitions[4].group, GroupId(31));

    let changes = vec![("retention.ms".to_owned(), None), ("segment.bytes".to_owned(), Some("9".to_owned()))];
    let update = Command::UpdateTopicConfig { name: "a".into(), id: id(10), changes };
    assert_eq!(model.run(update), Ok(Outcome::ConfigUpdated));
    let expected = BTreeMap::from([("segment.bytes".to_owned(), "9".to_owned())]);
    assert_eq!(model.view.topic("a").unwrap().configs, expected);

    let delete = |id| Command::DeleteTopic { name: "a".into(), id };
    assert_eq!(model.run(delete(id(11))), Err(Rejection::UnknownTopic("a".into())), "another topic of that name");
    assert_eq!(model.run(delete(id(10))), Ok(Outcome::TopicDeleted));
    assert!(model.view.topic("a").is_none() && !model.view.has_group(GroupId(31)));
    let slice = &model.slices[usize::from(slice_of_topic("a").0)];
    assert_eq!(slice.group_high(), 31, "ids are not given out again");
}

#[test]
fn producer_ids_are_given_out_once() {
    let mut model = Model::new();
    for first in [0, 5, 10] {
        let outcome = model.run(Command::AllocateProducerIds { count: 5 });
        assert_eq!(outcome, Ok(Outcome::ProducerIds { first, count: 5 }));
    }
}

#[test]
fn the_same_commands_give_the_same_bytes_and_a_snapshot_gives_them_back() {
    let run = || {
        let mut model = Model::new();
        for n in 0..300 {
            model.run(create(&format!("topic-{n}"), 10 * n + 1, (n % 9 + 1) as usize)).unwrap();
        }
        model.run(Command::AllocateProducerIds { count: 1000 }).unwrap();
        model
    };
    let (mut one, mut other) = (run(), run());
    other.slices.reverse();
    let snapshot = join(one.index, &mut one.slices);
    assert_eq!(snapshot, join(other.index, &mut other.slices));

    let (index, slices) = restore(&snapshot).unwrap();
    assert_eq!((index, &slices), (one.index, &one.slices));
    let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
    let view = View::new(index, &image);
    assert!(view.topics().eq(one.view.topics()));
}

#[test]
fn damaged_bytes_are_refused() {
    let entry = encode(&[create("a", 1, 1)]);
    let mut model = Model::new();
    let snapshot = join(RaftIndex::ZERO, &mut model.slices);
    // The last bytes may be padding.
    for length in 0..entry.len() - 4 {
        assert!(decode(&entry[..length]).is_err(), "{length} of {} bytes", entry.len());
    }
    assert!(restore(&snapshot[..snapshot.len() / 2]).is_err());
    assert!(restore(b"").is_err());
}

#[test]
fn names_follow_kafkas_rule() {
    for good in ["a", "A.b_c-9", "__consumer_offsets", &"x".repeat(249)] {
        assert_eq!(check_topic_name(good), Ok(()));
    }
    assert_eq!(check_topic_name(""), Err(NameError::Length(0)));
    assert_eq!(check_topic_name(&"x".repeat(250)), Err(NameError::Length(250)));
    assert_eq!(check_topic_name(".."), Err(NameError::Dots));
    assert_eq!(check_topic_name("a/b"), Err(NameError::Character('/')));
    assert_eq!(check_topic_name("ä"), Err(NameError::Character('ä')));
}

#[test]
fn a_topics_slice_never_changes() {
    // The cluster's format fixes this: a change would lose every topic.
    assert_eq!(slice_of_topic("orders"), SliceId((crc32c::crc32c(b"orders") & 255) as u16));
    assert_eq!(slice_of_topic("123456789").0, 0xE306_9283u32 as u16 & 255, "CRC-32C's check value");
}

/// Small commands that create, change and delete a topic and allocate producer ids.
fn one_of_each() -> Vec<Command> {
    let (name, id): (Arc<str>, _) = ("t".into(), id(3));
    vec![
        create("t", 3, 2),
        Command::CreatePartitions {
            name: name.clone(),
            id,
            present: 2,
            first_group: 5,
            replicas: vec![vec![1, 2]],
            peers: Vec::new(),
        },
        Command::UpdateTopicConfig {
            name: name.clone(),
            id,
            changes: vec![("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)],
        },
        Command::AllocateProducerIds { count: 1000 },
        Command::DeleteTopic { name, id },
    ]
}

#[test]
fn entries_and_snapshots_have_the_bytes_of_the_format() {
    // Existing logs and snapshots hold these bytes. A schema change that moves them is incompatible.
    let entry = encode(&one_of_each());
    assert_eq!((entry.len(), crc32c::crc32c(&entry)), (560, 730_090_568));
    let mut model = Model::new();
    for command in &one_of_each()[..4] {
        model.run(command.clone()).unwrap();
    }
    let snapshot = join(model.index, &mut model.slices);
    assert_eq!((snapshot.len(), crc32c::crc32c(&snapshot)), (5496, 1_449_652_893));
}

#[test]
fn bytes_that_were_changed_are_refused_or_mean_something_else_but_never_stop_the_broker() {
    let entry = encode(&one_of_each());
    assert_eq!(decode(&entry).unwrap(), one_of_each());
    let mut model = Model::new();
    model.run(create("t", 3, 2)).unwrap();
    let snapshot = join(RaftIndex::new(1), &mut model.slices);
    let mut refused = 0;
    for bytes in [entry, snapshot] {
        for at in 0..bytes.len() {
            for mask in [1, 0x80, 0xFF] {
                let mut changed = bytes.to_vec();
                changed[at] ^= mask;
                refused += usize::from(decode(&changed).is_err()) + usize::from(restore(&changed).is_err());
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn group_ids_at_the_end_of_their_range_do_not_wrap() {
    let mut model = Model::new();
    model.run(create("t", u64::MAX - 1, 2)).unwrap();
    assert_eq!(model.run(create("t", u64::MAX, 2)), Err(Rejection::TopicExists("t".into())));
    assert_eq!(model.slices[usize::from(slice_of_topic("t").0)].group_high(), u64::MAX);
}

fn asked(node: i32, incarnation: u64, sequence: u64, lowest_open: u64, command: Command) -> Request {
    Request { origin: Some(Origin { node, incarnation, sequence, lowest_open }), command, no_room: None }
}

fn producer_ids(sequence: u64, lowest_open: u64) -> Request {
    asked(1, 1, sequence, lowest_open, Command::AllocateProducerIds { count: 10 })
}

/// The first producer id that a request got.
fn first_id(slice: &mut Slice, request: &Request) -> Result<i64, AskedTooLate> {
    let applied = slice.apply_request(request)?;
    slice.check();
    let Ok(Outcome::ProducerIds { first, .. }) = applied.outcome else { panic!("{applied:?}") };
    Ok(first)
}

#[test]
fn a_request_that_comes_twice_is_answered_twice_and_applied_once() {
    let mut slice = Slice::new(slice_of_topic("t"));
    let request = asked(1, 1, 1, 1, create("t", 3, 2));
    let first = slice.apply_request(&request).unwrap();
    let again = slice.apply_request(&request).unwrap();
    assert_eq!((&again.outcome, again.deltas.len()), (&first.outcome, 0));
    let of_another = slice.apply_request(&asked(2, 1, 1, 1, create("t", 5, 2))).unwrap();
    assert_eq!(of_another.outcome, Err(Rejection::TopicExists("t".into())));
    // The answer stays the same, whatever has happened since.
    slice.apply(&Command::DeleteTopic { name: "t".into(), id: id(3) }).outcome.unwrap();
    assert_eq!(slice.apply_request(&request).unwrap(), again);
}

#[test]
fn answers_that_an_origin_needs_no_more_are_forgotten() {
    let mut slice = Slice::new(slice_of_cluster());
    for sequence in 1..=5 {
        assert_eq!(first_id(&mut slice, &producer_ids(sequence, 1)), Ok(10 * (sequence as i64 - 1)));
    }
    assert_eq!(first_id(&mut slice, &producer_ids(6, 4)), Ok(50));
    assert_eq!(first_id(&mut slice, &producer_ids(4, 1)), Ok(30));
    assert_eq!(first_id(&mut slice, &producer_ids(3, 1)), Err(AskedTooLate));
    // A later incarnation starts afresh. Requests of the earlier one are rejected.
    let later = asked(1, 2, 1, 1, Command::AllocateProducerIds { count: 10 });
    assert_eq!(first_id(&mut slice, &later), Ok(60));
    assert_eq!(first_id(&mut slice, &producer_ids(6, 4)), Err(AskedTooLate));
    assert_eq!(first_id(&mut slice, &later), Ok(60));
}

#[test]
fn answers_are_bounded_and_the_oldest_go_first() {
    let mut slice = Slice::new(slice_of_cluster());
    let end = ANSWERS_MAX as u64 + 3;
    (1..end).for_each(|sequence| assert!(first_id(&mut slice, &producer_ids(sequence, 1)).is_ok()));
    assert_eq!(first_id(&mut slice, &producer_ids(2, 1)), Err(AskedTooLate));
    assert_eq!(first_id(&mut slice, &producer_ids(3, 1)), Ok(20));
}

#[test]
fn answers_of_every_kind_survive_a_snapshot() {
    let mut model = Model::new();
    let (name, new_id): (Arc<str>, _) = ("t".into(), id(3));
    let mut commands = one_of_each();
    commands.extend([
        create("t", 9, 1),
        create("a/b", 9, 1),
        create("", 9, 1),
        create("..", 9, 1),
        create("u", 9, 0),
        create("t", 20, 1),
        Command::CreatePartitions {
            name: name.clone(),
            id: id(9),
            present: 7,
            first_group: 10,
            replicas: vec![],
            peers: Vec::new(),
        },
        Command::DeleteTopic { name, id: new_id },
    ]);
    let requests: Vec<Request> =
        (1..).zip(commands).map(|(sequence, command)| asked(4, 2, sequence, 1, command)).collect();
    // Through the encoding of the log, as in the broker.
    assert_eq!(decode_requests(&encode_requests(&requests)).unwrap(), requests);
    assert_eq!(decode(&encode_requests(&requests)).unwrap().len(), requests.len());
    let at = |request: &Request| usize::from(request.command.slice().0);
    let outcomes: Vec<_> =
        requests.iter().map(|request| model.slices[at(request)].apply_request(request).unwrap().outcome).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 7, "{outcomes:?}");
    let snapshot = join(RaftIndex::new(1), &mut model.slices);
    let (_, mut slices) = restore(&snapshot).unwrap();
    assert_eq!(slices, model.slices);
    for (request, outcome) in requests.iter().zip(&outcomes) {
        let again = slices[at(request)].apply_request(request).unwrap();
        assert_eq!((&again.outcome, again.deltas.len()), (outcome, 0));
    }
    assert_eq!(join(RaftIndex::new(1), &mut slices), snapshot, "asking again changed nothing");
}
