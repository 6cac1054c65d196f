//! Relatives do not depend on each other, whatever is done to them in whatever order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sandstone_storage::{ImageKind, Pool};

use crate::fixture::{Fixture, MIB, read, read_volume, run, snapshot, volume, write_volume};

const CAPACITY: u64 = 32 * MIB;

/// What is done next. The numbers choose among what there is.
#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    Write(usize, u8),
    Snapshot(usize),
    ForkVolume(usize),
    ForkSnapshot(usize),
    RemoveVolume(usize),
    RemoveSnapshot(usize),
    Pack(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..100_usize;
    prop_oneof![
        1 => Just(Step::Create),
        4 => (which.clone(), any::<u8>()).prop_map(|(which, byte)| Step::Write(which, byte)),
        3 => which.clone().prop_map(Step::Snapshot),
        2 => which.clone().prop_map(Step::ForkVolume),
        2 => which.clone().prop_map(Step::ForkSnapshot),
        2 => which.clone().prop_map(Step::RemoveVolume),
        2 => which.clone().prop_map(Step::RemoveSnapshot),
        1 => which.prop_map(Step::Pack),
    ]
}

/// What should be in the pool: the byte that fills each volume's file, and each snapshot's with
/// its checksum.
#[derive(Debug, Default)]
struct Model {
    made: usize,
    volumes: BTreeMap<String, u8>,
    snapshots: BTreeMap<String, (u8, String)>,
}

impl Model {
    fn name(&mut self) -> String {
        self.made += 1;
        format!("image{}", self.made)
    }

    fn apply(&mut self, pool: &Pool, step: Step) {
        fn pick<T>(from: &BTreeMap<String, T>, which: usize) -> Option<String> {
            from.keys().nth(which % from.len().max(1)).cloned()
        }
        match step {
            Step::Create => {
                let name = self.name();
                pool.create_volume(&name, CAPACITY).unwrap();
                write_volume(pool, &name, "file", &[0; 100_000]);
                self.volumes.insert(name, 0);
            }
            Step::Write(which, byte) => {
                if let Some(name) = pick(&self.volumes, which) {
                    write_volume(pool, &name, "file", &[byte; 100_000]);
                    self.volumes.insert(name, byte);
                }
            }
            Step::Snapshot(which) => {
                if let Some(source) = pick(&self.volumes, which) {
                    let name = self.name();
                    pool.create_snapshot(&name, &source).unwrap();
                    let checksum = pool.checksum_snapshot(&name).unwrap();
                    self.snapshots
                        .insert(name, (self.volumes[&source], checksum));
                }
            }
            Step::ForkVolume(which) => {
                if let Some(source) = pick(&self.volumes, which) {
                    let name = self.name();
                    pool.fork(&name, CAPACITY, volume(&source)).unwrap();
                    self.volumes.insert(name, self.volumes[&source]);
                }
            }
            Step::ForkSnapshot(which) => {
                if let Some(source) = pick(&self.snapshots, which) {
                    let name = self.name();
                    pool.fork(&name, CAPACITY, snapshot(&source)).unwrap();
                    self.volumes.insert(name, self.snapshots[&source].0);
                }
            }
            Step::RemoveVolume(which) => {
                if let Some(name) = pick(&self.volumes, which) {
                    pool.remove_image(volume(&name)).unwrap();
                    self.volumes.remove(&name);
                }
            }
            Step::RemoveSnapshot(which) => {
                if let Some(name) = pick(&self.snapshots, which) {
                    pool.remove_image(snapshot(&name)).unwrap();
                    self.snapshots.remove(&name);
                }
            }
            Step::Pack(which) => {
                if let Some(name) = pick(&self.snapshots, which) {
                    pool.pack_snapshot(&name).unwrap();
                }
            }
        }
    }

    fn check(&self, pool: &Pool) {
        let keys = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>();
        let mut volumes = keys(self.volumes.keys().collect());
        let mut snapshots = keys(self.snapshots.keys().collect());
        volumes.sort();
        snapshots.sort();
        assert_eq!(pool.images(ImageKind::Volume).unwrap(), volumes);
        assert_eq!(pool.images(ImageKind::Snapshot).unwrap(), snapshots);
        for (name, byte) in &self.volumes {
            assert!(
                read_volume(pool, name, "file") == [*byte; 100_000],
                "{name}"
            );
        }
        for (name, (byte, checksum)) in &self.snapshots {
            let tree = pool.snapshot_tree(name).unwrap();
            assert!(read(&tree, "file") == [*byte; 100_000], "{name}");
            assert_eq!(pool.checksum_snapshot(name).unwrap(), *checksum, "{name}");
        }
    }

    fn clear(&self, pool: &Pool) {
        for name in self.volumes.keys() {
            pool.remove_image(volume(name)).unwrap();
        }
        for name in self.snapshots.keys() {
            pool.remove_image(snapshot(name)).unwrap();
        }
    }
}

#[test]
fn relatives_stay_whole_in_any_order() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    let config = Config {
        cases: 6,
        failure_persistence: None,
        max_shrink_iters: 50,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 5..20), |steps| {
            let mut model = Model::default();
            model.apply(&pool, Step::Create);
            for step in steps {
                model.apply(&pool, step);
            }
            model.check(&pool);
            model.clear(&pool);
            Ok(())
        })
        .unwrap();
}

#[test]
fn sizes_say_what_removing_would_free() {
    let fixture = Fixture::new();
    let pool = fixture.open();
    pool.create_volume("first", 64 * MIB).unwrap();
    write_volume(&pool, "first", "data", &vec![7; 8 << 20]);
    let alone = pool.measure(volume("first")).unwrap();
    assert!(alone.allocated > 8 * MIB && alone.allocated == alone.flattened);
    assert!(alone.extents > 0);

    pool.create_snapshot("snap", "first").unwrap();
    pool.fork("fork", 64 * MIB, snapshot("snap")).unwrap();
    for image in [volume("first"), snapshot("snap"), volume("fork")] {
        let measured = pool.measure(image).unwrap();
        assert_eq!(measured.allocated, 0, "{image:?}: {measured:?}");
        assert_eq!(
            measured.flattened, alone.flattened,
            "{image:?}: {measured:?}"
        );
    }
    write_volume(&pool, "fork", "more", &vec![8; 4 << 20]);
    let fork = pool.measure(volume("fork")).unwrap();
    assert!(
        fork.allocated > 4 * MIB && fork.allocated < 8 * MIB,
        "{fork:?}"
    );
    assert!(fork.flattened > alone.flattened + 3 * MIB, "{fork:?}");

    // What was shared belongs to the last that has it. The pool frees it in its own time.
    pool.remove_image(snapshot("snap")).unwrap();
    pool.remove_image(volume("fork")).unwrap();
    let deadline = std::time::Instant::now() + crate::fixture::LIMIT;
    while pool.measure(volume("first")).unwrap() != alone {
        assert!(std::time::Instant::now() < deadline);
        run(std::process::Command::new("sync")
            .arg("-f")
            .arg(&fixture.config.dir));
    }
}
