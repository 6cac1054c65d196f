//! Credit and backpressure.

use std::time::Duration;

use sandstone_protocol::frame::{FrameKind, WINDOW_BYTES};
use sandstone_protocol::message::{Answer, Request, Spawn};

use crate::harness::{Sandbox, exited, killed, noise, shell};

#[test]
fn megabytes_through_cat_with_a_small_window() {
    let (_sandbox, mut host) = Sandbox::start();
    let (stdin, stdout) = (host.fresh_id(), host.fresh_id());
    let pid = host.spawned(Spawn {
        command: "cat".into(),
        stdin: Some(stdin),
        stdout: Some(stdout),
        ..Spawn::default()
    });
    let content = noise(4 << 20);
    let (mut sent, mut received) = (0, Vec::new());
    let mut may_send = WINDOW_BYTES as usize;
    let mut may_receive = WINDOW_BYTES as usize;
    while sent < content.len() || received.len() < content.len() {
        while may_send > 0 && sent < content.len() {
            let length = may_send.min(10_000).min(content.len() - sent);
            host.send(FrameKind::Data, stdin, &content[sent..sent + length]);
            sent += length;
            may_send -= length;
            if sent == content.len() {
                host.send(FrameKind::End, stdin, &[]);
            }
        }
        let frame = host.receive().unwrap();
        match frame.kind {
            FrameKind::Credit => {
                assert_eq!(frame.id, stdin);
                may_send += frame.credit_bytes().unwrap() as usize;
                assert!(may_send <= WINDOW_BYTES as usize);
            }
            FrameKind::Data => {
                assert_eq!(frame.id, stdout);
                may_receive = may_receive
                    .checked_sub(frame.payload.len())
                    .expect("more than was granted");
                received.extend(frame.payload);
                // Grants arrive late and small: a window of 20,000 bytes after the first.
                if may_receive < 10_000 {
                    host.send_credit(stdout, 10_000);
                    may_receive += 10_000;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(received == content);
    assert_eq!(host.next_for(stdout).kind, FrameKind::End);
    assert_eq!(host.wait(pid), exited(0));
}

#[test]
fn a_reader_that_stops_costs_one_window() {
    let (_sandbox, mut host) = Sandbox::start();
    let stdout = host.fresh_id();
    let pid = host.spawned(Spawn {
        stdout: Some(stdout),
        ..shell("head -c 200000000 /dev/zero; touch done")
    });
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        let frame = host.next_for(stdout);
        assert_eq!(frame.kind, FrameKind::Data);
        received += frame.payload.len();
    }
    assert_eq!(received, WINDOW_BYTES as usize);
    host.socket
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut byte = [0];
    let error = std::io::Read::read_exact(&mut host.socket, &mut byte).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "nothing more");
    host.socket
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();

    let status = String::from_utf8(host.read_file("/proc/1/status").unwrap()).unwrap();
    let resident_kb: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap();
    assert!(resident_kb < 20_000, "{resident_kb} KiB");
    assert!(host.read_file("done").is_err(), "it waits for its reader");

    // Given up, the rest is dropped and the process goes on.
    host.send(FrameKind::Reset, stdout, &[]);
    assert_eq!(host.wait(pid), exited(0));
    assert!(host.read_file("done").is_ok());
}

#[test]
fn the_end_needs_no_credit() {
    let (_sandbox, mut host) = Sandbox::start();
    let stdout = host.fresh_id();
    host.spawned(Spawn {
        stdout: Some(stdout),
        ..shell(&format!("head -c {WINDOW_BYTES} /dev/zero"))
    });
    let mut received = 0;
    loop {
        let frame = host.next_for(stdout);
        if frame.kind == FrameKind::End {
            break;
        }
        received += frame.payload.len();
    }
    assert_eq!(received, WINDOW_BYTES as usize);
}

#[test]
fn input_that_nobody_reads_is_swallowed() {
    let (_sandbox, mut host) = Sandbox::start();
    let stdin = host.fresh_id();
    let pid = host.spawned(Spawn {
        stdin: Some(stdin),
        ..shell("exec <&-; sleep 1000")
    });
    host.send_all(stdin, &noise(3 << 20));
    host.send(FrameKind::End, stdin, &[]);
    let signal = Request::Kill { pid, signal: 9 };
    assert_eq!(host.call(signal), Ok(Answer::Done));
    assert_eq!(host.wait(pid), killed(9));

    // Exited before the first byte, and the host never ends the stream: no thread stays behind.
    let stdin = host.fresh_id();
    let pid = host.spawned(Spawn {
        stdin: Some(stdin),
        ..shell("exit 3")
    });
    assert_eq!(host.wait(pid), exited(3));
    host.send_all(stdin, &noise(1 << 20));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while host.shell("cat /proc/1/task/*/comm | grep -c process") != "1\n" {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn input_that_is_not_read_waits() {
    let (_sandbox, mut host) = Sandbox::start();
    let process = host.spawn(shell("sleep 0.3; wc -c"));
    host.send_all(process.stdin, &noise(1 << 20));
    host.send(FrameKind::End, process.stdin, &[]);
    assert_eq!(host.collect(process.stdout), b"1048576\n");
    assert_eq!(host.collect(process.stderr), b"");
    assert_eq!(host.wait(process.pid), exited(0));
}

#[test]
fn resetting_input_closes_it() {
    let (_sandbox, mut host) = Sandbox::start();
    let process = host.spawn(shell("cat; echo over"));
    host.send(FrameKind::Data, process.stdin, b"in ");
    let first = host.next_for(process.stdout);
    assert_eq!(first.payload, b"in ");
    host.send(FrameKind::Reset, process.stdin, &[]);
    assert_eq!(host.collect(process.stdout), b"over\n");
    // Late frames of the stream are dropped.
    host.send(FrameKind::Data, process.stdin, b"late");
    host.send(FrameKind::End, process.stdin, &[]);
    assert_eq!(host.wait(process.pid), exited(0));
}
