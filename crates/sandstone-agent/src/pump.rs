//! Moves the bytes between streams and the descriptors of one process or connection, on one thread.
//!
//! Output is read only while the host takes it: one buffer per stream is read ahead, then the pipe
//! fills and the process waits. Output of a pipe that nobody wants any more is read and dropped, so
//! that the process goes on; a socket or terminal is closed then. Input that is not read waits in
//! the stream's window.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::Shutdown;
use sandstone_protocol::frame::DATA_MAX_BYTES;

use crate::connection::Connection;
use crate::stream::{Front, Inlet, Outlet, Waker};

/// What moves the bytes of one process or connection.
#[derive(Debug)]
pub(crate) struct Pump {
    connection: Arc<Connection>,
    waker: Option<Arc<Waker>>,
    inputs: Vec<Input>,
    outputs: Vec<Output>,
}

/// A descriptor's nature, which decides what the end of a direction does to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One direction: its end closes it.
    Pipe,
    /// Both directions, which end on their own; giving one up ends both.
    Socket,
    /// The master of a terminal. The end of input leaves it open, as `sshd(8)` does; giving up its
    /// output hangs it up.
    Terminal,
}

#[derive(Debug)]
struct Input {
    fd: Arc<OwnedFd>,
    kind: Kind,
    inlet: Arc<Inlet>,
    /// Bytes wait for room in the pipe.
    blocked: bool,
}

#[derive(Debug)]
struct Output {
    fd: Arc<OwnedFd>,
    kind: Kind,
    outlet: Arc<Outlet>,
    /// Read from the pipe and not covered by credit.
    pending: Vec<u8>,
}

/// What became of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It goes on.
    Open,
    /// It is over; the other direction does not care.
    Over,
    /// It was given up, and takes the descriptor along.
    GivenUp,
}

impl Pump {
    /// Without streams yet.
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self {
            connection,
            waker: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// Feeds `fd` from `inlet`.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub(crate) fn add_input(
        &mut self,
        fd: Arc<OwnedFd>,
        kind: Kind,
        inlet: Arc<Inlet>,
    ) -> Result<(), Errno> {
        // Our end only: the process's end of a pipe or socket has flags of its own.
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        self.waker = Some(Arc::clone(inlet.waker()));
        self.inputs.push(Input {
            fd,
            kind,
            inlet,
            blocked: false,
        });
        Ok(())
    }

