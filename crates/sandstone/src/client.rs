//! The server as the commands see it: its HTTP API under `/v1`, called one request at a time.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sandstone_api::ErrorBody;
use serde_json::Value;
use ureq::http::{Method, Request, Response};
use ureq::{Agent, AsSendBody, Body, SendBody};

use crate::data_dir::DataDir;

/// How long it may take to reach the server.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may take. Verifying the largest snapshot reads 20 GB.
const ANSWER_LIMIT: Duration = Duration::from_secs(600);
/// How long a transfer may stand still.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// How long to wait for the server's word on an upload before it is sent anyway.
const CONTINUE_LIMIT: Duration = Duration::from_secs(60);
/// Longest answer that is not a file. A page of a list has a thousand items.
const ANSWER_MAX_BYTES: u64 = 16 << 20;

/// In the header of every answer; on every line of the server's log that the request caused.
const TRACE_HEADER: &str = "x-deno-trace-id";

/// Everything but unreserved characters is escaped in a part of a URL.
const URL_PART: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What the codes that the process ends with mean.
pub(crate) const EXIT_CODES: &str = "Exit codes:
  0 done, 1 anything else, 2 wrong usage or a value that was refused, 3 the token,
  4 not found or not restorable, 5 conflict (in use, slug taken), 6 server or network";

/// Where the server is, and who asks.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct ServerArguments {
    /// Address of the server.
    #[arg(
        long,
        env = "SANDSTONE_URL",
        default_value = "http://127.0.0.1:8080",
        global = true
    )]
    pub(crate) url: String,
    /// The organisation's token; else what DATA_DIR/admin-token holds.
    #[arg(long, env = "SANDSTONE_TOKEN", hide_env_values = true, global = true)]
    token: Option<String>,
    /// The server's data directory, for its token.
    #[arg(
        long,
        env = "SANDSTONE_DATA_DIR",
        default_value = "/var/lib/sandstone",
        global = true
    )]
    data_dir: PathBuf,
    /// Prints the object of the API instead of a table.
    #[arg(long, short = 'j', global = true)]
    pub(crate) json: bool,
}

impl ServerArguments {
    /// The data directory of a server on this machine.
    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

/// Why a command failed, and with which code the process ends.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    kind: Kind,
    /// What happened.
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: Option<String>,
    /// The server's code of the error.
    pub(crate) code: Option<String>,
    /// Where to look in the server's log.
    pub(crate) trace_id: Option<String>,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything else.
    Generic,
    /// The arguments, or a value that the server refuses.
    Usage,
    /// The token.
    Auth,
    /// No such object, or no more.
    NotFound,
    /// The object is in use, or the slug.
    Conflict,
    /// The server failed or cannot be reached.
    Server,
}

impl Kind {
    fn of_status(status: u16) -> Self {
        match status {
            400 => Self::Usage,
            401 | 403 => Self::Auth,
            404 | 410 => Self::NotFound,
            409 => Self::Conflict,
            500.. => Self::Server,
            _ => Self::Generic,
        }
    }
}

impl Failure {
    /// A failure without a hint.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            code: None,
            trace_id: None,
        }
    }

    /// Adds what to do about it.
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The code that the process ends with.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Generic => 1,
            Kind::Usage => 2,
            Kind::Auth => 3,
            Kind::NotFound => 4,
            Kind::Conflict => 5,
            Kind::Server => 6,
        })
    }

    /// Whether the server was not reached or failed.
    pub(crate) fn is_of_server(&self) -> bool {
        self.kind == Kind::Server
    }
}

/// A server that answers whoever has the token.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    url: String,
    authorization: String,
}

