//! `sandstone sandboxes ssh`: a way into a running sandbox.

use serde::Deserialize;

use super::Session;
use crate::client::encoded;

/// What the server answers.
#[derive(Debug, Deserialize)]
struct Access {
    hostname: String,
    username: String,
    port: u16,
}

/// Makes a user name for the sandbox and prints the command that uses it.
pub(super) fn run(session: &Session, sandbox: &str) -> anyhow::Result<()> {
    let path = format!("/v1/sandboxes/{}/ssh", encoded(sandbox));
    let access = session.client.post(&path, &serde_json::json!({}))?;
    session.show(access, |access: Access| command(&access))
}

fn command(access: &Access) -> String {
    let Access {
        hostname,
        username,
        port,
    } = access;
    match port {
        22 => format!("ssh {username}@{hostname}\n"),
        _ => format!("ssh -p {port} {username}@{hostname}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_port_goes_without_saying() {
        let mut access = Access {
            hostname: "ssh.example.com".to_owned(),
            username: "abc".to_owned(),
            port: 22,
        };
        assert_eq!(command(&access), "ssh abc@ssh.example.com\n");
        access.port = 2222;
        assert_eq!(command(&access), "ssh -p 2222 abc@ssh.example.com\n");
    }
}
