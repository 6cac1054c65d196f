//! Spawn, wait, kill, reap.

use std::time::{Duration, Instant};

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{Answer, Request, Spawn};

use crate::harness::{APP_GID, APP_UID, Sandbox, exited, killed, shell};

const ENOENT: i32 = libc::ENOENT;

#[test]
fn output_and_exit_code() {
    let (_sandbox, mut host) = Sandbox::start();
    let process = host.spawn(shell("echo out; echo err >&2; exit 7"));
    assert_eq!(host.collect(process.stdout), b"out\n");
    assert_eq!(host.collect(process.stderr), b"err\n");
    assert_eq!(host.wait(process.pid), exited(7));
    assert_eq!(host.wait(process.pid), exited(7), "any number of times");
    host.send(FrameKind::End, process.stdin, &[]);
}

#[test]
fn a_process_gets_a_clean_start() {
    let (_sandbox, mut host) = Sandbox::start();
    let report = host.shell(
        "id -u; id -g; id -G; umask; pwd; cat /proc/self/oom_score_adj; hostname
         ls /proc/self/fd | tr '\\n' ' '; echo
         test $(ps -o pgid= -p $$) = $$ && echo leads
         grep -E '^(SigIgn|SigBlk|CapEff|CapInh|CapAmb|NoNewPrivs)' /proc/self/status; env | sort",
    );
    let expected = format!(
        "{APP_UID}\n{APP_GID}\n{APP_GID} 29\n0022\n/mnt/home/work\n500\nbox\n0 1 2 3 \nleads\n\
         SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nCapInh:\t0000000000000000\n\
         CapEff:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\n\
         HOME=/mnt/home\nLANG=C.UTF-8\nLOGNAME=app\n\
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         PWD=/mnt/home/work\nUSER=app\n"
    );
    assert_eq!(report, expected, "3 is the directory that ls reads");
}

