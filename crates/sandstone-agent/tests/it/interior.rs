//! Preparing the interior.

use sandstone_protocol::message::{Answer, Configure, InteriorFile, Request};

use crate::harness::{APP_GID, APP_UID, Sandbox};

#[test]
fn the_interior_is_prepared_and_preparing_again_changes_nothing() {
    let sandbox = Sandbox::bare();
    let mut host = sandbox.connect();
    host.shell("mkdir -p /etc/ssl/certs; echo theirs > /etc/ssl/certs/ca-certificates.crt");
    host.shell("ln -s ../run/nothing /etc/resolv.conf");
    let file = |path: &str, mode, content: &str| InteriorFile {
        path: path.into(),
        mode,
        content: content.into(),
    };
    let authority = "-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n";
    let configure = Configure {
        user: "app".into(),
        hostname: "my-box".into(),
        working_directory: "/mnt/a/b".into(),
        environment: [("GREETING".to_owned(), "hello".to_owned())].into(),
        files: vec![
            file("/etc/resolv.conf", 0o644, "nameserver 10.0.0.1\n"),
            file("/etc/sudoers.d/app", 0o440, "app ALL=(ALL) NOPASSWD: ALL\n"),
        ],
        certificate_authorities: Some(authority.into()),
    };
    for _ in 0..2 {
        let request = Request::Configure(configure.clone());
        assert_eq!(host.call(request), Ok(Answer::Done));
    }
    let mut read = |path: &str| String::from_utf8(host.read_file(path).unwrap()).unwrap();
    assert_eq!(read("/etc/hostname"), "my-box\n");
    assert_eq!(
        read("/etc/hosts"),
        "127.0.0.1\tlocalhost my-box\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    assert_eq!(read("/etc/resolv.conf"), "nameserver 10.0.0.1\n");
    assert_eq!(
        read("/etc/ssl/certs/ca-certificates.crt"),
        format!("theirs\n{authority}")
    );
    assert_eq!(
        read("/usr/local/share/ca-certificates/sandstone-host.crt"),
        authority
    );
    assert_eq!(
        host.shell(
            "hostname; pwd; stat -c '%u %g %a' . /etc/sudoers.d/app; echo $GREETING; ls -A /etc/sudoers.d"
        ),
        format!("my-box\n/mnt/a/b\n{APP_UID} {APP_GID} 755\n0 0 440\nhello\napp\n")
    );
}

#[test]
fn another_host_finds_nothing_of_the_one_before() {
    let sandbox = Sandbox::bare();
    let mut host = sandbox.connect();
    host.shell(
        "mkdir -p /etc/ssl/certs /etc/apt; echo theirs > /etc/ssl/certs/ca-certificates.crt",
    );
    host.shell("echo own > /etc/apt/sources.list");
    let file = |path: &str, content: &str| InteriorFile {
        path: path.into(),
        mode: 0o644,
        content: content.into(),
    };
    let first = Configure {
        hostname: "first".into(),
        working_directory: "/mnt".into(),
        files: vec![
            file("/etc/resolv.conf", "nameserver 10.0.0.1\n"),
            file("/etc/apt/sources.list", "deb mirror\n"),
            file("/etc/pip.conf", "[global]\n"),
        ],
        certificate_authorities: Some("-----BEGIN-----\nfirst\n-----END-----\n".into()),
        ..Configure::default()
    };
    let other = Configure {
        files: vec![file("/etc/resolv.conf", "nameserver 10.0.0.2\n")],
        certificate_authorities: None,
        ..first.clone()
    };
    for configure in [&first, &first, &other, &other, &first, &other] {
        assert_eq!(
            host.call(Request::Configure(configure.clone())),
            Ok(Answer::Done)
        );
    }
    assert_eq!(
        host.shell(
            "cat /etc/resolv.conf /etc/apt/sources.list /etc/ssl/certs/ca-certificates.crt; \
             ls /etc/pip.conf 2>/dev/null; ls -A /usr/local/share/ca-certificates"
        ),
        "nameserver 10.0.0.2\nown\ntheirs\n"
    );
}

#[test]
fn an_unknown_user_is_root() {
    let sandbox = Sandbox::bare();
    let mut host = sandbox.connect();
    let configure = Configure {
        user: "nobody-here".into(),
        working_directory: "/mnt".into(),
        ..Configure::default()
    };
    assert_eq!(host.call(Request::Configure(configure)), Ok(Answer::Done));
    assert_eq!(
        host.shell("id -un; echo $HOME $USER; pwd"),
        "root\n/root root\n/mnt\n"
    );
}

#[test]
fn a_bad_interior_is_refused() {
    let sandbox = Sandbox::bare();
    let mut host = sandbox.connect();
    let with_file = |path: &str| {
        Request::Configure(Configure {
            files: vec![InteriorFile {
                path: path.into(),
                mode: 0o644,
                content: Vec::new(),
            }],
            ..Configure::default()
        })
    };
    assert_eq!(host.refused(with_file("relative")).0, libc::EINVAL);
    assert_eq!(host.refused(with_file("/mnt/home")).0, libc::EISDIR);
    let (errno, message) = host.refused(with_file("/proc/nothing"));
    assert_eq!(errno, libc::ENOENT);
    assert_eq!(
        message,
        "write /proc/nothing: No such file or directory (os error 2)"
    );
    assert_eq!(
        host.shell("ls -A /mnt /etc | grep sandstone"),
        "",
        "no rubbish"
    );
}
