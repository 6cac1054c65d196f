//! What the connections of one sandbox share about its processes: whether memory ran out for them,
//! where Deno programs serve HTTP, and REPLs.
//!
//! An entry exists while a connection or the watch over a Deno process holds it; the map itself
//! keeps none alive. Nothing here is needed after a crash.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sandstone_api::SandboxId;
use tokio_util::sync::CancellationToken;

use super::repl::Repl;

/// Processes of one sandbox that are remembered. As many as the agent remembers the end of.
const PROCESSES_MAX: usize = 10_000;

type Entries = Arc<Mutex<HashMap<SandboxId, Weak<Programs>>>>;

/// The entries of all sandboxes.
#[derive(Debug, Default)]
pub(in crate::edge) struct SandboxPrograms(Entries);

impl SandboxPrograms {
    /// A sandbox's entry.
    pub(in crate::edge) fn of(&self, sandbox: SandboxId) -> Arc<Programs> {
        let mut entries = lock(&self.0);
        if let Some(programs) = entries.get(&sandbox).and_then(Weak::upgrade) {
            return programs;
        }
        let programs = Arc::new(Programs {
            sandbox,
            entries: self.0.clone(),
            state: Mutex::default(),
        });
        entries.insert(sandbox, Arc::downgrade(&programs));
        programs
    }
}

/// The processes of one sandbox.
#[derive(Debug)]
pub(in crate::edge) struct Programs {
    sandbox: SandboxId,
    entries: Entries,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: HashMap<u32, Memory>,
    /// Oldest first. Those whose number was given again are skipped.
    order: VecDeque<(u32, u64)>,
    serial: u64,
    deno: HashMap<u32, Arc<DenoProcess>>,
}

/// What is known of memory around one process.
#[derive(Debug)]
struct Memory {
    serial: u64,
    /// Victims in the sandbox when it was started.
    kills_before: Option<u64>,
    /// Settled when it was asked for the first time: later victims are others.
    verdict: Option<Option<&'static str>>,
}

/// A running Deno program or REPL.
#[derive(Debug)]
pub(super) struct DenoProcess {
    /// The unix socket of its first HTTP server. The program may not serve at all.
    pub(super) http_socket: String,
    /// The conversation with it, if it is a REPL.
    pub(super) repl: Option<Repl>,
    /// Fires when it has exited.
    pub(super) exited: CancellationToken,
}

impl Programs {
    /// A process was started, while this many had been killed for memory.
    pub(super) fn begun(&self, pid: u32, kills: Option<u64>) {
        let mut state = self.lock();
        state.serial += 1;
        let serial = state.serial;
        let memory = Memory {
            serial,
            kills_before: kills,
            verdict: None,
        };
        state.memory.insert(pid, memory);
        state.order.push_back((pid, serial));
        while state.order.len() > PROCESSES_MAX {
            if let Some((pid, serial)) = state.order.pop_front()
                && state
                    .memory
                    .get(&pid)
                    .is_some_and(|memory| memory.serial == serial)
            {
                state.memory.remove(&pid);
            }
        }
    }

    /// What was found out about a process's memory before, if it was asked for.
    pub(super) fn verdict(&self, pid: u32) -> Option<Option<&'static str>> {
        self.lock().memory.get(&pid)?.verdict
    }

    /// Finds out whether memory ran out since a process was started: `confidence`, or nothing.
    pub(super) fn judge(
        &self,
        pid: u32,
        kills: u64,
        confidence: &'static str,
    ) -> Option<&'static str> {
        let mut state = self.lock();
        let memory = state.memory.get_mut(&pid)?;
        let has_grown = memory.kills_before.is_some_and(|before| kills > before);
        *memory
            .verdict
            .get_or_insert(has_grown.then_some(confidence))
    }

    /// A Deno program or REPL was started.
    pub(super) fn add_deno(&self, pid: u32, process: Arc<DenoProcess>) {
        self.lock().deno.insert(pid, process);
    }

    /// It has exited, and its files are gone.
    pub(super) fn remove_deno(&self, pid: u32, process: &Arc<DenoProcess>) {
        let mut state = self.lock();
        if state
            .deno
            .get(&pid)
            .is_some_and(|known| Arc::ptr_eq(known, process))
        {
            state.deno.remove(&pid);
        }
    }

    /// A Deno program or REPL that has not exited.
    pub(super) fn deno(&self, pid: u32) -> Option<Arc<DenoProcess>> {
        self.lock().deno.get(&pid).cloned()
    }

    /// The path, in the sandbox, of the unix socket on which a Deno process serves HTTP, once it
    /// does.
    pub(in crate::edge) fn http_socket(&self, pid: u32) -> Option<String> {
        self.deno(pid).map(|process| process.http_socket.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        let mut entries = lock(&self.entries);
        // A new entry may have taken the place already.
        if entries
            .get(&self.sandbox)
            .is_some_and(|entry| entry.strong_count() == 0)
        {
            entries.remove(&self.sandbox);
        }
    }
}

fn lock(entries: &Entries) -> MutexGuard<'_, HashMap<SandboxId, Weak<Programs>>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs() -> (SandboxPrograms, Arc<Programs>) {
        let all = SandboxPrograms::default();
        let id = "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap();
        let programs = all.of(id);
        assert!(Arc::ptr_eq(&all.of(id), &programs), "shared");
        (all, programs)
    }

    #[test]
    fn memory_is_judged_once() {
        let (_, programs) = programs();
        programs.begun(1, Some(2));
        assert_eq!(programs.verdict(1), None);
        assert_eq!(programs.judge(1, 2, "high"), None, "nobody was killed");
        assert_eq!(
            programs.judge(1, 3, "high"),
            None,
            "a later victim is another"
        );
        programs.begun(1, Some(3));
        assert_eq!(programs.judge(1, 4, "high"), Some("high"));
        assert_eq!(programs.verdict(1), Some(Some("high")));
        assert_eq!(programs.judge(2, 9, "high"), None, "an unknown process");
        programs.begun(3, None);
        assert_eq!(
            programs.judge(3, 9, "high"),
            None,
            "nothing to compare with"
        );
    }

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let (all, programs) = programs();
        for pid in 0..20_000 {
            programs.begun(pid, Some(0));
        }
        assert_eq!(programs.lock().memory.len(), PROCESSES_MAX);
        drop(programs);
        assert!(lock(&all.0).is_empty());
    }
}
