//! JSON-RPC 2.0 as the SDKs speak it: calling methods, wording answers.

use std::sync::Arc;

use bytes::Bytes;
use sandstone_protocol::message::Answer;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::error::{CallError, RemoteError};
use super::handles::Turn;
use super::incoming::Call;
use super::memory::Held;
use super::params::{Issue, Params};
use super::session::Session;
use super::{
    deno_processes, environment, expose, fetch, file_changes, file_handles, file_tree, files,
    processes, repl, vscode,
};

/// The protocol's code for a method that does not exist.
const METHOD_NOT_FOUND: i32 = -32601;
/// The protocol's code for parameters of the wrong shape.
const INVALID_PARAMS: i32 = -32602;

/// Acts on a notification. Waits only while a file is being written (see [`super::uploads`]).
pub(super) async fn notify(session: &Session, method: &str, params: Value) {
    let Ok(mut params) = Params::new(Some(params)) else {
        return;
    };
    let Ok(Some(stream)) = params.optional_number("streamId") else {
        return;
    };
    match method {
        "$sandbox.stream.start" => session.uploads.start(stream),
        "$sandbox.stream.enqueue" => match params.optional_bytes("data") {
            Ok(bytes) => {
                let bytes = Bytes::from(bytes.unwrap_or_default());
                session.uploads.push(stream, bytes).await;
            }
            Err(_) => session
                .uploads
                .fail(stream, "a chunk was not base64".to_owned()),
        },
        "$sandbox.stream.end" => session.uploads.end(stream),
        "$sandbox.stream.error" => session.uploads.fail(stream, params.reason("error")),
        "$sandbox.stream.cancel" => session.downloads.cancel(stream),
        _ => tracing::debug!(method, "unknown notification"),
    }
}

/// A call that has been read, and can be aborted from now on.
#[derive(Debug)]
pub(super) struct Begun {
    call: Call,
    abort: Option<(u64, CancellationToken)>,
    /// Its place among the calls on one open file.
    turn: Option<Turn>,
    /// The room that a call with content takes until it is answered.
    room: Option<OwnedSemaphorePermit>,
}

/// Takes note of a call, in the order in which calls come: an `abort` that follows must find it.
pub(super) fn begin(session: &Session, call: Call, room: Option<OwnedSemaphorePermit>) -> Begun {
    let abort_id = call
        .params
        .as_ref()
        .filter(|_| call.method != "abort")
        .and_then(|params| params.get("abortId"))
        .and_then(Value::as_u64);
    Begun {
        turn: session.handles.queue(&call.method, call.params.as_ref()),
        call,
        abort: abort_id.map(|id| (id, session.begin_abortable(id))),
        room,
    }
}

/// Answers a call with an error without doing anything.
pub(super) async fn refuse(session: &Session, call: Call, error: RemoteError) {
    session
        .send(answer(session.client, &call.id, Err(error.into())))
        .await;
}

/// Shares of the memory that the answers of one connection take while they wait to be sent: a
/// client that asks without reading finds its next calls waiting.
pub(super) const ANSWER_SHARES: usize = 64;

/// How many of [`ANSWER_SHARES`] a call takes, by how long its answer can be: about a share for
/// 128 KiB. None for those that wait for something to happen, or for the client's own stream;
/// reads of open files, which may wait for a pipe or for a lock, have their own bound in
/// [`super::handles`].
fn answer_share(method: &str) -> u32 {
    match method {
        "readFile" | "readTextFile" | "envToObject" => 1,
        "readDir" | "walk" | "expandGlob" => 16,
        _ => 0,
    }
}

