//! Writers held up, and a pool that is full.

use std::fs::{self, File};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sandstone_storage::{ImageKind, StorageError, VolumeUse};

use crate::fixture::{
    Fixture, LIMIT, MIB, SMALL, read, read_volume, snapshot, volume, write, write_volume,
};

/// Long enough for a write that is not held up.
const MOMENT: Duration = Duration::from_millis(300);

#[test]
fn held_writers_wait_and_go_on() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    for name in ["first", "second", "third"] {
        pool.create_volume(name, SMALL).unwrap();
    }
    let first = pool.attach_volume("first", VolumeUse::Data).unwrap();
    let second = pool.attach_volume("second", VolumeUse::Data).unwrap();
    let layer = pool.create_scratch("layer", 64 * MIB).unwrap();
    write(&first, "before", b"x").unwrap();
    assert_eq!(pool.hold_writers().unwrap(), 3);
    assert_eq!(pool.hold_writers().unwrap(), 3);
    let written = [const { AtomicBool::new(false) }; 3];
    thread::scope(|scope| {
        for (mount, done) in [&first, &second, &layer].into_iter().zip(&written) {
            scope.spawn(move || {
                write(mount, "during", b"y").unwrap();
                done.store(true, Ordering::SeqCst);
            });
        }
        thread::sleep(MOMENT);
        let state = || written.each_ref().map(|done| done.load(Ordering::SeqCst));
        assert_eq!(state(), [false; 3]);
        assert_eq!(read(&first, "before"), b"x");
        // A snapshot of what is held is consistent, and leaves it held.
        let copied = pool.create_snapshot("held", "first").unwrap();
        assert!(
            copied.frozen_or_idle && copied.stall == Duration::ZERO,
            "{copied:?}"
        );
        pool.measure(volume("first")).unwrap();
        // What is to end is thawed alone.
        pool.thaw_volume("second").unwrap();
        pool.thaw_volume("third").unwrap();
        pool.thaw_scratch("layer").unwrap();
        pool.thaw_scratch("none").unwrap();
        while state() != [false, true, true] {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(MOMENT);
        assert_eq!(state(), [false, true, true]);
        assert_eq!(pool.resume_writers().unwrap(), 1);
        assert_eq!(pool.resume_writers().unwrap(), 0);
    });
    fixture.check("snapshots", "held");
    drop((first, second, layer));
    for name in ["first", "second"] {
        pool.release_volume(name, LIMIT).unwrap();
        assert_eq!(read_volume(&pool, name, "during"), b"y");
    }
    pool.release_scratch("layer", LIMIT).unwrap();
}

#[test]
fn what_is_held_can_be_released() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", SMALL).unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    write(&mount, "file", b"x").unwrap();
    assert_eq!(pool.hold_writers().unwrap(), 1);
    // Its last user dies while it is frozen.
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    assert_eq!(read_volume(&pool, "first", "file"), b"x");
    assert_eq!(pool.resume_writers().unwrap(), 0);
}

#[test]
fn a_server_thaws_what_the_one_before_left_frozen() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    for name in ["first", "second"] {
        pool.create_volume(name, SMALL).unwrap();
    }
    let first = pool.attach_volume("first", VolumeUse::Data).unwrap();
    let second = pool.attach_volume("second", VolumeUse::Data).unwrap();
    assert_eq!(pool.hold_writers().unwrap(), 2);
    // The server dies, and so does one of the sandboxes.
    drop((pool, second));
    let pool = fixture.open();
    assert!(pool.is_attached("second").unwrap(), "frozen, it lives on");
    assert_eq!(
        pool.thaw_all().unwrap(),
        ["volumes/first", "volumes/second"]
    );
    assert!(pool.thaw_all().unwrap().is_empty());
    write(&first, "file", b"x").unwrap();
    drop(first);
    for name in ["first", "second"] {
        pool.release_volume(name, LIMIT).unwrap();
    }
}

#[test]
fn holding_and_snapshots_do_not_fight() {
    let fixture = Fixture::new();
    let pool = fixture.open().with_freeze_limit(Duration::from_millis(1));
    pool.create_volume("first", SMALL).unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (pool, stop) = (&pool, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                pool.hold_writers().unwrap();
                pool.resume_writers().unwrap();
            }
        });
        for thread in 0..2 {
            scope.spawn(move || {
                for round in 0..15 {
                    let name = format!("snap{thread}x{round}");
                    pool.create_snapshot(&name, "first").unwrap();
                }
                stop.store(true, Ordering::SeqCst);
            });
        }
    });
    pool.resume_writers().unwrap();
    // Nobody left it frozen.
    assert!(pool.thaw_all().unwrap().is_empty());
    write(&mount, "file", b"x").unwrap();
    drop(mount);
    pool.release_volume("first", LIMIT).unwrap();
    for name in pool.images(ImageKind::Snapshot).unwrap() {
        fixture.check("snapshots", &name);
    }
}

/// Takes all of the pool's room.
fn fill(fixture: &Fixture) {
    let filler = fixture.config.dir.join("filler");
    let mut file = File::create(filler).unwrap();
    let mut size = 8 << 20;
    while size >= 4096 {
        match file
            .write_all(&vec![7; size])
            .and_then(|()| file.sync_data())
        {
            Ok(()) => {}
            Err(_) => size /= 2,
        }
    }
}

#[test]
fn a_full_pool_makes_nothing_by_halves() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.install_base("base", &fixture.base()).unwrap();
    pool.create_volume("first", SMALL).unwrap();
    write_volume(&pool, "first", "file", &vec![1; 4 << 20]);
    pool.create_snapshot("snap", "first").unwrap();
    fill(&fixture);
    let full = |error: &StorageError| matches!(error, StorageError::Full(_));
    let refused = [
        pool.create_volume("new", SMALL).unwrap_err(),
        pool.create_volume_from_base("new", SMALL, "base")
            .unwrap_err(),
        pool.create_scratch("new", SMALL).unwrap_err(),
        pool.fork("new", 30 * SMALL, snapshot("snap")).unwrap_err(),
        pool.grow_volume("first", 30 * SMALL).unwrap_err(),
        pool.pack_snapshot("snap").unwrap_err(),
    ];
    for error in refused {
        assert!(full(&error), "{error}");
    }
    let left = |directory: &str| {
        fs::read_dir(fixture.config.dir.join(directory))
            .unwrap()
            .count()
    };
    assert_eq!(
        (left("volumes"), left("snapshots"), left("scratch")),
        (1, 1, 0)
    );

    fs::remove_file(fixture.config.dir.join("filler")).unwrap();
    fixture.check("volumes", "first");
    pool.grow_volume("first", 30 * SMALL).unwrap();
    pool.fork("new", SMALL, snapshot("snap")).unwrap();
    assert!(read_volume(&pool, "new", "file") == vec![1; 4 << 20]);
}
