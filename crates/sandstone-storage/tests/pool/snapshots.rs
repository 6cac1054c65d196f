//! Snapshots and forks of volumes, attached or not; larger capacities.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, fstatvfs, openat, unlinkat};
use sandstone_storage::{ImageKind, Pool, StorageError, VolumeUse};

use crate::fixture::{
    Fixture, LIMIT, MIB, SMALL, entries, read, read_volume, run, snapshot, volume, write,
    write_volume,
};

fn mode(fixture: &Fixture, kind: &str, name: &str) -> u32 {
    rustix::fs::stat(fixture.image(kind, name)).unwrap().st_mode & 0o777
}

/// The size that `df` would show.
fn size_of_volume(pool: &Pool, name: &str) -> u64 {
    let mount = pool.attach_volume(name, VolumeUse::Data).unwrap();
    let space = fstatvfs(&mount).unwrap();
    drop(mount);
    pool.release_volume(name, LIMIT).unwrap();
    space.f_blocks * space.f_frsize
}

#[test]
fn a_snapshot_keeps_what_was() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", SMALL).unwrap();
    write_volume(&pool, "first", "file", b"before");
    let copied = pool.create_snapshot("snap", "first").unwrap();
    assert!(copied.frozen_or_idle && copied.stall == Duration::ZERO);
    assert_eq!(pool.images(ImageKind::Snapshot).unwrap(), ["snap"]);
    assert_eq!(mode(&fixture, "snapshots", "snap"), 0o400);
    assert_eq!(
        fs::metadata(fixture.image("snapshots", "snap"))
            .unwrap()
            .len(),
        SMALL.next_multiple_of(4096)
    );
    run(Command::new("cmp")
        .arg(fixture.image("snapshots", "snap"))
        .arg(fixture.image("volumes", "first")));
    write_volume(&pool, "first", "file", b"after");
    // Repeated, nothing is taken again.
    pool.create_snapshot("snap", "first").unwrap();
    let tree = pool.snapshot_tree("snap").unwrap();
    assert_eq!(read(&tree, "file"), b"before");
    drop(tree);

    pool.fork("fork", SMALL, snapshot("snap")).unwrap();
    pool.fork("fork", SMALL, snapshot("snap")).unwrap();
    assert_eq!(mode(&fixture, "volumes", "fork"), 0o600);
    assert_eq!(read_volume(&pool, "fork", "file"), b"before");
    pool.fork("fork-of-volume", SMALL, volume("first")).unwrap();
    assert_eq!(read_volume(&pool, "fork-of-volume", "file"), b"after");
}

