//! Giving sandboxes the host's own name server, certificate authorities and package-client
//! settings.
//!
//! Off by default: a sandbox then has public name servers and its image's own settings. With it,
//! a host that reaches package registries in its own way (a private resolver, a private authority,
//! a mirror, a proxy) lets its sandboxes reach them in the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sandstone_protocol::message::InteriorFile;

use crate::image::mirrors;

/// Where every program in a sandbox finds the certificate authorities.
const GUEST_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Where every program in a sandbox finds its name servers.
const RESOLVER_FILE: &str = "/etc/resolv.conf";

/// Port of the domain name system.
const DNS_PORT: u16 = 53;

/// Variables that tell programs about a proxy.
const PROXY_VARIABLES: [&str; 8] = [
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// What a sandbox is given.
#[derive(Debug, Clone, Default)]
pub struct GuestTrust {
    /// Files written into each sandbox.
    pub files: Vec<InteriorFile>,
    /// Authorities the host has beyond its distribution's, as PEM.
    pub certificate_authorities: Option<String>,
    /// Variables for each process.
    pub environment: BTreeMap<String, String>,
    /// Addresses and ports in private ranges that sandboxes may reach.
    pub reachable: Vec<(IpAddr, u16)>,
}

/// Where the host keeps its settings.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The process environment, for proxy variables and moved bundles.
    pub environment: BTreeMap<String, String>,
    /// The home directory of the user who runs the server.
    pub home: PathBuf,
    /// Root of the file system; `/`, other only in tests.
    pub root: PathBuf,
    /// What its apt is told.
    pub apt: AptSettings,
}

/// How the host reaches Debian packages.
#[derive(Debug, Clone, Default)]
pub struct AptSettings {
    /// Source entries for the image's release on the host's mirrors.
    pub sources: Option<String>,
    /// Settings for reaching mirrors, without their final semicolons.
    pub options: Vec<String>,
}

impl AptSettings {
    /// Asks the host's apt. A host without apt has no such settings.
    #[must_use]
    pub fn of_host() -> Self {
        let ask = |program: &str, arguments: &[&str]| {
            let output = Command::new(program)
                .args(arguments)
                .stdin(Stdio::null())
                .output();
            output.map_or_else(
                |_| String::new(),
                |output| String::from_utf8_lossy(&output.stdout).into_owned(),
            )
        };
        let targets = [
            "indextargets",
            "--format",
            mirrors::TARGET_FORMAT,
            "Identifier: Packages",
        ];
        Self {
            sources: mirrors::package_sources(&ask("apt-get", &targets)),
            options: mirrors::acquire_options(&ask("apt-config", &["dump"]))
                .into_iter()
                .map(str::to_owned)
                .collect(),
        }
    }
}

/// The host's settings could not be read.
#[derive(Debug, thiserror::Error)]
pub enum GuestTrustError {
    /// A file could not be read.
    #[error("cannot read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The host's resolver is one that a sandbox cannot reach.
    #[error("the host's resolv.conf names no name server that a sandbox could reach")]
    NoNameServer,
}

impl GuestTrust {
    /// A sandbox's settings when the host's are not given: only `name_servers`.
    #[must_use]
    pub fn none(name_servers: &[IpAddr]) -> Self {
        let text: String = name_servers
            .iter()
            .map(|address| format!("nameserver {address}\n"))
            .collect();
        Self {
            files: vec![file(RESOLVER_FILE, text)],
            ..Self::default()
        }
    }

    /// The host's settings.
    ///
    /// # Errors
    /// [`GuestTrustError`] when a file that exists cannot be read, or no name server is usable.
    pub fn of_host(host: &HostSettings) -> Result<Self, GuestTrustError> {
        let mut trust = Self::default();
        trust.take_name_servers(host)?;
        trust.take_authorities(host)?;
        trust.take_npm(host)?;
        trust.take_pip(host)?;
        trust.take_apt(host);
        trust.take_proxies(host);
        Ok(trust)
    }

