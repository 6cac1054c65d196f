//! A sandbox in miniature, and a host that speaks the protocol with plain blocking calls.

use std::collections::VecDeque;
use std::io::{ErrorKind, PipeReader, Read, Write, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sandstone_protocol::frame::{Frame, FrameKind, HEADER_BYTES, WINDOW_BYTES, decode_header};
use sandstone_protocol::message::{
    Answer, Configure, ExitStatus, Failure, Hello, Reply, Request, Spawn, decode, encode,
};

/// Longest wait for a frame.
const PATIENCE: Duration = Duration::from_secs(30);

/// The user of the tests.
pub(crate) const APP_UID: u32 = 1234;
/// Its primary group.
pub(crate) const APP_GID: u32 = 2345;

/// Private /etc, /usr/local/share and /mnt; then the agent with its two descriptors.
const SCRIPT: &str = r#"
set -e
mount -t proc proc /proc
for directory in /etc /usr/local/share /mnt /var/lib; do mount -t tmpfs -o mode=755 tmpfs $directory; done
printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1234:2345::/mnt/home:/bin/sh\n' > /etc/passwd
printf 'root:x:0:\napp:x:2345:\naudio:x:29:other,app\n' > /etc/group
mkdir /mnt/home && chown 1234:2345 /mnt/home
trap '' PIPE
ulimit -n "$(ulimit -Hn)"
exec "$0" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null
"#;

/// A running agent. Dropping it ends its namespaces.
pub(crate) struct Sandbox {
    child: Child,
    directory: tempfile::TempDir,
}

impl Sandbox {
    /// Starts an agent that has not been configured.
    pub(crate) fn bare() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("agent")).unwrap();
        let (mut ready, ready_write): (PipeReader, _) = pipe().unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--uts", "--ipc", "--pid", "--fork"])
            .args(["--kill-child", "--propagation", "private"])
            .args(["bash", "-c", SCRIPT, env!("CARGO_BIN_EXE_sandstone-agent")])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::from(OwnedFd::from(ready_write)))
            .spawn()
            .unwrap();
        let sandbox = Self { child, directory };
        let mut byte = [0];
        ready.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [1]);
        sandbox
    }

    /// Starts an agent for the user `app`, and connects.
    pub(crate) fn start() -> (Self, Host) {
        let sandbox = Self::bare();
        let mut host = sandbox.connect();
        let configure = Configure {
            user: "app".into(),
            hostname: "box".into(),
            working_directory: "/mnt/home/work".into(),
            ..Configure::default()
        };
        assert_eq!(host.call(Request::Configure(configure)), Ok(Answer::Done));
        (sandbox, host)
    }

    /// A connection without hellos.
    pub(crate) fn dial(&self) -> UnixStream {
        let socket = UnixStream::connect(self.socket()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A connection after its hellos.
    pub(crate) fn connect(&self) -> Host {
        let mut host = Host {
            socket: self.dial(),
            next_id: 1,
            inbox: VecDeque::new(),
        };
        let hello = Hello { generation: 1 };
        host.send(FrameKind::Hello, 0, &encode(&hello));
        let theirs = host.receive().unwrap();
        assert_eq!((theirs.kind, theirs.id), (FrameKind::Hello, 0));
        assert_eq!(decode::<Hello>("hello", &theirs.payload).unwrap(), hello);
        host
    }

    /// How many files under the user's home the agent has open.
    pub(crate) fn open_files(&self) -> usize {
        let pid = self.agent().unwrap().as_raw_pid();
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        descriptors
            .filter_map(|descriptor| std::fs::read_link(descriptor.unwrap().path()).ok())
            .filter(|target| target.starts_with("/mnt/home"))
            .count()
    }

    /// What the agent has in memory.
    pub(crate) fn resident_bytes(&self) -> usize {
        let pid = self.agent().unwrap().as_raw_pid();
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Process 1 of the namespace, as the tests see it.
    fn agent(&self) -> Option<rustix::process::Pid> {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        let agent = children.split_whitespace().next()?.parse().ok()?;
        rustix::process::Pid::from_raw(agent)
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Process 1 of the namespace takes everything in it along, and `unshare` reaps it.
        let killed = self.agent().is_some_and(|agent| {
            rustix::process::kill_process(agent, rustix::process::Signal::KILL).is_ok()
        });
        if !killed {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// One connection, host side.
pub(crate) struct Host {
    pub(crate) socket: UnixStream,
    next_id: u32,
    inbox: VecDeque<Frame>,
}

/// A process as the host knows it.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) stdin: u32,
    pub(crate) stdout: u32,
    pub(crate) stderr: u32,
}

impl Host {
    pub(crate) fn fresh_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(crate) fn send(&mut self, kind: FrameKind, id: u32, payload: &[u8]) {
        let frame = Frame {
            kind,
            id,
            payload: payload.to_vec(),
        };
        // A connection that the agent has closed shows when something is expected from it.
        if let Err(error) = self.socket.write_all(&frame.encode()) {
            let closed = [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset];
            assert!(closed.contains(&error.kind()), "{error}");
        }
    }

    pub(crate) fn send_request(&mut self, id: u32, request: &Request) {
        self.send(FrameKind::Request, id, &encode(request));
    }

    pub(crate) fn send_credit(&mut self, id: u32, bytes: u32) {
        self.send(FrameKind::Credit, id, &bytes.to_le_bytes());
    }

    /// The next frame; nothing when the agent has closed.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER_BYTES];
        if let Err(error) = self.socket.read_exact(&mut header) {
            assert!(
                error.kind() != ErrorKind::WouldBlock,
                "no frame in {PATIENCE:?}"
            );
            return None;
        }
        let (kind, id, length) = decode_header(&header).unwrap();
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload).unwrap();
        Some(Frame { kind, id, payload })
    }

    /// The next frame of a request or stream; others are kept.
    pub(crate) fn next_for(&mut self, id: u32) -> Frame {
        if let Some(index) = self.inbox.iter().position(|frame| frame.id == id) {
            return self.inbox.remove(index).unwrap();
        }
        loop {
            let frame = self.receive().expect("the agent has closed");
            if frame.id == id {
                return frame;
            }
            self.inbox.push_back(frame);
        }
    }

    pub(crate) fn reply(&mut self, id: u32) -> Reply {
        let frame = self.next_for(id);
        assert_eq!(frame.kind, FrameKind::Reply);
        decode("reply", &frame.payload).unwrap()
    }

    pub(crate) fn call(&mut self, request: Request) -> Reply {
        let id = self.fresh_id();
        self.send_request(id, &request);
        self.reply(id)
    }

    /// Calls what must fail: error number and message.
    pub(crate) fn refused(&mut self, request: Request) -> (i32, String) {
        let Failure { errno, message } = self.call(request).unwrap_err();
        (errno.unwrap(), message)
    }

    /// Starts a process with its three streams open.
    pub(crate) fn spawn(&mut self, mut spawn: Spawn) -> Process {
        let [stdin, stdout, stderr] = std::array::from_fn(|_| self.fresh_id());
        spawn.stdin = Some(stdin);
        spawn.stdout = Some(stdout);
        spawn.stderr = Some(stderr);
        let pid = self.spawned(spawn);
        Process {
            pid,
            stdin,
            stdout,
            stderr,
        }
    }

    /// Starts a process as described.
    pub(crate) fn spawned(&mut self, spawn: Spawn) -> u32 {
        match self.call(Request::Spawn(spawn)) {
            Ok(Answer::Spawned { pid }) => pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn wait(&mut self, pid: u32) -> ExitStatus {
        match self.call(Request::Wait { pid }) {
            Ok(Answer::Exited(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// A stream's bytes until its end, granted as they come.
    pub(crate) fn collect(&mut self, stream: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let frame = self.next_for(stream);
            match frame.kind {
                FrameKind::Data => {
                    bytes.extend(&frame.payload);
                    self.send_credit(stream, u32::try_from(frame.payload.len()).unwrap());
                }
                FrameKind::End => return bytes,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Runs a shell script to its end, without input: its output, with errors.
    pub(crate) fn shell(&mut self, script: &str) -> String {
        let stdout = self.fresh_id();
        let pid = self.spawned(Spawn {
            stdout: Some(stdout),
            ..shell(&format!("exec 2>&1; {script}"))
        });
        let output = String::from_utf8(self.collect(stdout)).unwrap();
        self.wait(pid);
        output
    }

    /// Reads a whole file.
    pub(crate) fn read_file(&mut self, path: &str) -> Result<Vec<u8>, Failure> {
        let (id, sink) = (self.fresh_id(), self.fresh_id());
        let path = path.to_owned();
        self.send_request(id, &Request::ReadFile { path, sink });
        let mut bytes = Vec::new();
        loop {
            let frame = self.next_of(&[id, sink]);
            match frame.kind {
                FrameKind::Data => {
                    bytes.extend(&frame.payload);
                    self.send_credit(sink, u32::try_from(frame.payload.len()).unwrap());
                }
                FrameKind::End => assert_eq!(self.reply(id), Ok(Answer::Done)),
                FrameKind::Reset => {}
                FrameKind::Reply => {
                    return decode::<Reply>("reply", &frame.payload)
                        .unwrap()
                        .map(|_| bytes);
                }
                other => panic!("{other:?}"),
            }
            if frame.kind == FrameKind::End {
                return Ok(bytes);
            }
        }
    }

    /// Writes a whole file, sending no more than was granted.
    pub(crate) fn write_file(
        &mut self,
        path: &str,
        content: &[u8],
        options: sandstone_protocol::message::WriteOptions,
    ) -> Reply {
        let (id, source) = (self.fresh_id(), self.fresh_id());
        let request = Request::WriteFile {
            path: path.to_owned(),
            source,
            options,
        };
        self.send_request(id, &request);
        self.send_all(source, content);
        self.send(FrameKind::End, source, &[]);
        loop {
            let frame = self.next_of(&[id, source]);
            if frame.kind == FrameKind::Reply {
                return decode("reply", &frame.payload).unwrap();
            }
        }
    }

    /// Sends bytes on a fresh stream, in frames of up to 64 KiB, as far as credit allows, until
    /// all are sent or the stream is reset.
    pub(crate) fn send_all(&mut self, stream: u32, mut content: &[u8]) {
        let mut credit = WINDOW_BYTES as usize;
        while !content.is_empty() {
            if credit == 0 {
                let frame = self.next_for(stream);
                match frame.kind {
                    FrameKind::Credit => credit += frame.credit_bytes().unwrap() as usize,
                    FrameKind::Reset => return,
                    other => panic!("{other:?}"),
                }
                continue;
            }
            let length = content.len().min(credit).min(64 << 10);
            self.send(FrameKind::Data, stream, &content[..length]);
            content = &content[length..];
            credit -= length;
        }
    }

    fn next_of(&mut self, ids: &[u32]) -> Frame {
        if let Some(index) = self.inbox.iter().position(|frame| ids.contains(&frame.id)) {
            return self.inbox.remove(index).unwrap();
        }
        loop {
            let frame = self.receive().expect("the agent has closed");
            if ids.contains(&frame.id) {
                return frame;
            }
            self.inbox.push_back(frame);
        }
    }
}

/// A shell script as a process.
pub(crate) fn shell(script: &str) -> Spawn {
    Spawn {
        command: "sh".into(),
        args: vec!["-c".into(), script.into()],
        ..Spawn::default()
    }
}

pub(crate) fn exited(code: i32) -> ExitStatus {
    ExitStatus {
        code: Some(code),
        signal: None,
    }
}

pub(crate) fn killed(signal: i32) -> ExitStatus {
    ExitStatus {
        code: None,
        signal: Some(signal),
    }
}

/// Bytes that are not all alike.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|index| (index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}
