//! The agent as a whole: what outlives connections, and the loop that accepts them.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::connection;
use crate::interior::Interior;
use crate::lock::lock;
use crate::processes::Processes;
use crate::walks::Walks;
use crate::workers::STACK_BYTES;

/// Connections at once. A host has one; a restarted host's old one ends soon.
const CONNECTIONS_MAX: usize = 64;

/// Stack of a connection's reading thread: decoding may recurse over fields that we do not know.
/// Only what is touched is ever backed by memory.
const READER_STACK_BYTES: usize = 2 << 20;

/// Pause after an accept that failed for want of memory or descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Permission bits that new files do not get, until somebody changes it.
const UMASK: u32 = 0o022;

/// What belongs to no connection.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Every process that was spawned.
    pub(crate) processes: Processes,
    /// User, working directory and environment.
    pub(crate) interior: Mutex<Interior>,
    /// Most open files of a process that is spawned: the limit that the agent itself was started
    /// with.
    pub(crate) open_files: Option<u64>,
    /// `/dev/null`, as it was before anyone could replace it.
    pub(crate) null: OwnedFd,
    umask: Mutex<u32>,
    /// Walks under way.
    pub(crate) walks: Walks,
    connections: AtomicUsize,
}

impl Agent {
    /// The umask of files that the agent makes, and the one that it has from now on if given.
    /// Processes have one of their own.
    pub(crate) fn umask(&self, mask: Option<u32>) -> u32 {
        // Kept here, because the system's can only be read by setting it.
        let mut umask = lock(&self.umask);
        let before = *umask;
        if let Some(mask) = mask {
            *umask = mask & 0o777;
            rustix::process::umask(Mode::from_raw_mode(*umask));
        }
        before
    }
}

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// `/dev/null` is missing.
    #[error("open /dev/null")]
    Null(#[source] io::Error),
    /// The reaper could not be started.
    #[error("start the reaper thread")]
    Reaper(#[source] io::Error),
    /// The listener accepts no more.
    #[error("accept a connection")]
    Accept(#[source] io::Error),
}

/// Serves connections on `listener` until it breaks. Writes one byte to `ready` before the first
/// accept and closes it. Reaps all children of the calling process, so that must be its only job.
///
/// # Errors
/// [`RunError`].
pub fn run(listener: OwnedFd, ready: Option<OwnedFd>) -> Result<Infallible, RunError> {
    crate::sys::keep_exit_statuses();
    let open_files = take_all_descriptors();
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| RunError::Null(errno.into()))?;
    let agent = Arc::new(Agent {
        processes: Processes::default(),
        interior: Mutex::default(),
        open_files,
        null,
        umask: Mutex::new(UMASK),
        walks: Walks::default(),
        connections: AtomicUsize::new(0),
    });

    let reaper = Arc::clone(&agent);
    thread::Builder::new()
        .name("reaper".into())
        .stack_size(STACK_BYTES)
        .spawn(move || reaper.processes.reap())
        .map_err(RunError::Reaper)?;

    if let Some(ready) = ready {
        // A runtime that does not listen finds out by connecting.
        let _ = rustix::io::write(&ready, &[1]);
    }

    let listener = UnixListener::from(listener);
    loop {
        match listener.accept() {
            Ok((socket, _)) => admit(&agent, socket),
            Err(error) => match Errno::from_io_error(&error) {
                // The host may have made the listener non-blocking.
                Some(Errno::AGAIN) => {
                    let mut listener = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
                    let _ = poll(&mut listener, None);
                }
                Some(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    thread::sleep(ACCEPT_PAUSE);
                }
                _ => return Err(RunError::Accept(error)),
            },
        }
    }
}

/// Raises the agent's own limit of open files as far as it goes: it holds those of all clients.
/// Returns what the limit was.
fn take_all_descriptors() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    before
}

/// Serves one connection on its own thread. One that cannot be served is closed.
fn admit(agent: &Arc<Agent>, socket: UnixStream) {
    if agent.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        agent.connections.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let served = Arc::clone(agent);
    let thread = thread::Builder::new()
        .name("connection".into())
        .stack_size(READER_STACK_BYTES)
        .spawn(move || {
            // There is nobody to tell but the host, and it sees the connection close.
            let _ = connection::serve(&served, socket);
            served.connections.fetch_sub(1, Ordering::Relaxed);
        });
    if thread.is_err() {
        agent.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