/// Serves a call and answers it.
pub(super) async fn serve(session: Arc<Session>, begun: Begun) {
    let Begun {
        call,
        abort,
        turn,
        room: _room,
    } = begun;
    let Call {
        id, method, params, ..
    } = call;
    let aborted = async {
        match &abort {
            Some((_, token)) => token.cancelled().await,
            None => std::future::pending().await,
        }
    };
    let answering = async {
        let share = match answer_share(&method) {
            0 => None,
            share => session.answers.clone().acquire_many_owned(share).await.ok(),
        };
        (dispatch(&session, &method, params, turn).await, share)
    };
    let (outcome, _share) = tokio::select! {
        biased;
        () = aborted => (Err(RemoteError::aborted().into()), None),
        () = session.closing.cancelled() => {
            let why = "the connection is being closed";
            (Err(RemoteError::connection_closing(why).into()), None)
        }
        answered = answering => answered,
    };
    if let Some((abort_id, _)) = abort {
        session.end_abortable(abort_id);
    }
    let (result, after, large) = match outcome {
        Ok(Done {
            value,
            after,
            large,
        }) => (Ok(value), after, large),
        Err(error) => (Err(error), None, Held::default()),
    };
    let client = session.client;
    let text = if large.is_large() {
        // Seconds of work for the largest, in which this thread could serve nobody else.
        let worded = spawn_blocking(move || answer(client, &id, result)).await;
        let Ok(text) = worded else { return };
        text
    } else {
        answer(client, &id, result)
    };
    session.send_large(text, large).await;
    if let Some(after) = after {
        after(&session);
    }
}

/// What happens once the answer is on its way.
type After = Box<dyn FnOnce(&Arc<Session>) + Send>;

/// What a call gave.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answered {
    Value(Value),
    Json(Box<RawValue>),
}

/// A call that worked.
pub(super) struct Done {
    value: Answered,
    after: Option<After>,
    large: Held,
}

impl Done {
    /// An answer.
    pub(super) fn new(value: Value) -> Self {
        Self {
            value: Answered::Value(value),
            after: None,
            large: Held::default(),
        }
    }

    /// An answer that is JSON text already, passed on as it is: the order of keys stays.
    pub(super) fn json(text: Box<RawValue>, large: Held) -> Self {
        Self {
            value: Answered::Json(text),
            after: None,
            large,
        }
    }

    /// The answer, to add to it; nothing if it is text already.
    pub(super) fn value_mut(&mut self) -> Option<&mut Value> {
        match &mut self.value {
            Answered::Value(value) => Some(value),
            Answered::Json(_) => None,
        }
    }

    /// The same, with something to be done once the answer is on its way: no message of a stream
    /// may come before the answer that names it (trap 4).
    pub(super) fn then(mut self, after: impl FnOnce(&Arc<Session>) + Send + 'static) -> Self {
        self.after = Some(Box::new(after));
        self
    }
}

