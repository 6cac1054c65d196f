//! A stand-in for the agent in a sandbox: speaks the real protocol over an in-memory stream, and
//! runs real commands and touches real files as the user of the tests; or, [`Place::Nowhere`],
//! none at all.

use std::collections::{BTreeMap, HashMap};
use std::io::{Error, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sandstone_node_api::AgentClient;
use sandstone_protocol::GENERATION;
use sandstone_protocol::frame::{Frame, FrameKind, HEADER_BYTES, WINDOW_BYTES, decode_header};
use sandstone_protocol::message::{
    self, Answer, DialTarget, Entry, ExitStatus, Failure, FileChange, FileKind, FileTime, Hello,
    Metadata, Reply, Request, Spawn, WriteOptions,
};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex,
    split,
};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::Command;
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::nowhere;
use super::open_files::OpenFiles;

/// What comes on a stream of the host: bytes, then nothing for its end.
pub(super) type Source = mpsc::Receiver<Option<Vec<u8>>>;

/// Where the processes and files of a stand-in are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Place {
    /// On this machine.
    #[default]
    Here,
    /// Made up: see [`nowhere`].
    Nowhere,
}

/// The streams of one request that the host sends on.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// Standard input, the content of a file, or what goes to a server.
    pub(super) input: Option<Source>,
    /// The socket of a process.
    pub(super) socket: Option<Source>,
}

/// The running stand-in. Dropping it kills its processes and breaks the connection.
#[derive(Debug)]
pub(super) struct FakeAgent(AbortHandle);

impl FakeAgent {
    /// Ends it in the middle of whatever it does.
    pub(super) fn stop(&self) {
        self.0.abort();
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) struct Shared {
    out: AsyncMutex<WriteHalf<DuplexStream>>,
    credits: Mutex<HashMap<u32, Arc<Semaphore>>>,
    sources: Mutex<HashMap<u32, mpsc::Sender<Option<Vec<u8>>>>>,
    pub(super) exits: Mutex<HashMap<u32, watch::Receiver<Option<ExitStatus>>>>,
    pub(super) environment: Mutex<BTreeMap<String, String>>,
    open_files: OpenFiles,
    pub(super) processes: nowhere::Processes,
    /// Cancelled at the end: kills the processes.
    pub(super) end: CancellationToken,
}

/// Starts a stand-in whose processes have these variables, and connects to it.
pub(super) async fn start(
    place: Place,
    environment: BTreeMap<String, String>,
) -> (FakeAgent, Arc<AgentClient>) {
    let (host, agent) = duplex(1 << 20);
    let task = tokio::spawn(serve(place, agent, environment));
    let client = AgentClient::connect(host).await.unwrap();
    (FakeAgent(task.abort_handle()), client)
}

async fn serve(place: Place, stream: DuplexStream, environment: BTreeMap<String, String>) {
    let (mut read, write) = split(stream);
    let shared = Arc::new(Shared {
        out: AsyncMutex::new(write),
        credits: Mutex::default(),
        sources: Mutex::default(),
        exits: Mutex::default(),
        environment: Mutex::new(environment),
        open_files: OpenFiles::default(),
        processes: nowhere::Processes::default(),
        end: CancellationToken::new(),
    });
    let _end = shared.end.clone().drop_guard();
    let hello = message::encode(&Hello {
        generation: GENERATION,
    });
    shared.send(FrameKind::Hello, 0, hello).await;
    // Owned here, so that aborting this task ends everything.
    let mut tasks = tokio::task::JoinSet::new();
    while let Some((kind, id, payload)) = read_frame(&mut read).await {
        match kind {
            FrameKind::Request => {
                let request: Request = message::decode("request", &payload).unwrap();
                let sources = shared.register(&request);
                let shared = shared.clone();
                tasks.spawn(async move {
                    match place {
                        Place::Here => {
                            let reply = shared.answer(request, sources.input).await;
                            shared.reply(id, &reply).await;
                        }
                        Place::Nowhere => nowhere::serve(&shared, id, request, sources).await,
                    }
                });
                while tasks.try_join_next().is_some() {}
            }
            FrameKind::Data => shared.feed(id, Some(payload)).await,
            FrameKind::End => shared.feed(id, None).await,
            FrameKind::Credit => {
                let grant = u32::from_le_bytes(payload.try_into().unwrap());
                if let Some(credit) = shared.credits.lock().unwrap().get(&id) {
                    credit.add_permits(grant as usize);
                }
            }
            FrameKind::Reset => {
                if let Some(credit) = shared.credits.lock().unwrap().remove(&id) {
                    credit.close();
                }
                shared.sources.lock().unwrap().remove(&id);
            }
            FrameKind::Hello => {}
            FrameKind::Reply => panic!("the host replied"),
        }
    }
}

async fn read_frame(read: &mut ReadHalf<DuplexStream>) -> Option<(FrameKind, u32, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    read.read_exact(&mut header).await.ok()?;
    let (kind, id, length) = decode_header(&header).unwrap();
    let mut payload = vec![0; length];
    read.read_exact(&mut payload).await.ok()?;
    Some((kind, id, payload))
}

pub(super) fn failure(error: &Error) -> Failure {
    Failure {
        errno: error.raw_os_error(),
        message: error.to_string(),
    }
}

impl Shared {
    pub(super) async fn reply(&self, id: u32, reply: &Reply) {
        self.send(FrameKind::Reply, id, message::encode(reply))
            .await;
    }

