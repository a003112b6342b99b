//! The effect and the rejections of each command about brokers, the cluster and partitions. Views follow.

use crate::metadata::*;
use types::{RaftIndex, Term};

/// One topic "t" with two partitions (groups 5 and 6), the slice of the cluster, and a view of both.
struct Model {
    topic: Slice,
    cluster: Slice,
    view: View,
}

const ID: Uuid = Uuid::from_u128(3);

fn name() -> Arc<str> {
    "t".into()
}

impl Model {
    fn new() -> Self {
        let (topic, cluster) = (Slice::new(slice_of_topic("t")), Slice::new(slice_of_cluster()));
        let mut model = Self { topic, cluster, view: View::default() };
        model.run(create()).unwrap();
        model
    }

    fn run(&mut self, command: Command) -> Result<Outcome, Rejection> {
        // Through the encoding of the log, as in the broker.
        let [command] = decode(&encode(&[command])).unwrap().try_into().unwrap();
        let slice = if command.slice() == self.topic.id() { &mut self.topic } else { &mut self.cluster };
        let before = slice.clone();
        let applied = slice.apply(&command);
        slice.check();
        if applied.outcome.is_err() {
            assert_eq!((&*slice, applied.deltas.len()), (&before, 0), "what is refused changes nothing");
        }
        self.view.apply(self.view.index().next(), &applied.deltas);
        self.view.check_counts();
        applied.outcome
    }

    fn leads(&mut self, partition: u32, term: Term, leader: i32) -> Option<(Term, i32)> {
        let voters = vec![leader];
        let leaders = vec![LeaderReport { partition, term, leader, voters }];
        let outcome = self.run(Command::SetPartitionLeader { name: name(), id: ID, leaders });
        assert_eq!(outcome, Ok(Outcome::LeadersSet));
        self.view.leader(GroupId(5 + u64::from(partition))).map(|known| (known.term, known.leader))
    }

    fn marks(&mut self, high_watermark: u64, log_start: u64, end_offset: u64) -> Watermark {
        let watermarks = vec![WatermarkReport { partition: 1, high_watermark, log_start, end_offset }];
        let outcome = self.run(Command::UpdateHighWatermark { name: name(), id: ID, node: 1, watermarks });
        assert_eq!(outcome, Ok(Outcome::WatermarksUpdated));
        self.view.watermark(GroupId(6)).expect("it was just reported")
    }

    fn assign(&mut self, partition: u32, present: &[i32], replicas: &[i32]) -> Result<Outcome, Rejection> {
        let (present, replicas) = (present.to_vec(), replicas.to_vec());
        self.run(Command::AssignPartition { name: name(), id: ID, partition, present, replicas })
    }

    fn register(&mut self, node: i32, peer: u64, incarnation: u64) -> Result<Outcome, Rejection> {
        self.run(Command::RegisterBroker { broker: broker(node, peer, incarnation) })
    }

    fn status(&self, node: i32) -> Option<BrokerStatus> {
        self.view.broker(node).map(|broker| broker.status)
    }

    fn set(&mut self, node: Option<i32>, value: Option<&str>) {
        let changes = vec![("metadata.acks".to_owned(), value.map(str::to_owned))];
        let outcome = self.run(Command::UpdateClusterConfig { node, changes });
        assert_eq!(outcome, Ok(Outcome::ClusterConfigUpdated));
    }
}

fn create() -> Command {
    let replicas = vec![vec![1, 2], vec![2]];
    Command::CreateTopic {
        name: name(),
        id: ID,
        first_group: 5,
        replicas,
        configs: BTreeMap::new(),
        created_ms: 42,
        peers: Vec::new(),
    }
}

fn broker(node: i32, peer: u64, incarnation: u64) -> Broker {
    Broker {
        node,
        peer,
        incarnation,
        kafka: HostPort { host: "kafka.example".to_owned(), port: 9092 },
        peer_addr: HostPort { host: "peer.example".to_owned(), port: 9291 },
        cores: 2,
        rack: Some("r1".to_owned()),
        version: "0.1.0".to_owned(),
        status: BrokerStatus::Alive,
        largest_entry: 0,
        replicas_max: 0,
        partitions_max: 0,
    }
}

