//! Where the server listens beside its API.

use std::io::ErrorKind;
use std::net::{AddrParseError, SocketAddr};
use std::str::FromStr;

use anyhow::Context;
use tokio::net::TcpListener;

/// What an operator chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Nowhere.
    None,
    /// Here. Port 0 is any free one.
    At(SocketAddr),
}

impl FromStr for Listen {
    type Err = AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            _ => text.parse().map(Self::At),
        }
    }
}

impl Listen {
    /// Listens where `chosen` says, or else at `default`; if another server of this host has that,
    /// at any free port. `option` names the option that chooses.
    ///
    /// # Errors
    /// When the chosen address cannot be had.
    pub(crate) async fn open(
        chosen: Option<Self>,
        default: SocketAddr,
        option: &str,
    ) -> anyhow::Result<Option<TcpListener>> {
        let bound = match chosen {
            Some(Self::None) => return Ok(None),
            Some(Self::At(address)) => TcpListener::bind(address).await.with_context(|| {
                format!("cannot listen on {address}; {option} takes another address, or `none`")
            }),
            None => match TcpListener::bind(default).await {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {
                    tracing::warn!(taken = %default, "a default address is taken; {option} chooses one");
                    let any = SocketAddr::new(default.ip(), 0);
                    TcpListener::bind(any).await.context("cannot listen")
                }
                bound => bound.with_context(|| format!("cannot listen on {default}")),
            },
        };
        bound.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_default_address_gives_way() {
        let open = |chosen| async move {
            let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = taken.local_addr().unwrap();
            let chosen: Option<Listen> = match chosen {
                "" => None,
                "taken" => Some(Listen::At(address)),
                text => Some(text.parse().unwrap()),
            };
            Listen::open(chosen, address, "--x").await
        };
        assert!(open("none").await.unwrap().is_none());
        assert!(open("").await.unwrap().is_some());
        assert!(open("127.0.0.1:0").await.unwrap().is_some());
        let error = open("taken").await.unwrap_err().to_string();
        assert!(error.contains("--x"), "{error}");
        assert!("127.0.0.1".parse::<Listen>().is_err());
    }
}
