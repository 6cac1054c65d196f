use sandstone_api::ErrorCode;
use sandstone_core::StopReason;
use sandstone_node_api::NodeError;

use super::harness::{Harness, assert_code, eventually, region, soon};
use super::node::{Failure, PIECE_BYTES, SECRET, broken};
use crate::control::{PageRequest, Token};

#[tokio::test]
async fn a_volume_is_made_shown_and_deleted() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    let volume = harness.volume("data").await;
    assert!(volume.id.starts_with("vol_ord_"));
    assert_eq!(volume.region, "ord");
    assert_eq!(volume.capacity, 1_000_000_000);
    let sizes = (
        volume.estimated_allocated_size,
        volume.estimated_flattened_size,
    );
    assert_eq!(
        sizes,
        (PIECE_BYTES, PIECE_BYTES),
        "a fresh volume shows real numbers"
    );
    for name in ["data", &volume.id] {
        assert_eq!(control.volume(who, name).await.unwrap().volume, volume);
        let foreign = control.volume(&harness.stranger, name).await;
        assert_code(foreign, ErrorCode::VolumeNotFound);
        let foreign = control.delete_volume(&harness.stranger, name).await;
        assert_code(foreign, ErrorCode::VolumeNotFound);
    }
    let again = control
        .create_volume(who, Harness::new_volume("data"))
        .await;
    assert!(
        assert_code(again, ErrorCode::SlugAlreadyInUse)
            .message
            .contains("`data`")
    );
    control.delete_volume(who, "data").await.unwrap();
    assert_code(
        control.volume(who, &volume.id).await,
        ErrorCode::VolumeNotFound,
    );
    let again = control.delete_volume(who, &volume.id).await;
    assert_code(again, ErrorCode::VolumeNotFound);
    assert_ne!(harness.volume("data").await.id, volume.id);
}

#[tokio::test]
async fn an_unknown_region_is_refused() {
    let harness = Harness::new().await;
    let mut new = Harness::new_volume("data");
    new.region = Some(region("fra"));
    let refused = harness.control.create_volume(&harness.who, new).await;
    let error = assert_code(refused, ErrorCode::InvalidRequest);
    assert!(
        error.message.contains("fra") && error.message.contains("ord, ams"),
        "{error}"
    );
    assert_eq!(harness.node.count("create_volume"), 0);
}

#[tokio::test]
async fn a_failed_image_leaves_nothing() {
    let harness = Harness::new().await;
    let no_room = NodeError::PoolFull(SECRET.into());
    let too_slow = NodeError::TimedOut {
        step: "write it",
        limit_ms: 7,
    };
    for (failure, code) in [
        (broken(), ErrorCode::Internal),
        (Failure::Panic, ErrorCode::Internal),
        (Failure::Error(no_room), ErrorCode::PoolFull),
        (Failure::Error(too_slow), ErrorCode::TimedOut),
        (
            Failure::Error(NodeError::NotReady("later".into())),
            ErrorCode::NotReady,
        ),
    ] {
        let panicked = matches!(failure, Failure::Panic);
        harness.node.fail("create_volume", failure);
        let new = Harness::new_volume("data");
        let failed = harness.control.create_volume(&harness.who, new).await;
        let error = assert_code(failed, code);
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let found = harness.control.volume(&harness.who, "data").await;
        assert_code(found, ErrorCode::VolumeNotFound);
        if panicked {
            // The job gives it up.
            harness.run();
            eventually("the volume to be given up", async || {
                harness.node.state().images.is_empty()
                    && harness.store.half_created().await.unwrap().is_empty()
            })
            .await;
        }
    }
    assert!(harness.node.state().images.is_empty());
    harness.volume("data").await;
    harness.node.assert_sound();
}

