//! The binary `millrace`, as people start it.

// Each test binary uses only a part of this module.
#![allow(dead_code)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

/// The program, without the settings in this process's environment.
pub fn millrace(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command.args(args).env_remove("RUST_BACKTRACE");
    for (name, _) in std::env::vars() {
        if name.starts_with("MILLRACE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Exit status, stdout, stderr.
pub fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A broker on ports that the system chooses. Dropping it kills the process.
pub struct Broker {
    pub child: Child,
    stdout: BufReader<ChildStdout>,
    pub banner: String,
    pub kafka: String,
    pub admin: String,
}

impl Broker {
    pub fn start(data_dir: &Path) -> Broker {
        Broker::start_by(|_| {}, data_dir)
    }

    /// `prepare` may change how the process starts.
    pub fn start_by(prepare: impl FnOnce(&mut Command), data_dir: &Path) -> Broker {
        let mut command = millrace(&["--kafka-addr", "127.0.0.1:0", "--peer-addr", "127.0.0.1:0"]);
        command.args(["--admin-addr", "127.0.0.1:0", "--set", "wal.ring.bytes=64MiB", "--log", "warn", "--data-dir"]);
        prepare(command.arg(data_dir));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut banner = String::new();
        while !banner.contains("listening admin ") {
            assert!(stdout.read_line(&mut banner).unwrap() > 0, "the broker ended early:\n{banner}");
        }
        let find = |name: &str| banner.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        let (kafka, admin) = (find("listening kafka "), find("listening admin "));
        Broker { child, stdout, banner, kafka, admin }
    }

    pub fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn topic(&self, args: &[&str]) -> (Option<i32>, String, String) {
        output(millrace(&["topic"]).args(args).args(["--bootstrap", &self.kafka]))
    }

    /// Sends SIGTERM and waits. Returns the exit status and the output after the banner.
    pub fn stop(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
