//! System calls that rustix does not offer in a safe form.
#![expect(
    unsafe_code,
    reason = "fork, exec, per-thread file identities and inherited descriptors have no safe wrapper"
)]

mod fork;
mod identity;
mod inherited;
mod process;

pub(crate) use fork::{Program, StartFailure, Step, Streams};
pub(crate) use identity::{Identity, assume_file_identity, assume_identity};
pub use inherited::{InheritedDescriptors, inherited_descriptors};
pub(crate) use process::{keep_exit_statuses, next_exited, send_signal};
