//! What a sandbox can see and do.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use sandstone_runtime::{MountSpec, RootTree};

use crate::support::{Disk, Host, mount_at, tmpfs, wait_for};

#[test]
fn owners_on_disk_are_those_inside() {
    let host = Host::new();
    let scratch = Disk::new(host.dir.path(), "scratch");
    let volume = Disk::new(host.dir.path(), "volume");
    let mut spec = host.spec_on("one", scratch.mount());
    spec.mounts.push(mount_at(volume.mount(), "/data"));
    host.start_spec(spec);
    host.root(
        "one",
        "mkdir -m 777 /home/test /data/shared && touch /home/test/r /data/r",
    );
    let (code, output) = host.script("one", 1000, "touch /home/test/u /data/shared/u; id -u");
    assert_eq!((code, output.trim()), (0, "1000"));
    assert_eq!(
        host.root("one", "stat -c %u:%g / /data /home/test/u"),
        "0:0\n0:0\n1000:1000"
    );
    host.runtime().kill("one").unwrap();
    for (disk, path, owner) in [
        (&scratch, "upper", 0),
        (&scratch, "upper/home/test/r", 0),
        (&scratch, "upper/home/test/u", 1000),
        (&volume, "r", 0),
        (&volume, "shared/u", 1000),
    ] {
        let root = disk.mount();
        let stat = rustix::fs::statat(&root, path, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (owner, owner), "{path}");
    }
}

#[test]
fn root_inside_is_nobody_outside() {
    let host = Host::new();
    let running = host.start("one");
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid)).unwrap();
    let base = host.config.uid_base + u32::from(running.slot) * 65536;
    assert!(
        status.contains(&format!("Uid:\t{base}\t{base}\t{base}\t{base}\n")),
        "{status}"
    );
    assert!(status.contains("\nGroups:\t \n"), "{status}");
    // Fourteen capabilities in the bounding set, none inheritable or ambient.
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(field("CapBnd:"), "00000000a80425fb");
    assert_eq!(field("CapPrm:"), "00000000a80425fb");
    assert_eq!(field("CapInh:"), "0000000000000000");
    assert_eq!(field("CapAmb:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "0");
    assert_eq!(field("Seccomp:"), "2");
    // The agent's file is the host's: readable, never writable.
    let (code, _) = host.script("one", 0, "cp /bin/true /proc/1/exe || exec 3>/proc/1/exe");
    assert_ne!(code, 0);
    // Files of the host's root that only root may read belong to somebody else's root: here the
    // base image is the host itself, so they are the sandbox's own; nothing else is.
    assert_eq!(
        host.root("one", "cat /proc/self/uid_map | tr -s ' '"),
        format!(" 0 {base} 65536")
    );
}

#[test]
fn setuid_programs_work() {
    let host = Host::new();
    host.start("one");
    host.root(
        "one",
        "cp /usr/bin/id /usr/local/bin/rootid; chmod 4755 /usr/local/bin/rootid",
    );
    let (code, output) = host.script("one", 1000, "/usr/local/bin/rootid -u; /usr/bin/id -u");
    assert_eq!((code, output.as_str()), (0, "0\n1000\n"));
}

#[test]
fn only_the_agents_descriptors_are_open() {
    let host = Host::new();
    let running = host.start("one");
    let listed = || {
        let mut open: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", running.pid))
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let target = std::fs::read_link(entry.path()).ok()?;
                let number: u32 = entry.file_name().to_str()?.parse().ok()?;
                Some((number, target.to_str()?.to_owned()))
            })
            .collect();
        open.sort();
        open
    };
    // The test agent closes its ready pipe, 4, after writing to it.
    let open = wait_for(Duration::from_secs(5), || {
        let open = listed();
        (open.len() == 4 && open[3].0 == 3).then_some(open)
    });
    let open = open.unwrap_or_else(|| panic!("{:?}", listed()));
    assert!(
        open[..3].iter().all(|(_, target)| target == "/dev/null"),
        "{open:?}"
    );
    assert!(open[3].1.starts_with("socket:"), "{open:?}");
    let environment = std::fs::read(format!("/proc/{}/environ", running.pid)).unwrap();
    assert!(environment.is_empty());
}

