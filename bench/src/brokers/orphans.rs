//! Children that do not outlive this process, however it ends.
//!
//! The kernel can kill a child when its parent ends (PR_SET_PDEATHSIG), but it treats the thread that forked as the
//! parent. Therefore one thread starts all children, and that thread ends only with the process.

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
    // SAFETY: between fork and exec the closure makes only system calls. It allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have ended before prctl took effect.
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
                // The caller of `spawn` waits for this answer.
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