#[test]
fn a_leader_counts_if_its_term_is_newer_and_it_holds_a_replica() {
    let mut model = Model::new();
    assert_eq!(model.leads(0, Term(3), 1), Some((Term(3), 1)));
    assert_eq!(model.leads(0, Term(3), 2), Some((Term(3), 1)), "one leader a term");
    assert_eq!(model.leads(0, Term(2), 2), Some((Term(3), 1)), "an older term");
    assert_eq!(model.leads(0, Term(4), 7), Some((Term(3), 1)), "node 7 has no replica");
    assert_eq!(model.leads(0, Term(4), 2), Some((Term(4), 2)));
    assert_eq!(model.leads(1, Term(9), 1), None, "node 1 has no replica of this one");
    // An invalid row affects neither the other rows nor the batch.
    let row = |partition, leader| LeaderReport { partition, term: Term(5), leader, voters: vec![leader] };
    let leaders = vec![row(9, 1), row(1, 1), row(0, 1)];
    let outcome = model.run(Command::SetPartitionLeader { name: name(), id: ID, leaders });
    assert_eq!(outcome, Ok(Outcome::LeadersSet));
    assert_eq!(model.view.leader(GroupId(5)), Some(&PartitionLeader { term: Term(5), leader: 1, voters: vec![1] }));
    assert_eq!(model.view.leader(GroupId(6)), None);
    let of_another = Command::SetPartitionLeader { name: name(), id: Uuid::nil(), leaders: Vec::new() };
    assert_eq!(model.run(of_another), Err(Rejection::UnknownTopic(name())));
}

#[test]
fn watermarks_never_go_back_and_stay_in_order() {
    let mut model = Model::new();
    let mark = |high_watermark, log_start, end_offset| Watermark { high_watermark, log_start, end_offset };
    assert_eq!(model.marks(10, 2, 14), mark(10, 2, 14));
    assert_eq!(model.marks(5, 1, 7), mark(10, 2, 10), "a report that comes late");
    assert_eq!(model.marks(11, 2, 12), mark(11, 2, 12));
    assert_eq!(model.marks(11, 20, 3), mark(11, 11, 11), "a report that is not in order itself");
}

#[test]
fn reports_of_partitions_go_with_their_topic() {
    let mut model = Model::new();
    model.leads(0, Term(1), 1);
    model.marks(1, 0, 1);
    model.run(Command::DeleteTopic { name: name(), id: ID }).unwrap();
    assert_eq!((model.view.leader(GroupId(5)), model.view.watermark(GroupId(6))), (None, None));
    let Slice { leaders, watermarks, .. } = &model.topic;
    assert!(leaders.is_empty() && watermarks.is_empty());
}

#[test]
fn replicas_are_assigned_once_by_whoever_saw_them_as_they_are() {
    let mut model = Model::new();
    assert!(matches!(model.assign(0, &[1, 2], &[2, 3]), Ok(Outcome::PartitionAssigned(_))));
    assert_eq!(model.view.topic("t").unwrap().partitions[0].replicas, [2, 3]);
    assert_eq!(model.view.topic("t").unwrap().partitions[1].replicas, [2]);
    assert_eq!(model.assign(0, &[1, 2], &[4]), Err(Rejection::ReplicasChanged), "somebody else was first");
    assert_eq!(model.assign(0, &[2, 3], &[]), Err(Rejection::ReplicasChanged), "a partition lies somewhere");
    assert_eq!(model.assign(2, &[2], &[3]), Err(Rejection::UnknownPartition(2)));
}

