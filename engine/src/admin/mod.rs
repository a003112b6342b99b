//! The admin port: a small HTTP/1.1 server, GET and HEAD only, one request per connection.
//! Lives on: one unpinned thread of its own, so that it answers while a core hangs. The answers come from [`pages`].
//!
//! `/health/…` must be answered however many connections are slow. A health check waits for none of them:
//! - The kernel hands over a connection once its first bytes are there (`TCP_DEFER_ACCEPT`). So peers that send nothing
//!   take no room here.
//! - The server accepts every connection at once, even if it is full. It reads what has come, and answers a health
//!   check before it looks for room. Only requests that are incomplete, and pages, need room.
//! - If there is no room, the server makes it at once.
//!
//! Bounds:
//! - [`CONNECTIONS_MAX`]. Beyond it, the server closes the oldest connection whose request is incomplete, else the
//!   oldest one that does not take its answer.
//! - [`PAGES_MAX`] connections that wait for pages. The server answers further ones with 503.
//! - [`HEAD_BYTES_MAX`]. The server answers a longer head with 431.
//! - [`REQUEST_TIME_MAX`] per connection, from its acceptance to the last byte of its answer. Then the server closes
//!   it.
//! - [`PAGES_A_TURN`] pages that take long to make. Between them, the server accepts and reads other connections.
//!
//! This is not an HTTP crate: the small crates use a thread for each connection, or let slow connections delay fast
//! ones. None of them puts health checks first.

pub mod pages;

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    admin::pages::{Answer, ProcessFigures, Site},
    log_limit::{Admitted, LogLimit},
};
use runtime::clock;

const CONNECTIONS_MAX: usize = 64;
/// Half of them, so that there is always a slow connection to close.
const PAGES_MAX: usize = CONNECTIONS_MAX / 2;
/// With the listener, and a connection that is about to be closed.
pub const DESCRIPTORS: u64 = CONNECTIONS_MAX as u64 + 2;
/// Connections that the server accepts before it serves the open ones again. So it empties a full queue in 16 turns.
const ACCEPTED_A_TURN: usize = CONNECTIONS_MAX;
const PAGES_A_TURN: usize = 1;
/// Connections that the kernel completes before the server accepts them. If the queue is full, a client retries only
/// after a second.
const BACKLOG: i32 = 1024;
const HEAD_BYTES_MAX: usize = 8 << 10;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "address {addr} (admin.addr) is in use by another program; choose another (--admin-addr) or stop that program"
    )]
    InUse { addr: SocketAddr },
    #[error("cannot listen on {addr} (admin.addr): {source}; choose another (--admin-addr)")]
    Bind { addr: SocketAddr, source: io::Error },
    #[error("cannot start the admin thread: {0}")]
    Thread(io::Error),
}

/// A bound admin port.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Admin {
    pub fn bind(addr: SocketAddr) -> Result<Admin, AdminError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => AdminError::InUse { addr },
            _ => AdminError::Bind { addr, source },
        };
        let listener = TcpListener::bind(addr).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        hand_over_with_data(&listener).map_err(failed)?;
        // SAFETY: a plain system call on a descriptor that we own. It already listens, with a shorter queue.
        if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
            return Err(failed(io::Error::last_os_error()));
        }
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Admin { listener, addr })
    }

    /// The bound address, with the port that the system chose if the setting names port 0.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts to serve, from a thread that ends with the process.
    pub fn start(self, site: Arc<Site>) -> Result<(), AdminError> {
        let serve = move || {
            let mut server = Server {
                listener: self.listener,
                connections: Vec::new(),
                process: Process::default(),
                log: LogLimit::default(),
            };
            loop {
                server.turn(&site);
            }
        };
        thread::Builder::new().name("admin".to_owned()).spawn(serve).map_err(AdminError::Thread)?;
        Ok(())
    }
}

