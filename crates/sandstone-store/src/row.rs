//! From columns to checked types. A value that does not parse is an error, never a panic: the file
//! may have been written by a newer version.

use std::str::FromStr;

use sandstone_core::{Timestamp, Usage};
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Row, Sqlite};

use crate::StoreError;
use crate::error::Step;

/// Reads the columns of one row by name.
pub(crate) struct Columns<'r>(pub(crate) &'r SqliteRow);

impl Columns<'_> {
    pub(crate) fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.get(column)
    }

    pub(crate) fn optional_text(&self, column: &'static str) -> Result<Option<String>, StoreError> {
        self.get(column)
    }

    pub(crate) fn number(&self, column: &'static str) -> Result<i64, StoreError> {
        self.get(column)
    }

    /// A size or counter; the store never writes a negative one.
    pub(crate) fn unsigned(&self, column: &'static str) -> Result<u64, StoreError> {
        let value = self.number(column)?;
        u64::try_from(value).map_err(|_| unreadable(column, value))
    }

    pub(crate) fn optional_unsigned(
        &self,
        column: &'static str,
    ) -> Result<Option<u64>, StoreError> {
        let value: Option<i64> = self.get(column)?;
        let checked = |value| u64::try_from(value).map_err(|_| unreadable(column, value));
        value.map(checked).transpose()
    }

    pub(crate) fn flag(&self, column: &'static str) -> Result<bool, StoreError> {
        Ok(self.number(column)? != 0)
    }

    pub(crate) fn usage(&self) -> Result<Usage, StoreError> {
        Ok(Usage {
            allocated: self.unsigned("allocated")?,
            flattened: self.unsigned("flattened")?,
        })
    }

    pub(crate) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.number(column).map(Timestamp::from_millis)
    }

    pub(crate) fn optional_time(
        &self,
        column: &'static str,
    ) -> Result<Option<Timestamp>, StoreError> {
        let millis: Option<i64> = self.get(column)?;
        Ok(millis.map(Timestamp::from_millis))
    }

    /// A text that parses as `T`.
    pub(crate) fn parsed<T: FromStr>(&self, column: &'static str) -> Result<T, StoreError> {
        let text = self.text(column)?;
        text.parse().map_err(|_| unreadable(column, text))
    }

    /// A text that parses as `T`, if there is one.
    pub(crate) fn optional<T: FromStr>(
        &self,
        column: &'static str,
    ) -> Result<Option<T>, StoreError> {
        let parsed = |text: String| text.parse().map_err(|_| unreadable(column, text));
        self.optional_text(column)?.map(parsed).transpose()
    }

    /// A text that `known` knows.
    pub(crate) fn one_of<T>(
        &self,
        column: &'static str,
        known: fn(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let text = self.text(column)?;
        known(&text).ok_or_else(|| unreadable(column, text))
    }

    /// A text that `known` knows, if there is one.
    pub(crate) fn optional_one_of<T>(
        &self,
        column: &'static str,
        known: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let parsed = |text: String| known(&text).ok_or_else(|| unreadable(column, text));
        self.optional_text(column)?.map(parsed).transpose()
    }

    fn get<'a, T>(&'a self, column: &'static str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'a, Sqlite> + sqlx::Type<Sqlite>,
        &'static str: ColumnIndex<SqliteRow>,
    {
        self.0.try_get(column).step("read a column")
    }
}

pub(crate) fn unreadable(column: &'static str, value: impl ToString) -> StoreError {
    StoreError::Unreadable {
        column,
        value: value.to_string(),
    }
}

/// Sizes fit: a volume has at most 2^63 bytes.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
