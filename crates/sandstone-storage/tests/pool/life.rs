//! The pool's own life: made, closed, killed and taken up again.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sandstone_storage::{ImageKind, Pool, StorageError, VolumeUse};

use crate::fixture::{Fixture, LIMIT, MIB, SMALL, read, run, write};

#[test]
fn a_pool_is_reserved_closed_and_opened_again() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let space = pool.space().unwrap();
    assert!(space.total > 900 * MIB && space.free <= space.total);
    assert!(space.free > 800 * MIB, "{space:?}");
    let reserved = rustix::fs::stat(fixture.file()).unwrap().st_blocks * 512;
    assert!(reserved as u64 >= 1024 * MIB, "{reserved}");
    pool.create_volume("kept", SMALL).unwrap();
    pool.close().unwrap();
    assert_eq!(fixture.loop_devices(""), 0);
    assert_eq!(fs::read_dir(&fixture.config.dir).unwrap().count(), 0);
    assert_eq!(fixture.open().images(ImageKind::Volume).unwrap(), ["kept"]);
}

#[test]
fn a_pool_is_taken_up_again_after_a_crash() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("kept", SMALL).unwrap();
    let mount = pool.attach_volume("kept", VolumeUse::Data).unwrap();
    let leftover = fixture.config.dir.join("volumes/.half.img.1-0.new");
    fs::write(&leftover, b"").unwrap();
    drop(pool);

    let pool = fixture.open();
    assert!(!leftover.exists());
    assert!(pool.is_attached("kept").unwrap());
    assert!(matches!(
        pool.attach_volume("kept", VolumeUse::Data),
        Err(StorageError::AlreadyAttached { .. })
    ));
    let refused = pool.close().unwrap_err().to_string();
    assert!(refused.contains("volumes/kept.img"), "{refused}");
    write(&mount, "after", b"x").unwrap();
    drop(mount);
    pool.release_volume("kept", LIMIT).unwrap();
    pool.close().unwrap();
    assert_eq!(fixture.loop_devices(""), 0);
}

#[test]
fn a_pool_that_lives_on_elsewhere_gets_no_second_device() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("kept", SMALL).unwrap();
    let held = pool.attach_volume("kept", VolumeUse::Data).unwrap();
    drop(pool);
    // As when the namespace of a dead server has gone, but its sandboxes have not.
    unmount(&fixture.config.dir, UnmountFlags::DETACH).unwrap();

    let pool = fixture.open();
    assert_eq!(fixture.loop_devices("pool.img"), 1);
    assert!(pool.is_attached("kept").unwrap());
    write(&held, "still", b"works").unwrap();
    drop(held);
    pool.release_volume("kept", LIMIT).unwrap();
    let mount = pool.attach_volume("kept", VolumeUse::Data).unwrap();
    assert_eq!(read(&mount, "still"), b"works");
    drop(mount);
    pool.release_volume("kept", LIMIT).unwrap();
}

#[test]
fn a_half_made_pool_is_made_again() {
    let fixture = Fixture::new();
    let parent = fixture.config.dir.parent().unwrap();
    let half = parent.join(".pool.img.1-0.new");
    fs::write(&half, b"half").unwrap();
    let other = parent.join(".something.new");
    fs::write(&other, b"another's").unwrap();
    fixture.open().create_volume("first", SMALL).unwrap();
    assert!(!half.exists());
    assert!(other.exists());
}

#[test]
fn a_pool_in_use_says_by_whom() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let open = File::create(fixture.config.dir.join("stranger")).unwrap();
    let error = pool.close().unwrap_err();
    assert!(matches!(error, StorageError::InUse(_)), "{error}");
    let pid = format!("({})", std::process::id());
    assert!(error.to_string().contains(&pid), "{error}");
    drop(open);
    pool.close().unwrap();
}

#[test]
fn a_pool_does_not_mix_with_other_mounts() {
    let fixture = Fixture::new();
    fixture.open().close().unwrap();
    let dir = &fixture.config.dir;
    mount("none", dir, "tmpfs", MountFlags::empty(), None).unwrap();
    let refused = Pool::open(fixture.config.clone());
    unmount(dir, UnmountFlags::empty()).unwrap();
    assert!(
        matches!(refused, Err(StorageError::Foreign { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_pool_that_does_not_fit_is_refused() {
    let fixture = Fixture::new();
    let mut config = fixture.config.clone();
    config.file_bytes = 1 << 50;
    let error = Pool::open(config).unwrap_err();
    assert!(matches!(error, StorageError::NoRoom { .. }), "{error}");
    assert!(!fixture.file().exists());
}

#[test]
fn a_directory_with_reflinks_needs_no_file() {
    let fixture = Fixture::new();
    // The file system inside one pool carries another.
    let outer = fixture.open();
    let dir = fixture.config.dir.join("inner");
    let config = sandstone_storage::PoolConfig { dir, file_bytes: 0 };
    let pool = Pool::open(config).unwrap();
    assert_eq!(*pool.backing(), sandstone_storage::Backing::Reflink);
    pool.create_volume("first", SMALL).unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    write(&mount, "file", b"x").unwrap();
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    pool.close().unwrap();
    outer.close().unwrap();
}

#[test]
fn a_pool_survives_being_cut_off() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("kept", SMALL).unwrap();
    let mount = pool.attach_volume("kept", VolumeUse::Data).unwrap();
    write(&mount, "file", b"acknowledged").unwrap();
    // What is in the file now is what a power cut would leave, apart from volatile caches.
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let copy = directory.path().join("pool.img");
    run(Command::new("cp")
        .arg("--sparse=always")
        .arg(fixture.file())
        .arg(&copy));
    drop(mount);
    pool.release_volume("kept", LIMIT).unwrap();
    // Two file systems with one UUID cannot be mounted at once.
    pool.close().unwrap();

    let config = sandstone_storage::PoolConfig {
        dir: Path::new(&copy).with_extension(""),
        file_bytes: 0,
    };
    let pool = Pool::open(config).unwrap();
    let mount = pool.attach_volume("kept", VolumeUse::Data).unwrap();
    assert_eq!(read(&mount, "file"), b"acknowledged");
    drop(mount);
    pool.release_volume("kept", LIMIT).unwrap();
    pool.close().unwrap();
}
