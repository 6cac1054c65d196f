//! Sessions: a shell, a command or the SFTP server, run in the sandbox.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use russh::ChannelWriteHalf;
use russh::server::{Handle, Msg};
use sandstone_node_api::{AgentClient, AgentError, InboundStream, OutboundStream};
use sandstone_protocol::message::{Answer, ExitStatus, Request, Spawn, TerminalSize};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::inbox::InboxReader;
use super::signal;

/// How long the agent may take to start a process, to resize its terminal or to signal it.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// How long a shell's terminal is read after the shell has exited and nothing came any more:
/// processes that it left behind may hold the terminal for ever.
const DRAIN_GRACE: Duration = Duration::from_millis(300);

/// Most variables of one session, and most bytes of their names and values together.
const VARIABLES_MAX: usize = 64;
const VARIABLES_MAX_BYTES: usize = 32 << 10;

/// Longest name of a kind of terminal.
const TERM_MAX_BYTES: usize = 64;

/// The extended data that is standard error (RFC 4254, section 5.2).
const STDERR: u32 = 1;

/// Exit codes of shells for programs that are not there or cannot be run, and OpenSSH's for
/// failures of its own.
const EXIT_NOT_FOUND: u32 = 127;
const EXIT_NOT_EXECUTABLE: u32 = 126;
const EXIT_LOST: u32 = 255;

/// Debian's SFTP server, of the package `openssh-sftp-server`.
const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";

/// ENOENT, errno(3).
const ENOENT: i32 = 2;

/// What a client asks to be run.
#[derive(Debug)]
pub(super) enum Program {
    /// A login shell.
    Shell,
    /// A command line for a shell.
    Command(String),
    /// The sandbox's own SFTP server.
    Sftp,
}

/// Something that a running process is told.
#[derive(Debug)]
pub(super) enum Change {
    /// Its terminal has another size.
    Resize(TerminalSize),
    /// The client sends it this signal.
    Signal(i32),
}

/// What a client has said about a process before it asked for it.
#[derive(Debug, Default)]
pub(super) struct Setup {
    environment: BTreeMap<String, String>,
    bytes: usize,
    terminal: Option<TerminalSize>,
}

impl Setup {
    /// Gives the process a terminal; returns whether it gets it. Clients ask once.
    pub(super) fn set_terminal(&mut self, term: &str, size: TerminalSize) -> bool {
        let is_name = |c: char| c.is_ascii_graphic();
        if self.terminal.is_some() || term.len() > TERM_MAX_BYTES || !term.chars().all(is_name) {
            return false;
        }
        self.terminal = Some(size);
        term.is_empty() || self.set_variable("TERM", term)
    }

    /// Changes the size of its terminal; returns whether it has one.
    pub(super) fn resize(&mut self, size: TerminalSize) -> bool {
        let has_one = self.terminal.is_some();
        self.terminal = has_one.then_some(size);
        has_one
    }

    /// Sets a variable; returns whether it was taken. Any name will do: who may set one may run
    /// any program anyway.
    pub(super) fn set_variable(&mut self, name: &str, value: &str) -> bool {
        let bytes = self.bytes + name.len() + value.len();
        let is_name = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name
            || value.contains('\0')
            || bytes > VARIABLES_MAX_BYTES
            || self.environment.len() >= VARIABLES_MAX
        {
            return false;
        }
        self.bytes = bytes;
        self.environment.insert(name.to_owned(), value.to_owned());
        true
    }

    /// Sets what OpenSSH's server sets, which shells and programs ask for.
    pub(super) fn set_addresses(&mut self, peer: SocketAddr, local: SocketAddr) {
        let (from, to) = (peer.ip().to_canonical(), local.ip().to_canonical());
        let client = format!("{from} {} {}", peer.port(), local.port());
        let connection = format!("{from} {} {to} {}", peer.port(), local.port());
        self.environment.insert("SSH_CLIENT".to_owned(), client);
        self.environment
            .insert("SSH_CONNECTION".to_owned(), connection);
    }

