//! Connections to hosts that are given a secret: TLS ends here, and begins again.
//!
//! The sandbox trusts the node's authority, so it accepts a certificate of ours; the host's own is
//! verified against the host's roots, by the name that the sandbox looked up. Both sides speak the
//! version of HTTP that the client offers and the server chooses.

mod certificate;
mod http;
mod substitute;
#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sandstone_core::Target;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector, client, server};

use crate::Egress;
use crate::gate::Shared;
use crate::outbound::CONNECT_LIMIT;
use crate::proxy::{self, Slot, reset};

pub(crate) use certificate::Certificates;

/// The versions of HTTP, by their names in TLS (RFC 7301), the preferred first.
const HTTP_2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// Why a connection could not be taken apart.
enum Failure {
    /// It is not what secrets are for.
    Refused(String),
    Failed(io::Error),
    /// It is in the log already.
    Logged,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Serves a connection of the sandbox to a host that is given a secret.
pub(crate) async fn handle(
    client: TcpStream,
    target: Target,
    port: u16,
    shared: Arc<Shared>,
    slot: Slot,
) {
    let Ok(turn) = shared.intercepts.clone().try_acquire_owned() else {
        shared
            .refusals
            .connection(&target, port, "too many connections with secrets");
        return reset(&client);
    };
    let opened = timeout(CONNECT_LIMIT, open(client, &target, port, &shared)).await;
    let why = match opened {
        Ok(Ok((client, upstream, is_http_2))) => {
            let exchange = http::Exchange::new(target, port, shared, (slot, turn));
            let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            return match is_http_2 {
                true => http::serve_2(client, upstream, exchange).await,
                false => http::serve_1(client, upstream, exchange).await,
            };
        }
        Ok(Err(Failure::Logged)) => return,
        Ok(Err(Failure::Refused(why))) => {
            return shared.refusals.connection(&target, port, why);
        }
        Ok(Err(Failure::Failed(error))) => error,
        Err(late) => late.into(),
    };
    shared.refusals.failure(&target, port, why);
}

type Opened = (
    server::TlsStream<TcpStream>,
    client::TlsStream<TcpStream>,
    bool,
);

/// Shakes hands with both sides.
async fn open(
    client: TcpStream,
    target: &Target,
    port: u16,
    shared: &Shared,
) -> Result<Opened, Failure> {
    // Until the hands are shaken, the client is to see a reset.
    reset(&client);
    let hello = LazyConfigAcceptor::new(Acceptor::default(), client).await?;
    let offered = {
        let hello = hello.client_hello();
        if let (Some(meant), Target::Name(name)) = (hello.server_name(), target)
            && !meant.eq_ignore_ascii_case(name.as_str())
        {
            let why = format!("it is used for {}", meant.escape_default());
            return Err(Failure::Refused(why));
        }
        match hello.alpn() {
            None => Vec::new(),
            Some(names) => {
                let names: Vec<&[u8]> = names.collect();
                let offered: Vec<Vec<u8>> = [HTTP_2, HTTP_1]
                    .into_iter()
                    .filter(|version| names.contains(version))
                    .map(<[u8]>::to_vec)
                    .collect();
                if offered.is_empty() {
                    let why = "it does not speak HTTP, and this host is given a secret";
                    return Err(Failure::Refused(why.to_owned()));
                }
                offered
            }
        }
    };
    let upstream = proxy::connect(target, port, shared)
        .await
        .ok_or(Failure::Logged)?;
    let upstream = secure(upstream, target, offered, &shared.egress).await?;
    let chosen = upstream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let is_http_2 = chosen.as_deref() == Some(HTTP_2);
    let config = server_config(target, chosen, &shared.egress)?;
    let client = hello.into_stream(config).await?;
    // From here on it ends in the ordinary way.
    rustix::net::sockopt::set_socket_linger(client.get_ref().0, None).map_err(io::Error::from)?;
    Ok((client, upstream, is_http_2))
}

/// Shakes hands with the host that is given the secret.
async fn secure(
    upstream: TcpStream,
    target: &Target,
    offered: Vec<Vec<u8>>,
    egress: &Egress,
) -> io::Result<client::TlsStream<TcpStream>> {
    let mut config = client_config(egress)?.as_ref().clone();
    config.alpn_protocols = offered;
    let name = match target {
        Target::Name(name) => ServerName::try_from(name.as_str().to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?,
        Target::Address(address) => ServerName::IpAddress(IpAddr::into(*address)),
    };
    TlsConnector::from(Arc::new(config))
        .connect(name, upstream)
        .await
}

/// How hosts are verified: by the roots of the host.
fn client_config(egress: &Egress) -> io::Result<Arc<ClientConfig>> {
    if let Some(config) = egress.tls.get() {
        return Ok(config.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the host's certificate authorities cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Sandboxes share nothing, not even a session with a server.
    config.resumption = Resumption::disabled();
    Ok(egress.tls.get_or_init(|| Arc::new(config)).clone())
}

/// How we show ourselves to the sandbox.
fn server_config(
    target: &Target,
    chosen: Option<Vec<u8>>,
    egress: &Egress,
) -> io::Result<Arc<ServerConfig>> {
    let name = match target {
        Target::Name(name) => name.to_string(),
        Target::Address(address) => address.to_string(),
    };
    let now = egress.clock.now().as_millis() / 1000;
    let certificate = egress
        .certificates
        .get(&egress.authority, name, now.unsigned_abs())
        .map_err(io::Error::other)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.alpn_protocols = chosen.into_iter().collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
