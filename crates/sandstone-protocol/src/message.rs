//! Messages: the payloads of hello, request, reply and reset frames, as MessagePack maps with
//! named fields.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

mod bounds;
mod files;

pub use bounds::{ENVIRONMENT_MAX_BYTES, REPLY_MAX_BYTES, REQUESTS_MAX, STREAMS_MAX};
pub use files::{
    FileChange, FileTime, GlobOptions, HANDLE_BYTES_MAX, HandleId, HandleOperation, MakeTemporary,
    OpenOptions, Pattern, SeekOrigin, WALK_ENTRY_MAX_BYTES, WalkEntry, WalkOptions,
};

/// A stream's id, chosen by the host, from the same space as request ids.
pub type StreamId = u32;

/// The first message of each side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest generation the sender speaks.
    pub generation: u32,
}

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Prepares the interior; the first request of a sandbox's life. Reply: [`Answer::Done`].
    Configure(Configure),
    /// Starts a process. Reply: [`Answer::Spawned`], or a failure when it cannot be executed.
    Spawn(Spawn),
    /// Waits for a process that [`Request::Spawn`] started, now or ever. Any number of times.
    /// Reply: [`Answer::Exited`]; a failure with `ESRCH` when there was no such process.
    Wait {
        /// Process id as seen inside the sandbox.
        pid: u32,
    },
    /// Sends a signal to a spawned process. Reply: [`Answer::Done`]; `ESRCH` when it has exited.
    Kill {
        /// Process id as seen inside the sandbox.
        pid: u32,
        /// Signal number.
        signal: i32,
    },
    /// Sends SIGHUP to a spawned process and to all others of its process group, which it leads:
    /// who started it is gone. Reply: [`Answer::Done`]; `ESRCH` when it has exited.
    HangUp {
        /// Process id as seen inside the sandbox.
        pid: u32,
    },
    /// Connects to a server inside the sandbox. Reply: [`Answer::Done`] once it is connected; from
    /// then on what comes from `source` is sent to it, and what it sends goes to `sink`. The end
    /// of either direction leaves the other open; a reset of either ends both. The connection is
    /// the sandbox's user's. A failure with `ECONNREFUSED` when nobody listens, `ENXIO` when a name
    /// is unknown, `ETIMEDOUT` after 10 seconds.
    Dial {
        /// Where to.
        target: DialTarget,
        /// Bytes for the server.
        source: StreamId,
        /// Bytes from it.
        sink: StreamId,
    },
    /// Changes the size of a process's terminal. Reply: [`Answer::Done`]; `ENOTTY` when it has
    /// none, `ESRCH` when it has exited.
    Resize {
        /// Process id as seen inside the sandbox.
        pid: u32,
        /// The new size.
        size: TerminalSize,
    },
    /// Sends a file's bytes to `sink`, then `End`, then the reply [`Answer::Done`].
    ReadFile {
        /// Absolute, or relative to the working directory.
        path: String,
        /// Where the bytes go.
        sink: StreamId,
    },
    /// Writes the bytes of `source` until its `End`. Reply: [`Answer::Done`] when all is written.
    WriteFile {
        /// Absolute, or relative to the working directory.
        path: String,
        /// Where the bytes come from.
        source: StreamId,
        /// How to open.
        options: WriteOptions,
    },
    /// Lists a directory. Reply: [`Answer::Entries`], unordered.
    ReadDir {
        /// Absolute, or relative to the working directory.
        path: String,
    },
    /// Makes a directory. Reply: [`Answer::Done`].
    MakeDir {
        /// Absolute, or relative to the working directory.
        path: String,
        /// Make parents too, and accept an existing directory.
        recursive: bool,
        /// Permission bits, before the umask.
        mode: Option<u32>,
    },
    /// Removes a file, a link or a directory. Reply: [`Answer::Done`].
    Remove {
        /// Absolute, or relative to the working directory.
        path: String,
        /// Remove a directory's content too.
        recursive: bool,
    },
    /// Describes a file. Reply: [`Answer::Metadata`].
    Stat {
        /// Absolute, or relative to the working directory.
        path: String,
        /// Whether a final symbolic link is followed.
        follow: bool,
    },
    /// Changes something about files. Reply: [`Answer::Done`].
    Change(FileChange),
    /// Reads what a symbolic link says. Reply: [`Answer::Path`]; `EILSEQ` when it is not UTF-8.
    ReadLink {
        /// Absolute, or relative to the working directory.
        path: String,
    },
    /// Resolves all links of a path. Reply: [`Answer::Path`]; `EILSEQ` when it is not UTF-8.
    RealPath {
        /// Absolute, or relative to the working directory.
        path: String,
    },
    /// Reads, and sets where `mask` is given, the umask of files that the agent makes. Reply:
    /// [`Answer::Umask`], the one before.
    Umask {
        /// Permission bits that new files do not get.
        mask: Option<u32>,
    },
    /// Makes a file or directory of a fresh name. Reply: [`Answer::Path`].
    MakeTemporary(MakeTemporary),
    /// Opens a file. Reply: [`Answer::Opened`].
    Open {
        /// What it is called from now on.
        handle: HandleId,
        /// Absolute, or relative to the working directory.
        path: String,
        /// How.
        options: OpenOptions,
    },
    /// Does something with an open file; `EBADF` when it is not open. Operations on one file are
    /// concurrent, so who wants an order waits for each answer.
    Handle {
        /// The file.
        handle: HandleId,
        /// What.
        operation: HandleOperation,
    },
    /// Closes files, also those that are just being opened. What waits on one of them fails with
    /// `ECANCELED`. Reply: [`Answer::Done`]; `EBADF` when one was not open.
    Close {
        /// The files.
        handles: Vec<HandleId>,
    },
    /// Walks through a tree. Reply: [`Answer::Done`] when its root is there; then come
    /// [`WalkEntry`]s on `sink`, and its end, or its reset with the failure.
    Walk {
        /// The root: absolute, or relative to the working directory.
        path: String,
        /// What to visit and tell.
        options: WalkOptions,
        /// Where the entries go.
        sink: StreamId,
    },
    /// Expands a glob. Reply: [`Answer::Done`]; then come sorted [`WalkEntry`]s on `sink`, and its
    /// end, or its reset with the failure.
    ExpandGlob {
        /// The glob.
        glob: String,
        /// How.
        options: GlobOptions,
        /// Where the entries go.
        sink: StreamId,
    },
    /// Reads one variable of the sandbox's environment. Reply: [`Answer::Variable`].
    EnvGet {
        /// Name.
        name: String,
    },
    /// Sets a variable for later processes. Reply: [`Answer::Done`].
    EnvSet {
        /// Name.
        name: String,
        /// Value.
        value: String,
    },
    /// Removes a variable, set or not. Reply: [`Answer::Done`].
    EnvDelete {
        /// Name.
        name: String,
    },
    /// Reads all variables. Reply: [`Answer::Variables`].
    EnvAll,
}

