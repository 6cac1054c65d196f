//! Every process that was spawned, and how it ended.
//!
//! ```text
//!            start                exits and is reaped            10,000 others exited
//!  (none) ──────────► running ─────────────────────────► exited ──────────────────────► (none)
//!                        └── its program never ran: discard ──────────────────────────────►┘
//! ```
//!
//! One thread reaps all children, orphans of the sandbox included. It first waits without reaping,
//! then reaps and records with the table locked; a fork also happens with the table locked. So a
//! process id in the table means one process, and no exit is missed, however fast.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group};
use sandstone_protocol::message::{ExitStatus, TerminalSize};

use crate::lock::lock;
use crate::sys::{next_exited, send_signal};
use crate::terminal;

/// Exited processes that can still be asked about.
const EXITED_MAX: usize = 10_000;

/// How long the reaper rests when there is no child, unless one is started. Only a process that
/// somebody else put into the sandbox can leave an orphan meanwhile.
const NO_CHILD_PAUSE: Duration = Duration::from_secs(10);

/// Pause before asking again when the kernel denies a child that the table has.
const UNEXPECTED_PAUSE: Duration = Duration::from_millis(10);

/// Where the answers to waits go: one per connection.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    state: Mutex<Mail>,
    arrival: Condvar,
}

#[derive(Debug, Default)]
struct Mail {
    exits: Vec<(u32, ExitStatus)>,
    closed: bool,
}

impl Mailbox {
    fn deliver(&self, request: u32, status: ExitStatus) {
        let mut mail = lock(&self.state);
        if !mail.closed {
            mail.exits.push((request, status));
            self.arrival.notify_one();
        }
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Blocks until there are answers: pairs of request id and status. Nothing once closed.
    pub(crate) fn receive(&self) -> Option<Vec<(u32, ExitStatus)>> {
        let mut mail = self
            .arrival
            .wait_while(lock(&self.state), |mail| {
                mail.exits.is_empty() && !mail.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        (!mail.closed).then(|| std::mem::take(&mut mail.exits))
    }

    /// Ends [`Self::receive`].
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.arrival.notify_one();
    }
}

/// A process that was started; tells it from a later one with the same id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    /// Process id.
    pub(crate) pid: u32,
    serial: u64,
}

/// The table. One per agent.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
    started: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u32, Process>,
    /// Exited ones, oldest first. Entries that were replaced or discarded are skipped.
    exited: VecDeque<(u32, u64)>,
    running: usize,
    serial: u64,
}

#[derive(Debug)]
struct Process {
    serial: u64,
    status: Option<ExitStatus>,
    /// The master of its terminal, while its streams last.
    terminal: Weak<OwnedFd>,
    waiters: Vec<(Weak<Mailbox>, u32)>,
}

impl Processes {
    /// Records the process that `fork` makes.
    ///
    /// # Errors
    /// Those of `fork`.
    pub(crate) fn start(
        &self,
        fork: impl FnOnce() -> Result<Pid, Errno>,
    ) -> Result<Started, Errno> {
        let mut table = lock(&self.table);
        let pid = fork()?.as_raw_nonzero().get().cast_unsigned();
        table.serial += 1;
        table.running += 1;
        let serial = table.serial;
        table.entries.insert(
            pid,
            Process {
                serial,
                status: None,
                terminal: Weak::new(),
                waiters: Vec::new(),
            },
        );
        self.started.notify_one();
        Ok(Started { pid, serial })
    }

    /// Forgets a process whose program never ran.
    pub(crate) fn discard(&self, started: Started) {
        let mut table = lock(&self.table);
        if table.is(started.pid, started.serial)
            && let Some(process) = table.entries.remove(&started.pid)
            && process.status.is_none()
        {
            table.running -= 1;
        }
    }

