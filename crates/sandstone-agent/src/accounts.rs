//! Users, read from `/etc/passwd` and `/etc/group` by hand: a static binary has no name service.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::sys::Identity;

/// Largest account file that is read, bytes. Thousands of accounts fit.
const ACCOUNTS_MAX_BYTES: u64 = 1 << 20;

/// A user of the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    /// Login name.
    pub(crate) name: String,
    /// Home directory.
    pub(crate) home: String,
    /// Ids.
    pub(crate) identity: Identity,
}

impl Account {
    /// Root as it is without any account file.
    pub(crate) fn root() -> Self {
        Self {
            name: "root".into(),
            home: "/root".into(),
            identity: Identity {
                uid: Uid::ROOT,
                gid: Gid::ROOT,
                groups: vec![Gid::ROOT],
            },
        }
    }

    /// The user called `name`; root when the image has no such user.
    pub(crate) fn find(name: &str) -> Self {
        let read = |path| {
            read_regular(Path::new(path), ACCOUNTS_MAX_BYTES)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default()
        };
        parse(&read("/etc/passwd"), &read("/etc/group"), name).unwrap_or_else(Self::root)
    }
}

fn parse(passwd: &str, group: &str, name: &str) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if name.is_empty() || fields.next()? != name {
            return None;
        }
        let uid = id(fields.nth(1)?)?;
        let gid = Gid::from_raw(id(fields.next()?)?);
        let home = fields.nth(1).filter(|home| home.starts_with('/'));
        Some(Account {
            name: name.to_owned(),
            home: home.unwrap_or("/").to_owned(),
            identity: Identity {
                uid: Uid::from_raw(uid),
                gid,
                groups: groups(group, name, gid),
            },
        })
    })
}

/// The primary group, then every group that lists the user.
fn groups(group: &str, name: &str, primary: Gid) -> Vec<Gid> {
    let mut groups = vec![primary];
    for line in group.lines() {
        let mut fields = line.split(':').skip(2);
        let (Some(number), Some(members)) = (fields.next().and_then(id), fields.next()) else {
            continue;
        };
        let gid = Gid::from_raw(number);
        if members.split(',').any(|member| member.trim() == name) && !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    groups
}

/// A user or group id. The largest number means "no change" to the kernel, so it is none.
fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// The content of a regular file that an image provides. Anything else could block process 1.
///
/// # Errors
/// Opening or reading; `EINVAL` for other kinds of file, `EFBIG` beyond `max_bytes`.
pub(crate) fn read_regular(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    let mut bytes = Vec::new();
    let length = file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    if length as u64 > max_bytes {
        return Err(Errno::FBIG.into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        broken:x:one:1::/:/bin/sh\n\
        short:x\n\
        nobody:x:65534:65534::nonexistent:/bin/false\n\
        app:x:1000:1001:App,,,:/home/app:/bin/bash\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:other,app\napp:x:1001:app\nbad:x:no:app\nbad2:x\n\
        apps:x:50:apple\naudio:x:29:app\n";

    #[test]
    fn a_user_with_all_groups() {
        let app = parse(PASSWD, GROUP, "app").unwrap();
        assert_eq!(app.home, "/home/app");
        assert_eq!(app.identity.uid.as_raw(), 1000);
        assert_eq!(app.identity.gid.as_raw(), 1001);
        let groups: Vec<u32> = app.identity.groups.iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(groups, [1001, 27, 29]);
    }

    #[test]
    fn damaged_lines_are_no_users() {
        for name in ["broken", "short", "", "missing", "ap"] {
            assert_eq!(parse(PASSWD, GROUP, name), None, "{name}");
        }
        assert_eq!(parse("x:x:4294967295:0::/:", "", "x"), None);
        assert_eq!(parse(PASSWD, GROUP, "nobody").unwrap().home, "/");
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_regular(&path, 5).unwrap(), b"12345");
        assert!(read_regular(&path, 4).is_err());
        assert!(read_regular(directory.path(), 5).is_err());
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(read_regular(&fifo, 5).is_err(), "and does not block");
    }
}
