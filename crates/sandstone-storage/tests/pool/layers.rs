//! Writable layers and bases.

use std::thread;

use sandstone_storage::StorageError;

use crate::fixture::{Fixture, LIMIT, MIB, entries, write};

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
