//! The control plane over a real store and a node that exists only in memory.

mod chaos;
mod harness;
mod jobs;
mod node;
mod recovery;
mod sandboxes;
mod stops;
mod volumes;
