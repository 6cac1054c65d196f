//! Writable layers and bases.

use std::thread;

use sandstone_storage::StorageError;

use crate::fixture::{Fixture, LIMIT, MIB, SMALL, entries, write};

#[test]
fn a_writable_layer_is_bounded_and_goes_away() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let layer = pool.create_scratch("layer", 64 * MIB).unwrap();
    write(&layer, "upper/file", b"x").unwrap();
    write(&layer, "work/file", b"x").unwrap();
    let error = write(&layer, "upper/big", &vec![7; 80 << 20]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(pool.scratches().unwrap(), ["layer"]);
    assert!(matches!(
        pool.create_scratch("layer", 64 * MIB),
        Err(StorageError::AlreadyAttached { .. })
    ));
    drop(layer);
    pool.release_scratch("layer", LIMIT).unwrap();
    pool.release_scratch("layer", LIMIT).unwrap();
    assert!(pool.scratches().unwrap().is_empty());
}

#[test]
fn a_writable_layer_starts_empty_whatever_was_there() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let layer = pool.create_scratch("layer", 10 * 1024 * MIB).unwrap();
    write(&layer, "upper/file", b"x").unwrap();
    drop(layer);
    // As if the server had died here: nobody removed it.
    while fixture.loop_devices("layer") > 0 {
        thread::yield_now();
    }
    assert_eq!(pool.scratches().unwrap(), ["layer"]);
    let layer = pool.create_scratch("layer", 10 * 1024 * MIB).unwrap();
    assert!(write(&layer, "upper/new", b"x").is_ok());
    assert_eq!(entries(&layer), ["lost+found", "upper", "work"]);
    drop(layer);
    pool.release_scratch("layer", LIMIT).unwrap();
}

#[test]
fn many_layers_at_once() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    thread::scope(|scope| {
        for number in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..5 {
                    let name = format!("layer{number}x{round}");
                    let layer = pool.create_scratch(&name, 512 * MIB).unwrap();
                    write(&layer, "upper/file", name.as_bytes()).unwrap();
                    drop(layer);
                    pool.release_scratch(&name, LIMIT).unwrap();
                }
            });
        }
    });
    assert!(pool.scratches().unwrap().is_empty());
}

#[test]
fn a_base_is_read_only_and_mounted_once() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    // Any ext4 can be a base: take a volume's image, as a file.
    pool.create_volume("like-a-base", SMALL).unwrap();
    let mount = pool.attach_volume("like-a-base").unwrap();
    write(&mount, "file", b"x").unwrap();
    drop(mount);
    pool.release_volume("like-a-base", LIMIT).unwrap();
    let source = fixture.image("volumes", "like-a-base");

    assert!(!pool.has_base("base") && !pool.has_base("../base"));
    assert!(matches!(
        pool.base_tree("base"),
        Err(StorageError::Missing(_))
    ));
    pool.install_base("base", &source).unwrap();
    pool.install_base("base", &source).unwrap();
    let trees = [
        pool.base_tree("base").unwrap(),
        pool.base_tree("base").unwrap(),
    ];
    assert_eq!(fixture.loop_devices("bases/"), 1);
    for tree in &trees {
        assert_eq!(entries(tree), ["lost+found", "v"]);
        let refused = write(tree, "v/new", b"x").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
    // Sandboxes outlive a server; the next one has its own device, of the same file.
    drop(pool);
    let pool = fixture.open();
    assert_eq!(
        entries(&pool.base_tree("base").unwrap()),
        ["lost+found", "v"]
    );
}

#[test]
fn a_base_from_another_file_system_is_copied_with_its_holes() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let source = directory.path().join("source.img");
    crate::fixture::run(
        std::process::Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096", "-O", "^has_journal"])
            .arg(&source)
            .arg("2G"),
    );
    pool.install_base("base", &source).unwrap();
    let installed = fixture.image("bases", "base");
    crate::fixture::run(
        std::process::Command::new("cmp")
            .arg(&source)
            .arg(&installed),
    );
    let status = rustix::fs::stat(&installed).unwrap();
    assert!(status.st_blocks * 512 < 200 << 20, "{status:?}");
    assert_eq!(entries(&pool.base_tree("base").unwrap()), ["lost+found"]);
}
