//! The pure domain: states and their transitions, limits, and the clock and randomness that
//! everything else is handed. No I/O, no async, no global.
//!
//! To change what may happen to a volume or a sandbox, change the transition function here; the
//! store applies it inside one transaction, and the table tests show the difference.

mod ambient;
mod attachment;
mod denied;
mod exposure;
mod image;
mod limits;
mod mount_path;
mod network;
mod sandbox;
mod snapshot;

pub use ambient::{Clock, Entropy, Timestamp};
pub use attachment::{AttachmentEvent, AttachmentState};
pub use denied::Denied;
pub use exposure::{
    EXPOSURES_PER_SANDBOX_MAX, ExposureName, ExposureTarget, ParseExposureNameError,
};
pub use image::{ImageEvent, ImageState};
pub use limits::{
    BOOTABLE_CAPACITY_MIN, CAPACITY_MAX, CAPACITY_MIN, CONNECTIONS_MAX,
    CONNECTIONS_PER_SANDBOX_MAX, DELETION_GRACE_MS, LABEL_KEY_MAX_BYTES, LABEL_VALUE_MAX_BYTES,
    LABELS_MAX, LIFETIME_MAX_MS, Labels, MEMORY_DEFAULT, MEMORY_MAX, MEMORY_MIN, Memory,
    SANDBOXES_MAX, SandboxBounds, VOLUMES_PER_SANDBOX_MAX, VolumeCapacity,
};
pub use mount_path::{MountPath, MountPathError, check_mounts};
pub use network::{
    ALLOW_NET_MAX, HostName, HostPattern, NetworkPolicy, PatternError, Placeholder,
    SECRET_HOSTS_MAX, SECRET_PORT, SECRET_VALUE_MAX_BYTES, SECRETS_MAX, Secret, SecretError,
    SecretValue, Target,
};
pub use sandbox::{Lifetime, SandboxEvent, SandboxState, StopReason};
pub use snapshot::{Consistency, Health, Usage};