    /// The same for a sandbox whose connections the node makes: it asks `name_server`, and uses no
    /// proxy of the host's, which would make other connections for it. With `authority` it trusts
    /// that as well.
    pub(crate) fn behind_gate(mut self, name_server: Ipv4Addr, authority: Option<&str>) -> Self {
        self.files.retain(|file| file.path != RESOLVER_FILE);
        let text = format!("nameserver {name_server}\n");
        self.files.push(file(RESOLVER_FILE, text));
        for name in PROXY_VARIABLES {
            self.environment.remove(name);
        }
        if let Some(authority) = authority {
            let all = self.certificate_authorities.get_or_insert_default();
            all.push_str(authority);
            self.trust_bundle();
        }
        self
    }

    /// Tells programs that carry a list of authorities of their own, or read one directory, where
    /// the system's bundle is.
    fn trust_bundle(&mut self) {
        for name in ["NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
            self.environment.insert(name.into(), GUEST_BUNDLE.into());
        }
        self.environment
            .insert("DENO_TLS_CA_STORE".into(), "system".into());
    }

    fn take_name_servers(&mut self, host: &HostSettings) -> Result<(), GuestTrustError> {
        // systemd-resolved's stub listens on the host's loopback; its real upstreams are beside.
        for path in ["etc/resolv.conf", "run/systemd/resolve/resolv.conf"] {
            let Some(text) = read(&host.root.join(path))? else {
                continue;
            };
            let servers = name_servers(&text);
            if servers.is_empty() {
                continue;
            }
            let mut kept = String::new();
            for line in text.lines() {
                if matches!(
                    line.split_whitespace().next(),
                    Some("search" | "options" | "domain")
                ) {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
            for server in &servers {
                kept.push_str(&format!("nameserver {server}\n"));
                self.reachable.push((*server, DNS_PORT));
            }
            self.files.push(file(RESOLVER_FILE, kept));
            return Ok(());
        }
        Err(GuestTrustError::NoNameServer)
    }

    fn take_authorities(&mut self, host: &HostSettings) -> Result<(), GuestTrustError> {
        let bundle = host.root.join("etc/ssl/certs/ca-certificates.crt");
        let mut bundles = vec![bundle];
        bundles.extend(
            ["SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"]
                .iter()
                .filter_map(|name| host.environment.get(*name))
                .map(PathBuf::from),
        );
        let known = distribution_certificates(&host.root)?;
        let mut extra = BTreeSet::new();
        for bundle in bundles {
            if let Some(text) = read(&bundle)? {
                extra.extend(certificates(&text).filter(|pem| !known.contains(pem)));
            }
        }
        if !extra.is_empty() {
            self.certificate_authorities = Some(extra.into_iter().collect());
            // Node's and Deno's own binaries carry their own list and must be told.
            self.environment
                .insert("NODE_EXTRA_CA_CERTS".into(), GUEST_BUNDLE.into());
            self.environment
                .insert("DENO_TLS_CA_STORE".into(), "system".into());
        }
        Ok(())
    }

    fn take_npm(&mut self, host: &HostSettings) -> Result<(), GuestTrustError> {
        let mut kept = String::new();
        for path in [host.root.join("etc/npmrc"), host.home.join(".npmrc")] {
            for line in read(&path)?.unwrap_or_default().lines() {
                let Some((key, value)) = line.split_once('=') else {
                    continue;
                };
                let (key, value) = (key.trim(), value.trim());
                let wanted = matches!(key, "registry" | "proxy" | "https-proxy" | "noproxy")
                    || key == "strict-ssl"
                    || key.ends_with(":registry");
                if key == "cafile" {
                    kept.push_str(&format!("cafile={GUEST_BUNDLE}\n"));
                } else if wanted {
                    kept.push_str(&format!("{key}={value}\n"));
                }
            }
        }
        if !kept.is_empty() {
            // The image's npm reads the first, Debian's npm the second.
            self.files.push(file("/usr/local/etc/npmrc", kept.clone()));
            self.files.push(file("/etc/npmrc", kept));
        }
        Ok(())
    }

    fn take_pip(&mut self, host: &HostSettings) -> Result<(), GuestTrustError> {
        let mut kept = String::new();
        for path in [
            host.root.join("etc/pip.conf"),
            host.home.join(".config/pip/pip.conf"),
        ] {
            for line in read(&path)?.unwrap_or_default().lines() {
                let Some((key, value)) = line.split_once('=') else {
                    continue;
                };
                let (key, value) = (key.trim(), value.trim());
                match key {
                    "index-url" | "extra-index-url" | "trusted-host" | "proxy" | "timeout" => {
                        kept.push_str(&format!("{key} = {value}\n"));
                    }
                    "cert" => kept.push_str(&format!("cert = {GUEST_BUNDLE}\n")),
                    _ => {}
                }
            }
        }
        if !kept.is_empty() {
            self.files
                .push(file("/etc/pip.conf", format!("[global]\n{kept}")));
        }
        Ok(())
    }

    fn take_apt(&mut self, host: &HostSettings) {
        if !host.apt.options.is_empty() {
            let text = host
                .apt
                .options
                .iter()
                .map(|option| format!("{option};\n"))
                .collect();
            self.files.push(file("/etc/apt/apt.conf.d/90host", text));
        }
        if let Some(sources) = &host.apt.sources {
            self.files
                .push(file("/etc/apt/sources.list", sources.clone()));
            // The image's own list, which it would be added to.
            self.files.push(file(
                "/etc/apt/sources.list.d/debian.sources",
                String::new(),
            ));
        }
    }

    fn take_proxies(&mut self, host: &HostSettings) {
        for name in PROXY_VARIABLES {
            let Some(value) = host.environment.get(name) else {
                continue;
            };
            self.environment.insert(name.to_owned(), value.clone());
            if let Some(address) = proxy_address(value) {
                self.reachable.push(address);
            }
        }
    }
}

/// The name servers of a `resolv.conf` that a sandbox could reach: not the host's loopback.
fn name_servers(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .filter(|address| !address.is_loopback() && address.is_ipv4())
        .collect()
}

/// Name servers for sandboxes that are not given the host's: two public ones.
#[must_use]
pub fn public_name_servers() -> Vec<IpAddr> {
    vec![IpAddr::from([1, 1, 1, 1]), IpAddr::from([9, 9, 9, 9])]
}

/// `http://10.0.0.1:3128/` as address and port, when it is written with an address.
fn proxy_address(url: &str) -> Option<(IpAddr, u16)> {
    let authority = url
        .split_once("://")
        .map_or(url, |(_, rest)| rest)
        .split('/')
        .next()?;
    let host_port = authority.rsplit('@').next()?;
    let (host, port) = host_port.rsplit_once(':')?;
    Some((
        host.trim_matches(['[', ']']).parse().ok()?,
        port.parse().ok()?,
    ))
}

/// The certificates that come with the distribution and so are in every sandbox already.
fn distribution_certificates(root: &Path) -> Result<BTreeSet<String>, GuestTrustError> {
    let directory = root.join("usr/share/ca-certificates/mozilla");
    let mut known = BTreeSet::new();
    if let Ok(entries) = fs::read_dir(&directory) {
        for entry in entries.flatten() {
            if let Some(text) = read(&entry.path())? {
                known.extend(certificates(&text));
            }
        }
    }
    Ok(known)
}

/// The certificates of a PEM text, each with its armour and a final newline.
fn certificates(text: &str) -> impl Iterator<Item = String> + '_ {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    text.split(BEGIN).skip(1).filter_map(|rest| {
        let (body, _) = rest.split_once(END)?;
        let body: String = body
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .fold(String::new(), |mut text, line| {
                text.push_str(line);
                text.push('\n');
                text
            });
        Some(format!("{BEGIN}\n{body}{END}\n"))
    })
}

