//! Messages between server, shim and child: MessagePack over `SOCK_SEQPACKET`, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message. The seccomp program is the largest part, about 6 KiB.
const MESSAGE_MAX_BYTES: usize = 64 << 10;

/// Most descriptors in a message: the mounts and five more.
const FDS_MAX: usize = MOUNTS_MAX + 5;

/// Most mounts of a sandbox, its root not counted.
pub(crate) const MOUNTS_MAX: usize = 64;

/// Server to shim, first message. Descriptors: the cgroup's directory (v2), or its
/// `cgroup.procs` files (v1).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prepare {
    /// Host id of the sandbox's root.
    pub(crate) uid_base: u32,
    /// Whether the cgroup descriptor is one of version 2.
    pub(crate) unified_cgroup: bool,
    /// The network.
    pub(crate) link: Link,
    /// The filter, eight bytes an instruction.
    #[serde(with = "serde_bytes")]
    pub(crate) seccomp: Vec<u8>,
}

/// The two ends of a sandbox's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Link {
    /// Name of the host's end. The sandbox's is `eth0`.
    pub(crate) name: String,
    /// The host's address.
    pub(crate) host: Ipv4Addr,
    /// The sandbox's address, in the same /30.
    pub(crate) sandbox: Ipv4Addr,
}

/// Server to shim, second message. Descriptors: those of the root, socket, ready pipe, agent, and
/// then one detached mount for each of `mounts`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) hostname: String,
    /// The sandbox's memory limit.
    pub(crate) memory_bytes: u64,
    /// Most open files of each process.
    pub(crate) open_files: u32,
    pub(crate) root: Root,
    pub(crate) mounts: Vec<Place>,
}

/// How the root comes: the first descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Root {
    /// Base and scratch.
    Layers,
    /// One tree.
    Whole,
}

impl Root {
    /// How many descriptors are its.
    pub(crate) fn descriptors(self) -> usize {
        match self {
            Self::Layers => 2,
            Self::Whole => 1,
        }
    }
}

/// Where a mount goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) path: String,
    pub(crate) read_only: bool,
}

/// Shim to child. Each message is expected at one point only.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The maps are written and the cgroup is joined.
    Go,
    /// `eth0` is there.
    Linked(Link),
    /// Descriptors: root, socket, ready pipe, agent, and the mounts.
    Start(Start),
}

/// Child to shim, and shim to server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// Everything that can be done before the sandbox is known is done. From the shim with the
    /// process id of the child; descriptor: its pidfd.
    Parked { pid: i32 },
    /// The agent was executed.
    Started,
    /// It will never be.
    Failed { step: String, errno: Option<i32> },
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends one message. Never blocks for long: the peers take turns, so the queue is empty.
    pub(crate) fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
        if bytes.len() > MESSAGE_MAX_BYTES || fds.len() > FDS_MAX {
            return Err(io::Error::other("message is too long"));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other("too many descriptors"));
        }
        rustix::net::sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Receives one message; `None` when the peer closed its end.
    pub(crate) fn receive<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        if !wait_readable(&[self.0.as_fd()], deadline)?[0] {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut bytes = vec![0; MESSAGE_MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(received) => received,
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::other("message was cut"));
        }
        let message = rmp_serde::from_slice(&bytes[..received.bytes]).map_err(io::Error::other)?;
        Ok(Some((message, fds)))
    }
}

/// Waits until at least one descriptor is readable or closed by its peer; tells which are. All
/// `false` when the deadline passed.
pub(crate) fn wait_readable(
    fds: &[BorrowedFd<'_>],
    deadline: Option<Instant>,
) -> io::Result<Vec<bool>> {
    loop {
        let mut polled: Vec<PollFd<'_>> = fds
            .iter()
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        let timeout =
            deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(_) => return Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::from_fd(theirs);
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = vec![file.as_fd(); FDS_MAX];
        ours.send(&Progress::Parked { pid: 7 }, &fds).unwrap();
        let (message, fds) = theirs.receive::<Progress>(None).unwrap().unwrap();
        assert!(matches!(message, Progress::Parked { pid: 7 }));
        assert_eq!(fds.len(), FDS_MAX);
        drop(ours);
        assert!(theirs.receive::<Progress>(None).unwrap().is_none());
    }

    #[test]
    fn waiting_ends_at_the_deadline() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let deadline = Instant::now() + Duration::from_millis(20);
        let error = ours.receive::<Progress>(Some(deadline)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn rubbish_is_an_error() {
        let (ours, theirs) = Channel::pair().unwrap();
        rustix::net::send(&theirs, b"\xc1\xc1", SendFlags::empty()).unwrap();
        assert!(ours.receive::<Progress>(None).is_err());
    }
}
