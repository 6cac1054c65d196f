//! Terminals of processes: pairs of `pty(7)`.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, fchmod, fchown};
use rustix::io::Errno;
use rustix::process::Uid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use sandstone_protocol::message::TerminalSize;

/// Mode of a terminal: its user reads and writes, and `write(1)` of the group `tty` may write.
const MODE: u32 = 0o620;

/// Opens a terminal for a user: master and slave, both close-on-exec.
///
/// # Errors
/// When there is no terminal left, or the sandbox has no `/dev/pts`.
pub(crate) fn open(owner: Uid, size: TerminalSize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    // From the master itself: whatever stands at the slave's path is not asked.
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    // The group is that of the mount, which is `tty`.
    fchown(&slave, Some(owner), None)?;
    fchmod(&slave, Mode::from_raw_mode(MODE))?;
    resize(&master, size)?;
    let mut modes = tcgetattr(&slave)?;
    // Erasing takes whole characters: the sandbox's language is UTF-8.
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&slave, OptionalActions::Now, &modes)?;
    Ok((master, slave))
}

/// Changes a terminal's size, and tells its foreground processes. `TIOCSWINSZ(2const)`
///
/// # Errors
/// Those of the call.
pub(crate) fn resize(master: impl AsFd, size: TerminalSize) -> Result<(), Errno> {
    tcsetwinsize(
        master,
        Winsize {
            ws_row: size.rows,
            ws_col: size.columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )
}
