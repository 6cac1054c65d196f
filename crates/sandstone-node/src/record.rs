//! What the node must remember about a sandbox to take it down: a small file per sandbox.
//!
//! It is written before anything else of the sandbox exists and removed after everything else is
//! gone. It needs no fsync: after a power loss there is nothing left to take down.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sandstone_api::{SandboxId, VolumeId};
use serde::{Deserialize, Serialize};

/// Version of the file format. Version 1 named volumes and did not say whether they were attached.
const VERSION: u32 = 2;

/// One sandbox's record.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: SandboxId,
    pub(crate) volumes: Vec<RecordedVolume>,
    /// Name of its writable layer in the pool, if it has one.
    pub(crate) scratch: Option<String>,
}

/// A volume that a sandbox was started with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordedVolume {
    pub(crate) id: VolumeId,
    /// Whether it was attached. Until then another sandbox may hold it.
    pub(crate) attached: bool,
}

#[derive(Serialize)]
struct OnDisk<'a> {
    version: u32,
    volumes: Vec<VolumeOnDisk>,
    scratch: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
struct VolumeOnDisk {
    id: String,
    attached: bool,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Version1 {
    volumes: Vec<String>,
    scratch: String,
}

#[derive(Deserialize)]
struct Version2 {
    volumes: Vec<VolumeOnDisk>,
    scratch: Option<String>,
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
            volumes: record
                .volumes
                .iter()
                .map(|volume| VolumeOnDisk {
                    id: volume.id.to_string(),
                    attached: volume.attached,
                })
                .collect(),
            scratch: record.scratch.as_deref(),
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
        let Version { version } = serde_json::from_slice(&bytes)?;
        let (volumes, scratch) = match version {
            1 => {
                let old: Version1 = serde_json::from_slice(&bytes)?;
                let volumes = old
                    .volumes
                    .into_iter()
                    .map(|id| VolumeOnDisk { id, attached: true })
                    .collect();
                (volumes, Some(old.scratch))
            }
            VERSION => {
                let record: Version2 = serde_json::from_slice(&bytes)?;
                (record.volumes, record.scratch)
            }
            other => {
                return Err(io::Error::other(format!(
                    "the record of {id} has version {other}, this program knows {VERSION}"
                )));
            }
        };
        let volumes = volumes
            .into_iter()
            .map(|volume| {
                Ok(RecordedVolume {
                    id: volume.id.parse().map_err(io::Error::other)?,
                    attached: volume.attached,
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Some(Record {
            id,
            volumes,
            scratch,
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

    fn ids() -> (SandboxId, VolumeId, VolumeId) {
        let region = "ord".parse().unwrap();
        let suffix = |byte| IdSuffix::from_random([byte; 20]);
        (
            SandboxId::new(region, suffix(1)),
            VolumeId::new(region, suffix(2)),
            VolumeId::new(region, suffix(3)),
        )
    }

    #[test]
    fn records_survive_and_vanish() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let (id, first, second) = ids();
        assert!(records.read(id).unwrap().is_none());
        for scratch in [Some("abc".to_owned()), None] {
            let record = Record {
                id,
                volumes: [(first, true), (second, false)]
                    .map(|(id, attached)| RecordedVolume { id, attached })
                    .to_vec(),
                scratch,
            };
            records.write(&record).unwrap();
            let read = records.read(id).unwrap().unwrap();
            assert_eq!(
                (read.volumes, read.scratch),
                (record.volumes, record.scratch)
            );
        }
        assert_eq!(records.ids().unwrap(), [id]);
        records.remove(id).unwrap();
        records.remove(id).unwrap();
        assert!(records.ids().unwrap().is_empty());
    }

    #[test]
    fn a_record_of_version_1_is_read_and_an_unknown_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::open(directory.path()).unwrap();
        let (id, volume, _) = ids();
        let old = format!(r#"{{"version":1,"volumes":["{volume}"],"scratch":"abc"}}"#);
        fs::write(records.path(id), &old).unwrap();
        let read = records.read(id).unwrap().unwrap();
        let attached = RecordedVolume {
            id: volume,
            attached: true,
        };
        assert_eq!(read.volumes, [attached]);
        assert_eq!(read.scratch.as_deref(), Some("abc"));
        fs::write(records.path(id), old.replace(":1,", ":3,")).unwrap();
        assert!(records.read(id).is_err());
    }
}
