//! Children that do not outlive this process, however it ends.
//!
//! The kernel can kill a child when its parent ends, but takes the thread that started it for the parent. So all are started by one
//! thread, which ends with the process.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{OnceLock, mpsc};
use std::thread;

type Start = (Command, mpsc::Sender<io::Result<Child>>);

/// Starts a child that is killed when this process ends.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<Start>> = OnceLock::new();
    let me = std::process::id();
    // SAFETY: between fork and exec only system calls are made, nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // Its end may have come before.
            if libc::getppid() as u32 != me {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    let starter = STARTER.get_or_init(|| {
        let (starter, starts) = mpsc::channel::<Start>();
        thread::spawn(move || {
            for (mut command, started) in starts {
                // Whoever asked waits for it.
                _ = started.send(command.spawn());
            }
        });
        starter
    });
    let (started, child) = mpsc::channel();
    starter.send((command, started)).expect("the thread ends with the process");
    child.recv().expect("the thread answers")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;
    use std::time::Duration;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let asking = thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("60").stdin(Stdio::null());
            spawn(command)
        });
        let mut child = asking.join().unwrap().unwrap();
        thread::sleep(Duration::from_millis(20));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        assert_eq!(spawn(Command::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
