//! REPLs: `deno repl --json`, a conversation over a socket that is the process's descriptor 3.
//!
//! A message is its length (32 bits, little-endian) and JSON. We send
//! `{"type":"Run","code":…,"output":…}` and get `RunSuccess` (with `String(value)` if `output`),
//! `RunFailure` (it threw) or `Error` (it is no program).
//!
//! One evaluation is several runs, so evaluations come one after the other, and each is carried to
//! its end even if the client has lost interest: the answers belong to the questions by their order
//! alone. What `_` and `_error` are to the user's code does not change by our own runs.

use std::sync::Arc;

use sandstone_node_api::AgentSocket;
use sandstone_protocol::message::{Request, SocketStreams};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::deno_processes::{DENO, Home};
use super::error::{CallError, RemoteError, Thrown};
use super::memory::{self, Held};
use super::params::Params;
use super::processes::Launch;
use super::programs::DenoProcess;
use super::rpc::Done;
use super::session::Session;

/// Longest message that is taken from a REPL, bytes: a value with all that is in it. Above what a
/// client takes.
const MESSAGE_MAX_BYTES: usize = 64 << 20;

/// From this many bytes on a message is read on a thread of its own.
const APART_BYTES: usize = 1 << 20;

/// Longest text of a thrown error that is passed on, bytes.
const THROWN_MAX_BYTES: usize = 64 << 10;

/// Finds out, once for each REPL, how `_` and `_error` are looked up: user code may shadow both.
/// `value` is a run's value as JSON, `error` what was thrown; both keep what `_` was in `last`.
const PREPARE: &str = r#"Object.defineProperty(globalThis, Symbol.for("sandstone.repl"), { value: (() => {
  const getter = (name) => Object.getOwnPropertyDescriptor(globalThis, name).get;
  const value = getter("_"), error = getter("_error");
  const { stringify } = JSON, text = String;
  const attempt = (f) => { try { return f(); } catch { return undefined; } };
  return {
    last: undefined,
    value() {
      const it = this.last = value();
      if (it === undefined) return "null";
      const json = stringify(it);
      if (json === undefined) throw new TypeError(`a ${typeof it} is not JSON`);
      return json;
    },
    error() {
      this.last = value();
      const it = error();
      const isObject = it !== null && (typeof it === "object" || typeof it === "function");
      const part = (name) => {
        const found = isObject ? attempt(() => it[name]) : undefined;
        return found === undefined || found === null ? null : attempt(() => text(found)) ?? null;
      };
      const message = part("message") ?? attempt(() => text(it)) ?? "";
      return stringify({
        constructorName: (isObject && attempt(() => text(it.constructor.name))) || "Error",
        message, name: part("name"), stack: part("stack"), code: part("code"),
      });
    },
  };
})() }); undefined"#;
const VALUE: &str = r#"globalThis[Symbol.for("sandstone.repl")].value()"#;
const ERROR: &str = r#"globalThis[Symbol.for("sandstone.repl")].error()"#;
const RESTORE: &str = r#"globalThis[Symbol.for("sandstone.repl")].last"#;

/// The conversation with one REPL.
#[derive(Debug)]
pub(super) struct Repl(Arc<Mutex<Conversation>>);

#[derive(Debug)]
struct Conversation {
    socket: AgentSocket,
    is_prepared: bool,
    /// A broken conversation cannot be taken up again.
    is_broken: bool,
}

/// An answer as it comes. Whatever else is in it is passed over without being built: the program
/// that answers may be any.
#[derive(Deserialize)]
struct Message {
    #[serde(rename = "type")]
    kind: Kind,
    output: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
enum Kind {
    RunSuccess,
    RunFailure,
    Error,
}

enum Answer {
    RunSuccess { output: Option<String> },
    RunFailure,
    Error { error: String },
}

/// How an evaluation failed.
enum Failure {
    /// The code threw.
    Thrown(Box<Thrown>),
    /// The answer has no room in the server's memory. It was taken off the socket.
    Refused(CallError),
    /// The REPL is gone, or does not speak its language.
    Broken(&'static str),
}

impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Self {
        Self::Broken("the REPL has exited")
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Thrown(thrown) => Self::Thrown(thrown),
            Failure::Refused(error) => error,
            Failure::Broken(why) => RemoteError::new("Error", why).with_code("EPIPE").into(),
        }
    }
}

pub(super) async fn spawn(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let args = params.texts("scriptArgs")?;
    let mut process = Launch::read(session, &mut params)?;
    let home = Home::make(session).await?;
    let inbound = session.agent.inbound();
    let outbound = session.agent.outbound();
    process.spawn.socket = Some(SocketStreams {
        source: outbound.id(),
        sink: inbound.id(),
    });
    process.spawn.command = DENO.to_owned();
    process.spawn.args = ["repl", "--json", "-A"].map(str::to_owned).into();
    if !args.is_empty() {
        process.spawn.args.push("--".to_owned());
        process.spawn.args.extend(args);
    }
    home.serve_here(&mut process);
    let conversation = Conversation {
        socket: AgentSocket::over(inbound, outbound),
        is_prepared: false,
        is_broken: false,
    };
    let repl = Repl(Arc::new(Mutex::new(conversation)));
    let launched = home.launch(session, process, Some(repl)).await?;
    let value = json!({
        "pid": launched.pid,
        "stdoutStreamId": launched.stdout_id,
        "stderrStreamId": launched.stderr_id,
    });
    Ok(launched.done(value))
}