#[test]
fn the_host_is_out_of_sight() {
    let host = Host::new();
    host.start("one");
    // No mount but its own.
    let mounts = host.root("one", "cut -d' ' -f5 /proc/self/mountinfo");
    assert!(
        mounts.lines().all(|mount| mount == "/"
            || ["/dev", "/proc", "/run", "/sys"]
                .iter()
                .any(|top| mount.starts_with(top))),
        "{mounts}"
    );
    let sources = host.root("one", "cut -d- -f2- /proc/self/mountinfo");
    assert!(!sources.contains("/dev/"), "{sources}");
    // No process but its own.
    let pids = host.root("one", "echo /proc/[0-9]* | wc -w");
    assert!(pids.parse::<u32>().unwrap() < 6, "{pids}");
    assert_eq!(
        host.root("one", "tr '\\0' ' ' < /proc/1/cmdline"),
        "sandstone-agent"
    );
    // No secrets of proc and sys.
    assert_eq!(
        host.root(
            "one",
            "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware | wc -l"
        ),
        "0\n0"
    );
    // No cgroup names of the host.
    let cgroups = host.root("one", "cat /proc/self/cgroup");
    assert!(!cgroups.contains(&host.config.instance), "{cgroups}");
    // Its own kernel objects.
    assert_eq!(
        host.root("one", "ls /dev/mqueue | wc -l; ls /sys/class/net"),
        "0\neth0\nlo"
    );
}

#[test]
fn a_sandbox_cannot_use_up_what_others_need() {
    let host = Host::new();
    host.start("one");
    host.start("two");
    // More inotify instances than one user of the host may have.
    let limit: u32 = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_instances")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let take = |count: u32| {
        format!(
            "python3 -c '
import ctypes, time
c = ctypes.CDLL(None)
taken = [c.inotify_init() for _ in range({count})]
print(sum(fd >= 0 for fd in taken), flush=True)
time.sleep(1)'"
        )
    };
    let most = limit.min(900);
    std::thread::scope(|scope| {
        let taken: Vec<_> = ["one", "two"]
            .map(|name| scope.spawn(|| host.root(name, &take(most))))
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(taken, [most.to_string(), most.to_string()]);
    });
}

#[test]
fn privileged_operations_are_refused() {
    let host = Host::new();
    host.start("one");
    for script in [
        "mount -t tmpfs none /mnt",
        "mount --bind /etc /mnt",
        "umount /proc/kcore",
        "umount -l /proc",
        "mount -o remount,rw /sys",
        "unshare --user true",
        "unshare --map-root-user --mount true",
        "unshare --mount true",
        "nsenter --target 1 --net true",
        "mknod /tmp/disk b 254 0",
        // What these would do is harmless, should they succeed.
        "cat /proc/sys/kernel/sysrq > /tmp/x; cat /tmp/x > /proc/sys/kernel/sysrq",
        "echo h > /proc/sysrq-trigger",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "cat /proc/sys/kernel/core_pattern > /tmp/x; cat /tmp/x > /proc/sys/kernel/core_pattern",
        "mkdir /sys/fs/cgroup/x",
        "ip link add dummy0 type dummy",
        "ip address add 10.0.0.1/8 dev eth0",
        "nft add table inet x",
        "hostname other",
        "date -s \"$(date)\"",
        "chroot /proc/1/root/.. test -e /lower",
        "dmesg",
        "losetup -f /etc/hostname",
        "cat /dev/vda",
        "echo -1000 > /proc/self/oom_score_adj",
        "kill -9 1; test ! -d /proc/1",
    ] {
        let (code, output) = host.script("one", 0, script);
        assert_ne!(code, 0, "{script}: {output}");
    }
    assert_eq!(host.root("one", "echo alive"), "alive");
}

#[test]
fn ordinary_things_work() {
    let host = Host::new();
    host.start("one");
    for script in [
        "echo x > /dev/null && head -c 4 /dev/urandom | wc -c && test -c /dev/tty",
        "echo x > /dev/full && exit 1; true",
        "echo hello > /dev/stdout",
        "echo data > /dev/shm/x && test -w /run && test -d /run",
        "test -k /dev/shm",
        "mkfifo /tmp/fifo && rm /tmp/fifo",
        "mv /usr/share/doc /usr/share/doc2 && test -d /usr/share/doc2",
        "chown 1000:1000 /etc/hostname && chmod 600 /etc/hostname",
        "script -qc 'tty' /dev/null | grep -q /dev/pts/",
        "python3 -c 'import threading; t = threading.Thread(target=print); t.start(); t.join()'",
        "curl --version > /dev/null",
        "chroot / true",
        "sleep 5 & kill $!",
        "ulimit -n | grep -x 4096",
        "cat /proc/cpuinfo /proc/meminfo /proc/stat > /dev/null && nproc",
        "setpriv --reuid 1000 --regid 1000 --clear-groups id",
    ] {
        let (code, output) = host.script("one", 0, script);
        assert_eq!(code, 0, "{script}: {output}");
    }
}