#[test]
fn only_the_registered_process_of_a_broker_changes_its_status() {
    let mut model = Model::new();
    assert_eq!(model.register(1, 10, 3), Ok(Outcome::BrokerRegistered));
    assert_eq!(model.view.broker(1).map(|found| Broker::clone(found)), Some(broker(1, 10, 3)));
    let fence = |model: &mut Model, node, incarnation| {
        model.run(Command::UpdateBrokerStatus { node, incarnation, status: BrokerStatus::Fenced })
    };
    let stale = Err(Rejection::StaleBroker { node: 1, incarnation: 3 });
    assert_eq!((fence(&mut model, 1, 2), fence(&mut model, 1, 4)), (stale.clone(), stale));
    assert_eq!(fence(&mut model, 2, 3), Err(Rejection::UnknownBroker(2)));
    assert_eq!(model.status(1), Some(BrokerStatus::Alive));
    assert_eq!(fence(&mut model, 1, 3), Ok(Outcome::BrokerStatusUpdated));
    assert_eq!(model.status(1), Some(BrokerStatus::Fenced));
    // Registering again, as after a lost answer, makes the broker alive again. Its next process does the same.
    assert_eq!(model.register(1, 10, 3), Ok(Outcome::BrokerRegistered));
    assert_eq!(model.status(1), Some(BrokerStatus::Alive));
    fence(&mut model, 1, 3).unwrap();
    assert_eq!(model.register(1, 10, 4), Ok(Outcome::BrokerRegistered));
    assert_eq!(model.status(1), Some(BrokerStatus::Alive));
    assert_eq!(model.run(Command::UnregisterBroker { node: 1 }), Ok(Outcome::BrokerUnregistered));
    assert_eq!(model.status(1), None);
    assert_eq!(model.run(Command::UnregisterBroker { node: 1 }), Err(Rejection::UnknownBroker(1)));
}

#[test]
fn peers_that_are_gone_are_told_whoever_follows() {
    let mut model = Model::new();
    model.register(1, 10, 1).unwrap();
    model.register(2, 20, 1).unwrap();
    let gone = |model: &mut Model, command| {
        let deltas = model.cluster.apply(&command).deltas;
        deltas.into_iter().find_map(|delta| if let Delta::GonePeers(peers) = delta { Some(peers) } else { None })
    };
    let replaced = gone(&mut model, Command::RegisterBroker { broker: broker(1, 11, 1) });
    assert_eq!(replaced.as_deref(), Some(&[10].into()));
    let unregistered = gone(&mut model, Command::UnregisterBroker { node: 2 });
    assert_eq!(unregistered.as_deref(), Some(&[10, 20].into()));
    assert!(model.cluster.image().any(|delta| matches!(delta, Delta::GonePeers(peers) if *peers == [10, 20].into())));
}

#[test]
fn a_features_level_is_never_lowered() {
    let mut model = Model::new();
    let mut set = |level| model.run(Command::SetFeatureLevel { name: "f".to_owned(), level });
    assert_eq!((set(2), set(2), set(3)), (Ok(Outcome::FeatureSet), Ok(Outcome::FeatureSet), Ok(Outcome::FeatureSet)));
    assert_eq!(set(1), Err(Rejection::FeatureDowngrade { from: 3, to: 1 }));
    assert_eq!(model.view.features(), &BTreeMap::from([("f".to_owned(), 3)]));
}

#[test]
fn a_nodes_own_setting_is_in_force_before_everybodys() {
    let mut model = Model::new();
    let in_force = |model: &Model| {
        [1, 2].map(|node| model.view.cluster_config().in_force(node, "metadata.acks").map(str::to_owned))
    };
    model.set(None, Some("quorum"));
    model.set(Some(2), Some("leader"));
    assert_eq!(in_force(&model), [Some("quorum".to_owned()), Some("leader".to_owned())]);
    model.set(None, None);
    assert_eq!(in_force(&model), [None, Some("leader".to_owned())]);
    model.set(Some(2), None);
    assert_eq!(in_force(&model), [None, None]);
    assert_eq!(model.view.cluster_config(), &ClusterConfig::default());
}

