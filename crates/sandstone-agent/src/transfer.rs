//! Whole files that go over a stream, to the host or from it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sandstone_protocol::frame::DATA_MAX_BYTES;
use sandstone_protocol::message::WriteOptions;

use crate::connection::Connection;
use crate::files::{OPEN_FLAGS, Place, kind_of};
use crate::stream::{Front, Inlet, Outlet};

/// Sends a file's bytes until its end.
///
/// # Errors
/// The kernel's; `CANCELED` when the host wants no more, or is gone.
pub(crate) fn read_file(
    connection: &Connection,
    path: &Path,
    outlet: &Outlet,
    place: &mut Place,
) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OPEN_FLAGS, Mode::empty())?;
    let kind = kind_of(&file)?;
    if kind == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    let mut buffer = vec![0; DATA_MAX_BYTES];
    loop {
        if kind != FileType::RegularFile {
            // Without this, a pipe that has no writer yet would look like one that ended.
            outlet.waker().clear();
            outlet.credit().ok_or(Errno::CANCELED)?;
            place.step_aside();
            outlet.waker().sleep(Some((file.as_fd(), PollFlags::IN)));
            outlet.credit().ok_or(Errno::CANCELED)?;
            if !is_ready(&file, PollFlags::IN) {
                continue;
            }
        }
        match rustix::io::read(&file, &mut buffer) {
            Ok(0) => break,
            Ok(length) => send(connection, outlet, &buffer[..length], place)?,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    connection.end(outlet).map_err(|_| Errno::CANCELED)
}

/// Whether an operation would return at once, be it with the end or an error.
pub(crate) fn is_ready(file: &OwnedFd, events: PollFlags) -> bool {
    let mut fds = [rustix::event::PollFd::new(file, events)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Sends all of `bytes`, waiting for credit.
fn send(
    connection: &Connection,
    outlet: &Outlet,
    mut bytes: &[u8],
    place: &mut Place,
) -> Result<(), Errno> {
    while !bytes.is_empty() {
        outlet.waker().clear();
        match outlet.spend(bytes.len()).ok_or(Errno::CANCELED)? {
            0 => {
                place.step_aside();
                outlet.waker().sleep(None);
            }
            length => {
                connection
                    .data(outlet, &bytes[..length])
                    .map_err(|_| Errno::CANCELED)?;
                bytes = &bytes[length..];
            }
        }
    }
    Ok(())
}

/// Writes what the host sends until its end.
///
/// # Errors
/// The kernel's; `CANCELED` when the host gave up, or is gone.
pub(crate) fn write_file(
    connection: &Connection,
    path: &Path,
    inlet: &Inlet,
    options: &WriteOptions,
    place: &mut Place,
) -> Result<(), Errno> {
    let mut flags = OFlags::WRONLY | OPEN_FLAGS;
    flags.set(OFlags::APPEND, options.append);
    flags.set(OFlags::TRUNC, !options.append);
    flags.set(OFlags::CREATE, options.create || options.create_new);
    flags.set(OFlags::EXCL, options.create_new);
    let mode = options.mode.map(|mode| Mode::from_raw_mode(mode & 0o7777));
    let initial = mode.map_or(Mode::from_raw_mode(0o666), |mode| {
        mode & Mode::from_raw_mode(0o777)
    });
    let file = rustix::fs::open(path, flags, initial)?;
    if let Some(mode) = mode {
        rustix::fs::fchmod(&file, mode)?;
    }
    let mut buffer = vec![0; DATA_MAX_BYTES];
    loop {
        inlet.waker().clear();
        match inlet.front(&mut buffer) {
            Front::Bytes(length) => match rustix::io::write(&file, &buffer[..length]) {
                Ok(written) => {
                    let grant = inlet.consume(written);
                    connection
                        .grant(inlet, grant)
                        .map_err(|_| Errno::CANCELED)?;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    place.step_aside();
                    inlet.waker().sleep(Some((file.as_fd(), PollFlags::OUT)));
                }
                Err(errno) => return Err(errno),
            },
            Front::Empty => {
                place.step_aside();
                inlet.waker().sleep(None);
            }
            Front::Ended => return Ok(()),
            Front::Reset => return Err(Errno::CANCELED),
        }
    }
}
