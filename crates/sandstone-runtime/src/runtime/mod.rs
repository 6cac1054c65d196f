//! The server's side: what exists, and how it is made and removed.

mod registry;
mod start;
mod teardown;

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::{Cgroups, Limits};
use crate::control::{Channel, Link, Prepare, Progress};
use crate::error::Step;
use crate::network::closed::{self, Doors};
use crate::network::{firewall, link};
use crate::process::{Helper, ProcessId};
use crate::shim::failure_source;
use crate::slot::{Slot, SlotFiles, State};
use crate::{Error, RuntimeConfig, seccomp};
use registry::{Hold, Registry};
use std::os::fd::AsFd;

/// Bound on each phase of a start. One takes milliseconds on an idle host.
const PHASE_LIMIT: Duration = Duration::from_secs(10);

/// Makes and removes the sandboxes of one data directory.
///
/// Every call blocks, for a bounded time. All of them may be made from several threads. There
/// must be one `Runtime` an instance at a time.
#[derive(Debug)]
pub struct Runtime {
    config: RuntimeConfig,
    cgroups: Cgroups,
    registry: Registry,
    seccomp: Vec<u8>,
    /// Opened once: a sandbox started later runs the same agent, even if the file was replaced.
    agent: OwnedFd,
}

/// A sandbox without root, name or limits, which waits for [`Runtime::start`]. Give it up with
/// [`Runtime::discard`]; one that is only dropped is removed by the next [`Runtime::sweep`].
#[derive(Debug)]
pub struct Prepared {
    channel: Channel,
    shim: Helper,
    init: ProcessId,
    init_pidfd: OwnedFd,
    hold: Hold,
}

/// What a sandbox is to be.
#[derive(Debug)]
pub struct StartSpec {
    /// Its name, unique in the instance: one to 64 letters, digits, `-` and `_`.
    pub name: String,
    /// Its host name, at most 64 bytes.
    pub hostname: String,
    /// Memory limit, bytes. Swap is not used.
    pub memory_bytes: u64,
    /// Processor limit, thousandths of one processor.
    pub cpu_millis: u32,
    /// Most processes and threads.
    pub pids_max: u32,
    /// Most open files of each process that the agent starts. The agent itself may have as many as
    /// the server; no process gets more than that.
    pub open_files: u32,
    /// What its `/` is.
    pub root: RootTree,
    /// Other file systems in it: a path before what lies below it. At most 64.
    pub mounts: Vec<MountSpec>,
    /// Where the agent's socket appears. Its directory must exist and be the server's own.
    pub agent_socket: PathBuf,
}

/// The root of a sandbox, in detached mounts that are not id-mapped yet.
#[derive(Debug)]
pub enum RootTree {
    /// One tree under another, as an overlay.
    Layers {
        /// The tree below. Made read-only here.
        base: OwnedFd,
        /// An empty, bounded file system, which takes what the sandbox writes.
        scratch: OwnedFd,
    },
    /// One tree, read-write: what the sandbox writes stays in it.
    Whole(OwnedFd),
}

/// A file system in a sandbox.
#[derive(Debug)]
pub struct MountSpec {
    /// Detached mount, not id-mapped yet.
    pub tree: OwnedFd,
    /// The absolute path it goes to. Missing directories are made.
    pub path: String,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// A sandbox that was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// Host process id of its PID 1.
    pub pid: u32,
    /// When that process started, clock ticks since boot: the number alone may have changed
    /// hands.
    pub started: u64,
}

impl Runtime {
    /// Checks the host and makes what all sandboxes of the instance share: cgroups, firewall
    /// rules, and forwarding of IPv4. Finds the sandboxes that an earlier server left.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Host`], [`Error::Firewall`], [`Error::Io`].
    pub fn open(config: RuntimeConfig) -> Result<Self, Error> {
        config.check()?;
        let seccomp = seccomp::encode(&seccomp::compile());
        let agent = fs::File::open(&config.agent.executable)
            .step(|| format!("open {}", config.agent.executable.display()))?;
        let registry = Registry::open(SlotFiles::open(&config.slots_dir, &config.instance)?)?;
        let cgroups = Cgroups::open(&config.instance)?;
        firewall::install(&config)?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").step(|| "forward IPv4 packets")?;
        Ok(Self {
            config,
            cgroups,
            registry,
            seccomp,
            agent: agent.into(),
        })
    }

