//! Making, starting and stopping sandboxes.

use std::fs;
use std::os::fd::OwnedFd;

use sandstone_api::{ImageId, SandboxId, VolumeId};
use sandstone_crash::Point;
use sandstone_node_api::{NodeError, Root, SandboxSpec};
use sandstone_runtime::{Doors, MountSpec, Prepared, RootTree, StartSpec};
use sandstone_storage::{StorageError, VolumeUse};

use super::{ABANDONED_LIMIT, Host, Laps, RELEASE_LIMIT, failed, of_image, of_pool};
use crate::record::{Record, RecordedVolume};
use crate::warm::{Scratch, Warm};

/// What starting a sandbox writes by itself, bytes: tables of its writable layer, a few files of
/// its interior.
const START_BYTES: u64 = 16 << 20;

/// What a sandbox's image-backed trees are once they are mounted.
struct Trees {
    /// The tree that is the root, or lies under it.
    root: OwnedFd,
    mounts: Vec<MountSpec>,
}

impl Host {
    /// Makes what a sandbox needs apart from its files.
    pub(crate) fn prepare(&self) -> Result<Prepared, NodeError> {
        self.runtime
            .prepare()
            .map_err(|error| failed("preparing a sandbox", error))
    }

    /// Makes a writable layer.
    pub(crate) fn make_scratch(&self, name: String) -> Result<Scratch, NodeError> {
        match self.pool.create_scratch(&name, self.limits.scratch_bytes) {
            Ok(mount) => Ok(Scratch { name, mount }),
            Err(error) => Err(of_pool(format!("making the writable layer {name}"), error)),
        }
    }

    /// Makes a sandbox in advance, with the layer `spare` or a new one of this name.
    pub(crate) fn make_warm(
        &self,
        spare: Option<Scratch>,
        name: String,
    ) -> Result<Warm, NodeError> {
        let scratch = match spare {
            Some(spare) => spare,
            None => {
                self.admit(START_BYTES)?;
                self.make_scratch(name)?
            }
        };
        match self.prepare() {
            Ok(prepared) => Ok(Warm { prepared, scratch }),
            Err(error) => {
                self.warn_of(self.discard_scratch(scratch));
                Err(error)
            }
        }
    }

    /// Takes a prepared sandbox down again.
    pub(crate) fn discard(&self, prepared: Prepared) -> Result<(), NodeError> {
        self.runtime
            .discard(prepared)
            .map_err(|error| failed("discarding a sandbox", error))
    }

    /// Removes a writable layer that no sandbox has.
    pub(crate) fn discard_scratch(&self, scratch: Scratch) -> Result<(), NodeError> {
        let exemption = self.exempt_scratch(&scratch.name);
        exemption.begin();
        drop(scratch.mount);
        self.release_scratch(&scratch.name)
    }

    pub(super) fn release_scratch(&self, name: &str) -> Result<(), NodeError> {
        self.pool
            .release_scratch(name, RELEASE_LIMIT)
            .map_err(|error| of_pool(format!("releasing the writable layer {name}"), error))
    }

    /// Says in the log what stays until the next start.
    pub(crate) fn warn_of(&self, outcome: Result<(), NodeError>) {
        if let Err(error) = outcome {
            let error = sandstone_node_api::Chain(&error);
            tracing::warn!(%error, "what could not be removed stays until the next start");
        }
    }

    /// Whether there is room for a sandbox.
    pub(crate) fn admit_sandbox(&self) -> Result<(), NodeError> {
        self.admit(START_BYTES)
    }

    /// Starts a sandbox; returns when the agent has been executed. `scratch` is the writable layer
    /// of a root that needs one. One whose network has a policy comes out at the doors returned.
    pub(crate) fn start(
        &self,
        spec: &SandboxSpec,
        prepared: Prepared,
        scratch: Option<Scratch>,
    ) -> Result<Option<Doors>, NodeError> {
        let (scratch, layer) = scratch.map(|scratch| (scratch.name, scratch.mount)).unzip();
        let record = Record {
            id: spec.id,
            volumes: volumes(spec)
                .map(|id| RecordedVolume {
                    id,
                    attached: false,
                })
                .collect(),
            scratch,
        };
        if let Err(error) = self.records.write(&record) {
            drop(layer);
            self.warn_of(self.discard(prepared));
            if let Some(name) = &record.scratch {
                self.warn_of(self.release_scratch(name));
            }
            return Err(failed(format!("writing the record of {}", spec.id), error));
        }
        sandstone_crash::at(Point::AttachNoted);
        let started = self.start_recorded(spec, record, prepared, layer);
        if started.is_err() {
            self.warn_of(self.stop(spec.id));
        }
        started
    }

