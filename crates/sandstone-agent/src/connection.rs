//! One connection: its requests and streams.

use std::convert::Infallible;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use sandstone_protocol::frame::{Frame, FrameKind};
use sandstone_protocol::message::{
    Answer, DialTarget, Failure, HandleOperation, Hello, MessageError, Reply, Request, Spawn,
    StreamId, decode, encode,
};
use sandstone_protocol::{GENERATION, GENERATION_MIN};

use crate::agent::Agent;
use crate::dial::{self, DialJob};
use crate::failure::{failure, shown};
use crate::files::{self, FileJob, FileWork};
use crate::handles::{Handles, LockWait};
use crate::interior::Interior;
use crate::lock::lock;
use crate::lock_waits::LockWaits;
use crate::processes::Mailbox;
use crate::spawn::{self, SpawnJob};
use crate::stream::{Inlet, Outlet, Waker};
use crate::table::{Room, Stream, Table, UsedTwice};
use crate::walks;
pub(crate) use crate::wire::Closed;
use crate::wire::{ReceiveError, Receiver, Sender};
use crate::workers::{STACK_BYTES, Workers};

/// How long a new connection may take to say hello.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// One host's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// What outlives it.
    pub(crate) agent: Arc<Agent>,
    sender: Sender,
    table: Table,
    mailbox: Arc<Mailbox>,
    workers: Arc<Workers<FileJob>>,
    /// Files that are open.
    pub(crate) handles: Handles,
    lock_waits: Arc<LockWaits>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    /// The socket could not be prepared, or no thread be had.
    #[error("prepare the connection")]
    Prepare(#[from] io::Error),
    /// No more frames.
    #[error("receive a frame")]
    Receive(#[from] ReceiveError),
    /// A message that cannot be read.
    #[error("read a message")]
    Message(#[from] MessageError),
    /// A frame that may not come now.
    #[error("the host broke the protocol: {0}")]
    Protocol(&'static str),
    /// The host left while something was sent from the reading thread.
    #[error("the host is gone")]
    Gone,
}

impl From<Closed> for ConnectionError {
    fn from(_: Closed) -> Self {
        Self::Gone
    }
}

/// Serves a connection until it ends.
///
/// # Errors
/// Always: why it ended.
pub(crate) fn serve(agent: &Arc<Agent>, socket: UnixStream) -> Result<Infallible, ConnectionError> {
    let connection = Arc::new(Connection {
        agent: Arc::clone(agent),
        sender: Sender::new(socket.try_clone()?),
        table: Table::default(),
        mailbox: Arc::default(),
        workers: Workers::new(files::perform, files::refuse),
        handles: Handles::default(),
        lock_waits: Arc::default(),
    });
    let mut receiver = Receiver::new(socket);
    let end = connection.converse(&mut receiver);
    connection.close(receiver.socket());
    end
}

impl Connection {
    fn converse(self: &Arc<Self>, receiver: &mut Receiver) -> Result<Infallible, ConnectionError> {
        let hello = Hello {
            generation: GENERATION,
        };
        self.sender.send(FrameKind::Hello, 0, &encode(&hello))?;
        receiver.socket().set_read_timeout(Some(HELLO_PATIENCE))?;
        let first = receiver.receive()?;
        if (first.kind, first.id) != (FrameKind::Hello, 0) {
            return Err(ConnectionError::Protocol("the first frame is no hello"));
        }
        let theirs: Hello = decode("hello", &first.payload)?;
        // The smaller of the two is spoken, and ours is not below the minimum.
        if theirs.generation < GENERATION_MIN {
            return Err(ConnectionError::Protocol("the generation is too old"));
        }
        receiver.socket().set_read_timeout(None)?;

        let answering = Arc::clone(self);
        thread::Builder::new()
            .name("waits".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                while let Some(exits) = answering.mailbox.receive() {
                    for (request, status) in exits {
                        let _ = answering.reply(request, Ok(Answer::Exited(status)));
                    }
                }
            })?;
        loop {
            self.take(receiver.receive()?)?;
        }
    }

    fn close(&self, socket: &UnixStream) {
        // First of all, so that no thread stays blocked in sending.
        let _ = socket.shutdown(Shutdown::Both);
        self.table.give_up_all();
        self.workers.close();
        self.handles.close_all();
        self.mailbox.close();
        self.agent.processes.forget_closed_waits();
        self.sender.close();
    }

    /// Takes one frame from the host.
    fn take(self: &Arc<Self>, frame: Frame) -> Result<(), ConnectionError> {
        use ConnectionError::Protocol;
        if frame.id == 0 {
            return Err(Protocol("id 0 after the hello"));
        }
        // Frames of streams that are over crossed with their end, and are dropped.
        let stream = || self.table.stream(frame.id);
        match frame.kind {
            FrameKind::Request => {
                let request = decode("request", &frame.payload)?;
                self.begin(frame.id, request)?;
            }
            FrameKind::Data => match stream() {
                Some(Stream::FromHost(inlet)) => {
                    let grant = inlet
                        .push(&frame.payload)
                        .map_err(|_| Protocol("data beyond the window"))?;
                    self.grant(&inlet, grant)?;
                }
                Some(Stream::ToHost(_)) => return Err(Protocol("data against the stream")),
                None => {}
            },
            FrameKind::End if !frame.payload.is_empty() => {
                return Err(Protocol("an end with a payload"));
            }
            FrameKind::End => match stream() {
                Some(Stream::FromHost(inlet)) => {
                    self.table.close(frame.id);
                    inlet.end();
                }
                Some(Stream::ToHost(_)) => return Err(Protocol("an end against the stream")),
                None => {}
            },
            FrameKind::Credit => {
                let bytes = frame
                    .credit_bytes()
                    .ok_or(Protocol("credit of no number"))?;
                match stream() {
                    Some(Stream::ToHost(outlet)) => outlet
                        .grant(bytes)
                        .map_err(|_| Protocol("credit beyond reason"))?,
                    Some(Stream::FromHost(_)) => return Err(Protocol("credit for our own stream")),
                    None => {}
                }
            }
            FrameKind::Reset => {
                if let Some(stream) = self.table.close(frame.id) {
                    stream.give_up();
                }
            }
            FrameKind::Hello => return Err(Protocol("a second hello")),
            FrameKind::Reply => return Err(Protocol("a reply from the host")),
        }
        Ok(())
    }

    /// Registers a request with its streams, and sets it going.
    fn begin(self: &Arc<Self>, id: u32, request: Request) -> Result<(), ConnectionError> {
        let streams = request.streams();
        match self.table.begin(id, request.reply_max_bytes(), &streams) {
            Ok(Room::Enough) => Ok(self.dispatch(id, request)?),
            Ok(Room::Full) => Ok(self.refuse(id, &streams, Errno::AGAIN)?),
            Err(UsedTwice) => Err(ConnectionError::Protocol("an id is used twice")),
        }
    }

    fn dispatch(self: &Arc<Self>, id: u32, request: Request) -> Result<(), Closed> {
        let agent = &self.agent;
        let done = |result: Result<(), Failure>| result.map(|()| Answer::Done);
        let reply = match request {
            // Configuration and environment change at once, so that what follows sees them.
            Request::Configure(configure) => Interior::prepare(&configure).map(|interior| {
                *lock(&agent.interior) = interior;
                Answer::Done
            }),
            Request::EnvGet { name } => Ok(Answer::Variable(
                lock(&agent.interior).environment.get(&name).cloned(),
            )),
            Request::EnvAll => Ok(Answer::Variables(lock(&agent.interior).environment.clone())),
            Request::EnvSet { name, value } => {
                done(lock(&agent.interior).set_variable(&name, &value))
            }
            Request::EnvDelete { name } => {
                lock(&agent.interior).environment.remove(&name);
                Ok(Answer::Done)
            }
            Request::Kill { pid, signal } => done(
                agent
                    .processes
                    .signal(pid, signal)
                    .map_err(|errno| failure(errno, format_args!("signal {signal} to {pid}"))),
            ),
            Request::HangUp { pid } => done(
                agent
                    .processes
                    .hang_up(pid)
                    .map_err(|errno| failure(errno, format_args!("hang up {pid}"))),
            ),
            Request::Wait { pid } => match agent.processes.wait(pid, &self.mailbox, id) {
                Ok(()) => return Ok(()),
                Err(errno) => Err(failure(errno, format_args!("wait for process {pid}"))),
            },
            Request::Spawn(spawn) => return self.start(id, spawn),
            Request::ReadFile { path, sink } => {
                let waker = match Waker::new() {
                    Ok(waker) => waker,
                    Err(errno) => return self.refuse(id, &[sink], errno),
                };
                let outlet = self.outlet(sink, &waker);
                return self.queue(id, FileWork::Read { path, outlet });
            }
            Request::WriteFile {
                path,
                source,
                options,
            } => {
                let waker = match Waker::new() {
                    Ok(waker) => waker,
                    Err(errno) => return self.refuse(id, &[source], errno),
                };
                let work = FileWork::Write {
                    path,
                    inlet: self.inlet(source, &waker),
                    options,
                };
                return self.queue(id, work);
            }
            Request::Dial {
                target,
                source,
                sink,
            } => return self.dial(id, target, source, sink),
            Request::Resize { pid, size } => done(
                agent
                    .processes
                    .resize(pid, size)
                    .map_err(|errno| failure(errno, format_args!("resize terminal of {pid}"))),
            ),
            Request::Open {
                handle,
                path,
                options,
            } => match self.handles.reserve(handle) {
                Ok(handle) => {
                    let work = FileWork::Open {
                        handle,
                        path,
                        options,
                    };
                    return self.queue(id, work);
                }
                Err(errno) => Err(failure(errno, "open another file")),
            },
            Request::Handle { handle, operation } => match self.handles.get(handle) {
                Some(handle) => {
                    if operation == HandleOperation::Unlock {
                        handle.end_lock_waits();
                    }
                    let work = FileWork::Handle {
                        unlocks: handle.unlocks(),
                        handle,
                        operation,
                    };
                    return self.queue(id, work);
                }
                None => Err(failure(Errno::BADF, format_args!("open file {handle}"))),
            },
            Request::Close { handles } => {
                let taken: Vec<_> = handles.iter().map(|id| self.handles.take(*id)).collect();
                let work = FileWork::Close {
                    all_known: taken.iter().all(Option::is_some),
                    handles: taken.into_iter().flatten().collect(),
                };
                return self.queue(id, work);
            }
            Request::Umask { mask } => Ok(Answer::Umask(agent.umask(mask))),
            Request::Walk {
                path,
                options,
                sink,
            } => return self.walk(id, walks::Job::Walk { path, options }, sink),
            Request::ExpandGlob {
                glob,
                options,
                sink,
            } => return self.walk(id, walks::Job::Expand { glob, options }, sink),
            Request::ReadDir { .. }
            | Request::MakeDir { .. }
            | Request::Remove { .. }
            | Request::Stat { .. }
            | Request::Change(_)
            | Request::ReadLink { .. }
            | Request::RealPath { .. }
            | Request::MakeTemporary(_) => return self.queue(id, FileWork::Plain(request)),
        };
        self.reply(id, reply)
    }

    fn walk(self: &Arc<Self>, id: u32, job: walks::Job, sink: StreamId) -> Result<(), Closed> {
        match Waker::new() {
            Ok(waker) => walks::start(self, id, job, self.outlet(sink, &waker)),
            Err(errno) => self.refuse(id, &[sink], errno),
        }
    }

    /// Answers a request when a lock is there.
    pub(crate) fn wait_for_lock(self: &Arc<Self>, id: u32, wait: LockWait) {
        self.lock_waits.add(Arc::clone(self), id, wait);
    }

    fn queue(self: &Arc<Self>, id: u32, work: FileWork) -> Result<(), Closed> {
        let job = FileJob {
            connection: Arc::clone(self),
            id,
            work,
        };
        self.workers.submit(job);
        Ok(())
    }

    fn start(self: &Arc<Self>, id: u32, spawn: Spawn) -> Result<(), Closed> {
        let streams = spawn.streams();
        let waker = match Waker::new() {
            Ok(waker) => waker,
            Err(errno) => return self.refuse(id, &streams, errno),
        };
        let job = SpawnJob {
            id,
            stdin: spawn.stdin.map(|id| self.inlet(id, &waker)),
            stdout: spawn.stdout.map(|id| self.outlet(id, &waker)),
            stderr: spawn.stderr.map(|id| self.outlet(id, &waker)),
            socket: spawn.socket.map(|socket| {
                (
                    self.inlet(socket.source, &waker),
                    self.outlet(socket.sink, &waker),
                )
            }),
            spawn,
        };
        let what = format!("spawn '{}'", shown(&job.spawn.command));
        let connection = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("process".into())
            .stack_size(STACK_BYTES)
            .spawn(move || spawn::perform(&connection, job));
        match thread {
            Ok(_) => Ok(()),
            Err(_) => self.fail(id, &streams, failure(Errno::AGAIN, what)),
        }
    }

    fn dial(
        self: &Arc<Self>,
        id: u32,
        target: DialTarget,
        source: StreamId,
        sink: StreamId,
    ) -> Result<(), Closed> {
        let waker = match Waker::new() {
            Ok(waker) => waker,
            Err(errno) => return self.refuse(id, &[source, sink], errno),
        };
        let job = DialJob {
            id,
            target,
            source: self.inlet(source, &waker),
            sink: self.outlet(sink, &waker),
        };
        let connection = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("dial".into())
            .stack_size(STACK_BYTES)
            .spawn(move || dial::perform(&connection, job));
        match thread {
            Ok(_) => Ok(()),
            Err(_) => self.fail(id, &[source, sink], failure(Errno::AGAIN, "connect")),
        }
    }

    fn outlet(&self, id: StreamId, waker: &Arc<Waker>) -> Arc<Outlet> {
        let outlet = Outlet::new(id, Arc::clone(waker));
        self.table.open(Stream::ToHost(Arc::clone(&outlet)));
        outlet
    }

    fn inlet(&self, id: StreamId, waker: &Arc<Waker>) -> Arc<Inlet> {
        let inlet = Inlet::new(id, Arc::clone(waker));
        self.table.open(Stream::FromHost(Arc::clone(&inlet)));
        inlet
    }

    /// Answers a request whose streams were never opened.
    fn refuse(&self, id: u32, streams: &[StreamId], errno: Errno) -> Result<(), Closed> {
        let failure = failure(errno, "too many requests or streams at once");
        for stream in streams {
            self.sender
                .send(FrameKind::Reset, *stream, &encode(&failure))?;
        }
        self.reply(id, Err(failure))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn reply(&self, id: u32, reply: Reply) -> Result<(), Closed> {
        let mut payload = encode(&reply);
        if payload.len() > self.table.answered(id) {
            payload = encode::<Reply>(&Err(failure(Errno::OVERFLOW, "the answer is too large")));
        }
        self.sender.send(FrameKind::Reply, id, &payload)
    }

    /// Answers a request that failed, after giving up what is left of its streams.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn fail(
        &self,
        id: u32,
        streams: &[StreamId],
        failure: Failure,
    ) -> Result<(), Closed> {
        for stream in streams {
            self.give_up_stream(*stream, &failure)?;
        }
        self.reply(id, Err(failure))
    }

    /// Gives up a stream, unless it is over.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn reset(&self, stream: StreamId, errno: Errno) -> Result<(), Closed> {
        self.give_up_stream(stream, &failure(errno, "connection"))
    }

    /// Gives a stream up, unless it is over.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn give_up_stream(&self, id: StreamId, failure: &Failure) -> Result<(), Closed> {
        if let Some(open) = self.table.close(id) {
            open.give_up();
            self.sender.send(FrameKind::Reset, id, &encode(failure))?;
        }
        Ok(())
    }

    /// Sends bytes whose credit has been spent.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn data(&self, outlet: &Outlet, bytes: &[u8]) -> Result<(), Closed> {
        self.sender.send(FrameKind::Data, outlet.id, bytes)
    }

    /// Ends a stream, unless the host has given it up.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn end(&self, outlet: &Outlet) -> Result<(), Closed> {
        match self.table.close(outlet.id) {
            Some(_) => self.sender.send(FrameKind::End, outlet.id, &[]),
            None => Ok(()),
        }
    }

    /// Sends a grant, unless it is zero or the stream is over.
    ///
    /// # Errors
    /// [`Closed`].
    pub(crate) fn grant(&self, inlet: &Inlet, bytes: u32) -> Result<(), Closed> {
        if bytes == 0 || self.table.stream(inlet.id).is_none() {
            return Ok(());
        }
        self.sender
            .send(FrameKind::Credit, inlet.id, &bytes.to_le_bytes())
    }
}