impl Client {
    /// A client of the server that the arguments name. Nothing is sent yet.
    ///
    /// # Errors
    /// When there is no token.
    pub(crate) fn new(arguments: &ServerArguments) -> Result<Self, Failure> {
        let token = match &arguments.token {
            Some(token) => token.clone(),
            None => token_of(arguments)?,
        };
        let url = arguments.url.trim_end_matches('/').to_owned();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("sandstone/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_LIMIT))
            .timeout_recv_response(Some(ANSWER_LIMIT))
            .timeout_per_read(Some(STALL_LIMIT))
            .timeout_per_write(Some(STALL_LIMIT))
            .timeout_await_100(Some(CONTINUE_LIMIT));
        if is_local(&url) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url,
            authorization: format!("Bearer {token}"),
        })
    }

    /// Asks for an object.
    pub(crate) fn get(&self, path: &str) -> Result<Value, Failure> {
        object(self.run(Method::GET, path, SendBody::none())?)
    }

    /// Asks for something to be done.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        object(self.run(Method::POST, path, body.to_string())?)
    }

    /// Deletes something; the answer may have no body.
    pub(crate) fn delete(&self, path: &str) -> Result<Value, Failure> {
        object(self.run(Method::DELETE, path, SendBody::none())?)
    }

    /// All items of a list, page by page. `path` has a query already.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<Value>, Failure> {
        let mut items = Vec::new();
        let mut page = self.get(path)?;
        loop {
            if let Some(Value::Array(more)) = page.get_mut("items").map(Value::take) {
                items.extend(more);
            }
            let Some(cursor) = page["next_cursor"].as_str() else {
                return Ok(items);
            };
            page = self.get(&format!("{path}&cursor={}", encoded(cursor)))?;
        }
    }

    /// Asks for a file: its content, as it comes.
    pub(crate) fn download(&self, path: &str) -> Result<Response<Body>, Failure> {
        self.run(Method::GET, path, SendBody::none())
    }

    /// Sends a file. The server has its say before the content goes out.
    pub(crate) fn upload(
        &self,
        method: Method,
        path: &str,
        length: Option<u64>,
        content: &mut dyn Read,
    ) -> Result<Value, Failure> {
        let mut request = self
            .request(method, path)
            .header("content-type", "application/octet-stream")
            .header("expect", "100-continue");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(SendBody::from_reader(content));
        let response = self.answer(request.map_err(|error| self.unusable(&error))?)?;
        object(response)
    }

    fn request(&self, method: Method, path: &str) -> ureq::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", &self.authorization)
    }

    fn run(
        &self,
        method: Method,
        path: &str,
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let request = self.request(method, path).body(body);
        self.answer(request.map_err(|error| self.unusable(&error))?)
    }

    fn answer(&self, request: Request<impl AsSendBody>) -> Result<Response<Body>, Failure> {
        let response = self.agent.run(request).map_err(|error| match error {
            // What is sent is read from a file, and that failed, or the server hung up.
            ureq::Error::BadUri(_) | ureq::Error::Http(_) => self.unusable(&error),
            error => self.unreachable(&error),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response))
    }

    fn unusable(&self, error: &dyn std::error::Error) -> Failure {
        Failure::new(Kind::Usage, format!("cannot ask {}: {error}", self.url)).with_hint(
            "give --url as http://HOST:PORT or https://HOST, and --token without line breaks",
        )
    }

    fn unreachable(&self, error: &ureq::Error) -> Failure {
        let message = format!("cannot talk to the server at {}: {error}", self.url);
        Failure::new(Kind::Server, message)
            .with_hint("is it running? `--url` or SANDSTONE_URL says where it is")
    }
}

/// What the server says instead of a success.
fn refusal(response: Response<Body>) -> Failure {
    let status = response.status();
    let trace_id = response.headers().get(TRACE_HEADER);
    let trace_id = trace_id.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    let body: Option<ErrorBody> = read(response)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut failure = match body {
        Some(body) => Failure {
            kind: Kind::of_status(status.as_u16()),
            message: body.message,
            hint: body.hint,
            code: Some(body.code),
            trace_id: None,
        },
        None => {
            let message = format!("the server answered {status}, not in Sandstone's words");
            Failure::new(Kind::Server, message).with_hint("does --url name a Sandstone server?")
        }
    };
    failure.trace_id = trace_id;
    failure
}

fn read(response: Response<Body>) -> Result<Vec<u8>, ureq::Error> {
    let body = response.into_body().into_with_config();
    body.limit(ANSWER_MAX_BYTES).read_to_vec()
}

fn object(response: Response<Body>) -> Result<Value, Failure> {
    let bytes = read(response).map_err(|error| {
        Failure::new(
            Kind::Server,
            format!("the server's answer is incomplete: {error}"),
        )
    })?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(
            Kind::Server,
            format!("the server's answer is not JSON: {error}"),
        )
        .with_hint("does --url name a Sandstone server?")
    })
}

/// A part of a URL, escaped.
pub(crate) fn encoded(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, URL_PART)
}

/// Whether a URL names this host: no proxy is asked for that.
fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["localhost", "127.", "[::1]"]
        .iter()
        .any(|local| host.starts_with(local))
}

