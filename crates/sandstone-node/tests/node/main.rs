//! A real node on this host, without a server: volumes, snapshots, sandboxes, a full pool,
//! restart. Needs root and the base image, which it builds into the host's cache when it is
//! missing.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test with a main of its own; clippy takes it for a program"
)]

mod harness;
mod roots;
mod space;
mod volumes;

use std::path::Path;
use std::process::ExitCode;

use harness::DATA_DIR;
use sandstone_node_api::NodeApi;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("shim") {
        return sandstone_node::shim_main();
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "this test runs sandboxes: run as root"
    );
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let directory = Path::new(DATA_DIR);
    // Dropping a runtime ends its node in the middle of everything, as a crash does.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let left = runtime.block_on(volumes::a_volume_outlives_its_sandbox(directory));
    drop(runtime);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = harness::start(directory, 1).await;
        volumes::a_new_node_finds_what_an_old_one_left(&node, left).await;
        roots::a_bootable_volume_is_a_machine_of_its_own(&node).await;
        space::writers_wait_for_room(&node).await;
        node.shut_down().await.unwrap();
        assert!(
            node.sandboxes().await.is_err(),
            "a node that was shut down does nothing"
        );
    });
    std::fs::remove_dir_all(directory).unwrap();
    println!("test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
    ExitCode::SUCCESS
}
