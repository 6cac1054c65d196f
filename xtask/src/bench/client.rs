//! A warm client process with an official SDK: a line for each request, a line for each answer.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::server::Access;

/// The client process. It ends when its input does.
#[derive(Debug)]
pub(crate) struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Starts the program, pointed at a server.
    pub(crate) fn start(program: &mut Command, access: &Access) -> Result<Self> {
        let mut child = program
            .envs(access.variables())
            .env("NO_PROXY", "127.0.0.1,localhost")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the client")?;
        let input = child.stdin.take().context("the client has no input")?;
        let output = child.stdout.take().context("the client has no output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Sends a line and waits for the answer, a line with a JSON object.
    pub(crate) fn ask(&mut self, request: &str) -> Result<String> {
        writeln!(self.input, "{request}").context("talking to the client")?;
        // The SDKs print lines of their own.
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line)? == 0 {
                bail!("the client ended at {request}");
            }
            if line.starts_with('{') {
                return Ok(line);
            }
        }
    }

    /// Ends the client in order.
    pub(crate) fn end(self) -> Result<()> {
        let Self {
            mut child, input, ..
        } = self;
        drop(input);
        if !child.wait()?.success() {
            bail!("the client did not end well");
        }
        Ok(())
    }
}
