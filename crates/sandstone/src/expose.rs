//! Where `sandstone serve` exposes servers of sandboxes, and with which certificate.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use sandstone_authority::Authority;
use sandstone_core::Clock;
use sandstone_server::control::ExposedAt;
use sandstone_server::ingress::{CertificateSource, Ingress, Limits};
use tokio::net::TcpListener;

use crate::data_dir::DataDir;
use crate::duration::Humane;
use crate::listen::Listen;

/// Where exposed servers are, when the operator does not say.
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8443);

/// Name of the authority's files in the data directory.
const AUTHORITY: &str = "expose-ca";

/// The file of the data directory that says where exposed servers are.
const ADDRESS_FILE: &str = "expose-address";

#[derive(Debug, Args)]
#[command(next_help_heading = "Exposed servers")]
pub(crate) struct ExposeArguments {
    /// Address at which exposed servers are reached over HTTPS, or `none`. Port 0 takes any free
    /// one and writes it to DATA_DIR/expose-address. [default: 127.0.0.1:8443, or any free port]
    #[arg(long, env = "SANDSTONE_EXPOSE_LISTEN", value_name = "ADDRESS")]
    expose_listen: Option<Listen>,
    /// Domain below which exposed servers get their names. `*.BASE_DOMAIN` must lead to this
    /// server.
    #[arg(
        long,
        env = "SANDSTONE_BASE_DOMAIN",
        default_value = "sandbox.localhost",
        value_parser = base_domain
    )]
    base_domain: String,
    /// Port that clients use, if another one than that of --expose-listen, such as 443 behind a
    /// port forwarding.
    #[arg(long, env = "SANDSTONE_EXPOSE_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    expose_port: Option<u16>,
    /// Certificate for `*.BASE_DOMAIN` in PEM, with what it depends on after it. Read again when
    /// it changes, and on SIGHUP. Else our own authority issues one: DATA_DIR/expose-ca.pem.
    #[arg(
        long,
        env = "SANDSTONE_TLS_CERT",
        requires = "tls_key",
        value_name = "FILE"
    )]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate, in PEM.
    #[arg(
        long,
        env = "SANDSTONE_TLS_KEY",
        requires = "tls_cert",
        value_name = "FILE"
    )]
    tls_key: Option<PathBuf>,
    /// How long an exposed server may take to begin its answer. Then its client gets 504.
    #[arg(
        long,
        env = "SANDSTONE_ANSWER_LIMIT",
        default_value = "5m",
        value_name = "TIME"
    )]
    answer_limit: Humane,
}

/// A host name, in lower case.
fn base_domain(text: &str) -> Result<String, String> {
    let domain = text.trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let bytes = label.bytes();
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && bytes
                .into_iter()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    // A name of ours and its dot come in front.
    if domain.len() > 253 - 25 || !domain.split('.').all(is_label) {
        return Err("a host name such as sandboxes.example.com".to_owned());
    }
    Ok(domain)
}

/// What serves exposed servers, and where.
pub(crate) struct Exposing {
    pub(crate) ingress: Ingress,
    pub(crate) listener: TcpListener,
    pub(crate) at: ExposedAt,
}

impl ExposeArguments {
    /// Listens and gets a certificate; nothing when exposing is switched off. A client may take
    /// nothing of what is sent to it for `stall`.
    pub(crate) async fn open(
        &self,
        data: &DataDir,
        clock: Arc<dyn Clock>,
        stall: Duration,
    ) -> anyhow::Result<Option<Exposing>> {
        let answer = self.answer_limit.duration();
        if answer.is_zero() {
            bail!("--answer-limit must be longer than nothing");
        }
        let chosen = self.expose_listen;
        let Some(listener) = Listen::open(chosen, DEFAULT_LISTEN, "--expose-listen").await? else {
            data.remove(ADDRESS_FILE)?;
            return Ok(None);
        };
        let address = listener.local_addr()?;
        let source = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => CertificateSource::Files {
                certificate: certificate.clone(),
                key: key.clone(),
            },
            (None, None) => own_authority(data, &self.base_domain, clock)?,
            _ => bail!("--tls-cert and --tls-key belong together"),
        };
        let ingress =
            Ingress::new(source, Limits { answer, stall }).context("cannot get a certificate")?;
        data.write(ADDRESS_FILE, &format!("{address}\n"), 0o644)?;
        let at = ExposedAt {
            base_domain: self.base_domain.clone(),
            port: self.expose_port.unwrap_or(address.port()),
        };
        tracing::info!(%address, "exposing servers at https://*.{}:{}", at.base_domain, at.port);
        Ok(Some(Exposing {
            ingress,
            listener,
            at,
        }))
    }
}

fn own_authority(
    data: &DataDir,
    base_domain: &str,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<CertificateSource> {
    let name = format!("Sandstone {} exposed servers", data.instance());
    let authority = Authority::open(data.path(), AUTHORITY, &name)
        .context("cannot open the authority for exposed servers")?;
    let path = authority_file(data.path());
    tracing::info!(
        path = %path.display(),
        "our own authority certifies exposed servers; {}", how_to_trust(&path)
    );
    Ok(CertificateSource::Authority {
        authority: Box::new(authority),
        base_domain: base_domain.to_owned(),
        clock,
    })
}

/// Where the certificate of our own authority is.
pub(crate) fn authority_file(data_dir: &Path) -> PathBuf {
    data_dir.join(format!("{AUTHORITY}.pem"))
}

/// How clients are told to trust it.
pub(crate) fn how_to_trust(file: &Path) -> String {
    let file = file.display();
    format!(
        "clients trust it with NODE_EXTRA_CA_CERTS={file} (Node), DENO_CERT={file} (Deno), \
         SSL_CERT_FILE={file} (Python, curl --cacert)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_domains_are_host_names() {
        assert_eq!(
            base_domain("Sandbox.Example.").as_deref(),
            Ok("sandbox.example")
        );
        assert_eq!(base_domain("localhost").as_deref(), Ok("localhost"));
        let long = format!("{}.example", "a.".repeat(120));
        for bad in [
            "", ".", "a..b", "-a.b", "a b", "*.a", "a:443", "é.com", &long,
        ] {
            assert!(base_domain(bad).is_err(), "{bad}");
        }
    }
}