    fn start_recorded(
        &self,
        spec: &SandboxSpec,
        mut record: Record,
        prepared: Prepared,
        layer: Option<OwnedFd>,
    ) -> Result<Option<Doors>, NodeError> {
        let mut laps = Laps::start();
        let attached = self.attach(spec, &mut record);
        // These are this sandbox's to release; the others somebody else may hold.
        record.volumes.retain(|volume| volume.attached);
        let noted = self
            .records
            .write(&record)
            .map_err(|error| failed(format!("rewriting the record of {}", spec.id), error));
        let trees = match (attached, noted) {
            (Ok(trees), Ok(())) => trees,
            (Err(error), _) | (_, Err(error)) => {
                self.warn_of(self.discard(prepared));
                return Err(error);
            }
        };
        laps.lap("images mounted");
        sandstone_crash::at(Point::AttachMounted);
        let name = spec.id.suffix().to_owned();
        let start = StartSpec {
            hostname: name.clone(),
            memory_bytes: spec.memory.bytes(),
            cpu_millis: self.limits.cpu_millis,
            pids_max: self.limits.pids,
            open_files: self.limits.open_files,
            root: match layer {
                Some(scratch) => RootTree::Layers {
                    base: trees.root,
                    scratch,
                },
                None => RootTree::Whole(trees.root),
            },
            mounts: trees.mounts,
            agent_socket: self.socket(spec.id),
            name,
        };
        let doors = match self.close_network(spec, &prepared) {
            Ok(doors) => doors,
            Err(error) => {
                drop(start);
                self.warn_of(self.discard(prepared));
                return Err(error);
            }
        };
        laps.lap("network closed");
        self.runtime
            .start(prepared, start)
            .map_err(|error| failed(format!("starting sandbox {}", spec.id), error))?;
        laps.lap("agent executed");
        Ok(doors)
    }

    /// Takes the sandbox's network away if it has a policy.
    fn close_network(
        &self,
        spec: &SandboxSpec,
        prepared: &Prepared,
    ) -> Result<Option<Doors>, NodeError> {
        if spec.network.is_open() {
            return Ok(None);
        }
        let doors = self.runtime.close_network(prepared);
        doors
            .map(Some)
            .map_err(|error| failed(format!("closing the network of {}", spec.id), error))
    }

    /// Mounts what the sandbox is to see, and says in `record` which volumes that attached.
    fn attach(&self, spec: &SandboxSpec, record: &mut Record) -> Result<Trees, NodeError> {
        let mut volume = |id: VolumeId, used: VolumeUse| {
            let tree = self
                .pool
                .attach_volume(id.suffix(), used)
                .map_err(|error| of_image("attaching", id.into(), error))?;
            for recorded in &mut record.volumes {
                recorded.attached |= recorded.id == id;
            }
            Ok(tree)
        };
        let snapshot = |id: sandstone_api::SnapshotId| {
            self.pool
                .snapshot_tree(id.suffix())
                .map_err(|error| of_image("mounting", id.into(), error))
        };
        let root = match spec.root {
            Root::Base => self
                .pool
                .base_tree(&self.base)
                .map_err(|error| of_pool("mounting the base image", error))?,
            Root::Snapshot(id) => snapshot(id)?,
            Root::Volume(id) => volume(id, VolumeUse::Root)?,
        };
        let mut mounts = Vec::with_capacity(spec.mounts.len());
        for mount in &spec.mounts {
            let (tree, read_only) = match mount.image {
                ImageId::Volume(id) => (volume(id, VolumeUse::Data)?, false),
                ImageId::Snapshot(id) => (snapshot(id)?, true),
            };
            mounts.push(MountSpec {
                tree,
                path: mount.path.as_str().to_owned(),
                read_only,
            });
        }
        Ok(Trees { root, mounts })
    }

    /// How many processes of a sandbox were killed because its memory ran out.
    pub(crate) fn oom_kills(&self, id: SandboxId) -> Result<u64, NodeError> {
        self.runtime
            .oom_kills(id.suffix())
            .map_err(|error| failed(format!("counting the victims of {id}'s memory"), error))
    }

    /// Takes a sandbox down, whatever is left of it. Returns when its data is on disk.
    pub(crate) fn stop(&self, id: SandboxId) -> Result<(), NodeError> {
        let mut laps = Laps::start();
        let record = self
            .records
            .read(id)
            .map_err(|error| failed(format!("reading the record of {id}"), error))?;
        let exemption = self.exempt(record.as_ref());
        self.runtime
            .kill_with(id.suffix(), || exemption.begin())
            .map_err(|error| failed(format!("killing sandbox {id}"), error))?;
        laps.lap("processes gone");
        sandstone_crash::at(Point::DetachKilled);
        if let Some(record) = &record {
            for volume in &record.volumes {
                self.release(*volume)?;
            }
            laps.lap("volumes released");
            if let Some(scratch) = &record.scratch {
                self.release_scratch(scratch)?;
            }
            laps.lap("writable layer released");
        }
        drop(exemption);
        sandstone_crash::at(Point::DetachReleased);
        // The runtime bound the socket; its name is ours, so removing it twice is harmless.
        let _ = fs::remove_file(self.socket(id));
        self.records
            .remove(id)
            .map_err(|error| failed(format!("removing the record of {id}"), error))
    }

    fn release(&self, volume: RecordedVolume) -> Result<(), NodeError> {
        let limit = match volume.attached {
            true => RELEASE_LIMIT,
            false => ABANDONED_LIMIT,
        };
        match self.pool.release_volume(volume.id.suffix(), limit) {
            // Another sandbox's.
            Err(StorageError::StillHeld { .. }) if !volume.attached => Ok(()),
            outcome => outcome.map_err(|error| of_pool(format!("releasing {}", volume.id), error)),
        }
    }
}

/// The volumes of a sandbox.
fn volumes(spec: &SandboxSpec) -> impl Iterator<Item = VolumeId> {
    let root = match spec.root {
        Root::Volume(id) => Some(id),
        Root::Base | Root::Snapshot(_) => None,
    };
    let mounted = spec.mounts.iter().filter_map(|mount| match mount.image {
        ImageId::Volume(id) => Some(id),
        ImageId::Snapshot(_) => None,
    });
    root.into_iter().chain(mounted)
}