    /// Delivers the status of `pid` to `mailbox`, now or when it exits.
    ///
    /// # Errors
    /// `ESRCH` when there was no such process, or it is too long ago.
    pub(crate) fn wait(&self, pid: u32, mailbox: &Arc<Mailbox>, request: u32) -> Result<(), Errno> {
        let mut table = lock(&self.table);
        let process = table.entries.get_mut(&pid).ok_or(Errno::SRCH)?;
        match process.status {
            Some(status) => mailbox.deliver(request, status),
            None => process.waiters.push((Arc::downgrade(mailbox), request)),
        }
        Ok(())
    }

    /// Forgets the waits whose mailbox is closed.
    pub(crate) fn forget_closed_waits(&self) {
        for process in lock(&self.table).entries.values_mut() {
            process.waiters.retain(|(mailbox, _)| {
                mailbox
                    .upgrade()
                    .is_some_and(|mailbox| !mailbox.is_closed())
            });
        }
    }

    /// Sends a signal to a process that runs.
    ///
    /// # Errors
    /// `ESRCH` when it does not, `EINVAL` for a number that is no signal.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> Result<(), Errno> {
        let table = lock(&self.table);
        send_signal(table.running(pid)?, signal)
    }

    /// Sends SIGHUP to a process that runs and to what it has started in its group.
    ///
    /// # Errors
    /// `ESRCH` when it does not run.
    pub(crate) fn hang_up(&self, pid: u32) -> Result<(), Errno> {
        let table = lock(&self.table);
        kill_process_group(table.running(pid)?, Signal::HUP)
    }

    /// Records the terminal of a process that was started with one.
    pub(crate) fn set_terminal(&self, started: Started, master: &Arc<OwnedFd>) {
        let mut table = lock(&self.table);
        if table.is(started.pid, started.serial)
            && let Some(process) = table.entries.get_mut(&started.pid)
        {
            process.terminal = Arc::downgrade(master);
        }
    }

    /// Changes the size of a running process's terminal.
    ///
    /// # Errors
    /// `ESRCH` when it does not run, `ENOTTY` when it has no terminal.
    pub(crate) fn resize(&self, pid: u32, size: TerminalSize) -> Result<(), Errno> {
        let master = match lock(&self.table).entries.get(&pid) {
            Some(process) if process.status.is_none() => process.terminal.upgrade(),
            _ => return Err(Errno::SRCH),
        };
        terminal::resize(&*master.ok_or(Errno::NOTTY)?, size)
    }

    /// Reaps children for ever.
    pub(crate) fn reap(&self) -> ! {
        let mut denials = 0;
        loop {
            match next_exited() {
                Ok(pid) => {
                    denials = 0;
                    self.reap_one(pid);
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    let table = lock(&self.table);
                    let pause = match (table.running, denials) {
                        (0, _) => NO_CHILD_PAUSE,
                        // Started between the kernel's answer and the lock.
                        (_, 0) => Duration::ZERO,
                        _ => UNEXPECTED_PAUSE,
                    };
                    denials = if table.running == 0 { 0 } else { denials + 1 };
                    if !pause.is_zero() {
                        drop(self.started.wait_timeout(table, pause));
                    }
                }
            }
        }
    }

    fn reap_one(&self, pid: Pid) {
        let mut table = lock(&self.table);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let Ok(Some(end)) = rustix::process::waitid(WaitId::Pid(pid), options) else {
            return;
        };
        let status = ExitStatus {
            code: end.exit_status(),
            signal: end.terminating_signal(),
        };
        table.record(pid.as_raw_nonzero().get().cast_unsigned(), status);
    }
}

impl Table {
    /// The process with this id, if it runs. That stays so while the table is locked.
    fn running(&self, pid: u32) -> Result<Pid, Errno> {
        match self.entries.get(&pid) {
            Some(Process { status: None, .. }) => {
                Pid::from_raw(pid.cast_signed()).ok_or(Errno::SRCH)
            }
            _ => Err(Errno::SRCH),
        }
    }

