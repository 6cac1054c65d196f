//! How long the steps of a sandbox's life take. Printed; only a gross loss fails.

use std::time::{Duration, Instant};

use sandstone_storage::VolumeUse;

use crate::fixture::{Fixture, LIMIT, MIB, SMALL, snapshot, write};

const ROUNDS: usize = 20;
const STEPS: [&str; 10] = [
    "create volume",
    "attach",
    "write one file, fsync",
    "release",
    "snapshot, idle",
    "snapshot, attached",
    "fork",
    "fork, larger",
    "create scratch",
    "release scratch",
];

#[test]
fn steps_take_milliseconds() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let mut times = [[Duration::ZERO; STEPS.len()]; ROUNDS];
    for (round, times) in times.iter_mut().enumerate() {
        let name = format!("timed{round}");
        let mut start = Instant::now();
        let mut lap = |step: usize| {
            times[step] = start.elapsed();
            start = Instant::now();
        };
        pool.create_volume(&name, SMALL).unwrap();
        lap(0);
        let mount = pool.attach_volume(&name, VolumeUse::Data).unwrap();
        lap(1);
        write(&mount, "file", b"x").unwrap();
        lap(2);
        drop(mount);
        pool.release_volume(&name, LIMIT).unwrap();
        lap(3);
        pool.create_snapshot(&name, &name).unwrap();
        lap(4);
        let mount = pool.attach_volume(&name, VolumeUse::Data).unwrap();
        lap(1);
        pool.create_snapshot(&format!("{name}-attached"), &name)
            .unwrap();
        lap(5);
        drop(mount);
        pool.release_volume(&name, LIMIT).unwrap();
        lap(3);
        pool.fork(&format!("{name}-fork"), SMALL, snapshot(&name))
            .unwrap();
        lap(6);
        pool.fork(&format!("{name}-larger"), 10 * SMALL, snapshot(&name))
            .unwrap();
        lap(7);
        let scratch = pool.create_scratch(&name, 10 * 1024 * MIB).unwrap();
        lap(8);
        drop(scratch);
        pool.release_scratch(&name, LIMIT).unwrap();
        lap(9);
    }
    for (index, step) in STEPS.into_iter().enumerate() {
        let mut column = times.map(|times| times[index]);
        column.sort();
        let median = column[ROUNDS / 2];
        println!(
            "{step}: median {median:?}, slowest {:?}",
            column[ROUNDS - 1]
        );
        assert!(median < Duration::from_secs(1), "{step}: {median:?}");
    }
}
