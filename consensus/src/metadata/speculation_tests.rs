//! What is speculated and rolled back leaves no trace, whatever it was; what is committed is as if it had been applied at once.

use super::*;

/// All luck of one run.
struct Luck {
    rng: fastrand::Rng,
    sequence: u64,
    next_group: u64,
}

impl Luck {
    fn request(&mut self) -> Request {
        let command = self.command();
        let origin = self.rng.bool().then(|| {
            // Now and then one that was asked before, or a node that has started anew.
            self.sequence += self.rng.u64(..3);
            let sequence = self.sequence.max(1);
            let incarnation = 1 + sequence / 40;
            Origin { node: self.rng.i32(1..3), incarnation, sequence, lowest_open: sequence.saturating_sub(3) }
        });
        Request { origin, command }
    }

    fn command(&mut self) -> Command {
        let number = self.rng.u128(..4);
        let (name, id) = (format!("t{number}").into(), Uuid::from_u128(number));
        let partition = self.rng.u32(..3);
        let node = self.rng.i32(1..4);
        match self.rng.u8(..13) {
            0 => Command::DeleteTopic { name, id },
            1 => {
                self.next_group += 2;
                let replicas = vec![vec![1], vec![2]];
                Command::CreatePartitions { name, id, present: 2, first_group: self.next_group, replicas }
            }
            2 => {
                let value = self.rng.bool().then(|| self.rng.u8(..).to_string());
                Command::UpdateTopicConfig { name, id, changes: vec![("retention.ms".to_owned(), value)] }
            }
            3 => Command::AllocateProducerIds { count: self.rng.u32(1..100) },
            4 => Command::AssignPartition { name, id, partition, present: vec![1], replicas: vec![2] },
            5 => {
                let report = LeaderReport { partition, term: self.rng.u64(1..5), leader: 1, voters: vec![1] };
                Command::SetPartitionLeader { name, id, leaders: vec![report] }
            }
            6 => {
                let high_watermark = self.rng.u64(..9);
                let watermarks = vec![WatermarkReport { partition, high_watermark, log_start: 0, end_offset: 9 }];
                Command::UpdateHighWatermark { name, id, node, watermarks }
            }
            7 => {
                let disk = 100 * node as u64 + self.rng.u64(1..4);
                Command::RegisterBroker { broker: broker(node, disk, self.rng.u64(1..4)) }
            }
            8 => {
                let incarnation = self.rng.u64(1..4);
                Command::UpdateBrokerStatus { node, incarnation, status: BrokerStatus::Fenced }
            }
            9 => Command::UnregisterBroker { node },
            10 => Command::SetFeatureLevel { name: "f".to_owned(), level: self.rng.u16(..4) },
            11 => {
                let changes = vec![("metadata.acks".to_owned(), self.rng.bool().then(|| "leader".to_owned()))];
                Command::UpdateClusterConfig { node: self.rng.bool().then_some(node), changes }
            }
            _ => {
                self.next_group += 2;
                Command::CreateTopic {
                    name,
                    id,
                    first_group: self.next_group,
                    replicas: vec![vec![1], vec![2]],
                    configs: BTreeMap::new(),
                    created_ms: 7,
                }
            }
        }
    }
}

fn broker(node: i32, disk: u64, incarnation: u64) -> Broker {
    let address = HostPort { host: "h".to_owned(), port: 1 };
    Broker {
        node,
        peer: disk,
        incarnation,
        kafka: address.clone(),
        peer_addr: address,
        cores: 1,
        rack: None,
        version: "1".to_owned(),
        status: BrokerStatus::Alive,
    }
}

fn at<'a>(slices: &'a mut [Slice], request: &Request) -> &'a mut Slice {
    &mut slices[usize::from(request.command.slice().0)]
}

