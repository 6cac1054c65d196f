//! Servers in sandboxes that can be reached from outside, each under a name of its own: issued
//! first, bound to a port or a process then, gone when the sandbox begins to stop.

use std::io;
use std::time::Duration;

use sandstone_api::{self as api, ApiError, ErrorCode, SandboxId};
use sandstone_core::{ExposureName, ExposureTarget};
use sandstone_node_api::{AgentError, AgentSocket};
use sandstone_protocol::message::{DialTarget, Failure};
use sandstone_store::Exposure;
use tokio::time::timeout;

use super::{ControlPlane, Principal, error, show};

/// How long a server in a sandbox may take to accept a connection. It is on the same host, so
/// only one that is stuck takes so long. The agent gives up after 10 s at most; this is for an
/// agent that does not.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// The port that `https://` means.
const HTTPS_PORT: u16 = 443;

/// Where exposed servers are reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExposedAt {
    /// What their names are put in front of; in lower case.
    pub base_domain: String,
    /// The port, as seen by clients.
    pub port: u16,
}

impl ExposedAt {
    /// The domain of a name: `https://` and this is its address.
    #[must_use]
    pub fn domain(&self, name: &ExposureName) -> String {
        let (name, base) = (name.as_str(), &self.base_domain);
        match self.port {
            HTTPS_PORT => format!("{name}.{base}"),
            port => format!("{name}.{base}:{port}"),
        }
    }

    /// The name in a domain, with a port or without. A proxy in front of us may have changed the
    /// port, so it says nothing.
    #[must_use]
    pub fn name(&self, domain: &str) -> Option<ExposureName> {
        let host = match domain.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|c| c.is_ascii_digit()) => host,
            _ => domain,
        };
        // A host name may end with the dot of the root.
        let host = host.strip_suffix('.').unwrap_or(host);
        let (name, base) = host.split_once('.')?;
        base.eq_ignore_ascii_case(&self.base_domain)
            .then(|| name.parse().ok())?
    }
}

/// Where an exposed name leads to.
#[derive(Debug, Clone)]
pub struct Exposed {
    host: String,
    sandbox: SandboxId,
    target: DialTarget,
    /// The target in words.
    what: String,
}

/// What is said of it goes to anybody who knows the name, so it is called by its name there.
impl Exposed {
    /// The name, as the client wrote it.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The sandbox that has the server.
    #[must_use]
    pub const fn sandbox(&self) -> SandboxId {
        self.sandbox
    }

    /// What it is in the sandbox, in words.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }
}

impl ControlPlane {
    /// Issues a name for a running sandbox, which leads to `target` if there is one already.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `EXPOSURE_LIMIT` when it has too many names, `NOT_SUPPORTED` when
    /// this server exposes nothing.
    pub async fn expose(
        &self,
        who: &Principal,
        sandbox: SandboxId,
        target: Option<ExposureTarget>,
    ) -> Result<api::Exposure, ApiError> {
        let at = self.exposed_at()?;
        let mut bytes = [0; ExposureName::RANDOM_BYTES];
        self.entropy.fill(&mut bytes);
        let exposure = Exposure {
            name: ExposureName::from_random(bytes),
            sandbox,
            target,
            created_at: self.clock.now(),
        };
        let added = self.store.add_exposure(who.organisation, &exposure).await;
        added.map_err(|error| error::of_store(&format!("sandbox {sandbox}"), error))?;
        Ok(show::exposure(at, &exposure))
    }

    /// Lets the name in `domain`, which was issued for this sandbox, lead to `target`.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `DOMAIN_NOT_FOUND`, `NOT_SUPPORTED`.
    pub async fn bind(
        &self,
        who: &Principal,
        sandbox: SandboxId,
        domain: &str,
        target: ExposureTarget,
    ) -> Result<(), ApiError> {
        let name = self.issued_name(sandbox, domain)?;
        let bound = self
            .store
            .bind_exposure(who.organisation, sandbox, &name, &target)
            .await;
        bound.map_err(|error| error::of_store(&format!("sandbox {sandbox}"), error))
    }

    /// Takes the name in `domain` back. Connections that are open stay open.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `DOMAIN_NOT_FOUND`, `NOT_SUPPORTED`.
    pub async fn unexpose(
        &self,
        who: &Principal,
        sandbox: SandboxId,
        domain: &str,
    ) -> Result<(), ApiError> {
        let name = self.issued_name(sandbox, domain)?;
        let removed = self
            .store
            .remove_exposure(who.organisation, sandbox, &name)
            .await;
        removed.map_err(|error| error::of_store(&format!("sandbox {sandbox}"), error))
    }

    /// The names of a sandbox, the oldest first; none unless it runs.
    ///
    /// # Errors
    /// `SANDBOX_NOT_FOUND`, `NOT_SUPPORTED`.
    pub async fn exposures(
        &self,
        who: &Principal,
        sandbox: SandboxId,
    ) -> Result<Vec<api::Exposure>, ApiError> {
        let at = self.exposed_at()?;
        let listed = self.store.exposures(who.organisation, sandbox).await;
        let listed =
            listed.map_err(|error| error::of_store(&format!("sandbox {sandbox}"), error))?;
        Ok(listed
            .iter()
            .map(|exposure| show::exposure(at, exposure))
            .collect())
    }