    fn spawn(self, program: &Program) -> Spawn {
        let (command, args) = match program {
            Program::Shell => ("bash", vec!["-l".to_owned()]),
            Program::Command(line) => ("bash", vec!["-c".to_owned(), line.clone()]),
            Program::Sftp => (SFTP_SERVER, Vec::new()),
        };
        Spawn {
            command: command.to_owned(),
            args,
            environment: self.environment,
            terminal: self.terminal,
            ..Spawn::default()
        }
    }
}

/// The channel of a session, and the sandbox that it runs in.
pub(super) struct Session {
    pub(super) agent: Arc<AgentClient>,
    pub(super) handle: Handle,
    pub(super) output: ChannelWriteHalf<Msg>,
    pub(super) input: InboxReader,
    pub(super) changes: mpsc::Receiver<Change>,
    /// Fires when the client has closed the channel, or is gone.
    pub(super) closed: CancellationToken,
}

/// Why a process could not be run or followed.
struct Failure {
    /// For the client's standard error.
    line: String,
    /// The exit code that says it to scripts.
    code: u32,
}

impl Session {
    /// Runs the program to its end, or sends it SIGHUP when the client goes first.
    pub(super) async fn run(self, setup: Setup, program: Program) {
        let Self {
            agent,
            handle,
            output,
            input,
            mut changes,
            closed,
        } = self;
        let id = output.id();
        let streams = Streams::new(&agent, setup.terminal.is_some());
        let started = tokio::select! {
            started = start(&agent, &streams, setup, &program) => started,
            // Whatever was started loses its streams, and with them its reason to run.
            () = closed.cancelled() => return,
        };
        let status = match started {
            Err(failure) => Err(failure),
            Ok(pid) => {
                let following = follow(&agent, pid, streams, input, &output, &mut changes);
                // Its streams end after the signal, not before.
                let mut following = std::pin::pin!(following);
                tokio::select! {
                    status = &mut following => status,
                    () = closed.cancelled() => {
                        // It may have exited, and the sandbox may be gone.
                        let hang_up = agent.call(Request::HangUp { pid });
                        let _ = timeout(CALL_LIMIT, hang_up).await;
                        return;
                    }
                }
            }
        };
        // From here on errors say that the client is gone.
        let farewell = async {
            let _ = match status {
                Ok(ExitStatus {
                    signal: Some(number),
                    ..
                }) => {
                    let name = signal::named(number);
                    let nothing = String::new;
                    handle
                        .exit_signal_request(id, name, false, nothing(), nothing())
                        .await
                }
                Ok(ExitStatus { code, .. }) => {
                    // wait(2) knows the low eight bits.
                    let code = code.map_or(EXIT_LOST, |code| u32::from(code as u8));
                    handle.exit_status_request(id, code).await
                }
                Err(Failure { line, code }) => {
                    let line = format!("{line}\r\n");
                    let _ = output.extended_data_bytes(STDERR, line).await;
                    handle.exit_status_request(id, code).await
                }
            };
            let _ = handle.eof(id).await;
            let _ = handle.close(id).await;
        };
        tokio::select! {
            () = farewell => {}
            () = closed.cancelled() => {}
        }
    }
}

/// The standard streams of a process.
struct Streams {
    stdin: OutboundStream,
    stdout: InboundStream,
    /// With a terminal, it is the same as standard output.
    stderr: Option<InboundStream>,
}

impl Streams {
    fn new(agent: &AgentClient, has_terminal: bool) -> Self {
        Self {
            stdin: agent.outbound(),
            stdout: agent.inbound(),
            stderr: (!has_terminal).then(|| agent.inbound()),
        }
    }
}

