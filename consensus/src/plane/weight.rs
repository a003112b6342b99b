//! The most bytes that a command takes in the log, known before it is encoded. The sum over the commands of an entry
//! is a bound for the entry.

use crate::metadata::{Broker, Command};

/// A command without the parts that vary in length: its own table and its body's, origin, rejection and vtables, and
/// the list that holds it.
const COMMAND: usize = 320;
/// Table, vtable and addresses of a broker.
const BROKER: usize = 192;
/// The list of a partition's replicas, without their ids.
const REPLICAS: usize = 16;
/// Table, name and value of a setting, without their characters.
const CONFIG: usize = 32;
/// A report without its voters.
const REPORT: usize = 48;
/// Length, end and padding of a string or a list.
const LIST: usize = 12;

/// The most bytes that the command takes in an entry, with an origin and a rejection.
pub fn weight(command: &Command) -> usize {
    let body = match command {
        Command::CreateTopic { name, replicas, configs, peers, .. } => {
            let configs = configs.iter().map(|(name, value)| config(name, Some(value)));
            text(name) + all_replicas(replicas) + configs.sum::<usize>() + list(peers)
        }
        Command::CreatePartitions { name, replicas, peers, .. } => text(name) + all_replicas(replicas) + list(peers),
        Command::DeleteTopic { name, .. } => text(name),
        Command::UpdateTopicConfig { name, changes, .. } => text(name) + all_configs(changes),
        Command::AssignPartition { name, present, replicas, .. } => text(name) + list(present) + list(replicas),
        Command::SetPartitionLeader { name, leaders, .. } => {
            text(name) + leaders.iter().map(|report| REPORT + size_of_val(&report.voters[..])).sum::<usize>()
        }
        Command::UpdateHighWatermark { name, watermarks, .. } => text(name) + REPORT * watermarks.len(),
        Command::RegisterBroker { broker } => registration(broker),
        Command::SetFeatureLevel { name, .. } => text(name),
        Command::UpdateClusterConfig { changes, .. } => all_configs(changes),
        Command::AllocateProducerIds { .. } | Command::UpdateBrokerStatus { .. } | Command::UnregisterBroker { .. } => {
            0
        }
    };
    COMMAND + body
}

fn registration(broker: &Broker) -> usize {
    let Broker { kafka, peer_addr, rack, version, .. } = broker;
    BROKER + text(&kafka.host) + text(&peer_addr.host) + rack.as_deref().map_or(0, text) + text(version)
}

fn text(text: &str) -> usize {
    LIST + text.len()
}

fn list<T>(list: &[T]) -> usize {
    LIST + size_of_val(list)
}

fn all_replicas(replicas: &[Vec<i32>]) -> usize {
    replicas.iter().map(|nodes| REPLICAS + size_of_val(&nodes[..])).sum()
}

fn all_configs(changes: &[(String, Option<String>)]) -> usize {
    changes.iter().map(|(name, value)| config(name, value.as_ref())).sum()
}