    /// Sends what comes out of `fd` to `outlet`.
    pub(crate) fn add_output(&mut self, fd: Arc<OwnedFd>, kind: Kind, outlet: Arc<Outlet>) {
        self.waker = Some(Arc::clone(outlet.waker()));
        self.outputs.push(Output {
            fd,
            kind,
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
            self.advance(&mut buffer);
            if self.inputs.is_empty() && self.outputs.is_empty() {
                return;
            }
            self.sleep(&waker, &mut buffer);
        }
    }

    /// Moves what can move without waiting.
    fn advance(&mut self, buffer: &mut [u8]) {
        let connection = &self.connection;
        let mut given_up = Vec::new();
        self.inputs.retain_mut(|input| {
            let fate = input.feed(connection, buffer);
            if fate == Fate::GivenUp {
                given_up.push(Arc::clone(&input.fd));
            }
            fate == Fate::Open
        });
        self.outputs.retain_mut(|output| {
            let fate = output.flush(connection);
            if fate == Fate::GivenUp {
                given_up.push(Arc::clone(&output.fd));
            }
            fate == Fate::Open
        });
        for fd in given_up {
            self.tear_down(&fd);
        }
    }

    /// Gives up what is left of a descriptor's directions.
    fn tear_down(&mut self, fd: &Arc<OwnedFd>) {
        let connection = &self.connection;
        self.inputs.retain(|input| {
            let other = !Arc::ptr_eq(&input.fd, fd);
            if !other {
                let _ = connection.reset(input.inlet.id, Errno::CONNABORTED);
            }
            other
        });
        self.outputs.retain(|output| {
            let other = !Arc::ptr_eq(&output.fd, fd);
            if !other {
                let _ = connection.reset(output.outlet.id, Errno::CONNABORTED);
            }
            other
        });
    }

    /// Waits for something to do, and takes what outputs have.
    fn sleep(&mut self, waker: &Waker, buffer: &mut [u8]) {
        let mut fds = vec![PollFd::new(waker, PollFlags::IN)];
        let reading: Vec<bool> = self.outputs.iter().map(Output::is_hungry).collect();
        for (output, _) in self.outputs.iter().zip(&reading).filter(|(_, r)| **r) {
            fds.push(PollFd::new(&output.fd, PollFlags::IN));
        }
        let first_input = fds.len();
        for input in &self.inputs {
            // Without events, only the closing of the other end is reported.
            let events = if input.blocked {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            fds.push(PollFd::new(&input.fd, events));
        }
        let polled = poll(&mut fds, None);
        let mut ready = fds[1..first_input]
            .iter()
            .map(|fd| !fd.revents().is_empty());
        let ready: Vec<bool> = reading
            .iter()
            .map(|reading| *reading && ready.next().unwrap_or(false))
            .collect();
        let input_events: Vec<PollFlags> = fds[first_input..].iter().map(PollFd::revents).collect();
        drop(fds);
        if polled.is_err() {
            return; // Interrupted: look again.
        }

        let connection = &self.connection;
        let mut events = input_events.into_iter();
        self.inputs.retain(|input| {
            let over = input.is_hung_up(events.next().unwrap_or(PollFlags::empty()));
            if over {
                input.abandon(connection);
            }
            !over
        });
        let mut ready = ready.into_iter();
        self.outputs
            .retain_mut(|output| !ready.next().unwrap_or(false) || output.read(connection, buffer));
    }
}

impl Input {
    /// Whether nobody reads any more, and nobody can begin to.
    fn is_hung_up(&self, events: PollFlags) -> bool {
        let fatal = match self.kind {
            Kind::Pipe => PollFlags::ERR | PollFlags::NVAL,
            // Both directions are closed, or every slave is.
            Kind::Socket | Kind::Terminal => PollFlags::ERR | PollFlags::NVAL | PollFlags::HUP,
        };
        events.intersects(fatal)
    }

    /// Takes no more from the host. A process may close its input, and its host may go on writing
    /// without harm; who writes to a connection wants to know that it is gone.
    fn abandon(&self, connection: &Connection) {
        let _ = match self.kind {
            Kind::Pipe | Kind::Terminal => connection.grant(&self.inlet, self.inlet.discard()),
            Kind::Socket => connection.reset(self.inlet.id, Errno::PIPE),
        };
    }

    /// Writes what is there, as far as the descriptor takes it.
    fn feed(&mut self, connection: &Connection, buffer: &mut [u8]) -> Fate {
        self.blocked = false;
        let length = match self.inlet.front(buffer) {
            Front::Bytes(length) => length,
            Front::Empty => return Fate::Open,
            Front::Ended if self.kind == Kind::Socket => {
                // A peer that is gone needs no end.
                let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
                return Fate::Over;
            }
            Front::Reset if self.kind == Kind::Socket => return Fate::GivenUp,
            Front::Ended | Front::Reset => return Fate::Over,
        };
        let grant = match self.write(&buffer[..length]) {
            Ok(written) => self.inlet.consume(written),
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.abandon(connection);
                return Fate::Over;
            }
        };
        // Of a connection that is gone, the streams are reset.
        let _ = connection.grant(&self.inlet, grant);
        self.blocked = true;
        Fate::Open
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self.kind {
            // No signal, whatever the agent's disposition is.
            Kind::Socket => rustix::net::send(&self.fd, bytes, rustix::net::SendFlags::NOSIGNAL),
            Kind::Pipe | Kind::Terminal => rustix::io::write(&self.fd, bytes),
        }
    }
}

impl Output {
    /// Whether the pipe should be read: nothing waits for credit.
    fn is_hungry(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends pending bytes as far as credit goes.
    fn flush(&mut self, connection: &Connection) -> Fate {
        if self.kind != Kind::Pipe && self.outlet.credit().is_none() {
            return Fate::GivenUp;
        }
        let pending = std::mem::take(&mut self.pending);
        let rest = self.send(connection, &pending);
        if rest > 0 {
            self.pending = pending[pending.len() - rest..].to_vec();
        }
        Fate::Open
    }

    /// Reads once. False at the end of the stream.
    fn read(&mut self, connection: &Connection, buffer: &mut [u8]) -> bool {
        match rustix::io::read(&self.fd, &mut *buffer) {
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
            Err(errno) if self.kind == Kind::Socket => {
                // A connection that broke has not said everything.
                let _ = connection.reset(self.outlet.id, errno);
                false
            }
            // A terminal whose last slave was closed reports EIO: that is its end.
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