async fn start(
    agent: &AgentClient,
    streams: &Streams,
    setup: Setup,
    program: &Program,
) -> Result<u32, Failure> {
    let spawn = Spawn {
        stdin: Some(streams.stdin.id()),
        stdout: Some(streams.stdout.id()),
        stderr: streams.stderr.as_ref().map(InboundStream::id),
        ..setup.spawn(program)
    };
    let command = spawn.command.clone();
    match timeout(CALL_LIMIT, agent.call(Request::Spawn(spawn))).await {
        Ok(Ok(Answer::Spawned { pid })) => Ok(pid),
        Ok(Err(AgentError::Refused(failure))) if failure.errno == Some(ENOENT) => {
            let hint = match program {
                Program::Sftp => "; install the package openssh-sftp-server, or use `scp -O`",
                Program::Shell | Program::Command(_) => "",
            };
            Err(Failure {
                line: format!("this sandbox has no {command}{hint}"),
                code: EXIT_NOT_FOUND,
            })
        }
        Ok(Err(AgentError::Refused(failure))) => Err(Failure {
            line: format!("cannot run {command}: {}", printable(&failure.message)),
            code: EXIT_NOT_EXECUTABLE,
        }),
        Ok(Ok(_)) => Err(lost("it gave an answer of the wrong kind")),
        Ok(Err(AgentError::Lost(_))) => Err(lost("its connection was lost")),
        Err(_) => Err(lost("it did not answer in time")),
    }
}

fn lost(why: &str) -> Failure {
    Failure {
        line: format!("the sandbox is out of reach: {why}"),
        code: EXIT_LOST,
    }
}

/// A sandbox's own words, as a line of bounded length.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(256)
        .collect()
}

/// Carries bytes and changes between the client and a process until it has exited and its output
/// is complete.
async fn follow(
    agent: &AgentClient,
    pid: u32,
    streams: Streams,
    input: InboxReader,
    output: &ChannelWriteHalf<Msg>,
    changes: &mut mpsc::Receiver<Change>,
) -> Result<ExitStatus, Failure> {
    let Streams {
        stdin,
        stdout,
        stderr,
    } = streams;
    let has_terminal = stderr.is_none();
    let progress = Progress::default();
    let printing = async {
        tokio::join!(pump(stdout, output, None, &progress), async {
            if let Some(stderr) = stderr {
                pump(stderr, output, Some(STDERR), &progress).await;
            }
        },);
    };
    let mut printing = std::pin::pin!(printing);
    let mut is_printed = false;
    let mut waiting = std::pin::pin!(agent.call(Request::Wait { pid }));
    let mut beside = std::pin::pin!(async {
        tokio::join!(feed(input, stdin), apply(agent, pid, changes));
    });
    let mut is_beside_done = false;
    let exited = loop {
        tokio::select! {
            exited = &mut waiting => break exited,
            () = &mut printing, if !is_printed => is_printed = true,
            () = &mut beside, if !is_beside_done => is_beside_done = true,
        }
    };
    if !is_printed && has_terminal {
        tokio::select! {
            () = &mut printing => {}
            () = progress.stands_still() => {}
        }
    } else if !is_printed {
        // As with every SSH server, the session lasts as long as somebody can print to it.
        loop {
            tokio::select! {
                () = &mut printing => break,
                () = &mut beside, if !is_beside_done => is_beside_done = true,
            }
        }
    }
    match exited {
        Ok(Answer::Exited(status)) => Ok(status),
        Ok(_) => Err(lost("it gave an answer of the wrong kind")),
        Err(AgentError::Refused(failure)) => Err(lost(&printable(&failure.message))),
        Err(AgentError::Lost(_)) => Err(lost("its connection was lost")),
    }
}

/// How far the output of a process has come.
#[derive(Debug, Default)]
struct Progress {
    chunks: AtomicU64,
    /// The client is the one that is slow.
    is_sending: AtomicBool,
}

impl Progress {
    /// Returns when nothing came for a while, and nothing waits for the client.
    async fn stands_still(&self) {
        loop {
            let before = self.chunks.load(Ordering::SeqCst);
            sleep(DRAIN_GRACE).await;
            if self.chunks.load(Ordering::SeqCst) == before
                && !self.is_sending.load(Ordering::SeqCst)
            {
                return;
            }
        }
    }
}

/// Sends what a process prints. When the client does not take it, the process waits.
async fn pump(
    mut from: InboundStream,
    to: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
    progress: &Progress,
) {
    while let Some(Ok(bytes)) = from.next().await {
        progress.chunks.fetch_add(1, Ordering::SeqCst);
        progress.is_sending.store(true, Ordering::SeqCst);
        let sent = match extended {
            None => to.data_bytes(bytes).await,
            Some(kind) => to.extended_data_bytes(kind, bytes).await,
        };
        progress.is_sending.store(false, Ordering::SeqCst);
        if sent.is_err() {
            return;
        }
    }
}

