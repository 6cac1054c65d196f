//! From what went wrong inside to what a client may see. The details go to the log, here, once.

use sandstone_api::{ApiError, ErrorCode, SandboxId};
use sandstone_core::EXPOSURES_PER_SANDBOX_MAX;
use sandstone_node_api::{Chain, NodeError};
use sandstone_store::{SSH_USERS_MAX, StoreError};

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
            format!("another volume or snapshot has the slug `{slug}`"),
        )
        .with_hint("Choose another slug, or delete what has it."),
        StoreError::VolumeNotFound { name } => ApiError::new(
            ErrorCode::VolumeNotFound,
            format!("there is no volume `{}`", shortened(&name)),
        ),
        StoreError::SnapshotNotFound { name } => ApiError::new(
            ErrorCode::SnapshotNotFound,
            format!("there is no snapshot `{}`", shortened(&name)),
        ),
        StoreError::RootNotFound { name } => ApiError::new(
            ErrorCode::SnapshotNotFound,
            format!(
                "`root`: there is no snapshot or volume `{}`",
                shortened(&name)
            ),
        ),
        StoreError::NotBootable { name, id } => ApiError::new(
            ErrorCode::NotBootable,
            format!("`root` is `{name}` ({id}), which holds no system"),
        )
        .with_hint(
            "Boot from a volume made with `from: \"builtin:debian-13\"`, or a snapshot of one.",
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
        StoreError::TooManySandboxes { limit, .. } => ApiError::new(
            ErrorCode::ConcurrencyLimit,
            format!("the organisation has {limit} sandboxes, which is as many as it may have"),
        )
        .with_hint("End one first, or let the server be started with a larger --sandboxes-max."),
        StoreError::VolumeIsBusy { volume, slug } => ApiError::new(
            ErrorCode::VolumeIsMounted,
            format!("volume `{slug}` ({volume}) is being enlarged or copied"),
        )
        .with_hint("Try again in a moment."),
        StoreError::VolumeNamedTwice { slug } => ApiError::new(
            ErrorCode::InvalidRequest,
            format!("volume `{slug}` is named more than once"),
        )
        .with_hint("Use a volume as the root or at one path only."),
        StoreError::RegionMismatch {
            slug,
            region,
            wanted,
        } => ApiError::new(
            ErrorCode::RegionMismatch,
            format!("`{slug}` is in region {region} and cannot be used in {wanted}"),
        )
        .with_hint(
            "A sandbox and its volumes share one region, and so do a volume and its source.",
        ),
        StoreError::CapacityMissing => ApiError::invalid_field(
            "capacity",
            "missing",
            "a number of bytes or a size such as \"1GB\"",
        ),
        StoreError::CapacityBelowSource {
            asked,
            least,
            source_name,
        } => ApiError::new(
            ErrorCode::CapacityBelowBase,
            format!("`capacity` is {asked}, and {source_name} needs at least {least}"),
        )
        .with_hint(format!("Ask for {least} or more.")),
        StoreError::NotRestorable { name } => ApiError::new(
            ErrorCode::NotRestorable,
            format!(
                "`{}` cannot be restored: its data is gone",
                shortened(&name)
            ),
        )
        .with_hint("What was deleted can be restored until its grace period is over."),
        StoreError::SnapshotDamaged { slug, id } => ApiError::new(
            ErrorCode::SnapshotDamaged,
            format!("snapshot `{slug}` ({id}) no longer has the content it was taken with"),
        )
        .with_hint("Use another snapshot. What can still be read of this one can be exported."),
        StoreError::SandboxNotFound(id) => sandbox_not_found(id),
        StoreError::TooManySshUsers(id) => ApiError::new(
            ErrorCode::SshUserLimit,
            format!("sandbox {id} has {SSH_USERS_MAX} SSH user names already"),
        )
        .with_hint("Use one of them: each lets any number of people in, for as long as it runs."),
        StoreError::ExposureNotFound(id) => ApiError::new(
            ErrorCode::DomainNotFound,
            format!("this domain was not issued for sandbox {id}"),
        )
        .with_hint("Use the domain that the answer to the expose call of this sandbox had."),
        StoreError::TooManyExposures(id) => ApiError::new(
            ErrorCode::ExposureLimit,
            format!("sandbox {id} has {EXPOSURES_PER_SANDBOX_MAX} exposures, the most it may have"),
        )
        .with_hint("Take one back, or bind one that it has to another port."),
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
    match &error {
        NodeError::NotReady(_) | NodeError::NoSuchSandbox(_) | NodeError::InUse(_) => {
            tracing::info!(object, %error, "the node refused");
        }
        NodeError::PoolFull(_)
        | NodeError::NoSuchImage(_)
        | NodeError::TimedOut { .. }
        | NodeError::Failed { .. } => {
            tracing::error!(object, error = %Chain(&error), "the node failed");
        }
    }
    match error {
        NodeError::NotReady(why) => not_ready(&why),
        NodeError::NoSuchSandbox(id) => sandbox_not_found(id),
        NodeError::PoolFull(_) => ApiError::new(
            ErrorCode::PoolFull,
            format!("the storage pool has no room for {object}"),
        )
        .with_hint(
            "Delete volumes and snapshots that are no longer needed, or enlarge the pool. What is \
             deleted takes room until its grace period is over.",
        ),
        NodeError::InUse(image) => ApiError::new(
            ErrorCode::VolumeIsMounted,
            format!("{image} is in use by a sandbox"),
        )
        .with_hint("Try again when that sandbox has ended."),
        NodeError::TimedOut { .. } => ApiError::new(
            ErrorCode::TimedOut,
            format!("handling {object} took too long"),
        )
        .with_hint("The server's log names the step."),
        NodeError::NoSuchImage(_) | NodeError::Failed { .. } => internal(object),
    }
}

pub(super) fn not_ready(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotReady,
        format!("the server cannot do this yet: {why}"),
    )
    .with_hint("Try again in a moment.")
}

/// A client's own text, cut so that it can be repeated to it.
pub(super) fn shortened(name: &str) -> String {
    match name.char_indices().nth(NAME_MAX_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