fn config(name: &str, value: Option<&String>) -> usize {
    CONFIG + name.len() + value.map_or(0, String::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{
        BrokerStatus, HostPort, LeaderReport, NoRoom, Origin, Request, WatermarkReport, encode_requests,
    };
    use types::Term;
    use uuid::Uuid;

    struct Draw(fastrand::Rng);

    impl Draw {
        fn text(&mut self, most: usize) -> String {
            "x".repeat(self.0.usize(..=most))
        }

        fn nodes(&mut self) -> Vec<i32> {
            (0..self.0.i32(..7)).collect()
        }

        fn many<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
            let count = [0, 1, 2, 100][self.0.usize(..4)];
            (0..count).map(|_| one(self)).collect()
        }

        /// Default values are left out of the encoding.
        fn number(&mut self) -> u64 {
            if self.0.bool() { 0 } else { self.0.u64(..) }
        }

        fn changes(&mut self) -> Vec<(String, Option<String>)> {
            self.many(|draw| (draw.text(9), draw.0.bool().then(|| draw.text(9))))
        }

        fn broker(&mut self) -> Broker {
            let mut address = || HostPort { host: self.text(9), port: self.0.u16(..) };
            let (kafka, peer_addr) = (address(), address());
            Broker {
                node: self.0.i32(..),
                peer: self.number(),
                incarnation: self.number(),
                kafka,
                peer_addr,
                cores: self.0.u16(..),
                rack: self.0.bool().then(|| self.text(9)),
                version: self.text(9),
                status: if self.0.bool() { BrokerStatus::Alive } else { BrokerStatus::Fenced },
                largest_entry: self.number(),
                replicas_max: self.number(),
                partitions_max: self.number(),
            }
        }

        fn command(&mut self) -> Command {
            let (name, id) = (self.text(20).into(), Uuid::from_u128(self.0.u128(..)));
            let (first_group, present) = (self.number(), self.number() as u32);
            match self.0.u8(..13) {
                0 => Command::CreateTopic {
                    name,
                    id,
                    first_group,
                    replicas: self.many(Self::nodes),
                    configs: self
                        .changes()
                        .into_iter()
                        .map(|(name, value)| (name, value.unwrap_or_default()))
                        .collect(),
                    created_ms: self.number() as i64,
                    peers: self.many(Self::number),
                },
                1 => Command::DeleteTopic { name, id },
                2 => Command::CreatePartitions {
                    name,
                    id,
                    present,
                    first_group,
                    replicas: self.many(Self::nodes),
                    peers: self.many(Self::number),
                },
                3 => Command::UpdateTopicConfig { name, id, changes: self.changes() },
                4 => Command::AllocateProducerIds { count: present },
                5 => {
                    let (present, replicas) = (self.nodes(), self.nodes());
                    Command::AssignPartition { name, id, partition: self.0.u32(..2), present, replicas }
                }
                6 => {
                    let leaders = self.many(|draw| LeaderReport {
                        partition: draw.number() as u32,
                        term: Term(draw.number()),
                        leader: draw.number() as i32,
                        voters: draw.nodes(),
                    });
                    Command::SetPartitionLeader { name, id, leaders }
                }
                7 => {
                    let watermarks = self.many(|draw| WatermarkReport {
                        partition: draw.number() as u32,
                        high_watermark: draw.number(),
                        log_start: draw.number(),
                        end_offset: draw.number(),
                    });
                    Command::UpdateHighWatermark { name, id, node: self.number() as i32, watermarks }
                }
                8 => Command::RegisterBroker { broker: self.broker() },
                9 => Command::UpdateBrokerStatus { node: 1, incarnation: self.number(), status: BrokerStatus::Fenced },
                10 => Command::UnregisterBroker { node: self.number() as i32 },
                11 => Command::SetFeatureLevel { name: self.text(20), level: self.number() as u16 },
                _ => Command::UpdateClusterConfig { node: self.0.bool().then_some(1), changes: self.changes() },
            }
        }

        fn request(&mut self) -> Request {
            let (incarnation, lowest_open) = (self.number(), self.number());
            let sequence = 1 + self.0.u64(..9);
            let origin = self.0.bool().then_some(Origin { node: 1, incarnation, sequence, lowest_open });
            let no_room = NoRoom { node: 1, of_cluster: self.0.bool(), has: self.number(), wanted: 1, takes: 1 };
            Request { origin, command: self.command(), no_room: self.0.bool().then_some(no_room) }
        }
    }

    #[test]
    fn entries_are_no_larger_than_the_sum_of_their_commands_weights() {
        for seed in 0..2000 {
            let mut draw = Draw(fastrand::Rng::with_seed(seed));
            let count = 1 + draw.0.usize(..4);
            let requests: Vec<Request> = (0..count).map(|_| draw.request()).collect();
            let (bytes, most) = (encode_requests(&requests).len(), requests.iter().map(|one| weight(&one.command)));
            let most: usize = most.sum();
            assert!(bytes <= most, "seed {seed}: {bytes} bytes, not at most {most}: {requests:?}");
        }
    }

    #[test]
    fn weights_of_many_partitions_are_little_more_than_their_bytes() {
        let create = |replicas: Vec<Vec<i32>>| Command::CreatePartitions {
            name: "t".into(),
            id: Uuid::nil(),
            present: 0,
            first_group: 0,
            replicas,
            peers: Vec::new(),
        };
        let command = create(vec![vec![1, 2, 3]; 39_000]);
        let most = weight(&command);
        let bytes = encode_requests(&[command.into()]).len();
        assert!((bytes..bytes + 512).contains(&most), "{most} for {bytes} bytes");
    }
}
