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
//! sends is as untrusted as what a client sends, and it has to begin its answer in time.

mod accept;
mod certificates;
mod connection;
mod forward;
mod headers;
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

/// What serves exposed names.
#[derive(Debug)]
pub struct Ingress {
    certificates: Arc<Certificates>,
    answer_limit: Duration,
}

impl Ingress {
    /// Default of how long a server in a sandbox may take to begin its answer, once the request was
    /// passed on: longer than the 60 s to 100 s that other proxies allow, so that whoever was
    /// content behind those is here.
    pub const ANSWER_LIMIT: Duration = Duration::from_secs(300);

    /// Gets the certificate. A server in a sandbox has to begin its answer within `answer_limit`
    /// after the last piece of a request was passed on, or within twice that.
    ///
    /// # Errors
    /// [`CertificateError`] when there is none to be used.
    pub fn new(
        source: CertificateSource,
        answer_limit: Duration,
    ) -> Result<Self, CertificateError> {
        let certificates = Arc::new(Certificates::new(source)?);
        Ok(Self {
            certificates,
            answer_limit,
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
        let (certificates, limit) = (self.certificates, self.answer_limit);
        accept::serve(listener, certificates, control, limit, shutdown).await
    }
}
