//! Builds the agent as a static binary and leaves its path in `SANDSTONE_AGENT`, so that one
//! `cargo build` of the node makes one file that holds everything.
//!
//! A nested cargo with its own target directory: the agent needs other flags (`+crt-static`) than
//! the rest, and cargo cannot set those for one package of a build.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest_dir = PathBuf::from(required("CARGO_MANIFEST_DIR"));
    let crates = manifest_dir.join("..");
    let target_dir = PathBuf::from(required("OUT_DIR")).join("agent");
    for watched in [
        "sandstone-agent/src",
        "sandstone-agent/Cargo.toml",
        "sandstone-protocol/src",
    ] {
        println!("cargo::rerun-if-changed={}", crates.join(watched).display());
    }

    let mut cargo = Command::new(required("CARGO"));
    cargo
        .args([
            "build",
            "--package",
            "sandstone-agent",
            "--bin",
            "sandstone-agent",
        ])
        .args([
            "--profile",
            "agent",
            "--target",
            TARGET,
            "--locked",
            "--target-dir",
        ])
        .arg(&target_dir)
        .args([
            "--config",
            r#"build.rustflags=["-Ctarget-feature=+crt-static"]"#,
        ])
        .current_dir(&crates);
    // What the outer cargo tells its compilers must not reach the inner one.
    for (name, _) in env::vars() {
        let inner = [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
        ];
        if inner.contains(&name.as_str())
            || name.starts_with("CARGO_FEATURE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_PROFILE_")
        {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("cargo runs, it runs this script");
    assert!(
        status.success(),
        "the agent did not build; its errors are above"
    );

    let agent = target_dir.join(TARGET).join("agent/sandstone-agent");
    println!("cargo::rustc-env=SANDSTONE_AGENT={}", agent.display());
}

#[expect(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts by variables"
)]
fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