#[tokio::test]
async fn it_is_made_even_if_the_client_goes_away() {
    let harness = Harness::new().await;
    harness.run();
    let gate = harness.node.hold("create_volume");
    let client = harness.making(Harness::new_volume("data"));
    harness.called("create_volume", 1).await;
    client.abort();
    // The job that gives up abandoned volumes leaves this one alone.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    gate.add_permits(1);
    eventually("the volume", async || {
        harness.control.volume(&harness.who, "data").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn pages_and_search() {
    let harness = Harness::new().await;
    let mut slugs = Vec::new();
    for n in 0..5 {
        slugs.push(harness.volume(&format!("volume-{n}")).await.slug);
    }
    let mut seen = Vec::new();
    let mut request = PageRequest {
        limit: Some(2),
        ..PageRequest::default()
    };
    let mut sizes = Vec::new();
    loop {
        let page = harness.control.volumes(&harness.who, request.clone()).await;
        let page = page.unwrap();
        sizes.push(page.items.len());
        seen.extend(page.items.into_iter().map(|found| found.volume.slug));
        request.cursor = page.next_cursor;
        if request.cursor.is_none() {
            break;
        }
    }
    assert_eq!((seen, sizes), (slugs, vec![2, 2, 1]));

    let search = async |text: String| {
        let request = PageRequest {
            search: Some(text),
            ..PageRequest::default()
        };
        let page = harness
            .control
            .volumes(&harness.who, request)
            .await
            .unwrap();
        page.items.len()
    };
    assert_eq!(search("E-3".into()).await, 1);
    assert_eq!(search("%".repeat(100_000)).await, 0);
    for bad in [Some(0), Some(1001)] {
        let request = PageRequest {
            limit: bad,
            ..PageRequest::default()
        };
        let refused = harness.control.volumes(&harness.who, request).await;
        assert_code(refused, ErrorCode::InvalidRequest);
    }
}

#[tokio::test]
async fn a_mounted_volume_is_not_deleted() {
    let harness = Harness::new().await;
    let (control, who) = (&harness.control, &harness.who);
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let error = assert_code(
        control.delete_volume(who, "data").await,
        ErrorCode::VolumeIsMounted,
    );
    assert!(error.message.contains(&id.to_string()), "{error}");

    // One that is being released: the delete waits.
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    let mut delete = Box::pin(control.delete_volume(who, "data"));
    let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut delete).await;
    assert!(early.is_err(), "{early:?}");
    gate.add_permits(1);
    soon(delete).await.unwrap();
    soon(stop).await.unwrap().unwrap();
    harness.assert_idle().await;
}

#[tokio::test]
async fn waiting_for_a_release_has_a_limit() {
    let harness = Harness::configured(|config| {
        config.release_wait = std::time::Duration::from_millis(30);
    })
    .await;
    harness.volume("data").await;
    let id = harness.sandbox(&["data"]).await;
    let gate = harness.node.hold("stop_sandbox");
    let stop = harness.stopping(id, StopReason::Killed);
    harness.called("stop_sandbox", 1).await;
    for _ in 0..2 {
        let refused = harness.create(Harness::new_sandbox(&["data"])).await;
        let error = assert_code(refused, ErrorCode::VolumeIsMounted);
        assert!(error.hint.unwrap().contains("moment"));
    }
    gate.add_permits(1);
    soon(stop).await.unwrap().unwrap();
}

#[tokio::test]
async fn deleted_data_is_kept_for_the_grace_period() {
    let harness = Harness::new().await;
    harness.volume("data").await;
    let kept = harness.volume("kept").await;
    harness
        .control
        .delete_volume(&harness.who, "data")
        .await
        .unwrap();
    harness.run();
    harness.clock.advance(24 * 60 * 60 * 1000 - 1);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(harness.node.state().images.len(), 2);
    // A removal that fails is repeated.
    harness.node.fail("remove_image", broken());
    harness.clock.advance(1);
    eventually("the purge", async || harness.node.state().images.len() == 1).await;
    assert!(harness.node.count("remove_image") >= 2);
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    let calls = harness.node.count("remove_image");
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    assert_eq!(harness.node.count("remove_image"), calls, "purged once");
    assert!(harness.node.image(&kept.id).is_some());
}

#[tokio::test]
async fn only_known_tokens_are_let_in() {
    let harness = Harness::new().await;
    for token in [
        "",
        "ddo_",
        "ddo_0123456789abcdef-OURS",
        &"x".repeat(1 << 20),
    ] {
        let refused = harness.control.authenticate(token).await;
        assert_code(refused, ErrorCode::InvalidToken);
    }
    let token = Token::generate(&super::harness::Counter::default());
    assert_eq!(token.reveal().len(), 44);
    assert_eq!(Token::parse(token.reveal()), Some(token.clone()));
    assert!(!format!("{token:?}").contains(&token.reveal()[4..]));
    for bad in [
        "",
        "ddo_short",
        "ddp_0123456789abcdefghij",
        "ddo_0123456789abcdef\n",
    ] {
        assert_eq!(Token::parse(bad), None, "{bad:?}");
    }
}
