//! The way in: HTTPS for servers in sandboxes that were exposed.
//!
//! ```text
//! client ─TLS─► accept ─► connection (HTTP/1.1 or 2) ─► name in the Host ─► ControlPlane
//!                                    │                                          │ dial
//!                                    └─► forward ◄─ streams both ways ─► server in the sandbox
//! ```
//!
//! Whoever knows a name may come in: there is no token. Nothing is buffered beyond the windows of
//! the connections, every wait for the client's own words has a bound, and so has the number of
//! connections. What a server in a sandbox sends is as untrusted as what a client sends.

mod accept;
mod certificates;
mod connection;
mod forward;
mod headers;
mod reply;

use std::path::PathBuf;
use std::sync::Arc;

use sandstone_authority::Authority;
use sandstone_core::Clock;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use certificates::CertificateError;

use crate::control::ControlPlane;
use certificates::Certificates;

/// Where the certificate for all exposed names comes from.
#[derive(Debug)]
pub enum CertificateSource {
    /// From PEM files, which are read again when they change.
    Files {
        /// The certificate, and those it depends on after it.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// From an authority of our own, which clients have to be told to trust.
    Authority {
        /// Who issues it.
        authority: Box<Authority>,
        /// The domain whose subdomains it is for.
        base_domain: String,
        /// Where the time comes from.
        clock: Arc<dyn Clock>,
    },
}

/// What serves exposed names.
#[derive(Debug)]
pub struct Ingress {
    certificates: Arc<Certificates>,
}

impl Ingress {
    /// Gets the certificate.
    ///
    /// # Errors
    /// [`CertificateError`] when there is none to be used.
    pub fn new(source: CertificateSource) -> Result<Self, CertificateError> {
        let certificates = Arc::new(Certificates::new(source)?);
        Ok(Self { certificates })
    }

    /// Serves exposed names on `listener` until `shutdown`, then waits a bounded time for the
    /// requests being answered.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub async fn serve(
        self,
        listener: TcpListener,
        control: Arc<ControlPlane>,
        shutdown: CancellationToken,
    ) -> Result<(), rustls::Error> {
        accept::serve(listener, self.certificates, control, shutdown).await
    }
}
