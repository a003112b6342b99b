//! Logs: one line per event on stderr, with UTC time, level and target.
//! Lives on: every thread; set up once by the main thread.

use std::{backtrace::Backtrace, io::IsTerminal as _, panic};

use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Logs the events that `filter` lets through. The filter's form was checked with the settings.
pub fn start(filter: &str) {
    let filter: Targets = filter.parse().expect("the setting log.filter is checked when it is read");
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_filter(filter);
    // Only tests start logging twice in a process. The first one stays.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// Makes a panic on any thread end the whole process with its message and backtrace. A broker that lost a core would go
/// on half alive.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // This does not use `tracing`, because the panicking thread may hold its locks.
        eprintln!("thread '{name}' {panic}\n{}", Backtrace::force_capture());
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        os::unix::process::ExitStatusExt as _,
        process::{Command, Stdio},
        thread,
    };

    const CHILD: &str = "MILLRACE_TEST_PANIC_CHILD";

    /// Starts itself as the process that panics.
    #[test]
    fn a_panic_on_any_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            abort_on_panic();
            let core = thread::Builder::new().name("core-7".to_owned()).spawn(|| panic!("out of cheese")).unwrap();
            // The hook does not return, so this line does not either.
            let _ = core.join();
            return;
        }
        let own = std::env::current_exe().unwrap();
        let (_, module) = module_path!().split_once("::").expect("the crate comes first");
        let test = format!("{module}::a_panic_on_any_thread_ends_the_process");
        let mut child = Command::new(own);
        child.args([&test, "--exact", "--nocapture"]).env(CHILD, "1").stdin(Stdio::null());
        let output = child.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{stderr}");
        assert!(stderr.contains("thread 'core-7' panicked at") && stderr.contains("out of cheese"), "{stderr}");
        assert!(stderr.contains("a_panic_on_any_thread_ends_the_process"), "with its backtrace: {stderr}");
    }
}
