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
//! connections and requests: in all, from one address and to one sandbox. What a server in a sandbox
//! sends is as untrusted as what a client sends, and it has to begin its answer in time; a client has
//! to take it in time.

mod accept;
mod certificates;
mod connection;
mod forward;
mod headers;
mod pace;
mod reply;
mod room;
mod watched;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

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

/// Reads the certificate of exposed servers again, for an operator who has renewed it.
#[derive(Debug, Clone)]
pub struct CertificateReload(Arc<Certificates>);

impl CertificateReload {
    /// Reads the files now, whether or not they seem to have changed; the log has the outcome. A
    /// pair that cannot be used leaves the old one in use. Blocks while it reads.
    pub fn now(&self) {
        self.0.reload();
    }
}

/// How long each side may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// How long a server in a sandbox may take to begin its answer after the last piece of a
    /// request was passed on; at most twice that passes.
    pub answer: Duration,
    /// How long a client may take nothing of what is sent to it; at most twice that passes. Three
    /// times that, when the connection has been upgraded. Then the exchange is given up.
    pub stall: Duration,
}

/// What serves exposed names.
#[derive(Debug)]
pub struct Ingress {
    certificates: Arc<Certificates>,
    limits: Limits,
}

impl Ingress {
    /// Default of [`Limits::answer`]: longer than the 60 s to 100 s that other proxies allow, so that whoever was
    /// content behind those is here.
    pub const ANSWER_LIMIT: Duration = Duration::from_secs(300);

    /// Gets the certificate.
    ///
    /// # Errors
    /// [`CertificateError`] when there is none to be used.
    pub fn new(source: CertificateSource, limits: Limits) -> Result<Self, CertificateError> {
        let certificates = Arc::new(Certificates::new(source)?);
        Ok(Self {
            certificates,
            limits,
        })
    }

    /// What reads the certificate again, also while it is served.
    #[must_use]
    pub fn reload(&self) -> CertificateReload {
        CertificateReload(self.certificates.clone())
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
        let (certificates, limits) = (self.certificates, self.limits);
        accept::serve(listener, certificates, control, limits, shutdown).await
    }
}
