//! Starting a program. The standard library's `Command` reaps a child whose exec failed, which
//! would race the reaper, and cannot tell a missing directory from a missing program.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Resource, Rlimit};

use super::identity::Identity;

/// Exit code of a child that could not become its program; nobody sees it.
const EXIT_NOT_STARTED: i32 = 127;

/// Preferred victim when memory runs out: processes, not the agent.
const OOM_SCORE: &[u8] = b"500";

/// Everything a child needs, prepared before the fork because nothing may be allocated after it.
#[derive(Debug)]
pub(crate) struct Program {
    /// Files to try, in order, as `execvp(3)` does.
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    identity: Identity,
    /// Most open files, soft and hard.
    open_files: Option<u64>,
}

/// What a child's descriptors become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams<'fd> {
    /// Descriptors 0, 1 and 2.
    pub(crate) standard: [BorrowedFd<'fd>; 3],
    /// They are a terminal, which becomes the controlling one of a session of its own.
    pub(crate) is_terminal: bool,
    /// Descriptor 3.
    pub(crate) socket: Option<BorrowedFd<'fd>>,
}

/// What a child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Step {
    /// Connecting its standard streams.
    Streams = 1,
    /// Becoming the sandbox's user.
    Identity = 2,
    /// Entering its working directory.
    Directory = 3,
    /// Executing the program.
    Execute = 4,
}

/// Why a program did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StartFailure {
    /// What the child was doing.
    pub(crate) step: Step,
    /// The error.
    pub(crate) errno: Errno,
}

/// The parent's end of the pipe on which a child says why it failed. It closes at a successful
/// exec.
#[derive(Debug)]
pub(crate) struct StartReport(OwnedFd);

impl Program {
    /// A program to be started with these standard streams.
    pub(crate) fn new(
        candidates: Vec<CString>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
        directory: CString,
        identity: Identity,
    ) -> Self {
        Self {
            candidates,
            arguments,
            environment,
            directory,
            identity,
            open_files: None,
        }
    }

    /// The same with a limit of its open files, which it cannot raise.
    pub(crate) fn with_open_files(mut self, limit: Option<u64>) -> Self {
        self.open_files = limit;
        self
    }

