//! File operations, as the sandbox's user.

use std::time::{Duration, Instant};

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{Answer, FileKind, Metadata, Request, WriteOptions};

use crate::harness::{APP_GID, APP_UID, Host, Sandbox, noise, shell};

fn stat(host: &mut Host, path: &str) -> Metadata {
    let path = path.to_owned();
    match host.call(Request::Stat { path, follow: true }) {
        Ok(Answer::Metadata(metadata)) => metadata,
        other => panic!("{other:?}"),
    }
}

fn options() -> WriteOptions {
    WriteOptions::default()
}

#[test]
fn big_files_round_trip() {
    let (_sandbox, mut host) = Sandbox::start();
    let content = noise((3 << 20) + 17);
    assert_eq!(
        host.write_file("big", &content, options()),
        Ok(Answer::Done)
    );
    assert!(host.read_file("/mnt/home/work/big").unwrap() == content);
    let metadata = stat(&mut host, "big");
    assert_eq!(metadata.size, content.len() as u64);
    assert_eq!((metadata.uid, metadata.gid), (APP_UID, APP_GID));
    assert_eq!(metadata.mode, 0o100_644);
    assert!(metadata.created_ms.is_some());
    assert_eq!(host.write_file("empty", b"", options()), Ok(Answer::Done));
    assert_eq!(host.read_file("empty").unwrap(), b"");
}

#[test]
fn write_options_are_denos() {
    let (_sandbox, mut host) = Sandbox::start();
    let append = WriteOptions {
        append: true,
        ..options()
    };
    let create_new = WriteOptions {
        create_new: true,
        ..options()
    };
    let existing = WriteOptions {
        create: false,
        ..options()
    };
    let private = WriteOptions {
        mode: Some(0o600),
        ..options()
    };
    let mut refused = |path: &str, options: &WriteOptions| {
        host.write_file(path, b"x", options.clone()).unwrap_err()
    };
    let missing = refused("file", &existing);
    assert_eq!(
        missing.message,
        "No such file or directory (os error 2): writefile 'file'"
    );
    assert_eq!(
        host.write_file("file", b"long content", create_new.clone()),
        Ok(Answer::Done)
    );
    let mut refused = |path: &str, options: &WriteOptions| {
        host.write_file(path, b"x", options.clone()).unwrap_err()
    };
    assert_eq!(refused("file", &create_new).errno, Some(libc::EEXIST));
    assert_eq!(refused(".", &options()).errno, Some(libc::EISDIR));
    host.write_file("file", b"short", existing).unwrap();
    host.write_file("file", b"er", append).unwrap();
    assert_eq!(host.read_file("file").unwrap(), b"shorter");
    assert_eq!(stat(&mut host, "file").mode & 0o777, 0o644);
    host.write_file("file", b"", private).unwrap();
    assert_eq!(
        stat(&mut host, "file").mode & 0o777,
        0o600,
        "also of a file that exists"
    );
}

#[test]
fn the_user_may_do_what_the_user_may() {
    let (_sandbox, mut host) = Sandbox::start();
    // /mnt and /etc belong to root, and /etc/secret is readable by root alone.
    let secret = sandstone_protocol::message::InteriorFile {
        path: "/etc/secret".into(),
        mode: 0o600,
        content: b"secret".to_vec(),
    };
    let configure = sandstone_protocol::message::Configure {
        user: "app".into(),
        working_directory: "/mnt/home/work".into(),
        files: vec![secret],
        ..Default::default()
    };
    host.call(Request::Configure(configure)).unwrap();
    assert_eq!(stat(&mut host, "/etc/secret").mode, 0o100_600);
    assert_eq!(stat(&mut host, "/etc/secret").uid, 0);

    let denied = |result: Result<Answer, sandstone_protocol::message::Failure>| {
        let failure = result.unwrap_err();
        assert_eq!(failure.errno, Some(libc::EACCES), "{failure}");
    };
    denied(host.read_file("/etc/secret").map(|_| Answer::Done));
    denied(host.write_file("/etc/secret", b"x", options()));
    denied(host.write_file("/etc/new", b"x", options()));
    let path = "/etc/secret".to_owned();
    denied(host.call(Request::Remove {
        path,
        recursive: false,
    }));
    let path = "/mnt/new".to_owned();
    denied(host.call(Request::MakeDir {
        path,
        recursive: true,
        mode: None,
    }));

    // A supplementary group counts.
    assert_eq!(
        host.shell("id -G; chgrp 29 /mnt/home/work && chmod 0070 /mnt/home/work && echo ok"),
        format!("{APP_GID} 29\nok\n")
    );
}

#[test]
fn reading_fails_as_it_should() {
    let (_sandbox, mut host) = Sandbox::start();
    let missing = host.read_file("/x").unwrap_err();
    assert_eq!(missing.errno, Some(libc::ENOENT));
    assert_eq!(
        missing.message,
        "No such file or directory (os error 2): readfile '/x'"
    );
    let directory = host.read_file(".").unwrap_err();
    assert_eq!(
        directory.message,
        "Is a directory (os error 21): readfile '.'"
    );
    assert_eq!(host.read_file("").unwrap_err().errno, Some(libc::ENOENT));
    assert_eq!(
        host.read_file("a\0b").unwrap_err().errno,
        Some(libc::EINVAL)
    );
    let long = "x/".repeat(100_000);
    assert_eq!(
        host.read_file(&long).unwrap_err().errno,
        Some(libc::ENAMETOOLONG)
    );
}

