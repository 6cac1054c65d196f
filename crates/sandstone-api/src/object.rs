//! The JSON objects of the HTTP API, as the official SDKs read them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A volume. Exactly these eight keys: the vendor's own test compares the whole object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `vol_<region>_<20>`.
    pub id: String,
    /// The name given by its owner, unique in the organisation.
    pub slug: String,
    /// Where it lives.
    pub region: String,
    /// Hard limit in bytes.
    pub capacity: u64,
    /// Bytes that only this volume occupies, as last measured.
    pub estimated_allocated_size: u64,
    /// Bytes that a full copy would occupy, as last measured.
    pub estimated_flattened_size: u64,
    /// Whether a sandbox can have it as its root.
    pub is_bootable: bool,
    /// The snapshot it was forked from.
    pub base_snapshot: Option<ObjectRef>,
}

/// Another object, by both its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its id.
    pub id: String,
    /// Its slug at the time of the reference.
    pub slug: String,
}

/// A snapshot, with the keys that the SDKs read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// `snp_<region>_<20>`.
    pub id: String,
    /// The name given by its owner, unique in the organisation among volumes and snapshots.
    pub slug: String,
    /// Where it lives.
    pub region: String,
    /// Bytes that only this snapshot occupies.
    pub allocated_size: u64,
    /// Bytes that a full copy would occupy.
    pub flattened_size: u64,
    /// Whether a sandbox can boot from it.
    pub is_bootable: bool,
    /// The volume it was taken of.
    pub volume: ObjectRef,
}

/// A volume, as our own API shows it: what the SDKs read, and the rest. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeDetail {
    /// What the SDKs read.
    #[serde(flatten)]
    pub volume: Volume,
    /// `available`, or `deleted` while it can be restored.
    pub state: String,
    /// The sandbox that has it attached.
    pub sandbox: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When its sizes were measured.
    pub measured_at: Option<String>,
    /// When it was deleted.
    pub deleted_at: Option<String>,
    /// When its data will be removed, if it was deleted.
    pub purge_at: Option<String>,
    /// How long writers of the source waited when this was forked from an attached volume,
    /// microseconds. Only in the answer to the fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_stall_us: Option<u64>,
}

/// A snapshot, as our own API shows it. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotDetail {
    /// What the SDKs read.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// `available`, or `deleted` while it can be restored.
    pub state: String,
    /// Capacity of the volume it was taken of, bytes: the least of a fork.
    pub capacity: u64,
    /// `filesystem` or `crash`.
    pub consistency: String,
    /// How long writers of the volume waited, microseconds.
    pub write_stall_us: u64,
    /// Pieces of its image on the pool.
    pub extents: u64,
    /// `sha256:` and the checksum of its content, once it is recorded.
    pub checksum: Option<String>,
    /// `unrecorded`, `intact` or `damaged`.
    pub health: String,
    /// When its content was last compared with the checksum.
    pub checked_at: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// When it was deleted.
    pub deleted_at: Option<String>,
    /// When its data will be removed, if it was deleted.
    pub purge_at: Option<String>,
}

/// What is in a directory of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// Its name, without the directory. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// `file`, `directory`, `symlink` or `other`.
    pub kind: String,
    /// Bytes of a file.
    pub size: u64,
}

/// How full the storage pool is, bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All of it.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
    /// Below this much free, nothing new is begun.
    pub low: u64,
    /// Below this much free, sandboxes' writes are held up until there is room again.
    pub critical: u64,
    /// Images that no volume and no snapshot has.
    pub unknown_images: Vec<String>,
    /// Volumes and snapshots without an image.
    pub missing_images: Vec<String>,
}

/// Whether a sandbox still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxStatus {
    /// It can be connected to.
    Running,
    /// It has ended, and its volumes are free.
    Stopped,
}

/// A sandbox in a list. Keys are camel case: the JavaScript SDK needs that, and Python converts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// `sbx_<region>_<20>`.
    pub id: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; `null` while it runs.
    pub stopped_at: Option<String>,
    /// Where it runs.
    pub region: String,
    /// Running or stopped.
    pub status: SandboxStatus,
    /// As given at creation.
    pub labels: BTreeMap<String, String>,
}

/// A name under which a server in a sandbox can be reached, at `https://` and its domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exposure {
    /// Host name, and port unless that is 443.
    pub domain: String,
    /// The port in the sandbox that it leads to.
    pub port: Option<u16>,
    /// The process in the sandbox to whose server it leads.
    pub pid: Option<u32>,
    /// When it was issued, RFC 3339.
    pub created_at: String,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A stable code from [`crate::ErrorCode`].
    pub code: String,
    /// What happened, naming the object and who holds it.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}