#[test]
fn rolling_back_leaves_no_trace() {
    for seed in 0..200 {
        let mut luck = Luck { rng: fastrand::Rng::with_seed(seed), sequence: 0, next_group: 0 };
        let (mut ahead, mut plain) = (Slice::all(), Slice::all());
        let mut open: Vec<(u64, Request)> = Vec::new();
        for index in 1..60 {
            let request = luck.request();
            at(&mut ahead, &request).speculate(index, &request).ok();
            open.push((index, request));
            match luck.rng.u8(..6) {
                0 => {
                    ahead.iter_mut().for_each(Slice::roll_back);
                    open.clear();
                }
                1 | 2 => {
                    let up_to = luck.rng.u64(open[0].0..=index);
                    ahead.iter_mut().for_each(|slice| slice.commit(up_to));
                    for (_, request) in open.extract_if(.., |(index, _)| *index <= up_to) {
                        at(&mut plain, &request).apply_request(&request).ok();
                    }
                }
                _ => {}
            }
            let mut committed: Vec<Slice> = ahead.iter().map(Slice::committed).collect();
            assert_eq!(join(index, &mut committed), join(index, &mut plain), "seed {seed}, entry {index}");
            plain.iter().for_each(Slice::check);
            let (_, restored) = restore(&join(index, &mut plain)).unwrap();
            assert_eq!(restored, plain, "seed {seed}, entry {index}");
        }
    }
}

#[test]
fn requests_and_what_they_gave_come_back_from_their_bytes() {
    let mut luck = Luck { rng: fastrand::Rng::with_seed(1), sequence: 0, next_group: 0 };
    let mut slices = Slice::all();
    let mut results: Vec<RequestResult> = Vec::new();
    let requests: Vec<Request> = (0..500).map(|_| luck.request()).collect();
    for request in &requests {
        let applied = at(&mut slices, request).apply_request(request);
        results.push(applied.map(|applied| applied.outcome));
    }
    assert_eq!(decode_requests(&encode_requests(&requests)), Ok(requests));
    assert_eq!(decode_results(&encode_results(&results)), Ok(results));
}

#[test]
fn a_disk_that_was_replaced_does_not_come_back() {
    let mut slice = Slice::new(SliceId::of_cluster());
    let mut register = |node, disk, incarnation| {
        slice.apply(&Command::RegisterBroker { broker: broker(node, disk, incarnation) }).outcome
    };
    assert_eq!(register(1, 10, 2), Ok(Outcome::BrokerRegistered));
    assert_eq!(register(1, 10, 1), Err(Rejection::StaleBroker { node: 1, incarnation: 2 }));
    assert_eq!(register(1, 11, 1), Ok(Outcome::BrokerRegistered));
    assert_eq!(register(1, 10, 3), Err(Rejection::PeerGone { node: 1, peer: 10 }));
    slice.apply(&Command::UnregisterBroker { node: 1 }).outcome.unwrap();
    let again = slice.apply(&Command::RegisterBroker { broker: broker(1, 11, 9) }).outcome;
    assert_eq!(again, Err(Rejection::PeerGone { node: 1, peer: 11 }));
}

#[test]
fn queries_are_answered_from_the_view_and_come_back_from_their_bytes() {
    let mut luck = Luck { rng: fastrand::Rng::with_seed(5), sequence: 0, next_group: 0 };
    let mut slices = Slice::all();
    for _ in 0..300 {
        let request = Request::from(luck.command());
        at(&mut slices, &request).apply_request(&request).ok();
    }
    let image: Vec<Delta> = slices.iter().flat_map(Slice::image).collect();
    let view = View::new(300, &image);
    let name = view.topics().next().expect("some topic is left").name.to_string();
    let queries = vec![
        Query::GetTopic { name: name.clone() },
        Query::GetTopic { name: "none".to_owned() },
        Query::ListTopics { after: None, limit: 2 },
        Query::ListTopics { after: Some(name.clone()), limit: 9 },
        Query::GetBroker { node: 1 },
        Query::ListBrokers,
        Query::GetPartitionAssignment { name: name.clone(), partition: 0 },
        Query::GetHighWatermark { name: name.clone(), partition: 1 },
        Query::GetPartitionCount { name: name.clone() },
    ];
    assert_eq!(decode_queries(&encode_queries(&queries)), Ok(queries.clone()));
    let answers: Vec<QueryAnswer> = queries.iter().map(|query| view.answer(query)).collect();
    assert!(matches!(&answers[0], QueryAnswer::Topic(topic) if *topic.name == name));
    assert_eq!(answers[1], QueryAnswer::NotFound);
    assert!(matches!(&answers[3], QueryAnswer::Names(names) if names.iter().all(|found| **found > *name)));
    assert!(matches!(&answers[8], QueryAnswer::Count(2..)));
    assert_eq!(decode_query_answers(&encode_query_answers(&answers)), Ok(answers));
}
