//! Walks on behalf of the host, each on a thread of its own.
//!
//! A pattern can keep a walk busy for as long as it likes, and nobody can stop it in the middle of
//! a match. So walks are not done by the threads for files, and their number is bounded.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::io::Errno;
use sandstone_protocol::message::{
    Failure, GlobOptions, WALK_ENTRY_MAX_BYTES, WalkEntry, WalkOptions, encode,
};

use crate::connection::{Closed, Connection};
use crate::expand::Expansion;
use crate::failure::{failure, file_failure};
use crate::lock::lock;
use crate::stream::Outlet;
use crate::sys::assume_file_identity;
use crate::walk::{Filter, Found, Step, Walk, text};

/// Walks at once, in the whole sandbox.
const WALKS_MAX: usize = 64;

/// Reading a pattern recurses up to 256 groups deep. Only what is touched is backed by memory.
const STACK_BYTES: usize = 4 << 20;

/// Entries are sent in pieces of about this size.
const BATCH_BYTES: usize = 32 << 10;

/// How many walks are under way.
#[derive(Debug, Default)]
pub(crate) struct Walks(AtomicUsize);

/// What to do.
#[derive(Debug)]
pub(crate) enum Job {
    Walk { path: String, options: WalkOptions },
    Expand { glob: String, options: GlobOptions },
}

/// Why a walk ends early.
enum End {
    Failed(Failure),
    /// Nobody wants more.
    Unwanted,
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Unwanted
    }
}

/// Starts a walk that answers request `id` and sends what it finds to `outlet`.
///
/// # Errors
/// [`Closed`].
pub(crate) fn start(
    connection: &Arc<Connection>,
    id: u32,
    job: Job,
    outlet: Arc<Outlet>,
) -> Result<(), Closed> {
    let busy = |sink| connection.fail(id, &[sink], failure(Errno::AGAIN, "walk through a tree"));
    let sink = outlet.id;
    let walks = &connection.agent.walks.0;
    if walks.fetch_add(1, Ordering::Relaxed) >= WALKS_MAX {
        walks.fetch_sub(1, Ordering::Relaxed);
        return busy(sink);
    }
    let walker = Arc::clone(connection);
    let thread = thread::Builder::new()
        .name("walk".into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            let mut is_answered = false;
            match perform(&walker, id, &job, &outlet, &mut is_answered) {
                Ok(()) | Err(End::Unwanted) => {}
                // A host that is gone needs no answer.
                Err(End::Failed(failure)) if is_answered => {
                    let _ = walker.give_up_stream(sink, &failure);
                }
                Err(End::Failed(failure)) => {
                    let _ = walker.fail(id, &[sink], failure);
                }
            }
            walker.agent.walks.0.fetch_sub(1, Ordering::Relaxed);
        });
    if thread.is_err() {
        walks.fetch_sub(1, Ordering::Relaxed);
        return busy(sink);
    }
    Ok(())
}

fn perform(
    connection: &Connection,
    id: u32,
    job: &Job,
    outlet: &Outlet,
    is_answered: &mut bool,
) -> Result<(), End> {
    let (identity, directory): (_, PathBuf) = {
        let interior = lock(&connection.agent.interior);
        let identity = interior.account.identity.clone();
        (identity, interior.working_directory.clone())
    };
    let (operation, name) = match job {
        Job::Walk { path, .. } => ("walk", path),
        Job::Expand { glob, .. } => ("expandglob", glob),
    };
    let named = |errno| End::Failed(file_failure(errno, operation, name));
    assume_file_identity(&identity).map_err(named)?;
    let mut out = Out {
        connection,
        outlet,
        batch: Vec::new(),
    };
    match job {
        Job::Walk { path, options } => {
            let filter = Filter::new(options).map_err(End::Failed)?;
            if path.is_empty() {
                return Err(named(Errno::NOENT));
            }
            let mut walk =
                Walk::new(path.as_bytes(), directory, options, &filter).map_err(named)?;
            connection.reply(id, Ok(sandstone_protocol::message::Answer::Done))?;
            *is_answered = true;
            loop {
                match walk.step().map_err(named)? {
                    Step::Found(found) => out.add(&found)?,
                    Step::Busy => out.flush()?,
                    Step::End => break,
                }
            }
        }
        Job::Expand { glob, options } => {
            let expansion = Expansion::new(glob, options, &directory).map_err(End::Failed)?;
            connection.reply(id, Ok(sandstone_protocol::message::Answer::Done))?;
            *is_answered = true;
            let is_wanted = || outlet.credit().is_some();
            for found in expansion.run(&is_wanted).map_err(named)? {
                out.add(&found)?;
            }
        }
    }
    out.flush()?;
    Ok(connection.end(outlet)?)
}

/// Entries on their way.
struct Out<'a> {
    connection: &'a Connection,
    outlet: &'a Outlet,
    batch: Vec<u8>,
}

impl Out<'_> {
    fn add(&mut self, found: &Found) -> Result<(), End> {
        let entry = encode(&WalkEntry {
            path: text(&found.path).into_owned(),
            name: text(&found.name).into_owned(),
            kind: found.kind,
        });
        if entry.len() > WALK_ENTRY_MAX_BYTES {
            let failure = failure(Errno::NAMETOOLONG, "walk through a tree");
            return Err(End::Failed(failure));
        }
        let length = u32::try_from(entry.len()).unwrap_or(u32::MAX);
        self.batch.extend(length.to_le_bytes());
        self.batch.extend(entry);
        if self.batch.len() < BATCH_BYTES {
            return Ok(());
        }
        self.flush()
    }

    /// Sends what there is, waiting for credit.
    fn flush(&mut self) -> Result<(), End> {
        let mut rest = &self.batch[..];
        loop {
            let waker = self.outlet.waker();
            waker.clear();
            match self.outlet.spend(rest.len()).ok_or(End::Unwanted)? {
                _ if rest.is_empty() => break,
                0 => waker.sleep(None),
                length => {
                    self.connection.data(self.outlet, &rest[..length])?;
                    rest = &rest[length..];
                }
            }
        }
        self.batch.clear();
        Ok(())
    }
}
