//! Bootable volumes, their snapshots, and what is made from those.

use std::time::Instant;

use sandstone_core::Consistency;
use sandstone_node::Node;
use sandstone_node_api::{NodeApi, NodeError, Root, SnapshotSpec, VolumeSource};

use crate::harness::{Running, capacity, new_snapshot, sandbox, volume};

pub(crate) async fn a_bootable_volume_is_a_machine_of_its_own(node: &Node) {
    let begin = Instant::now();
    let root = volume(node, 1_500_000_000, VolumeSource::Base).await;
    println!("make a bootable volume, first: {:?}", begin.elapsed());
    let first = Running::start(node, "volume, first", sandbox(Root::Volume(root), &[])).await;
    for (command, expected) in [
        ("id -un; sudo id -u; findmnt -no FSTYPE /", "app\n0\next4"),
        ("ls -A / | grep -x 'lost+found\\|v\\|upper'", ""),
        (
            "sudo cp /usr/bin/id /opt/rootid; sudo chmod 4755 /opt/rootid; /opt/rootid -u",
            "0",
        ),
        (
            "echo kept > ~/file; stat -c '%U %a' ~ /etc/passwd",
            "app 755\nroot 644",
        ),
        (
            "grep -c $(hostname) /etc/hosts; cat /etc/hostname | grep -c $(hostname)",
            "1\n1",
        ),
        // A capacity of 1.5 GB, of which the system takes a third.
        (
            "test $(df --output=size -BM / | tail -1 | tr -dc 0-9) -gt 1200; echo $?",
            "0",
        ),
    ] {
        first.expect(command, expected).await;
    }
    first.stop(node, "volume").await;

    let again = Running::start(node, "volume", sandbox(Root::Volume(root), &[])).await;
    again.expect("cat ~/file; /opt/rootid -u", "kept\n0").await;
    again
        .expect(
            "grep -c localhost /etc/hosts; grep -c $(hostname) /etc/hosts",
            "2\n1",
        )
        .await;
    again.expect("ls -A /etc | grep -c sandstone", "0").await;

    // Taken while it runs; twice is once.
    let spec = SnapshotSpec {
        id: new_snapshot(),
        volume: root,
    };
    let begin = Instant::now();
    let copied = node.create_snapshot(&spec).await.unwrap();
    println!("snapshot: {:?}, {copied:?}", begin.elapsed());
    assert_eq!(copied.consistency, Consistency::FileSystem);
    again
        .expect("echo changed > ~/file; cat ~/file", "changed")
        .await;
    node.create_snapshot(&spec).await.unwrap();
    let snapshot = spec.id;
    assert!(matches!(
        node.grow_volume(root, capacity(2_000_000_000)).await,
        Err(NodeError::InUse(_))
    ));
    again.stop(node, "volume").await;

    let from_snapshot = || sandbox(Root::Snapshot(snapshot), &[]);
    let one = Running::start(node, "snapshot, first", from_snapshot()).await;
    let two = Running::start(node, "snapshot, next", from_snapshot()).await;
    for (sandbox, word) in [(&one, "one"), (&two, "two")] {
        sandbox
            .expect("cat ~/file; findmnt -no FSTYPE /", "kept\noverlay")
            .await;
        sandbox
            .expect(&format!("echo {word} > ~/file; cat ~/file"), word)
            .await;
    }
    one.expect("cat ~/file", "one").await;
    assert!(matches!(
        node.remove_image(snapshot.into()).await,
        Err(NodeError::InUse(_))
    ));

    // A volume from the snapshot, larger, with the snapshot beside it.
    let begin = Instant::now();
    let fork = volume(node, 2_000_000_000, VolumeSource::Image(snapshot.into())).await;
    println!("fork: {:?}", begin.elapsed());
    node.grow_volume(fork, capacity(2_500_000_000))
        .await
        .unwrap();
    let mounts = [(snapshot.into(), "/mnt/image")];
    let three = Running::start(
        node,
        "volume, of a fork",
        sandbox(Root::Volume(fork), &mounts),
    )
    .await;
    for (command, expected) in [
        ("cat ~/file /mnt/image/home/app/file", "kept\nkept"),
        (
            "echo fork > ~/file; sudo touch /mnt/image/new 2>/dev/null || echo refused",
            "refused",
        ),
        (
            "sudo rm /mnt/image/home/app/file 2>/dev/null || echo refused",
            "refused",
        ),
        (
            "test $(df --output=size -BM / | tail -1 | tr -dc 0-9) -gt 2100; echo $?",
            "0",
        ),
    ] {
        three.expect(command, expected).await;
    }

    let images = node.images().await.unwrap();
    assert_eq!(images.snapshots, [snapshot.suffix()]);
    assert!(images.volumes.contains(&fork.suffix().to_owned()));
    let before = node.measure(snapshot.into()).await.unwrap();
    assert!(
        before.usage.allocated < before.usage.flattened,
        "{before:?}"
    );
    assert!(before.usage.flattened > 400_000_000 && before.extents > 0);
    let begin = Instant::now();
    let packed = node.pack_snapshot(snapshot).await.unwrap();
    println!(
        "pack: {:?}, {} to {} extents",
        begin.elapsed(),
        before.extents,
        packed.extents
    );
    one.expect("cat ~/file; md5sum /usr/bin/git | wc -l", "one\n1")
        .await;

    // In the order in which nobody would.
    for sandbox in [one, two, three] {
        sandbox.stop(node, "of three").await;
    }
    for image in [root.into(), snapshot.into(), fork.into()] {
        node.remove_image(image).await.unwrap();
    }
    assert!(node.images().await.unwrap().volumes.is_empty());
}
