//! The control plane over a real store and a node that exists only in memory.

mod care;
mod chaos;
mod crashes;
mod deletion;
mod forks;
mod growing;
mod harness;
mod jobs;
mod node;
mod pool;
mod recovery;
mod sandboxes;
mod snapshots;
mod stops;
mod volumes;
