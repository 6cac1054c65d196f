//! What the server does with sandboxes, and how it dies.

use sandstone_api::ImageId;
use sandstone_core::{ImageState, Memory, StopReason};

use super::super::fixture::{path, suffix};
use super::world::{World, pick};
use super::{Name, Nth};
use crate::BegunRoot;

impl World {
    pub(super) async fn begin_sandbox(&mut self, root: Option<Name>, volumes: &[Name]) {
        let paths = ["/p0", "/p1", "/p2"];
        let volumes: Vec<_> = volumes.iter().map(|name| self.text(*name)).collect();
        let mounts: Vec<_> = paths
            .into_iter()
            .zip(volumes.iter().map(String::as_str))
            .collect();
        let mut new = self.fixture.new_sandbox(self.number(), &mounts);
        new.root = root.map(|name| self.text(name));
        if let Ok(begun) = self.fixture.store.begin_sandbox(&new, self.now()).await {
            self.sandboxes.push(begun.id);
            if let BegunRoot::Snapshot(id) = begun.root {
                self.reads.insert(begun.id, id);
            }
        }
    }

    pub(super) async fn begin_maintenance(&mut self, n: Nth) {
        let newest = self.images.len().saturating_sub(4);
        let Some(image) = pick(&self.images[newest..], n) else {
            return;
        };
        let begun = self.fixture.store.begin_maintenance(
            suffix(self.number()),
            self.fixture.ours,
            image,
            Memory::default(),
            path("/mnt/image"),
            self.now(),
        );
        if let Ok(id) = begun.await {
            self.sandboxes.push(id);
            if let ImageId::Snapshot(snapshot) = image {
                self.reads.insert(id, snapshot);
            }
        }
    }

    /// A sandbox writes to all volumes that it has mounted.
    pub(super) async fn write(&mut self, n: Nth) {
        let Some(id) = pick(&self.sandboxes, n) else {
            return;
        };
        let volumes: Vec<String> = sqlx::query_scalar(
            "SELECT volume FROM attachments WHERE sandbox = $1 AND state = 'attached'",
        )
        .bind(id.to_string())
        .fetch_all(self.fixture.store.read())
        .await
        .unwrap();
        for volume in volumes {
            let id = ImageId::Volume(volume.parse().unwrap());
            *self.pool.get_mut(&id).expect("what is mounted is there") = self.clock;
            self.content
                .entry(id)
                .and_modify(|content| *content = self.clock);
        }
    }

    /// The server dies, and the next one takes up its work.
    pub(super) async fn crash(mut self, reached_pool: bool, ends: bool) -> Self {
        self.growing.clear();
        for making in std::mem::take(&mut self.making) {
            if reached_pool {
                self.pool.insert(making.id, self.clock);
            }
        }
        for id in std::mem::take(&mut self.purging) {
            if reached_pool {
                self.pool.remove(&id);
            }
        }
        self.fixture = self.fixture.crash().await;
        if ends {
            self.end_sandboxes().await;
        }
        let store = &self.fixture.store;
        for (id, _) in store.growing_volumes().await.unwrap() {
            store.finish_grow(id, Ok(())).await.unwrap();
        }
        let lost = || "the server died".to_owned();
        for id in store.half_created().await.unwrap() {
            match id {
                ImageId::Volume(id) => {
                    store
                        .finish_volume(id, Err(lost()), self.now())
                        .await
                        .unwrap();
                }
                ImageId::Snapshot(id) => {
                    store
                        .finish_snapshot(id, Err(lost()), self.now())
                        .await
                        .unwrap();
                }
            }
        }
        for (id, state) in store.known_images().await.unwrap() {
            if state == ImageState::Purging {
                self.purging.push(id);
            }
        }
        self
    }

    async fn end_sandboxes(&self) {
        let store = &self.fixture.store;
        for sandbox in store.unfinished_sandboxes().await.unwrap() {
            let begun = store.begin_stop(sandbox.id, StopReason::ServerLost).await;
            assert!(!begun.unwrap().already_stopped);
            store
                .sandbox_released(sandbox.id, self.now())
                .await
                .unwrap();
        }
    }
}
