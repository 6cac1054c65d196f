//! Loop devices, loop(4).
#![expect(unsafe_code, reason = "the ioctls have no safe wrappers")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

// linux/loop.h
const LOOP_GET_STATUS64: libc::c_ulong = 0x4C05;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Logical block size of our devices: ext4's and XFS's own, so that direct I/O is always aligned.
pub(crate) const BLOCK_BYTES: u32 = 4096;

/// Another process can take or remove the free device between asking for it and configuring it.
/// Each attempt loses to at most one of them.
const ATTEMPTS: u32 = 64;
/// Pause after a lost attempt.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(1);

#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// An open loop device. It clears itself when this is closed and no file system uses it.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    number: u32,
    file: File,
}

impl LoopDevice {
    /// Puts `image` behind a free device, with direct I/O. `label` is for people who list devices.
    ///
    /// The device keeps this open file, and so a lock (flock(2)) on it, until it is cleared.
    ///
    /// # Errors
    /// The system's; `EBUSY` when others took every free device again and again.
    pub(crate) fn attach(image: &File, label: &str, read_only: bool) -> io::Result<Self> {
        let control = File::options()
            .read(true)
            .write(true)
            .open("/dev/loop-control")?;
        let mut last = io::Error::from(io::ErrorKind::ResourceBusy);
        for _ in 0..ATTEMPTS {
            // SAFETY: the descriptor is open; the call takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
            let number = u32::try_from(number).map_err(|_| io::Error::last_os_error())?;
            match Self::configure(image, label, number, read_only) {
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        // Taken, or removed before it was opened.
                        Some(libc::EBUSY | libc::ENOENT | libc::ENXIO | libc::ENODEV)
                    ) =>
                {
                    last = error;
                }
                outcome => return outcome,
            }
            thread::sleep(ATTEMPT_PAUSE);
        }
        Err(last)
    }

    /// Opens the device that has the file at `image` open already, if one has.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn of(image: &Path) -> io::Result<Option<Self>> {
        let Some(number) = holder(image)? else {
            return Ok(None);
        };
        let file = File::open(path(number))?;
        // While it is open it cannot clear itself; before, it could.
        Ok((holder(image)? == Some(number)).then_some(Self { number, file }))
    }

    /// The device's number on the kernel's side, as `st_dev` of the files on it.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn device_id(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.rdev())
    }

    fn configure(image: &File, label: &str, number: u32, read_only: bool) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(!read_only)
            .open(path(number))?;
        let mut flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
        if read_only {
            flags |= LO_FLAGS_READ_ONLY;
        }
        let mut info = Info {
            flags,
            ..Info::empty()
        };
        // One byte less than there is: the kernel wants a NUL at the end.
        for (to, from) in info.file_name[..63].iter_mut().zip(label.bytes()) {
            *to = from;
        }
        let config = Config {
            fd: image.as_raw_fd().cast_unsigned(),
            block_size: BLOCK_BYTES,
            info,
            reserved: [0; 8],
        };
        // SAFETY: both descriptors are open, and the kernel reads exactly this struct.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_CONFIGURE as _, &config) };
        if result == 0 {
            Ok(Self { number, file })
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// `/dev/loopN`.
    pub(crate) fn path(&self) -> PathBuf {
        path(self.number)
    }
}

impl Info {
    fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

fn path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

/// The device that has the file at `image` open, if one has.
///
/// # Errors
/// The system's, apart from devices that vanish while they are looked at.
pub(crate) fn holder(image: &Path) -> io::Result<Option<u32>> {
    let metadata = match fs::metadata(image) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let file_name = image.file_name().unwrap_or_default().to_string_lossy();
    for (number, backing) in configured()? {
        // The text is a hint only: a file may have been reached by another path. Its last part
        // is still the same, because images are never renamed while they are attached.
        if !backing.contains(&*file_name) {
            continue;
        }
        match status(number) {
            Ok(info) if info.inode == metadata.ino() && info.device == metadata.dev() => {
                return Ok(Some(number));
            }
            Ok(_) => {}
            // Being cleared: it says no more of itself, but is not through with its file.
            Err(_) if Path::new(&backing) == image && is_configured(number) => {
                return Ok(Some(number));
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Whether device `number` is configured.
fn is_configured(number: u32) -> bool {
    backing_file(number).exists()
}

/// The configured devices with the text of their backing files.
///
/// # Errors
/// When `/sys/block` cannot be read.
pub(crate) fn configured() -> io::Result<Vec<(u32, String)>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let Some(number) = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop"))
            .and_then(|number| number.parse().ok())
        else {
            continue;
        };
        if let Ok(text) = fs::read_to_string(backing_file(number)) {
            devices.push((number, text.trim_end().to_owned()));
        }
    }
    Ok(devices)
}

fn backing_file(number: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}/loop/backing_file"))
}

fn status(number: u32) -> io::Result<Info> {
    let file = File::open(path(number))?;
    let mut info = Info::empty();
    // SAFETY: the descriptor is open, and the kernel writes exactly this struct.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), LOOP_GET_STATUS64 as _, &raw mut info) };
    if result == 0 {
        Ok(info)
    } else {
        Err(io::Error::last_os_error())
    }
}
