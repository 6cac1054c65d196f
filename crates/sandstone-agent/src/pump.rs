//! Moves the bytes of one process's standard streams, on one thread.
//!
//! Output is read only while the host takes it: one buffer per stream is read ahead, then the pipe
//! fills and the process waits. Output that nobody wants any more is read and dropped, so that the
//! process goes on. Input that the process does not read waits in the stream's window.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use sandstone_protocol::frame::DATA_MAX_BYTES;

use crate::connection::Connection;
use crate::stream::{Front, Inlet, Outlet, Waker};

/// The streams of one process.
#[derive(Debug)]
pub(crate) struct Pump {
    connection: Arc<Connection>,
    waker: Option<Arc<Waker>>,
    input: Option<Input>,
    outputs: Vec<Output>,
}

#[derive(Debug)]
struct Input {
    pipe: OwnedFd,
    inlet: Arc<Inlet>,
    /// Bytes wait for room in the pipe.
    blocked: bool,
}

#[derive(Debug)]
struct Output {
    pipe: OwnedFd,
    outlet: Arc<Outlet>,
    /// Read from the pipe and not covered by credit.
    pending: Vec<u8>,
}

impl Pump {
    /// Without streams yet.
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            waker: None,
            input: None,
            outputs: Vec::new(),
        }
    }

    /// Feeds `pipe` from `inlet`.
    ///
    /// # Errors
    /// When the pipe cannot be made non-blocking.
    pub(crate) fn add_input(&mut self, pipe: OwnedFd, inlet: Arc<Inlet>) -> Result<(), Errno> {
        // Our end only: the process's end of a pipe has flags of its own.
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        self.waker = Some(Arc::clone(inlet.waker()));
        self.input = Some(Input {
            pipe,
            inlet,
            blocked: false,
        });
        Ok(())
    }

    /// Sends what comes out of `pipe` to `outlet`.
    pub(crate) fn add_output(&mut self, pipe: OwnedFd, outlet: Arc<Outlet>) {
        self.waker = Some(Arc::clone(outlet.waker()));
        self.outputs.push(Output {
            pipe,
            outlet,
            pending: Vec::new(),
        });
    }

    /// Moves bytes until every stream has ended. Blocks as long as that takes.
    pub(crate) fn run(mut self) {
        let Some(waker) = self.waker.take() else {
            return; // No streams.
        };
        let mut buffer = vec![0; DATA_MAX_BYTES];
        loop {
            waker.clear();
            self.input = self
                .input
                .take()
                .and_then(|input| input.feed(&self.connection, &mut buffer));
            for output in &mut self.outputs {
                output.flush(&self.connection);
            }
            if self.input.is_none() && self.outputs.is_empty() {
                return;
            }
            self.sleep(&waker, &mut buffer);
        }
    }

    /// Waits for something to do, and takes what outputs have.
    fn sleep(&mut self, waker: &Waker, buffer: &mut [u8]) {
        let mut fds = vec![PollFd::new(waker, PollFlags::IN)];
        let reading: Vec<bool> = self.outputs.iter().map(Output::is_hungry).collect();
        for (output, _) in self.outputs.iter().zip(&reading).filter(|(_, r)| **r) {
            fds.push(PollFd::new(&output.pipe, PollFlags::IN));
        }
        if let Some(input) = &self.input {
            // Without events, only the closing of the other end is reported.
            let events = if input.blocked {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(&input.pipe, events));
        }
        let polled = poll(&mut fds, None);
        let mut ready = fds[1..].iter().map(|fd| !fd.revents().is_empty());
        let ready: Vec<bool> = reading
            .iter()
            .map(|reading| *reading && ready.next().unwrap_or(false))
            .collect();
        let input_ready = self.input.is_some() && fds.last().is_some_and(hung_up);
        drop(fds);
        if polled.is_err() {
            return; // Interrupted: look again.
        }

        if input_ready && let Some(input) = self.input.take() {
            // Nobody reads any more, and nobody can begin to.
            let grant = input.inlet.discard();
            let _ = self.connection.grant(&input.inlet, grant);
        }
        let mut ready = ready.into_iter();
        self.outputs.retain_mut(|output| {
            !ready.next().unwrap_or(false) || output.read(&self.connection, buffer)
        });
    }
}

fn hung_up(fd: &PollFd<'_>) -> bool {
    fd.revents().intersects(PollFlags::ERR | PollFlags::NVAL)
}

impl Input {
    /// Writes what is there, as far as the pipe takes it. Nothing is left of an input that is over.
    fn feed(mut self, connection: &Connection, buffer: &mut [u8]) -> Option<Self> {
        self.blocked = false;
        let length = match self.inlet.front(buffer) {
            Front::Bytes(length) => length,
            Front::Empty => return Some(self),
            Front::Ended | Front::Reset => return None,
        };
        let grant = match rustix::io::write(&self.pipe, &buffer[..length]) {
            Ok(written) => self.inlet.consume(written),
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                // The process has closed its input. Its host may go on writing without harm.
                let grant = self.inlet.discard();
                let _ = connection.grant(&self.inlet, grant);
                return None;
            }
        };
        // Of a connection that is gone, the streams are reset.
        let _ = connection.grant(&self.inlet, grant);
        self.blocked = true;
        Some(self)
    }
}

impl Output {
    /// Whether the pipe should be read: nothing waits for credit.
    fn is_hungry(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends pending bytes as far as credit goes.
    fn flush(&mut self, connection: &Connection) {
        let pending = std::mem::take(&mut self.pending);
        let rest = self.send(connection, &pending);
        if rest > 0 {
            self.pending = pending[pending.len() - rest..].to_vec();
        }
    }

    /// Reads once. False at the end of the stream.
    fn read(&mut self, connection: &Connection, buffer: &mut [u8]) -> bool {
        match rustix::io::read(&self.pipe, &mut *buffer) {
            Ok(0) => {
                let _ = connection.end(&self.outlet);
                false
            }
            Ok(length) => {
                let rest = self.send(connection, &buffer[..length]);
                self.pending = buffer[length - rest..length].to_vec();
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => {
                let _ = connection.end(&self.outlet);
                false
            }
        }
    }

    /// Sends as much of `bytes` as there is credit for, or drops them when nobody wants them.
    /// Returns how many are left.
    fn send(&self, connection: &Connection, bytes: &[u8]) -> usize {
        match self.outlet.spend(bytes.len()) {
            None => 0,
            Some(0) => bytes.len(),
            Some(length) => {
                if connection.data(&self.outlet, &bytes[..length]).is_err() {
                    self.outlet.give_up();
                    return 0;
                }
                bytes.len() - length
            }
        }
    }
}