fn file(path: &str, content: String) -> InteriorFile {
    InteriorFile {
        path: path.to_owned(),
        mode: 0o644,
        content: content.into_bytes(),
    }
}

/// A file's text, nothing when it does not exist.
fn read(path: &Path) -> Result<Option<String>, GuestTrustError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GuestTrustError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nQUJD\n-----END CERTIFICATE-----\n";
    const OWN: &str = "-----BEGIN CERTIFICATE-----\nREVG\n-----END CERTIFICATE-----\n";

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, HostSettings) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let settings = HostSettings {
            environment: BTreeMap::new(),
            home: root.path().join("root"),
            root: root.path().to_owned(),
            apt: AptSettings {
                sources: Some("deb http://mirror.test trixie main\n".to_owned()),
                options: vec!["Acquire::Check-Date \"false\"".to_owned()],
            },
        };
        (root, settings)
    }

    fn content<'a>(trust: &'a GuestTrust, path: &str) -> &'a str {
        let file = trust.files.iter().find(|file| file.path == path).unwrap();
        std::str::from_utf8(&file.content).unwrap()
    }

    #[test]
    fn only_the_hosts_own_authorities_are_given() {
        let (_root, host) = host(&[
            ("etc/resolv.conf", "nameserver 10.0.0.2\n"),
            ("etc/ssl/certs/ca-certificates.crt", &format!("{PEM}{OWN}")),
            ("usr/share/ca-certificates/mozilla/a.crt", PEM),
        ]);
        let trust = GuestTrust::of_host(&host).unwrap();
        assert_eq!(trust.certificate_authorities.as_deref(), Some(OWN));
        assert_eq!(trust.environment["DENO_TLS_CA_STORE"], "system");
        assert_eq!(trust.reachable, [("10.0.0.2".parse().unwrap(), 53)]);
        assert_eq!(content(&trust, "/etc/resolv.conf"), "nameserver 10.0.0.2\n");
    }

    #[test]
    fn a_loopback_resolver_is_replaced_by_its_upstreams() {
        let (_root, mut host) = host(&[
            ("etc/resolv.conf", "nameserver 127.0.0.53\n"),
            (
                "run/systemd/resolve/resolv.conf",
                "search x.test\nnameserver 192.168.1.1\n",
            ),
        ]);
        let trust = GuestTrust::of_host(&host).unwrap();
        assert_eq!(
            content(&trust, "/etc/resolv.conf"),
            "search x.test\nnameserver 192.168.1.1\n"
        );
        host.root = host.root.join("nowhere");
        assert!(matches!(
            GuestTrust::of_host(&host),
            Err(GuestTrustError::NoNameServer)
        ));
    }

    #[test]
    fn client_settings_are_filtered() {
        let (_root, mut host) = host(&[
            ("etc/resolv.conf", "nameserver 10.0.0.2\n"),
            (
                "root/.npmrc",
                "cafile=/x.pem\n//r.test/:_authToken=secret\nregistry = http://r.test\n",
            ),
            (
                "etc/pip.conf",
                "[global]\ncert = /x.pem\nindex-url = http://p.test\n",
            ),
        ]);
        host.environment
            .insert("https_proxy".into(), "http://u:p@10.1.1.1:3128/".into());
        let trust = GuestTrust::of_host(&host).unwrap();
        let npm = content(&trust, "/etc/npmrc");
        assert_eq!(
            npm,
            "cafile=/etc/ssl/certs/ca-certificates.crt\nregistry=http://r.test\n"
        );
        assert!(content(&trust, "/etc/pip.conf").contains("index-url = http://p.test"));
        assert_eq!(
            content(&trust, "/etc/apt/apt.conf.d/90host"),
            "Acquire::Check-Date \"false\";\n"
        );
        assert_eq!(
            content(&trust, "/etc/apt/sources.list"),
            "deb http://mirror.test trixie main\n"
        );
        assert_eq!(
            content(&trust, "/etc/apt/sources.list.d/debian.sources"),
            ""
        );
        assert!(
            trust
                .reachable
                .contains(&("10.1.1.1".parse().unwrap(), 3128))
        );
    }
}