    /// Removes what [`Runtime::open`] made, except that IPv4 is still forwarded.
    ///
    /// # Errors
    /// [`Error::Io`] when a sandbox is left; the firewall rules stay then.
    pub fn close(&self) -> Result<(), Error> {
        self.cgroups.close()?;
        firewall::remove(&self.config)
    }

    /// Makes a sandbox up to the point where it must be known what it is for.
    ///
    /// # Errors
    /// [`Error::SlotsExhausted`], [`Error::Setup`], [`Error::Ended`], [`Error::Timeout`],
    /// [`Error::Io`]. Nothing of the sandbox is left then, or the next sweep removes it.
    pub fn prepare(&self) -> Result<Prepared, Error> {
        let hold = self.registry.claim()?;
        match self.prepare_in(hold.slot()) {
            Ok((channel, shim, init, init_pidfd)) => {
                let prepared = Prepared {
                    channel,
                    shim,
                    init,
                    init_pidfd,
                    hold,
                };
                let recorded = prepared.hold.update(|record| {
                    record.state = State::Parked;
                    record.init = Some(init);
                });
                match recorded {
                    Ok(()) => Ok(prepared),
                    Err(error) => {
                        self.undo(prepared);
                        Err(error)
                    }
                }
            }
            Err(error) => {
                self.tear_down_after_failure(hold);
                Err(error)
            }
        }
    }

    fn prepare_in(&self, slot: Slot) -> Result<(Channel, Helper, ProcessId, OwnedFd), Error> {
        let deadline = Instant::now() + PHASE_LIMIT;
        // Of a sandbox that had the slot a moment ago.
        let link = self.config.slot_link(slot);
        link::delete(&link).step(|| format!("remove link {link}"))?;
        let cgroups = self.cgroups.create(slot)?;
        let (host, sandbox) = self.config.slot_addresses(slot);
        let message = Prepare {
            uid_base: self.config.slot_uid_base(slot),
            unified_cgroup: self.cgroups.is_unified(),
            link: Link {
                name: link,
                host,
                sandbox,
            },
            seccomp: self.seccomp.clone(),
        };
        let (channel, theirs) = Channel::pair().step(|| "make a socket pair")?;
        // Nothing of the server's environment is for the shim, let alone for a sandbox.
        let shim = Command::new(&self.config.shim.program)
            .args(&self.config.shim.args)
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .step(|| format!("run {}", self.config.shim.program.display()))?;
        let shim = Helper::new(shim);
        let fds: Vec<_> = cgroups.iter().map(AsFd::as_fd).collect();
        channel
            .send(&message, &fds)
            .step(|| "send the settings to the shim")?;
        drop(cgroups);
        let (progress, fds) = receive(&channel, deadline, "being prepared")?;
        let Progress::Parked { pid } = progress else {
            return Err(failure(progress));
        };
        let pid = rustix::process::Pid::from_raw(pid).ok_or(Error::Ended("being prepared"))?;
        let init = ProcessId::of(pid).step(|| format!("inspect process {pid}"))?;
        let pidfd = fds
            .into_iter()
            .next()
            .ok_or(Error::Ended("being prepared"))?;
        Ok((channel, shim, init, pidfd))
    }

    /// Takes a prepared sandbox's link away and leads its connections to doors instead, at which
    /// the caller decides about each. Nothing else leaves it.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Firewall`]. The sandbox must not be started then.
    pub fn close_network(&self, prepared: &Prepared) -> Result<Doors, Error> {
        let link = self.config.slot_link(prepared.hold.slot());
        link::delete(&link).step(|| format!("remove link {link}"))?;
        closed::close(network_of(prepared.init)?.as_fd())
    }

