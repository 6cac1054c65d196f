//! Packing and checksums.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::thread;

use rustix::fs::{Mode, OFlags, fsync, openat};
use sandstone_storage::{Pool, StorageError, VolumeUse};

use crate::fixture::{Fixture, LIMIT, MIB, entries, read, snapshot, volume, write_volume};

/// A snapshot `snap` of a volume that was written here and there after it was shared.
fn fragmented(pool: &Pool) {
    pool.create_volume("first", 64 * MIB).unwrap();
    write_volume(pool, "first", "data", &vec![1; 16 << 20]);
    pool.create_snapshot("relative", "first").unwrap();
    let mount = pool.attach_volume("first", VolumeUse::Data).unwrap();
    let data = openat(mount.as_fd(), "data", OFlags::WRONLY, Mode::empty()).unwrap();
    for number in 0..500_u64 {
        // Far apart and out of order.
        rustix::io::pwrite(&data, &[2; 4096], number * 7919 % 1000 * 4 * 4096).unwrap();
        if number % 10 == 0 {
            fsync(&data).unwrap();
        }
    }
    drop((data, mount));
    pool.release_volume("first", LIMIT).unwrap();
    pool.create_snapshot("snap", "first").unwrap();
}

#[test]
fn packing_changes_extents_and_nothing_else() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    fragmented(&pool);
    let before = pool.measure(snapshot("snap")).unwrap();
    let checksum = pool.checksum_snapshot("snap").unwrap();
    assert!(before.extents > 300, "{before:?}");
    // Only its relative was written in pieces: sharing parts of an extent does not split it.
    let relative = pool.measure(snapshot("relative")).unwrap();
    assert!(relative.extents < 100, "{relative:?}");
    let tree = pool.snapshot_tree("snap").unwrap();
    let content = read(&tree, "data");

    let packed = pool.pack_snapshot("snap").unwrap();
    println!("{before:?} packed: {packed:?}");
    assert!(packed.extents < before.extents / 5, "{packed:?}");
    assert_eq!(packed.allocated, packed.flattened);
    assert_eq!(pool.checksum_snapshot("snap").unwrap(), checksum);
    fixture.check("snapshots", "snap");
    let mode = rustix::fs::stat(fixture.image("snapshots", "snap"))
        .unwrap()
        .st_mode;
    assert_eq!(mode & 0o777, 0o400);

    // Who has the old one keeps it; who comes later gets the new one.
    assert!(read(&tree, "data") == content);
    let after = pool.snapshot_tree("snap").unwrap();
    let device = |tree| rustix::fs::fstat(tree).unwrap().st_dev;
    assert_ne!(device(&tree), device(&after));
    assert!(read(&after, "data") == content);
    assert_eq!(entries(&after), entries(&tree));
    drop((tree, after));
    pool.remove_image(snapshot("snap")).unwrap();
    assert!(read(&pool.snapshot_tree("relative").unwrap(), "data") == vec![1; 16 << 20]);
}

#[test]
fn damage_changes_the_checksum() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", 64 * MIB).unwrap();
    write_volume(&pool, "first", "data", &vec![1; 4 << 20]);
    pool.create_snapshot("snap", "first").unwrap();
    pool.fork("fork", 64 * MIB, volume("first")).unwrap();
    pool.create_snapshot("same", "fork").unwrap();
    let checksum = pool.checksum_snapshot("snap").unwrap();
    assert!(
        checksum.starts_with("sha256:") && checksum.len() == 7 + 64,
        "{checksum}"
    );
    assert_eq!(pool.checksum_snapshot("snap").unwrap(), checksum);
    assert_eq!(pool.checksum_snapshot("same").unwrap(), checksum);

    let file = File::options()
        .read(true)
        .write(true)
        .open(fixture.image("snapshots", "snap"))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 40_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 40_000_000).unwrap();
    file.sync_all().unwrap();
    assert_ne!(pool.checksum_snapshot("snap").unwrap(), checksum);
    assert_eq!(pool.checksum_snapshot("same").unwrap(), checksum);
}

#[test]
fn one_packing_at_a_time_and_none_after_the_end() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    fragmented(&pool);
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| pool.pack_snapshot("snap")))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    for outcome in outcomes {
        assert!(
            matches!(outcome, Ok(_) | Err(StorageError::Busy(_))),
            "{outcome:?}"
        );
    }
    pool.interrupt();
    let interrupted = |error| matches!(error, StorageError::Interrupted);
    assert!(interrupted(pool.pack_snapshot("snap").unwrap_err()));
    assert!(interrupted(pool.checksum_snapshot("snap").unwrap_err()));
    assert_eq!(
        std::fs::read_dir(fixture.config.dir.join("snapshots"))
            .unwrap()
            .count(),
        2
    );
}
