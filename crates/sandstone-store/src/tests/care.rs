use sandstone_core::Health;

use super::fixture::{Fixture, GB, at, snapshot_id};
use crate::Usage;

#[tokio::test]
async fn checksums_are_recorded_once_and_checked_in_turn() {
    let fixture = Fixture::new().await;
    let (store, ours) = (&fixture.store, fixture.ours);
    fixture.volume(1, "data").await;
    let ids = [snapshot_id(2), snapshot_id(3), snapshot_id(4)];
    for (number, name) in [(2, "first"), (3, "second"), (4, "third")] {
        fixture.snapshot(number, "data", name).await;
    }
    assert_eq!(store.snapshots_to_record(9).await.unwrap(), ids);
    assert_eq!(store.snapshots_to_record(1).await.unwrap(), ids[..1]);
    assert_eq!(store.snapshots_to_check(at(999), 9).await.unwrap(), []);
    // Not without a checksum.
    store.record_check(ids[0], false, at(5)).await.unwrap();
    let first = store.snapshot(ours, "first").await.unwrap();
    assert_eq!((first.health, first.checked_at), (Health::Unrecorded, None));

    for (now, id) in [(10, ids[1]), (11, ids[0])] {
        store
            .record_checksum(id, "sha256:aa", at(now))
            .await
            .unwrap();
        store
            .record_checksum(id, "sha256:bb", at(99))
            .await
            .unwrap();
    }
    assert_eq!(store.snapshots_to_record(9).await.unwrap(), ids[2..]);
    let first = store.snapshot(ours, "first").await.unwrap();
    assert_eq!(first.checksum.as_deref(), Some("sha256:aa"));
    assert_eq!(
        (first.health, first.checked_at),
        (Health::Intact, Some(at(11)))
    );
    assert_eq!(store.snapshots_to_check(at(9), 9).await.unwrap(), []);
    assert_eq!(
        store.snapshots_to_check(at(10), 9).await.unwrap(),
        ids[1..2]
    );
    assert_eq!(
        store.snapshots_to_check(at(99), 9).await.unwrap(),
        [ids[1], ids[0]]
    );
    assert_eq!(store.snapshots_to_check(at(99), 1).await.unwrap(), [ids[1]]);

    for (now, intact, health) in [(20, false, Health::Damaged), (30, true, Health::Intact)] {
        store.record_check(ids[1], intact, at(now)).await.unwrap();
        let second = store.snapshot(ours, "second").await.unwrap();
        assert_eq!((second.health, second.checked_at), (health, Some(at(now))));
    }
    assert_eq!(
        store.snapshots_to_check(at(99), 9).await.unwrap(),
        [ids[0], ids[1]]
    );

    for name in ["first", "second", "third"] {
        store.delete_snapshot(ours, name, at(40)).await.unwrap();
    }
    let before = fixture.dump().await;
    assert_eq!(store.snapshots_to_record(9).await.unwrap(), []);
    assert_eq!(store.snapshots_to_check(at(99), 9).await.unwrap(), []);
    store
        .record_checksum(ids[2], "sha256:aa", at(50))
        .await
        .unwrap();
    store.record_check(ids[1], false, at(50)).await.unwrap();
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn snapshots_in_many_pieces_are_packed_once() {
    let fixture = Fixture::new().await;
    let store = &fixture.store;
    fixture.volume(1, "data").await;
    for (number, name) in [(2, "small"), (3, "big"), (4, "whole")] {
        fixture.snapshot(number, "data", name).await;
    }
    assert_eq!(store.snapshots_to_pack(9).await.unwrap(), []);
    let measured = async |number, flattened, extents| {
        let usage = Usage {
            allocated: 0,
            flattened,
        };
        let recorded = store.record_measured(snapshot_id(number).into(), usage, extents, at(5));
        recorded.await.unwrap();
    };
    measured(2, GB / 4, 2000).await;
    measured(3, 3 * GB, 6000).await;
    measured(4, 3 * GB, 3).await;
    assert_eq!(store.snapshots_to_pack(9).await.unwrap(), []);
    measured(2, GB / 4, 2001).await;
    measured(3, 3 * GB, 6001).await;
    let both = [snapshot_id(3), snapshot_id(2)];
    assert_eq!(store.snapshots_to_pack(9).await.unwrap(), both);
    assert_eq!(store.snapshots_to_pack(1).await.unwrap(), both[..1]);

    store.record_packed(both[0], at(6)).await.unwrap();
    assert_eq!(store.snapshots_to_pack(9).await.unwrap(), both[1..]);
    // Even if that has not helped.
    measured(3, 3 * GB, 6001).await;
    assert_eq!(store.snapshots_to_pack(9).await.unwrap(), both[1..]);
    let big = store.snapshot(fixture.ours, "big").await.unwrap();
    assert_eq!((big.packed_at, big.extents), (Some(at(6)), 6001));
}