    pub(super) async fn send(&self, kind: FrameKind, id: u32, payload: Vec<u8>) {
        let frame = Frame { kind, id, payload };
        let _ = self.out.lock().await.write_all(&frame.encode()).await;
    }

    async fn feed(&self, id: u32, bytes: Option<Vec<u8>>) {
        let source = self.sources.lock().unwrap().get(&id).cloned();
        if let Some(source) = source {
            let _ = source.send(bytes).await;
        }
    }

    /// Knows the streams of a request before the next frame is read.
    fn register(&self, request: &Request) -> Sources {
        let sink = |id: &u32| {
            let credit = Arc::new(Semaphore::new(WINDOW_BYTES as usize));
            self.credits.lock().unwrap().insert(*id, credit);
        };
        let source = |id: u32| {
            let (sender, receiver) = mpsc::channel(4096);
            self.sources.lock().unwrap().insert(id, sender);
            receiver
        };
        let mut socket = None;
        let input = match request {
            Request::ReadFile { sink: id, .. }
            | Request::Walk { sink: id, .. }
            | Request::ExpandGlob { sink: id, .. } => {
                sink(id);
                None
            }
            Request::WriteFile { source, .. } => Some(*source),
            Request::Spawn(spawn) => {
                spawn.stdout.iter().for_each(sink);
                spawn.stderr.iter().for_each(sink);
                if let Some(streams) = &spawn.socket {
                    sink(&streams.sink);
                    socket = Some(source(streams.source));
                }
                spawn.stdin
            }
            Request::Dial {
                source, sink: id, ..
            } => {
                sink(id);
                Some(*source)
            }
            _ => None,
        };
        Sources {
            input: input.map(source),
            socket,
        }
    }

    /// A stream is over.
    pub(super) fn forget(&self, id: u32) {
        self.credits.lock().unwrap().remove(&id);
        self.sources.lock().unwrap().remove(&id);
    }

    async fn answer(self: &Arc<Self>, request: Request, source: Option<Source>) -> Reply {
        match request {
            Request::Spawn(spawn) => self.spawn(spawn, source),
            Request::Wait { pid } => self.wait(pid).await,
            Request::Kill { pid, signal } => self.kill(pid, signal).await,
            Request::ReadFile { path, sink } => self.read_file(&path, sink).await,
            Request::WriteFile {
                path,
                source: id,
                options,
            } => self.write_file(&path, id, source.unwrap(), &options).await,
            Request::Dial {
                target,
                source: id,
                sink,
            } => self.dial(target, (id, source.unwrap()), sink).await,
            Request::EnvGet { name } => Ok(Answer::Variable(
                self.environment.lock().unwrap().get(&name).cloned(),
            )),
            Request::EnvSet { name, value } => {
                self.environment.lock().unwrap().insert(name, value);
                Ok(Answer::Done)
            }
            Request::EnvDelete { name } => {
                self.environment.lock().unwrap().remove(&name);
                Ok(Answer::Done)
            }
            Request::EnvAll => Ok(Answer::Variables(self.environment.lock().unwrap().clone())),
            request @ (Request::Open { .. } | Request::Handle { .. } | Request::Close { .. }) => {
                self.open_files.answer(request).await
            }
            other => files(other).map_err(|error| failure(&error)),
        }
    }

