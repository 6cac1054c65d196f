//! The editor: a command line that the operator has configured, run in the sandbox.
//!
//! The JavaScript SDK asks for it by `vscode`, gets a name by `POST .../expose/vscode`, and binds
//! that name to the editor's port by `exposeHttp`. The environment that it sends holds the API
//! token: nothing of it may be logged.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use sandstone_api::{ApiError, ErrorCode};
use sandstone_node_api::AgentError;
use sandstone_protocol::message::{Answer, DialTarget, Request};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::super::Edge;
use super::super::auth::Caller;
use super::super::input::{Name, sandbox_id};
use super::super::reply::Reject;
use super::error::{CallError, RemoteError};
use super::params::Params;
use super::processes;
use super::rpc::Done;
use super::session::Session;

/// How long an editor may take until it listens. A large one loads its own files first.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How often it is asked whether it listens.
const POLL_PERIOD: Duration = Duration::from_millis(100);

/// Ports that an editor is given: above those that programs choose themselves, below those that
/// the kernel hands out.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Free ports that are looked for.
const ATTEMPTS: u32 = 10;

/// What to do about a missing editor.
const HINT: &str = "Start the server with --editor.";

const SIGKILL: i32 = 9;

/// Issues the name that the SDK binds to the editor's port.
pub(super) async fn expose(
    State(edge): State<Arc<Edge>>,
    Caller(who): Caller,
    Name(name): Name,
) -> Result<Json<Value>, Reject> {
    let id = sandbox_id(&name)?;
    if edge.editor.is_none() {
        let error = ApiError::new(ErrorCode::EditorNotConfigured, "this server has no editor");
        return Err(error.with_hint(HINT).into());
    }
    let exposure = edge.control.expose(&who, id, None).await?;
    Ok(Json(json!({ "domain": exposure.domain })))
}

/// `vscode`: starts the editor and answers once it listens.
pub(super) async fn start(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let path = params.text("path")?;
    let environment = params.text_map("env")?;
    // What the operator's command line has no place for is checked and left out.
    params.texts("extensions")?;
    params.optional_bool("disableStopButton")?;
    let Some(editor) = &session.edge.editor else {
        let error = RemoteError::new("NotSupported", format!("this server has no editor. {HINT}"));
        return Err(error.with_code("EDITOR_NOT_CONFIGURED").into());
    };
    let port = free_port(session).await?;
    let spawn = json!({
        "command": "sh",
        "args": ["-c", command_line(editor, port, &path)],
        "env": environment,
        "cwd": path,
        "stdout": "piped",
        "stderr": "piped",
    });
    let mut done = processes::spawn(session, Params::new(Some(spawn))?).await?;
    let no_process = || RemoteError::new("Error", "the editor has no process");
    let value = done.value_mut().ok_or_else(no_process)?;
    let pid = value["pid"]
        .as_u64()
        .and_then(|pid| u32::try_from(pid).ok());
    let pid = pid.ok_or_else(no_process)?;
    let failure = tokio::select! {
        listens = timeout(START_LIMIT, until_it_listens(session, port)) => match listens {
            Ok(Ok(())) => {
                value["port"] = json!(port);
                return Ok(done);
            }
            Ok(Err(error)) => error,
            Err(_) => RemoteError::new(
                "TimedOut",
                format!("the editor does not listen on 127.0.0.1:{port} after {START_LIMIT:?}"),
            )
            .with_code("ETIMEDOUT"),
        },
        code = exit_code(session, pid) => RemoteError::new(
            "Error",
            format!("the editor ended{code} before it listened on 127.0.0.1:{port}"),
        ),
    };
    for stream in ["stdoutStreamId", "stderrStreamId"] {
        // The client never learns of them.
        if let Some(id) = value[stream].as_u64() {
            session.downloads.cancel(id);
        }
    }
    let signal = SIGKILL;
    let _ = session.agent.call(Request::Kill { pid, signal }).await;
    Err(failure.into())
}

/// A port on which nobody listens. Someone else may take it before the editor does; then the
/// editor ends.
async fn free_port(session: &Session) -> Result<u16, CallError> {
    for _ in 0..ATTEMPTS {
        let mut bytes = [0; 2];
        session.edge.entropy.fill(&mut bytes);
        let port = PORTS.start + u16::from_le_bytes(bytes) % (PORTS.end - PORTS.start);
        if !listens(session, port).await? {
            return Ok(port);
        }
    }
    Err(
        RemoteError::new("AddrInUse", "no port is free for the editor")
            .with_code("EADDRINUSE")
            .into(),
    )
}

async fn until_it_listens(session: &Session, port: u16) -> Result<(), RemoteError> {
    while !listens(session, port).await? {
        sleep(POLL_PERIOD).await;
    }
    Ok(())
}

async fn listens(session: &Session, port: u16) -> Result<bool, RemoteError> {
    const ECONNREFUSED: i32 = 111;
    match session.agent.dial(DialTarget::Port(port)).await {
        Ok(_) => Ok(true),
        Err(AgentError::Refused(failure)) if failure.errno == Some(ECONNREFUSED) => Ok(false),
        Err(error) => Err(RemoteError::from_agent(
            error,
            &format!("connect to port {port}"),
        )),
    }
}

/// How the editor ended, as the end of a sentence. Waits for that.
async fn exit_code(session: &Session, pid: u32) -> String {
    match session.agent.call(Request::Wait { pid }).await {
        Ok(Answer::Exited(status)) => match (status.code, status.signal) {
            (Some(code), _) => format!(" with code {code}"),
            (None, Some(signal)) => format!(" by signal {signal}"),
            (None, None) => String::new(),
        },
        _ => String::new(),
    }
}

/// The operator's command line with its two places filled in.
fn command_line(template: &str, port: u16, path: &str) -> String {
    let quoted = format!("'{}'", path.replace('\'', r"'\''"));
    // One pass, so that a path that holds `{port}` stays as it is.
    let mut line = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        line.push_str(before);
        let (text, length) = if from.starts_with("{port}") {
            (port.to_string(), "{port}".len())
        } else if from.starts_with("{path}") {
            (quoted.clone(), "{path}".len())
        } else {
            ("{".to_owned(), 1)
        };
        line.push_str(&text);
        rest = &from[length..];
    }
    line.push_str(rest);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_filled_in_once_and_quoted() {
        assert_eq!(
            command_line(
                "code --bind 127.0.0.1:{port} {path} ${HOME} {",
                4711,
                "/a {port}'b"
            ),
            r"code --bind 127.0.0.1:4711 '/a {port}'\''b' ${HOME} {"
        );
        assert_eq!(command_line("", 1, "/"), "");
    }
}
