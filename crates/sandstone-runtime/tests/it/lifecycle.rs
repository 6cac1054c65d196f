//! Making, finding and removing.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use sandstone_runtime::{Error, RootTree, Runtime};

use crate::support::{Disk, HELPER, Host, base, mount, mount_at, processes, tmpfs, wait_for};

fn readable(fd: impl AsFd, limit: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: limit.as_secs().cast_signed(),
        tv_nsec: limit.subsec_nanos().into(),
    };
    let mut polled = [PollFd::new(&fd, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&timeout)).unwrap() == 1
}

#[test]
fn a_sandbox_runs_and_ends() {
    let host = Host::new();
    let running = host.start("one");
    assert_eq!(host.root("one", "hostname"), "host-one");
    assert_eq!(host.runtime().list().unwrap(), [running]);
    let exited = host.runtime().exited("one").unwrap();
    assert!(!readable(&exited, Duration::ZERO));
    host.runtime().kill("one").unwrap();
    assert!(readable(&exited, Duration::ZERO));
    host.assert_clean();
    host.runtime().kill("one").unwrap();
    host.runtime().kill("never").unwrap();
    assert!(host.runtime().list().unwrap().is_empty());
    assert!(matches!(
        host.runtime().exited("one"),
        Err(Error::Unknown(_))
    ));
}

#[test]
fn the_end_of_pid_1_is_seen_and_the_rest_removed() {
    let host = Host::new();
    let running = host.start("one");
    let exited = host.runtime().exited("one").unwrap();
    let pid = rustix::process::Pid::from_raw(running.pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(readable(&exited, Duration::from_secs(5)));
    assert_eq!(host.runtime().list().unwrap().len(), 1);
    assert!(readable(
        host.runtime().exited("one").unwrap(),
        Duration::from_secs(5)
    ));
    host.runtime().kill("one").unwrap();
    host.assert_clean();
}

#[test]
fn a_new_server_finds_and_kills_what_the_old_one_started() {
    let mut host = Host::new();
    let running = host.start("one");
    let parked = host.prepare();
    host.reopen();
    drop(parked);
    assert_eq!(host.runtime().list().unwrap(), [running]);
    assert_eq!(host.root("one", "echo alive"), "alive");
    assert!(!readable(
        host.runtime().exited("one").unwrap(),
        Duration::ZERO
    ));
    assert_eq!(host.runtime().sweep().unwrap().len(), 1);
    assert_eq!(host.runtime().list().unwrap().len(), 1);
    assert_eq!(host.root("one", "echo alive"), "alive");
    host.runtime().kill("one").unwrap();
    host.assert_clean();
}

#[test]
fn names_are_used_once() {
    let host = Host::new();
    host.start("one");
    let again = host.runtime().start(host.prepare(), host.spec("one"));
    assert!(matches!(again, Err(Error::NameInUse(_))), "{again:?}");
    assert_eq!(host.root("one", "echo alive"), "alive");
    host.runtime().kill("one").unwrap();
    host.start("one");
    assert_eq!(host.root("one", "echo alive"), "alive");
}

#[test]
fn bad_descriptions_are_refused_and_leave_nothing() {
    let host = Host::new();
    for path in ["relative", "/", "/a/../b", "", "/a\0b"] {
        let mut spec = host.spec("one");
        spec.mounts.push(mount_at(tmpfs(), path));
        let result = host.runtime().start(host.prepare(), spec);
        assert!(matches!(result, Err(Error::Config(_))), "{path} {result:?}");
    }
    let mut spec = host.spec("../one");
    spec.agent_socket = host.socket("one");
    assert!(host.runtime().start(host.prepare(), spec).is_err());
    host.assert_clean();
}

#[test]
fn failed_starts_say_which_step_and_leave_nothing() {
    let host = Host::new();
    // procfs cannot be id-mapped.
    let proc = || mount("proc", &[]);
    let under_proc = RootTree::Layers {
        base: base(),
        scratch: proc(),
    };
    for root in [under_proc, RootTree::Whole(proc())] {
        let spec = host.spec_from("one", root);
        let error = host.runtime().start(host.prepare(), spec).unwrap_err();
        assert!(matches!(error, Error::Setup { .. }), "{error:?}");
        host.assert_clean();
    }

    let mut spec = host.spec("one");
    spec.mounts.push(mount_at(tmpfs(), "/etc/passwd"));
    let error = host.runtime().start(host.prepare(), spec).unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
    host.assert_clean();

    // The slot's next user is fine.
    host.start("one");
}

#[test]
fn prepared_and_discarded_leaves_nothing() {
    let host = Host::new();
    let prepared = host.prepare();
    assert!(!host.traces().is_empty());
    host.runtime().discard(prepared).unwrap();
    host.assert_clean();
}

#[test]
fn sweeping_spares_what_is_in_use() {
    let host = Host::new();
    let prepared = host.prepare();
    assert!(host.runtime().sweep().unwrap().is_empty());
    host.runtime().start(prepared, host.spec("one")).unwrap();
    drop(host.prepare());
    assert_eq!(host.runtime().sweep().unwrap().len(), 1);
    assert_eq!(host.root("one", "echo alive"), "alive");
}

#[test]
fn a_killed_server_leaves_only_what_sweep_removes() {
    let mut host = Host::new();
    host.runtime = None;
    let mut server = Command::new(HELPER)
        .arg("server")
        .arg(&host.config.instance)
        .arg(&host.config.slots_dir)
        .arg(host.config.uid_base.to_string())
        .arg(host.config.network.to_string())
        .arg("3")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "parked 3\n");
    let server_pid = server.id();
    let children = || {
        processes()
            .into_iter()
            .filter(|(pid, _)| {
                std::fs::read_to_string(format!("/proc/{pid}/status"))
                    .is_ok_and(|status| status.contains(&format!("\nPPid:\t{server_pid}\n")))
            })
            .map(|(pid, _)| pid)
            .collect::<Vec<_>>()
    };
    let shims = children();
    assert_eq!(shims.len(), 3);
    server.kill().unwrap();
    server.wait().unwrap();
    // Nobody tells the shims to go.
    wait_for(Duration::from_secs(5), || {
        processes()
            .iter()
            .all(|(pid, command)| !shims.contains(pid) || command.is_empty())
            .then_some(())
    })
    .expect("the shims end with their server");
    host.runtime = Some(Runtime::open(host.config.clone()).unwrap());
    assert!(host.runtime().sweep().unwrap().len() >= 3);
    host.assert_clean();
}

