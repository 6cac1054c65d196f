//! Starting a process for the host.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use sandstone_protocol::message::{Answer, Failure, Spawn, TerminalSize};

use crate::connection::Connection;
use crate::failure::{failure, shown};
use crate::interior::{Interior, is_variable};
use crate::lock::lock;
use crate::pump::{Kind, Pump};
use crate::stream::{Inlet, Outlet};
use crate::sys::{Program, StartFailure, Step, Streams};
use crate::terminal;

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
    /// The two directions of its descriptor 3.
    pub(crate) socket: Option<(Arc<Inlet>, Arc<Outlet>)>,
}

/// Starts the process and answers, then moves its streams until they end.
pub(crate) fn perform(connection: &Arc<Connection>, job: SpawnJob) {
    let interior = lock(&connection.agent.interior).clone();
    let streams = job.spawn.streams();
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
    let program = program(interior, spawn)
        .map_err(refused)?
        .with_open_files(connection.agent.open_files);

    let mut pump = Pump::new(Arc::clone(connection));
    let mut ends = Ends::default();
    let terminal = match spawn.terminal {
        Some(size) => Some(ends.open_terminal(&mut pump, interior, size, job)),
        None => {
            ends.open_pipes(&mut pump, job).map_err(refused)?;
            None
        }
    };
    let terminal = terminal.transpose().map_err(refused)?;
    if let Some((inlet, outlet)) = &job.socket {
        ends.open_socket(&mut pump, inlet, outlet)
            .map_err(refused)?;
    }

    let processes = &connection.agent.processes;
    let (started, report) = program
        .start(&ends.as_streams(connection.agent.null.as_fd()), |fork| {
            processes.start(fork)
        })
        .map_err(refused)?;
    drop(ends);
    match report.read() {
        Ok(()) => {
            if let Some(master) = &terminal {
                processes.set_terminal(started, master);
            }
            Ok((started.pid, pump))
        }
        Err(failure) => {
            processes.discard(started);
            Err(describe(failure, interior, spawn))
        }
    }
}

/// The process's ends of its streams.
#[derive(Debug, Default)]
struct Ends {
    standard: [Option<OwnedFd>; 3],
    terminal: Option<OwnedFd>,
    socket: Option<OwnedFd>,
}

impl Ends {
    fn open_pipes(&mut self, pump: &mut Pump, job: &SpawnJob) -> Result<(), Errno> {
        if let Some(inlet) = &job.stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            self.standard[0] = Some(read);
            pump.add_input(Arc::new(write), Kind::Pipe, Arc::clone(inlet))?;
        }
        for (slot, outlet) in self.standard[1..]
            .iter_mut()
            .zip([&job.stdout, &job.stderr])
        {
            if let Some(outlet) = outlet {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                *slot = Some(write);
                pump.add_output(Arc::new(read), Kind::Pipe, Arc::clone(outlet));
            }
        }
        Ok(())
    }

    /// Opens a terminal, and returns its master.
    fn open_terminal(
        &mut self,
        pump: &mut Pump,
        interior: &Interior,
        size: TerminalSize,
        job: &SpawnJob,
    ) -> Result<Arc<OwnedFd>, Errno> {
        if job.stderr.is_some() {
            return Err(Errno::INVAL);
        }
        let (master, slave) = terminal::open(interior.account.identity.uid, size)?;
        let master = Arc::new(master);
        if let Some(inlet) = &job.stdin {
            pump.add_input(Arc::clone(&master), Kind::Terminal, Arc::clone(inlet))?;
        }
        if let Some(outlet) = &job.stdout {
            pump.add_output(Arc::clone(&master), Kind::Terminal, Arc::clone(outlet));
        }
        self.terminal = Some(slave);
        Ok(master)
    }

    fn open_socket(
        &mut self,
        pump: &mut Pump,
        inlet: &Arc<Inlet>,
        outlet: &Arc<Outlet>,
    ) -> Result<(), Errno> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let ours = Arc::new(ours);
        pump.add_input(Arc::clone(&ours), Kind::Socket, Arc::clone(inlet))?;
        pump.add_output(ours, Kind::Socket, Arc::clone(outlet));
        self.socket = Some(theirs);
        Ok(())
    }

    fn as_streams<'fd>(&'fd self, null: BorrowedFd<'fd>) -> Streams<'fd> {
        let terminal = self.terminal.as_ref().map(AsFd::as_fd);
        Streams {
            standard: std::array::from_fn(|index| {
                let own = self.standard[index].as_ref().map(AsFd::as_fd);
                terminal.or(own).unwrap_or(null)
            }),
            is_terminal: terminal.is_some(),
            socket: self.socket.as_ref().map(AsFd::as_fd),
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