#[test]
fn the_largest_entry_rises_as_far_as_every_broker_takes_it_and_never_falls() {
    let mut model = Model::new();
    let register = |model: &mut Model, node: i32, largest_entry| {
        model.run(Command::RegisterBroker { broker: Broker { largest_entry, ..broker(node, 10 * node as u64, 1) } })
    };
    let set = |model: &mut Model, node, value: Option<&str>| {
        let changes = vec![(LARGEST_ENTRY.to_owned(), value.map(str::to_owned))];
        model.run(Command::UpdateClusterConfig { node, changes }).map(|_| model.view.cluster_config().largest_entry())
    };
    assert_eq!(set(&mut model, None, None), Ok(None));
    register(&mut model, 1, 1000).unwrap();
    assert_eq!(set(&mut model, None, Some("500")), Ok(Some(500)));
    register(&mut model, 2, 800).unwrap();
    let refused = |node, takes, largest| Err(Rejection::LargestEntry { node, takes, largest });
    assert_eq!(set(&mut model, None, Some("801")), refused(2, 800, 801));
    assert_eq!(set(&mut model, None, Some("800")), Ok(Some(800)));
    // Lowering or removing the setting, or setting it for one node, changes nothing.
    for (node, value) in [(None, Some("700")), (None, None), (Some(1), Some("1")), (None, Some("many"))] {
        assert_eq!(set(&mut model, node, value), Ok(Some(800)));
    }
    assert_eq!(register(&mut model, 3, 799), refused(3, 799, 800).map(|_: Option<u64>| Outcome::BrokerRegistered));
    assert_eq!(model.status(3), None);
    register(&mut model, 3, 800).unwrap();
    // A broker of an earlier version does not report its limit. It may come back, but then the setting cannot rise.
    register(&mut model, 4, 0).unwrap();
    assert_eq!(set(&mut model, None, Some("801")), refused(4, 0, 801));

    let mut slices = Slice::all();
    let at = usize::from(model.cluster.id().0);
    slices[at] = model.cluster;
    let restored = restore(&join(model.view.index(), &mut slices)).unwrap().1;
    assert_eq!(restored, slices);
    let image: Vec<Delta> = restored.iter().flat_map(Slice::image).collect();
    assert_eq!(View::new(RaftIndex::new(1), &image).cluster_config().largest_entry(), Some(800));
}

/// One of each of the commands about brokers, the cluster and partitions.
fn one_of_each() -> Vec<Command> {
    let leaders = vec![LeaderReport { partition: 1, term: Term(2), leader: 2, voters: vec![2, 3] }];
    let watermarks = vec![WatermarkReport { partition: 0, high_watermark: 3, log_start: 1, end_offset: 4 }];
    let changes = vec![("a".to_owned(), Some("b".to_owned())), ("c".to_owned(), None)];
    vec![
        Command::AssignPartition { name: name(), id: ID, partition: 0, present: vec![1, 2], replicas: vec![2, 1] },
        Command::SetPartitionLeader { name: name(), id: ID, leaders },
        Command::UpdateHighWatermark { name: name(), id: ID, node: 1, watermarks },
        Command::RegisterBroker { broker: broker(1, 10, 3) },
        Command::UpdateBrokerStatus { node: 1, incarnation: 3, status: BrokerStatus::Fenced },
        Command::SetFeatureLevel { name: "f".to_owned(), level: 2 },
        Command::UpdateClusterConfig { node: None, changes: changes.clone() },
        Command::UpdateClusterConfig { node: Some(-1), changes },
        Command::RegisterBroker { broker: Broker { rack: None, ..broker(2, 20, 1) } },
        Command::UnregisterBroker { node: 2 },
    ]
}

#[test]
fn membership_and_blocks_of_ids_want_a_quorum() {
    let quorum_only: Vec<bool> = one_of_each().iter().map(Command::is_quorum_only).collect();
    assert_eq!(quorum_only, [false, false, false, true, true, true, false, false, true, true]);
    assert!(Command::AllocateProducerIds { count: 1 }.is_quorum_only() && !create().is_quorum_only());
}

#[test]
fn entries_and_snapshots_have_the_bytes_of_the_format() {
    // Existing logs and snapshots hold these bytes. A schema change that moves them is incompatible.
    let entry = encode(&one_of_each());
    assert_eq!(decode(&entry).unwrap(), one_of_each());
    let mut model = Model::new();
    one_of_each().into_iter().for_each(|command| assert!(model.run(command).is_ok()));
    let mut slices = Slice::all();
    for slice in [model.topic, model.cluster] {
        let at = usize::from(slice.id().0);
        slices[at] = slice;
    }
    let snapshot = join(model.view.index(), &mut slices);
    assert_eq!(restore(&snapshot).unwrap(), (model.view.index(), slices));
    assert_eq!((entry.len(), crc32c::crc32c(&entry)), (1040, 2_973_202_918));
    assert_eq!((snapshot.len(), crc32c::crc32c(&snapshot)), (5832, 1_323_206_508));
}
