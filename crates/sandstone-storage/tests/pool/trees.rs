//! Trees that many share: bases and snapshots. And volumes made from bases.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::fs::fstatvfs;
use sandstone_storage::{Pool, StorageError, VolumeUse};

use crate::fixture::{
    Fixture, LIMIT, MIB, entries, read, read_volume, run, snapshot, write, write_volume,
};

/// A pool with the base `base` and the snapshot `snap` of the volume `first`.
fn pool_with_both(fixture: &Fixture) -> Pool {
    let pool = fixture.open();
    pool.install_base("base", &fixture.base()).unwrap();
    pool.create_volume("first", 64 * MIB).unwrap();
    write_volume(&pool, "first", "file", b"x");
    pool.create_snapshot("snap", "first").unwrap();
    pool
}

fn device(tree: &OwnedFd) -> u64 {
    rustix::fs::fstat(tree).unwrap().st_dev
}

#[test]
fn a_tree_is_read_only_and_mounted_once() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    assert!(!pool.has_base("base") && !pool.has_base("../base"));
    let missing = |error| matches!(error, StorageError::Missing(_));
    assert!(missing(pool.base_tree("base").unwrap_err()));
    assert!(missing(pool.snapshot_tree("snap").unwrap_err()));
    drop(pool);
    let pool = pool_with_both(&fixture);
    pool.install_base("base", &fixture.base()).unwrap();

    let trees: Vec<_> = (0..5)
        .flat_map(|_| {
            [
                (pool.base_tree("base").unwrap(), "etc"),
                (pool.snapshot_tree("snap").unwrap(), "file"),
            ]
        })
        .collect();
    assert_eq!(fixture.loop_devices("bases/"), 1);
    assert_eq!(fixture.loop_devices("snapshots/"), 1);
    for (tree, name) in &trees {
        assert_eq!(entries(tree), [*name]);
        let refused = write(tree, "new", b"x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        let flags = fstatvfs(tree).unwrap().f_flag;
        assert!(flags.contains(rustix::fs::StatVfsMountFlags::NODEV));
    }
}

#[test]
fn a_tree_is_taken_up_again_by_the_next_server() {
    let fixture = Fixture::new();
    let pool = pool_with_both(&fixture);
    let base = pool.base_tree("base").unwrap();
    let snap = pool.snapshot_tree("snap").unwrap();
    drop(pool);
    let pool = fixture.open();
    assert_eq!(device(&pool.base_tree("base").unwrap()), device(&base));
    assert_eq!(device(&pool.snapshot_tree("snap").unwrap()), device(&snap));
    assert_eq!(fixture.loop_devices("bases/"), 1);
    assert_eq!(fixture.loop_devices("snapshots/"), 1);
}

#[test]
fn idle_trees_are_dropped_and_used_ones_found_again() {
    let fixture = Fixture::new();
    let pool = pool_with_both(&fixture);
    let used = pool.snapshot_tree("snap").unwrap();
    drop(pool.base_tree("base").unwrap());
    pool.drop_idle_trees(Duration::from_secs(3600));
    assert_eq!(fixture.loop_devices("bases/"), 1);
    pool.drop_idle_trees(Duration::ZERO);
    while fixture.loop_devices("bases/") > 0 {
        std::thread::yield_now();
    }
    assert_eq!(fixture.loop_devices("snapshots/"), 1);
    assert_eq!(read(&used, "file"), b"x");
    assert_eq!(device(&pool.snapshot_tree("snap").unwrap()), device(&used));
    assert_eq!(fixture.loop_devices("snapshots/"), 1);
    // Asked for and let go of as fast as possible: never a dying device.
    drop(used);
    for _ in 0..20 {
        assert_eq!(read(&pool.snapshot_tree("snap").unwrap(), "file"), b"x");
        pool.drop_idle_trees(Duration::ZERO);
    }
}