#[test]
fn a_snapshot_of_a_busy_volume_has_all_that_was_synced() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("busy", SMALL).unwrap();
    let mount = pool.attach_volume("busy", VolumeUse::Data).unwrap();
    let (stop, written) = (AtomicBool::new(false), AtomicU32::new(0));
    let mut counts = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0_u32.. {
                if stop.load(Ordering::SeqCst) || number == 20_000 {
                    return;
                }
                write(&mount, &format!("file{number}"), &number.to_le_bytes()).unwrap();
                written.store(number + 1, Ordering::SeqCst);
            }
        });
        scope.spawn(|| {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
            let flood = openat(mount.as_fd(), "flood", flags, Mode::from_raw_mode(0o600)).unwrap();
            let data = vec![7; 1 << 20];
            for number in 0_u64.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                rustix::io::pwrite(&flood, &data, number % 64 * MIB).unwrap();
            }
        });
        while written.load(Ordering::SeqCst) < 20 {
            thread::yield_now();
        }
        for round in 0..4 {
            let before = written.load(Ordering::SeqCst);
            let copied = if round % 2 == 0 {
                pool.create_snapshot(&format!("snap{round}"), "busy")
                    .unwrap()
            } else {
                pool.fork(&format!("fork{round}"), SMALL, volume("busy"))
                    .unwrap()
            };
            println!("{round}: {copied:?}");
            assert!(copied.stall > Duration::ZERO && copied.stall < LIMIT);
            counts.push((copied.frozen_or_idle, before));
            // Writers go on.
            while written.load(Ordering::SeqCst) < before + 5 {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    drop(mount);
    pool.release_volume("busy", LIMIT).unwrap();
    for (round, (_, before)) in counts.iter().enumerate() {
        let is_snapshot = round % 2 == 0;
        let (kind, name) = if is_snapshot {
            ("snapshots", format!("snap{round}"))
        } else {
            ("volumes", format!("fork{round}"))
        };
        fixture.check(kind, &name);
        let tree = if is_snapshot {
            pool.snapshot_tree(&name).unwrap()
        } else {
            pool.attach_volume(&name, VolumeUse::Data).unwrap()
        };
        for number in 0..*before {
            assert_eq!(read(&tree, &format!("file{number}")), number.to_le_bytes());
        }
        drop(tree);
        if !is_snapshot {
            pool.release_volume(&name, LIMIT).unwrap();
        }
    }
    assert!(counts.iter().any(|(frozen, _)| *frozen), "{counts:?}");
}

#[test]
fn what_is_not_synced_is_in_a_snapshot_too() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("live", SMALL).unwrap();
    let mount = pool.attach_volume("live", VolumeUse::Data).unwrap();
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(mount.as_fd(), "unsynced", flags, Mode::from_raw_mode(0o600)).unwrap();
    rustix::io::write(&file, b"data").unwrap();
    // A file without a name, open until after the snapshot.
    let nameless = openat(mount.as_fd(), "nameless", flags, Mode::from_raw_mode(0o600)).unwrap();
    unlinkat(mount.as_fd(), "nameless", rustix::fs::AtFlags::empty()).unwrap();
    let copied = pool.create_snapshot("snap", "live").unwrap();
    assert!(
        copied.frozen_or_idle && copied.stall > Duration::ZERO,
        "{copied:?}"
    );
    fixture.check("snapshots", "snap");
    let tree = pool.snapshot_tree("snap").unwrap();
    assert_eq!(entries(&tree), ["unsynced"]);
    assert_eq!(read(&tree, "unsynced"), b"data");
    rustix::io::write(&file, b"more").unwrap();
    drop((nameless, file, mount, tree));
    pool.release_volume("live", LIMIT).unwrap();
}

#[test]
fn a_freeze_that_takes_too_long_is_given_up() {
    let fixture = Fixture::new();
    let pool = fixture.open().with_freeze_limit(Duration::ZERO);
    pool.create_volume("live", SMALL).unwrap();
    let mount = pool.attach_volume("live", VolumeUse::Data).unwrap();
    let mut given_up = 0;
    for round in 0..12 {
        let file = format!("file{round}");
        write(&mount, &file, b"synced").unwrap();
        let name = format!("snap{round}");
        let copied = pool.create_snapshot(&name, "live").unwrap();
        given_up += u32::from(!copied.frozen_or_idle);
        fixture.check("snapshots", &name);
        let tree = pool.snapshot_tree(&name).unwrap();
        assert_eq!(read(&tree, &file), b"synced");
    }
    assert!(given_up > 0, "the watchdog never was first");
    assert!(pool.thaw_all().unwrap().is_empty());
    drop(mount);
    pool.release_volume("live", LIMIT).unwrap();
}

#[test]
fn snapshots_and_sandboxes_do_not_get_in_each_others_way() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("shared", SMALL).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // One sandbox after the other.
        scope.spawn(|| {
            for round in 0..12 {
                let mount = pool.attach_volume("shared", VolumeUse::Data).unwrap();
                write(&mount, &format!("file{round}"), b"x").unwrap();
                drop(mount);
                pool.release_volume("shared", LIMIT).unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        for thread in 0..2 {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let name = format!("snap{thread}x{round}");
                    let copied = pool.create_snapshot(&name, "shared").unwrap();
                    assert!(copied.stall < LIMIT);
                    drop(pool.snapshot_tree(&name).unwrap());
                    pool.remove_image(snapshot(&name)).unwrap();
                }
            });
        }
    });
    fixture.check("volumes", "shared");
    assert!(pool.images(ImageKind::Snapshot).unwrap().is_empty());
}

