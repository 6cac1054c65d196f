//! From what went wrong inside to what a client may see. The details go to the log, here, once.

use std::error::Error;
use std::fmt;

use sandstone_api::{ApiError, ErrorCode, SandboxId};
use sandstone_node_api::NodeError;
use sandstone_store::StoreError;

/// Longest part of a client's own text that is repeated to it.
const NAME_MAX_CHARS: usize = 100;

/// An error of which the client learns only the object's name.
pub(super) fn internal(object: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Internal,
        format!("the server failed to handle {object}"),
    )
    .with_hint("The server's log has the details.")
}

pub(super) fn sandbox_not_found(id: SandboxId) -> ApiError {
    ApiError::new(
        ErrorCode::SandboxNotFound,
        format!("there is no running sandbox {id}"),
    )
}

pub(super) fn shutting_down() -> ApiError {
    ApiError::new(ErrorCode::NotReady, "the server is shutting down")
        .with_hint("Try again in a moment.")
}

/// A refusal or failure of the store, while it worked on `object`.
pub(super) fn of_store(object: &str, error: StoreError) -> ApiError {
    match error {
        StoreError::SlugTaken(slug) => ApiError::new(
            ErrorCode::SlugAlreadyInUse,
            format!("another volume has the slug `{slug}`"),
        )
        .with_hint("Choose another slug, or delete that volume."),
        StoreError::VolumeNotFound { name } => ApiError::new(
            ErrorCode::VolumeNotFound,
            format!("there is no volume `{}`", shortened(&name)),
        ),
        StoreError::VolumeIsMounted {
            volume,
            slug,
            sandbox,
            releasing,
        } => ApiError::new(
            ErrorCode::VolumeIsMounted,
            format!("volume `{slug}` ({volume}) is mounted in sandbox {sandbox}"),
        )
        .with_hint(if releasing {
            "That sandbox is being stopped; try again in a moment."
        } else {
            "A volume is used by one sandbox at a time: stop that sandbox first."
        }),
        StoreError::VolumeNamedTwice { slug } => ApiError::new(
            ErrorCode::InvalidRequest,
            format!("`volumes` names volume `{slug}` more than once"),
        )
        .with_hint("Mount a volume at one path only."),
        StoreError::RegionMismatch {
            slug,
            volume_region,
            sandbox_region,
        } => ApiError::new(
            ErrorCode::RegionMismatch,
            format!(
                "volume `{slug}` is in region {volume_region}, the sandbox would be in \
                 {sandbox_region}"
            ),
        )
        .with_hint("A sandbox and its volumes share one region."),
        StoreError::SandboxNotFound(id) => sandbox_not_found(id),
        StoreError::TokenTaken
        | StoreError::Denied { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Database { .. } => {
            tracing::error!(object, error = %Chain(&error), "the store failed");
            internal(object)
        }
    }
}

/// A promise the node could not keep, while it worked on `object`.
pub(super) fn of_node(object: &str, error: NodeError) -> ApiError {
    tracing::error!(object, error = %Chain(&error), "the node failed");
    match error {
        NodeError::NotReady(why) => not_ready(&why),
        NodeError::NoSuchSandbox(id) => sandbox_not_found(id),
        NodeError::PoolFull(_) => ApiError::new(
            ErrorCode::PoolFull,
            format!("the storage pool has no room for {object}"),
        )
        .with_hint("Delete volumes that are no longer needed, or enlarge the pool."),
        NodeError::TimedOut { .. } => ApiError::new(
            ErrorCode::TimedOut,
            format!("handling {object} took too long"),
        )
        .with_hint("The server's log names the step."),
        NodeError::Failed { .. } => internal(object),
    }
}

pub(super) fn not_ready(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotReady,
        format!("the server cannot do this yet: {why}"),
    )
    .with_hint("Try again in a moment.")
}

/// An error with everything that led to it.
pub(super) struct Chain<'a>(pub(super) &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
