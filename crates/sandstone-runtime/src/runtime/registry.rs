//! The slots of this instance, in memory and on disk, each used by one thread at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::slot::{Record, Slot, SlotFiles, State};
use crate::{Error, Running};

/// The slots of one instance.
#[derive(Debug)]
pub(super) struct Registry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: SlotFiles,
    slots: Mutex<BTreeMap<Slot, Entry>>,
    /// Signalled when a slot is let go of.
    freed: Condvar,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    /// Whether a thread works on it, or a [`Prepared`](super::Prepared) owns it.
    held: bool,
}

/// The sole right to change a slot. Dropping it keeps the slot as it is.
#[derive(Debug)]
pub(super) struct Hold {
    shared: Arc<Shared>,
    slot: Slot,
}

impl Registry {
    /// Reads what an earlier server left.
    pub(super) fn open(files: SlotFiles) -> Result<Self, Error> {
        let slots = files
            .ours()?
            .into_iter()
            .map(|(slot, record)| {
                (
                    slot,
                    Entry {
                        record,
                        held: false,
                    },
                )
            })
            .collect();
        Ok(Self(Arc::new(Shared {
            files,
            slots: Mutex::new(slots),
            freed: Condvar::new(),
        })))
    }

    /// Takes a free slot of the host.
    pub(super) fn claim(&self) -> Result<Hold, Error> {
        let mut slots = self.0.lock();
        let (slot, record) = self.0.files.claim()?;
        slots.insert(slot, Entry { record, held: true });
        Ok(self.hold(slot))
    }

    /// Takes the slot of the sandbox `name`, waiting for whoever has it; `None` when there is no
    /// such sandbox, or no longer.
    pub(super) fn take(&self, name: &str, deadline: Instant) -> Result<Option<Hold>, Error> {
        let mut slots = self.0.lock();
        loop {
            let Some((slot, entry)) = slots
                .iter_mut()
                .find(|(_, entry)| entry.record.name.as_deref() == Some(name))
            else {
                return Ok(None);
            };
            if !entry.held {
                entry.held = true;
                let slot = *slot;
                return Ok(Some(self.hold(slot)));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::Timeout {
                    step: format!("waiting for another operation on sandbox {name}"),
                    limit: super::PHASE_LIMIT,
                });
            }
            slots = self
                .0
                .freed
                .wait_timeout(slots, deadline - now)
                .unwrap_or_else(|poison| poison.into_inner())
                .0;
        }
    }

    /// Takes every slot that never came to run a sandbox and that nobody works on.
    pub(super) fn take_unfinished(&self) -> Vec<Hold> {
        let mut slots = self.0.lock();
        let mut taken = Vec::new();
        for (slot, entry) in slots.iter_mut() {
            if !entry.held && entry.record.state != State::Running {
                entry.held = true;
                taken.push(self.hold(*slot));
            }
        }
        taken
    }

    pub(super) fn find(&self, name: &str) -> Option<(Slot, Record)> {
        self.0
            .lock()
            .iter()
            .find(|(_, entry)| entry.record.name.as_deref() == Some(name))
            .map(|(slot, entry)| (*slot, entry.record.clone()))
    }

    /// Every slot that is claimed.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.0.lock().keys().copied().collect()
    }

    pub(super) fn running(&self) -> Vec<Running> {
        self.0
            .lock()
            .iter()
            .filter(|(_, entry)| entry.record.state == State::Running)
            .filter_map(|(slot, entry)| {
                let init = entry.record.init?;
                Some(Running {
                    name: entry.record.name.clone()?,
                    slot: slot.number(),
                    pid: init.pid.unsigned_abs(),
                    started: init.started,
                })
            })
            .collect()
    }

    fn hold(&self, slot: Slot) -> Hold {
        Hold {
            shared: Arc::clone(&self.0),
            slot,
        }
    }
}

impl Hold {
    pub(super) fn slot(&self) -> Slot {
        self.slot
    }

    pub(super) fn record(&self) -> Option<Record> {
        self.shared
            .lock()
            .get(&self.slot)
            .map(|entry| entry.record.clone())
    }

    /// Changes the record, on disk and then in memory.
    pub(super) fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut slots = self.shared.lock();
        self.shared.update(&mut slots, self.slot, change)
    }

    /// Gives the slot the name that it will be found by.
    pub(super) fn begin_start(&self, name: &str, agent_socket: PathBuf) -> Result<(), Error> {
        let mut slots = self.shared.lock();
        if slots
            .values()
            .any(|entry| entry.record.name.as_deref() == Some(name))
        {
            return Err(Error::NameInUse(name.to_owned()));
        }
        self.shared.update(&mut slots, self.slot, |record| {
            record.state = State::Starting;
            record.name = Some(name.to_owned());
            record.agent_socket = Some(agent_socket);
        })
    }

    /// Gives the slot back to the host. Everything that it named is gone.
    pub(super) fn release(self) -> Result<(), Error> {
        let mut slots = self.shared.lock();
        self.shared.files.release(self.slot)?;
        slots.remove(&self.slot);
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(entry) = self.shared.lock().get_mut(&self.slot) {
            entry.held = false;
        }
        self.shared.freed.notify_all();
    }
}

impl Shared {
    /// Each change is complete before the lock is let go, so a poisoned lock guards good data.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Slot, Entry>> {
        self.slots
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn update(
        &self,
        slots: &mut BTreeMap<Slot, Entry>,
        slot: Slot,
        change: impl FnOnce(&mut Record),
    ) -> Result<(), Error> {
        let Some(entry) = slots.get_mut(&slot) else {
            return Ok(());
        };
        let mut record = entry.record.clone();
        change(&mut record);
        self.files.write(slot, &record)?;
        entry.record = record;
        Ok(())
    }
}
