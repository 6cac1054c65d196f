//! Slots: the numbers that give sandboxes their user ids, addresses and object names.
//!
//! The directory belongs on a file system in memory, as `/run` is: each start changes its record
//! twice.
//!
//! A claimed slot is a file `<slots_dir>/<number>`, a JSON [`Record`]. It is written before
//! anything else of the sandbox is made and removed after everything else is gone:
//!
//! ```text
//! preparing ──► parked ──► starting ──► running ──► (removed)
//!     └────────────┴──────────┴── swept when their server has died
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::error::Step;
use crate::process::ProcessId;

/// Slots of a host: the number of /30 networks in a /16.
pub(crate) const SLOT_COUNT: u16 = 16_384;

/// Version of [`Record`]. A record of another version is left alone.
const RECORD_VERSION: u8 = 1;

/// A slot's number, below [`SLOT_COUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(u16);

impl Slot {
    pub(crate) fn new(number: u16) -> Option<Self> {
        (number < SLOT_COUNT).then_some(Self(number))
    }

    pub(crate) fn number(self) -> u16 {
        self.0
    }

    /// At most three digits.
    pub(crate) fn base36(self) -> String {
        let mut digits = Vec::new();
        let mut rest = u32::from(self.0);
        loop {
            digits.push(char::from_digit(rest % 36, 36).unwrap_or('0'));
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        digits.iter().rev().collect()
    }
}

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Preparing,
    Parked,
    Starting,
    Running,
}

/// What a slot file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u8,
    /// Whose it is.
    pub(crate) instance: String,
    pub(crate) state: State,
    /// From `Starting` on.
    pub(crate) name: Option<String>,
    /// From `Starting` on.
    pub(crate) agent_socket: Option<PathBuf>,
    /// PID 1 of the sandbox, from `Parked` on.
    pub(crate) init: Option<ProcessId>,
}

/// The directory of slot files.
#[derive(Debug)]
pub(crate) struct SlotFiles {
    dir: PathBuf,
    instance: String,
    /// Where the search for a free slot begins. It moves on, so that a freed slot rests: what
    /// still knows the old sandbox's address does not meet a new one at once.
    next: Mutex<u16>,
}

impl SlotFiles {
    pub(crate) fn open(dir: &Path, instance: &str) -> Result<Self, Error> {
        fs::create_dir_all(dir).step(|| format!("make {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            instance: instance.to_owned(),
            next: Mutex::new(0),
        })
    }

    /// Takes a slot that no server of this host has.
    pub(crate) fn claim(&self) -> Result<(Slot, Record), Error> {
        let record = Record {
            version: RECORD_VERSION,
            instance: self.instance.clone(),
            state: State::Preparing,
            name: None,
            agent_socket: None,
            init: None,
        };
        let mut next = self
            .next
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        for offset in 0..SLOT_COUNT {
            let slot = Slot((*next + offset) % SLOT_COUNT);
            let path = self.path(slot);
            if fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            let draft = self.draft(slot, &record)?;
            // The link appears with its content, and fails when another server was faster.
            let linked = fs::hard_link(&draft, &path);
            let _ = fs::remove_file(&draft);
            match linked {
                Ok(()) => {
                    *next = (slot.0 + 1) % SLOT_COUNT;
                    return Ok((slot, record));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("claim {}", path.display()), error)),
            }
        }
        Err(Error::SlotsExhausted)
    }

    /// Replaces the record of a slot of ours.
    pub(crate) fn write(&self, slot: Slot, record: &Record) -> Result<(), Error> {
        let draft = self.draft(slot, record)?;
        let path = self.path(slot);
        fs::rename(&draft, &path).step(|| format!("write {}", path.display()))
    }

    /// Gives a slot of ours back.
    pub(crate) fn release(&self, slot: Slot) -> Result<(), Error> {
        let path = self.path(slot);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// All slots of this instance. Removes drafts that a dead server left.
    pub(crate) fn ours(&self) -> Result<Vec<(Slot, Record)>, Error> {
        let listing = || format!("list {}", self.dir.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).step(listing)? {
            let path = entry.step(listing)?.path();
            let Some(file_name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if file_name.starts_with(&self.draft_prefix()) {
                let _ = fs::remove_file(&path);
                continue;
            }
            let Some(slot) = file_name.parse().ok().and_then(Slot::new) else {
                continue;
            };
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
            };
            match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.version != RECORD_VERSION => {
                    tracing::warn!(path = %path.display(), "slot file of another version");
                }
                Ok(record) if record.instance == self.instance => found.push((slot, record)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "unreadable slot file");
                }
            }
        }
        found.sort_by_key(|(slot, _)| *slot);
        Ok(found)
    }

    fn path(&self, slot: Slot) -> PathBuf {
        self.dir.join(slot.0.to_string())
    }

    fn draft_prefix(&self) -> String {
        format!(".{}-", self.instance)
    }

    fn draft(&self, slot: Slot, record: &Record) -> Result<PathBuf, Error> {
        let path = self.dir.join(format!("{}{}", self.draft_prefix(), slot.0));
        let bytes = serde_json::to_vec(record).map_err(|error| {
            Error::io(
                format!("encode {}", path.display()),
                io::Error::other(error),
            )
        })?;
        let write = || fs::write(&path, &bytes);
        match write() {
            // Somebody tidied up.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&self.dir).and_then(|()| write())
            }
            written => written,
        }
        .step(|| format!("write {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_claimed_once_and_rest_after_release() {
        let dir = tempfile::tempdir().unwrap();
        let a = SlotFiles::open(dir.path(), "aaaaaaaa").unwrap();
        let b = SlotFiles::open(dir.path(), "bbbbbbbb").unwrap();
        let (first, mut record) = a.claim().unwrap();
        let (second, _) = b.claim().unwrap();
        assert_eq!((first.number(), second.number()), (0, 1));
        record.state = State::Running;
        record.name = Some("x".into());
        a.write(first, &record).unwrap();
        assert_eq!(a.ours().unwrap(), [(first, record)]);
        assert_eq!(b.ours().unwrap().len(), 1);
        a.release(first).unwrap();
        a.release(first).unwrap();
        assert!(a.ours().unwrap().is_empty());
        assert_eq!(a.claim().unwrap().0.number(), 2);
    }

    #[test]
    fn foreign_and_broken_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("0"), b"{").unwrap();
        fs::write(dir.path().join("99999"), b"").unwrap();
        fs::write(dir.path().join(".aaaaaaaa-3"), b"").unwrap();
        let slots = SlotFiles::open(dir.path(), "aaaaaaaa").unwrap();
        assert!(slots.ours().unwrap().is_empty());
        assert_eq!(slots.claim().unwrap().0.number(), 1);
        assert!(dir.path().join("0").exists());
        assert!(dir.path().join("99999").exists());
        assert!(!dir.path().join(".aaaaaaaa-3").exists());
    }

    #[test]
    fn base36() {
        assert_eq!(Slot(0).base36(), "0");
        assert_eq!(Slot(35).base36(), "z");
        assert_eq!(Slot(36).base36(), "10");
        assert_eq!(Slot(SLOT_COUNT - 1).base36(), "cn3");
    }
}
