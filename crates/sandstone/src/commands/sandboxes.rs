//! `sandstone sandboxes`.

use clap::{Args, Subcommand};
use sandstone_api::{Exposure, Sandbox, SandboxStatus};
use serde_json::{Value, json};

use super::{Session, now};
use crate::client::{EXIT_CODES, ServerArguments, encoded};
use crate::output::{Table, age};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct SandboxesArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(subcommand)]
    command: SandboxesCommand,
}

#[derive(Debug, Subcommand)]
enum SandboxesCommand {
    /// Lists the sandboxes that run or stopped lately.
    #[command(
        visible_alias = "ls",
        after_help = "Examples:
  sandstone sandboxes list
  sandstone sandboxes list --json"
    )]
    List,
    /// Ends a sandbox; its volumes are on disk and free when this returns.
    #[command(after_help = "Example:
  sandstone sandboxes kill sbx_ord_1at5nn58e77rtd11e3k3")]
    Kill {
        /// Its id.
        sandbox: String,
    },
    /// Exposes a port of a sandbox and prints the URL. Who knows the URL can reach the server.
    #[command(
        after_help = "The server in the sandbox must listen on 127.0.0.1 or on all addresses.

Example:
  sandstone sandboxes expose sbx_ord_1at5nn58e77rtd11e3k3 --port 8000"
    )]
    Expose {
        /// Its id.
        sandbox: String,
        /// The port.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Prints the command that opens a shell in a sandbox. Who knows it can enter.
    #[command(after_help = "Example:
  $(sandstone sandboxes ssh sbx_ord_1at5nn58e77rtd11e3k3)")]
    Ssh {
        /// Its id.
        sandbox: String,
    },
    /// Lists the URLs of a sandbox's exposed servers.
    #[command(after_help = "Example:
  sandstone sandboxes exposures sbx_ord_1at5nn58e77rtd11e3k3")]
    Exposures {
        /// Its id.
        sandbox: String,
    },
    /// Takes a URL back.
    #[command(after_help = "Example:
  sandstone sandboxes unexpose sbx_ord_1at5nn58e77rtd11e3k3 https://NAME.sandbox.localhost:8443")]
    Unexpose {
        /// Its id.
        sandbox: String,
        /// The URL, or its domain.
        url: String,
    },
}

pub(crate) fn run(arguments: SandboxesArguments) -> anyhow::Result<()> {
    let session = Session::new(&arguments.server)?;
    let client = &session.client;
    match arguments.command {
        SandboxesCommand::List => {
            let text = |sandboxes: Vec<Sandbox>| table(&sandboxes).to_string();
            session.show_list("/v1/sandboxes", text)
        }
        SandboxesCommand::Kill { sandbox } => {
            client.delete(&path(&sandbox))?;
            session.show(json!({ "id": sandbox }), |_: Value| {
                format!("Ended sandbox {sandbox}.\n")
            })
        }
        SandboxesCommand::Expose { sandbox, port } => {
            let path = format!("{}/exposures", path(&sandbox));
            let exposed = client.post(&path, &json!({ "port": port }))?;
            session.show(exposed, |exposure: Exposure| {
                format!("https://{}\n", exposure.domain)
            })
        }
        SandboxesCommand::Ssh { sandbox } => super::ssh::run(&session, &sandbox),
        SandboxesCommand::Exposures { sandbox } => {
            let path = format!("{}/exposures", path(&sandbox));
            session.show_list(&path, |exposures: Vec<Exposure>| {
                exposure_table(&exposures).to_string()
            })
        }
        SandboxesCommand::Unexpose { sandbox, url } => {
            let domain = domain(&url);
            let path = format!("{}/exposures?domain={}", path(&sandbox), encoded(domain));
            client.delete(&path)?;
            session.show(json!({ "domain": domain }), |_: Value| {
                format!("Took https://{domain} back.\n")
            })
        }
    }
}

fn path(sandbox: &str) -> String {
    format!("/v1/sandboxes/{}", encoded(sandbox))
}

/// The domain of a URL, which may be written without the rest.
fn domain(url: &str) -> &str {
    let rest = url.strip_prefix("https://").unwrap_or(url);
    rest.split('/').next().unwrap_or(rest)
}

fn table(sandboxes: &[Sandbox]) -> Table {
    let now = now();
    let mut table = Table::new(&["ID", "REGION", "STATUS", "AGE", "LABELS"]);
    for sandbox in sandboxes {
        let labels = sandbox.labels.iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let status = match sandbox.status {
            SandboxStatus::Running => "running",
            SandboxStatus::Stopped => "stopped",
        };
        table.push([
            sandbox.id.clone(),
            sandbox.region.clone(),
            status.to_owned(),
            age(now, &sandbox.created_at),
            labels.join(" "),
        ]);
    }
    table
}

fn exposure_table(exposures: &[Exposure]) -> Table {
    let now = now();
    let mut table = Table::new(&["URL", "LEADS TO", "AGE"]);
    for exposure in exposures {
        let target = match (exposure.port, exposure.pid) {
            (Some(port), _) => format!("port {port}"),
            (None, Some(pid)) => format!("process {pid}"),
            (None, None) => "nowhere yet".to_owned(),
        };
        table.push([
            format!("https://{}", exposure.domain),
            target,
            age(now, &exposure.created_at),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_may_be_written_as_domains() {
        for url in ["https://a.b:1/x?y", "https://a.b:1", "a.b:1", "a.b:1/"] {
            assert_eq!(domain(url), "a.b:1");
        }
    }

    #[test]
    fn exposures_say_where_they_lead() {
        let exposure = |port, pid| Exposure {
            domain: "a.b".to_owned(),
            port,
            pid,
            created_at: String::new(),
        };
        let exposures = [
            exposure(Some(80), None),
            exposure(None, Some(7)),
            exposure(None, None),
        ];
        let text = exposure_table(&exposures).to_string();
        for part in ["https://a.b", "port 80", "process 7", "nowhere yet"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
