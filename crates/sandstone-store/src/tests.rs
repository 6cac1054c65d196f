//! The store against a real file, one database per test.

mod fixture;
mod history;
mod organisation;
mod race;
mod sandbox;
mod schema;
mod volume;
