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
//! A pump outlives its connection: then it throws the output away, so that a process of a sandbox
//! that goes on never blocks on a full pipe.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sandstone_node_api::{AgentError, InboundStream, OutboundStream};
use sandstone_protocol::message::{Answer, ExitStatus, Request, Spawn};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::config::check_variable;
use super::error::{CallError, RemoteError};
use super::files::unknown_stream;
use super::params::Params;
use super::rpc::{Done, unexpected};
use super::session::Session;
use super::signals;
use super::streams::Download;
use super::uploads::{Purpose, UploadReader};

/// Trap 4: how long output waits for a `processWait` that does not come.
const RELEASE_DELAY: Duration = Duration::from_millis(250);

/// How long the answer to `processWait` waits for output that has stopped flowing: a grandchild
/// may hold the pipe for ever.
const DRAIN_GRACE: Duration = Duration::from_millis(200);

/// How much output of one stream the answer waits for after the exit. What the process itself
/// wrote is in the pipe (at most 1 MiB) and in the stream's window; the rest is a grandchild's.
const DRAIN_MAX_BYTES: u64 = 2 << 20;

/// The processes that one connection started and still reads from.
#[derive(Debug, Default)]
pub(super) struct Processes(Mutex<HashMap<u32, Arc<Process>>>);

#[derive(Debug)]
struct Process {
    /// Fires when the client is ready for output.
    released: CancellationToken,
    pumps: Vec<Arc<PumpState>>,
}

#[derive(Debug, Default)]
struct PumpState {
    sent_bytes: AtomicU64,
    /// The client is the one that is slow.
    is_sending: AtomicBool,
    done: CancellationToken,
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

pub(super) async fn spawn(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let command = params.text("command")?;
    let args = params.texts("args")?;
    let mut environment = params.text_map("env")?;
    let clear_environment = params.optional_bool("clearEnv")?.unwrap_or(false);
    let working_directory = params.optional_text("cwd")?;
    let stdout_is_piped = is_piped(&mut params, "stdout")?;
    let stderr_is_piped = is_piped(&mut params, "stderr")?;
    let stdin_id = params.optional_number("stdinStreamId")?;
    if session.client == Client::Python {
        restore_names(&mut environment);
    }
    for (name, value) in &environment {
        check_variable(name, value).map_err(|why| RemoteError::new("TypeError", why))?;
    }
    let upload = stdin_id
        .map(|id| {
            session
                .uploads
                .claim(id, Purpose::Input)
                .ok_or_else(|| unknown_stream(id))
        })
        .transpose()?;

    let mut operation = format!("spawn '{command}'");
    if let Some(directory) = &working_directory {
        operation.push_str(&format!(" in '{directory}'"));
    }
    let stdin = upload.map(|upload| (upload, session.agent.outbound()));
    let stdout = stdout_is_piped.then(|| session.agent.inbound());
    let stderr = stderr_is_piped.then(|| session.agent.inbound());
    let request = Request::Spawn(Spawn {
        command,
        args,
        environment,
        clear_environment,
        working_directory,
        stdin: stdin.as_ref().map(|(_, stream)| stream.id()),
        stdout: stdout.as_ref().map(InboundStream::id),
        stderr: stderr.as_ref().map(InboundStream::id),
        ..Spawn::default()
    });
    let pid = match session.agent.call(request).await {
        Ok(Answer::Spawned { pid }) => pid,
        Ok(other) => return Err(unexpected(&other)),
        Err(error) => return Err(RemoteError::from_agent(error, &operation).into()),
    };

    let released = CancellationToken::new();
    let mut stdin_ended = None;
    if let Some((upload, stream)) = stdin {
        stdin_ended = Some(upload.ended());
        tokio::spawn(feed_stdin(upload, stream, session.ended.clone()));
    }
    let mut pumps = Vec::new();
    let mut pump = |source: Option<InboundStream>| {
        source.map(|source| {
            let download = session.open_download();
            let id = download.id;
            let state = Arc::new(PumpState::default());
            pumps.push(state.clone());
            tokio::spawn(pump_output(
                session.clone(),
                source,
                download,
                released.clone(),
                state,
            ));
            id
        })
    };
    let stdout_id = pump(stdout);
    let stderr_id = pump(stderr);
    let process = Process {
        released: released.clone(),
        pumps,
    };
    session.processes.lock().insert(pid, Arc::new(process));
    let value = json!({
        "pid": pid,
        "stdoutStreamId": stdout_id,
        "stderrStreamId": stderr_id,
    });
    let spawned = Spawned {
        released,
        stdin_ended,
    };
    Ok(Done::new(value).then(|session| spawned.answered(session)))
}

/// Python's REPL sends `"inherit"`; like everything but `"null"` it wants the bytes.
fn is_piped(params: &mut Params, key: &str) -> Result<bool, CallError> {
    Ok(params.optional_text(key)?.as_deref() != Some("null"))
}

/// Trap 11: Python turns `NODE_ENV` into `NODEEnv` on the way. A name that looks like that is set
/// in both spellings; which one was meant cannot be known.
fn restore_names(environment: &mut BTreeMap<String, String>) {
    let restored: Vec<_> = environment
        .iter()
        .filter_map(|(name, value)| Some((original_name(name)?, value.clone())))
        .collect();
    for (name, value) in restored {
        environment.entry(name).or_insert(value);
    }
}

/// `NODE_ENV` for `NODEEnv`: capitals or digits, then words of one capital and small letters.
fn original_name(mangled: &str) -> Option<String> {
    let bytes = mangled.as_bytes();
    if !bytes.iter().all(u8::is_ascii_alphanumeric) || !bytes.first()?.is_ascii_uppercase() {
        return None;
    }
    let starts_word = |at: usize| {
        bytes[at].is_ascii_uppercase() && bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase)
    };
    let first = (1..bytes.len()).find(|at| starts_word(*at))?;
    let is_mangled = bytes[..first].iter().all(|byte| !byte.is_ascii_lowercase())
        && (first..bytes.len()).all(|at| !bytes[at].is_ascii_uppercase() || starts_word(at));
    if !is_mangled {
        return None;
    }
    let mut name = mangled[..first].to_owned();
    for c in mangled[first..].chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    Some(name)
}

