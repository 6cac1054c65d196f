//! Open files.

use std::time::{Duration, Instant};

use sandstone_protocol::message::{
    Answer, FileKind, FileTime, HANDLE_BYTES_MAX, HandleOperation, OpenOptions, Reply, Request,
    SeekOrigin, WriteOptions,
};

use crate::harness::{Host, Sandbox, noise, shell};

const READ: OpenOptions = OpenOptions {
    read: true,
    write: false,
    append: false,
    truncate: false,
    create: false,
    create_new: false,
    mode: None,
};

const EVERYTHING: OpenOptions = OpenOptions {
    write: true,
    create: true,
    ..READ
};

fn open(host: &mut Host, path: &str, options: OpenOptions) -> u32 {
    let handle = host.fresh_id();
    let reply = host.call(opening(handle, path, options));
    assert!(matches!(reply, Ok(Answer::Opened { .. })), "{reply:?}");
    handle
}

fn opening(handle: u32, path: &str, options: OpenOptions) -> Request {
    Request::Open {
        handle,
        path: path.into(),
        options,
    }
}

fn work(handle: u32, operation: HandleOperation) -> Request {
    Request::Handle { handle, operation }
}

fn read(host: &mut Host, handle: u32, length: u32) -> Vec<u8> {
    match host.call(work(handle, HandleOperation::Read { length })) {
        Ok(Answer::Bytes(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

fn write(host: &mut Host, handle: u32, bytes: &[u8]) -> Reply {
    let bytes = bytes.to_vec();
    host.call(work(handle, HandleOperation::Write { bytes }))
}

fn seek(host: &mut Host, handle: u32, offset: i64, origin: SeekOrigin) -> Reply {
    host.call(work(handle, HandleOperation::Seek { offset, origin }))
}

fn close(host: &mut Host, handles: &[u32]) -> Reply {
    let handles = handles.to_vec();
    host.call(Request::Close { handles })
}

fn errno(reply: Reply) -> i32 {
    reply.unwrap_err().errno.unwrap()
}

fn lock(exclusive: bool) -> HandleOperation {
    HandleOperation::Lock { exclusive }
}

#[test]
fn bytes_and_positions() {
    let (sandbox, mut host) = Sandbox::start();
    let file = open(&mut host, "file", EVERYTHING);
    assert_eq!(
        write(&mut host, file, b"0123456789"),
        Ok(Answer::Written { bytes: 10 })
    );
    assert_eq!(read(&mut host, file, 5), b"");
    for (offset, origin, position) in [
        (-4, SeekOrigin::End, 6),
        (1, SeekOrigin::Current, 7),
        (2, SeekOrigin::Start, 2),
    ] {
        assert_eq!(
            seek(&mut host, file, offset, origin),
            Ok(Answer::Position(position))
        );
    }
    assert_eq!(read(&mut host, file, 3), b"234");
    for (offset, origin) in [(-1, SeekOrigin::Start), (-11, SeekOrigin::End)] {
        assert_eq!(errno(seek(&mut host, file, offset, origin)), libc::EINVAL);
    }
    host.call(work(file, HandleOperation::Truncate { length: 4 }))
        .unwrap();
    for data_only in [true, false] {
        host.call(work(file, HandleOperation::Sync { data_only }))
            .unwrap();
    }
    let time = |seconds| FileTime {
        seconds,
        nanoseconds: 0,
    };
    let times = HandleOperation::SetTimes {
        accessed: time(1),
        modified: time(2),
    };
    host.call(work(file, times)).unwrap();
    let Ok(Answer::Metadata(status)) = host.call(work(file, HandleOperation::Stat)) else {
        panic!("no metadata");
    };
    assert_eq!((status.size, status.kind), (4, FileKind::File));
    assert_eq!((status.accessed_ms, status.modified_ms), (1000, 2000));

    // More than one answer takes.
    let content = noise(HANDLE_BYTES_MAX + 5);
    host.write_file("big", &content, WriteOptions::default())
        .unwrap();
    let big = open(&mut host, "big", READ);
    let mut all = read(&mut host, big, u32::MAX);
    assert_eq!(all.len(), HANDLE_BYTES_MAX);
    all.extend(read(&mut host, big, u32::MAX));
    assert!(all == content);
    assert_eq!(errno(write(&mut host, big, b"x")), libc::EBADF);
    assert_eq!(read(&mut host, big, 0), b"");

    let append = OpenOptions {
        append: true,
        ..OpenOptions::default()
    };
    let end = open(&mut host, "file", append);
    write(&mut host, end, b"end").unwrap();
    assert_eq!(host.read_file("file").unwrap(), b"0123end");

    assert_eq!(sandbox.open_files(), 3);
    assert_eq!(close(&mut host, &[file, big, end]), Ok(Answer::Done));
    assert_eq!(sandbox.open_files(), 0);
    assert_eq!(errno(close(&mut host, &[file])), libc::EBADF);
    assert_eq!(
        errno(host.call(work(file, HandleOperation::Stat))),
        libc::EBADF
    );
}

#[test]
fn opening_fails_as_it_should() {
    let (_sandbox, mut host) = Sandbox::start();
    let fresh = OpenOptions {
        create_new: true,
        mode: Some(0o666),
        ..EVERYTHING
    };
    let made = open(&mut host, "file", fresh);
    assert_eq!(host.shell("stat -c %a file"), "644\n");
    let mut fails = |path: &str, options| {
        let handle = host.fresh_id();
        let error = errno(host.call(opening(handle, path, options)));
        assert_eq!(errno(close(&mut host, &[handle])), libc::EBADF);
        error
    };
    assert_eq!(fails("file", fresh), libc::EEXIST);
    assert_eq!(fails("none", READ), libc::ENOENT);
    assert_eq!(fails("/etc/new", EVERYTHING), libc::EACCES);
    assert_eq!(fails(".", EVERYTHING), libc::EISDIR);
    assert_eq!(fails("file", OpenOptions::default()), libc::EINVAL);
    assert_eq!(
        errno(host.call(opening(made, "file", READ))),
        libc::EEXIST,
        "an id in use"
    );
    let directory = open(&mut host, ".", READ);
    let length = 10;
    assert_eq!(
        errno(host.call(work(directory, HandleOperation::Read { length }))),
        libc::EISDIR
    );
}

#[test]
fn thousands_of_files() {
    let (sandbox, mut host) = Sandbox::start();
    host.write_file("file", b"x", WriteOptions::default())
        .unwrap();
    let mut other = sandbox.connect();
    for _ in 0..2500 {
        open(&mut other, "file", READ);
    }
    assert_eq!(sandbox.open_files(), 2500);
    // They go with their connection.
    drop(other);
    let deadline = Instant::now() + Duration::from_secs(10);
    while sandbox.open_files() != 0 {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn pipes_block_nobody_and_closing_releases() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell("mkfifo fifo");
    let handles: Vec<u32> = (0..40).map(|_| open(&mut host, "fifo", READ)).collect();
    let reads: Vec<u32> = handles
        .iter()
        .map(|handle| {
            let id = host.fresh_id();
            let length = 100;
            host.send_request(id, &work(*handle, HandleOperation::Read { length }));
            id
        })
        .collect();
    host.write_file("file", b"x", WriteOptions::default())
        .unwrap();
    assert_eq!(close(&mut host, &handles[1..]), Ok(Answer::Done));
    for id in &reads[1..] {
        assert_eq!(errno(host.reply(*id)), libc::ECANCELED);
    }
    host.spawned(shell("echo through > fifo"));
    assert_eq!(
        host.reply(reads[0]),
        Ok(Answer::Bytes(b"through\n".to_vec()))
    );
}

#[test]
fn locks_wait_and_are_released() {
    let (sandbox, mut host) = Sandbox::start();
    let mut other = sandbox.connect();
    let holder = open(&mut other, "file", EVERYTHING);
    other.call(work(holder, lock(true))).unwrap();
    assert_eq!(
        host.shell("flock -n file true || echo held"),
        "held\n",
        "a lock that everybody sees"
    );

    // As many waits as there are handles need one thread, and hold nothing up.
    let handles: Vec<u32> = (0..100).map(|_| open(&mut host, "file", READ)).collect();
    let waits: Vec<u32> = handles
        .iter()
        .map(|handle| {
            let id = host.fresh_id();
            host.send_request(id, &work(*handle, lock(false)));
            id
        })
        .collect();
    assert_eq!(read(&mut host, handles[0], 1), b"");
    assert_eq!(
        host.shell("grep -l locks /proc/1/task/*/comm | wc -l"),
        "1\n"
    );
    // Closing and unlocking end a wait.
    close(&mut host, &[handles[1]]).unwrap();
    assert_eq!(errno(host.reply(waits[1])), libc::ECANCELED);
    host.call(work(handles[2], HandleOperation::Unlock))
        .unwrap();
    assert_eq!(errno(host.reply(waits[2])), libc::ECANCELED);

    other.call(work(holder, HandleOperation::Unlock)).unwrap();
    for wait in waits.iter().skip(3) {
        assert_eq!(host.reply(*wait), Ok(Answer::Done));
    }
    // An exclusive lock waits for the shared ones; they go with their connection.
    let id = other.fresh_id();
    other.send_request(id, &work(holder, lock(true)));
    drop(host);
    assert_eq!(other.reply(id), Ok(Answer::Done));
    let deadline = Instant::now() + Duration::from_secs(10);
    while other.shell("grep -l locks /proc/1/task/*/comm | wc -l") != "0\n" {
        assert!(Instant::now() < deadline, "the thread ends");
    }
}
