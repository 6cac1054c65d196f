//! Connections into the sandbox.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{Answer, DialTarget, Failure, Request};

use crate::harness::{APP_GID, APP_UID, Host, Sandbox, noise};

/// An open connection: source and sink.
fn dial(host: &mut Host, target: DialTarget) -> Result<(u32, u32), Failure> {
    let (source, sink) = (host.fresh_id(), host.fresh_id());
    let answer = host.call(Request::Dial {
        target,
        source,
        sink,
    })?;
    assert_eq!(answer, Answer::Done);
    Ok((source, sink))
}

fn listener() -> (TcpListener, u16) {
    // The tests' sandbox shares the network.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn both_directions_end_on_their_own() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        socket.write_all(&got).unwrap();
    });
    let (source, sink) = dial(&mut host, DialTarget::Port(port)).unwrap();
    let content = noise(3 << 20);
    host.send_all(source, &content);
    host.send(FrameKind::End, source, &[]);
    assert!(host.collect(sink) == content);
    server.join().unwrap();
}

#[test]
fn a_server_that_ends_first_still_listens() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"all").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        got
    });
    let target = DialTarget::Host("127.0.0.1".into(), port);
    let (source, sink) = dial(&mut host, target).unwrap();
    assert_eq!(host.collect(sink), b"all");
    host.send(FrameKind::Data, source, b"late");
    host.send(FrameKind::End, source, &[]);
    assert_eq!(server.join().unwrap(), b"late");
}

#[test]
fn giving_up_closes_the_connection() {
    let (_sandbox, mut host) = Sandbox::start();
    for by_source in [false, true] {
        let (listener, port) = listener();
        let (source, sink) = dial(&mut host, DialTarget::Port(port)).unwrap();
        let (mut socket, _) = listener.accept().unwrap();
        host.send(FrameKind::Reset, if by_source { source } else { sink }, &[]);
        let mut byte = [0];
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert!(matches!(socket.read(&mut byte), Ok(0) | Err(_)));
        // The other direction is given up too.
        let other = if by_source { sink } else { source };
        assert_eq!(host.next_for(other).kind, FrameKind::Reset);
    }
    let (listener, port) = listener();
    dial(&mut host, DialTarget::Port(port)).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    drop(host);
    assert!(matches!(socket.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn a_server_that_breaks_off_is_noticed() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    let (source, sink) = dial(&mut host, DialTarget::Port(port)).unwrap();
    let (socket, _) = listener.accept().unwrap();
    host.send(FrameKind::Data, source, b"unread");
    std::thread::sleep(Duration::from_millis(50));
    drop(socket); // With unread data, this resets the connection.
    assert_eq!(host.next_for(sink).kind, FrameKind::Reset);
    assert_eq!(host.next_for(source).kind, FrameKind::Reset);
}

#[test]
fn a_server_that_does_not_read_holds_the_host_up() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    let (source, sink) = dial(&mut host, DialTarget::Port(port)).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let server = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        got.len()
    });
    host.send_all(source, &noise(8 << 20));
    host.send(FrameKind::End, source, &[]);
    assert_eq!(server.join().unwrap(), 8 << 20);
    assert_eq!(host.collect(sink), b"");
}

#[test]
fn nobody_listens() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    drop(listener);
    let refused = dial(&mut host, DialTarget::Port(port)).unwrap_err();
    assert_eq!(refused.errno, Some(libc::ECONNREFUSED));
    let begun = Instant::now();
    let unknown = dial(&mut host, DialTarget::Host("no such name".into(), 1)).unwrap_err();
    assert_eq!(unknown.errno, Some(libc::EINVAL));
    assert!(begun.elapsed() < Duration::from_secs(1));
    let missing = dial(&mut host, DialTarget::Unix("/nosuch".into())).unwrap_err();
    assert_eq!(missing.errno, Some(libc::ENOENT));
    let long = dial(&mut host, DialTarget::Unix("a".repeat(300))).unwrap_err();
    assert_eq!(long.errno, Some(libc::ENAMETOOLONG));
}

#[test]
fn names_are_the_sandboxs_own() {
    let (_sandbox, mut host) = Sandbox::start();
    let (listener, port) = listener();
    // The host's own resolver knows no such name.
    write_as_root(&mut host, "/etc/hosts", "127.0.0.1 inside.example.test\n");
    let target = DialTarget::Host("Inside.example.test".into(), port);
    dial(&mut host, target).unwrap();
    listener.accept().unwrap();
}

/// The interior's files are written as root.
fn write_as_root(host: &mut Host, path: &str, content: &str) {
    use sandstone_protocol::message::{Configure, InteriorFile};
    let configure = Configure {
        user: "app".into(),
        working_directory: "/mnt/home/work".into(),
        files: vec![InteriorFile {
            path: path.into(),
            mode: 0o644,
            content: content.into(),
        }],
        ..Configure::default()
    };
    assert_eq!(host.call(Request::Configure(configure)), Ok(Answer::Done));
}

#[test]
fn unix_sockets_see_the_sandboxs_user() {
    let (_sandbox, mut host) = Sandbox::start();
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = directory.path().join("server");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let target = DialTarget::Unix(path.to_str().unwrap().into());
    let denied = dial(&mut host, target.clone()).unwrap_err();
    assert_eq!(denied.errno, Some(libc::EACCES), "the socket is root's");

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let (source, sink) = dial(&mut host, target).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let peer = rustix::net::sockopt::socket_peercred(&socket).unwrap();
    assert_eq!((peer.uid.as_raw(), peer.gid.as_raw()), (APP_UID, APP_GID));
    host.send(FrameKind::Data, source, b"hello");
    host.send(FrameKind::End, source, &[]);
    let mut got = String::new();
    socket.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello");
    drop(socket);
    assert_eq!(host.collect(sink), b"");
    // The thread that was the user is gone, and the agent is root as before.
    assert_eq!(host.shell("stat -c %u /proc/1"), "0\n");
    let threads = host.shell("cat /proc/1/task/*/status | grep ^Uid: | sort -u | wc -l");
    assert_eq!(threads, "1\n");
}
