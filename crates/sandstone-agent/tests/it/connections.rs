//! Connections come and go; the agent stays.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use sandstone_protocol::frame::{Frame, FrameKind};
use sandstone_protocol::message::{Answer, Hello, Request, Spawn, encode};

use crate::harness::{Host, Sandbox, exited, shell};

/// A name, and something that a host must not do.
type Case = (&'static str, fn(&mut Host));

fn is_closed(mut socket: UnixStream) -> bool {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => true,
        // Closed with our last frame unread.
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn processes_outlive_their_connection() {
    let (sandbox, mut host) = Sandbox::start();
    // Ends because its input is closed with the connection; its output is dropped meanwhile.
    let reader = host.spawn(shell("cat >/dev/null; head -c 3000000 /dev/zero; exit 5"));
    let sleeper = host.spawned(shell("sleep 1000"));
    let set = Request::EnvSet {
        name: "KEPT".into(),
        value: "yes".into(),
    };
    host.call(set).unwrap();
    let waiting = host.fresh_id();
    host.send_request(waiting, &Request::Wait { pid: sleeper });
    drop(host);

    let mut host = sandbox.connect();
    assert_eq!(host.wait(reader.pid), exited(5));
    let signal = Request::Kill {
        pid: sleeper,
        signal: 9,
    };
    assert_eq!(host.call(signal), Ok(Answer::Done));
    assert_eq!(host.wait(sleeper).signal, Some(9));
    assert_eq!(host.shell("echo $KEPT"), "yes\n");
    // Threads of the first connection are gone: this one reads and waits, and runs the shell.
    let deadline = Instant::now() + Duration::from_secs(20);
    while host.shell("cat /proc/1/task/*/comm | sort | tr '\\n' ' '")
        != "connection process reaper sandstone-agent waits "
    {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn two_hosts_at_once() {
    let (sandbox, mut first) = Sandbox::start();
    let mut second = sandbox.connect();
    let pid = first.spawned(shell("sleep 0.2; exit 4"));
    let (one, two) = (first.fresh_id(), second.fresh_id());
    first.send_request(one, &Request::Wait { pid });
    second.send_request(two, &Request::Wait { pid });
    assert_eq!(first.reply(one), Ok(Answer::Exited(exited(4))));
    assert_eq!(second.reply(two), Ok(Answer::Exited(exited(4))));
}

#[test]
fn a_broken_connection_breaks_alone() {
    let (sandbox, mut bystander) = Sandbox::start();
    let hello = |generation| Frame {
        kind: FrameKind::Hello,
        id: 0,
        payload: encode(&Hello { generation }),
    };
    let frame = |kind, id, payload: &[u8]| Frame {
        kind,
        id,
        payload: payload.to_vec(),
    };

    // Before the hello.
    let request = frame(FrameKind::Request, 1, &encode(&Request::EnvAll));
    for opening in [
        vec![0; 64],
        vec![0xff; 64],
        request.encode(),
        hello(0).encode(),
        frame(FrameKind::Hello, 1, &encode(&Hello { generation: 1 })).encode(),
        frame(FrameKind::Hello, 0, b"rubbish").encode(),
    ] {
        let mut socket = sandbox.dial();
        socket.write_all(&opening).unwrap();
        assert!(is_closed(socket), "{opening:?}");
    }

    // After it.
    let cases: [Case; 12] = [
        ("rubbish", |host| host.socket.write_all(&[9; 40]).unwrap()),
        ("a second hello", |host| {
            host.send(FrameKind::Hello, 0, &encode(&Hello { generation: 1 }));
        }),
        ("a reply", |host| host.send(FrameKind::Reply, 50, &[])),
        ("a bad request", |host| {
            host.send(FrameKind::Request, 50, b"rubbish");
        }),
        ("id 0", |host| host.send_request(0, &Request::EnvAll)),
        ("an id twice", |host| {
            let pid = host.spawned(shell("sleep 1000"));
            host.send_request(50, &Request::Wait { pid });
            host.send_request(50, &Request::Wait { pid });
        }),
        ("an id twice in one request", |host| {
            let spawn = Spawn {
                stdout: Some(50),
                stderr: Some(50),
                ..shell("true")
            };
            host.send_request(51, &Request::Spawn(spawn));
        }),
        ("data against the stream", |host| {
            let process = host.spawn(shell("sleep 1000"));
            host.send(FrameKind::Data, process.stdout, b"x");
        }),
        ("an end against the stream", |host| {
            let process = host.spawn(shell("sleep 1000"));
            host.send(FrameKind::End, process.stdout, &[]);
        }),
        ("credit against the stream", |host| {
            let process = host.spawn(shell("sleep 1000"));
            host.send_credit(process.stdin, 1);
        }),
        ("credit of no number", |host| {
            host.send(FrameKind::Credit, 50, &[1, 2, 3]);
        }),
        ("more than the window", |host| {
            let process = host.spawn(shell("sleep 1000"));
            // The pipe takes 64 KiB, which are granted anew; then the window fills.
            for _ in 0..7 {
                host.send(FrameKind::Data, process.stdin, &[0; 64 << 10]);
            }
        }),
    ];
    for (case, offend) in cases {
        let mut host = sandbox.connect();
        offend(&mut host);
        assert!(is_closed(host.socket), "{case}");
    }

    assert_eq!(bystander.shell("echo fine"), "fine\n");
    let mut late = sandbox.connect();
    assert_eq!(late.shell("echo too"), "too\n");
}

#[test]
fn frames_of_streams_that_are_over_are_dropped() {
    let (_sandbox, mut host) = Sandbox::start();
    for kind in [FrameKind::Data, FrameKind::Reset] {
        host.send(kind, 4000, b"x");
    }
    host.send(FrameKind::End, 4000, &[]);
    host.send_credit(4000, 1);
    assert_eq!(host.shell("echo fine"), "fine\n");
}

#[test]
fn a_newer_generation_is_welcome() {
    let (sandbox, _host) = Sandbox::start();
    let mut socket = sandbox.dial();
    let newer = Frame {
        kind: FrameKind::Hello,
        id: 0,
        payload: encode(&Hello { generation: 99 }),
    };
    let request = Frame {
        kind: FrameKind::Request,
        id: 1,
        payload: encode(&Request::EnvAll),
    };
    socket.write_all(&newer.encode()).unwrap();
    socket.write_all(&request.encode()).unwrap();
    let hello_length = newer.encode().len();
    let mut bytes = vec![0; hello_length + 9];
    socket.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[hello_length + 4], FrameKind::Reply as u8);
}

#[test]
fn too_many_requests_are_refused_and_the_rest_goes_on() {
    let (_sandbox, mut host) = Sandbox::start();
    let pid = host.spawned(shell("sleep 1000"));
    let waits: Vec<u32> = (0..40_000).map(|_| host.fresh_id()).collect();
    for id in &waits {
        host.send_request(*id, &Request::Wait { pid });
    }
    let (errno, _) = host.refused(Request::EnvAll);
    assert_eq!(errno, libc::EAGAIN);
    drop(waits);
}
