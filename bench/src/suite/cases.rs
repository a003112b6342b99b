//! The cases of the suites. Each case is a command line, so that anybody can run it by hand. Pure.

use crate::options::suite::Set;
use crate::suite::system::System;

/// The brokers that a case runs against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Against {
    /// No broker, or brokers that the workload starts itself.
    Nothing,
    One,
    Three,
    /// One broker that has all CPUs. Skipped on a machine with one CPU.
    OneOnAll,
}

/// A case and its command line. The suite replaces {bootstrap}, {peer}, {admin} (of all brokers), {data}, {disk},
/// {binary} and {cpus} in the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    pub against: Against,
    pub line: String,
}

impl Case {
    /// The topic that the case writes or reads.
    pub fn topic(&self) -> Option<&str> {
        self.line.split_once("--topic ")?.1.split_whitespace().next()
    }
}

/// The CPUs of the client.
const PINNED: &str = "--cpus {cpus}";

pub fn cases(set: Set) -> Vec<Case> {
    let mut own = Own { is_quick: set != Set::Full, cases: Vec::new() };
    own.full_speed();
    own.at_a_rate();
    own.reads();
    own.groups_partitions_and_metadata();
    own.on_three();
    if !own.is_quick {
        own.inside_a_broker();
    }
    own.without_brokers();
    own.cases
}

/// Gathers the cases of Millrace alone.
struct Own {
    is_quick: bool,
    cases: Vec<Case>,
}

impl Own {
    fn add(&mut self, name: &str, against: Against, line: String) {
        let line = match against {
            Against::One | Against::Three if !line.contains("{peer}") => format!("{line} --bootstrap {{bootstrap}}"),
            _ => line,
        };
        let warm_up = if self.is_quick { "500ms" } else { "2s" };
        let line = format!("{line} --warm-up {warm_up} --disk-dir {{disk}}");
        self.cases.push(Case { name: name.to_owned(), against, line });
    }

    fn duration(&self) -> &'static str {
        if self.is_quick { "3s" } else { "20s" }
    }

    /// Adds a case of the set's duration.
    fn timed(&mut self, name: &str, against: Against, line: &str) {
        self.add(name, against, format!("{line} --duration {}", self.duration()));
    }

    /// The same against one broker, by a client that has CPUs of its own.
    fn on_one(&mut self, name: &str, line: &str) {
        self.add(name, Against::One, format!("{line} --duration {} {PINNED}", self.duration()));
    }

    fn full_speed(&mut self) {
        let partitions: &[u32] = if self.is_quick { &[1, 16] } else { &[1, 16, 256] };
        for size in ["100", "1KiB"] {
            for count in partitions {
                if self.is_quick && size == "1KiB" && *count > 1 {
                    continue;
                }
                let name = format!("produce {size} B x {count}").replace("KiB B", "KiB");
                let line = format!("produce --topic full-{size}-{count} --partitions {count} --record-size {size}");
                self.on_one(&name, &line);
            }
        }
        if cfg!(feature = "librdkafka") {
            let line = "produce --client librdkafka --topic rdkafka --record-size 100";
            self.on_one("produce 100 B by librdkafka", line);
        }
    }

    fn at_a_rate(&mut self) {
        self.on_one("produce 10,000/s, no linger", "produce --topic paced --rate 10000 --linger 0ms");
        let line = "produce --topic many --partitions 200 --rate 16000 --linger 0ms --in-flight 64";
        self.on_one("produce 200 partitions x 80/s, no linger", line);
        self.on_one("end-to-end 10,000/s, no linger", "end-to-end --topic tail --rate 10000 --linger 0ms");
    }

    fn reads(&mut self) {
        // These records fit into the broker's memory for recent records. Topics written long before are only on the
        // disk.
        let line = format!("produce --topic memory --record-size 1KiB --rate 150000 --duration 2s {PINNED}");
        self.add("produce 150,000/s of 1 KiB", Against::One, line);
        self.add("consume from memory", Against::One, format!("consume --topic memory --to-end {PINNED}"));
        self.add("consume from disk", Against::One, format!("consume --topic full-1KiB-1 --to-end {PINNED}"));
        // More than the broker keeps in memory.
        let backlog = if self.is_quick { "1536MiB" } else { "4GiB" };
        let line = format!("backlog --topic backlog --backlog {backlog} --data-dir {{data}}");
        let line = format!("{line} --duration {} {PINNED} --record-size 1KiB", self.duration());
        self.add("backlog beside the tail", Against::One, line);
    }

    fn groups_partitions_and_metadata(&mut self) {
        self.on_one("commits", "commits --topic commits --connections 16 --in-flight 1");
        let counts = if self.is_quick { "10,1000" } else { "10,100,1000,10000" };
        let line = format!("many-partitions --partitions {counts} --linger 0ms --in-flight 64");
        self.on_one("many partitions", &line);
        self.on_one("metadata leased reads", "metadata --operation read --peer {peer} --in-flight 64");
    }

    fn on_three(&mut self) {
        let line = "produce --topic rf3 --partitions 6 --replication-factor 3 --in-flight 5";
        self.timed("3 brokers, produce 100 B", Against::Three, line);
        let line = "produce --topic rf3-paced --partitions 1 --replication-factor 3 --rate 10000 --linger 0ms";
        self.timed("3 brokers, produce 10,000/s, no linger", Against::Three, line);
        let line = "metadata --peer {peer} --acks quorum --in-flight 64";
        self.timed("3 brokers, metadata writes", Against::Three, line);
        let line = "metadata --operation create-topics --replication-factor 3 --in-flight 16";
        self.timed("3 brokers, topics created", Against::Three, line);
    }

    fn inside_a_broker(&mut self) {
        let line = "ready-loop --peer {peer} --admin {admin} --acks quorum --in-flight 64";
        self.on_one("ready loop", line);
        self.timed("3 brokers, ready loops", Against::Three, line);
        self.timed("mesh", Against::OneOnAll, "mesh --peer {peer}");
        self.timed("mesh, 64 in flight", Against::OneOnAll, "mesh --peer {peer} --in-flight 64");
    }

    fn without_brokers(&mut self) {
        let kills = if self.is_quick { 3 } else { 10 };
        let line = format!("failover --kills {kills} --duration {} --binary {{binary}}", self.duration());
        self.add("3 brokers, failover", Against::Nothing, line);
        let duration = if self.is_quick { "2s" } else { "20s" };
        self.add("wal ring", Against::Nothing, format!("wal --record-size 4KiB --duration {duration}"));
    }
}

