//! Removing sandboxes, whole or half-made. Every step is fine with nothing to do, so a teardown
//! that was cut short is simply done again.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use super::registry::Hold;
use super::{Prepared, Runtime};
use crate::Error;
use crate::error::Step;
use crate::network::link;
use crate::process::{send_kill, wait_gone};

/// Bound on the end of a sandbox's processes. Their last writes may wait for a slow disk.
const KILL_LIMIT: Duration = Duration::from_secs(20);

impl Runtime {
    /// Kills all processes of a sandbox and removes everything that was made for it. Its file
    /// systems have ended when this returns; its network link vanishes some milliseconds later,
    /// with its network name space. Fine if there is no such sandbox, and finishes what
    /// an earlier attempt or a failed start left. Waits for a start of it that is under way.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::Io`]; it can be tried again.
    pub fn kill(&self, name: &str) -> Result<(), Error> {
        self.kill_with(name, || {})
    }

    /// As [`Runtime::kill`], and calls `doomed` once the processes have been told to end, before
    /// waiting for that. One that waits for a frozen file system ends only when somebody thaws it.
    /// Called also when there is no such sandbox.
    ///
    /// # Errors
    /// As [`Runtime::kill`].
    pub fn kill_with(&self, name: &str, doomed: impl FnOnce()) -> Result<(), Error> {
        match self.registry.take(name, Instant::now() + KILL_LIMIT)? {
            Some(hold) => self.tear_down_with(hold, doomed),
            None => {
                doomed();
                Ok(())
            }
        }
    }

    /// Removes a prepared sandbox.
    ///
    /// # Errors
    /// [`Error::Io`]; the next sweep removes it then.
    pub fn discard(&self, prepared: Prepared) -> Result<(), Error> {
        let Prepared {
            channel,
            shim,
            hold,
            ..
        } = prepared;
        drop((channel, shim));
        self.tear_down(hold)
    }

    /// Removes what never came to run a sandbox and belongs to nobody: what a dead server of this
    /// instance left, and what could not be removed when it failed. Returns the slots.
    ///
    /// # Errors
    /// The first failure, after trying all.
    pub fn sweep(&self) -> Result<Vec<String>, Error> {
        let mut removed = Vec::new();
        let mut first_error = None;
        for hold in self.registry.take_unfinished() {
            let slot = hold.slot().number().to_string();
            match self.tear_down(hold) {
                Ok(()) => removed.push(slot),
                Err(error) => {
                    tracing::warn!(%slot, %error, "cannot sweep slot");
                    first_error.get_or_insert(error);
                }
            }
        }
        if let Err(error) = self.sweep_links() {
            first_error.get_or_insert(error);
        }
        first_error.map_or(Ok(removed), Err)
    }

    /// Removes links that no slot accounts for. They end with their sandbox, unless somebody on
    /// the host keeps its network name space.
    fn sweep_links(&self) -> Result<(), Error> {
        // Listed before the slots: a link that is made meanwhile has its slot by then.
        let names = link::names(&self.config.link_prefix()).step(|| "list links")?;
        let known: Vec<String> = self
            .registry
            .slots()
            .into_iter()
            .map(|slot| self.config.slot_link(slot))
            .collect();
        for name in names.into_iter().filter(|name| !known.contains(name)) {
            link::delete(&name).step(|| format!("remove link {name}"))?;
        }
        Ok(())
    }

    /// Removes what a failed step left. The caller reports that failure, not this one.
    pub(super) fn undo(&self, prepared: Prepared) {
        if let Err(error) = self.discard(prepared) {
            tracing::warn!(%error, "cannot remove a sandbox that failed; the next sweep will");
        }
    }

    /// See [`Self::undo`].
    pub(super) fn tear_down_after_failure(&self, hold: Hold) {
        if let Err(error) = self.tear_down(hold) {
            tracing::warn!(%error, "cannot remove a sandbox that failed; the next sweep will");
        }
    }

    fn tear_down(&self, hold: Hold) -> Result<(), Error> {
        self.tear_down_with(hold, || {})
    }

    fn tear_down_with(&self, hold: Hold, doomed: impl FnOnce()) -> Result<(), Error> {
        let deadline = Instant::now() + KILL_LIMIT;
        let slot = hold.slot();
        let record = hold.record();
        let init = record.as_ref().and_then(|record| record.init);
        let init_pidfd = match init {
            Some(init) => init.open().step(|| format!("open process {}", init.pid))?,
            None => None,
        };
        self.cgroups.begin_kill(slot)?;
        if let Some(pidfd) = &init_pidfd {
            // With PID 1 the kernel kills the whole pid name space, and PID 1 ends last.
            send_kill(pidfd).step(|| "kill a sandbox")?;
        }
        doomed();
        if let Some(pidfd) = &init_pidfd {
            wait_gone(pidfd, deadline).step(|| "wait for a sandbox to end")?;
        }
        // What never came to be part of the pid name space.
        self.cgroups.kill(slot, deadline)?;
        self.cgroups.remove(slot, deadline)?;
        if let Some(socket) = record.and_then(|record| record.agent_socket) {
            match fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(format!("remove {}", socket.display()), error));
                }
                _ => {}
            }
        }
        hold.release()
    }
}