pub(super) async fn eval(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let pid = params.u32("pid")?;
    let code = params.text("code")?;
    evaluate(session, pid, code).await
}

pub(super) async fn call(session: &Arc<Session>, mut params: Params) -> Result<Done, CallError> {
    let pid = params.u32("pid")?;
    let function = params.text("fn")?;
    let args = Value::Array(params.values("args")?).to_string();
    // JSON is JavaScript, and so is a JSON text of JSON.
    let args = Value::String(args);
    let code = format!("(await (\n{function}\n)(...JSON.parse({args})))");
    evaluate(session, pid, code).await
}

async fn evaluate(session: &Arc<Session>, pid: u32, code: String) -> Result<Done, CallError> {
    let process = session
        .programs
        .deno(pid)
        .ok_or_else(RemoteError::process_gone)?;
    let Some(repl) = &process.repl else {
        let why = format!("process {pid} is no REPL");
        return Err(RemoteError::new("TypeError", why).into());
    };
    let mut conversation = repl.0.clone().lock_owned().await;
    let over = process.clone();
    let reader = session.clone();
    let task = tokio::spawn(async move {
        let mut held = Held::default();
        if conversation.is_broken {
            return Err(Failure::Broken("the REPL does not answer any more"));
        }
        // Until this evaluation has all its answers.
        conversation.is_broken = true;
        let outcome = tokio::select! {
            outcome = conversation.evaluate(&reader, &mut held, &code) => outcome,
            () = is_over(&over) => Err(Failure::Broken("the REPL has exited")),
        };
        conversation.is_broken = matches!(outcome, Err(Failure::Broken(_)));
        outcome.map(|value| Done::json(value, held))
    });
    match task.await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(RemoteError::new("Error", "the evaluation was cut off").into()),
    }
}

/// A REPL that has exited may have left its socket to a child.
async fn is_over(process: &DenoProcess) {
    process.exited.cancelled().await;
    // What it said last is on its way.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
}

impl Conversation {
    async fn evaluate(
        &mut self,
        session: &Session,
        held: &mut Held,
        code: &str,
    ) -> Result<Box<RawValue>, Failure> {
        let mut evaluation = Evaluation {
            conversation: self,
            session,
            held,
        };
        evaluation.outcome(code).await
    }
}

/// A conversation while one evaluation goes on.
struct Evaluation<'a> {
    conversation: &'a mut Conversation,
    session: &'a Session,
    /// What its answers may take of the server's memory.
    held: &'a mut Held,
}

impl Evaluation<'_> {
    async fn outcome(&mut self, code: &str) -> Result<Box<RawValue>, Failure> {
        if !self.conversation.is_prepared {
            match self.run(PREPARE).await? {
                Answer::RunSuccess { .. } => self.conversation.is_prepared = true,
                _ => return Err(Failure::Broken("the REPL cannot be prepared")),
            }
        }
        match self.run(code).await? {
            Answer::RunSuccess { .. } => match self.report(VALUE).await? {
                Some(json) => apart(json.len(), move || RawValue::from_string(json).ok())
                    .await
                    .ok_or(Failure::Broken("the REPL gave a value that is no JSON")),
                None => Err(self.thrown().await?),
            },
            Answer::RunFailure => Err(self.thrown().await?),
            Answer::Error { error } => Err(Failure::Thrown(Box::new(of_no_program(&error)))),
        }
    }

    /// Runs one of our own expressions, and makes `_` again what it was. Nothing if it threw.
    async fn report(&mut self, code: &str) -> Result<Option<String>, Failure> {
        self.send(code, true).await?;
        self.send(RESTORE, false).await?;
        // Both are taken off the socket, whatever the first one is.
        let report = self.receive().await;
        self.receive().await?;
        match report? {
            Answer::RunSuccess { output } => Ok(output),
            Answer::RunFailure => Ok(None),
            Answer::Error { .. } => Err(Failure::Broken("the REPL does not know its own words")),
        }
    }

    /// What was thrown last.
    async fn thrown(&mut self) -> Result<Failure, Failure> {
        let text = self.report(ERROR).await?;
        let thrown: Option<Thrown> = text.and_then(|text| serde_json::from_str(&text).ok());
        let mut thrown = thrown.ok_or(Failure::Broken(
            "the REPL threw something that cannot be told",
        ))?;
        cut(&mut thrown.constructor_name);
        cut(&mut thrown.message);
        for text in [&mut thrown.name, &mut thrown.stack, &mut thrown.code] {
            text.iter_mut().for_each(cut);
        }
        Ok(Failure::Thrown(Box::new(thrown)))
    }

    /// Runs code of which only the outcome matters.
    async fn run(&mut self, code: &str) -> Result<Answer, Failure> {
        self.send(code, false).await?;
        self.receive().await
    }

    async fn send(&mut self, code: &str, output: bool) -> Result<(), Failure> {
        let message = json!({"type": "Run", "code": code, "output": output}).to_string();
        let length = u32::try_from(message.len())
            .map_err(|_| Failure::Broken("the code is too long for a REPL"))?;
        let socket = &mut self.conversation.socket;
        socket.write_all(&length.to_le_bytes()).await?;
        socket.write_all(message.as_bytes()).await?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Answer, Failure> {
        let socket = &mut self.conversation.socket;
        let mut length = [0; 4];
        socket.read_exact(&mut length).await?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_MAX_BYTES {
            return Err(Failure::Broken("the value is too large"));
        }
        let mut socket = socket.take(length as u64);
        let admitted = self.held.admit(self.session, length, "a REPL's value");
        if let Err(refusal) = admitted.await {
            // What comes next belongs to the next question.
            tokio::io::copy(&mut socket, &mut tokio::io::sink()).await?;
            return Err(Failure::Refused(refusal));
        }
        let mut message = Vec::new();
        // Grows as bytes come: the length alone costs nothing.
        let read = timeout(memory::FILL_LIMIT, socket.read_to_end(&mut message)).await;
        let read = read.map_err(|_| Failure::Broken("the REPL does not finish its answer"))?;
        if read? < length {
            return Err(Failure::Broken("the REPL has exited"));
        }
        apart(length, move || Answer::read(&message))
            .await
            .ok_or(Failure::Broken("the REPL gave an answer that is none"))
    }
}