/// The cases of `suite peers` for one system. Systems that share a case run it in turns.
pub fn peer_cases(system: System) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, against: Against, line: &str| {
        let line = format!("{line} --bootstrap {{bootstrap}} --disk-dir {{disk}}");
        cases.push(Case { name: name.to_owned(), against, line });
    };
    if system.is_kafka_compatible() {
        let pinned = "--cpus {cpus} --duration 5s --warm-up 3s";
        add("produce 100 B", Against::One, &format!("produce --topic full-100 --record-size 100 {pinned}"));
        add("produce 1 KiB", Against::One, &format!("produce --topic full-1k --record-size 1KiB {pinned}"));
        let line = format!("produce --topic many --partitions 200 --rate 16000 --linger 0ms --in-flight 64 {pinned}");
        add("produce 200 partitions x 80/s, no linger", Against::One, &line);
        let line = format!("end-to-end --topic tail --rate 10000 --linger 0ms {pinned}");
        add("end-to-end 10,000/s, no linger", Against::One, &line);
    }
    // Metadata writes come before any case that creates topics here, because etcd holds no topics either.
    if system == System::Millrace {
        let line = "metadata --peer {peer} --acks quorum --in-flight 64 --duration 5s";
        add("metadata writes", Against::Three, line);
    }
    if system == System::Etcd {
        add("metadata writes", Against::Three, "etcd --in-flight 64 --duration 5s");
    }
    if system.is_kafka_compatible() {
        // Kafka processes one request per connection at a time, so more requests in flight would only queue.
        let line = "metadata --operation create-topics --connections 16 --duration 5s";
        add("topics created", Against::Three, &format!("{line} --replication-factor 3"));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Command;

    #[test]
    fn every_case_is_a_command_line() {
        let filled = |line: &str| {
            let values = [
                ("{bootstrap}", "127.0.0.1:1"),
                ("{peer}", "127.0.0.1:2 --secret-file /tmp/secret"),
                ("{admin}", "127.0.0.1:3,127.0.0.1:4"),
                ("{data}", "/tmp"),
                ("{disk}", "/tmp"),
                ("{binary}", "/bin/true"),
                ("{cpus}", "0"),
            ];
            values.iter().fold(line.to_owned(), |line, (name, value)| line.replace(name, value))
        };
        let mut all = [cases(Set::Quick), cases(Set::Full)].concat();
        let systems = [System::Millrace, System::Kafka, System::KafkaFlush];
        all.extend(systems.into_iter().flat_map(peer_cases));
        for case in all {
            // No placeholder may remain in the line.
            let line = filled(&case.line);
            assert!(!line.contains('{'), "{line}");
            let words = std::iter::once("millrace-bench").chain(line.split_whitespace()).map(str::to_owned);
            if let Err(e) = Command::parse_all(words) {
                panic!("{line}: {e}");
            }
        }
    }

    #[test]
    fn cases_name_their_topics() {
        let all = cases(Set::Quick);
        let topic = |name: &str| all.iter().find(|case| case.name == name).and_then(Case::topic);
        assert_eq!(topic("produce 100 B x 1"), Some("full-100-1"));
        assert_eq!(topic("consume from disk"), Some("full-1KiB-1"));
        assert_eq!(topic("wal ring"), None);
    }

    #[test]
    fn names_of_cases_differ() {
        for set in [Set::Quick, Set::Full] {
            let mut names: Vec<String> = cases(set).into_iter().map(|case| case.name).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
        }
    }
}
