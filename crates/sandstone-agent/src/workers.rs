//! Threads for file operations: few run at once, however many are asked for.
//!
//! An operation that waits for the host (for credit or for data) steps aside first: it keeps its
//! thread, but its place goes to the next in the queue. So slow streams never starve or deadlock
//! other operations.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::lock::lock;

/// Operations that run at once. More would only queue in the kernel.
const PLACES: usize = 8;

/// Idle threads that are kept for the next operation.
const IDLE_MAX: usize = 1;

/// Stack of threads that move bytes: buffers are on the heap, recursion nowhere.
pub(crate) const STACK_BYTES: usize = 128 << 10;

/// Runs jobs of one connection.
pub(crate) struct Workers<J> {
    state: Mutex<State<J>>,
    change: Condvar,
    run: fn(J, &mut Place<J>),
    refuse: fn(J),
}

struct State<J> {
    queue: VecDeque<J>,
    /// Threads that hold a place, idle ones included.
    holders: usize,
    idle: usize,
    closed: bool,
}

/// The place of a running job.
pub(crate) struct Place<J> {
    workers: Arc<Workers<J>>,
    aside: bool,
}

impl<J: Send + 'static> Workers<J> {
    /// Workers that run each job with `run`. When no thread can be had and none runs, all queued
    /// jobs go to `refuse`.
    pub(crate) fn new(run: fn(J, &mut Place<J>), refuse: fn(J)) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                holders: 0,
                idle: 0,
                closed: false,
            }),
            change: Condvar::new(),
            run,
            refuse,
        })
    }

    /// Queues a job.
    pub(crate) fn submit(self: &Arc<Self>, job: J) {
        lock(&self.state).queue.push_back(job);
        self.staff();
    }

    /// Drops queued jobs and lets threads end.
    pub(crate) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        let dropped = std::mem::take(&mut state.queue);
        self.change.notify_all();
        drop(state);
        drop(dropped);
    }

    /// Sees to it that somebody takes the next job.
    fn staff(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if state.queue.is_empty() {
            return;
        }
        if state.idle >= state.queue.len() || state.holders >= PLACES {
            self.change.notify_one();
            return;
        }
        state.holders += 1;
        drop(state);

        let workers = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("files".into())
            .stack_size(STACK_BYTES)
            .spawn(move || workers.work());
        if thread.is_err() {
            let mut state = lock(&self.state);
            state.holders -= 1;
            if state.holders > 0 {
                return; // They will come to it.
            }
            let refused = std::mem::take(&mut state.queue);
            drop(state);
            refused.into_iter().for_each(self.refuse);
        }
    }

    fn work(self: Arc<Self>) {
        while let Some(job) = self.next() {
            let mut place = Place {
                workers: Arc::clone(&self),
                aside: false,
            };
            (self.run)(job, &mut place);
            if place.aside {
                let mut state = lock(&self.state);
                if state.closed || state.holders >= PLACES {
                    return;
                }
                state.holders += 1;
            }
        }
    }

    /// The next job, or nothing when this thread may end; its place is then free.
    fn next(&self) -> Option<J> {
        let mut state = lock(&self.state);
        loop {
            if !state.closed
                && let Some(job) = state.queue.pop_front()
            {
                return Some(job);
            }
            if state.closed || state.idle >= IDLE_MAX {
                state.holders -= 1;
                return None;
            }
            state.idle += 1;
            state = self
                .change
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl<J: Send + 'static> Place<J> {
    /// Gives the place to somebody else, for good, because this job is about to wait for the host.
    pub(crate) fn step_aside(&mut self) {
        if !self.aside {
            self.aside = true;
            lock(&self.workers.state).holders -= 1;
            self.workers.staff();
        }
    }
}

impl<J> fmt::Debug for Workers<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

impl<J> fmt::Debug for Place<J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("aside", &self.aside)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(10);

    enum Job {
        /// Says its number.
        Say(u32, Sender<u32>),
        /// Steps aside until told, then says its number.
        Wait(u32, Receiver<()>, Sender<u32>),
    }

    fn workers() -> Arc<Workers<Job>> {
        let run = |job, place: &mut Place<Job>| match job {
            Job::Say(number, to) => to.send(number).unwrap(),
            Job::Wait(number, until, to) => {
                place.step_aside();
                until.recv().unwrap();
                to.send(number).unwrap();
            }
        };
        Workers::new(run, drop)
    }

    #[test]
    fn waiting_jobs_do_not_starve_others() {
        let workers = workers();
        let (said, hear) = channel();
        let mut releases = Vec::new();
        for number in 0..50 {
            let (release, until) = channel();
            releases.push(release);
            workers.submit(Job::Wait(number, until, said.clone()));
        }
        for number in 100..200 {
            workers.submit(Job::Say(number, said.clone()));
        }
        let mut heard: Vec<u32> = (0..100).map(|_| hear.recv_timeout(LONG).unwrap()).collect();
        heard.sort_unstable();
        assert!(heard.iter().copied().eq(100..200));
        for release in releases {
            release.send(()).unwrap();
        }
        let mut heard: Vec<u32> = (0..50).map(|_| hear.recv_timeout(LONG).unwrap()).collect();
        heard.sort_unstable();
        assert!(heard.iter().copied().eq(0..50));

        // Threads end: one idle one stays, and goes when closed.
        let deadline = std::time::Instant::now() + LONG;
        while lock(&workers.state).holders > IDLE_MAX {
            assert!(std::time::Instant::now() < deadline);
            thread::yield_now();
        }
        workers.close();
        while Arc::strong_count(&workers) > 1 {
            assert!(std::time::Instant::now() < deadline);
            thread::yield_now();
        }
    }
}