/// How a sandbox's interior is prepared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Name of the user that files and processes belong to; root when the image has no such user.
    pub user: String,
    /// Host name, also written to `/etc/hostname` and `/etc/hosts`.
    pub hostname: String,
    /// Working directory of processes and of relative paths.
    pub working_directory: String,
    /// Variables for every process, over the defaults `HOME`, `USER`, `LOGNAME`, `PATH`, `LANG`.
    pub environment: BTreeMap<String, String>,
    /// Files to write before anything runs, as root, replacing what is there.
    pub files: Vec<InteriorFile>,
    /// Certificate authorities (PEM) to add to the system's bundle.
    pub certificate_authorities: Option<String>,
}

/// A file the host puts into a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InteriorFile {
    /// Absolute path; parents are made.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// The whole content.
    #[serde(with = "serde_bytes")]
    pub content: Vec<u8>,
}

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Program: a path, or a name looked up in `PATH`.
    pub command: String,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Variables over the sandbox's own.
    pub environment: BTreeMap<String, String>,
    /// Start from an empty environment.
    pub clear_environment: bool,
    /// Working directory; the sandbox's when absent.
    pub working_directory: Option<String>,
    /// Bytes for its standard input; `/dev/null` when absent.
    pub stdin: Option<StreamId>,
    /// Where its standard output goes; `/dev/null` when absent.
    pub stdout: Option<StreamId>,
    /// Where its standard error goes; `/dev/null` when absent.
    pub stderr: Option<StreamId>,
    /// A terminal of its own. Its standard streams are that terminal: `stdin` and `stdout` are its
    /// two directions, `stderr` must be absent. The end of `stdin` leaves it open; a reset of
    /// `stdout` hangs it up.
    pub terminal: Option<TerminalSize>,
    /// A connected socket as its descriptor 3.
    pub socket: Option<SocketStreams>,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The two directions of a socket that a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStreams {
    /// Bytes for the process.
    pub source: StreamId,
    /// Bytes from it.
    pub sink: StreamId,
}

