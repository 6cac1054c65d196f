//! How long the steps of a sandbox's life take. Printed; only a gross loss fails.

use std::time::{Duration, Instant};

use crate::fixture::{Fixture, LIMIT, MIB, SMALL, write};

const ROUNDS: usize = 20;
const STEPS: [&str; 6] = [
    "create volume",
    "attach",
    "write one file, fsync",
    "release",
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
        let mount = pool.attach_volume(&name).unwrap();
        lap(1);
        write(&mount, "file", b"x").unwrap();
        lap(2);
        drop(mount);
        pool.release_volume(&name, LIMIT).unwrap();
        lap(3);
        let scratch = pool.create_scratch(&name, 10 * 1024 * MIB).unwrap();
        lap(4);
        drop(scratch);
        pool.release_scratch(&name, LIMIT).unwrap();
        lap(5);
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
