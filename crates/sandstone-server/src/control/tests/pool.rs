//! What the operator sees of the pool.

use super::harness::Harness;
use super::node::{Image, broken};
use sandstone_api::ErrorCode;

use super::harness::assert_code;

fn image() -> Image {
    Image {
        capacity: 1,
        pieces: vec![1],
        extents: 1,
    }
}

#[tokio::test]
async fn what_does_not_match_is_shown_and_kept_until_asked() {
    let harness = Harness::new().await;
    let kept = harness.volume("kept").await;
    let lost = harness.volume("lost").await;
    harness.volume("deleted").await;
    harness
        .control
        .delete_volume(&harness.who, "deleted")
        .await
        .unwrap();
    let snapshot = harness.snapshot("kept", "before").await.snapshot;
    let unknown = "1at5nn58e77rtd11e3k3";
    {
        let mut state = harness.node.state();
        let lost = super::node::key(lost.id.parse::<sandstone_api::VolumeId>().unwrap());
        state.images.remove(&lost);
        for kind in ["volumes", "snapshots"] {
            state.images.insert(format!("{kind}/{unknown}"), image());
        }
        // Not a name of ours; and one that only the other kind has.
        state.images.insert("volumes/backup".to_owned(), image());
        let suffix = kept.id.rsplit('_').next().unwrap();
        state.images.insert(format!("snapshots/{suffix}"), image());
    }
    // Nothing is removed by starting, by the jobs, or by looking.
    let harness = harness.crash().await;
    harness.control.recover().await.unwrap();
    harness.run();
    let (control, who) = (&harness.control, &harness.who);
    let suffix = kept.id.rsplit('_').next().unwrap();
    let mut expected = [
        format!("volume {unknown}"),
        "volume backup".to_owned(),
        format!("snapshot {unknown}"),
        format!("snapshot {suffix}"),
    ];
    expected.sort();
    for _ in 0..2 {
        let mut pool = control.pool(who).await.unwrap();
        pool.unknown_images.sort();
        assert_eq!(pool.unknown_images, expected);
        assert_eq!(pool.missing_images, [lost.id.as_str()]);
        let space = harness.node.state().space;
        assert_eq!(
            (pool.total, pool.free, pool.low, pool.critical),
            (space.total, space.free, space.low, space.critical)
        );
    }
    harness.node.fail("remove_image", broken());
    let first = control.remove_unknown_images(who).await.unwrap();
    let second = control.remove_unknown_images(who).await.unwrap();
    let mut removed = [first, second].concat();
    removed.sort();
    let rest = |name: &String| *name != "volume backup";
    assert_eq!(
        removed,
        expected.into_iter().filter(rest).collect::<Vec<_>>()
    );
    let pool = control.pool(who).await.unwrap();
    assert_eq!(pool.unknown_images, ["volume backup"]);
    for id in [&kept.id, &snapshot.id] {
        assert!(harness.node.image(id).is_some());
    }
    assert_eq!(harness.node.state().images.len(), 4);
}

#[tokio::test]
async fn a_failing_node_is_no_reason_to_remove_anything() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    for call in ["images", "space"] {
        harness.node.fail(call, broken());
        let failed = harness.control.pool(&harness.who).await;
        assert_code(failed, ErrorCode::Internal);
    }
    harness.node.fail("images", broken());
    let failed = harness.control.remove_unknown_images(&harness.who).await;
    assert_code(failed, ErrorCode::Internal);
    // Nor to refuse to start.
    harness.node.fail("images", broken());
    let harness = harness.crash().await;
    harness.control.recover().await.unwrap();
    assert_eq!(harness.node.count("remove_image"), 0);
}