    /// Forks, calling `register` so that the child's id is known before anyone can reap it:
    /// `register` is given a function that forks, and calls it once with its table locked. The
    /// child leads a process group of its own, or a session if it has a terminal, with default signals, umask 022 and no other
    /// descriptor than `streams`. `fork(2)`, `execve(2)`
    ///
    /// # Errors
    /// The report pipe's or the fork's.
    pub(crate) fn start<T>(
        &self,
        streams: &Streams<'_>,
        register: impl FnOnce(&dyn Fn() -> Result<Pid, Errno>) -> Result<T, Errno>,
    ) -> Result<(T, StartReport), Errno> {
        let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)?;
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let registered = register(&|| {
            // SAFETY: the child calls only `in_child`, which allocates nothing, takes no lock and
            // never returns, so locks that other threads held at the fork do not matter.
            match unsafe { libc::fork() } {
                -1 => Err(last_errno()),
                0 => self.in_child(&arguments, &environment, streams, child_report.as_fd()),
                pid => Pid::from_raw(pid).ok_or(Errno::SRCH),
            }
        })?;
        Ok((registered, StartReport(report)))
    }

    /// Becomes the program, or reports why not and exits. Async-signal-safe.
    fn in_child(
        &self,
        arguments: &[*const c_char],
        environment: &[*const c_char],
        streams: &Streams<'_>,
        report: BorrowedFd<'_>,
    ) -> ! {
        let Err(failure) = self.become_program(arguments, environment, streams);
        let [e0, e1, e2, e3] = failure.errno.raw_os_error().to_le_bytes();
        // Five bytes are written to a pipe at once or not at all.
        let _ = rustix::io::write(report, &[failure.step as u8, e0, e1, e2, e3]);
        // SAFETY: _exit(2) runs no handlers, which belong to the parent.
        unsafe { libc::_exit(EXIT_NOT_STARTED) }
    }

    fn become_program(
        &self,
        arguments: &[*const c_char],
        environment: &[*const c_char],
        streams: &Streams<'_>,
    ) -> Result<std::convert::Infallible, StartFailure> {
        let at = |step| move |errno| StartFailure { step, errno };
        let led = if streams.is_terminal {
            rustix::process::setsid().map(drop)
        } else {
            rustix::process::setpgid(None, None)
        };
        led.map_err(at(Step::Streams))?;
        default_signals();
        prefer_as_victim();
        rustix::process::umask(Mode::from_raw_mode(0o022));

        let targets = streams.standard.into_iter().chain(streams.socket);
        for (number, stream) in (0..).zip(targets) {
            // SAFETY: plain integers. The sources are above 3 (0 to 2 and the listener are open in
            // the agent from its start), so no target overwrites a later source.
            if unsafe { libc::dup2(stream.as_raw_fd(), number) } < 0 {
                return Err(at(Step::Streams)(last_errno()));
            }
        }
        if streams.is_terminal {
            rustix::process::ioctl_tiocsctty(streams.standard[0]).map_err(at(Step::Streams))?;
        }
        let first_private: u32 = if streams.socket.is_some() { 4 } else { 3 };
        // Everything is opened close-on-exec; this is the second lock on the door.
        // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC changes flags in this process only.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                first_private,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };

        if self.open_files.is_some() {
            let limit = Rlimit {
                current: self.open_files,
                maximum: self.open_files,
            };
            // Lowering is always allowed.
            let _ = rustix::process::setrlimit(Resource::Nofile, limit);
        }

        let Identity { uid, gid, groups } = &self.identity;
        // Raw calls: the C library's would signal threads that do not exist in this process.
        rustix::thread::set_thread_groups(groups).map_err(at(Step::Identity))?;
        rustix::thread::set_thread_res_gid(*gid, *gid, *gid).map_err(at(Step::Identity))?;
        rustix::thread::set_thread_res_uid(*uid, *uid, *uid).map_err(at(Step::Identity))?;

        rustix::process::chdir(self.directory.as_c_str()).map_err(at(Step::Directory))?;

        // As execvp(3): a candidate that may not be executed is remembered, and the search goes on.
        let mut verdict = Errno::NOENT;
        for candidate in &self.candidates {
            // SAFETY: all strings end in NUL, both arrays end in a null pointer, and all outlive
            // the call.
            unsafe { libc::execve(candidate.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            match last_errno() {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCESS => verdict = Errno::ACCESS,
                errno => return Err(at(Step::Execute)(errno)),
            }
        }
        Err(at(Step::Execute)(verdict))
    }
}

impl StartReport {
    /// Blocks until the program runs or has failed to.
    ///
    /// # Errors
    /// [`StartFailure`] of the child.
    pub(crate) fn read(self) -> Result<(), StartFailure> {
        let mut bytes = [0; 5];
        let length = loop {
            match rustix::io::read(&self.0, &mut bytes) {
                Err(Errno::INTR) => {}
                other => break other.unwrap_or(0),
            }
        };
        let [step, errno @ ..] = bytes;
        let step = match step {
            // A child that a signal ended before its exec says nothing; its status will.
            _ if length < bytes.len() => return Ok(()),
            1 => Step::Streams,
            2 => Step::Identity,
            3 => Step::Directory,
            _ => Step::Execute,
        };
        Err(StartFailure {
            step,
            errno: Errno::from_raw_os_error(i32::from_le_bytes(errno)),
        })
    }
}

/// The calling thread's `errno`.
pub(super) fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Null-terminated array for `execve(2)`; valid as long as `strings`.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings
        .iter()
        .map(|string| string.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Ignored signals and the signal mask survive exec, so both are reset. `rt_sigaction(2)` without
/// the C library, which hides two signals; `sigprocmask(2)`
fn default_signals() {
    // The kernel's structure, handler first; all zeroes is the default action.
    let default = [0_u64; 4];
    let previous = ptr::null_mut::<u64>();
    let mask_bytes = size_of::<u64>();
    for signal in 1..=64 {
        // SAFETY: `default` is as large as the kernel's structure and installs no code; numbers
        // that cannot be set are refused with an error.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                previous,
                mask_bytes,
            )
        };
    }
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `none` is writable, and initialised before it is read.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

/// Best effort: without `/proc` the default applies.
fn prefer_as_victim() {
    if let Ok(file) = rustix::fs::open(
        c"/proc/self/oom_score_adj",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        let _ = rustix::io::write(&file, OOM_SCORE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_back() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&write, &[3, 2, 0, 0, 0]).unwrap();
        assert_eq!(
            StartReport(read).read(),
            Err(StartFailure {
                step: Step::Directory,
                errno: Errno::NOENT
            })
        );
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(write);
        assert_eq!(StartReport(read).read(), Ok(()));
    }
}
