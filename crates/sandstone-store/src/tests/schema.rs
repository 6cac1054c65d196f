//! The file itself: opening it again, and its last line of defence.

use sqlx::Row;

use super::fixture::Fixture;

#[tokio::test]
async fn a_closed_store_opens_again() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "data").await;
    let before = fixture.dump().await;
    fixture.store.close().await;
    let fixture = fixture.crash().await;
    assert_eq!(fixture.dump().await, before);
}

#[tokio::test]
async fn every_commit_is_synced_and_checked() {
    let fixture = Fixture::new().await;
    let mut transaction = fixture.store.begin().await.unwrap();
    for (pragma, expected) in [
        ("SELECT synchronous FROM pragma_synchronous", 2),
        ("SELECT foreign_keys FROM pragma_foreign_keys", 1),
    ] {
        let row = sqlx::query(pragma).fetch_one(&mut *transaction).await;
        assert_eq!(row.unwrap().get::<i64, _>(0), expected, "{pragma}");
    }
    let mode = sqlx::query("SELECT journal_mode FROM pragma_journal_mode")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(mode.get::<String, _>(0), "wal");
}

#[tokio::test]
async fn readers_cannot_write() {
    let fixture = Fixture::new().await;
    let written = sqlx::query("DELETE FROM organisations")
        .execute(fixture.store.read())
        .await;
    assert!(written.unwrap_err().to_string().contains("readonly"));
}

#[tokio::test]
async fn the_schema_itself_refuses_a_second_holder() {
    let fixture = Fixture::new().await;
    let volume = fixture.volume(1, "data").await;
    let holder = fixture.begin(2, &[("/data", "data")]).await.unwrap();
    let mut transaction = fixture.store.begin().await.unwrap();
    let second = sqlx::query(
        "INSERT INTO attachments (volume, token, sandbox, path, state, created_at) \
         VALUES ($1, 99, $2, '/b', 'attaching', 0)",
    )
    .bind(volume.id.to_string())
    .bind(holder.to_string())
    .execute(&mut *transaction)
    .await;
    let error = second.unwrap_err();
    assert!(error.to_string().contains("UNIQUE"), "{error}");
}

#[tokio::test]
async fn a_row_of_a_newer_version_is_an_error() {
    let fixture = Fixture::new().await;
    fixture.volume(1, "data").await;
    let mut transaction = fixture.store.begin().await.unwrap();
    sqlx::query("UPDATE volumes SET region = 'a region with a longer name'")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    let error = fixture.store.volume(fixture.ours, "data").await;
    assert!(error.unwrap_err().to_string().contains("region"));
}
