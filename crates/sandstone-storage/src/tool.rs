//! The programs that make file systems.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Result, StorageError};

/// They work on local files only and take milliseconds; the disk may be busy.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// How much of the program's words an error repeats.
const OUTPUT_MAX_CHARS: usize = 500;

/// What the programs print when the file system of their image is full.
const FULL: &str = "No space left on device";

/// Runs a program that has to succeed to its end.
pub(crate) fn run<I, S>(program: &str, arguments: I) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    run_within(program, arguments, 0, TIME_LIMIT)
}

/// Runs a program to its end. It succeeds with exit codes up to `code_max`.
pub(crate) fn run_accepting<I, S>(program: &str, arguments: I, code_max: i32) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    run_within(program, arguments, code_max, TIME_LIMIT)
}

fn run_within<I, S>(program: &str, arguments: I, code_max: i32, limit: Duration) -> Result<()>
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let failed = |status: String, output: String| StorageError::Tool {
        program: program.to_owned(),
        status,
        output,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        // Their words are looked at.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed("not started".to_owned(), error.to_string()))?;
    match wait(&mut child, limit) {
        Ok(Some(status)) if status.code().is_some_and(|code| code <= code_max) => Ok(()),
        Ok(Some(status)) => {
            let output = last_words(&mut child);
            if output.contains(FULL) {
                Err(StorageError::Full(format!("{program}: {output}")))
            } else {
                Err(failed(status.to_string(), output))
            }
        }
        Ok(None) => {
            // It may have ended by itself just now; then there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
            Err(failed(
                format!("not done after {} s", limit.as_secs()),
                String::new(),
            ))
        }
        Err(error) => Err(failed("lost".to_owned(), error.to_string())),
    }
}

/// The program's status, or `None` when it takes too long.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::SRCH)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec::try_from(limit).map_err(io::Error::other)?;
    loop {
        let mut watched = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut watched, Some(&timeout)) {
            Ok(0) => return Ok(None),
            Ok(_) => return child.wait().map(Some),
            // A signal starts the wait anew; signals are few.
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The end of what an ended program said.
fn last_words(child: &mut Child) -> String {
    /// More than it can have written: the pipe holds less.
    const READ_MAX: u64 = 1 << 20;
    let mut bytes = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What cannot be read is missing from the message, no more.
        let _ = stderr.take(READ_MAX).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim();
    let skip = text.chars().count().saturating_sub(OUTPUT_MAX_CHARS);
    text.chars().skip(skip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_repeats_the_programs_words() {
        let error = run("sh", ["-c", "echo it broke >&2; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("it broke") && text.contains('3'), "{text}");
    }

    #[test]
    fn some_failures_are_none_and_some_mean_that_the_pool_is_full() {
        run_accepting("sh", ["-c", "exit 2"], 2).unwrap();
        run_accepting("sh", ["-c", "exit 3"], 2).unwrap_err();
        run_accepting("sh", ["-c", "kill -9 $$"], 2).unwrap_err();
        let full = run("sh", ["-c", "cat /proc/self/status > /dev/full"]).unwrap_err();
        assert!(matches!(full, StorageError::Full(_)), "{full}");
    }

    #[test]
    fn time_is_bounded() {
        let error = run_within("sleep", ["30"], 0, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("not done"), "{error}");
        run_within("true", [""; 0], 0, Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("no-such-program", [""; 0]).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
