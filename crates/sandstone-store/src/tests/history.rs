//! Random histories of volumes, snapshots and sandboxes, over a model of the pool, with crashes;
//! checked after every step.

mod check;
mod images;
mod sandboxes;
mod world;

use proptest::prelude::*;

use self::world::World;

/// Names: enough to collide often, few enough to be used again.
const SLUGS: [&str; 4] = ["aa", "bb", "cc", "dd"];

/// How long what was deleted can be restored. Every step takes 1.
const GRACE: i64 = 3;

/// Something that was ever made or begun: the n-th, modulo how many there are.
type Nth = usize;

/// An image, as a client names it.
#[derive(Debug, Clone, Copy)]
enum Name {
    Slug(usize),
    Id(Nth),
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Empty,
    Base,
    /// The snapshot or volume of this name.
    Copy(Name),
    Import,
}

#[derive(Debug, Clone)]
enum Step {
    BeginVolume(usize, Source),
    BeginSnapshot(Name, usize),
    FinishMaking(Nth, bool),
    Delete(Name),
    Restore(Name, Option<usize>),
    BeginPurge(Nth),
    BeginPurgeOfAllDue,
    FinishPurge(Nth),
    BeginGrow(Name, u64),
    FinishGrow(Nth, bool),
    BeginSandbox(Option<Name>, Vec<Name>),
    /// Of one of the newest images: those are often not finished.
    BeginMaintenance(Nth),
    Started(Nth),
    Write(Nth),
    BeginStop(Nth),
    Released(Nth),
    Forget,
    Measure,
    /// The server dies; whether what it was doing had reached the pool, and whether the next one
    /// ends the sandboxes or connects to them again.
    Crash(bool, bool),
}

fn name() -> impl Strategy<Value = Name> {
    prop_oneof![
        3 => (0..SLUGS.len()).prop_map(Name::Slug),
        1 => any::<Nth>().prop_map(Name::Id),
    ]
}

fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        1 => Just(Source::Empty),
        1 => Just(Source::Base),
        5 => name().prop_map(Source::Copy),
        2 => Just(Source::Import),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let slug = 0..SLUGS.len();
    let nth = any::<Nth>();
    let mostly = prop::bool::weighted(0.8);
    prop_oneof![
        6 => (slug.clone(), source()).prop_map(|(slug, source)| Step::BeginVolume(slug, source)),
        5 => (name(), slug.clone()).prop_map(|(volume, slug)| Step::BeginSnapshot(volume, slug)),
        7 => (nth, mostly).prop_map(|(n, made)| Step::FinishMaking(n, made)),
        5 => name().prop_map(Step::Delete),
        3 => (name(), prop::option::of(slug)).prop_map(|(name, slug)| Step::Restore(name, slug)),
        2 => nth.prop_map(Step::BeginPurge),
        4 => Just(Step::BeginPurgeOfAllDue),
        4 => nth.prop_map(Step::FinishPurge),
        3 => (name(), 1..4_u64).prop_map(|(name, size)| Step::BeginGrow(name, size)),
        2 => (nth, mostly).prop_map(|(n, grown)| Step::FinishGrow(n, grown)),
        5 => (prop::option::of(name()), prop::collection::vec(name(), 0..3))
            .prop_map(|(root, volumes)| Step::BeginSandbox(root, volumes)),
        4 => nth.prop_map(Step::BeginMaintenance),
        5 => nth.prop_map(Step::Started),
        3 => nth.prop_map(Step::Write),
        3 => nth.prop_map(Step::BeginStop),
        4 => nth.prop_map(Step::Released),
        1 => Just(Step::Forget),
        1 => Just(Step::Measure),
        1 => any::<(bool, bool)>().prop_map(|(reached, ends)| Step::Crash(reached, ends)),
    ]
}

proptest! {
    // Every step is a few fsyncs and a dozen queries; this takes some seconds.
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_sound_and_ends(steps in prop::collection::vec(step(), 1..150)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in &steps {
                world = world.apply(step).await;
                world.check().await;
            }
            world.crash(true, true).await.end().await;
        });
    }
}