/// A server inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DialTarget {
    /// A port of the sandbox's loopback: 127.0.0.1, else ::1.
    Port(u16),
    /// A host name or address and a port, as a program in the sandbox would reach it.
    Host(String, u16),
    /// The path of a unix socket.
    Unix(String),
}

/// How a file is opened for writing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteOptions {
    /// Write at the end instead of replacing.
    pub append: bool,
    /// Make the file when it is missing.
    pub create: bool,
    /// Fail when the file exists.
    pub create_new: bool,
    /// Permission bits, applied after opening whether or not the file is new.
    pub mode: Option<u32>,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self {
            append: false,
            create: true,
            create_new: false,
            mode: None,
        }
    }
}

/// The outcome of a request.
pub type Reply = Result<Answer, Failure>;

/// What a request that worked answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// The process runs.
    Spawned {
        /// Process id as seen inside the sandbox.
        pid: u32,
    },
    /// The process has exited.
    Exited(ExitStatus),
    /// A directory's content.
    Entries(Vec<Entry>),
    /// A file's description.
    Metadata(Metadata),
    /// A path.
    Path(String),
    /// Permission bits that new files do not get.
    Umask(u32),
    /// The file is open.
    Opened {
        /// What it is.
        kind: FileKind,
    },
    /// Bytes that were read.
    Bytes(#[serde(with = "serde_bytes")] Vec<u8>),
    /// So many bytes were written.
    Written {
        /// No more than were given.
        bytes: u32,
    },
    /// A position in a file, bytes from its begin.
    Position(u64),
    /// A variable, or nothing.
    Variable(Option<String>),
    /// All variables.
    Variables(BTreeMap<String, String>),
}

/// How a process ended: exactly one of the two is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Name, without the directory. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
}

/// Kinds of file that clients tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    BlockDevice,
    /// Character device.
    CharDevice,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
}

/// A file's description, from `statx(2)`. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// `st_mode`, type bits included.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u64,
    /// Inode number.
    pub inode: u64,
    /// Device of the file system.
    pub device: u64,
    /// Device it stands for.
    pub rdev: u64,
    /// Preferred block size, bytes.
    pub block_size: u64,
    /// Blocks of 512 bytes in use.
    pub blocks: u64,
    /// Last access.
    pub accessed_ms: i64,
    /// Last change of content.
    pub modified_ms: i64,
    /// Last change of status.
    pub changed_ms: i64,
    /// Creation, where the file system keeps it.
    pub created_ms: Option<i64>,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The system's error number, where there is one.
    pub errno: Option<i32>,
    /// What failed, with the path or program, for people.
    pub message: String,
}

/// A message that is not what it should be. The connection must be closed.
#[derive(Debug, thiserror::Error)]
#[error("malformed {what} message")]
pub struct MessageError {
    what: &'static str,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Encodes a message body.
///
/// # Panics
/// Never: all our messages are plain data.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("plain data always serialises")
}

/// Decodes a message body; `what` names it in the error.
///
/// # Errors
/// [`MessageError`] when the bytes are not such a message.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, MessageError> {
    rmp_serde::from_slice(bytes).map_err(|source| MessageError {
        what,
        source: source.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_hello() {
        assert_eq!(encode(&Hello { generation: 1 }), b"\x81\xaageneration\x01");
    }

    #[test]
    fn unknown_fields_are_skipped() {
        // An older peer must be able to read a newer peer's message.
        #[derive(Serialize)]
        struct NewerHello {
            generation: u32,
            colour: &'static str,
        }
        let bytes = encode(&NewerHello {
            generation: 2,
            colour: "red",
        });
        assert_eq!(
            decode::<Hello>("hello", &bytes).unwrap(),
            Hello { generation: 2 }
        );
    }

    #[test]
    fn requests_survive() {
        let request = Request::Spawn(Spawn {
            command: "bash".into(),
            args: vec!["-c".into(), "true".into()],
            stdout: Some(8),
            ..Spawn::default()
        });
        assert_eq!(
            decode::<Request>("request", &encode(&request)).unwrap(),
            request
        );
        let reply: Reply = Err(Failure {
            errno: Some(2),
            message: "no such file".into(),
        });
        assert_eq!(decode::<Reply>("reply", &encode(&reply)).unwrap(), reply);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_err(bytes: Vec<u8>) {
            let _ = decode::<Request>("request", &bytes);
            let _ = decode::<Reply>("reply", &bytes);
        }
    }
}