/// Lets the kernel hand over connections only once their first bytes are there, or after [`REQUEST_TIME_MAX`].
fn hand_over_with_data(listener: &TcpListener) -> io::Result<()> {
    let seconds = REQUEST_TIME_MAX.as_secs() as libc::c_int;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    let length = size_of_val(&seconds) as libc::socklen_t;
    // SAFETY: the call reads a live integer, with its own length.
    match unsafe { libc::setsockopt(listener.as_raw_fd(), level, option, (&raw const seconds).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

struct Server {
    listener: TcpListener,
    /// In the order of their acceptance.
    connections: Vec<Connection>,
    process: Process,
    log: LogLimit,
}

impl Server {
    /// Waits for an event and handles all that have come.
    fn turn(&mut self, site: &Site) {
        let mut fds: Vec<libc::pollfd> = self.connections.iter().map(Connection::pollfd).collect();
        fds.push(pollfd(self.listener.as_raw_fd(), libc::POLLIN));
        let deadline = match self.connections.iter().any(|connection| connection.page.is_some()) {
            true => Some(Instant::now()),
            false => self.connections.iter().map(|connection| connection.deadline).min(),
        };
        if let Err(error) = wait(&mut fds, deadline) {
            tracing::error!(%error, "the admin thread cannot wait for requests");
            // Whatever the reason, do not spin.
            thread::sleep(Duration::from_secs(1));
            return;
        }
        let now = Instant::now();
        let mut ready = fds.iter().map(|fd| fd.revents != 0);
        self.connections.retain_mut(|connection| {
            let is_ready = ready.next().expect("one entry per connection");
            connection.deadline > now && (!is_ready || connection.go_on(site))
        });
        let has_new = ready.next() == Some(true);
        self.make_pages(site);
        if has_new {
            for _ in 0..ACCEPTED_A_TURN {
                if !self.accept(site, now) {
                    break;
                }
            }
        }
    }

    /// `false`: there is no connection to accept now.
    fn accept(&mut self, site: &Site, now: Instant) -> bool {
        match self.listener.accept() {
            Ok((stream, _)) => {
                let deadline = now + REQUEST_TIME_MAX;
                let mut connection = Connection { stream, deadline, head: Vec::new(), page: None, answer: None };
                // A health check that has come is answered here, and needs no room.
                if connection.stream.set_nonblocking(true).is_ok() && connection.go_on(site) {
                    self.take(connection, site);
                }
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => true,
            Err(error) => {
                if let Some(Admitted { left_out }) = self.log.admit(clock::now(), "accept", &error.to_string()) {
                    tracing::warn!(
                        %error, left_out, "cannot accept a connection on the admin port; trying again in 100 ms"
                    );
                }
                thread::sleep(Duration::from_millis(100));
                false
            }
        }
    }

    /// Takes a connection that needs room, and closes another one if there is none.
    fn take(&mut self, mut connection: Connection, site: &Site) {
        let pages = self.connections.iter().filter(|other| other.page.is_some()).count();
        if connection.page.is_some() && pages >= PAGES_MAX && !connection.refuse_page() {
            return;
        }
        if self.connections.len() >= CONNECTIONS_MAX {
            // If its request has arrived by now, the server answers it.
            self.connections.remove(self.slowest()).go_on(site);
        }
        self.connections.push(connection);
    }

    /// The connection to close when there are too many.
    fn slowest(&self) -> usize {
        let first = |is_slow: fn(&Connection) -> bool| self.connections.iter().position(is_slow);
        let incomplete = first(|slow| slow.page.is_none() && slow.answer.is_none());
        incomplete.or_else(|| first(|slow| slow.page.is_none())).expect("only half of them wait for pages")
    }

    /// Makes a few of the pages that take long, in the order of the connections. Refuses those for which too many wait.
    fn make_pages(&mut self, site: &Site) {
        let (mut made, mut waiting) = (0, 0);
        let process = &mut self.process;
        self.connections.retain_mut(|connection| {
            if connection.page.is_none() {
                return true;
            }
            if made < PAGES_A_TURN {
                made += 1;
                return connection.make_page(site, process);
            }
            waiting += 1;
            waiting <= PAGES_MAX || connection.refuse_page()
        });
    }
}

fn pollfd(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

fn wait(fds: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<()> {
    let timeout_ms = match deadline {
        // Rounded up, or the loop would spin during the last millisecond.
        Some(at) => at.saturating_duration_since(Instant::now()).as_millis() as i32 + 1,
        None => -1,
    };
    // SAFETY: a live slice, with its own length.
    let status = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match status {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::Interrupted => {
                fds.iter_mut().for_each(|fd| fd.revents = 0);
                Ok(())
            }
            e => Err(e),
        },
    }
}

struct Connection {
    stream: TcpStream,
    deadline: Instant,
    head: Vec<u8>,
    /// A page that has to be made.
    page: Option<Page>,
    /// The part of the answer that is not sent yet.
    answer: Option<Vec<u8>>,
}

impl Connection {
    fn pollfd(&self) -> libc::pollfd {
        let events = match (&self.page, &self.answer) {
            (_, Some(_)) => libc::POLLOUT,
            // Until the page is made, nothing is read or sent.
            (Some(_), None) => 0,
            (None, None) => libc::POLLIN,
        };
        pollfd(self.stream.as_raw_fd(), events)
    }

    /// Progresses after an event. `false`: the connection is finished, or the peer is gone.
    fn go_on(&mut self, site: &Site) -> bool {
        if self.page.is_some() {
            // Poll watches no event here, so this one means that the peer is gone.
            return false;
        }
        if self.answer.is_none() && !self.receive(site) {
            return false;
        }
        self.answer.is_none() || self.send()
    }

    /// Answers a request for a page with an error. `false`: the connection is finished.
    fn refuse_page(&mut self) -> bool {
        if let Some(Page { with_body, .. }) = self.page.take() {
            let why = format!("{PAGES_MAX} others wait for pages; try again later\n");
            self.answer = Some(Answer::text(503, why).encode(with_body));
        }
        self.send()
    }

    fn make_page(&mut self, site: &Site, process: &mut Process) -> bool {
        if let Some(Page { path, with_body }) = self.page.take() {
            self.answer = Some(site.answer(&path, Instant::now(), || process.figures()).encode(with_body));
        }
        self.send()
    }

    fn receive(&mut self, site: &Site) -> bool {
        let mut chunk = [0; 2048];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(byte_count) => self.head.extend_from_slice(&chunk[..byte_count]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
            match end_of_head(&self.head) {
                Some(end) => match answer(&self.head[..end], site) {
                    Asked::Answer(answer) => self.answer = Some(answer),
                    Asked::Page(page) => self.page = Some(page),
                },
                None if self.head.len() > HEAD_BYTES_MAX => {
                    self.answer = Some(Answer::text(431, "the request's head is too long\n").encode(true));
                }
                None => continue,
            }
            return true;
        }
    }

    fn send(&mut self) -> bool {
        let Some(left) = &mut self.answer else { return true };
        while !left.is_empty() {
            match self.stream.write(left) {
                Ok(byte_count) if byte_count > 0 => drop(left.drain(..byte_count)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return false,
            }
        }
        // If the peer is gone already, the error does not matter.
        let _ = self.stream.shutdown(Shutdown::Write);
        false
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n")
}

/// A page that takes long to make.
struct Page {
    path: String,
    with_body: bool,
}

enum Asked {
    /// The whole answer.
    Answer(Vec<u8>),
    Page(Page),
}

/// Handles a request's head. Quick answers are made at once.
fn answer(head: &[u8], site: &Site) -> Asked {
    let (method, path) = match request_line(head) {
        Some(request) => request,
        None => return Asked::Answer(Answer::text(400, "not an HTTP/1 request\n").encode(true)),
    };
    let with_body = method != "HEAD";
    if !matches!(method, "GET" | "HEAD") {
        return Asked::Answer(Answer::text(405, "only GET and HEAD are served here\n").encode(with_body));
    }
    if path.starts_with("/health/") {
        return Asked::Answer(site.answer(path, Instant::now(), ProcessFigures::default).encode(with_body));
    }
    Asked::Page(Page { path: path.to_owned(), with_body })
}

/// The method, and the path without the query.
fn request_line(head: &[u8]) -> Option<(&str, &str)> {
    let line = std::str::from_utf8(head).ok()?.split("\r\n").next()?;
    let mut parts = line.split(' ');
    let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
    let path = target.split('?').next()?;
    let whole = parts.next().is_none() && !method.is_empty() && path.starts_with('/') && version.starts_with("HTTP/1.");
    whole.then_some((method, path))
}

/// Reads figures of this process. May block on /proc for a moment.
#[derive(Default)]
struct Process(sysinfo::System);

impl Process {
    fn figures(&mut self) -> ProcessFigures {
        let Ok(pid) = sysinfo::get_current_pid() else { return ProcessFigures::default() };
        let kind = sysinfo::ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
        self.0.refresh_processes_specifics(sysinfo::ProcessesToUpdate::Some(&[pid]), true, kind);
        let figures = self.0.process(pid).map(|process| ProcessFigures {
            resident_memory_bytes: process.memory(),
            cpu_ms: process.accumulated_cpu_time(),
        });
        figures.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::pages::tests::site;

    fn serve() -> (SocketAddr, Arc<Site>) {
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (addr, site) = (admin.addr(), Arc::new(site(1)));
        admin.start(site.clone()).unwrap();
        (addr, site)
    }

    fn connect(addr: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    fn ask(addr: SocketAddr, request: &str) -> String {
        let mut stream = connect(addr);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn pages_are_served_over_http() {
        let (addr, site) = serve();
        site.ready("127.0.0.1:1".parse().unwrap(), "cluster");
        site.metrics.core(0).beat();
        let metrics = ask(addr, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = metrics.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert!(head.contains("Connection: close"), "{head}");
        assert!(body.contains("millrace_loop_beats_total{core=\"0\"} 1"), "{body}");
        let rss = body.lines().find_map(|line| line.strip_prefix("millrace_process_resident_memory_bytes "));
        assert!(rss.unwrap().parse::<u64>().unwrap() > 1 << 20, "this process is more than a MiB");
        assert!(ask(addr, "GET /health/live?verbose HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn requests_that_are_not_served_are_refused() {
        let (addr, _site) = serve();
        for (request, status) in [
            ("GET /nowhere HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET metrics HTTP/1.1\r\n\r\n", "400"),
            ("GET /metrics\r\n\r\n", "400"),
            ("GET /metrics HTTP/2\r\n\r\n", "400"),
            ("GET /a b HTTP/1.1\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
        ] {
            let answer = ask(addr, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert!(ask(addr, &long).starts_with("HTTP/1.1 431 "));
        let head = ask(addr, "HEAD /health/live HTTP/1.1\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[test]
    fn a_slow_peer_holds_up_nobody() {
        let (addr, _site) = serve();
        let mut slow = connect(addr);
        slow.write_all(b"GET /health/li").unwrap();
        let _silent = connect(addr);
        assert!(ask(addr, "GET /health/live HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        slow.write_all(b"ve HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// The server answers each health check while others hold their connections.
    #[test]
    fn many_slow_peers_do_not_silence_health() {
        let (addr, _site) = serve();
        let slow: Vec<TcpStream> = (0..200)
            .map(|n| {
                let mut stream = connect(addr);
                // Silent, in the middle of a request, or not reading the answer.
                let sent = [&b""[..], b"GET /health/li", b"GET /metrics HTTP/1.1\r\n\r\n"][n % 3];
                stream.write_all(sent).unwrap();
                stream
            })
            .collect();
        for _ in 0..10 {
            assert!(ask(addr, "GET /health/live HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
            // Only the oldest ones made room, and nobody waited until the newest one's time was over.
            assert!(is_silent(&slow[199]));
        }
        let (mut newest, mut answer) = (&slow[199], String::new());
        newest.write_all(b"ve HTTP/1.1\r\n\r\n").unwrap();
        newest.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// Whether the connection is open and nothing has come on it.
    fn is_silent(stream: &TcpStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).unwrap();
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Connections that have sent this.
    fn sent(addr: SocketAddr, count: usize, request: &[u8]) -> Vec<TcpStream> {
        let begin = |_| {
            let mut stream = connect(addr);
            stream.write_all(request).unwrap();
            stream
        };
        (0..count).map(begin).collect()
    }

    /// The status of the answer. `None`: the server has closed the connection without one.
    fn status(mut stream: &TcpStream) -> Option<u16> {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()
    }

    #[test]
    fn a_health_check_waits_for_no_other_connection() {
        const AHEAD: usize = 500;
        let Admin { listener, addr } = Admin::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut server =
            Server { listener, connections: Vec::new(), process: Process::default(), log: LogLimit::default() };
        let site = site(1);
        let health_after = |server: &mut Server, turns: usize| {
            let health = sent(addr, 1, b"GET /health/live HTTP/1.1\r\n\r\n").remove(0);
            (0..turns).for_each(|_| server.turn(&site));
            health.set_nonblocking(true).unwrap();
            status(&health)
        };
        // The kernel keeps what has sent nothing.
        let _silent: Vec<TcpStream> = (0..2 * ACCEPTED_A_TURN).map(|_| connect(addr)).collect();
        assert_eq!((health_after(&mut server, 1), server.connections.len()), (Some(200), 0));
        // Each of the others that the server accepts takes the place of an older one.
        let turns = (AHEAD + 1).div_ceil(ACCEPTED_A_TURN);
        let incomplete = sent(addr, AHEAD, b"GET /health/li");
        assert_eq!((health_after(&mut server, turns), server.connections.len()), (Some(200), CONNECTIONS_MAX));
        let (closed, kept) = incomplete.split_at(AHEAD - CONNECTIONS_MAX);
        assert!(closed.iter().all(|stream| status(stream).is_none()));
        // Half of the places are for pages. Each turn makes room for one.
        let pages = sent(addr, AHEAD, b"GET /status HTTP/1.1\r\n\r\n");
        assert_eq!((health_after(&mut server, turns), server.connections.len()), (Some(200), CONNECTIONS_MAX));
        while server.connections.iter().any(|connection| connection.page.is_some()) {
            server.turn(&site);
        }
        let answers: Vec<Option<u16>> = pages.iter().map(status).collect();
        let count = |wanted| answers.iter().filter(|status| **status == Some(wanted)).count();
        let made = PAGES_MAX + turns - 1;
        assert_eq!((count(200), count(503)), (made, AHEAD - made));
        // The newest ones keep their places.
        assert_eq!(server.connections.len(), CONNECTIONS_MAX - PAGES_MAX);
        assert!(kept[PAGES_MAX..].iter().all(is_silent));
    }

    #[test]
    fn pages_that_take_long_are_made_a_few_at_a_time() {
        let (addr, _site) = serve();
        let asking: Vec<TcpStream> = (0..PAGES_MAX)
            .map(|_| {
                let mut stream = connect(addr);
                stream.write_all(b"GET /status HTTP/1.1\r\n\r\n").unwrap();
                stream
            })
            .collect();
        assert!(ask(addr, "GET /health/live HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        for mut stream in asking {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("}\n"), "{answer}");
        }
    }

    #[test]
    fn a_taken_address_is_refused_by_name() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let refusal = Admin::bind(addr).unwrap_err().to_string();
        assert!(refusal.contains(&addr.to_string()) && refusal.contains("in use"), "{refusal}");
    }
}