/// Works on so many bytes, on a thread of its own if they are many. Nothing when that panics.
async fn apart<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Option<T> + Send + 'static,
) -> Option<T> {
    if bytes < APART_BYTES {
        return work();
    }
    spawn_blocking(work).await.ok().flatten()
}

impl Answer {
    fn read(message: &[u8]) -> Option<Self> {
        let message: Message = serde_json::from_slice(message).ok()?;
        Some(match message.kind {
            Kind::RunSuccess => Self::RunSuccess {
                output: message.output,
            },
            Kind::RunFailure => Self::RunFailure,
            Kind::Error => Self::Error {
                error: message.error?,
            },
        })
    }
}

/// Deno's sentence about code that is no program, for example `SyntaxError: …`.
fn of_no_program(error: &str) -> Thrown {
    let (class, message) = match error.split_once(": ") {
        Some((class, message)) if class.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            (class, message)
        }
        _ => ("SyntaxError", error),
    };
    let mut thrown = Thrown {
        constructor_name: class.to_owned(),
        message: message.to_owned(),
        name: Some(class.to_owned()),
        stack: None,
        code: None,
    };
    cut(&mut thrown.message);
    thrown
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(THROWN_MAX_BYTES));
}

/// Ends a REPL as its user would: by the end of its input. Fine when it has exited.
pub(super) async fn close(session: &Session, mut params: Params) -> Result<Value, CallError> {
    const SIGTERM: i32 = 15;
    let pid = params.u32("pid")?;
    let Some(process) = session.programs.deno(pid) else {
        return Ok(Value::Null);
    };
    let Some(repl) = &process.repl else {
        let why = format!("process {pid} is no REPL");
        return Err(RemoteError::new("TypeError", why).into());
    };
    // One that is at work, or keeps its event loop busy, is told by a signal.
    let ended = match repl.0.try_lock() {
        Ok(mut conversation) => {
            conversation.is_broken = true;
            let _ = conversation.socket.shutdown().await;
            let exited = process.exited.cancelled();
            timeout(CLOSE_LIMIT, exited).await.is_ok()
        }
        Err(_) => false,
    };
    if !ended {
        let _ = session
            .agent
            .call(Request::Kill {
                pid,
                signal: SIGTERM,
            })
            .await;
    }
    Ok(Value::Null)
}

/// How long a REPL may take to end when its input has.
const CLOSE_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_is_no_program_keeps_its_class() {
        let thrown = of_no_program("SyntaxError: Expected ','\n  |");
        assert_eq!(thrown.constructor_name, "SyntaxError");
        assert_eq!(thrown.message, "Expected ','\n  |");
        let odd = of_no_program("something else: x");
        assert_eq!(odd.constructor_name, "SyntaxError");
        assert_eq!(odd.message, "something else: x");
        assert_eq!(
            of_no_program(&"é".repeat(100_000)).message.len(),
            THROWN_MAX_BYTES
        );
    }

    #[test]
    fn answers_are_read() {
        let read = |text: &str| Answer::read(text.as_bytes());
        let success = read(r#"{"type":"RunSuccess","output":"1"}"#);
        assert!(matches!(
            success,
            Some(Answer::RunSuccess { output: Some(_) })
        ));
        let nothing = read(r#"{"type":"RunSuccess","output":null}"#);
        assert!(matches!(nothing, Some(Answer::RunSuccess { output: None })));
        let failure = read(r#"{"type":"RunFailure","text":"Uncaught"}"#);
        assert!(matches!(failure, Some(Answer::RunFailure)));
        assert!(read(r#"{"type":"Else"}"#).is_none());
    }
}
