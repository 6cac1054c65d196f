//! Changes to files by path, as the sandbox's user.

use sandstone_protocol::message::{
    Answer, FileChange, FileKind, FileTime, MakeTemporary, Metadata, Request, WriteOptions,
};

use crate::harness::{APP_UID, Host, Sandbox};

fn change(host: &mut Host, change: FileChange) {
    assert_eq!(
        host.call(Request::Change(change.clone())),
        Ok(Answer::Done),
        "{change:?}"
    );
}

fn refused(host: &mut Host, change: FileChange) -> (i32, String) {
    host.refused(Request::Change(change))
}

fn path(host: &mut Host, request: Request) -> String {
    match host.call(request) {
        Ok(Answer::Path(path)) => path,
        other => panic!("{other:?}"),
    }
}

fn lstat(host: &mut Host, path: &str) -> Metadata {
    let path = path.to_owned();
    match host.call(Request::Stat {
        path,
        follow: false,
    }) {
        Ok(Answer::Metadata(metadata)) => metadata,
        other => panic!("{other:?}"),
    }
}

fn rename(from: &str, to: &str) -> FileChange {
    FileChange::Rename {
        from: from.into(),
        to: to.into(),
    }
}

fn copy(from: &str, to: &str) -> FileChange {
    FileChange::Copy {
        from: from.into(),
        to: to.into(),
    }
}

#[test]
fn names_and_links() {
    let (_sandbox, mut host) = Sandbox::start();
    host.write_file("one", b"content", WriteOptions::default())
        .unwrap();
    change(&mut host, rename("one", "two"));
    change(&mut host, copy("two", "/mnt/home/work/three"));
    let target = "two".to_owned();
    change(
        &mut host,
        FileChange::Link {
            target: target.clone(),
            path: "four".into(),
        },
    );
    assert_eq!(lstat(&mut host, "four").nlink, 2);
    assert_eq!(lstat(&mut host, "three").uid, APP_UID);
    change(
        &mut host,
        FileChange::Symlink {
            target: "./../work//two".into(),
            path: "five".into(),
        },
    );
    assert_eq!(lstat(&mut host, "five").kind, FileKind::Symlink);
    let five = "five".to_owned();
    assert_eq!(
        path(&mut host, Request::ReadLink { path: five.clone() }),
        "./../work//two"
    );
    assert_eq!(
        path(&mut host, Request::RealPath { path: five }),
        "/mnt/home/work/two"
    );
    host.shell("ln -s loop loop; ln -s \"$(printf 'x\\377')\" odd; mkdir -p d/e");
    let refuse = |host: &mut Host, request| host.refused(request).0;
    let real = |path: &str| Request::RealPath { path: path.into() };
    let read = |path: &str| Request::ReadLink { path: path.into() };
    assert_eq!(refuse(&mut host, real("loop")), libc::ELOOP);
    assert_eq!(refuse(&mut host, real("none")), libc::ENOENT);
    assert_eq!(refuse(&mut host, read("two")), libc::EINVAL);
    assert_eq!(refuse(&mut host, read("odd")), libc::EILSEQ);

    let (errno, message) = refused(&mut host, rename("/a", "/b"));
    assert_eq!(errno, libc::ENOENT);
    assert_eq!(
        message,
        "No such file or directory (os error 2): rename '/a' -> '/b'"
    );
    for (wanted, errno) in [
        (rename("two", "d"), libc::EISDIR),
        (rename("d", "two"), libc::ENOTDIR),
        (rename("d", "d/e/f"), libc::EINVAL),
        (rename("two", "/proc/x"), libc::EXDEV),
        (rename("two", "/etc/two"), libc::EXDEV),
        (copy("d", "x"), libc::EISDIR),
        (copy("two", "d"), libc::EISDIR),
        (copy("two", "/etc/two"), libc::EACCES),
        (rename("two", &"x".repeat(300)), libc::ENAMETOOLONG),
        (rename("two", "two/x"), libc::ENOTDIR),
        (rename("", "x"), libc::ENOENT),
    ] {
        assert_eq!(refused(&mut host, wanted.clone()).0, errno, "{wanted:?}");
    }
    let link = FileChange::Link {
        target,
        path: "three".into(),
    };
    assert_eq!(refused(&mut host, link).0, libc::EEXIST);
}