async fn dispatch(
    session: &Arc<Session>,
    method: &str,
    params: Option<Value>,
    turn: Option<Turn>,
) -> Result<Done, CallError> {
    let mut params = Params::new(params)?;
    if method.starts_with("file") {
        params.number("fileHandleId")?;
    }
    let value = match method {
        "abort" => {
            session.abort(params.number("abortId")?);
            Value::Null
        }
        "spawn" => return processes::spawn(session, params).await,
        "processWait" => processes::wait(session, params).await?,
        "processKill" => processes::kill(session, params).await?,
        "spawnDeno" => return deno_processes::run(session, params).await,
        "denoHttpWait" => deno_processes::http_wait(session, params).await?,
        "spawnDenoRepl" => return repl::spawn(session, params).await,
        "denoReplEval" => return repl::eval(session, params).await,
        "denoReplCall" => return repl::call(session, params).await,
        "denoReplClose" => repl::close(session, params).await?,
        "readFile" | "readTextFile" => {
            let (value, large) = if method == "readFile" {
                files::read(session, params).await?
            } else {
                files::read_text(session, params).await?
            };
            return Ok(Done {
                value: Answered::Value(value),
                after: None,
                large,
            });
        }
        "writeFile" => files::write(session, params).await?,
        "writeTextFile" => files::write_text(session, params).await?,
        "readDir" => return files::read_dir(session, params).await,
        "mkdir" => files::make_dir(session, params).await?,
        "remove" => files::remove(session, params).await?,
        "stat" => files::stat(session, params, true).await?,
        "lstat" => files::stat(session, params, false).await?,
        "rename" => file_changes::rename(session, params).await?,
        "copyFile" => file_changes::copy(session, params).await?,
        "link" => file_changes::link(session, params).await?,
        "symlink" => file_changes::symlink(session, params).await?,
        "readLink" => file_changes::read_link(session, params).await?,
        "realPath" => file_changes::real_path(session, params).await?,
        "truncate" => file_changes::truncate(session, params).await?,
        "chmod" => file_changes::chmod(session, params).await?,
        "chown" => file_changes::chown(session, params).await?,
        "utime" => file_changes::utime(session, params).await?,
        "umask" => file_changes::umask(session, params).await?,
        "makeTempDir" => file_changes::make_temp_dir(session, params).await?,
        "makeTempFile" => file_changes::make_temp_file(session, params).await?,
        "open" => file_handles::open(session, params).await?,
        "create" => file_handles::create(session, params).await?,
        "fileClose" => file_handles::close(session, turn).await?,
        "fileRead" => {
            let (value, large) = file_handles::read(session, params, turn).await?;
            return Ok(Done {
                value: Answered::Value(value),
                after: None,
                large,
            });
        }
        "fileWrite" => file_handles::write(session, params, turn).await?,
        "fileSeek" => file_handles::seek(session, params, turn).await?,
        "fileStat" => file_handles::stat(session, turn).await?,
        "fileSync" => file_handles::sync(session, turn, false).await?,
        "fileSyncData" => file_handles::sync(session, turn, true).await?,
        "fileTruncate" => file_handles::truncate(session, params, turn).await?,
        "fileLock" => file_handles::lock(session, params, turn).await?,
        "fileUnlock" => file_handles::unlock(session, turn).await?,
        "fileUtime" => file_handles::utime(session, params, turn).await?,
        "walk" => return file_tree::walk(session, params).await,
        "expandGlob" => return file_tree::expand_glob(session, params).await,
        "vscode" => return vscode::start(session, params).await,
        "fetch" => return fetch::fetch(session, params).await,
        "exposeHttp" => expose::bind(session, params).await?,
        "envGet" => environment::get(session, params).await?,
        "envSet" => environment::set(session, params).await?,
        "envToObject" => environment::all(session).await?,
        "envDelete" => environment::delete(session, params).await?,
        _ => return Err(CallError::UnknownMethod),
    };
    Ok(Done::new(value))
}

/// The agent answered something that does not belong to the question.
pub(super) fn unexpected(answer: &Answer) -> CallError {
    tracing::warn!(?answer, "an agent gave an answer of the wrong kind");
    RemoteError::new("Error", "the sandbox gave an answer of the wrong kind").into()
}