async fn feed_stdin(
    mut upload: UploadReader,
    mut stream: OutboundStream,
    ended: CancellationToken,
) {
    let feeding = async {
        while let Some(chunk) = upload.next().await {
            let Ok(chunk) = chunk else { return };
            if stream.send(chunk).await.is_err() {
                // The process reads no more. What still comes is dropped silently (trap 16).
                return;
            }
        }
        let _ = stream.finish().await;
    };
    tokio::select! {
        () = feeding => {}
        () = ended.cancelled() => {}
    }
}

async fn pump_output(
    session: Arc<Session>,
    source: InboundStream,
    download: Download,
    released: CancellationToken,
    state: Arc<PumpState>,
) {
    let _done = state.done.clone().drop_guard();
    let cancelled = download.cancelled.clone();
    let ended = session.ended.clone();
    let id = download.id;
    tokio::select! {
        () = released.cancelled() => {}
        () = cancelled.cancelled() => {}
        () = ended.cancelled() => {}
    }
    tokio::select! {
        biased;
        // Dropping the source tells the agent that nobody reads this pipe any more.
        () = cancelled.cancelled() => {}
        () = copy_output(source, &download, &state) => {}
    }
    session.downloads.forget(id);
}

/// Sends everything to the client, or nowhere once the client is gone.
async fn copy_output(mut source: InboundStream, download: &Download, state: &PumpState) {
    let is_sending = |is| state.is_sending.store(is, Ordering::Relaxed);
    is_sending(true);
    let mut is_gone = download.start().await.is_err();
    is_sending(false);
    while let Some(Ok(chunk)) = source.next().await {
        if !is_gone {
            is_sending(true);
            is_gone = download.enqueue(&chunk).await.is_err();
            is_sending(false);
        }
        state
            .sent_bytes
            .fetch_add(chunk.len() as u64, Ordering::Relaxed);
    }
    is_sending(true);
    // A broken stream ends like a good one: Python would wait for ever after an error.
    let _ = download.end().await;
}

pub(super) async fn wait(session: &Session, mut params: Params) -> Result<Value, CallError> {
    let pid = params.u32("pid")?;
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
    Ok(exit_value(status))
}

/// Waits for a stream's end (trap 15), but not for a grandchild that holds the pipe.
async fn drain(pump: &PumpState) {
    let sent = || pump.sent_bytes.load(Ordering::Relaxed);
    let at_exit = sent();
    loop {
        let before = sent();
        tokio::select! {
            () = pump.done.cancelled() => return,
            () = sleep(DRAIN_GRACE) => {}
        }
        let now = sent();
        let is_stuck = now == before && !pump.is_sending.load(Ordering::Relaxed);
        if is_stuck || now - at_exit > DRAIN_MAX_BYTES {
            return;
        }
    }
}

fn exit_value(status: ExitStatus) -> Value {
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
        "oom": null,
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
fn process_error(error: AgentError, operation: &str) -> CallError {
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
    fn trap_11_names_that_python_mangled() {
        for (mangled, original) in [
            ("NODEEnv", Some("NODE_ENV")),
            ("MYVar", Some("MY_VAR")),
            ("DENODeployToken", Some("DENO_DEPLOY_TOKEN")),
            ("PATH", None),
            ("HOME1", None),
            ("lowerCase", None),
            ("Path", None),
            ("MY_VAR", None),
            ("X", None),
            ("", None),
            ("ÄÖ", None),
        ] {
            assert_eq!(original_name(mangled).as_deref(), original, "{mangled}");
        }
        let mut environment = BTreeMap::from([
            ("MYVar".to_owned(), "1".to_owned()),
            ("MY_VAR".to_owned(), "2".to_owned()),
        ]);
        restore_names(&mut environment);
        assert_eq!(environment["MY_VAR"], "2", "what was really given wins");
    }

    #[test]
    fn how_a_process_ended() {
        let value = |code, signal| exit_value(ExitStatus { code, signal });
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

    #[tokio::test(start_paused = true)]
    async fn trap_15_the_answer_waits_for_the_end_but_not_for_a_grandchild() {
        let silent = PumpState::default();
        let begun = tokio::time::Instant::now();
        drain(&silent).await;
        assert_eq!(begun.elapsed(), DRAIN_GRACE, "a silent grandchild");

        let chatty = Arc::new(PumpState::default());
        let writer = chatty.clone();
        let writing = tokio::spawn(async move {
            loop {
                writer.sent_bytes.fetch_add(1 << 20, Ordering::Relaxed);
                sleep(DRAIN_GRACE / 2).await;
            }
        });
        drain(&chatty).await;
        writing.abort();

        let slow_client = PumpState::default();
        slow_client.is_sending.store(true, Ordering::Relaxed);
        let begun = tokio::time::Instant::now();
        tokio::join!(drain(&slow_client), async {
            sleep(DRAIN_GRACE * 20).await;
            slow_client.done.cancel();
        });
        assert_eq!(begun.elapsed(), DRAIN_GRACE * 20, "a slow client");
    }
}
