//! The files that one connection has open.
//!
//! The connection to the agent is shared by all clients of a sandbox, so the agent cannot know
//! whose a file is: each session keeps its own, and closes them when it ends. Ids that clients see
//! count from 1 in each session.
//!
//! Calls of a client run concurrently, but those on one file take turns, in the order in which
//! they came. A turn is queued while the socket is read, before the call's own task begins.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandstone_node_api::AgentClient;
use sandstone_protocol::message::{Failure, HANDLE_BYTES_MAX, HandleId, Request};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::RemoteError;

/// Open files of one session. JavaScript's `download` opens every file of a tree and closes none.
const FILES_MAX: usize = 4096;

/// Calls on open files of one session that have not been carried out, also those that the client
/// has given up: they keep their place in the order.
const TURNS_MAX: usize = 20_000;

/// Longest path of a file that is opened, bytes: `PATH_MAX` of Linux without its terminator. Each
/// open file keeps its path.
const PATH_MAX_BYTES: usize = 4095;

/// How long the agent may take for what nobody waits for. Longer than it may take to read the
/// request, so that it is not taken back before the connection is given up.
const DETACHED_LIMIT: Duration = Duration::from_secs(120);

/// Bytes that reads and writes of one session have under way together.
const ROOM_BYTES: usize = 8 << 20;

/// The open files of one session.
#[derive(Debug)]
pub(super) struct Handles {
    table: Mutex<Table>,
    /// Places for turns.
    turns: Arc<Semaphore>,
    /// Room for the bytes of reads and writes.
    pub(super) room: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    files: HashMap<u64, Arc<OpenFile>>,
    /// The session is over.
    ended: bool,
}

/// A file that is open, or is just being opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The agent's id.
    pub(super) handle: HandleId,
    /// As the client gave it.
    pub(super) path: String,
    /// It can make a read or write wait for ever.
    pub(super) blocks: AtomicBool,
    /// Fires when the client closes it.
    pub(super) closing: CancellationToken,
    /// Fires when the last turn so far is over.
    last_turn: Mutex<CancellationToken>,
}

/// The turn of one call on its file. The next comes when this one is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    /// The file.
    pub(super) file: Arc<OpenFile>,
    before: CancellationToken,
    over: CancellationToken,
    place: Place,
}

/// A turn's place among all of the session.
#[derive(Debug)]
enum Place {
    Taken {
        _permit: OwnedSemaphorePermit,
    },
    /// A close always has one: without it the file would stay open.
    NotNeeded,
    /// There is none, and the call is refused.
    Refused,
}

/// A file that is being opened. Dropping it without [`Opening::done`] closes it.
#[derive(Debug)]
pub(super) struct Opening<'a> {
    handles: &'a Handles,
    agent: &'a Arc<AgentClient>,
    id: u64,
    /// The file.
    pub(super) file: Arc<OpenFile>,
    is_done: bool,
}

impl Default for Handles {
    fn default() -> Self {
        const _: () = assert!(HANDLE_BYTES_MAX <= ROOM_BYTES);
        Self {
            table: Mutex::default(),
            turns: Arc::new(Semaphore::new(TURNS_MAX)),
            room: Arc::new(Semaphore::new(ROOM_BYTES)),
        }
    }
}