#[test]
fn volumes_go_where_they_should() {
    let host = Host::new();
    let mut spec = host.spec("one");
    for path in ["/data", "/data/inner/deep", "/home/x y/ü"] {
        spec.mounts.push(mount_at(tmpfs(), path));
    }
    host.start_spec(spec);
    assert_eq!(
        host.root("one", "stat -c '%u:%g %a' /data/inner '/home/x y'; grep -c tmpfs.sandstone /proc/mounts || true; mountpoint -q /data && mountpoint -q /data/inner/deep && mountpoint -q '/home/x y/ü' && echo mounted"),
        "0:0 755\n0:0 755\n0\nmounted"
    );
}

/// The host's programs.
fn usr() -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(rustix::fs::CWD, "/usr", flags).unwrap()
}

#[test]
fn a_root_of_its_own_keeps_what_is_written() {
    let host = Host::new();
    let disk = Disk::new(host.dir.path(), "root");
    let start = |name: &str| {
        // Without its programs: those come from a tree that nothing can be written to.
        let mut spec = host.spec_from(name, RootTree::Whole(disk.mount()));
        spec.mounts.push(MountSpec {
            read_only: true,
            ..mount_at(usr(), "/usr")
        });
        host.start_spec(spec);
    };
    {
        let root = disk.mount();
        for dir in ["bin", "lib", "lib64", "sbin"] {
            rustix::fs::symlinkat(format!("usr/{dir}"), &root, dir).unwrap();
        }
    }
    start("one");
    assert_eq!(
        host.root("one", "findmnt -no FSTYPE /; stat -c %u:%g /"),
        "ext4\n0:0"
    );
    host.root(
        "one",
        "mkdir -m 777 /home; cp /usr/bin/id /home/rootid; chmod 4755 /home/rootid",
    );
    let (code, output) = host.script("one", 1000, "echo kept > /home/file; /home/rootid -u");
    assert_eq!((code, output.as_str()), (0, "0\n"));
    for script in [
        "touch /usr/new",
        "chmod 700 /usr",
        "mount -o remount,rw /usr",
    ] {
        assert_ne!(host.script("one", 0, script).0, 0, "{script}");
    }
    host.runtime().kill("one").unwrap();
    assert!(!disk.is_mounted());

    start("two");
    assert_eq!(
        host.root("two", "cat /home/file; stat -c %u:%g /home/file"),
        "kept\n1000:1000"
    );
    host.runtime().kill("two").unwrap();
    // What was mounted in it has left nothing but empty directories.
    let root = disk.mount();
    for dir in ["proc", "sys", "dev", "run", "usr"] {
        assert_eq!(entries(&root, dir), 0, "{dir}");
    }
}

/// How many files a directory holds.
fn entries(root: &OwnedFd, dir: &str) -> usize {
    let dir = rustix::fs::openat(root, dir, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    rustix::fs::Dir::new(dir.unwrap()).unwrap().count() - 2
}

#[test]
fn links_in_the_image_do_not_lead_out() {
    let host = Host::new();
    // A base image with a link where a volume is to go.
    let image = host.dir.path().join("image");
    for dir in ["proc", "sys", "dev", "run", "inside"] {
        std::fs::create_dir_all(image.join(dir)).unwrap();
    }
    for dir in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{dir}"), image.join(dir)).unwrap();
    }
    std::os::unix::fs::symlink("../../../../../../inside", image.join("climbing")).unwrap();
    std::os::unix::fs::symlink("/proc/self/root/inside", image.join("magic")).unwrap();
    let tree = rustix::fs::open(&image, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let base = || {
        rustix::mount::open_tree(
            &tree,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        )
        .unwrap()
    };
    let layers = || RootTree::Layers {
        base: base(),
        scratch: tmpfs(),
    };
    let mut spec = host.spec_from("one", layers());
    spec.mounts = vec![
        mount_at(usr(), "/usr"),
        mount_at(tmpfs(), "/climbing/volume"),
    ];
    host.start_spec(spec);
    assert_eq!(
        host.root("one", "mountpoint /inside/volume"),
        "/inside/volume is a mountpoint"
    );
    host.runtime().kill("one").unwrap();

    let mut spec = host.spec_from("two", layers());
    spec.mounts = vec![mount_at(usr(), "/usr"), mount_at(tmpfs(), "/magic/volume")];
    host.runtime().start(host.prepare(), spec).unwrap_err();
    assert_eq!(std::fs::metadata(image.join("inside")).unwrap().uid(), 0);
    assert_eq!(std::fs::read_dir(image.join("inside")).unwrap().count(), 0);
    std::fs::remove_dir_all(&image).unwrap();
}