    fn is(&self, pid: u32, serial: u64) -> bool {
        self.entries
            .get(&pid)
            .is_some_and(|process| process.serial == serial)
    }

    fn record(&mut self, pid: u32, status: ExitStatus) {
        let Some(process) = self
            .entries
            .get_mut(&pid)
            .filter(|process| process.status.is_none())
        else {
            return; // An orphan.
        };
        process.status = Some(status);
        for (mailbox, request) in process.waiters.drain(..) {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.deliver(request, status);
            }
        }
        let serial = process.serial;
        self.running -= 1;
        self.exited.push_back((pid, serial));
        while self.exited.len() > EXITED_MAX {
            if let Some((pid, serial)) = self.exited.pop_front()
                && self.is(pid, serial)
            {
                self.entries.remove(&pid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(processes: &Processes, pid: i32) -> Started {
        processes
            .start(|| Pid::from_raw(pid).ok_or(Errno::SRCH))
            .unwrap()
    }

    fn exit(code: i32) -> ExitStatus {
        ExitStatus {
            code: Some(code),
            signal: None,
        }
    }

    #[test]
    fn waits_are_answered_before_and_after_the_exit() {
        let (processes, mailbox) = (Processes::default(), Arc::new(Mailbox::default()));
        assert_eq!(processes.wait(7, &mailbox, 1), Err(Errno::SRCH));
        start(&processes, 7);
        processes.wait(7, &mailbox, 2).unwrap();
        processes.wait(7, &mailbox, 3).unwrap();
        lock(&processes.table).record(7, exit(5));
        processes.wait(7, &mailbox, 4).unwrap();
        assert_eq!(
            mailbox.receive(),
            Some(vec![(2, exit(5)), (3, exit(5)), (4, exit(5))])
        );
        assert_eq!(processes.signal(7, 9), Err(Errno::SRCH), "it has exited");
        mailbox.close();
        assert_eq!(mailbox.receive(), None);
    }

    #[test]
    fn only_so_many_exits_are_remembered() {
        let (processes, mailbox) = (Processes::default(), Arc::new(Mailbox::default()));
        for pid in 1..=EXITED_MAX + 5 {
            let pid = i32::try_from(pid).unwrap();
            start(&processes, pid);
            lock(&processes.table).record(pid.cast_unsigned(), exit(0));
        }
        assert_eq!(lock(&processes.table).entries.len(), EXITED_MAX);
        assert_eq!(processes.wait(5, &mailbox, 1), Err(Errno::SRCH));
        assert_eq!(processes.wait(6, &mailbox, 1), Ok(()));
    }

    #[test]
    fn a_reused_id_is_a_new_process() {
        let (processes, mailbox) = (Processes::default(), Arc::new(Mailbox::default()));
        let first = start(&processes, 7);
        lock(&processes.table).record(7, exit(1));
        start(&processes, 7);
        processes.discard(first);
        processes.wait(7, &mailbox, 1).unwrap();
        lock(&processes.table).record(7, exit(2));
        assert_eq!(mailbox.receive(), Some(vec![(1, exit(2))]));
        assert_eq!(lock(&processes.table).running, 0);
    }

    #[test]
    fn orphans_and_discarded_processes_leave_no_trace() {
        let processes = Processes::default();
        lock(&processes.table).record(99, exit(0));
        let started = start(&processes, 7);
        processes.discard(started);
        processes.discard(started);
        lock(&processes.table).record(7, exit(127));
        let table = lock(&processes.table);
        assert!(table.entries.is_empty() && table.exited.is_empty() && table.running == 0);
    }

    #[test]
    fn waits_of_closed_connections_are_forgotten() {
        let (processes, mailbox) = (Processes::default(), Arc::new(Mailbox::default()));
        start(&processes, 7);
        processes.wait(7, &mailbox, 1).unwrap();
        mailbox.close();
        processes.forget_closed_waits();
        assert!(lock(&processes.table).entries[&7].waiters.is_empty());
    }
}
