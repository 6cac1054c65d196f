//! System calls that rustix does not offer, one module per facility.

pub(crate) mod extent_hint;
pub(crate) mod fiemap;
pub(crate) mod freeze;
pub(crate) mod loop_device;
pub(crate) mod mount;