impl Handles {
    /// Takes note of a file that is about to be opened.
    pub(super) fn open<'a>(
        &'a self,
        agent: &'a Arc<AgentClient>,
        path: &str,
    ) -> Result<Opening<'a>, RemoteError> {
        check_path(path)?;
        let mut table = self.lock();
        if table.ended {
            return Err(RemoteError::connection_closing("the connection has ended"));
        }
        if table.files.len() >= FILES_MAX {
            return Err(RemoteError::new(
                "Error",
                format!(
                    "Too many open files (os error 24): this connection has {FILES_MAX} files \
                     open; close some: open '{path}'"
                ),
            )
            .with_code("EMFILE"));
        }
        let ready = CancellationToken::new();
        ready.cancel();
        let file = Arc::new(OpenFile {
            handle: agent.fresh_id(),
            path: path.to_owned(),
            blocks: AtomicBool::new(false),
            closing: CancellationToken::new(),
            last_turn: Mutex::new(ready),
        });
        table.last_id += 1;
        let id = table.last_id;
        table.files.insert(id, file.clone());
        Ok(Opening {
            handles: self,
            agent,
            id,
            file,
            is_done: false,
        })
    }

    /// Queues a call, if it is one on an open file. A call that closes the file is the last: it
    /// ends waits, and calls after it find no file.
    pub(super) fn queue(&self, method: &str, params: Option<&Value>) -> Option<Turn> {
        if !method.starts_with("file") {
            return None;
        }
        let id = params?.get("fileHandleId")?.as_u64()?;
        let file = if method == "fileClose" {
            let file = self.lock().files.remove(&id)?;
            file.closing.cancel();
            file
        } else {
            self.lock().files.get(&id)?.clone()
        };
        let over = CancellationToken::new();
        let place = match self.turns.clone().try_acquire_owned() {
            _ if method == "fileClose" => Place::NotNeeded,
            Ok(permit) => Place::Taken { _permit: permit },
            Err(_) => {
                let before = over.clone();
                before.cancel();
                return Some(Turn {
                    file,
                    before,
                    over,
                    place: Place::Refused,
                });
            }
        };
        let before = std::mem::replace(
            &mut *file
                .last_turn
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
            over.clone(),
        );
        Some(Turn {
            file,
            before,
            over,
            place,
        })
    }

    /// Closes all files: the session is over.
    pub(super) fn close(&self, agent: &Arc<AgentClient>) {
        let handles: Vec<HandleId> = {
            let mut table = self.lock();
            table.ended = true;
            table.files.drain().map(|(_, file)| file.handle).collect()
        };
        tell(agent, handles);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses what the kernel would refuse, before anybody keeps it.
fn check_path(path: &str) -> Result<(), RemoteError> {
    const ENAMETOOLONG: i32 = 36;
    if path.len() <= PATH_MAX_BYTES {
        return Ok(());
    }
    let failure = Failure {
        errno: Some(ENAMETOOLONG),
        message: "the path is too long".to_owned(),
    };
    let begin = &path[..path.floor_char_boundary(PATH_MAX_BYTES)];
    let operation = format!("open '{begin}…'");
    Err(RemoteError::from_failure(&failure, &operation))
}

/// Lets the agent close files, whoever waits for that.
pub(super) fn tell(agent: &Arc<AgentClient>, handles: Vec<HandleId>) {
    if !handles.is_empty() {
        detach(agent, Request::Close { handles });
    }
}

/// Asks the agent for something whose outcome nobody waits for.
pub(super) fn detach(agent: &Arc<AgentClient>, request: Request) {
    let agent = agent.clone();
    tokio::spawn(async move {
        // Without the agent the file is closed as well.
        let _ = tokio::time::timeout(DETACHED_LIMIT, agent.call(request)).await;
    });
}

impl Opening<'_> {
    /// The file is open. What the client is to call it.
    pub(super) fn done(mut self, blocks: bool) -> u64 {
        self.file.blocks.store(blocks, Ordering::Relaxed);
        self.is_done = true;
        self.id
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.is_done && self.handles.lock().files.remove(&self.id).is_some() {
            tell(self.agent, vec![self.file.handle]);
        }
    }
}

