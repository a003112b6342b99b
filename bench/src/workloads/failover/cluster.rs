//! The brokers that workload `failover` kills and restarts: its own, or brokers that deploy/cluster/start.sh started.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::brokers::local::Local;
use crate::error::AnyError;

/// Pause between two checks whether a killed process is gone.
const GONE: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub enum Cluster {
    Own(Local),
    Given { dir: PathBuf, brokers: BTreeMap<i32, Process> },
}

/// How a process was started.
#[derive(Debug, Clone)]
pub struct Process {
    pid: i32,
    program: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
}

impl Process {
    fn of(pid: i32) -> io::Result<Process> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline"))?;
        let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.next();
        let mut arguments: Vec<String> = words.collect();
        // The command line ends with a zero byte.
        arguments.pop();
        Ok(Process {
            pid,
            program: fs::read_link(proc.join("exe"))?,
            arguments,
            directory: fs::read_link(proc.join("cwd"))?,
        })
    }
}

impl Cluster {
    /// Finds the brokers of the files DIR/broker-N.pid.
    pub fn given(dir: &Path) -> Result<Cluster, AnyError> {
        let failed = |e: io::Error| format!("--pid-dir {}: {e}", dir.display());
        let mut brokers = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(node) = name.strip_prefix("broker-").and_then(|name| name.strip_suffix(".pid")) else { continue };
            let pid = fs::read_to_string(&path).map_err(failed)?;
            let pid = pid.trim().parse().map_err(|e| format!("{}: {e}", path.display()))?;
            let process = Process::of(pid).map_err(|e| format!("broker {node} does not run as process {pid}: {e}"))?;
            // The kernel may have given the pid to another process.
            if !process.arguments.iter().any(|argument| argument.ends_with(&format!("broker-{node}"))) {
                return Err(format!("process {pid} of {} is not a broker on that directory", path.display()).into());
            }
            brokers.insert(node.parse()?, process);
        }
        if brokers.is_empty() {
            let dir = dir.display();
            return Err(format!(
                "--pid-dir {dir}: there is no broker-N.pid; name the --data-dir of deploy/cluster/start.sh"
            )
            .into());
        }
        Ok(Cluster::Given { dir: dir.canonicalize()?, brokers })
    }

    /// The brokers' addresses for clients; `None` if they are not known here.
    pub fn bootstrap(&self) -> Option<Vec<String>> {
        match self {
            Cluster::Own(local) => Some(local.bootstrap()),
            Cluster::Given { .. } => None,
        }
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self, node: i32) -> Result<(), AnyError> {
        match self {
            Cluster::Own(local) => Ok(local.kill(node as usize)?),
            Cluster::Given { brokers, .. } => {
                let broker = brokers.get(&node).ok_or("it is not a broker of --pid-dir")?;
                // SAFETY: kill takes two numbers. `given` checked that the process is the broker.
                if unsafe { libc::kill(broker.pid, libc::SIGKILL) } != 0 {
                    return Err(io::Error::last_os_error().into());
                }
                Ok(())
            }
        }
    }

    /// Restarts a broker with its former program, arguments and directory.
    pub fn restart(&mut self, node: i32) -> Result<(), AnyError> {
        match self {
            Cluster::Own(local) => {
                local.spawn(node as usize)?;
                local.await_ready(node as usize)
            }
            Cluster::Given { dir, brokers } => {
                let broker = brokers.get_mut(&node).ok_or("it is not a broker of --pid-dir")?;
                // Wait until the process is gone or a zombie: its ports are free only then.
                while fs::read(format!("/proc/{}/cmdline", broker.pid)).is_ok_and(|line| !line.is_empty()) {
                    thread::sleep(GONE);
                }
                let log = OpenOptions::new().create(true).append(true).open(dir.join(format!("broker-{node}.log")))?;
                let child = Command::new(&broker.program)
                    .args(&broker.arguments)
                    .current_dir(&broker.directory)
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log)
                    .spawn()
                    .map_err(|e| format!("cannot restart broker {node}: {e}"))?;
                broker.pid = child.id() as i32;
                fs::write(dir.join(format!("broker-{node}.pid")), format!("{}\n", broker.pid))?;
                // The broker outlives this program. While this program runs, the thread reaps the broker if it ends.
                thread::spawn(move || {
                    let mut child = child;
                    child.wait()
                });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::brokers::local::Scratch;

    #[test]
    fn a_process_is_seen_as_it_was_started() {
        let process = Process::of(std::process::id() as i32).unwrap();
        assert_eq!(process.arguments, std::env::args().skip(1).collect::<Vec<_>>());
        assert_eq!(process.program, std::env::current_exe().unwrap());
        assert_eq!(process.directory, std::env::current_dir().unwrap());
    }

    #[test]
    fn a_process_that_is_no_broker_is_left_alone() {
        let dir = Scratch::new(&std::env::current_dir().unwrap(), "bench-pids").unwrap();
        assert!(Cluster::given(dir.path()).unwrap_err().to_string().contains("no broker-N.pid"));
        fs::write(dir.path().join("broker-1.pid"), std::process::id().to_string()).unwrap();
        assert!(Cluster::given(dir.path()).unwrap_err().to_string().contains("is not a broker"));
    }
}
