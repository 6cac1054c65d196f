//! Turning a parked sandbox into a running one.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path};
use std::time::Instant;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;

use super::{
    MountSpec, PHASE_LIMIT, Prepared, RootTree, Running, Runtime, StartSpec, failure, receive,
};
use crate::Error;
use crate::control::{MOUNTS_MAX, Place, Progress, Root, Start, wait_readable};
use crate::error::Step;
use crate::slot::State;

/// Connections that may wait for the agent to accept them.
const SOCKET_BACKLOG: i32 = 16;

impl Runtime {
    /// Starts a sandbox and returns when its agent has said that it is ready.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::NameInUse`] when the description is wrong;
    /// [`Error::Setup`], [`Error::Ended`], [`Error::Timeout`] and [`Error::Io`] when it could not
    /// be made. Nothing of it is left in any case, or [`Runtime::kill`] and [`Runtime::sweep`]
    /// remove it.
    pub fn start(&self, mut prepared: Prepared, spec: StartSpec) -> Result<Running, Error> {
        let name = spec.name.clone();
        let result = check(&spec)
            .and_then(|()| {
                prepared
                    .hold
                    .begin_start(&spec.name, spec.agent_socket.clone())
            })
            .and_then(|()| self.start_steps(&mut prepared, spec));
        if let Err(error) = result {
            self.undo(prepared);
            return Err(error);
        }
        Ok(Running {
            name,
            slot: prepared.hold.slot().number(),
            pid: prepared.init.pid.unsigned_abs(),
            started: prepared.init.started,
        })
    }

    fn start_steps(&self, prepared: &mut Prepared, spec: StartSpec) -> Result<(), Error> {
        let deadline = Instant::now() + PHASE_LIMIT;
        self.limit(prepared.hold.slot(), &spec)?;
        let socket = listen(&spec.agent_socket)?;
        let (ready, their_ready) =
            rustix::pipe::pipe_with(PipeFlags::CLOEXEC).step(|| "make a pipe")?;
        let (trees, mounts): (Vec<OwnedFd>, Vec<Place>) = spec
            .mounts
            .into_iter()
            .map(|mount| {
                let place = Place {
                    path: mount.path,
                    read_only: mount.read_only,
                };
                (mount.tree, place)
            })
            .unzip();
        let (layers, root) = match spec.root {
            RootTree::Layers { base, scratch } => (vec![base, scratch], Root::Layers),
            RootTree::Whole(tree) => (vec![tree], Root::Whole),
        };
        let message = Start {
            hostname: spec.hostname,
            memory_bytes: spec.memory_bytes,
            open_files: spec.open_files,
            root,
            mounts,
        };
        let fds: Vec<_> = layers
            .iter()
            .chain([&socket, &their_ready, &self.agent])
            .chain(&trees)
            .map(AsFd::as_fd)
            .collect();
        prepared
            .channel
            .send(&message, &fds)
            .step(|| "send the sandbox to the shim")?;
        // From here on the mounts are the sandbox's alone, and end with it.
        drop((layers, trees, socket, their_ready));

        match receive(&prepared.channel, deadline, "starting")?.0 {
            Progress::Started => {}
            other => return Err(failure(other)),
        }
        wait_until_ready(&ready, &prepared.init_pidfd, deadline)?;
        // The end of the shim's mount name space waits for the kernel; the sandbox need not.
        prepared
            .shim
            .finish_in_background(deadline)
            .step(|| "let the shim end")?;
        prepared.hold.update(|record| record.state = State::Running)
    }
}

/// Waits for the agent's byte.
fn wait_until_ready(ready: &OwnedFd, init: &OwnedFd, deadline: Instant) -> Result<(), Error> {
    let readable = wait_readable(&[ready.as_fd(), init.as_fd()], Some(deadline))
        .step(|| "wait for the agent")?;
    if readable[0] {
        let mut byte = [0];
        return match rustix::io::read(ready, &mut byte) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::Ended("its agent was starting")),
            Err(errno) => Err(Error::io("read the ready pipe", errno)),
        };
    }
    if readable[1] {
        return Err(Error::Ended("its agent was starting"));
    }
    Err(Error::Timeout {
        step: "starting the agent".to_owned(),
        limit: PHASE_LIMIT,
    })
}

/// A listening socket that only root can connect to. Nobody can before it listens, so there is no
/// moment at which its mode matters.
fn listen(path: &Path) -> Result<OwnedFd, Error> {
    let step = || format!("listen on {}", path.display());
    let address = SocketAddrUnix::new(path).step(step)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .step(step)?;
    // A socket of a sandbox that has the same name and whose server died.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io(step(), error));
        }
        _ => {}
    }
    rustix::net::bind(&socket, &address).step(step)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).step(step)?;
    rustix::net::listen(&socket, SOCKET_BACKLOG).step(step)?;
    Ok(socket)
}

fn check(spec: &StartSpec) -> Result<(), Error> {
    let bad = |text: String| Err(Error::Config(text));
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if spec.name.is_empty() || spec.name.len() > 64 || !spec.name.bytes().all(letter) {
        return bad(format!("{:?} cannot be the name of a sandbox", spec.name));
    }
    let host_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if spec.hostname.is_empty()
        || spec.hostname.len() > 64
        || !spec.hostname.bytes().all(host_letter)
    {
        return bad(format!("{:?} cannot be a host name", spec.hostname));
    }
    if spec.mounts.len() > MOUNTS_MAX {
        return bad(format!("more than {MOUNTS_MAX} mounts"));
    }
    for MountSpec { path, .. } in &spec.mounts {
        let components = || Path::new(path).components();
        let plain = components()
            .skip(1)
            .all(|component| matches!(component, Component::Normal(_)));
        if !path.starts_with('/')
            || components().count() < 2
            || !plain
            || path.len() > 4095
            || path.contains('\0')
        {
            return bad(format!("{path:?} is not a path for a mount"));
        }
    }
    let limits = [spec.cpu_millis, spec.pids_max, spec.open_files];
    if spec.memory_bytes == 0 || limits.contains(&0) {
        return bad("a limit is zero".to_owned());
    }
    Ok(())
}