/// An answer on the wire. Serialised from borrowed parts, because a file may be among them.
#[derive(Serialize)]
struct Envelope<'a> {
    jsonrpc: &'static str,
    id: &'a Value,
    #[serde(flatten)]
    outcome: Outcome<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome<'a> {
    Result(Content<'a>),
    /// A protocol error (trap 5).
    Error(Value),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Content<'a> {
    /// Must be there even when it is null.
    Ok(&'a Answered),
    Error(Value),
}

/// Words an answer (traps 5 and 7).
fn answer(client: Client, id: &Value, result: Result<Answered, CallError>) -> String {
    let remote = |error: RemoteError| Outcome::Result(Content::Error(error.to_value()));
    let encode = |outcome| {
        let jsonrpc = "2.0";
        serde_json::to_string(&Envelope {
            jsonrpc,
            id,
            outcome,
        })
        .expect("plain data always serialises")
    };
    let text = encode(match &result {
        Ok(value) => Outcome::Result(Content::Ok(value)),
        // Python knows it by this text.
        Err(CallError::UnknownMethod) => {
            Outcome::Error(json!({"code": METHOD_NOT_FOUND, "message": "Method not found"}))
        }
        Err(CallError::InvalidParams(issues)) if client == Client::Python => {
            let issues: Vec<Value> = issues.iter().map(Issue::to_value).collect();
            Outcome::Error(json!({
                "code": INVALID_PARAMS,
                "message": "Invalid params",
                // The list of issues is a JSON text inside JSON: Python insists.
                "data": {
                    "constructorName": "ZodError",
                    "name": "ZodError",
                    "message": Value::Array(issues).to_string(),
                },
            }))
        }
        // Trap 5: JavaScript would hang on a protocol error.
        Err(CallError::InvalidParams(issues)) => {
            let what: Vec<String> = issues
                .iter()
                .map(|issue| format!("`{}`: {}", issue.path.join("."), issue.message()))
                .collect();
            remote(RemoteError::new("TypeError", what.join("; ")).with_code("EINVAL"))
        }
        Err(CallError::Remote(error)) => remote(error.clone()),
        Err(CallError::Thrown(thrown)) => Outcome::Result(Content::Error(thrown.to_value())),
    });
    let limit = client.message_max_bytes();
    if text.len() <= limit {
        return text;
    }
    encode(remote(RemoteError::too_long(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(client: Client, result: Result<Value, CallError>) -> Value {
        serde_json::from_str(&answer(client, &json!(0), result.map(Answered::Value))).unwrap()
    }

    fn invalid() -> CallError {
        CallError::InvalidParams(vec![Issue {
            expected: "string",
            path: vec!["path".to_owned()],
            received: "undefined",
        }])
    }

    #[test]
    fn nothing_is_a_null_that_is_there() {
        let value = json_of(Client::JavaScript, Ok(Value::Null));
        assert_eq!(
            value,
            json!({"jsonrpc": "2.0", "id": 0, "result": {"ok": null}})
        );
    }

    #[test]
    fn trap_5_javascript_gets_errors_in_the_result() {
        let value = json_of(Client::JavaScript, Err(invalid()));
        assert_eq!(value["result"]["error"]["constructorName"], "TypeError");
        assert!(value.get("error").is_none());
        let value = json_of(
            Client::JavaScript,
            Err(RemoteError::new("NotSupported", "no")
                .with_code("ENOTSUP")
                .into()),
        );
        assert_eq!(value["result"]["error"]["code"], "ENOTSUP");
        for client in [Client::JavaScript, Client::Python] {
            let value = json_of(client, Err(CallError::UnknownMethod));
            assert_eq!(value["error"]["message"], "Method not found");
        }
    }

    #[test]
    fn python_gets_invalid_parameters_as_its_tests_demand() {
        let value = json_of(Client::Python, Err(invalid()));
        assert_eq!(value["error"]["data"]["constructorName"], "ZodError");
        let issues = value["error"]["data"]["message"].as_str().unwrap();
        let issues: Value = serde_json::from_str(issues).unwrap();
        assert_eq!(issues[0]["path"], json!(["path"]));
        assert_eq!(issues[0]["code"], "invalid_type");
        assert_eq!(issues[0]["expected"], "string");
    }

    #[test]
    fn trap_7_no_answer_is_too_long_for_python() {
        let long = Value::String("\u{1}".repeat(300_000));
        let text = answer(Client::Python, &json!(1), Ok(Answered::Value(long.clone())));
        assert!(text.len() <= Client::Python.message_max_bytes());
        assert!(text.contains("RangeError"));
        let text = answer(Client::JavaScript, &json!(1), Ok(Answered::Value(long)));
        assert!(!text.contains("RangeError"));
    }
}
