//! Rebuilds the crate when a migration is added: the embedding macro sees only known files.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