#[test]
fn directories() {
    let (_sandbox, mut host) = Sandbox::start();
    let make = |path: &str, recursive| Request::MakeDir {
        path: path.into(),
        recursive,
        mode: Some(0o750),
    };
    assert_eq!(host.refused(make("a/b/c", false)).0, libc::ENOENT);
    assert_eq!(host.call(make("a/b/c", true)), Ok(Answer::Done));
    assert_eq!(host.call(make("a/b/c", true)), Ok(Answer::Done));
    assert_eq!(host.refused(make("a/b/c", false)).0, libc::EEXIST);
    assert_eq!(stat(&mut host, "a/b/c").mode, 0o040_750);

    let count = 20_000;
    host.shell(&format!(
        "cd a; seq {count} | sed s/^/file-with-a-rather-long-name-/ | xargs touch
         mkfifo fifo; ln -s nowhere link; printf x > \"$(printf 'bad\\377name')\""
    ));
    let path = "a".to_owned();
    let Ok(Answer::Entries(entries)) = host.call(Request::ReadDir { path }) else {
        panic!("no entries");
    };
    assert_eq!(entries.len(), count + 4);
    let kind = |name: &str| entries.iter().find(|e| e.name == name).unwrap().kind;
    assert_eq!(kind("fifo"), FileKind::Fifo);
    assert_eq!(kind("link"), FileKind::Symlink);
    assert_eq!(kind("b"), FileKind::Directory);
    assert_eq!(kind("bad\u{fffd}name"), FileKind::File);
    let path = "a/fifo".to_owned();
    assert_eq!(host.refused(Request::ReadDir { path }).0, libc::ENOTDIR);

    let remove = |path: &str, recursive| Request::Remove {
        path: path.into(),
        recursive,
    };
    let (errno, message) = host.refused(remove("a", false));
    assert_eq!(errno, libc::ENOTEMPTY);
    assert_eq!(message, "Directory not empty (os error 39): remove 'a'");
    host.shell("ln -s a to-a");
    assert_eq!(host.call(remove("to-a", true)), Ok(Answer::Done));
    assert_eq!(stat(&mut host, "a").kind, FileKind::Directory);
    assert_eq!(host.call(remove("a", true)), Ok(Answer::Done));
    assert_eq!(host.refused(remove("a", true)).0, libc::ENOENT);
}

#[test]
fn a_given_up_stream_ends_its_operation() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell("mkfifo fifo");
    // A pipe without writer blocks, a device without end never stops, a source never sends.
    for path in ["fifo", "/dev/zero"] {
        let (id, sink) = (host.fresh_id(), host.fresh_id());
        let path = path.to_owned();
        host.send_request(id, &Request::ReadFile { path, sink });
        host.send(FrameKind::Reset, sink, &[]);
        assert_eq!(host.reply(id).unwrap_err().errno, Some(libc::ECANCELED));
    }
    let (id, source) = (host.fresh_id(), host.fresh_id());
    let path = "file".to_owned();
    let request = Request::WriteFile {
        path,
        source,
        options: options(),
    };
    host.send_request(id, &request);
    host.send(FrameKind::Data, source, b"half");
    host.send(FrameKind::Reset, source, &[]);
    assert_eq!(host.reply(id).unwrap_err().errno, Some(libc::ECANCELED));

    // A pipe with a writer is read to its end.
    host.spawned(shell("sleep 0.1; echo through > fifo"));
    assert_eq!(host.read_file("fifo").unwrap(), b"through\n");
    // A full disk gives the source up.
    let full = host
        .write_file("/dev/full", &noise(1 << 20), options())
        .unwrap_err();
    assert_eq!(full.errno, Some(libc::ENOSPC), "{full}");
}

#[test]
fn slow_streams_hold_nothing_up() {
    let (_sandbox, mut host) = Sandbox::start();
    let mut writes = Vec::new();
    for number in 0..60 {
        let (id, source) = (host.fresh_id(), host.fresh_id());
        let path = format!("slow-{number}");
        let request = Request::WriteFile {
            path,
            source,
            options: options(),
        };
        host.send_request(id, &request);
        writes.push((number, id, source));
    }
    for _ in 0..3 {
        stat(&mut host, "/");
        assert_eq!(host.write_file("quick", b"1", options()), Ok(Answer::Done));
    }
    // Hundreds of operations at once, all answered.
    let ids: Vec<u32> = (0..500).map(|_| host.fresh_id()).collect();
    for id in &ids {
        let path = "quick".to_owned();
        host.send_request(*id, &Request::Stat { path, follow: true });
    }
    for id in ids {
        assert!(host.reply(id).is_ok());
    }
    for (number, id, source) in writes {
        host.send(FrameKind::Data, source, b"slow");
        host.send(FrameKind::End, source, &[]);
        assert_eq!(host.reply(id), Ok(Answer::Done));
        assert_eq!(host.read_file(&format!("slow-{number}")).unwrap(), b"slow");
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while host.shell("cat /proc/1/task/*/comm | grep -c files") != "1\n" {
        assert!(Instant::now() < deadline, "one idle worker stays");
    }
}
