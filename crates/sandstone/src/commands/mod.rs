//! The commands that ask a running server: a noun, a verb, a table or JSON.

mod archive;
mod files;
pub(crate) mod pool;
pub(crate) mod sandboxes;
pub(crate) mod snapshots;
mod ssh;
pub(crate) mod volumes;

use anyhow::Context;
use clap::Args;
use jiff::Timestamp;
use sandstone_api::Slug;
use sandstone_core::Clock;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::ambient::SystemClock;
use crate::client::{Client, ServerArguments, encoded};
use crate::output;

/// Items asked for at once: the most that the server gives.
const PAGE_ITEMS: u32 = 1000;

/// What a command has at hand.
struct Session {
    client: Client,
    json: bool,
}

impl Session {
    fn new(server: &ServerArguments) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::new(server)?,
            json: server.json,
        })
    }

    /// Prints an object of the API, or what `text` makes of it.
    fn show<T: DeserializeOwned>(
        &self,
        object: Value,
        text: impl FnOnce(T) -> String,
    ) -> anyhow::Result<()> {
        if self.json {
            output::print_json(&object)?;
        } else {
            output::print(&text(parsed(object)?))?;
        }
        Ok(())
    }

    /// Prints a list of objects, or what `text` makes of them.
    fn show_list<T: DeserializeOwned>(
        &self,
        path: &str,
        text: impl FnOnce(Vec<T>) -> String,
    ) -> anyhow::Result<()> {
        let items = Value::Array(self.client.list(path)?);
        if self.json {
            let list = Map::from_iter([("items".to_owned(), items)]);
            output::print_json(&Value::Object(list))?;
        } else {
            output::print(&text(parsed(items)?))?;
        }
        Ok(())
    }
}

/// Which part of a list to show.
#[derive(Debug, Default, Args)]
struct ListArguments {
    /// Only those whose slug contains this.
    #[arg(long)]
    search: Option<String>,
    /// Those that were deleted and can still be restored.
    #[arg(long)]
    deleted: bool,
}

impl ListArguments {
    /// The path of the list, with its query.
    fn path(&self, list: &str) -> String {
        let mut path = format!("{list}?limit={PAGE_ITEMS}");
        if let Some(search) = &self.search {
            path.push_str(&format!("&search={}", encoded(search)));
        }
        if self.deleted {
            path.push_str("&deleted=true");
        }
        path
    }
}

/// What to restore.
#[derive(Debug, Args)]
struct RestoreArguments {
    /// Its id, or the slug that it had.
    name: String,
    /// A new slug, if another object has taken the old one.
    #[arg(long)]
    slug: Option<Slug>,
}

impl RestoreArguments {
    fn body(&self) -> Value {
        fields([("slug", self.slug.as_ref().map(|slug| slug.as_str().into()))])
    }
}

/// An object of the fields that are there.
fn fields<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let there = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(there.collect())
}

fn parsed<T: DeserializeOwned>(object: Value) -> anyhow::Result<T> {
    serde_json::from_value(object).context("the server's answer is of another version")
}

fn now() -> Timestamp {
    Timestamp::from_millisecond(SystemClock.now().as_millis()).unwrap_or(Timestamp::MAX)
}

/// The columns of [`deletion`].
const DELETION_COLUMNS: [&str; 2] = ["DELETED", "LEFT"];

/// How long ago something was deleted, and how long it can be restored.
fn deletion(now: Timestamp, deleted_at: Option<&str>, purge_at: Option<&str>) -> [String; 2] {
    [
        format!("{} ago", output::age(now, deleted_at.unwrap_or_default())),
        output::left(now, purge_at.unwrap_or_default()),
    ]
}

/// What is said after a delete: until when it can be taken back, and how.
fn deleted_text(noun: &str, id: &str, slug: &str, purge_at: Option<&str>) -> String {
    let kind = noun.trim_end_matches('s');
    let mut text = format!("Deleted {kind} `{slug}` ({id}).\n");
    if let Some(until) = purge_at {
        text.push_str(&format!(
            "Until {} (for {}) it can be restored: sandstone {noun} restore {id}\n",
            output::instant(until),
            output::left(now(), until)
        ));
    }
    text
}