fn token_of(arguments: &ServerArguments) -> Result<String, Failure> {
    const HINT: &str =
        "give --token or SANDSTONE_TOKEN, or --data-dir with the directory of the server";
    let path = &arguments.data_dir;
    match DataDir::read_token(path) {
        Ok(Some(token)) => Ok(token.reveal().to_owned()),
        Ok(None) => {
            let message = format!("there is no token, and none in {}", path.display());
            Err(Failure::new(Kind::Auth, message).with_hint(HINT))
        }
        Err(error) => {
            let cause = error.root_cause().downcast_ref::<std::io::Error>();
            let is_denied = cause.is_some_and(|cause| cause.kind() == ErrorKind::PermissionDenied);
            let hint = if is_denied {
                "run as root, or give --token or SANDSTONE_TOKEN"
            } else {
                HINT
            };
            Err(Failure::new(Kind::Auth, format!("{error:#}")).with_hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that answers each request with one of the texts, and closes the connection.
    fn client(answers: &'static [&'static str]) -> (Client, thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let answer = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let bytes = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&request[..bytes]).into_owned()
            };
            answers.iter().map(answer).collect()
        });
        let client = Client::new(&ServerArguments {
            url,
            token: Some("ddo_x".to_owned()),
            data_dir: PathBuf::new(),
            json: false,
        });
        (client.unwrap(), server)
    }

    fn code(failure: &Failure) -> String {
        format!("{:?}", failure.exit_code())
    }

    #[test]
    fn a_refusal_keeps_its_words_and_has_an_exit_code() {
        let (client, _server) = client(&[
            "HTTP/1.1 409 Conflict\r\nx-deno-trace-id: abc\r\nconnection: close\r\n\r\n\
             {\"code\":\"SLUG_ALREADY_IN_USE\",\"message\":\"no\",\"hint\":\"try\"}",
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n<html>",
        ]);
        let failure = client.get("/v1/x").unwrap_err();
        assert_eq!(failure.to_string(), "no");
        assert_eq!(failure.hint.as_deref(), Some("try"));
        assert_eq!(failure.code.as_deref(), Some("SLUG_ALREADY_IN_USE"));
        assert_eq!(failure.trace_id.as_deref(), Some("abc"));
        assert_eq!(code(&failure), format!("{:?}", ExitCode::from(5)));
        // Something else answers there.
        let failure = client.get("/v1/x").unwrap_err();
        assert_eq!(code(&failure), format!("{:?}", ExitCode::from(6)));
    }

    #[test]
    fn every_status_has_its_exit_code() {
        for (status, kind) in [
            (400, Kind::Usage),
            (401, Kind::Auth),
            (404, Kind::NotFound),
            (410, Kind::NotFound),
            (409, Kind::Conflict),
            (422, Kind::Generic),
            (500, Kind::Server),
            (507, Kind::Server),
        ] {
            assert_eq!(Kind::of_status(status), kind, "{status}");
        }
    }

    #[test]
    fn lists_are_read_page_by_page() {
        let (client, server) = client(&[
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"items\":[1,2],\"next_cursor\":\"a/b\"}",
            "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{\"items\":[3],\"next_cursor\":null}",
        ]);
        assert_eq!(client.list("/v1/x?limit=2").unwrap(), [1, 2, 3]);
        let requests = server.join().unwrap();
        assert!(requests[0].starts_with("GET /v1/x?limit=2 HTTP/1.1\r\n"));
        assert!(requests[0].contains("Bearer ddo_x"), "{}", requests[0]);
        assert!(requests[1].starts_with("GET /v1/x?limit=2&cursor=a%2Fb HTTP/1.1\r\n"));
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let (client, _server) = client(&[
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\":",
        ]);
        let mut content = client.download("/v1/x").unwrap().into_body().into_reader();
        assert!(content.read_to_end(&mut Vec::new()).is_err());
        assert_eq!(
            code(&client.get("/v1/x").unwrap_err()),
            format!("{:?}", ExitCode::from(6))
        );
    }

    #[test]
    fn an_upload_waits_for_the_word_of_the_server() {
        /// Nobody may read it.
        struct Untouched;
        impl Read for Untouched {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                panic!("the content was read")
            }
        }
        let (client, server) = client(&[
            "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"code\":\"X\",\"message\":\"no\"}",
        ]);
        let failure = client.upload(Method::PUT, "/v1/x", Some(9), &mut Untouched);
        assert_eq!(failure.unwrap_err().to_string(), "no");
        let request = &server.join().unwrap()[0];
        assert!(request.contains("content-length: 9\r\n"), "{request}");
        assert!(!request.contains("chunked"), "{request}");
    }

    #[test]
    fn nobody_there() {
        let address = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let client = |url: &str, token: &str| {
            let client = Client::new(&ServerArguments {
                url: url.to_owned(),
                token: Some(token.to_owned()),
                data_dir: PathBuf::new(),
                json: false,
            });
            client.unwrap().get("/v1/x").unwrap_err()
        };
        let failure = client(&format!("http://{address}"), "ddo_x");
        assert!(failure.is_of_server() && failure.hint.is_some());
        for (url, token) in [
            ("nonsense url", "x"),
            ("", "x"),
            ("http://127.0.0.1:1", "a\nb"),
        ] {
            let failure = client(url, token);
            assert_eq!(
                code(&failure),
                format!("{:?}", ExitCode::from(2)),
                "{failure}"
            );
        }
    }
}
