//! The store against a real file, one database per test.

mod attachment;
mod care;
mod exposure;
mod fixture;
mod grow;
mod history;
mod image;
mod measure;
mod migration;
mod network;
mod organisation;
mod purge;
mod race;
mod restore;
mod root;
mod sandbox;
mod schema;
mod snapshot;
mod source;
mod ssh_user;
mod volume;
