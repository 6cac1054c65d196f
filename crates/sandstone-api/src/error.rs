//! Errors as the API shows them: a stable code, a message that names the object, a hint.

use std::fmt;

/// Every code the API answers with. The hosted product's names are used where one is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The token is missing or unknown.
    InvalidToken,
    /// A field is missing, malformed or out of bounds.
    InvalidRequest,
    /// No such volume in this organisation.
    VolumeNotFound,
    /// No such snapshot in this organisation.
    SnapshotNotFound,
    /// No such sandbox in this organisation, or it has stopped.
    SandboxNotFound,
    /// A sandbox holds the volume.
    VolumeIsMounted,
    /// A named object lives in another region than the sandbox.
    RegionMismatch,
    /// Another volume or snapshot has the slug.
    SlugAlreadyInUse,
    /// `from` names a base image that this server does not have.
    UnknownBase,
    /// The volume or snapshot named as a root holds no system.
    NotBootable,
    /// The capacity asked for is less than that of the source, or than the volume has.
    CapacityBelowBase,
    /// The object was deleted and its grace period is over: its data is gone.
    NotRestorable,
    /// An archive is truncated, or its checksum does not match.
    ArchiveDamaged,
    /// An archive holds what is never unpacked: paths that leave it, device nodes.
    ArchiveRefused,
    /// No such file or directory on the volume.
    FileNotFound,
    /// A snapshot no longer has the content it was made with.
    SnapshotDamaged,
    /// No such route.
    RouteNotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The organisation has as many sandboxes as it may have.
    ConcurrencyLimit,
    /// A sandbox, or the server, has as many connections of clients as it may have.
    ConnectionLimit,
    /// A sandbox has as many names for exposed servers as it may have.
    ExposureLimit,
    /// A sandbox has as many SSH user names as it may have.
    SshUserLimit,
    /// More memory, or less, than a sandbox may have.
    MemoryOutOfRange,
    /// A longer life than a sandbox may have.
    LifetimeTooLong,
    /// No server in a sandbox is exposed under this name.
    DomainNotFound,
    /// Nobody listens where an exposed name leads to.
    NotListening,
    /// Too many connections or requests to exposed servers: of one sandbox, one client, or all.
    ExposureBusy,
    /// No editor is configured.
    EditorNotConfigured,
    /// A documented call of the hosted product that this version does not offer.
    NotSupported,
    /// The server cannot create sandboxes yet.
    NotReady,
    /// The pool has no room.
    PoolFull,
    /// A step took longer than its bound.
    TimedOut,
    /// Our fault. The log has the details under the trace id.
    Internal,
}

impl ErrorCode {
    /// Every code, for documentation and tests.
    pub const ALL: [Self; 33] = [
        Self::InvalidToken,
        Self::InvalidRequest,
        Self::VolumeNotFound,
        Self::SnapshotNotFound,
        Self::SandboxNotFound,
        Self::VolumeIsMounted,
        Self::RegionMismatch,
        Self::SlugAlreadyInUse,
        Self::UnknownBase,
        Self::NotBootable,
        Self::CapacityBelowBase,
        Self::NotRestorable,
        Self::ArchiveDamaged,
        Self::ArchiveRefused,
        Self::FileNotFound,
        Self::SnapshotDamaged,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
        Self::ConcurrencyLimit,
        Self::ConnectionLimit,
        Self::ExposureLimit,
        Self::SshUserLimit,
        Self::MemoryOutOfRange,
        Self::LifetimeTooLong,
        Self::DomainNotFound,
        Self::NotListening,
        Self::ExposureBusy,
        Self::EditorNotConfigured,
        Self::NotSupported,
        Self::NotReady,
        Self::PoolFull,
        Self::TimedOut,
        Self::Internal,
    ];

    /// The text on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidToken => "INVALID_TOKEN",
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::VolumeNotFound => "VOLUME_NOT_FOUND",
            Self::SnapshotNotFound => "SNAPSHOT_NOT_FOUND",
            Self::SandboxNotFound => "SANDBOX_NOT_FOUND",
            Self::VolumeIsMounted => "VOLUME_IS_MOUNTED",
            Self::RegionMismatch => "REGION_MISMATCH",
            Self::SlugAlreadyInUse => "SLUG_ALREADY_IN_USE",
            Self::UnknownBase => "UNKNOWN_BASE",
            Self::NotBootable => "NOT_BOOTABLE",
            Self::CapacityBelowBase => "CAPACITY_BELOW_BASE",
            Self::NotRestorable => "NOT_RESTORABLE",
            Self::ArchiveDamaged => "ARCHIVE_DAMAGED",
            Self::ArchiveRefused => "ARCHIVE_REFUSED",
            Self::FileNotFound => "FILE_NOT_FOUND",
            Self::SnapshotDamaged => "SNAPSHOT_DAMAGED",
            Self::RouteNotFound => "ROUTE_NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::ConcurrencyLimit => "CONCURRENCY_LIMIT",
            Self::ConnectionLimit => "CONNECTION_LIMIT",
            Self::ExposureLimit => "EXPOSURE_LIMIT",
            Self::SshUserLimit => "SSH_USER_LIMIT",
            Self::MemoryOutOfRange => "MEMORY_OUT_OF_RANGE",
            Self::LifetimeTooLong => "LIFETIME_TOO_LONG",
            Self::DomainNotFound => "DOMAIN_NOT_FOUND",
            Self::NotListening => "NOT_LISTENING",
            Self::ExposureBusy => "EXPOSURE_BUSY",
            Self::EditorNotConfigured => "EDITOR_NOT_CONFIGURED",
            Self::NotSupported => "NOT_SUPPORTED",
            Self::NotReady => "NOT_READY",
            Self::PoolFull => "POOL_FULL",
            Self::TimedOut => "TIMED_OUT",
            Self::Internal => "INTERNAL",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest
            | Self::UnknownBase
            | Self::CapacityBelowBase
            | Self::MemoryOutOfRange
            | Self::LifetimeTooLong => 400,
            Self::InvalidToken => 401,
            Self::VolumeNotFound
            | Self::SnapshotNotFound
            | Self::SandboxNotFound
            | Self::FileNotFound
            | Self::DomainNotFound
            | Self::RouteNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::VolumeIsMounted
            | Self::RegionMismatch
            | Self::SlugAlreadyInUse
            | Self::NotBootable
            | Self::SnapshotDamaged => 409,
            Self::NotRestorable => 410,
            Self::ArchiveDamaged | Self::ArchiveRefused => 422,
            Self::ConcurrencyLimit
            | Self::ConnectionLimit
            | Self::ExposureLimit
            | Self::SshUserLimit => 429,
            Self::Internal => 500,
            Self::NotSupported | Self::EditorNotConfigured => 501,
            Self::NotListening => 502,
            Self::NotReady | Self::ExposureBusy => 503,
            Self::TimedOut => 504,
            Self::PoolFull => 507,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error that the API may show. Internal detail never goes in here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// What kind of error.
    pub code: ErrorCode,
    /// What happened, naming the object.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl ApiError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A field that is out of bounds: names the field, the value and the bounds.
    pub fn invalid_field(field: &str, value: impl fmt::Display, bounds: impl fmt::Display) -> Self {
        Self::new(
            ErrorCode::InvalidRequest,
            format!("`{field}` is {value}: {bounds}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_statuses_are_errors() {
        let mut texts: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        assert!(
            ErrorCode::ALL
                .iter()
                .all(|code| (400..600).contains(&code.status()))
        );
    }
}