    /// New doors for a sandbox whose network was closed when it started: those that it had ended
    /// with the server that served them.
    ///
    /// # Errors
    /// [`Error::Unknown`], also when it has ended; [`Error::Io`], [`Error::Firewall`].
    pub fn reopen_doors(&self, name: &str) -> Result<Doors, Error> {
        let unknown = || Error::Unknown(name.to_owned());
        let (slot, record) = self.registry.find(name).ok_or_else(unknown)?;
        let init = record.init.ok_or_else(unknown)?;
        // A sandbox is never left with both, whatever the record says.
        let link = self.config.slot_link(slot);
        link::delete(&link).step(|| format!("remove link {link}"))?;
        closed::close(network_of(init)?.as_fd())
    }

    /// All sandboxes that were started and not killed, also by an earlier server, whether or not
    /// their processes live. In no particular order.
    ///
    /// # Errors
    /// None at present.
    pub fn list(&self) -> Result<Vec<Running>, Error> {
        Ok(self.registry.running())
    }

    /// How much of what sandboxes wrote to files is not on its way to a disk yet, bytes. What ended
    /// sandboxes left counts as well.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unwritten(&self) -> Result<u64, Error> {
        self.cgroups.unwritten()
    }

    /// How many processes of a sandbox the kernel killed so far because its memory ran out.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Io`].
    pub fn oom_kills(&self, name: &str) -> Result<u64, Error> {
        let (slot, _) = self
            .registry
            .find(name)
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        self.cgroups.oom_kills(slot)
    }

    /// A pidfd of the sandbox's PID 1: readable once that has ended.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::Io`].
    pub fn exited(&self, name: &str) -> Result<OwnedFd, Error> {
        let (_, record) = self
            .registry
            .find(name)
            .ok_or_else(|| Error::Unknown(name.to_owned()))?;
        let pidfd = match record.init {
            Some(init) => init.open().step(|| format!("open process {}", init.pid))?,
            None => None,
        };
        match pidfd {
            Some(pidfd) => Ok(pidfd),
            // It has ended already: something that is readable from the start.
            None => rustix::event::eventfd(1, rustix::event::EventfdFlags::CLOEXEC)
                .step(|| "make an event"),
        }
    }

    fn limit(&self, slot: Slot, spec: &StartSpec) -> Result<(), Error> {
        self.cgroups.limit(
            slot,
            Limits {
                memory_bytes: spec.memory_bytes,
                cpu_millis: spec.cpu_millis,
                pids_max: spec.pids_max,
            },
        )
    }
}

/// The network name space of a sandbox's PID 1.
fn network_of(init: ProcessId) -> Result<fs::File, Error> {
    let path = format!("/proc/{}/ns/net", init.pid);
    let namespace = fs::File::open(&path).step(|| format!("open {path}"))?;
    // Checked after opening: else it could be that of a later process with the same number.
    match init.open().step(|| format!("open process {}", init.pid))? {
        Some(_) => Ok(namespace),
        None => Err(Error::Ended("its network was being closed")),
    }
}

/// The shim's next message. `doing` is what the sandbox is doing meanwhile.
fn receive(
    channel: &Channel,
    deadline: Instant,
    doing: &'static str,
) -> Result<(Progress, Vec<OwnedFd>), Error> {
    match channel.receive(Some(deadline)) {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Error::Ended(doing)),
        Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(Error::Timeout {
            step: doing.to_owned(),
            limit: PHASE_LIMIT,
        }),
        Err(error) => Err(Error::io("hear from the shim", error)),
    }
}

fn failure(progress: Progress) -> Error {
    match progress {
        Progress::Failed { step, errno } => Error::Setup {
            step,
            source: failure_source(errno),
        },
        Progress::Parked { .. } | Progress::Started => Error::Setup {
            step: "unexpected message".to_owned(),
            source: failure_source(None),
        },
    }
}
