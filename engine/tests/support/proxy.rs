//! A path between two processes that a test can cut: bytes pass, stall, or the connections break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Open,
    /// Connections stay open and new ones are accepted, but no bytes pass.
    Silent,
    /// Connections end at once, and so do new ones.
    Broken,
    /// The test is over.
    Gone,
}

#[derive(Debug)]
struct Gate {
    state: Mutex<(Mode, Vec<TcpStream>)>,
    changed: Condvar,
}

impl Gate {
    /// Waits until bytes may pass. `false`: they never will on this connection.
    fn pass(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.changed.wait_while(state, |state| state.0 == Mode::Silent);
        state.unwrap_or_else(PoisonError::into_inner).0 == Mode::Open
    }

    /// Remembers a connection in order to end it later. `false`: it has to end now.
    fn hold(&self, stream: &TcpStream) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(stream) = stream.try_clone() else { return false };
        state.1.push(stream);
        matches!(state.0, Mode::Open | Mode::Silent)
    }
}

/// Listens on a port of its own and forwards to another address. Stops when dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    gate: Arc<Gate>,
}

impl Proxy {
    pub fn to(target: SocketAddr) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let gate = Arc::new(Gate { state: Mutex::new((Mode::Open, Vec::new())), changed: Condvar::new() });
        let accepting = gate.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if accepting.state.lock().unwrap_or_else(PoisonError::into_inner).0 == Mode::Gone {
                    return;
                }
                let gate = accepting.clone();
                thread::spawn(move || lead(&gate, stream, target));
            }
        });
        Proxy { addr, gate }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn set(&self, mode: Mode) {
        let mut state = self.gate.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = mode;
        if matches!(mode, Mode::Broken | Mode::Gone) {
            for stream in state.1.drain(..) {
                // It may have ended by itself.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        self.gate.changed.notify_all();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Mode::Gone);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.addr);
    }
}

fn lead(gate: &Arc<Gate>, from: TcpStream, target: SocketAddr) {
    if !gate.hold(&from) || !gate.pass() {
        return end(&from);
    }
    let Ok(to) = TcpStream::connect(target) else { return end(&from) };
    // Small messages matter more here than full packets.
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let (Ok(back_from), Ok(back_to)) = (to.try_clone(), from.try_clone()) else { return end(&from) };
    if !gate.hold(&to) {
        return end(&from);
    }
    let answers = gate.clone();
    thread::spawn(move || pump(&answers, back_from, back_to));
    pump(gate, from, to);
}

fn end(stream: &TcpStream) {
    // It may have ended by itself.
    let _ = stream.shutdown(Shutdown::Both);
}

/// One direction of one connection.
fn pump(gate: &Gate, mut from: TcpStream, mut to: TcpStream) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(byte_count) = from.read(&mut chunk)
        && byte_count > 0
        && gate.pass()
        && to.write_all(&chunk[..byte_count]).is_ok()
    {}
    end(&from);
    end(&to);
}
