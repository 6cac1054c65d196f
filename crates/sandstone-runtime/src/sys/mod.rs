//! The system calls that `rustix` lacks. One facility a file, safe signatures.

pub(crate) mod clone;
pub(crate) mod exec;
pub(crate) mod mount_attr;
pub(crate) mod seccomp;