    fn spawn(self: &Arc<Self>, spawn: Spawn, source: Option<Source>) -> Reply {
        let piped = |id: Option<u32>| id.map_or_else(Stdio::null, |_| Stdio::piped());
        let mut command = Command::new(&spawn.command);
        command
            .args(&spawn.args)
            .kill_on_drop(true)
            .stdin(piped(spawn.stdin))
            .stdout(piped(spawn.stdout))
            .stderr(piped(spawn.stderr));
        if spawn.clear_environment {
            command.env_clear();
        } else {
            command.envs(&*self.environment.lock().unwrap());
        }
        // The SDK makes bash read `$HOME/.bashrc`: never that of whoever runs the tests.
        command.env("HOME", "/nonexistent").envs(&spawn.environment);
        if let Some(directory) = &spawn.working_directory {
            command.current_dir(directory);
        }
        let mut child = command.spawn().map_err(|error| failure(&error))?;
        let pid = child.id().unwrap();
        if let Some(mut pipe) = child.stdin.take() {
            let mut source = source.unwrap();
            let (shared, id) = (self.clone(), spawn.stdin.unwrap());
            tokio::spawn(async move {
                while let Some(Some(bytes)) = source.recv().await {
                    if pipe.write_all(&bytes).await.is_err() {
                        break;
                    }
                    shared.grant(id, bytes.len()).await;
                }
            });
        }
        if let Some(pipe) = child.stdout.take() {
            tokio::spawn(self.clone().copy_out(pipe, spawn.stdout.unwrap()));
        }
        if let Some(pipe) = child.stderr.take() {
            tokio::spawn(self.clone().copy_out(pipe, spawn.stderr.unwrap()));
        }
        let (exited, exit) = watch::channel(None);
        self.exits.lock().unwrap().insert(pid, exit);
        let end = self.end.clone();
        tokio::spawn(async move {
            use std::os::unix::process::ExitStatusExt;
            let status = tokio::select! {
                status = child.wait() => status.unwrap(),
                // Dropping it kills it.
                () = end.cancelled() => return,
            };
            exited.send_replace(Some(ExitStatus {
                code: status.code(),
                signal: status.signal(),
            }));
        });
        Ok(Answer::Spawned { pid })
    }

    /// Connects to a server of the test, which stands for one in the sandbox.
    async fn dial(self: &Arc<Self>, target: DialTarget, source: (u32, Source), sink: u32) -> Reply {
        match target {
            DialTarget::Port(port) => {
                let stream = TcpStream::connect(("127.0.0.1", port)).await;
                let stream = stream.map_err(|error| failure(&error))?;
                self.join(stream.into_split(), source, sink);
            }
            DialTarget::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                let stream = stream.map_err(|error| failure(&error))?;
                self.join(stream.into_split(), source, sink);
            }
            DialTarget::Host(..) => return Err(failure(&Error::from_raw_os_error(38))),
        }
        Ok(Answer::Done)
    }

