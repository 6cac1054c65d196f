//! Processes: starting, waiting, killing, and the pumps of their standard streams.
//!
//! ```text
//! client              edge                        agent
//!   │ spawn ────────────► Spawn{stdout: s} ─────────►│
//!   │◄──── {pid, id} ─────│◄────────── Data s ───────│  kept in the window of s, not sent on
//!   │ processWait ───────►│  releases the pumps      │
//!   │◄── start, enqueue … │◄────────── Data s ───────│
//!   │◄────────────── end ─│◄─────────── End s ───────│
//!   │◄─ {success, code} ──│◄────────── Exited ───────│  not before the ends (trap 15)
//! ```
//!
//! The pumps are in `pumps`; what all connections of a sandbox share about its processes is in
//! `programs`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandstone_node_api::{AgentError, InboundStream};
use sandstone_protocol::message::{Answer, ExitStatus, Request, Spawn};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::config::check_variable;
use super::error::{CallError, RemoteError};
use super::files::unknown_stream;
use super::mangled::restore_names;
use super::params::Params;
use super::pumps::{Observer, PumpState, drain, feed_stdin, pump_output};
use super::rpc::{Done, unexpected};
use super::session::Session;
use super::signals;
use super::uploads::{Purpose, UploadReader};

/// Trap 4: how long output waits for a `processWait` that does not come.
const RELEASE_DELAY: Duration = Duration::from_millis(250);

/// The processes that one connection started and still reads from.
#[derive(Debug, Default)]
pub(super) struct Processes(Mutex<HashMap<u32, Arc<Process>>>);

#[derive(Debug)]
struct Process {
    /// Fires when the client is ready for output.
    released: CancellationToken,
    pumps: Vec<Arc<PumpState>>,
}

impl Processes {
    fn get(&self, pid: u32) -> Option<Arc<Process>> {
        self.lock().get(&pid).cloned()
    }