#[test]
fn a_snapshot_in_use_is_not_removed() {
    let fixture = Fixture::new();
    let pool = pool_with_both(&fixture);
    let tree = pool.snapshot_tree("snap").unwrap();
    let refused = pool.remove_image(snapshot("snap")).unwrap_err();
    assert!(
        matches!(refused, StorageError::AlreadyAttached { .. }),
        "{refused}"
    );
    drop(tree);
    // The pool's own mount does not count.
    drop(pool.snapshot_tree("snap").unwrap());
    pool.remove_image(snapshot("snap")).unwrap();
    pool.remove_image(snapshot("snap")).unwrap();
    assert!(matches!(
        pool.snapshot_tree("snap"),
        Err(StorageError::Missing(_))
    ));
}

#[test]
fn a_volume_from_a_base_is_a_root() {
    let fixture = Fixture::new();
    let pool = pool_with_both(&fixture);
    let capacity = 300_000_000;
    for name in ["boot", "again"] {
        pool.create_volume_from_base(name, capacity, "base")
            .unwrap();
        pool.create_volume_from_base(name, capacity, "base")
            .unwrap();
        let root = pool.attach_volume(name, VolumeUse::Root).unwrap();
        assert_eq!(entries(&root), ["etc"]);
        assert_eq!(read(&root, "etc/release"), b"tiny");
        let space = fstatvfs(&root).unwrap();
        assert!(space.f_blocks * space.f_frsize > 250_000_000);
        write(&root, "etc/release", name.as_bytes()).unwrap();
        drop(root);
        pool.release_volume(name, LIMIT).unwrap();
        let features = run(Command::new("dumpe2fs")
            .arg("-h")
            .arg(fixture.image("volumes", name)));
        assert!(features.contains("has_journal"), "{features}");
        fixture.check("volumes", name);
    }
    assert_eq!(
        read(&pool.base_tree("base").unwrap(), "etc/release"),
        b"tiny"
    );

    // A bootable volume's snapshot boots, and its fork too.
    pool.create_snapshot("booted", "boot").unwrap();
    let tree = pool.snapshot_tree("booted").unwrap();
    assert_eq!(read(&tree, "etc/release"), b"boot");
    pool.fork("fork", 2 * capacity, snapshot("booted")).unwrap();
    assert_eq!(read_volume(&pool, "fork", "etc/release"), b"boot");

    assert!(matches!(
        pool.create_volume_from_base("none", capacity, "other"),
        Err(StorageError::Missing(_))
    ));
    assert!(matches!(
        pool.create_volume_from_base("none", MIB, "base"),
        Err(StorageError::Smaller { .. })
    ));
    assert!(matches!(
        pool.create_volume_from_base("boot", 2 * capacity, "base"),
        Err(StorageError::OtherCapacity { .. })
    ));
}

#[test]
fn templates_do_not_pile_up() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.install_base("base", &fixture.base()).unwrap();
    let templates = || {
        fs::read_dir(fixture.config.dir.join("skeleton"))
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_str().unwrap().ends_with(".img")
            })
            .count()
    };
    for number in 0..10 {
        let capacity = (64 + number) * MIB;
        pool.create_volume_from_base(&format!("v{number}"), capacity, "base")
            .unwrap();
        // In use all the time, so it stays.
        pool.create_volume_from_base(&format!("w{number}"), 64 * MIB, "base")
            .unwrap();
    }
    assert_eq!(templates(), 8);
    assert!(
        fixture
            .config
            .dir
            .join(format!("skeleton/bootable-base-{}.img", 64 * MIB))
            .exists()
    );
}

#[test]
fn a_base_from_another_file_system_is_copied_with_its_holes() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let source = fixture.base();
    run(Command::new("truncate").args(["-s", "512M"]).arg(&source));
    run(Command::new("resize2fs").arg("-f").arg(&source));
    pool.install_base("base", &source).unwrap();
    let installed = fixture.image("bases", "base");
    run(Command::new("cmp").arg(&source).arg(&installed));
    let status = rustix::fs::stat(&installed).unwrap();
    assert!(status.st_blocks * 512 < 100 << 20, "{status:?}");
    assert_eq!(entries(&pool.base_tree("base").unwrap()), ["etc"]);
}
