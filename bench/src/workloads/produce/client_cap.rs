//! The client's cap: the same load with the same options against librdkafka's mock cluster in a child process. The
//! mock cluster stores nothing and waits for no disk.

use crate::machine::ceiling::Ceiling;
use crate::options::workloads::ProduceOptions;

#[cfg(not(feature = "librdkafka"))]
pub fn measure(options: &ProduceOptions, _partitions: i32, ceiling: &mut Ceiling) {
    if !options.run.no_ceiling {
        ceiling.client_cap_by =
            Some("this build has no librdkafka; build with --features librdkafka for its mock cluster".to_owned());
    }
}

#[cfg(feature = "librdkafka")]
pub use with_mock::{measure, serve};

#[cfg(feature = "librdkafka")]
mod with_mock {
    use std::io::{self, BufRead, BufReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use rdkafka::mocking::MockCluster;

    use super::{Ceiling, ProduceOptions};
    use crate::error::AnyError;
    use crate::figures::stats::quantile_ms;
    use crate::load::setup::{self, Lane, Target};
    use crate::options::{MockClusterOptions, TargetOptions};
    use crate::workloads::produce;

    /// Maximum duration of the measurement of the cap.
    const DURATION: Duration = Duration::from_secs(2);
    const WARM_UP: Duration = Duration::from_millis(500);
    /// A version of Produce that both the harness and the mock cluster support.
    const PRODUCE_VERSION: i16 = 9;
    const TOPIC: &str = "client-cap";

    pub fn measure(options: &ProduceOptions, partitions: i32, ceiling: &mut Ceiling) {
        if options.run.no_ceiling {
            return;
        }
        let by = match against_mock(options, partitions, ceiling) {
            Ok(()) => "librdkafka's mock cluster".to_owned(),
            Err(e) => format!("librdkafka's mock cluster failed: {e}"),
        };
        ceiling.client_cap_by = Some(by);
    }

    /// The child process; it is killed when this is dropped.
    struct Mock(Child);

    impl Drop for Mock {
        fn drop(&mut self) {
            // Killing a process that has ended has no effect.
            _ = self.0.kill();
            _ = self.0.wait();
        }
    }

    fn against_mock(options: &ProduceOptions, partitions: i32, ceiling: &mut Ceiling) -> Result<(), AnyError> {
        let mut mock = Command::new(std::env::current_exe()?);
        mock.args(["mock-cluster", "--topic", TOPIC, "--partitions", &partitions.to_string()]);
        let mut mock = Mock(mock.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let mut bootstrap = String::new();
        let output = mock.0.stdout.take().ok_or("it has no output")?;
        BufReader::new(output).read_line(&mut bootstrap)?;
        if bootstrap.trim().is_empty() {
            return Err("it did not print its address".into());
        }
        let mut options = options.clone();
        options.run.duration = options.run.duration.min(DURATION);
        options.run.warm_up = options.run.warm_up.min(WARM_UP);
        options.target = TargetOptions {
            bootstrap: bootstrap.trim().to_owned(),
            topic: TOPIC.to_owned(),
            partitions: Some(partitions),
            ..options.target
        };
        // The mock cluster answers version requests in its own way, so skip the usual set-up. Its brokers and
        // partitions are known anyway.
        let addr = bootstrap.trim().parse().map_err(|e| format!("its address {:?}: {e}", bootstrap.trim()))?;
        let leaders = [Lane { addr, partitions: (0..partitions).collect() }];
        let lanes = setup::lanes(&leaders, options.target.threads.connections)?;
        let target = Target { lanes, partitions, version: PRODUCE_VERSION };
        // An acknowledgement of a paced run may cost two things: the client itself, and a durable write while the
        // client runs. Measure both.
        let outcome = match options.records.rate {
            None | Some(0) => produce::load(&options, target),
            Some(_) => {
                let (dir, cpus) = (&options.run.disk_dir, &options.target.threads.cpus);
                ceiling.measure_disk_beside(dir, cpus, || produce::load(&options, target))
            }
        };
        let tally = outcome?.tally;
        match tally.first_error {
            Some(error) => Err(error.into()),
            None => {
                ceiling.client_cap_per_s = Some(tally.per_second(tally.records));
                ceiling.client_cap_p50_ms = Some(quantile_ms(&tally.latency_ns, 0.5));
                ceiling.client_cap_p99_ms = Some(quantile_ms(&tally.latency_ns, 0.99));
                Ok(())
            }
        }
    }

    /// Runs in the child process. Serves until its standard input ends, so that it never outlives its parent.
    pub fn serve(options: &MockClusterOptions) -> Result<(), AnyError> {
        let cluster = MockCluster::new(1)?;
        cluster.create_topic(&options.topic, options.partitions, 1)?;
        println!("{}", cluster.bootstrap_servers());
        io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }
}
