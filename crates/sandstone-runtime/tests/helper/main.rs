//! What the integration tests run beside themselves:
//! - `shim`: the shim, as the product's own binary offers it;
//! - `server INSTANCE SLOTS_DIR UID_BASE NETWORK COUNT`: a server that parks sandboxes and then hangs;
//! - as `sandstone-agent`: an agent that runs shell scripts. A connection carries a user id, a
//!   newline and a script, and answers with the exit code, a newline and the output.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use sandstone_runtime::{Agent, Runtime, RuntimeConfig, Shim};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["sandstone-agent"] => serve_scripts(),
        [_, "shim"] => sandstone_runtime::shim_main(),
        [_, "server", settings @ ..] => park(settings),
        _ => ExitCode::FAILURE,
    }
}

fn park(settings: &[&str]) -> ExitCode {
    let [instance, slots_dir, uid_base, network, count] = settings else {
        return ExitCode::FAILURE;
    };
    let me = std::env::current_exe().unwrap();
    let runtime = Runtime::open(RuntimeConfig {
        instance: (*instance).to_owned(),
        slots_dir: slots_dir.into(),
        uid_base: uid_base.parse().unwrap(),
        network: network.parse().unwrap(),
        shim: Shim {
            program: me.clone(),
            args: vec!["shim".to_owned()],
        },
        agent: Agent { executable: me },
        allow_private: Vec::new(),
    })
    .unwrap();
    let parked: Vec<_> = (0..count.parse::<usize>().unwrap())
        .map(|_| runtime.prepare().unwrap())
        .collect();
    let mut stdout = io::stdout();
    writeln!(stdout, "parked {}", parked.len()).unwrap();
    loop {
        thread::park();
    }
}

#[expect(
    unsafe_code,
    reason = "the agent's descriptors are numbers by contract"
)]
fn serve_scripts() -> ExitCode {
    // SAFETY: the runtime gives the agent these two descriptors, and nothing else owns them.
    let (socket, mut ready) = unsafe {
        (
            UnixListener::from(OwnedFd::from_raw_fd(3)),
            std::fs::File::from_raw_fd(4),
        )
    };
    ready.write_all(b"!").unwrap();
    drop(ready);
    for stream in socket.incoming() {
        thread::spawn(move || answer(stream?));
    }
    ExitCode::FAILURE
}

fn answer(mut stream: UnixStream) -> io::Result<()> {
    let mut request = String::new();
    stream.read_to_string(&mut request)?;
    let (user, script) = request.split_once('\n').unwrap();
    let user: u32 = user.parse().unwrap();
    let output = Command::new("/bin/bash")
        .args(["-c", &format!("exec 2>&1; {script}")])
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .current_dir("/")
        .uid(user)
        .gid(user)
        .stdin(Stdio::null())
        .output()?;
    let code = output.status.code().unwrap_or(-1);
    write!(
        stream,
        "{code}\n{}",
        String::from_utf8_lossy(&output.stdout)
    )?;
    stream.shutdown(Shutdown::Both)
}
