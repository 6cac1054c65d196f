//! What a runtime is told when it is opened.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::slot::{SLOT_COUNT, Slot};

/// User and group ids of one sandbox.
pub(crate) const IDS_PER_SLOT: u32 = 65_536;

/// Settings of a [`Runtime`](crate::Runtime).
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Eight lower-case hexadecimal digits, unique to the data directory: part of every kernel
    /// object's name.
    pub instance: String,
    /// Where slots are claimed. All servers of a host must use the same directory, so that no two
    /// sandboxes share user ids or addresses. It must not outlive a reboot.
    pub slots_dir: PathBuf,
    /// First user id of slot 0. Slot n owns 65,536 ids from `uid_base + n * 65,536` on.
    pub uid_base: u32,
    /// A /16 network. Slot n owns its n-th /30: the host has the first usable address, the
    /// sandbox the second.
    pub network: Ipv4Addr,
    /// The program that serves as shim.
    pub shim: Shim,
    /// The program that becomes PID 1 of each sandbox.
    pub agent: Agent,
    /// Addresses and ports that sandboxes may reach over UDP and TCP although they are private or
    /// the host's own, such as the host's name server. IPv6 addresses have no effect: sandboxes
    /// have no IPv6.
    pub allow_private: Vec<(IpAddr, u16)>,
}

/// How to start a shim: a program that calls [`shim_main`](crate::shim_main) before it starts any
/// thread.
#[derive(Debug, Clone)]
pub struct Shim {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// The agent: an executable that needs nothing from the sandbox's file system.
///
/// It is started with the argument `sandstone-agent` alone and an empty environment, as root of
/// the sandbox. Descriptor 3 is a listening unix stream socket; on descriptor 4 it writes one byte
/// once it accepts connections.
#[derive(Debug, Clone)]
pub struct Agent {
    /// A file that only root can write.
    pub executable: PathBuf,
}

impl RuntimeConfig {
    /// Default of [`RuntimeConfig::slots_dir`].
    pub const SLOTS_DIR: &str = "/run/sandstone/slots";
    /// Default of [`RuntimeConfig::uid_base`]: far above what distributions hand out.
    pub const UID_BASE: u32 = 0x1000_0000;
    /// Default of [`RuntimeConfig::network`].
    pub const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 209, 0, 0);

    pub(crate) fn check(&self) -> Result<(), Error> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if self.instance.len() != 8 || !self.instance.bytes().all(hex) {
            return Err(Error::Config(format!(
                "instance {:?} is not eight lower-case hexadecimal digits",
                self.instance
            )));
        }
        let ids = u32::from(SLOT_COUNT) * IDS_PER_SLOT;
        // The last id, 2^32 - 1, means "none".
        if self.uid_base < IDS_PER_SLOT || self.uid_base > u32::MAX - ids {
            return Err(Error::Config(format!(
                "user ids from {} on leave no room for {SLOT_COUNT} sandboxes",
                self.uid_base
            )));
        }
        if self.network.octets()[2..] != [0, 0] {
            return Err(Error::Config(format!("{} is not a /16", self.network)));
        }
        check_trusted(&self.shim.program)?;
        check_trusted(&self.agent.executable)
    }

    pub(crate) fn slot_uid_base(&self, slot: Slot) -> u32 {
        self.uid_base + u32::from(slot.number()) * IDS_PER_SLOT
    }

    /// The host's and the sandbox's address.
    pub(crate) fn slot_addresses(&self, slot: Slot) -> (Ipv4Addr, Ipv4Addr) {
        let first = u32::from(self.network) + u32::from(slot.number()) * 4;
        (Ipv4Addr::from(first + 1), Ipv4Addr::from(first + 2))
    }

    /// The host's end of the sandbox's network, at most 15 bytes.
    pub(crate) fn slot_link(&self, slot: Slot) -> String {
        format!("{}{}", self.link_prefix(), slot.base36())
    }

    /// What the names of all our links start with.
    pub(crate) fn link_prefix(&self) -> String {
        format!("sd{}", self.instance)
    }
}

/// A program that runs as host root, or that a sandbox sees as `/proc/1/exe`, must not be
/// writable by anybody but root.
fn check_trusted(program: &Path) -> Result<(), Error> {
    let metadata = program
        .metadata()
        .map_err(|source| Error::io(format!("inspect {}", program.display()), source))?;
    if !metadata.is_file() || metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        return Err(Error::Config(format!(
            "{} must be a file of root that nobody else can write",
            program.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> RuntimeConfig {
        RuntimeConfig {
            instance: "00c0ffee".into(),
            slots_dir: RuntimeConfig::SLOTS_DIR.into(),
            uid_base: RuntimeConfig::UID_BASE,
            network: RuntimeConfig::NETWORK,
            shim: Shim {
                program: "/bin/sh".into(),
                args: Vec::new(),
            },
            agent: Agent {
                executable: "/bin/sh".into(),
            },
            allow_private: Vec::new(),
        }
    }

    #[test]
    fn slots_do_not_overlap() {
        let config = config();
        config.check().unwrap();
        let first = Slot::new(0).unwrap();
        let last = Slot::new(SLOT_COUNT - 1).unwrap();
        assert_eq!(
            config.slot_addresses(first),
            (Ipv4Addr::new(10, 209, 0, 1), Ipv4Addr::new(10, 209, 0, 2))
        );
        assert_eq!(
            config.slot_addresses(last),
            (
                Ipv4Addr::new(10, 209, 255, 253),
                Ipv4Addr::new(10, 209, 255, 254)
            )
        );
        assert_eq!(
            config.slot_uid_base(Slot::new(1).unwrap()) - config.slot_uid_base(first),
            IDS_PER_SLOT
        );
        assert!(
            config
                .slot_uid_base(last)
                .checked_add(IDS_PER_SLOT)
                .is_some()
        );
        assert!(config.slot_link(last).len() <= 15);
    }

    #[test]
    fn bad_settings_are_refused() {
        for change in [
            |config: &mut RuntimeConfig| config.instance = "00C0FFEE".into(),
            |config: &mut RuntimeConfig| config.instance = "../0ffee".into(),
            |config: &mut RuntimeConfig| config.uid_base = 0,
            |config: &mut RuntimeConfig| config.uid_base = u32::MAX - 5,
            |config: &mut RuntimeConfig| config.network = Ipv4Addr::new(10, 0, 0, 4),
            |config: &mut RuntimeConfig| config.agent.executable = "/nowhere".into(),
            |config: &mut RuntimeConfig| config.agent.executable = "/tmp".into(),
        ] {
            let mut config = config();
            change(&mut config);
            assert!(config.check().is_err(), "{config:?}");
        }
    }
}
