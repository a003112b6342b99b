//! Logs: one line per event on stderr, with UTC time, level and target.
//! Lives on: every thread; set up once by the main thread.

use std::{backtrace::Backtrace, io::IsTerminal as _, panic};

use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Shows what `filter` lets through; its form was checked with the settings.
pub fn start(filter: &str) {
    let filter: Targets = filter.parse().expect("the setting log.filter is checked when it is read");
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).with_filter(filter);
    // Only tests start twice in a process; the first stays.
    let _ = tracing_subscriber::registry().with(lines).try_init();
}

/// A panic on any thread takes the whole process down with its message and backtrace: a broker that lost a core would go
/// on half alive.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        // Not by `tracing`, whose own locks the panicking thread may hold.
        eprintln!("thread '{name}' {panic}\n{}", Backtrace::force_capture());
        std::process::abort();
    }));
}
