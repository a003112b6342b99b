//! The program as people see it: help, error messages, the banner, the admin port, topics, the end.

#[path = "support/program.rs"]
mod program;

use program::{Broker, millrace, output};

#[test]
fn help_and_version_go_to_stdout() {
    let (code, stdout, _) = output(&mut millrace(&["--help"]));
    assert_eq!(code, Some(0));
    for part in
        ["--data-dir", "--kafka-addr", "--cores", "--config", "127.0.0.1:9644", "Examples:", "topic", "cluster", "wal"]
    {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    for args in [&["version"][..], &["--version"]] {
        let version = format!("millrace {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(output(&mut millrace(args)), (Some(0), version, String::new()));
    }
    let (code, stdout, _) = output(millrace(&["config", "--node-id", "5"]).env("MILLRACE_NUM_PARTITIONS", "7"));
    assert_eq!(code, Some(0));
    assert!(stdout.contains("node.id = 5 (flag)") && stdout.contains("num.partitions = 7 (variable)"), "{stdout}");
}

#[test]
fn what_is_impossible_is_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let config = dir.path().join("millrace.toml");
    std::fs::write(&config, "num.partitions = 0\n").unwrap();
    let config = config.to_str().unwrap();
    let rows: [(&[&str], i32, &str); 14] = [
        (&["--config", config], 2, "must be 1 to 100000"),
        (&["--set", "num.partitons=3"], 2, "did you mean 'num.partitions'?"),
        (&["--set", "log.cleanup.policy=compact"], 2, "must be delete"),
        (&["--kafka-addr", "nowhere"], 2, "kafka.addr = 'nowhere' (--kafka-addr): it must be host:port"),
        (&["--kafka-addr", "0.0.0.0:0"], 2, "set advertised.kafka.addr"),
        (&["--peer-addr", "0.0.0.0:0"], 2, "set advertised.peer.addr"),
        (&["--advertised-kafka-addr", "0.0.0.0:9092"], 2, "advertised.kafka.addr = '0.0.0.0:9092'"),
        (&["--advertised-kafka-addr", "[::]:9092"], 2, "so no port 0 and not 0.0.0.0 or [::]"),
        (&["--advertised-peer-addr", "[::]:9291"], 2, "advertised.peer.addr = '[::]:9291'"),
        (&["--seeds", "1@0.0.0.0:9291"], 2, "no host 0.0.0.0 or [::]"),
        (&["--cores", "0,0"], 2, "it names CPU 0 twice"),
        (&["--kafka-adr", "127.0.0.1:0"], 2, "--kafka-addr"),
        (&["--cores", "60000"], 1, "this process may not use CPU 60000"),
        (&["--set", "wal.ring.bytes=1000TiB"], 2, "wal.ring.bytes = '1000TiB'"),
    ];
    for (args, status, part) in rows {
        let (code, stdout, stderr) = output(millrace(args).env("MILLRACE_DATA_DIR", &data_dir));
        assert_eq!(code, Some(status), "{stderr}");
        assert!(stderr.contains(part) && stdout.is_empty(), "{stderr}");
    }
    assert!(!data_dir.exists(), "nothing was created");
}

#[test]
fn a_data_directory_is_its_brokers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _) = Broker::start(dir.path()).stop();
    assert_eq!(code, Some(0));
    let addrs = ["--kafka-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--peer-addr", "127.0.0.1:0"];
    let mut other = millrace(&addrs);
    let (code, _, stderr) =
        output(other.args(["--node-id", "2", "--set", "wal.ring.bytes=64MiB", "--data-dir"]).arg(dir.path()));
    assert_eq!(code, Some(1), "{stderr}");
    let words = "belongs to broker 1, not 2; start it with --node-id 1, or name another directory (--data-dir)";
    assert!(stderr.contains(words) && !stderr.contains("damaged"), "{stderr}");
}

#[test]
fn a_variable_that_nobody_knows_is_refused() {
    let (code, _, stderr) = output(millrace(&["serve"]).env("MILLRACE_NUM_PARTITION", "3"));
    assert_eq!(code, Some(2));
    assert!(stderr.contains("did you mean MILLRACE_NUM_PARTITIONS?"), "{stderr}");
}

