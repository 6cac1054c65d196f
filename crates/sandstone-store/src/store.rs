//! Opening the database, and its transactions.

use std::path::Path;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};

use crate::StoreError;
use crate::error::Step;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// Readers at once. Queries take well under a millisecond, so a few connections serve many
/// requests.
const READERS: u32 = 4;

/// Longest wait for a connection. A writer waits for the writers before it, each of which takes
/// one fsync; reaching this bound means that the disk hangs.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(15);

/// Longest wait for SQLite's own lock. Only another process could hold it.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// The database. Cheap to clone; all clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    readers: Readers,
    writer: Writer,
}

/// Connections that cannot write.
#[derive(Debug, Clone)]
struct Readers(SqlitePool);

/// The one connection that writes: SQLite has one writer at a time, and queueing here is fair,
/// while its own lock is not.
#[derive(Debug, Clone)]
struct Writer(SqlitePool);

pub(crate) type WriteTransaction = Transaction<'static, Sqlite>;

impl Store {
    /// Opens the database file, makes it when there is none, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Database`], also when a newer version has written the file.
    pub async fn open(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // In WAL mode NORMAL may lose the last commits when the power fails. We answer "your
            // volume is deleted" and "your volume is yours alone" on the strength of a commit, so
            // each one is synced.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Secrets are overwritten when they go, not only unlinked.
            .pragma("secure_delete", "on")
            .busy_timeout(BUSY_LIMIT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_LIMIT)
            .connect_with(options.clone())
            .await
            .step("open it for writing")?;
        MIGRATIONS.run(&writer).await.step("migrate the schema")?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(ACQUIRE_LIMIT)
            .connect_with(options.create_if_missing(false).pragma("query_only", "on"))
            .await
            .step("open it for reading")?;
        Ok(Self {
            readers: Readers(readers),
            writer: Writer(writer),
        })
    }

    /// Closes all connections, after the calls that are under way. Later calls fail.
    pub async fn close(&self) {
        self.readers.0.close().await;
        self.writer.0.close().await;
    }

    pub(crate) fn read(&self) -> &SqlitePool {
        &self.readers.0
    }

    /// Begins a transaction that holds the write lock from its start, so that what it reads
    /// stays true until it commits. Dropped without a commit, it is rolled back.
    pub(crate) async fn begin(&self) -> Result<WriteTransaction, StoreError> {
        self.writer
            .0
            .begin_with("BEGIN IMMEDIATE")
            .await
            .step("begin a transaction")
    }
}

pub(crate) async fn commit(transaction: WriteTransaction) -> Result<(), StoreError> {
    transaction.commit().await.step("commit a transaction")
}