async fn feed(mut from: InboxReader, mut to: OutboundStream) {
    while let Some(bytes) = from.next().await {
        if to.send(bytes).await.is_err() {
            // The process reads no more. What still comes is dropped.
            return;
        }
    }
    // An error says that it had stopped reading before.
    let _ = to.finish().await;
}

/// Tells a process what the client has changed.
async fn apply(agent: &AgentClient, pid: u32, changes: &mut mpsc::Receiver<Change>) {
    while let Some(change) = changes.recv().await {
        let request = match change {
            Change::Resize(size) => Request::Resize { pid, size },
            Change::Signal(signal) => Request::Kill { pid, signal },
        };
        // The process may have exited; then it does not matter.
        let _ = timeout(CALL_LIMIT, agent.call(request)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: TerminalSize = TerminalSize {
        columns: 80,
        rows: 24,
    };

    #[test]
    fn variables_are_bounded_and_named_as_shells_name_them() {
        let mut setup = Setup::default();
        assert!(setup.set_variable("LC_ALL", "C"));
        for name in ["", "A=B", "1A", "A\0", "Ä", "A B"] {
            assert!(!setup.set_variable(name, "x"), "{name:?}");
        }
        assert!(!setup.set_variable("A", "x\0"));
        assert!(!setup.set_variable("A", &"x".repeat(VARIABLES_MAX_BYTES)));
        let taken = (0..2 * VARIABLES_MAX)
            .filter(|number| setup.set_variable(&format!("V{number}"), ""))
            .count();
        assert_eq!(taken, VARIABLES_MAX - 1);
    }

    #[test]
    fn a_terminal_is_asked_for_once() {
        let mut setup = Setup::default();
        assert!(!setup.resize(SIZE));
        assert!(!setup.set_terminal(&"x".repeat(TERM_MAX_BYTES + 1), SIZE));
        assert!(!setup.set_terminal("a b", SIZE));
        assert!(setup.set_terminal("xterm", SIZE));
        assert!(!setup.set_terminal("xterm", SIZE));
        assert!(setup.resize(TerminalSize {
            columns: 1,
            rows: 2
        }));
        let spawn = setup.spawn(&Program::Shell);
        assert_eq!(
            (spawn.command.as_str(), spawn.args),
            ("bash", vec!["-l".to_owned()])
        );
        assert_eq!(spawn.environment["TERM"], "xterm");
        assert_eq!(
            spawn.terminal,
            Some(TerminalSize {
                columns: 1,
                rows: 2
            })
        );
    }

    #[test]
    fn commands_are_for_a_shell_as_they_are() {
        let line = "echo 'a b' \"$HOME\"; exit 3".to_owned();
        let spawn = Setup::default().spawn(&Program::Command(line.clone()));
        assert_eq!(spawn.args, ["-c".to_owned(), line]);
        assert_eq!(spawn.terminal, None);
    }

    #[test]
    fn addresses_are_told_as_openssh_tells_them() {
        let mut setup = Setup::default();
        let peer = "[::ffff:192.0.2.1]:5000".parse().unwrap();
        setup.set_addresses(peer, "192.0.2.2:22".parse().unwrap());
        assert_eq!(setup.environment["SSH_CLIENT"], "192.0.2.1 5000 22");
        let connection = "192.0.2.1 5000 192.0.2.2 22";
        assert_eq!(setup.environment["SSH_CONNECTION"], connection);
    }

    #[tokio::test(start_paused = true)]
    async fn standing_still_is_noticed_unless_the_client_is_slow() {
        let progress = Progress::default();
        progress.is_sending.store(true, Ordering::SeqCst);
        let limit = 10 * DRAIN_GRACE;
        assert!(timeout(limit, progress.stands_still()).await.is_err());
        progress.is_sending.store(false, Ordering::SeqCst);
        timeout(limit, progress.stands_still()).await.unwrap();
    }
}