#[test]
fn environments_are_layered() {
    let (_sandbox, mut host) = Sandbox::start();
    let set = |name: &str, value: &str| Request::EnvSet {
        name: name.into(),
        value: value.into(),
    };
    assert_eq!(host.call(set("A", "sandbox")), Ok(Answer::Done));
    assert_eq!(host.call(set("B", "sandbox")), Ok(Answer::Done));
    assert_eq!(host.refused(set("B=", "x")).0, libc::EINVAL);
    let mut run = |clear_environment, script: &str| {
        let stdout = host.fresh_id();
        host.spawned(Spawn {
            environment: [("B".to_owned(), "process".to_owned())].into(),
            clear_environment,
            stdout: Some(stdout),
            ..shell(script)
        });
        String::from_utf8(host.collect(stdout)).unwrap()
    };
    assert_eq!(
        run(false, "echo $A $B $HOME"),
        "sandbox process /mnt/home\n"
    );
    assert_eq!(
        run(true, "echo ${A-none} $B ${HOME-none}"),
        "none process none\n"
    );

    let name = "HOME".to_owned();
    assert_eq!(host.call(Request::EnvDelete { name }), Ok(Answer::Done));
    let name = "HOME".to_owned();
    assert_eq!(
        host.call(Request::EnvGet { name }),
        Ok(Answer::Variable(None))
    );
    match host.call(Request::EnvAll) {
        Ok(Answer::Variables(all)) => {
            assert_eq!(all["A"], "sandbox");
            assert!(!all.contains_key("HOME"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_start_says_why() {
    let (_sandbox, mut host) = Sandbox::start();
    let spawn = |command: &str| Spawn {
        command: command.into(),
        ..Spawn::default()
    };
    let (errno, message) = host.refused(Request::Spawn(spawn("nosuch")));
    assert_eq!(errno, ENOENT);
    assert_eq!(
        message,
        "spawn 'nosuch': No such file or directory (os error 2)"
    );
    let (errno, _) = host.refused(Request::Spawn(spawn("")));
    assert_eq!(errno, ENOENT);
    let (errno, message) = host.refused(Request::Spawn(spawn("/etc/passwd")));
    assert_eq!((errno, message.contains("Permission denied")), (13, true));
    let (errno, message) = host.refused(Request::Spawn(Spawn {
        working_directory: Some("/nosuch".into()),
        ..spawn("true")
    }));
    assert_eq!(errno, ENOENT);
    assert_eq!(
        message,
        "spawn 'true': working directory '/nosuch': No such file or directory (os error 2)"
    );

    // The streams of a process that never was are reset before the reply.
    let (id, stdin, stdout) = (host.fresh_id(), host.fresh_id(), host.fresh_id());
    let request = Request::Spawn(Spawn {
        stdin: Some(stdin),
        stdout: Some(stdout),
        ..spawn("nosuch")
    });
    host.send_request(id, &request);
    assert!(host.reply(id).is_err());
    assert_eq!(host.next_for(stdin).kind, FrameKind::Reset);
    assert_eq!(host.next_for(stdout).kind, FrameKind::Reset);

    // Relative to the working directory, and with the process's own PATH.
    host.shell("mkdir -p bin; printf '#!/bin/sh\\necho found' > bin/tool; chmod +x bin/tool");
    let mut run = |spawn: Spawn| {
        let stdout = host.fresh_id();
        host.spawned(Spawn {
            stdout: Some(stdout),
            ..spawn
        });
        host.collect(stdout)
    };
    assert_eq!(run(spawn("bin/tool")), b"found\n");
    assert_eq!(
        run(Spawn {
            environment: [("PATH".to_owned(), "/nosuch:bin".to_owned())].into(),
            ..spawn("tool")
        }),
        b"found\n"
    );
    assert_eq!(
        run(Spawn {
            working_directory: Some("bin".into()),
            ..spawn("./tool")
        }),
        b"found\n"
    );
}

#[test]
fn signals_reach_their_process_only() {
    let (_sandbox, mut host) = Sandbox::start();
    let suicide = host.spawned(shell("kill -9 $$"));
    assert_eq!(host.wait(suicide), killed(9));

    let pid = host.spawned(shell("sleep 1000"));
    let kill = |pid, signal| Request::Kill { pid, signal };
    assert_eq!(host.refused(kill(pid, 12345)).0, libc::EINVAL);
    // Two waits and other work at the same time.
    let (first, second) = (host.fresh_id(), host.fresh_id());
    host.send_request(first, &Request::Wait { pid });
    host.send_request(second, &Request::Wait { pid });
    assert_eq!(host.shell("echo still here"), "still here\n");
    assert_eq!(host.call(kill(pid, 15)), Ok(Answer::Done));
    assert_eq!(host.reply(first), Ok(Answer::Exited(killed(15))));
    assert_eq!(host.reply(second), Ok(Answer::Exited(killed(15))));

    assert_eq!(host.refused(kill(pid, 15)).0, libc::ESRCH);
    for nobody in [0, 1, 99_999, u32::MAX] {
        assert_eq!(host.refused(kill(nobody, 9)).0, libc::ESRCH);
        assert_eq!(host.refused(Request::Wait { pid: nobody }).0, libc::ESRCH);
    }
}

#[test]
fn hanging_up_reaches_the_whole_group() {
    let (_sandbox, mut host) = Sandbox::start();
    let script = "sleep 1001 & setsid sleep 1002 & echo ready; wait";
    let process = host.spawn(shell(script));
    let running = |host: &mut crate::harness::Host| host.shell("pgrep -a sleep | cut -d' ' -f3");
    let deadline = Instant::now() + Duration::from_secs(20);
    while running(&mut host) != "1001\n1002\n" {
        assert!(Instant::now() < deadline);
    }
    let pid = process.pid;
    assert_eq!(host.call(Request::HangUp { pid }), Ok(Answer::Done));
    assert_eq!(host.wait(pid), killed(1));
    while running(&mut host) != "1002\n" {
        assert!(Instant::now() < deadline);
    }
    for nobody in [pid, 0, 1, u32::MAX] {
        assert_eq!(host.refused(Request::HangUp { pid: nobody }).0, libc::ESRCH);
    }
}

#[test]
fn orphans_are_reaped() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell("for i in 1 2 3 4 5; do (sleep 0.0$i &) ; done; setsid true &");
    let deadline = Instant::now() + Duration::from_secs(20);
    // The counting shell and its grep are not zombies.
    let script = "grep -l '^State:.Z' /proc/[0-9]*/status; pgrep -x sleep";
    while !host.shell(script).is_empty() {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn many_short_processes_lose_nothing() {
    let (_sandbox, mut host) = Sandbox::start();
    let mut spawns = Vec::new();
    for number in 0..150 {
        let (id, stdout) = (host.fresh_id(), host.fresh_id());
        let request = Request::Spawn(Spawn {
            command: "sh".into(),
            args: vec!["-c".into(), format!("echo {number}; exit {number}")],
            stdout: Some(stdout),
            ..Spawn::default()
        });
        host.send_request(id, &request);
        spawns.push((number, id, stdout));
    }
    for (number, id, stdout) in spawns {
        let Ok(Answer::Spawned { pid }) = host.reply(id) else {
            panic!("{number}");
        };
        assert_eq!(host.collect(stdout), format!("{number}\n").as_bytes());
        assert_eq!(host.wait(pid), exited(number));
    }
}
