//! The shim: a process of one thread that makes one sandbox and exits.
//!
//! It runs as host root, in its own mount name space without any host mount, so that a parked
//! shim keeps no file system busy. It never outlives its server while parked, and its child never
//! outlives it before the agent runs: each ends when its connection closes.

mod child;
mod isolate;
mod mounts;

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::fs::Mode;

use crate::control::{Channel, Order, Prepare, Progress, Root, Start, wait_readable};
use crate::sys::exec::close_between;
use isolate::Sandbox;

/// Bound on each wait of shim and child for each other. The server's own bound is the same.
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// What failed, for the server.
#[derive(Debug)]
struct SetupError {
    step: String,
    source: io::Error,
}

impl SetupError {
    fn new(step: impl Display, source: impl Into<io::Error>) -> Self {
        Self {
            step: step.to_string(),
            source: source.into(),
        }
    }

    fn report(&self) -> Progress {
        let errno = self.source.raw_os_error();
        let step = match errno {
            Some(_) => self.step.clone(),
            // The text of an error that is not the system's would be lost.
            None => format!("{}: {}", self.step, self.source),
        };
        Progress::Failed { step, errno }
    }

    /// An error that the other side reported, or its silent end.
    fn from_peer(message: Option<Progress>) -> Self {
        match message {
            Some(Progress::Failed { step, errno }) => Self {
                step,
                source: failure_source(errno),
            },
            Some(_) => Self::new("set up", io::Error::other("unexpected message")),
            None => Self::new("set up", io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }
}

/// The error that a [`Progress::Failed`] stands for.
pub(crate) fn failure_source(errno: Option<i32>) -> io::Error {
    match errno {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other("not an error of the system"),
    }
}

/// Names the step that failed.
trait At<T> {
    fn at(self, step: impl Display) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: impl Display) -> Result<T, SetupError> {
        self.map_err(|source| SetupError::new(step, source))
    }
}

/// Serves one sandbox. The whole program, when [`RuntimeConfig::shim`](crate::RuntimeConfig) is
/// executed: must be called before the process has a second thread. The connection to the server
/// is standard input.
pub fn shim_main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn run() -> Result<(), SetupError> {
    // Whatever the server's parent left open.
    close_between(3, u32::MAX).at("close inherited descriptors")?;
    let control = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)
        .map(Channel::from_fd)
        .at("take the control socket")?;
    // Signals of the server's terminal are not for the shim.
    rustix::process::setsid().at("start a session")?;
    // Modes are given in full.
    rustix::process::umask(Mode::empty());
    let result = serve(&control);
    if let Err(error) = &result {
        // The server may be gone: then nobody needs to know.
        let _ = control.send(&error.report(), &[]);
    }
    result
}

fn serve(control: &Channel) -> Result<(), SetupError> {
    let deadline = Some(Instant::now() + STEP_LIMIT);
    let Some((prepare, cgroups)) = control
        .receive::<Prepare>(deadline)
        .at("receive the settings")?
    else {
        return Ok(());
    };
    let sandbox = isolate::isolate(&prepare, cgroups)?;
    let parked = Progress::Parked {
        pid: sandbox.pid.as_raw_nonzero().get(),
    };
    control
        .send(&parked, &[sandbox.pidfd.as_fd()])
        .at("report")?;

    let ready = wait_readable(&[control.as_fd(), sandbox.pidfd.as_fd()], None).at("wait")?;
    if ready[1] {
        return Err(SetupError::new(
            "wait for work",
            io::Error::other("the parked process has ended"),
        ));
    }
    let Some((start, fds)) = control.receive::<Start>(None).at("receive the sandbox")? else {
        return Ok(());
    };
    launch(&sandbox, start, fds)?;
    control.send(&Progress::Started, &[]).at("report")
}

/// Makes the root file system and lets the child go.
fn launch(sandbox: &Sandbox, start: Start, fds: Vec<OwnedFd>) -> Result<(), SetupError> {
    // Socket, ready pipe and agent are beside them.
    let expected = start.root.descriptors() + 3 + start.mounts.len();
    if fds.len() != expected {
        return Err(SetupError::new(
            "receive the sandbox",
            io::Error::other(format!("{} descriptors, not {expected}", fds.len())),
        ));
    }
    let (layers, rest) = fds.split_at(start.root.descriptors());
    let (files, trees) = rest.split_at(3);
    let idmap = sandbox.idmap.as_fd();
    let overlay = match start.root {
        Root::Layers => Some(mounts::overlay(&layers[0], &layers[1], idmap)?),
        Root::Whole => {
            mounts::idmap(&layers[0], idmap, 0).at("map the owners of the root")?;
            None
        }
    };
    let root = overlay.as_ref().unwrap_or(&layers[0]);
    for (tree, place) in trees.iter().zip(&start.mounts) {
        let set = match place.read_only {
            true => libc::MOUNT_ATTR_RDONLY,
            false => 0,
        };
        mounts::idmap(tree, idmap, set).at(format!("map the owners of {}", place.path))?;
    }
    let passed: Vec<_> = std::iter::once(root)
        .chain(files)
        .chain(trees)
        .map(AsFd::as_fd)
        .collect();
    sandbox
        .channel
        .send(&Order::Start(start), &passed)
        .at("hand over the sandbox")?;
    // The child's end closes when the agent is executed.
    let deadline = Some(Instant::now() + STEP_LIMIT);
    match sandbox.channel.receive(deadline).at("wait for the agent")? {
        None => Ok(()),
        Some((failure, _)) => Err(SetupError::from_peer(Some(failure))),
    }
}