#[test]
fn size_mode_owner_times() {
    let (_sandbox, mut host) = Sandbox::start();
    host.write_file("file", b"0123456789", WriteOptions::default())
        .unwrap();
    let file = || "file".to_owned();
    for (length, content) in [(4, &b"0123"[..]), (6, b"0123\0\0")] {
        let path = file();
        change(&mut host, FileChange::Truncate { path, length });
        assert_eq!(host.read_file("file").unwrap(), content);
    }
    let endless = FileChange::Truncate {
        path: file(),
        length: u64::MAX,
    };
    assert_eq!(refused(&mut host, endless).0, libc::EINVAL);
    change(
        &mut host,
        FileChange::SetMode {
            path: file(),
            mode: 0o4751,
        },
    );
    assert_eq!(lstat(&mut host, "file").mode, 0o104_751);
    let time = |seconds, nanoseconds| FileTime {
        seconds,
        nanoseconds,
    };
    change(
        &mut host,
        FileChange::SetTimes {
            path: file(),
            accessed: time(-1, 500_000_000),
            modified: time(1_700_000_000, 123_000_000),
        },
    );
    let status = lstat(&mut host, "file");
    assert_eq!(status.accessed_ms, -500);
    assert_eq!(status.modified_ms, 1_700_000_000_123);

    let owner = |path: &str, uid, gid| FileChange::SetOwner {
        path: path.into(),
        uid,
        gid,
    };
    // 29 is a group that the user is in.
    change(&mut host, owner("file", None, Some(29)));
    let status = lstat(&mut host, "file");
    assert_eq!((status.uid, status.gid), (APP_UID, 29));
    assert_eq!(
        refused(&mut host, owner("file", Some(0), None)).0,
        libc::EPERM
    );
    assert_eq!(
        refused(&mut host, owner("/etc/passwd", Some(APP_UID), None)).0,
        libc::EPERM
    );
    let mode = FileChange::SetMode {
        path: "/etc/passwd".into(),
        mode: 0o666,
    };
    assert_eq!(refused(&mut host, mode).0, libc::EPERM);
}

#[test]
fn the_umask_is_the_sandboxs() {
    let (sandbox, mut host) = Sandbox::start();
    let mut other = sandbox.connect();
    let umask = |mask| Request::Umask { mask };
    assert_eq!(host.call(umask(None)), Ok(Answer::Umask(0o022)));
    assert_eq!(host.call(umask(Some(0o7077))), Ok(Answer::Umask(0o022)));
    assert_eq!(other.call(umask(None)), Ok(Answer::Umask(0o077)));
    other
        .write_file("file", b"", WriteOptions::default())
        .unwrap();
    assert_eq!(lstat(&mut host, "file").mode, 0o100_600);
    host.shell("touch by-process");
    assert_eq!(lstat(&mut host, "by-process").mode, 0o100_644);
}

#[test]
fn temporary_files_and_directories() {
    let (_sandbox, mut host) = Sandbox::start();
    let make = |directory, parent: Option<&str>| {
        Request::MakeTemporary(MakeTemporary {
            directory,
            parent: parent.map(str::to_owned),
            prefix: "pre".into(),
            suffix: ".x".into(),
            seed: 99,
        })
    };
    let file = path(&mut host, make(false, None));
    assert!(
        file.starts_with("/tmp/pre") && file.ends_with(".x"),
        "{file}"
    );
    assert_eq!(lstat(&mut host, &file).mode, 0o100_600);
    assert_eq!(lstat(&mut host, &file).uid, APP_UID);
    let directory = path(&mut host, make(true, None));
    assert_ne!(file, directory);
    assert_eq!(lstat(&mut host, &directory).mode, 0o040_700);
    host.shell(&format!("rm -r {file} {directory}"));
    assert_eq!(host.refused(make(true, Some("none"))).0, libc::ENOENT);
    assert_eq!(host.refused(make(false, Some("/etc"))).0, libc::EACCES);
    let here = path(&mut host, make(false, Some(".")));
    assert!(lstat(&mut host, &here).size == 0);
}
