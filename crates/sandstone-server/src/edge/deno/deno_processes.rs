//! Deno programs.
//!
//! Each has a directory of its own in the sandbox, which goes when it exits: for its code, if it
//! was given as text, and for the unix socket on which its first HTTP server listens beside its own
//! address. Deno itself offers that: `DENO_SERVE_ADDRESS=duplicate,unix:PATH`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandstone_node_api::AgentClient;
use sandstone_protocol::message::{Answer, DialTarget, Request, WriteOptions};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::error::{CallError, RemoteError};
use super::params::Params;
use super::processes::{Launch, Launched, launch};
use super::programs::{DenoProcess, Programs};
use super::pumps::Observer;
use super::repl::Repl;
use super::rpc::{Done, unexpected};
use super::session::Session;

/// The program. Found in the sandbox's `PATH`.
pub(super) const DENO: &str = "deno";

/// Where Deno's first HTTP server listens.
const SERVE_ADDRESS: &str = "DENO_SERVE_ADDRESS";

/// What Deno's watcher writes to standard error when it starts the program again. Colours may stand
/// around the words before it.
const RESTART: &[u8] = b"Restarting! File change detected";

/// Restarts that are told at once; more while the client does not read are one.
const RESTARTS_QUEUED: usize = 16;

/// First pause between two looks for an HTTP server.
const READY_PAUSE: Duration = Duration::from_millis(10);

/// Longest pause between two looks.
const READY_PAUSE_MAX: Duration = Duration::from_millis(200);

/// How long removing a process's directory may take.
const CLEANUP_LIMIT: Duration = Duration::from_secs(10);

/// A directory of one Deno process, in the sandbox and its user's.
pub(super) struct Home {
    agent: Arc<AgentClient>,
    path: String,
}

impl Home {
    /// Makes a directory whose name nobody can guess.
    pub(super) async fn make(session: &Session) -> Result<Self, CallError> {
        let path = format!("/tmp/.deno-{}", hex::<16>(session));
        let request = Request::MakeDir {
            path: path.clone(),
            recursive: false,
            mode: Some(0o700),
        };
        session.done(request, &format!("mkdir '{path}'")).await?;
        Ok(Self {
            agent: session.agent.clone(),
            path,
        })
    }

    /// The unix socket of the process's first HTTP server.
    pub(super) fn http_socket(&self) -> String {
        format!("{}/http.sock", self.path)
    }

    /// Lets a process serve HTTP on [`Self::http_socket`] too, unless it was told otherwise.
    pub(super) fn serve_here(&self, launch: &mut Launch) {
        launch
            .spawn
            .environment
            .entry(SERVE_ADDRESS.to_owned())
            .or_insert_with(|| format!("duplicate,unix:{}", self.http_socket()));
    }

