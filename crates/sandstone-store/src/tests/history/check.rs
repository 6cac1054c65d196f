//! What holds after every step, and at the end.

use std::collections::HashMap;

use sandstone_api::{ImageId, SandboxId};
use sandstone_core::ImageState;

use super::world::World;
use super::{GRACE, Name, SLUGS};
use crate::ImagesPage;

impl World {
    pub(super) async fn check(&mut self) {
        self.check_holders().await;
        self.check_slugs().await;
        self.check_images().await;
        self.check_readers().await;
    }

    /// One holder each, tokens that only grow, and nobody holds what is not there.
    async fn check_holders(&mut self) {
        let mut holders = HashMap::new();
        for (volume, token, sandbox, holds) in self.fixture.attachments().await {
            if holds {
                let other = holders.insert(volume.clone(), sandbox.clone());
                assert_eq!(other, None, "two holders of {volume}");
                let id = ImageId::Volume(volume.parse().unwrap());
                assert!(self.pool.contains_key(&id), "{id} is held and gone");
            }
            let seen = self.tokens.entry(volume).or_default();
            match token.cmp(&seen.0) {
                std::cmp::Ordering::Greater => *seen = (token, sandbox),
                std::cmp::Ordering::Equal => assert_eq!(sandbox, seen.1, "a token was used twice"),
                std::cmp::Ordering::Less => {}
            }
        }
        let newest: Vec<(String, i64)> = sqlx::query_as("SELECT id, attach_token FROM volumes")
            .fetch_all(self.fixture.store.read())
            .await
            .unwrap();
        for (volume, token) in newest {
            let seen = self.tokens.get(&volume).map_or(0, |(token, _)| *token);
            assert_eq!(token, seen, "the token of {volume} does not grow by use");
        }
        self.check_none(
            "who holds a volume is not stopped, and the volume is available or being filled",
            "SELECT a.volume FROM attachments a JOIN sandboxes s ON s.id = a.sandbox \
                 JOIN volumes v ON v.id = a.volume \
             WHERE a.state <> 'detached' AND (s.state = 'stopped' OR NOT ( \
                 v.state = 'available' OR (v.origin = 'import' AND s.purpose = 'maintenance' \
                     AND v.state IN ('creating', 'failed'))))",
        )
        .await;
        self.check_none(
            "what grows is neither held nor copied",
            "SELECT v.id FROM volumes v WHERE v.growing_to IS NOT NULL AND ( \
                 v.id IN (SELECT volume FROM attachments WHERE state <> 'detached') \
                 OR v.id IN (SELECT source FROM images WHERE state = 'creating'))",
        )
        .await;
    }

    /// One namespace: a slug is held by exactly those that are being made or available.
    async fn check_slugs(&self) {
        self.check_none(
            "one image for each slug",
            "SELECT slug FROM images WHERE state IN ('creating', 'available') \
             GROUP BY organisation, slug HAVING COUNT(*) > 1",
        )
        .await;
        self.check_none(
            "the slugs are those of the images that hold one",
            "SELECT id FROM (SELECT organisation, slug, id FROM images \
                 WHERE state IN ('creating', 'available') \
                 EXCEPT SELECT organisation, slug, object FROM slugs) \
             UNION ALL SELECT object FROM (SELECT organisation, slug, object FROM slugs \
                 EXCEPT SELECT organisation, slug, id FROM images \
                     WHERE state IN ('creating', 'available'))",
        )
        .await;
    }

    /// Everything that can be used or restored has its data, and everything in the pool is known.
    async fn check_images(&self) {
        let store = &self.fixture.store;
        let known: HashMap<ImageId, ImageState> =
            store.known_images().await.unwrap().into_iter().collect();
        for (id, state) in &known {
            if matches!(state, ImageState::Available | ImageState::Deleted) {
                assert_eq!(
                    self.pool.get(id),
                    self.content.get(id),
                    "{id} has lost its data"
                );
                assert!(self.pool.contains_key(id), "{id} is {state:?} and gone");
            }
        }
        for id in self.pool.keys() {
            assert!(known.contains_key(id), "nobody knows {id}");
        }
        for making in &self.making {
            let is_there = making
                .source
                .is_none_or(|source| self.pool.contains_key(&source));
            assert!(is_there, "{} needs what is gone", making.id);
        }
        let page = ImagesPage {
            limit: 1,
            after: None,
            search: None,
            deleted: false,
        };
        let theirs = self.fixture.theirs;
        assert_eq!(store.list_volumes(theirs, page).await.unwrap(), []);
        assert_eq!(store.list_snapshots(theirs, page).await.unwrap(), []);
    }

    /// What runs from a snapshot, or reads one, still has it.
    async fn check_readers(&self) {
        let unfinished: Vec<SandboxId> = self.unfinished().await;
        for (sandbox, snapshot) in &self.reads {
            if unfinished.contains(sandbox) {
                let id = ImageId::from(*snapshot);
                assert!(self.pool.contains_key(&id), "{sandbox} has lost {id}");
            }
        }
    }

    /// From wherever it is, everything ends: after a restart, all can be deleted and all is gone.
    pub(super) async fn end(mut self) {
        self.check().await;
        assert_eq!(self.unfinished().await, []);
        assert_eq!(self.fixture.store.half_created().await.unwrap(), []);
        assert_eq!(self.fixture.store.growing_volumes().await.unwrap(), []);
        let attachments = self.fixture.attachments().await;
        assert!(attachments.iter().all(|(_, _, _, holds)| !holds));
        self.clock += 1;
        self.measure().await;
        assert_eq!(self.fixture.store.images_to_measure().await.unwrap(), []);

        for slug in 0..SLUGS.len() {
            self.delete(Name::Slug(slug)).await;
        }
        self.clock += GRACE;
        let due = self.fixture.store.images_to_purge(self.grace_end(), 9999);
        for id in due.await.unwrap() {
            assert!(self.begin_purge(id).await);
            self.finish_purge(id).await;
        }
        self.check().await;
        assert_eq!(self.fixture.store.known_images().await.unwrap(), []);
        assert!(self.pool.is_empty(), "{:?}", self.pool);
        self.check_none("no slug is taken", "SELECT slug FROM slugs")
            .await;
        let forgotten = self.fixture.store.forget_stopped(self.now(), 9999).await;
        forgotten.unwrap();
        self.check_none("no sandbox is left", "SELECT id FROM sandboxes")
            .await;
        self.check_none("no attachment is left", "SELECT volume FROM attachments")
            .await;
    }

    async fn unfinished(&self) -> Vec<SandboxId> {
        let unfinished = self.fixture.store.unfinished_sandboxes().await.unwrap();
        unfinished.into_iter().map(|sandbox| sandbox.id).collect()
    }

    async fn check_none(&self, rule: &str, violations: &'static str) {
        let found: Vec<String> = sqlx::query_scalar(violations)
            .fetch_all(self.fixture.store.read())
            .await
            .unwrap();
        assert!(found.is_empty(), "{rule}: {found:?}");
    }
}
