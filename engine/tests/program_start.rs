//! The program as people see it: help, error messages, the banner, the admin port, topics, the end.

#[path = "support/program.rs"]
mod program;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
};

use program::{Broker, millrace, output};

/// Ports that the system chooses, and rings that suit a test.
const FREE: [&str; 8] = [
    "--kafka-addr",
    "127.0.0.1:0",
    "--admin-addr",
    "127.0.0.1:0",
    "--peer-addr",
    "127.0.0.1:0",
    "--set",
    "wal.ring.bytes=64MiB",
];

/// Starts a broker that must end by itself. Returns its exit status and its errors.
fn refused(data_dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let (code, _, stderr) = output(millrace(&FREE).arg("--data-dir").arg(data_dir).args(args));
    (code, stderr)
}

/// The exit status of a broker whose data directory is damaged, and of the others that `--help` lists.
const FAILED: Option<i32> = Some(1);
const REFUSED: Option<i32> = Some(2);
const DAMAGED: Option<i32> = Some(3);
const NEWER: Option<i32> = Some(4);
const ADDRESS_IN_USE: Option<i32> = Some(5);
const LIMITS: Option<i32> = Some(6);

#[test]
fn help_and_version_go_to_stdout() {
    let (code, stdout, _) = output(&mut millrace(&["--help"]));
    assert_eq!(code, Some(0));
    for part in
        ["--data-dir", "--kafka-addr", "--cores", "--config", "127.0.0.1:9644", "Examples:", "topic", "cluster", "wal"]
    {
        assert!(stdout.contains(part), "{part}\n{stdout}");
    }
    let (_, serve, _) = output(&mut millrace(&["serve", "--help"]));
    for line in [
        "Exit status:",
        "  0  The command succeeded, ",
        "  1  Any other failure; ",
        "  2  The command line or a setting is invalid.",
        "  3  The data directory is damaged. ",
        "  4  Another version wrote the data directory. ",
        "  5  An address to listen on is in use.",
        "  6  The system grants too little: ",
    ] {
        assert!([&stdout, &serve].iter().all(|help| help.contains(&format!("\n{line}"))), "{line}\n{serve}");
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
fn impossible_settings_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let config = dir.path().join("millrace.toml");
    fs::write(&config, "num.partitions = 0\n").unwrap();
    let config = config.to_str().unwrap();
    let rows: [(&[&str], Option<i32>, &str); 15] = [
        (&["--config", config], REFUSED, "must be 1 to 100000"),
        (&["--set", "num.partitons=3"], REFUSED, "did you mean 'num.partitions'?"),
        (&["--set", "log.cleanup.policy=compact"], REFUSED, "must be delete"),
        (&["--kafka-addr", "nowhere"], REFUSED, "kafka.addr = 'nowhere' (--kafka-addr): it must be host:port"),
        (&["--kafka-addr", "0.0.0.0:0"], REFUSED, "set advertised.kafka.addr"),
        (&["--peer-addr", "0.0.0.0:0"], REFUSED, "set advertised.peer.addr"),
        (&["--advertised-kafka-addr", "0.0.0.0:9092"], REFUSED, "advertised.kafka.addr = '0.0.0.0:9092'"),
        (&["--advertised-kafka-addr", "[::]:9092"], REFUSED, "so no port 0 and not 0.0.0.0 or [::]"),
        (&["--advertised-peer-addr", "[::]:9291"], REFUSED, "advertised.peer.addr = '[::]:9291'"),
        (&["--seeds", "1@0.0.0.0:9291"], REFUSED, "no host 0.0.0.0 or [::]"),
        (&["--cores", "0,0"], REFUSED, "it names CPU 0 twice"),
        (&["--kafka-adr", "127.0.0.1:0"], REFUSED, "--kafka-addr"),
        (&["--cores", "60000"], LIMITS, "this process may not use CPU 60000"),
        (&["--set", "memory.budget.bytes=1000000GiB"], LIMITS, "lower it, or leave it out"),
        (&["--set", "wal.ring.bytes=1000TiB"], REFUSED, "wal.ring.bytes = '1000TiB'"),
    ];
    for (args, status, part) in rows {
        let (code, stdout, stderr) = output(millrace(args).env("MILLRACE_DATA_DIR", &data_dir));
        assert_eq!(code, status, "{stderr}");
        assert!(stderr.contains(part) && stdout.is_empty(), "{stderr}");
    }
    assert!(!data_dir.exists(), "nothing was created");
}

#[test]
fn a_data_directory_is_its_brokers_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _) = Broker::start(dir.path()).stop();
    assert_eq!(code, Some(0));
    let (code, stderr) = refused(dir.path(), &["--node-id", "2"]);
    assert_eq!(code, FAILED, "{stderr}");
    let words = "belongs to broker 1, not 2; start it with --node-id 1, or name another directory (--data-dir)";
    assert!(stderr.contains(words) && !stderr.contains("damaged"), "{stderr}");
}

