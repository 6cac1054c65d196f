//! Hosts, file systems and conversations for the tests.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use sandstone_runtime::{
    Agent, MountSpec, Prepared, RootTree, Running, Runtime, RuntimeConfig, Shim, StartSpec,
};

pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_runtime-test-helper");

pub(crate) const SLOTS_DIR: &str = "/dev/shm/sandstone-test-slots";
pub(crate) const UID_BASE: u32 = 0x6000_0000;
pub(crate) const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 211, 0, 0);

/// A runtime of its own instance, and what it must leave behind: nothing.
pub(crate) struct Host {
    pub(crate) runtime: Option<Runtime>,
    pub(crate) config: RuntimeConfig,
    pub(crate) dir: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with_holes(Vec::new())
    }

    pub(crate) fn with_holes(allow_private: Vec<(IpAddr, u16)>) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        let config = RuntimeConfig {
            instance: instance(),
            // Out of the way of a server that this host may have, in memory, and shared with
            // whoever runs these tests at the same time.
            slots_dir: SLOTS_DIR.into(),
            uid_base: UID_BASE,
            network: NETWORK,
            shim: Shim {
                program: HELPER.into(),
                args: vec!["shim".to_owned()],
            },
            agent: Agent {
                executable: HELPER.into(),
            },
            allow_private,
        };
        Self {
            runtime: Some(Runtime::open(config.clone()).unwrap()),
            config,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    /// What a restart of the server does.
    pub(crate) fn reopen(&mut self) {
        self.runtime = None;
        self.runtime = Some(Runtime::open(self.config.clone()).unwrap());
    }

    pub(crate) fn spec(&self, name: &str) -> StartSpec {
        self.spec_on(name, tmpfs())
    }

    /// The host's root under this writable layer.
    pub(crate) fn spec_on(&self, name: &str, scratch: OwnedFd) -> StartSpec {
        let base = base();
        self.spec_from(name, RootTree::Layers { base, scratch })
    }

    pub(crate) fn spec_from(&self, name: &str, root: RootTree) -> StartSpec {
        StartSpec {
            name: name.to_owned(),
            hostname: format!("host-{name}"),
            memory_bytes: 512 << 20,
            cpu_millis: 1000,
            pids_max: 256,
            open_files: 4096,
            root,
            mounts: Vec::new(),
            agent_socket: self.socket(name),
        }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }

    pub(crate) fn prepare(&self) -> Prepared {
        self.runtime().prepare().unwrap()
    }

    pub(crate) fn start(&self, name: &str) -> Running {
        self.start_spec(self.spec(name))
    }

    pub(crate) fn start_spec(&self, spec: StartSpec) -> Running {
        self.runtime().start(self.prepare(), spec).unwrap()
    }

    /// Runs a script as root; its output. The script must succeed.
    pub(crate) fn root(&self, name: &str, script: &str) -> String {
        let (code, output) = self.script(name, 0, script);
        assert_eq!(code, 0, "{script}\n{output}");
        output.trim_end().to_owned()
    }

    /// Exit code and output of a script.
    pub(crate) fn script(&self, name: &str, user: u32, script: &str) -> (i32, String) {
        let mut stream = UnixStream::connect(self.socket(name)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        write!(stream, "{user}\n{script}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (code, output) = reply
            .split_once('\n')
            .unwrap_or_else(|| panic!("{reply:?}"));
        (code.parse().unwrap(), output.to_owned())
    }

    /// Everything on the host that carries the instance's name.
    pub(crate) fn traces(&self) -> Vec<String> {
        let instance = &self.config.instance;
        let mut found = Vec::new();
        for link in fs::read_dir("/sys/class/net").unwrap() {
            let name = link.unwrap().file_name().into_string().unwrap();
            if name.starts_with(&format!("sd{instance}")) {
                found.push(format!("link {name}"));
            }
        }
        for dir in cgroup_parents(instance) {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
            }
        }
        for entry in fs::read_dir(SLOTS_DIR).into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path()).is_ok_and(|text| text.contains(instance)) {
                found.push(format!("slot {}", entry.path().display()));
            }
        }
        for entry in fs::read_dir(self.dir.path()).unwrap().flatten() {
            found.push(format!("file {}", entry.path().display()));
        }
        for (pid, command) in processes() {
            if command == ["sandstone-agent"] || command == [HELPER, "shim"] {
                // Others test at the same time: ours are those with our cgroup or our server.
                let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                if cgroup.contains(instance) {
                    found.push(format!("process {pid} {command:?}"));
                }
            }
        }
        found
    }

    pub(crate) fn assert_clean(&self) {
        // A network name space ends in the background.
        let traces = wait_for(Duration::from_secs(5), || {
            let traces = self.traces();
            traces.is_empty().then_some(())
        });
        assert!(traces.is_some(), "{:?}", self.traces());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else {
            return;
        };
        for sandbox in runtime.list().unwrap() {
            runtime.kill(&sandbox.name).unwrap();
        }
        runtime.sweep().unwrap();
        if !std::thread::panicking() {
            self.assert_clean();
        }
        runtime.close().unwrap();
        // Unless others use it.
        let _ = fs::remove_dir(SLOTS_DIR);
    }
}

/// Eight digits that no other test has now.
pub(crate) fn instance() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{:06x}{:02x}",
        std::process::id() & 0xff_ffff,
        number & 0xff
    )
}

pub(crate) fn cgroup_parents(instance: &str) -> Vec<PathBuf> {
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|entry| entry.path()),
    );
    roots
        .into_iter()
        .map(|root| root.join("sandstone").join(instance))
        .filter(|dir| dir.is_dir())
        .collect()
}

/// Processes and their command lines.
pub(crate) fn processes() -> Vec<(u32, Vec<String>)> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = command
                .split(|byte| *byte == 0)
                .filter(|argument| !argument.is_empty())
                .map(|argument| String::from_utf8_lossy(argument).into_owned())
                .collect();
            Some((pid, command))
        })
        .collect()
}

pub(crate) fn wait_for<T>(limit: Duration, mut check: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = check() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        sleep(Duration::from_millis(5));
    }
}

/// The host's root directory, as a base image.
pub(crate) fn base() -> OwnedFd {
    rustix::mount::open_tree(
        CWD,
        "/",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .unwrap()
}

/// A file system for a sandbox to write to.
pub(crate) fn mount_at(tree: OwnedFd, path: &str) -> MountSpec {
    MountSpec {
        tree,
        path: path.to_owned(),
        read_only: false,
    }
}

pub(crate) fn tmpfs() -> OwnedFd {
    mount("tmpfs", &[("size", "64m"), ("mode", "755")])
}

pub(crate) fn mount(kind: &str, options: &[(&str, &str)]) -> OwnedFd {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value).unwrap();
    }
    rustix::mount::fsconfig_create(&context).unwrap();
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .unwrap()
}

/// An ext4 file system in a file, on a loop device.
pub(crate) struct Disk {
    pub(crate) device: String,
}

impl Disk {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let image = dir.join(name);
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new("mkfs.ext4")
            .args(["-q", "-b", "4096"])
            .arg(&image));
        let device = run(Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&image));
        // The device keeps the content.
        fs::remove_file(&image).unwrap();
        Self {
            device: device.trim().to_owned(),
        }
    }

    pub(crate) fn mount(&self) -> OwnedFd {
        mount("ext4", &[("source", &self.device)])
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let name = self.device.rsplit('/').next().unwrap();
        Path::new("/sys/fs/ext4").join(name).exists()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.device]));
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