    /// Forgets a process whose output is complete. Its pid may belong to a newer one already.
    fn forget(&self, pid: u32, process: &Arc<Process>) {
        let mut processes = self.lock();
        if processes
            .get(&pid)
            .is_some_and(|known| Arc::ptr_eq(known, process))
            && process.pumps.iter().all(|pump| pump.done.is_cancelled())
        {
            processes.remove(&pid);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process whose spawn is answered next.
#[derive(Debug)]
struct Spawned {
    released: CancellationToken,
    stdin_ended: Option<CancellationToken>,
}

impl Spawned {
    /// The answer is out: releases the output a little later, unless `processWait` comes first.
    fn answered(self, session: &Session) {
        let ended = session.ended.clone();
        tokio::spawn(async move {
            let wait = async {
                if let Some(stdin_ended) = self.stdin_ended {
                    stdin_ended.cancelled().await;
                }
                sleep(RELEASE_DELAY).await;
            };
            tokio::select! {
                () = wait => self.released.cancel(),
                () = self.released.cancelled() => {}
                () = ended.cancelled() => {}
            }
        });
    }
}

/// What a client may say about any process that it starts.
pub(super) struct Launch {
    /// Program, arguments, variables, directory. Its streams are filled in here.
    pub(super) spawn: Spawn,
    stdin: Option<UploadReader>,
    stdout_is_piped: bool,
    stderr_is_piped: bool,
    /// Sees what the process writes to its standard error.
    pub(super) observer: Option<Observer>,
}

/// A process that was started.
pub(super) struct Launched {
    pub(super) pid: u32,
    pub(super) stdout_id: Option<u64>,
    pub(super) stderr_id: Option<u64>,
    spawned: Spawned,
}

impl Launch {
    /// Reads `env`, `clearEnv`, `cwd` and the standard streams. The program is still to be named.
    pub(super) fn read(session: &Session, params: &mut Params) -> Result<Self, CallError> {
        let mut environment = params.text_map("env")?;
        let clear_environment = params.optional_bool("clearEnv")?.unwrap_or(false);
        let working_directory = params.optional_text("cwd")?;
        let stdout_is_piped = is_piped(params, "stdout")?;
        let stderr_is_piped = is_piped(params, "stderr")?;
        let stdin_id = params.optional_number("stdinStreamId")?;
        if session.client == Client::Python {
            restore_names(&mut environment);
        }
        for (name, value) in &environment {
            check_variable(name, value).map_err(|why| RemoteError::new("TypeError", why))?;
        }
        let stdin = stdin_id
            .map(|id| {
                session
                    .uploads
                    .claim(id, Purpose::Input)
                    .ok_or_else(|| unknown_stream(id))
            })
            .transpose()?;
        Ok(Self {
            spawn: Spawn {
                environment,
                clear_environment,
                working_directory,
                ..Spawn::default()
            },
            stdin,
            stdout_is_piped,
            stderr_is_piped,
            observer: None,
        })
    }
}

impl Launched {
    /// The answer's end: output is released a little after it.
    pub(super) fn done(self, value: Value) -> Done {
        Done::new(value).then(|session| self.spawned.answered(session))
    }
}

/// Starts a process, with pumps for its standard streams.
pub(super) async fn launch(session: &Arc<Session>, launch: Launch) -> Result<Launched, CallError> {
    let Launch {
        mut spawn,
        stdin,
        stdout_is_piped,
        stderr_is_piped,
        observer,
    } = launch;
    let mut operation = format!("spawn '{}'", spawn.command);
    if let Some(directory) = &spawn.working_directory {
        operation.push_str(&format!(" in '{directory}'"));
    }
    let stdin = stdin.map(|upload| (upload, session.agent.outbound()));
    let stdout = stdout_is_piped.then(|| session.agent.inbound());
    let stderr = (stderr_is_piped || observer.is_some()).then(|| session.agent.inbound());
    spawn.stdin = stdin.as_ref().map(|(_, stream)| stream.id());
    spawn.stdout = stdout.as_ref().map(InboundStream::id);
    spawn.stderr = stderr.as_ref().map(InboundStream::id);
    let oom_kills = session.edge.control.oom_kills(session.sandbox).await;
    let pid = match session.agent.call(Request::Spawn(spawn)).await {
        Ok(Answer::Spawned { pid }) => pid,
        Ok(other) => return Err(unexpected(&other)),
        Err(error) => return Err(RemoteError::from_agent(error, &operation).into()),
    };
    session.programs.begun(pid, oom_kills);

    let released = CancellationToken::new();
    let mut stdin_ended = None;
    if let Some((upload, stream)) = stdin {
        stdin_ended = Some(upload.ended());
        tokio::spawn(feed_stdin(upload, stream, session.ended.clone()));
    }
    let mut pumps = Vec::new();
    let mut pump = |source: InboundStream, is_wanted: bool, observer: Option<Observer>| {
        let download = is_wanted.then(|| session.open_download());
        let id = download.as_ref().map(|download| download.id);
        let state = Arc::new(PumpState::default());
        if is_wanted {
            pumps.push(state.clone());
        }
        tokio::spawn(pump_output(
            session.clone(),
            source,
            download,
            observer,
            released.clone(),
            state,
        ));
        id
    };
    let stdout_id = stdout.and_then(|source| pump(source, true, None));
    let stderr_id = stderr.and_then(|source| pump(source, stderr_is_piped, observer));
    let process = Process {
        released: released.clone(),
        pumps,
    };
    session.processes.lock().insert(pid, Arc::new(process));
    Ok(Launched {
        pid,
        stdout_id,
        stderr_id,
        spawned: Spawned {
            released,
            stdin_ended,
        },
    })
}

pub(super) async fn spawn(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let command = params.text("command")?;
    let args = params.texts("args")?;
    let mut process = Launch::read(session, &mut params)?;
    process.spawn.command = command;
    process.spawn.args = args;
    let launched = launch(session, process).await?;
    let value = json!({
        "pid": launched.pid,
        "stdoutStreamId": launched.stdout_id,
        "stderrStreamId": launched.stderr_id,
    });
    Ok(launched.done(value))
}

/// Python's REPL sends `"inherit"`; like everything but `"null"` it wants the bytes.
fn is_piped(params: &mut Params, key: &str) -> Result<bool, CallError> {
    Ok(params.optional_text(key)?.as_deref() != Some("null"))
}

pub(super) async fn wait(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let pid = params.u32("pid")?;
    // Not kept for as long as the process runs.
    drop(params);
    let process = session.processes.get(pid);
    if let Some(process) = &process {
        process.released.cancel();
    }
    let status = match session.agent.call(Request::Wait { pid }).await {
        Ok(Answer::Exited(status)) => status,
        Ok(other) => return Err(unexpected(&other)),
        Err(error) => return Err(process_error(error, &format!("wait for process {pid}"))),
    };
    if let Some(process) = &process {
        for pump in &process.pumps {
            drain(pump).await;
        }
        session.processes.forget(pid, process);
    }
    let oom = out_of_memory(session, pid, status).await;
    Ok(exit_value(status, oom))
}

/// Whether a process ended because the sandbox's memory ran out. The kernel tells how many it
/// killed, not which: a process that died of its signal while the number grew was one of them, and
/// one that reports such a death as 128 + 9, as shells do, may have lost a child.
async fn out_of_memory(session: &Session, pid: u32, status: ExitStatus) -> Option<&'static str> {
    const SIGKILL: i32 = 9;
    let confidence = match (status.signal, status.code) {
        (Some(SIGKILL), _) => "high-confidence",
        (None, Some(code)) if code == 128 + SIGKILL => "low-confidence",
        _ => return None,
    };
    if let Some(known) = session.programs.verdict(pid) {
        return known;
    }
    let kills = session.edge.control.oom_kills(session.sandbox).await?;
    session.programs.judge(pid, kills, confidence)
}

fn exit_value(status: ExitStatus, oom: Option<&str>) -> Value {
    // Shells and the hosted product add 128 to the signal.
    let (code, signal) = match (status.code, status.signal) {
        (_, Some(signal)) => (128_i32.saturating_add(signal), Some(signals::name(signal))),
        (Some(code), None) => (code, None),
        (None, None) => (1, None),
    };
    json!({
        "success": code == 0,
        "code": code,
        "signal": signal,
        // JavaScript demands the key.
        "oom": oom,
    })
}

pub(super) async fn kill(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let pid = params.u32("pid")?;
    let name = params
        .optional_text("signal")?
        .unwrap_or_else(|| "SIGTERM".to_owned());
    let signal = signals::number(&name)
        .ok_or_else(|| RemoteError::new("TypeError", format!("Linux has no signal {name:?}")))?;
    match session.agent.call(Request::Kill { pid, signal }).await {
        Ok(Answer::Done) => Ok(Value::Null),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(process_error(error, &format!("kill process {pid}"))),
    }
}

/// Trap 17: `ESRCH` has a shape of its own.
pub(super) fn process_error(error: AgentError, operation: &str) -> CallError {
    const ESRCH: i32 = 3;
    match error {
        AgentError::Refused(failure) if failure.errno == Some(ESRCH) => {
            RemoteError::process_gone().into()
        }
        other => RemoteError::from_agent(other, operation).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_process_ended() {
        let value = |code, signal| exit_value(ExitStatus { code, signal }, None);
        assert_eq!(
            value(Some(0), None),
            json!({"success": true, "code": 0, "signal": null, "oom": null})
        );
        assert_eq!(value(Some(3), None)["success"], false);
        assert_eq!(
            value(None, Some(15)),
            json!({"success": false, "code": 143, "signal": "SIGTERM", "oom": null})
        );
        assert_eq!(value(None, Some(i32::MAX))["code"], i32::MAX);
    }
}