#[test]
fn a_fork_may_be_larger_and_a_volume_may_grow() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("small", SMALL).unwrap();
    write_volume(&pool, "small", "file", b"kept");
    let before = size_of_volume(&pool, "small");
    pool.create_snapshot("snap", "small").unwrap();
    pool.fork("large", 4 * SMALL, snapshot("snap")).unwrap();
    assert!(size_of_volume(&pool, "large") > before * 7 / 2);
    assert_eq!(read_volume(&pool, "large", "file"), b"kept");
    fixture.check("volumes", "large");

    // A fork of an attached volume, grown before its journal was ever replayed.
    let mount = pool.attach_volume("small", VolumeUse::Data).unwrap();
    pool.fork("other", 2 * SMALL, volume("small")).unwrap();
    let attached = pool.grow_volume("small", 2 * SMALL).unwrap_err();
    assert!(
        matches!(attached, StorageError::AlreadyAttached { .. }),
        "{attached}"
    );
    drop(mount);
    pool.release_volume("small", LIMIT).unwrap();
    assert!(size_of_volume(&pool, "other") > before * 3 / 2);

    pool.grow_volume("small", SMALL).unwrap();
    pool.grow_volume("small", 10_000_000_000).unwrap();
    pool.grow_volume("small", 10_000_000_000).unwrap();
    assert!(size_of_volume(&pool, "small") > 9_000_000_000);
    assert_eq!(read_volume(&pool, "small", "file"), b"kept");
    fixture.check("volumes", "small");
    let smaller = |error| matches!(error, StorageError::Smaller { .. });
    assert!(smaller(pool.grow_volume("small", SMALL).unwrap_err()));
    assert!(smaller(
        pool.fork("none", SMALL, volume("small")).unwrap_err()
    ));
    assert_eq!(
        pool.images(ImageKind::Volume).unwrap(),
        ["large", "other", "small"]
    );
}

#[test]
fn a_growth_that_was_cut_off_is_finished() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", SMALL).unwrap();
    write_volume(&pool, "first", "file", b"kept");
    // The file is longer, and its file system is not.
    let file = File::options()
        .write(true)
        .open(fixture.image("volumes", "first"))
        .unwrap();
    file.set_len((2 * SMALL).next_multiple_of(4096)).unwrap();
    drop(file);
    pool.grow_volume("first", 2 * SMALL).unwrap();
    assert!(size_of_volume(&pool, "first") > SMALL * 3 / 2);
    assert_eq!(read_volume(&pool, "first", "file"), b"kept");
    fixture.check("volumes", "first");
}

#[test]
fn an_image_that_waits_for_its_journal_is_replayed_first() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("live", SMALL).unwrap();
    let mount = pool.attach_volume("live", VolumeUse::Data).unwrap();
    write(&mount, "file", b"synced").unwrap();
    fixture.clone_image("live", "crashed");
    drop(mount);
    pool.release_volume("live", LIMIT).unwrap();
    let copied = pool.create_snapshot("snap", "crashed").unwrap();
    assert!(
        !copied.frozen_or_idle,
        "as after a power failure: {copied:?}"
    );
    assert_eq!(
        read(&pool.snapshot_tree("snap").unwrap(), "file"),
        b"synced"
    );
    pool.grow_volume("crashed", 2 * SMALL).unwrap();
    assert_eq!(read_volume(&pool, "crashed", "file"), b"synced");
    fixture.check("volumes", "crashed");
}

#[test]
fn copies_of_nothing_are_refused() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let missing = |error| matches!(error, StorageError::Missing(name) if name == "none");
    assert!(missing(pool.create_snapshot("snap", "none").unwrap_err()));
    assert!(missing(
        pool.fork("fork", SMALL, volume("none")).unwrap_err()
    ));
    assert!(missing(
        pool.fork("fork", SMALL, snapshot("none")).unwrap_err()
    ));
    assert!(missing(pool.grow_volume("none", SMALL).unwrap_err()));
    assert!(missing(pool.checksum_snapshot("none").unwrap_err()));
    assert!(missing(pool.pack_snapshot("none").unwrap_err()));
    let name = pool.create_snapshot("../volumes/a", "none").unwrap_err();
    assert!(matches!(name, StorageError::Name(_)), "{name}");
    for directory in ["volumes", "snapshots"] {
        let left = fs::read_dir(fixture.config.dir.join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{directory}");
    }
}
