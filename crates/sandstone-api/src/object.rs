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
    pub base_snapshot: Option<BaseSnapshot>,
}

/// The snapshot a volume was forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseSnapshot {
    /// `snp_<region>_<20>`.
    pub id: String,
    /// Its slug when the volume was made.
    pub slug: String,
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