    fn join(
        self: &Arc<Self>,
        (read, mut write): (
            impl AsyncRead + Unpin + Send + 'static,
            impl AsyncWrite + Unpin + Send + 'static,
        ),
        (id, mut source): (u32, Source),
        sink: u32,
    ) {
        let shared = self.clone();
        let end = self.end.clone();
        tokio::spawn(async move {
            let up = async {
                while let Some(Some(bytes)) = source.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                    shared.grant(id, bytes.len()).await;
                }
                let _ = write.shutdown().await;
            };
            tokio::select! {
                ((), ()) = async { tokio::join!(up, shared.clone().copy_out(read, sink)) } => {}
                () = end.cancelled() => {}
            }
        });
    }

    pub(super) async fn grant(&self, id: u32, bytes: usize) {
        let grant = u32::try_from(bytes).unwrap().to_le_bytes().to_vec();
        self.send(FrameKind::Credit, id, grant).await;
    }

    async fn copy_out(self: Arc<Self>, mut pipe: impl AsyncRead + Unpin, id: u32) {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match pipe.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    if !self.send_data(id, &buffer[..count]).await {
                        return;
                    }
                }
            }
        }
        self.send(FrameKind::End, id, Vec::new()).await;
    }

    pub(super) async fn send_data(&self, id: u32, bytes: &[u8]) -> bool {
        let Some(credit) = self.credits.lock().unwrap().get(&id).cloned() else {
            return false;
        };
        match credit
            .acquire_many(u32::try_from(bytes.len()).unwrap())
            .await
        {
            Ok(permit) => permit.forget(),
            Err(_) => return false,
        }
        self.send(FrameKind::Data, id, bytes.to_vec()).await;
        true
    }

    pub(super) async fn wait(&self, pid: u32) -> Reply {
        let exit = self.exits.lock().unwrap().get(&pid).cloned();
        let mut exit = exit.ok_or_else(|| failure(&Error::from_raw_os_error(3)))?;
        // It never ends when the agent does first.
        let status = exit.wait_for(Option::is_some).await.map(|status| *status);
        match status {
            Ok(status) => Ok(Answer::Exited(status.unwrap())),
            Err(_) => std::future::pending().await,
        }
    }

    async fn kill(&self, pid: u32, signal: i32) -> Reply {
        let exit = self.exits.lock().unwrap().get(&pid).cloned();
        if exit.is_none_or(|exit| exit.borrow().is_some()) {
            return Err(failure(&Error::from_raw_os_error(3)));
        }
        let status = Command::new("kill")
            .args([format!("-{signal}"), pid.to_string()])
            .status()
            .await
            .unwrap();
        assert!(status.success());
        Ok(Answer::Done)
    }

    async fn read_file(&self, path: &str, sink: u32) -> Reply {
        let mut file = std::fs::File::open(path).map_err(|error| failure(&error))?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer).map_err(|error| failure(&error))? {
                0 => break,
                count => {
                    if !self.send_data(sink, &buffer[..count]).await {
                        return Err(failure(&Error::from_raw_os_error(32)));
                    }
                }
            }
        }
        self.send(FrameKind::End, sink, Vec::new()).await;
        Ok(Answer::Done)
    }

    async fn write_file(
        &self,
        path: &str,
        id: u32,
        mut source: Source,
        options: &WriteOptions,
    ) -> Reply {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .append(options.append)
            .truncate(!options.append)
            .create(options.create)
            .create_new(options.create_new)
            .open(path)
            .map_err(|error| failure(&error))?;
        if let Some(mode) = options.mode {
            let permissions = std::fs::Permissions::from_mode(mode);
            file.set_permissions(permissions)
                .map_err(|error| failure(&error))?;
        }
        loop {
            match source.recv().await {
                Some(Some(bytes)) => {
                    file.write_all(&bytes).map_err(|error| failure(&error))?;
                    self.grant(id, bytes.len()).await;
                }
                Some(None) => return Ok(Answer::Done),
                None => return Err(failure(&Error::from_raw_os_error(125))),
            }
        }
    }
}

fn files(request: Request) -> std::io::Result<Answer> {
    match request {
        Request::ReadDir { path } => {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                entries.push(Entry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    kind: kind(entry.file_type()?),
                });
            }
            Ok(Answer::Entries(entries))
        }
        Request::Change(FileChange::Rename { from, to }) => {
            std::fs::rename(from, to)?;
            Ok(Answer::Done)
        }
        Request::Change(FileChange::SetTimes {
            path,
            accessed,
            modified,
        }) => {
            let time = |time: FileTime| {
                let since = Duration::new(time.seconds.try_into().unwrap(), time.nanoseconds);
                std::time::UNIX_EPOCH + since
            };
            let times = std::fs::FileTimes::new()
                .set_accessed(time(accessed))
                .set_modified(time(modified));
            std::fs::File::options()
                .write(true)
                .open(path)?
                .set_times(times)?;
            Ok(Answer::Done)
        }
        Request::MakeDir {
            path, recursive, ..
        } => {
            std::fs::DirBuilder::new()
                .recursive(recursive)
                .create(path)?;
            Ok(Answer::Done)
        }
        Request::Remove { path, recursive } => {
            let is_directory = std::fs::symlink_metadata(&path)?.is_dir();
            match (is_directory, recursive) {
                (true, true) => std::fs::remove_dir_all(path)?,
                (true, false) => std::fs::remove_dir(path)?,
                (false, _) => std::fs::remove_file(path)?,
            }
            Ok(Answer::Done)
        }
        Request::Stat { path, follow } => {
            let file = if follow {
                std::fs::metadata(path)?
            } else {
                std::fs::symlink_metadata(path)?
            };
            Ok(Answer::Metadata(Metadata {
                kind: kind(file.file_type()),
                size: file.size(),
                mode: file.mode(),
                uid: file.uid(),
                gid: file.gid(),
                nlink: file.nlink(),
                inode: file.ino(),
                device: file.dev(),
                rdev: file.rdev(),
                block_size: file.blksize(),
                blocks: file.blocks(),
                accessed_ms: file.atime() * 1000,
                modified_ms: file.mtime() * 1000,
                changed_ms: file.ctime() * 1000,
                created_ms: None,
            }))
        }
        other => panic!("unexpected request {other:?}"),
    }
}

fn kind(file_type: std::fs::FileType) -> FileKind {
    if file_type.is_dir() {
        FileKind::Directory
    } else if file_type.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::File
    }
}
