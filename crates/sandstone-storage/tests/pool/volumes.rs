//! Volumes keep their data, their size and their one writer.

use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatVfsMountFlags, fstat, fstatvfs, unlinkat};
use sandstone_storage::{Backing, ImageKind, StorageError, VolumeUse};

use crate::fixture::{Fixture, LIMIT, MIB, SMALL, entries, read, run, volume, write};

#[test]
fn a_volume_keeps_its_data() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    assert!(
        matches!(pool.backing(), Backing::File(_)),
        "/var/tmp has no reflinks here"
    );
    pool.create_volume("first", SMALL).unwrap();
    pool.create_volume("first", SMALL).unwrap();
    assert_eq!(pool.images(ImageKind::Volume).unwrap(), ["first"]);

    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    assert!(
        entries(&mount).is_empty(),
        "a fresh volume is empty: no lost+found"
    );
    write(&mount, "hello", b"Persist me!").unwrap();
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    pool.release_volume("first", LIMIT).unwrap();
    assert!(!pool.is_attached("first").unwrap());

    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    assert_eq!(read(&mount, "hello"), b"Persist me!");
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    pool.remove_image(volume("first")).unwrap();
    pool.remove_image(volume("first")).unwrap();
    pool.release_volume("first", LIMIT).unwrap();
    assert!(pool.images(ImageKind::Volume).unwrap().is_empty());
}

#[test]
fn a_volume_belongs_to_the_user_and_brings_no_privileges() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", SMALL).unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    let status = fstat(&mount).unwrap();
    assert_eq!((status.st_uid, status.st_gid), (1000, 1000));
    let flags = fstatvfs(&mount).unwrap().f_flag;
    assert!(flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV));
    assert!(!flags.intersects(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOEXEC));
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    let root = pool.attach_volume("first", VolumeUse::Root).unwrap();
    let flags = fstatvfs(&root).unwrap().f_flag;
    assert!(flags.contains(StatVfsMountFlags::NODEV));
    assert!(!flags.intersects(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NOSUID));
    drop(root);
    pool.release_volume("first", LIMIT).unwrap();
}

#[test]
fn there_is_one_writer() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", SMALL).unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    assert!(pool.is_attached("first").unwrap());
    let attached = |error| matches!(error, StorageError::AlreadyAttached { .. });
    assert!(attached(
        pool.attach_volume("first", VolumeUse::Data).unwrap_err()
    ));
    assert!(attached(pool.remove_image(volume("first")).unwrap_err()));
    let held = pool
        .release_volume("first", Duration::from_millis(20))
        .unwrap_err();
    assert!(matches!(held, StorageError::StillHeld { .. }), "{held}");
    assert!(held.to_string().contains("/dev/loop"), "{held}");
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();

    // Devices that others made of the image count too.
    let device = run(Command::new("losetup")
        .args(["--find", "--show"])
        .arg(fixture.image("volumes", "first")));
    let refused = pool.attach_volume("first", VolumeUse::Data);
    run(Command::new("losetup").args(["--detach", device.trim()]));
    assert!(attached(refused.unwrap_err()));
    pool.release_volume("first", LIMIT).unwrap();
}

#[test]
fn of_many_attaches_at_once_one_succeeds() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    for _ in 0..5 {
        let mounts: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(|| {
                        pool.create_volume("first", SMALL).unwrap();
                        pool.attach_volume("first", VolumeUse::Data)
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap().ok())
                .collect()
        });
        assert_eq!(mounts.len(), 1);
        assert_eq!(fixture.loop_devices("first"), 1);
        drop(mounts);
        pool.release_volume("first", LIMIT).unwrap();
    }
    assert_eq!(pool.images(ImageKind::Volume).unwrap(), ["first"]);
}

#[test]
fn a_volume_is_full_at_its_capacity_and_gives_room_back() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("small", SMALL).unwrap();
    let mount = pool.attach_volume("small", VolumeUse::Data).unwrap();
    let error = write(&mount, "big", &vec![7; 320_000_000]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(pool.measure(volume("small")).unwrap().allocated > 200 * MIB);
    unlinkat(mount.as_fd(), "big", AtFlags::empty()).unwrap();
    // ext4 gives room back behind our backs once the journal has committed: until then a full file
    // system stays full. What it has not given back when it is unmounted stays taken until it is
    // written or trimmed again.
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = write(&mount, "fits", &vec![7; 1_000_000]) {
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(Instant::now() < deadline, "the file system stays full");
        thread::sleep(Duration::from_millis(20));
    }
    while pool.measure(volume("small")).unwrap().allocated >= 50 * MIB {
        assert!(Instant::now() < deadline, "the room does not come back");
        thread::sleep(Duration::from_millis(20));
    }
    drop(mount);
    pool.release_volume("small", LIMIT).unwrap();
}

#[test]
fn an_image_left_by_a_crash_is_replayed() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("live", SMALL).unwrap();
    let mount = pool.attach_volume("live", VolumeUse::Data).unwrap();
    for number in 0..50_u8 {
        write(&mount, &format!("file{number}"), &[number; 5000]).unwrap();
    }
    fixture.clone_image("live", "crashed");
    let after = pool.attach_volume("crashed", VolumeUse::Data).unwrap();
    assert_eq!(entries(&after).len(), 50);
    for number in 0..50_u8 {
        assert_eq!(read(&after, &format!("file{number}")), [number; 5000]);
    }
    drop((mount, after));
    for name in ["live", "crashed"] {
        pool.release_volume(name, LIMIT).unwrap();
        run(Command::new("e2fsck")
            .args(["-f", "-n"])
            .arg(fixture.image("volumes", name)));
    }
}

#[test]
fn wrong_requests_are_refused() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    for name in ["../volumes/first", "", "a/b"] {
        let error = pool.create_volume(name, SMALL).unwrap_err();
        assert!(matches!(error, StorageError::Name(_)), "{error}");
    }
    assert!(matches!(
        pool.attach_volume("none", VolumeUse::Data),
        Err(StorageError::Missing(_))
    ));
    assert!(matches!(
        pool.measure(volume("none")),
        Err(StorageError::Missing(_))
    ));
    pool.create_volume("first", SMALL).unwrap();
    assert!(matches!(
        pool.create_volume("first", 2 * SMALL),
        Err(StorageError::OtherCapacity { .. })
    ));
    // The file system does not fit: nothing is left.
    assert!(matches!(
        pool.create_volume("tiny", 4096),
        Err(StorageError::Tool { .. })
    ));
    assert_eq!(pool.images(ImageKind::Volume).unwrap(), ["first"]);
    let files = std::fs::read_dir(fixture.config.dir.join("volumes")).unwrap();
    assert_eq!(files.count(), 1);
}
