//! `sandstone pool`.

use clap::{Args, Subcommand};
use sandstone_api::Pool;
use serde::Deserialize;

use super::Session;
use crate::client::{EXIT_CODES, ServerArguments};
use crate::output::{Table, size};

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct PoolArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Shows how full the storage pool is, and what does not belong there or is missing.
    #[command(after_help = "Example:
  sandstone pool show")]
    Show,
    /// Removes the images that no volume and no snapshot has.
    #[command(after_help = "`sandstone pool show` says which those are.

Example:
  sandstone pool clean")]
    Clean,
}

/// What `clean` removed.
#[derive(Debug, Deserialize)]
struct Cleaned {
    removed: Vec<String>,
}

pub(crate) fn run(arguments: PoolArguments) -> anyhow::Result<()> {
    let session = Session::new(&arguments.server)?;
    let client = &session.client;
    match arguments.command {
        PoolCommand::Show => session.show(client.get("/v1/pool")?, |pool: Pool| {
            properties(&pool).to_string()
        }),
        PoolCommand::Clean => {
            let cleaned = client.post("/v1/pool/clean", &serde_json::json!({}))?;
            session.show(cleaned, |Cleaned { removed }| match removed.as_slice() {
                [] => "There was nothing to remove.\n".to_owned(),
                removed => format!("Removed {}.\n", removed.join(", ")),
            })
        }
    }
}

fn properties(pool: &Pool) -> Table {
    let state = if pool.free < pool.critical {
        "critical: sandboxes' writes wait until there is room"
    } else if pool.free < pool.low {
        "low: nothing new is begun until there is room"
    } else {
        "enough"
    };
    let names = |images: &[String]| match images {
        [] => "none".to_owned(),
        images => images.join(", "),
    };
    let percent = u128::from(pool.free) * 100 / u128::from(pool.total.max(1));
    Table::of_properties([
        ("TOTAL", size(pool.total)),
        ("FREE", format!("{} ({percent} %)", size(pool.free))),
        ("ROOM", state.to_owned()),
        ("LOW BELOW", size(pool.low)),
        ("CRITICAL BELOW", size(pool.critical)),
        ("UNKNOWN IMAGES", names(&pool.unknown_images)),
        ("MISSING IMAGES", names(&pool.missing_images)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_explained() {
        let mut pool = Pool {
            total: 20 << 30,
            free: 5 << 30,
            low: 2 << 30,
            critical: 1 << 30,
            unknown_images: Vec::new(),
            missing_images: vec!["vol_ord_x".to_owned()],
        };
        let text = properties(&pool).to_string();
        assert!(text.contains("5 GiB (25 %)") && text.contains("enough"));
        assert!(text.contains("MISSING IMAGES   vol_ord_x\n"), "{text}");
        pool.free = (2 << 30) - 1;
        assert!(properties(&pool).to_string().contains("low: "));
        pool.free = 1;
        assert!(properties(&pool).to_string().contains("critical: "));
    }
}
