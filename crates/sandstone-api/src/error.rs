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
    /// No such route.
    RouteNotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
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
    pub const ALL: [Self; 15] = [
        Self::InvalidToken,
        Self::InvalidRequest,
        Self::VolumeNotFound,
        Self::SnapshotNotFound,
        Self::SandboxNotFound,
        Self::VolumeIsMounted,
        Self::RegionMismatch,
        Self::SlugAlreadyInUse,
        Self::RouteNotFound,
        Self::MethodNotAllowed,
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
            Self::RouteNotFound => "ROUTE_NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
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
            Self::InvalidRequest => 400,
            Self::InvalidToken => 401,
            Self::VolumeNotFound
            | Self::SnapshotNotFound
            | Self::SandboxNotFound
            | Self::RouteNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::VolumeIsMounted | Self::RegionMismatch | Self::SlugAlreadyInUse => 409,
            Self::Internal => 500,
            Self::NotSupported => 501,
            Self::NotReady => 503,
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
