//! Running a step's program: bounded in time, its output watched and its end kept for the error.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{ImageError, PROGRESS_EVERY};

/// Lines of each output kept for the message of a failure.
const TAIL_LINES: usize = 20;
/// Bytes of one line; the rest counts as another line.
const LINE_MAX: u64 = 16 << 10;
/// Bytes of standard output handed back to the caller.
const OUTPUT_MAX: usize = 4 << 20;
/// How often an ended output is checked for an ended program.
const EXIT_POLL: Duration = Duration::from_millis(20);

/// Runs programs one after the other until a common deadline.
pub(super) struct Runner<'a> {
    progress: &'a mut dyn FnMut(&str),
    deadline: Instant,
}

/// A line of one of the program's outputs.
enum Line {
    Output(String),
    Message(String),
}

/// The last lines of an output.
#[derive(Default)]
struct Tail(VecDeque<String>);

impl Tail {
    fn push(&mut self, line: String) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    fn then(self, other: Self) -> String {
        let lines: Vec<String> = self.0.into_iter().chain(other.0).collect();
        lines.join("\n")
    }
}

impl<'a> Runner<'a> {
    pub(super) fn new(progress: &'a mut dyn FnMut(&str), deadline: Instant) -> Self {
        Self { progress, deadline }
    }

    /// Says something to whoever watches.
    pub(super) fn say(&mut self, text: &str) {
        (self.progress)(text);
    }

    /// Runs `command` with `input` on its standard input, and returns its standard output. Lines
    /// that start with `I: ` are told as progress. `package` is what to install if it is missing.
    pub(super) fn run(
        &mut self,
        step: &'static str,
        package: &'static str,
        command: &mut Command,
        input: &str,
    ) -> Result<String, ImageError> {
        let program = command.get_program().to_string_lossy().into_owned();
        tracing::debug!(step, ?command, "running");
        let failed_to_start = |source| ImageError::Program {
            step,
            program,
            package,
            source,
        };
        let mut child = command
            // Its own process group, so that a timeout ends what it started too.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed_to_start)?;
        let lines = listen(&mut child);
        if let Some(mut stdin) = child.stdin.take() {
            // Inputs are a few hundred bytes, less than a pipe holds; a program that does not
            // read them shows by its status.
            let _ = stdin.write_all(input.as_bytes());
        }

        let mut output = String::new();
        // Apart, so that a flood in one does not push out what matters in the other.
        let mut output_tail = Tail::default();
        let mut message_tail = Tail::default();
        let status = match self.watch(step, &mut child, &lines, |line| match line {
            Line::Output(text) => {
                if output.len() + text.len() < OUTPUT_MAX {
                    output.push_str(&text);
                    output.push('\n');
                }
                output_tail.push(text);
            }
            Line::Message(text) => message_tail.push(text),
        }) {
            Some(status) => status,
            None => {
                end(&mut child);
                return Err(ImageError::TimedOut { step });
            }
        };
        if status.success() {
            Ok(output)
        } else {
            Err(ImageError::Step {
                step,
                status,
                tail: output_tail.then(message_tail),
            })
        }
    }

    /// Takes lines until the program has ended; `None` when time is over first.
    fn watch(
        &mut self,
        step: &'static str,
        child: &mut Child,
        lines: &Receiver<Line>,
        mut take: impl FnMut(Line),
    ) -> Option<ExitStatus> {
        let started = Instant::now();
        let mut told = started;
        loop {
            let now = Instant::now();
            if now >= self.deadline {
                return None;
            }
            if now - told >= PROGRESS_EVERY {
                self.say(&format!(
                    "{step}: still running, {} s",
                    (now - started).as_secs()
                ));
                told = now;
            }
            let wait = (self.deadline - now).min(told + PROGRESS_EVERY - now);
            match lines.recv_timeout(wait) {
                Ok(line) => {
                    if let Line::Message(text) = &line
                        && let Some(news) = text.strip_prefix("I: ")
                    {
                        self.say(&format!("{step}: {news}"));
                        told = Instant::now();
                    }
                    take(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    // Something it left behind may hold its output open.
                    if let Ok(Some(status)) = child.try_wait() {
                        return Some(status);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => match child.try_wait() {
                    Ok(Some(status)) => return Some(status),
                    // Both outputs closed, but not ended yet.
                    Ok(None) | Err(_) => thread::sleep(EXIT_POLL),
                },
            }
        }
    }
}

/// Ends the program and everything it started.
fn end(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // It may have ended by itself meanwhile.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// The lines of both outputs, as they come.
fn listen(child: &mut Child) -> Receiver<Line> {
    let (sender, receiver) = sync_channel(64);
    if let Some(stdout) = child.stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || read_lines(stdout, &sender, Line::Output));
    }
    if let Some(stderr) = child.stderr.take() {
        thread::spawn(move || read_lines(stderr, &sender, Line::Message));
    }
    receiver
}

fn read_lines(output: impl Read, sender: &SyncSender<Line>, wrap: fn(String) -> Line) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(wrap(text)).is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, within: Duration) -> (Result<String, ImageError>, Vec<String>) {
        let mut said = Vec::new();
        let mut progress = |text: &str| said.push(text.to_owned());
        let result = Runner::new(&mut progress, Instant::now() + within).run(
            "test",
            "dash",
            Command::new("sh").arg("-c").arg(script),
            "input\n",
        );
        (result, said)
    }

    #[test]
    fn output_news_and_input_go_where_they_belong() {
        let (result, said) = shell(
            "cat; echo 'I: news' >&2; echo noise >&2",
            Duration::from_secs(20),
        );
        assert_eq!(result.expect("runs"), "input\n");
        assert_eq!(said, ["test: news"]);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let (result, _) = shell(
            "seq 100; echo 'it broke' >&2; exit 3",
            Duration::from_secs(20),
        );
        let message = result.expect_err("fails").to_string();
        assert!(
            message.contains("it broke") && message.contains('3'),
            "{message}"
        );
        assert!(!message.contains("\n5\n"), "{message}");
    }

    #[test]
    fn time_is_bounded_for_children_too() {
        let started = Instant::now();
        let (result, _) = shell("sleep 30 & sleep 30", Duration::from_millis(200));
        assert!(matches!(result, Err(ImageError::TimedOut { step: "test" })));
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let mut progress = |_: &str| {};
        let error = Runner::new(&mut progress, Instant::now() + Duration::from_secs(5))
            .run(
                "test",
                "the-package",
                &mut Command::new("/nonexistent/program"),
                "",
            )
            .expect_err("missing");
        assert!(error.to_string().contains("the-package"), "{error}");
    }
}