#[test]
fn a_variable_that_nobody_knows_is_refused() {
    let (code, _, stderr) = output(millrace(&["serve"]).env("MILLRACE_NUM_PARTITION", "3"));
    assert_eq!(code, REFUSED);
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
    let (code, stderr) = refused(dir.path(), &[]);
    assert_eq!(code, FAILED);
    let holder = format!("in use by another millrace (process {})", broker.child.id());
    assert!(stderr.contains(&holder), "{stderr}");
    for (flag, addr, other) in
        [("--kafka-addr", &broker.kafka, "--admin-addr"), ("--admin-addr", &broker.admin, "--kafka-addr")]
    {
        let elsewhere = tempfile::tempdir().unwrap();
        let mut second = millrace(&[flag, addr, other, "127.0.0.1:0", "--set", "wal.ring.bytes=64MiB", "--data-dir"]);
        let (code, _, stderr) = output(second.arg(elsewhere.path()));
        assert_eq!(code, ADDRESS_IN_USE);
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
    let snapshots = fs::read_dir(dir.path().join("snapshots")).unwrap();
    let paths: Vec<_> = snapshots.map(|entry| entry.unwrap().path().canonicalize().unwrap()).collect();
    let [path] = &paths[..] else { panic!("{paths:?}") };
    let mut bytes = fs::read(path).unwrap();
    bytes[100] ^= 1;
    fs::write(path, bytes).unwrap();
    let (code, stderr) = refused(dir.path(), &[]);
    assert_eq!(code, DAMAGED, "{stderr}");
    for part in [path.to_str().unwrap(), "it fails its CRC", "move it away and start with an empty one", "operating.md"]
    {
        assert!(stderr.contains(part), "no '{part}' in: {stderr}");
    }
}

/// Bytes of the header of a write in a ring.
const RING_HEADER_BYTES: usize = 96;

#[test]
fn a_damaged_ring_ends_the_start_and_a_dump_with_its_name_and_a_status_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(dir.path());
    // Each is a write. A later one proves that the earlier ones were durable.
    for name in ["one", "two", "three"] {
        assert_eq!(broker.topic(&["create", name]).0, Some(0));
    }
    // A clean stop would leave nothing to recover.
    broker.child.kill().unwrap();
    broker.child.wait().unwrap();
    let core = dir.path().canonicalize().unwrap().join("epoch-0/core-0");
    let rings = fs::read_dir(&core).unwrap().map(|entry| entry.unwrap().path());
    let is_written = |path: &PathBuf| {
        let is_ring = path.extension().is_some_and(|extension| extension == "seg");
        is_ring && fs::read(path).unwrap().iter().take(RING_HEADER_BYTES).any(|byte| *byte != 0)
    };
    let written: Vec<PathBuf> = rings.filter(is_written).collect();
    let [ring] = &written[..] else { panic!("{written:?}") };
    let mut bytes = fs::read(ring).unwrap();
    bytes[RING_HEADER_BYTES + 8] ^= 1;
    fs::write(ring, bytes).unwrap();
    let (code, stderr) = refused(dir.path(), &[]);
    assert_eq!(code, DAMAGED, "{stderr}");
    for part in ["damaged: ", ring.to_str().unwrap(), "move it away and start with an empty one", "operating.md"] {
        assert!(stderr.contains(part), "no '{part}' in: {stderr}");
    }
    let (code, dumped, stderr) = output(millrace(&["wal", "dump"]).arg(ring));
    assert_eq!(code, DAMAGED, "{stderr}");
    assert!(dumped.contains("DAMAGED") && stderr.contains("not readable to its end: "), "{dumped}{stderr}");
}

#[test]
fn a_data_directory_of_a_newer_version_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Broker::start(dir.path()).stop().0, Some(0));
    let manifest = dir.path().canonicalize().unwrap().join("MANIFEST");
    let text = fs::read_to_string(&manifest).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    let newer = format!("millrace-data 99\n{rest}");
    fs::write(&manifest, &newer).unwrap();
    let (code, stderr) = refused(dir.path(), &[]);
    assert_eq!(code, NEWER, "{stderr}");
    let words = format!(
        "{} has format version 99, but this program reads 2 at most; run the newer version",
        manifest.display()
    );
    assert!(stderr.contains(&words) && !stderr.contains("damaged"), "{stderr}");
    assert_eq!(fs::read_to_string(&manifest).unwrap(), newer);
}

#[test]
fn an_address_of_another_program_ends_the_start_with_its_setting_and_a_status_of_its_own() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    let seeds = format!("1@{addr},2@127.0.0.1:1");
    let founding = ["--peer-addr", &addr, "--seeds", &seeds, "--set", "peer.allow.insecure=true"];
    for (args, setting) in [
        (&["--kafka-addr", &addr][..], "kafka.addr"),
        (&["--peer-addr", &addr], "peer.addr"),
        (&["--admin-addr", &addr], "admin.addr"),
        // Before it belongs to a cluster, a broker answers its other seeds there.
        (&founding, "peer.addr"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        // A flag that is given twice is an error.
        let free = FREE.chunks(2).filter(|flag| flag[0] != args[0]).flatten().copied().collect::<Vec<_>>();
        let (code, _, stderr) = output(millrace(&free).arg("--data-dir").arg(dir.path()).args(args));
        assert_eq!(code, ADDRESS_IN_USE, "{stderr}");
        assert!([setting, &addr, "in use", "choose another"].iter().all(|part| stderr.contains(part)), "{stderr}");
    }
}

#[test]
fn nobody_at_the_address_is_told() {
    let (code, _, stderr) = output(&mut millrace(&["topic", "list", "--bootstrap", "127.0.0.1:1"]));
    assert_eq!(code, FAILED);
    assert!(stderr.contains("cannot connect to 127.0.0.1:1"), "{stderr}");
}
