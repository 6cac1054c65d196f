//! Starting a process for the host.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use sandstone_protocol::message::{Answer, Failure, Spawn};

use crate::connection::{Connection, streams_of_spawn};
use crate::failure::{failure, shown};
use crate::interior::{Interior, is_variable};
use crate::lock::lock;
use crate::pump::Pump;
use crate::stream::{Inlet, Outlet};
use crate::sys::{Program, StartFailure, Step};

/// A spawn request with its streams.
#[derive(Debug)]
pub(crate) struct SpawnJob {
    /// The request.
    pub(crate) id: u32,
    /// What to start.
    pub(crate) spawn: Spawn,
    /// Its standard input.
    pub(crate) stdin: Option<Arc<Inlet>>,
    /// Its standard output.
    pub(crate) stdout: Option<Arc<Outlet>>,
    /// Its standard error.
    pub(crate) stderr: Option<Arc<Outlet>>,
}

/// Starts the process and answers, then moves its streams until they end.
pub(crate) fn perform(connection: &Arc<Connection>, job: SpawnJob) {
    let interior = lock(&connection.agent.interior).clone();
    let streams = streams_of_spawn(&job.spawn);
    match start(connection, &interior, &job) {
        Ok((pid, pump)) => {
            // A host that is gone learns nothing, but the process runs, and its output must flow.
            let _ = connection.reply(job.id, Ok(Answer::Spawned { pid }));
            pump.run();
        }
        Err(failure) => {
            let _ = connection.fail(job.id, &streams, failure);
        }
    }
}

fn start(
    connection: &Arc<Connection>,
    interior: &Interior,
    job: &SpawnJob,
) -> Result<(u32, Pump), Failure> {
    let spawn = &job.spawn;
    let refused = |errno| failure(errno, format_args!("spawn '{}'", shown(&spawn.command)));
    let program = program(interior, spawn).map_err(refused)?;

    let mut pump = Pump::new(Arc::clone(connection));
    let null = connection.agent.null.as_fd();
    let mut theirs: [Option<OwnedFd>; 3] = [None, None, None];
    if let Some(inlet) = &job.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(refused)?;
        theirs[0] = Some(read);
        pump.add_input(write, Arc::clone(inlet)).map_err(refused)?;
    }
    for (slot, outlet) in theirs[1..].iter_mut().zip([&job.stdout, &job.stderr]) {
        if let Some(outlet) = outlet {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(refused)?;
            *slot = Some(write);
            pump.add_output(read, Arc::clone(outlet));
        }
    }
    let streams: [BorrowedFd<'_>; 3] =
        std::array::from_fn(|index| theirs[index].as_ref().map_or(null, |end| end.as_fd()));

    let processes = &connection.agent.processes;
    let (started, report) = program
        .start(streams, |fork| processes.start(fork))
        .map_err(refused)?;
    drop(theirs);
    match report.read() {
        Ok(()) => Ok((started.pid, pump)),
        Err(failure) => {
            processes.discard(started);
            Err(describe(failure, interior, spawn))
        }
    }
}

/// Prepares everything that the child needs.
fn program(interior: &Interior, spawn: &Spawn) -> Result<Program, Errno> {
    let mut environment = if spawn.clear_environment {
        BTreeMap::new()
    } else {
        interior.environment.clone()
    };
    for (name, value) in &spawn.environment {
        if !is_variable(name, value) {
            return Err(Errno::INVAL);
        }
        environment.insert(name.clone(), value.clone());
    }
    let search_path = environment
        .get("PATH")
        .map_or(interior.search_path(), String::as_str);
    let candidates = candidates(&spawn.command, search_path);

    let directory = match &spawn.working_directory {
        Some(path) => interior.absolute(path)?,
        None => interior.working_directory.clone(),
    };
    let directory = CString::new(directory.into_os_string().into_encoded_bytes());
    Ok(Program::new(
        strings(candidates)?,
        strings([&spawn.command].into_iter().chain(&spawn.args).cloned())?,
        strings(
            environment
                .iter()
                .map(|(name, value)| format!("{name}={value}")),
        )?,
        directory.map_err(|_| Errno::INVAL)?,
        interior.account.identity.clone(),
    ))
}

/// The files that `command` may mean, as `execvp(3)` looks for them.
fn candidates(command: &str, search_path: &str) -> Vec<String> {
    if command.is_empty() {
        Vec::new()
    } else if command.contains('/') {
        vec![command.to_owned()]
    } else {
        search_path
            .split(':')
            .map(|directory| match directory {
                "" => format!("./{command}"),
                directory => format!("{directory}/{command}"),
            })
            .collect()
    }
}

fn strings(texts: impl IntoIterator<Item = String>) -> Result<Vec<CString>, Errno> {
    texts
        .into_iter()
        .map(|text| CString::new(text).map_err(|_| Errno::INVAL))
        .collect()
}

fn describe(error: StartFailure, interior: &Interior, spawn: &Spawn) -> Failure {
    let command = shown(&spawn.command);
    let StartFailure { step, errno } = error;
    match step {
        Step::Execute => failure(errno, format_args!("spawn '{command}'")),
        Step::Streams => failure(errno, format_args!("spawn '{command}': standard streams")),
        Step::Identity => failure(
            errno,
            format_args!("spawn '{command}': become '{}'", interior.account.name),
        ),
        Step::Directory => {
            let directory = spawn.working_directory.as_deref().map_or_else(
                || interior.working_directory.to_string_lossy(),
                std::borrow::Cow::Borrowed,
            );
            failure(
                errno,
                format_args!(
                    "spawn '{command}': working directory '{}'",
                    shown(&directory)
                ),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_looked_up_as_execvp_does() {
        assert_eq!(candidates("ls", "/a:/b"), ["/a/ls", "/b/ls"]);
        assert_eq!(candidates("ls", ":/b"), ["./ls", "/b/ls"]);
        assert_eq!(candidates("./ls", "/a"), ["./ls"]);
        assert!(candidates("", "/a").is_empty());
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        let interior = Interior::default();
        let refused = |spawn: Spawn| program(&interior, &spawn).err();
        let command = |command: &str| Spawn {
            command: command.into(),
            ..Spawn::default()
        };
        assert_eq!(refused(command("ls")), None);
        assert_eq!(refused(command("l\0s")), Some(Errno::INVAL));
        let mut spawn = command("ls");
        spawn.environment.insert("a=b".into(), "c".into());
        assert_eq!(refused(spawn), Some(Errno::INVAL));
        let mut spawn = command("ls");
        spawn.working_directory = Some("/a\0".into());
        assert_eq!(refused(spawn), Some(Errno::INVAL));
    }
}