impl Turn {
    /// Waits until all calls before this one are over.
    ///
    /// # Errors
    /// When too many wait.
    pub(super) async fn come(&self) -> Result<(), RemoteError> {
        if matches!(self.place, Place::Refused) {
            let why = format!("{TURNS_MAX} calls on open files are waiting on this connection");
            return Err(RemoteError::new("Error", why).with_code("EAGAIN"));
        }
        self.before.cancelled().await;
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.before.is_cancelled() {
            self.over.cancel();
            return;
        }
        // Given up before its time: the next still waits for those before.
        let (before, over) = (self.before.clone(), self.over.clone());
        let place = std::mem::replace(&mut self.place, Place::NotNeeded);
        tokio::spawn(async move {
            before.cancelled().await;
            over.cancel();
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use sandstone_protocol::GENERATION;
    use sandstone_protocol::frame::{Frame, FrameKind};
    use sandstone_protocol::message::{Hello, encode};
    use serde_json::json;
    use tokio::io::AsyncWriteExt;

    fn file() -> Arc<OpenFile> {
        let ready = CancellationToken::new();
        ready.cancel();
        Arc::new(OpenFile {
            handle: 1,
            path: "file".to_owned(),
            blocks: AtomicBool::new(false),
            closing: CancellationToken::new(),
            last_turn: Mutex::new(ready),
        })
    }

    #[test]
    fn a_path_that_is_too_long_is_not_kept() {
        assert!(check_path(&"x".repeat(4095)).is_ok());
        let refused = check_path(&"ü".repeat(1 << 20)).unwrap_err().to_value();
        assert_eq!(refused["code"], "ENAMETOOLONG");
        assert!(refused["message"].as_str().unwrap().len() < 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_does_not_wait_for_ever() {
        // An agent that says hello, reads everything and answers nothing.
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let hello = Frame {
            kind: FrameKind::Hello,
            id: 0,
            payload: encode(&Hello {
                generation: GENERATION,
            }),
        };
        theirs.write_all(&hello.encode()).await.unwrap();
        let agent = AgentClient::connect(ours).await.unwrap();
        tokio::spawn(async move { tokio::io::copy(&mut theirs, &mut tokio::io::sink()).await });
        detach(&agent, Request::Close { handles: vec![1] });
        assert_eq!(Arc::strong_count(&agent), 2);
        tokio::time::sleep(2 * DETACHED_LIMIT).await;
        assert_eq!(Arc::strong_count(&agent), 1);
        assert!(!agent.is_closed());
    }

    #[tokio::test]
    async fn calls_on_a_file_take_turns_whoever_gives_up() {
        let handles = Handles::default();
        handles.lock().files.insert(1, file());
        let params = json!({"fileHandleId": 1});
        let queue = |method| handles.queue(method, Some(&params));
        assert!(queue("open").is_none());
        let [first, second, third] = [(); 3].map(|()| queue("fileRead").unwrap());
        first.come().await.unwrap();
        assert!(second.come().now_or_never().is_none());
        drop(second);
        tokio::task::yield_now().await;
        assert!(
            third.come().now_or_never().is_none(),
            "the first is not over"
        );
        drop(first);
        third.come().await.unwrap();
        let last = queue("fileClose").unwrap();
        assert!(third.file.closing.is_cancelled());
        assert!(queue("fileRead").is_none(), "no call comes after the close");
        assert!(last.come().now_or_never().is_none());
        drop(third);
        last.come().await.unwrap();
    }

    #[tokio::test]
    async fn calls_that_were_given_up_count_until_their_turn() {
        let handles = Handles::default();
        handles.lock().files.insert(1, file());
        let params = json!({"fileHandleId": 1});
        let queue = |method| handles.queue(method, Some(&params)).unwrap();
        let first = queue("fileRead");
        for _ in 1..TURNS_MAX {
            drop(queue("fileRead"));
        }
        let refused = queue("fileRead").come().await;
        assert!(refused.is_err(), "tasks without bound");
        // It is not in the order, and a close has its place.
        let close = queue("fileClose");
        drop(first);
        close.come().await.unwrap();
        drop(close);
        while handles.turns.available_permits() < TURNS_MAX {
            tokio::task::yield_now().await;
        }
    }
}