    /// Writes a file into it, and returns its path.
    async fn write(
        &self,
        session: &Session,
        name: &str,
        content: String,
    ) -> Result<String, CallError> {
        let path = format!("{}/{name}", self.path);
        let operation = format!("writefile '{path}'");
        let mut source = session.agent.outbound();
        let request = Request::WriteFile {
            path: path.clone(),
            source: source.id(),
            options: WriteOptions {
                create_new: true,
                ..WriteOptions::default()
            },
        };
        let feeding = async {
            // A refusal comes as the answer.
            if source.send(Bytes::from(content)).await.is_ok() {
                let _ = source.finish().await;
            }
        };
        let (answer, ()) = tokio::join!(session.call(request, &operation), feeding);
        match answer? {
            Answer::Done => Ok(path),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes it in the background: when `exit` is over, or now.
    fn remove_after(self, exit: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(async move {
            exit.await;
            let request = Request::Remove {
                path: self.path.clone(),
                recursive: true,
            };
            // A sandbox that has ended has no directory any more.
            let _ = tokio::time::timeout(CLEANUP_LIMIT, self.agent.call(request)).await;
        });
    }

    /// Starts the process. The directory stays until it exits, or goes if it does not start.
    pub(super) async fn launch(
        self,
        session: &Arc<Session>,
        process: Launch,
        repl: Option<Repl>,
    ) -> Result<Launched, CallError> {
        let launched = match launch(session, process).await {
            Ok(launched) => launched,
            Err(error) => {
                self.remove_after(async {});
                return Err(error);
            }
        };
        let process = Arc::new(DenoProcess {
            http_socket: self.http_socket(),
            repl,
            exited: CancellationToken::new(),
        });
        let pid = launched.pid;
        session.programs.add_deno(pid, process.clone());
        let exit = watch_exit(self.agent.clone(), session.programs.clone(), pid, process);
        self.remove_after(exit);
        Ok(launched)
    }
}

async fn watch_exit(
    agent: Arc<AgentClient>,
    programs: Arc<Programs>,
    pid: u32,
    process: Arc<DenoProcess>,
) {
    // Lost with the sandbox, or with a connection that every client loses as well.
    let _ = agent.call(Request::Wait { pid }).await;
    process.exited.cancel();
    programs.remove_deno(pid, &process);
}

/// Random bytes as hexadecimal digits.
pub(super) fn hex<const BYTES: usize>(session: &Session) -> String {
    let mut bytes = [0; BYTES];
    session.edge.entropy.fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random UUID: RFC 9562, 5.4.
fn uuid(session: &Session) -> String {
    let mut bytes = [0; 16];
    session.edge.entropy.fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &hex[part]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// What Deno is to run.
enum Source {
    /// A path or URL.
    Entrypoint(String),
    /// Text, as a file with this extension.
    Code { code: String, extension: String },
}

pub(super) async fn run(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let source = read_source(&mut params)?;
    let watch = params.flag_or_texts("watch")?;
    let args = params.texts("scriptArgs")?;
    let mut process = Launch::read(session, &mut params)?;
    let home = Home::make(session).await?;
    let prepared = async {
        match source {
            Source::Entrypoint(entrypoint) => Ok(entrypoint),
            Source::Code { code, extension } => {
                home.write(session, &format!("main.{extension}"), code)
                    .await
            }
        }
    };
    let entrypoint = match prepared.await {
        Ok(entrypoint) => entrypoint,
        Err(error) => {
            home.remove_after(async {});
            return Err(error);
        }
    };
    process.spawn.command = DENO.to_owned();
    process.spawn.args = vec!["run".to_owned(), "-A".to_owned()];
    let mut watcher = None;
    if let Some(paths) = watch {
        process.spawn.args.push(match paths.as_slice() {
            [] => "--watch".to_owned(),
            paths => format!("--watch={}", paths.join(",")),
        });
        let id = uuid(session);
        process.observer = Some(tell_restarts(session, id.clone()));
        watcher = Some(id);
    }
    // After the script's name all arguments are the script's; before it, one that looks like an
    // option would be Deno's.
    process.spawn.args.push(match entrypoint.strip_prefix('-') {
        Some(_) => format!("./{entrypoint}"),
        None => entrypoint,
    });
    process.spawn.args.extend(args);
    home.serve_here(&mut process);
    let launched = home.launch(session, process, None).await?;
    let value = json!({
        "pid": launched.pid,
        "stdoutStreamId": launched.stdout_id,
        "stderrStreamId": launched.stderr_id,
        // JavaScript demands the key.
        "watcherId": watcher,
    });
    Ok(launched.done(value))
}

fn read_source(params: &mut Params) -> Result<Source, CallError> {
    let entrypoint = params.optional_text("entrypoint")?;
    let code = params.optional_text("code")?;
    let extension = params
        .optional_text("extension")?
        .unwrap_or_else(|| "ts".to_owned());
    match (entrypoint, code) {
        (Some(entrypoint), None) if !entrypoint.is_empty() => Ok(Source::Entrypoint(entrypoint)),
        (None, Some(code)) => {
            let known = ["js", "cjs", "mjs", "ts", "cts", "mts", "jsx", "tsx"];
            if !known.contains(&extension.as_str()) {
                let why = format!("{extension:?} is none of {}", known.join(", "));
                return Err(RemoteError::new("TypeError", why).into());
            }
            Ok(Source::Code { code, extension })
        }
        _ => {
            let why = "exactly one of `entrypoint` and `code` must be given";
            Err(RemoteError::new("TypeError", why).into())
        }
    }
}

/// Tells the client whenever Deno starts the program again.
fn tell_restarts(session: &Arc<Session>, watcher: String) -> Observer {
    let (restarted, mut restarts) = mpsc::channel::<()>(RESTARTS_QUEUED);
    let telling = session.clone();
    tokio::spawn(async move {
        let ended = telling.ended.clone();
        let text = json!({
            "jsonrpc": "2.0",
            "method": "$sandbox.deno.watcher.restart",
            "params": {"watcherId": watcher},
        })
        .to_string();
        let tell = async {
            while restarts.recv().await.is_some() {
                telling.send(text.clone()).await;
            }
        };
        tokio::select! {
            () = tell => {}
            () = ended.cancelled() => {}
        }
    });
    let mut finder = Finder::default();
    Box::new(move |bytes| {
        for _ in 0..finder.count(bytes) {
            let _ = restarted.try_send(());
        }
    })
}

/// Counts [`RESTART`] in a stream, however it is cut.
#[derive(Default)]
struct Finder {
    /// The end of what was seen, shorter than the text that is looked for.
    tail: Vec<u8>,
}

impl Finder {
    fn count(&mut self, bytes: &[u8]) -> usize {
        self.tail.extend_from_slice(bytes);
        let found = self
            .tail
            .windows(RESTART.len())
            .filter(|window| *window == RESTART)
            .count();
        let seen = self.tail.len().saturating_sub(RESTART.len() - 1);
        self.tail.drain(..seen);
        found
    }
}

/// Waits until a Deno process serves HTTP (true) or exits (false).
pub(super) async fn http_wait(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let pid = params.u32("pid")?;
    drop(params);
    let Some(process) = session.programs.deno(pid) else {
        // One that has exited never will.
        return match session.agent.call(Request::Wait { pid }).await {
            Ok(_) => Ok(Value::Bool(false)),
            Err(error) => Err(super::processes::process_error(
                error,
                &format!("wait for process {pid}"),
            )),
        };
    };
    Ok(Value::Bool(until_it_serves(session, &process).await?))
}

/// Waits until a program serves HTTP. False when it exits first.
pub(super) async fn until_it_serves(
    session: &Session,
    process: &DenoProcess,
) -> Result<bool, CallError> {
    let mut pause = READY_PAUSE;
    loop {
        let target = DialTarget::Unix(process.http_socket.clone());
        tokio::select! {
            dialled = session.agent.dial(target) => match dialled {
                Ok(_) => return Ok(true),
                Err(error) if session.agent.is_closed() => {
                    return Err(RemoteError::from_agent(error, "wait for a server").into());
                }
                // Not yet.
                Err(_) => {}
            },
            () = process.exited.cancelled() => return Ok(false),
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(READY_PAUSE_MAX),
            () = process.exited.cancelled() => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_found_however_they_are_cut() {
        let text = b"Watcher \x1b[0mRestarting! File change detected: \"/x\"\nRestarting! no\n\
            Restarting! File change detectedRestarting! File change detected";
        for size in [1, 2, 7, 31, 32, 33, text.len()] {
            let mut finder = Finder::default();
            let found: usize = text.chunks(size).map(|chunk| finder.count(chunk)).sum();
            assert_eq!(found, 3, "in chunks of {size}");
            assert!(finder.tail.len() < RESTART.len());
        }
    }
}
