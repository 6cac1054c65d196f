//! `sandstone serve`'s SSH listener: where it is, what clients are told, and its key.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, bail};
use clap::Args;
use sandstone_core::Entropy;
use sandstone_server::ssh::{HostKey, SshEndpoint};
use tokio::net::TcpListener;

use crate::data_dir::DataDir;
use crate::listen::Listen;

/// The host's key, in the data directory.
const KEY_FILE: &str = "ssh-host-key";

/// Where SSH is listened for when the operator does not say.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2222);

/// The address listened on, in the data directory.
const ADDRESS_FILE: &str = "ssh-address";

#[derive(Debug, Args)]
pub(crate) struct SshArguments {
    /// Address to listen on for SSH into sandboxes, or `none`. Port 0 takes any free one and
    /// writes it to DATA_DIR/ssh-address. [default: 127.0.0.1:2222, or any free port]
    #[arg(long, env = "SANDSTONE_SSH_LISTEN", value_name = "ADDRESS")]
    ssh_listen: Option<Listen>,
    /// Host name that clients are told to use for SSH; the address listened on when absent.
    #[arg(long, env = "SANDSTONE_SSH_HOST", value_name = "NAME")]
    ssh_host: Option<String>,
    /// Port that clients are told to use for SSH; the one listened on when absent.
    #[arg(long, env = "SANDSTONE_SSH_PORT", value_name = "PORT")]
    ssh_port: Option<u16>,
}

/// A listener for SSH, and what belongs to it.
#[derive(Debug)]
pub(crate) struct SshListener {
    pub(crate) listener: TcpListener,
    pub(crate) key: HostKey,
    /// What clients are told.
    pub(crate) endpoint: SshEndpoint,
}

/// Listens, unless that is not wanted.
pub(crate) async fn listen(
    arguments: &SshArguments,
    data: &DataDir,
    entropy: &dyn Entropy,
) -> anyhow::Result<Option<SshListener>> {
    let chosen = arguments.ssh_listen;
    let Some(listener) = Listen::open(chosen, DEFAULT_LISTEN, "--ssh-listen").await? else {
        data.remove(ADDRESS_FILE)?;
        return Ok(None);
    };
    let key = host_key(data, entropy)?;
    let address = listener.local_addr()?;
    data.write(ADDRESS_FILE, &format!("{address}\n"), 0o644)?;
    let endpoint = endpoint(arguments, address)?;
    Ok(Some(SshListener {
        listener,
        key,
        endpoint,
    }))
}

/// What clients are told, of a server that listens on `address`.
fn endpoint(arguments: &SshArguments, address: SocketAddr) -> anyhow::Result<SshEndpoint> {
    let hostname = match &arguments.ssh_host {
        Some(name) if name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic()) => {
            bail!("--ssh-host: {name:?} is no host name")
        }
        Some(name) => name.clone(),
        None => match address.ip() {
            // Every address of this host: one that works here.
            IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
            IpAddr::V6(ip) if ip.is_unspecified() => "::1".to_owned(),
            ip => ip.to_string(),
        },
    };
    Ok(SshEndpoint {
        hostname,
        port: arguments.ssh_port.unwrap_or(address.port()),
    })
}

/// The host's key: read, or made and written at the first start.
fn host_key(data: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<HostKey> {
    if let Some(text) = data.read(KEY_FILE)? {
        return HostKey::parse(&text).with_context(|| {
            let path = data.path().join(KEY_FILE);
            format!(
                "{} is damaged; without it a new key is made",
                path.display()
            )
        });
    }
    let key = HostKey::generate(entropy);
    data.write(KEY_FILE, &key.reveal()?, 0o600)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ambient::SystemEntropy;
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        ssh: SshArguments,
    }

    fn arguments(line: &[&str]) -> SshArguments {
        let line = ["serve"].iter().chain(line);
        Line::try_parse_from(line).unwrap().ssh
    }

    #[test]
    fn clients_are_told_where_they_can_connect() {
        let told = |line: &[&str], address: &str| {
            let endpoint = endpoint(&arguments(line), address.parse().unwrap()).unwrap();
            (endpoint.hostname, endpoint.port)
        };
        let here = ("127.0.0.1".to_owned(), 22);
        assert_eq!(told(&[], "127.0.0.1:22"), here);
        assert_eq!(told(&[], "0.0.0.0:22"), here);
        assert_eq!(told(&[], "[2001:db8::1]:5"), ("2001:db8::1".to_owned(), 5));
        let options = ["--ssh-host", "ssh.example.com", "--ssh-port", "2200"];
        let far = ("ssh.example.com".to_owned(), 2200);
        assert_eq!(told(&options, "127.0.0.1:22"), far);
        let bad = arguments(&["--ssh-host", "a b"]);
        assert!(endpoint(&bad, "127.0.0.1:22".parse().unwrap()).is_err());
        assert!(Line::try_parse_from(["serve", "--ssh-listen", "nowhere"]).is_err());
    }

    #[tokio::test]
    async fn the_key_is_made_once_and_for_the_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::open(directory.path(), &SystemEntropy).unwrap();
        let options = arguments(&["--ssh-listen", "127.0.0.1:0"]);
        let first = listen(&options, &data, &SystemEntropy).await.unwrap();
        let first = first.unwrap();
        let file = directory.path().join(KEY_FILE);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let written = std::fs::read_to_string(directory.path().join(ADDRESS_FILE)).unwrap();
        assert_eq!(written, format!("127.0.0.1:{}\n", first.endpoint.port));
        let second = listen(&options, &data, &SystemEntropy).await.unwrap();
        let (first, second) = (first.key, second.unwrap().key);
        assert_eq!(first.reveal().unwrap(), second.reveal().unwrap());

        let options = arguments(&["--ssh-listen", "none"]);
        let none = listen(&options, &data, &SystemEntropy).await.unwrap();
        assert!(none.is_none());
        assert!(!directory.path().join(ADDRESS_FILE).exists());
        std::fs::write(&file, "nonsense").unwrap();
        let options = arguments(&["--ssh-listen", "127.0.0.1:0"]);
        assert!(listen(&options, &data, &SystemEntropy).await.is_err());
    }
}
