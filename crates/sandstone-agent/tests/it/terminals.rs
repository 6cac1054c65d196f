//! Terminals and sockets of processes.

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{Answer, Request, SocketStreams, Spawn, TerminalSize};

use crate::harness::{APP_UID, Host, Sandbox, exited, killed, noise, shell};

const SIZE: TerminalSize = TerminalSize {
    columns: 91,
    rows: 17,
};

/// A script on a terminal: its id, stdin and stdout.
fn on_terminal(host: &mut Host, script: &str) -> (u32, u32, u32) {
    let (stdin, stdout) = (host.fresh_id(), host.fresh_id());
    let pid = host.spawned(Spawn {
        stdin: Some(stdin),
        stdout: Some(stdout),
        terminal: Some(SIZE),
        ..shell(script)
    });
    (pid, stdin, stdout)
}

/// Reads until the output contains `text`.
fn read_until(host: &mut Host, stdout: u32, text: &str) -> String {
    let mut output = String::new();
    while !output.contains(text) {
        let frame = host.next_for(stdout);
        assert_eq!(frame.kind, FrameKind::Data, "only {output:?}");
        output.push_str(std::str::from_utf8(&frame.payload).unwrap());
    }
    output
}

#[test]
fn a_process_has_a_terminal_as_a_login_would() {
    let (_sandbox, mut host) = Sandbox::start();
    let (pid, _, stdout) = on_terminal(
        &mut host,
        "stty size; stat -c '%u %a' $(tty); test -t 0 && test -t 1 && test -t 2 && echo all
         test $(ps -o sid= -p $$) = $$ && echo leads; echo controls > /dev/tty",
    );
    let output = String::from_utf8(host.collect(stdout)).unwrap();
    // The group is that of the mount.
    assert_eq!(
        output,
        format!("17 91\r\n{APP_UID} 620\r\nall\r\nleads\r\ncontrols\r\n")
    );
    assert_eq!(host.wait(pid), exited(0));
}

#[test]
fn typing_reaches_the_process() {
    let (_sandbox, mut host) = Sandbox::start();
    let (pid, stdin, stdout) = on_terminal(&mut host, "read line; echo got $line; cat; echo over");
    host.send(FrameKind::Data, stdin, b"word\n");
    read_until(&mut host, stdout, "got word\r\n");
    // The end of input is a character here, and the end of the stream none.
    host.send(FrameKind::Data, stdin, b"\x04");
    host.send(FrameKind::End, stdin, &[]);
    let rest = String::from_utf8(host.collect(stdout)).unwrap();
    assert!(rest.ends_with("over\r\n"), "{rest:?}");
    assert_eq!(host.wait(pid), exited(0));
}

#[test]
fn interrupts_and_sizes_are_signals() {
    let (_sandbox, mut host) = Sandbox::start();
    let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let (pid, stdin, stdout) = on_terminal(&mut host, script);
    read_until(&mut host, stdout, "ready");
    let resize = |pid| Request::Resize {
        pid,
        size: TerminalSize {
            columns: 132,
            rows: 50,
        },
    };
    assert_eq!(host.call(resize(pid)), Ok(Answer::Done));
    read_until(&mut host, stdout, "50 132");
    host.send(FrameKind::Data, stdin, b"\x03");
    assert_eq!(host.wait(pid), killed(libc::SIGINT));
    assert_eq!(host.refused(resize(pid)).0, libc::ESRCH);
    assert_eq!(host.refused(resize(999_999)).0, libc::ESRCH);
    let plain = host.spawn(shell("sleep 100"));
    assert_eq!(host.refused(resize(plain.pid)).0, libc::ENOTTY);
}

#[test]
fn a_terminal_that_nobody_watches_hangs_up() {
    let (_sandbox, mut host) = Sandbox::start();
    let (pid, _, stdout) = on_terminal(&mut host, "echo ready; sleep 100");
    read_until(&mut host, stdout, "ready");
    host.send(FrameKind::Reset, stdout, &[]);
    assert_eq!(host.wait(pid), killed(libc::SIGHUP));
}

#[test]
fn a_terminal_has_no_standard_error_of_its_own() {
    let (_sandbox, mut host) = Sandbox::start();
    let stderr = host.fresh_id();
    let spawn = Spawn {
        stderr: Some(stderr),
        terminal: Some(SIZE),
        ..shell("true")
    };
    assert_eq!(host.refused(Request::Spawn(spawn)).0, libc::EINVAL);
}

#[test]
fn a_socket_is_descriptor_three() {
    let (_sandbox, mut host) = Sandbox::start();
    let (source, sink, stdout) = (host.fresh_id(), host.fresh_id(), host.fresh_id());
    let pid = host.spawned(Spawn {
        stdout: Some(stdout),
        socket: Some(SocketStreams { source, sink }),
        ..shell("ls /proc/self/fd | tr '\\n' ' '; stat -Lc %F /dev/fd/3; cat <&3 >&3")
    });
    let content = noise(1 << 20);
    host.send_all(source, &content);
    host.send(FrameKind::End, source, &[]);
    assert!(host.collect(sink) == content);
    assert_eq!(host.wait(pid), exited(0));
    let output = String::from_utf8(host.collect(stdout)).unwrap();
    assert_eq!(output, "0 1 2 3 4 socket\n");
}
