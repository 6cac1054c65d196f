//! What the node must remember about a sandbox to take it down: a small file per sandbox.
//!
//! It is written before anything else of the sandbox exists and removed after everything else is
//! gone. It needs no fsync: after a power loss there is nothing left to take down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandstone_api::{SandboxId, VolumeId};
use serde::{Deserialize, Serialize};

/// Version of the file format.
const VERSION: u32 = 1;

/// One sandbox's record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) volumes: Vec<VolumeId>,
    /// Name of its writable layer in the pool.
    pub(crate) scratch: String,
}

#[derive(Serialize, Deserialize)]
struct OnDisk {
    version: u32,
    volumes: Vec<String>,
    scratch: String,
}

/// The directory of records.
#[derive(Debug)]
pub(crate) struct Records {
    directory: PathBuf,
}

impl Records {
    /// Opens the directory, making it if needed.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    fn path(&self, id: SandboxId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Writes a record whole or not at all.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let on_disk = OnDisk {
            version: VERSION,
            volumes: record.volumes.iter().map(ToString::to_string).collect(),
            scratch: record.scratch.clone(),
        };
        let temporary = self.directory.join(format!("{}.new", record.id));
        fs::write(&temporary, serde_json::to_vec(&on_disk)?)?;
        fs::rename(temporary, self.path(record.id))
    }

    /// Reads one record.
    pub(crate) fn read(&self, id: SandboxId) -> io::Result<Option<Record>> {
        let bytes = match fs::read(self.path(id)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let on_disk: OnDisk = serde_json::from_slice(&bytes)?;
        if on_disk.version != VERSION {
            return Err(io::Error::other(format!(
                "the record of {id} has version {}, this program knows {VERSION}",
                on_disk.version
            )));
        }
        let volumes = on_disk
            .volumes
            .iter()
            .map(|volume| volume.parse().map_err(io::Error::other))
            .collect::<Result<_, _>>()?;
        Ok(Some(Record {
            id,
            volumes,
            scratch: on_disk.scratch,
        }))
    }

    /// Removes a record. Fine when there is none.
    pub(crate) fn remove(&self, id: SandboxId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The sandboxes that have a record.
    pub(crate) fn ids(&self) -> io::Result<Vec<SandboxId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if let Some(id) = name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"))
                .and_then(|id| id.parse().ok())
            {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandstone_api::IdSuffix;

    #[test]
    fn records_survive_and_vanish() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let region = "ord".parse().unwrap();
        let id = SandboxId::new(region, IdSuffix::from_random([1; 20]));
        let volume = VolumeId::new(region, IdSuffix::from_random([2; 20]));
        assert!(records.read(id).unwrap().is_none());
        let record = Record {
            id,
            volumes: vec![volume],
            scratch: "abc".into(),
        };
        records.write(&record).unwrap();
        let read = records.read(id).unwrap().unwrap();
        assert_eq!(
            (read.volumes, read.scratch),
            (vec![volume], "abc".to_owned())
        );
        assert_eq!(records.ids().unwrap(), [id]);
        records.remove(id).unwrap();
        records.remove(id).unwrap();
        assert!(records.ids().unwrap().is_empty());
    }
}
