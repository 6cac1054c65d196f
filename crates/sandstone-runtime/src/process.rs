//! Processes, told apart from later ones with the same number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use crate::control::wait_readable;

/// How long a killed process may take to end. It can be waiting for a disk.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// Waiting needs next to no stack.
const REAPER_STACK_BYTES: usize = 128 << 10;

/// A process of this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Number in the server's pid name space.
    pub(crate) pid: i32,
    /// Clock ticks between boot and its start.
    pub(crate) started: u64,
}

impl ProcessId {
    /// The process that has this number now.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
        // The second field is the program's name in parentheses, which may contain anything.
        let started = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(19))
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other("unreadable process status"))?;
        Ok(Self {
            pid: pid.as_raw_nonzero().get(),
            started,
        })
    }

    /// A pidfd of it; `None` when it is gone.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Checked after opening: the number cannot change hands any more.
        match Self::of(pid) {
            Ok(now) if now == self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// Kills a process, whether or not it still lives.
pub(crate) fn send_kill(pidfd: impl AsFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Waits until a process has ended, and reaps it if it is our child. Sandboxes are when the
/// server is a subreaper or PID 1.
pub(crate) fn wait_gone(pidfd: impl AsFd, deadline: Instant) -> io::Result<()> {
    if !wait_readable(&[pidfd.as_fd()], Some(deadline))?[0] {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match rustix::process::waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(_) | Err(rustix::io::Errno::CHILD) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A child process that does not outlive its owner.
#[derive(Debug)]
pub(crate) struct Helper(Option<Child>);

impl Helper {
    pub(crate) fn new(child: Child) -> Self {
        Self(Some(child))
    }

    /// Lets it end by itself, and reaps it, while the caller goes on. What has not ended by
    /// `deadline` is killed.
    pub(crate) fn finish_in_background(&mut self, deadline: Instant) -> io::Result<()> {
        let helper = Self(self.0.take());
        thread::Builder::new()
            .name("shim-reaper".to_owned())
            .stack_size(REAPER_STACK_BYTES)
            .spawn(move || {
                if let Some(child) = &helper.0
                    && let Err(error) = wait_child(child, deadline)
                {
                    tracing::warn!(pid = child.id(), %error, "a shim does not end by itself");
                }
                // Kills it if it lives, and reaps it in any case.
                drop(helper);
            })?;
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else {
            return;
        };
        let _ = child.kill();
        match wait_child(&child, Instant::now() + DEATH_LIMIT).and_then(|()| child.wait()) {
            Ok(_) => {}
            Err(error) => tracing::warn!(pid = child.id(), %error, "killed process does not end"),
        }
    }
}

fn wait_child(child: &Child, deadline: Instant) -> io::Result<()> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("child has no process id"))?;
    // The child is not reaped yet, so the number is still its own.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    if wait_readable(&[pidfd.as_fd()], Some(deadline))?[0] {
        return Ok(());
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Runs a program with `input`, which must fit into a pipe (64 KiB).
pub(crate) fn run(command: &mut Command, input: &[u8], limit: Duration) -> io::Result<Output> {
    let deadline = Instant::now() + limit;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let written = match child.stdin.take() {
        Some(mut stdin) => io::Write::write_all(&mut stdin, input),
        None => Ok(()),
    };
    if let Err(error) = wait_child(&child, deadline) {
        drop(Helper::new(child));
        return Err(error);
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        written?;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised() {
        let me = ProcessId::of(rustix::process::getpid()).unwrap();
        assert!(me.open().unwrap().is_some());
        let other = ProcessId {
            started: me.started + 1,
            ..me
        };
        assert!(other.open().unwrap().is_none());
        let none = ProcessId {
            pid: i32::MAX,
            started: 1,
        };
        assert!(none.open().unwrap().is_none());
    }

    #[test]
    fn helpers_end_with_their_owner() {
        let child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        drop(Helper::new(child));
        assert!(ProcessId::of(pid).is_err());
    }

    #[test]
    fn programs_that_hang_are_killed() {
        let error = run(
            Command::new("sleep").arg("100"),
            b"",
            Duration::from_millis(50),
        )
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