#[test]
fn file_systems_end_with_the_sandbox() {
    let host = Host::new();
    let scratch = Disk::new(host.dir.path(), "scratch");
    let volume = Disk::new(host.dir.path(), "volume");
    let mut spec = host.spec_on("one", scratch.mount());
    spec.mounts.push(mount_at(volume.mount(), "/data"));
    host.start_spec(spec);
    host.root(
        "one",
        "exec > /dev/null 2>&1; echo kept > /data/file; \
         (exec 9>>/data/file; sleep 1000 &); cd /data; sleep 1000 &",
    );
    assert!(volume.is_mounted() && scratch.is_mounted());
    host.runtime().kill("one").unwrap();
    assert!(!volume.is_mounted(), "volume still mounted");
    assert!(!scratch.is_mounted(), "scratch still mounted");

    let again = Disk::new(host.dir.path(), "again");
    let mut spec = host.spec_on("two", again.mount());
    spec.mounts.push(mount_at(volume.mount(), "/other/place"));
    host.start_spec(spec);
    assert_eq!(host.root("two", "cat /other/place/file"), "kept");
    host.runtime().kill("two").unwrap();
    assert!(!volume.is_mounted() && !again.is_mounted());
}

#[test]
fn a_parked_shim_holds_no_host_mount() {
    let host = Host::new();
    let volume = Disk::new(host.dir.path(), "volume");
    let target = host.dir.path().join("mounted");
    std::fs::create_dir(&target).unwrap();
    rustix::mount::move_mount(
        volume.mount(),
        "",
        rustix::fs::CWD,
        &target,
        rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .unwrap();
    let prepared = host.prepare();
    rustix::mount::unmount(&target, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(
        wait_for(Duration::from_millis(500), || (!volume.is_mounted())
            .then_some(()))
        .is_some(),
        "the parked shim keeps the file system"
    );
    std::fs::remove_dir(&target).unwrap();
    host.runtime().discard(prepared).unwrap();
}

#[test]
fn twenty_rounds_leave_nothing() {
    let host = Host::new();
    let (mut prepare, mut start, mut kill) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..20 {
        let begin = Instant::now();
        let prepared = host.prepare();
        prepare.push(begin.elapsed());
        let spec = host.spec("round");
        let begin = Instant::now();
        host.runtime().start(prepared, spec).unwrap();
        start.push(begin.elapsed());
        let begin = Instant::now();
        host.runtime().kill("round").unwrap();
        kill.push(begin.elapsed());
        host.assert_clean();
    }
    for (what, mut times) in [("prepare", prepare), ("start", start), ("kill", kill)] {
        times.sort();
        println!("{what}: p50 {:?}, worst {:?}", times[10], times[19]);
    }
}

#[test]
fn many_at_once() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let host = &host;
            scope.spawn(move || {
                for round in 0..3 {
                    let name = format!("w{worker}-{round}");
                    host.start(&name);
                    assert_eq!(host.root(&name, "hostname"), format!("host-{name}"));
                    if round > 0 {
                        host.runtime().kill(&name).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(host.runtime().list().unwrap().len(), 4);
}
