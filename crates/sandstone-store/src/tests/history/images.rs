//! What the server does with volumes and snapshots.

use sandstone_api::ImageId;

use super::super::fixture::{GB, TAKEN, capacity, slug, snapshot_id, volume_id};
use super::world::{Making, World, take};
use super::{Name, Nth, SLUGS, Source};
use crate::{NewSource, NewVolume, Origin, StoreError, Usage};

impl World {
    pub(super) async fn begin_volume(&mut self, slug: usize, source: Source) {
        let source = match source {
            Source::Empty => NewSource::Empty,
            Source::Base => NewSource::Base,
            Source::Import => NewSource::Import { is_bootable: false },
            Source::Copy(name) => {
                let text = self.text(name);
                let snapshot = self.fixture.store.snapshot(self.fixture.ours, &text).await;
                if snapshot.is_ok() {
                    NewSource::Snapshot(text)
                } else {
                    NewSource::Volume(text)
                }
            }
        };
        let is_copy = matches!(source, NewSource::Snapshot(_) | NewSource::Volume(_));
        let new = NewVolume {
            capacity: (!is_copy).then(|| capacity(GB)),
            source,
            ..self
                .fixture
                .new_volume(volume_id(self.number()), SLUGS[slug])
        };
        let begun = self.fixture.store.begin_volume(&new, self.now()).await;
        if let Ok((volume, origin)) = begun {
            let id = ImageId::from(volume.id);
            self.images.push(id);
            if origin == Origin::Import {
                // It is there, empty, before it is filled.
                self.pool.insert(id, self.clock);
            }
            let source = match origin {
                Origin::Image(source) => Some(source),
                Origin::Empty | Origin::Base | Origin::Import => None,
            };
            self.making.push(Making { id, source });
        }
    }

    pub(super) async fn begin_snapshot(&mut self, volume: Name, slug: usize) {
        let number = self.number();
        let new = self
            .fixture
            .new_snapshot(number, &self.text(volume), SLUGS[slug]);
        let begun = self.fixture.store.begin_snapshot(&new, self.now()).await;
        if let Ok(snapshot) = begun {
            assert_eq!(snapshot.id, snapshot_id(number));
            let id = ImageId::from(snapshot.id);
            self.images.push(id);
            let source = Some(snapshot.volume.0.into());
            self.making.push(Making { id, source });
        }
    }

    pub(super) async fn finish_making(&mut self, n: Nth, made: bool) {
        let Some(Making { id, source }) = take(&mut self.making, n) else {
            return;
        };
        // The copy needs its source until the last moment.
        let copied = source.map(|source| {
            *self
                .pool
                .get(&source)
                .unwrap_or_else(|| panic!("{source} is gone, {id} needs it"))
        });
        let content = copied.or(self.pool.get(&id).copied()).unwrap_or(self.clock);
        self.pool.insert(id, content);
        let store = &self.fixture.store;
        let failure = "broken".to_owned();
        match id {
            ImageId::Volume(id) => {
                let outcome = if made { Ok(()) } else { Err(failure) };
                store.finish_volume(id, outcome, self.now()).await.unwrap();
            }
            ImageId::Snapshot(id) => {
                let outcome = if made { Ok(TAKEN) } else { Err(failure) };
                store
                    .finish_snapshot(id, outcome, self.now())
                    .await
                    .unwrap();
            }
        }
        if made {
            self.content.insert(id, content);
        }
    }

    pub(super) async fn delete(&mut self, name: Name) {
        let (store, ours, text) = (&self.fixture.store, self.fixture.ours, self.text(name));
        let now = self.now();
        let volume = store.delete_volume(ours, &text, now).await.ok();
        let snapshot = store.delete_snapshot(ours, &text, now).await.ok();
        let volume = volume.map(|volume| volume.id.into());
        let snapshot = snapshot.map(|snapshot| snapshot.id.into());
        assert!(
            volume.is_none() || snapshot.is_none(),
            "{text} was two things"
        );
        let deleted = volume.or(snapshot).map(|id: ImageId| (id, now));
        self.deleted.extend(deleted);
    }

    pub(super) async fn restore(&mut self, name: Name, new_slug: Option<usize>) {
        let (store, ours, text) = (&self.fixture.store, self.fixture.ours, self.text(name));
        let new_slug = new_slug.map(|n| slug(SLUGS[n]));
        let (after, now) = (self.grace_end(), self.now());
        let volume = store
            .restore_volume(ours, &text, new_slug.clone(), after, now)
            .await;
        let snapshot = store
            .restore_snapshot(ours, &text, new_slug, after, now)
            .await;
        let volume = volume.map(|volume| volume.id.into());
        let snapshot = snapshot.map(|snapshot| snapshot.id.into());
        for restored in [volume, snapshot] {
            match restored {
                Ok(id) => {
                    let deleted = self.deleted.remove(&id);
                    assert!(deleted.is_none_or(|at| at > after), "{id} came back late");
                }
                Err(
                    StoreError::SlugTaken(_)
                    | StoreError::NotRestorable { .. }
                    | StoreError::VolumeNotFound { .. }
                    | StoreError::SnapshotNotFound { .. },
                ) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    pub(super) async fn begin_purge(&mut self, id: ImageId) -> bool {
        let begun = self
            .fixture
            .store
            .begin_purge(id, self.grace_end(), self.now())
            .await;
        let begun = begun.unwrap();
        if begun {
            assert!(self.making.iter().all(|making| making.source != Some(id)));
            let deleted = self.deleted.remove(&id);
            assert!(
                deleted.is_none_or(|at| at <= self.grace_end()),
                "{id} could be restored"
            );
            self.content.remove(&id);
            if !self.purging.contains(&id) {
                self.purging.push(id);
            }
        }
        begun
    }

    pub(super) async fn finish_purge(&mut self, id: ImageId) {
        self.purging.retain(|other| *other != id);
        self.pool.remove(&id);
        let finished = self.fixture.store.finish_purge(id, self.now()).await;
        finished.unwrap();
    }

    pub(super) async fn begin_grow(&mut self, name: Name, size: u64) {
        let (store, text) = (&self.fixture.store, self.text(name));
        let begun = store.begin_grow(self.fixture.ours, &text, capacity(size * GB), self.now());
        if let Ok(volume) = begun.await
            && volume.growing_to.is_some()
        {
            self.growing.push(volume.id);
        }
    }

    pub(super) async fn measure(&mut self) {
        let store = &self.fixture.store;
        for id in store.images_to_measure().await.unwrap() {
            assert!(self.pool.contains_key(&id));
            let recorded = store.record_measured(id, Usage::default(), 1, self.now());
            recorded.await.unwrap();
        }
    }
}
