//! A small file system for one broker, which a test can fill up: a tmpfs in user and mount namespaces of its own. They
//! end when this value is dropped. Needs no privileges, but a kernel that lets its users create namespaces.
//!
//! A broker in there has no privileges outside. So its rings count as locked memory: about half a MiB per core. On most
//! systems, all such brokers of a user together may have 8 MiB. So only a few of them should run at a time, on few
//! cores.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub struct SmallDisk {
    /// Holds the namespaces. It reads its standard input until the test ends, however the test ends.
    keeper: Child,
    at: PathBuf,
    bytes: u64,
}

impl SmallDisk {
    /// Mounts the file system over a directory. Only processes started by [`SmallDisk::command`] see it. `Err`: why
    /// that is impossible here.
    pub fn mount(at: &Path, bytes: u64) -> Result<SmallDisk, String> {
        let script = r#"mount -t tmpfs -o "size=$2" tmpfs "$1" && echo mounted && exec cat"#;
        let mut keeper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "small-disk"])
            .arg(at)
            .arg(bytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let told = BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut line);
        if told.is_ok() && line.trim() == "mounted" {
            return Ok(SmallDisk { keeper, at: at.to_path_buf(), bytes });
        }
        // It may have ended by itself.
        let _ = keeper.kill();
        let ended = keeper.wait_with_output().map_err(|error| error.to_string())?;
        Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned())
    }

    /// A command for a program that sees this file system.
    pub fn command(&self, program: &OsStr) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.keeper.id()));
        command.args(["--user", "--mount", "--preserve-credentials", "--"]).arg(program);
        command
    }

    /// The path of the file system for processes outside, such as this one.
    pub fn path(&self) -> PathBuf {
        let at = self.at.strip_prefix("/").expect("a temporary directory has a full path");
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(at)
    }

    /// Fills the file system: from now on, it is only as large as its contents.
    pub fn fill(&self) {
        // A write between the look and the resize makes the resize fail. Then the script tries again.
        const SHRINK: &str = r#"
            for try in 1 2 3 4 5 6 7 8 9; do
                mount -o "remount,size=$(($(stat -f -c '(%b - %f) * %S' "$1")))" tmpfs "$1" && exit
            done
            exit 1"#;
        self.run(SHRINK, &[]);
    }

    /// Restores the original size, and so undoes [`SmallDisk::fill`].
    pub fn make_room(&self) {
        self.run(r#"mount -o "remount,size=$2" tmpfs "$1""#, &[&self.bytes.to_string()]);
    }

    /// Frees a file's blocks. The file then reads as zeros, and writing it needs space again.
    pub fn punch(&self, file: &str) {
        self.run(r#"fallocate --punch-hole --offset 0 --length "$(stat -c %s "$1/$2")" "$1/$2""#, &[file]);
    }

    fn run(&self, script: &str, args: &[&str]) {
        let mut command = self.command(OsStr::new("sh"));
        let output = command.args(["-c", script, "small-disk"]).arg(&self.at).args(args).output();
        let output = output.expect("a shell in the small disk's namespaces");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Reports directly on stderr that small disks are impossible here. The harness hides what a passing test prints.
pub fn not_tested(why: &str) {
    let said = writeln!(io::stderr(), "NOT TESTED HERE: full disks, since no file system can be mounted: {why}");
    said.expect("standard error is open");
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
