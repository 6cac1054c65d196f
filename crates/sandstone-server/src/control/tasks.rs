//! Work that outlives the request that asked for it, each piece with a name: when some of it does
//! not end, the log says which.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// A set of running tasks. Cheap to clone; clones are the same set.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    names: BTreeMap<u64, String>,
}

/// The name of a running task, taken off the list when the task ends in whatever way.
struct Name {
    open: Arc<Mutex<Open>>,
    number: u64,
}

impl Tasks {
    /// Runs `work` to its end, whoever waits for it.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        name: impl fmt::Display,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.spawn_on(name, work, &Handle::current())
    }

    /// The same from outside the runtime.
    pub(super) fn spawn_on<T: Send + 'static>(
        &self,
        name: impl fmt::Display,
        work: impl Future<Output = T> + Send + 'static,
        runtime: &Handle,
    ) -> JoinHandle<T> {
        let name = self.enter(name.to_string());
        let work = async move {
            let _name = name;
            work.await
        };
        self.tracker.spawn_on(work, runtime)
    }

    /// Waits until all have ended, those that begin meanwhile too.
    pub(super) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// The names of those that run, the oldest first.
    pub(super) fn names(&self) -> Vec<String> {
        lock(&self.open).names.values().cloned().collect()
    }

    fn enter(&self, name: String) -> Name {
        let mut open = lock(&self.open);
        let number = open.next;
        open.next += 1;
        open.names.insert(number, name);
        Name {
            open: self.open.clone(),
            number,
        }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        lock(&self.open).names.remove(&self.number);
    }
}

/// Nothing can panic while it is held.
fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_runs_is_named() {
        let tasks = Tasks::default();
        let (finish, finished) = tokio::sync::oneshot::channel::<()>();
        let waiting = tasks.spawn("waits", async { finished.await.is_ok() });
        tasks.spawn("ends", async {}).await.unwrap();
        let panics = tasks.spawn("panics", async { panic!("as it should") });
        assert!(panics.await.is_err());
        let aborted = tasks.spawn("aborted", std::future::pending::<()>());
        aborted.abort();
        assert!(aborted.await.is_err());
        assert_eq!(tasks.names(), ["waits"]);
        finish.send(()).unwrap();
        assert!(waiting.await.unwrap());
        tasks.ended().await;
        assert_eq!(tasks.names(), [""; 0]);
    }
}