    /// Where the name in `host` leads to. Whoever knows a name may ask.
    ///
    /// # Errors
    /// `DOMAIN_NOT_FOUND` when no running sandbox has it, or it is not bound yet; `NOT_SUPPORTED`.
    pub async fn exposed(&self, host: &str) -> Result<Exposed, ApiError> {
        let exposure = match self.exposed_at()?.name(host) {
            Some(name) => self.store.exposure(&name).await,
            None => Ok(None),
        };
        let exposure = exposure
            .map_err(|error| error::of_store("an exposed server", error))?
            .ok_or_else(|| domain_not_found(host))?;
        let (target, what) = match exposure.target {
            Some(ExposureTarget::Port(port)) => (DialTarget::Port(port), format!("port {port}")),
            Some(ExposureTarget::Process { pid, socket }) => (
                DialTarget::Unix(socket),
                format!("the HTTP server of process {pid}"),
            ),
            None => {
                let message = format!("`{}` does not lead anywhere yet", error::shortened(host));
                return Err(ApiError::new(ErrorCode::DomainNotFound, message)
                    .with_hint("Bind it to a port or a process: exposeHttp does so."));
            }
        };
        Ok(Exposed {
            host: host.to_owned(),
            sandbox: exposure.sandbox,
            target,
            what,
        })
    }

    /// Connects to an exposed server.
    ///
    /// # Errors
    /// `DOMAIN_NOT_FOUND` when its sandbox has just ended; `NOT_LISTENING`; `TIMED_OUT`.
    pub async fn dial_exposed(&self, exposed: &Exposed) -> Result<AgentSocket, ApiError> {
        let Exposed {
            host,
            sandbox,
            target,
            what,
        } = exposed;
        // The sandbox may be ending at this moment.
        let agent = self.node.agent(*sandbox).await;
        let agent = agent.map_err(|_| domain_not_found(host))?;
        match timeout(CONNECT_LIMIT, agent.dial(target.clone())).await {
            Ok(Ok(socket)) => Ok(socket),
            Ok(Err(AgentError::Lost(_))) => Err(domain_not_found(host)),
            Ok(Err(AgentError::Refused(failure))) if is_late(&failure) => Err(stuck(exposed)),
            Ok(Err(AgentError::Refused(failure))) => {
                tracing::debug!(%sandbox, what, ?failure, "an exposed server refused");
                let message = format!("{what} in the sandbox does not accept connections");
                Err(ApiError::new(ErrorCode::NotListening, message).with_hint(
                    "Start the server in the sandbox; it must listen on 127.0.0.1 or all addresses.",
                ))
            }
            Err(_) => Err(stuck(exposed)),
        }
    }

    pub(super) fn exposed_at(&self) -> Result<&ExposedAt, ApiError> {
        self.config.exposed_at.as_ref().ok_or_else(|| {
            ApiError::new(ErrorCode::NotSupported, "this server exposes nothing")
                .with_hint("Start it with `--expose-listen ADDRESS`.")
        })
    }

    fn issued_name(&self, sandbox: SandboxId, domain: &str) -> Result<ExposureName, ApiError> {
        self.exposed_at()?.name(domain).ok_or_else(|| {
            let domain = error::shortened(domain);
            let message = format!("`{domain}` was not issued for sandbox {sandbox}");
            ApiError::new(ErrorCode::DomainNotFound, message)
        })
    }
}

/// Whether connecting took too long: what listens has a full queue.
fn is_late(failure: &Failure) -> bool {
    let error = failure.errno.map(io::Error::from_raw_os_error);
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

fn stuck(exposed: &Exposed) -> ApiError {
    let Exposed {
        host,
        sandbox,
        what,
        ..
    } = exposed;
    tracing::debug!(%sandbox, what, "an exposed server did not accept a connection in time");
    let message = format!("{what} behind `{host}` did not accept a connection in time");
    ApiError::new(ErrorCode::TimedOut, message)
        .with_hint("Something listens there, and is too busy to accept: look at what it is doing.")
}

fn domain_not_found(host: &str) -> ApiError {
    let message = format!(
        "no sandbox exposes a server as `{}`",
        error::shortened(host)
    );
    ApiError::new(ErrorCode::DomainNotFound, message)
        .with_hint("Names end with their sandbox: expose the server again.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_have_the_port_unless_it_is_that_of_https() {
        let name = ExposureName::from_random([7; ExposureName::RANDOM_BYTES]);
        let mut at = ExposedAt {
            base_domain: "sandbox.localhost".to_owned(),
            port: 8443,
        };
        let domain = at.domain(&name);
        assert_eq!(domain, format!("{}.sandbox.localhost:8443", name.as_str()));
        assert_eq!(at.name(&domain), Some(name.clone()));
        at.port = 443;
        let domain = at.domain(&name);
        assert!(!domain.contains(':'), "{domain}");
        for written in [
            domain.clone(),
            domain.to_uppercase(),
            format!("{domain}."),
            format!("{domain}:1"),
        ] {
            assert_eq!(at.name(&written), Some(name.clone()), "{written}");
        }
        for wrong in [
            "",
            ".",
            ":",
            "sandbox.localhost",
            "x.sandbox.localhost",
            "é:é",
        ] {
            assert_eq!(at.name(wrong), None, "{wrong}");
        }
        let label = name.as_str();
        for wrong in [
            format!("{label}.example.com"),
            format!("a.{domain}"),
            format!("{label}.sandbox.localhost.evil"),
            label.to_owned(),
        ] {
            assert_eq!(at.name(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_server_that_is_stuck_is_called_by_its_name() {
        let exposed = Exposed {
            host: "name.sandbox.localhost".to_owned(),
            sandbox: "sbx_ord_1at5nn58e77rtd11e3k3".parse().unwrap(),
            target: DialTarget::Port(8000),
            what: "port 8000".to_owned(),
        };
        let message = stuck(&exposed).message;
        assert!(message.contains(&exposed.host), "{message}");
        assert!(!message.contains("sbx_"), "{message}");
    }
}
