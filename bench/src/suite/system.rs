//! The systems that `suite peers` compares.

use crate::options::suite::Peer;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    Millrace,
    Kafka,
    KafkaFlush,
    Etcd,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            System::Millrace => "Millrace",
            System::Kafka => "Kafka as it comes",
            System::KafkaFlush => "Kafka, flush.messages=1",
            System::Etcd => "etcd",
        }
    }

    pub fn is_kafka_compatible(self) -> bool {
        self != System::Etcd
    }

    pub fn of(peer: Peer) -> System {
        match peer {
            Peer::Kafka => System::Kafka,
            Peer::KafkaFlush => System::KafkaFlush,
            Peer::Etcd => System::Etcd,
        }
    }
}