#[test]
fn it_serves_is_watched_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    for part in ["cores ", "memory ", "durability ", dir.path().canonicalize().unwrap().to_str().unwrap()] {
        assert!(broker.banner.contains(part), "{}", broker.banner);
    }
    assert!(broker.get("/health/live").starts_with("HTTP/1.1 200 "));
    assert!(broker.get("/health/ready").starts_with("HTTP/1.1 200 "));

    // The directory and the addresses are in use.
    let taken = ["--kafka-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--peer-addr", "127.0.0.1:0"];
    let (code, _, stderr) = output(millrace(&taken).arg("--data-dir").arg(dir.path()));
    assert_eq!(code, Some(1));
    let holder = format!("in use by another millrace (process {})", broker.child.id());
    assert!(stderr.contains(&holder), "{stderr}");
    for (flag, addr, other) in
        [("--kafka-addr", &broker.kafka, "--admin-addr"), ("--admin-addr", &broker.admin, "--kafka-addr")]
    {
        let elsewhere = tempfile::tempdir().unwrap();
        let mut second = millrace(&[flag, addr, other, "127.0.0.1:0", "--set", "wal.ring.bytes=64MiB", "--data-dir"]);
        let (code, _, stderr) = output(second.arg(elsewhere.path()));
        assert_eq!(code, Some(1));
        assert!(stderr.contains(&format!("address {addr}")) && stderr.contains("in use"), "{stderr}");
    }

    assert_eq!(
        broker.topic(&["create", "orders", "--partitions", "3", "--config", "retention.ms=60000"]),
        (Some(0), "created orders: partitions 3, replicas 1\n".to_owned(), String::new())
    );
    let (code, _, stderr) = broker.topic(&["create", "orders"]);
    assert!(code == Some(1) && stderr.contains("already exists (TopicAlreadyExists)"), "{stderr}");
    let (code, _, stderr) = broker.topic(&["create", "compacted", "--config", "cleanup.policy=compact"]);
    assert!(code == Some(1) && stderr.contains("cleanup.policy = 'compact': it must be delete"), "{stderr}");
    let (_, listed, _) = broker.topic(&["list"]);
    assert_eq!(listed, "orders  partitions 3\n");
    let (_, described, _) = broker.topic(&["describe", "orders"]);
    assert!(described.contains("  retention.ms = 60000\n"), "{described}");
    assert_eq!(described.matches("leader 1  ").count(), 3, "{described}");

    let metrics = broker.get("/metrics");
    assert!(metrics.contains("api=\"CreateTopics\"} "), "{metrics}");
    let status = broker.get("/status");
    assert!(status.contains(&format!("\"kafka_addr\": \"{}\"", broker.kafka)), "{status}");

    assert_eq!(broker.topic(&["delete", "orders"]), (Some(0), "deleted orders\n".to_owned(), String::new()));
    let (code, _, stderr) = broker.topic(&["describe", "orders"]);
    assert!(code == Some(1) && stderr.contains("there is no such topic"), "{stderr}");

    // A segment can be dumped while the broker writes it, …
    let core_dir = dir.path().join("epoch-0/core-0");
    let (code, dumped, stderr) = output(millrace(&["wal", "dump"]).arg(&core_dir));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(dumped.contains(": entry 1 of term 1") && dumped.contains("verdict at "), "{dumped}");

    assert_eq!(broker.stop(), (Some(0), String::new()));
    // … and afterwards the dump shows a clean end.
    let (code, dumped, stderr) = output(millrace(&["wal", "dump"]).arg(core_dir.join("ring-0000.seg")));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        dumped.contains(", clean shutdown\n") && dumped.contains("the ring ends here, nothing is lost"),
        "{dumped}"
    );
    let (code, _, stderr) = output(millrace(&["wal", "dump"]).arg(dir.path()));
    assert!(code == Some(1) && stderr.contains("holds no ring segments"), "{stderr}");
    // The lock has ended with the process.
    assert_eq!(Broker::start(dir.path()).stop().0, Some(0));
}

#[test]
fn a_damaged_snapshot_of_the_metadata_ends_the_start_with_its_name_and_a_status_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(dir.path());
    assert_eq!(broker.topic(&["create", "orders"]).0, Some(0));
    assert_eq!(broker.stop().0, Some(0));
    let snapshots = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
    let paths: Vec<_> = snapshots.map(|entry| entry.unwrap().path().canonicalize().unwrap()).collect();
    let [path] = &paths[..] else { panic!("{paths:?}") };
    let mut bytes = std::fs::read(path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let addrs = ["--kafka-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0", "--peer-addr", "127.0.0.1:0"];
    let mut again = millrace(&addrs);
    let (code, _, stderr) = output(again.args(["--set", "wal.ring.bytes=64MiB", "--data-dir"]).arg(dir.path()));
    assert_eq!(code, Some(3), "{stderr}");
    for part in [path.to_str().unwrap(), "it fails its CRC", "move it away and start with an empty one", "operating.md"]
    {
        assert!(stderr.contains(part), "no '{part}' in: {stderr}");
    }
}

#[test]
fn nobody_at_the_address_is_told() {
    let (code, _, stderr) = output(&mut millrace(&["topic", "list", "--bootstrap", "127.0.0.1:1"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot connect to 127.0.0.1:1"), "{stderr}");
}
