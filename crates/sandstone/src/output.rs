//! What the commands print: tables, sizes, times, JSON, progress.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use crate::duration::Humane;

/// Spaces between two columns.
const COLUMN_GAP: usize = 3;

/// How long a transfer goes on before its progress is shown, and between two updates.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Writes to standard output. Who reads it may have had enough: that is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Writes an object of the API as it came.
pub(crate) fn print_json(value: &Value) -> io::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Writes a remark for people: to standard error, and only when somebody may read it there.
pub(crate) fn note(text: &str) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        let _ = writeln!(err, "{text}");
    }
}

/// A size with a binary unit and up to two decimals: `217.05 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    let Some((unit, factor)) = UNITS.iter().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} Bytes");
    };
    // Rounded to hundredths, in whole numbers.
    let hundredths = (u128::from(bytes) * 100 + u128::from(*factor) / 2) / u128::from(*factor);
    let text = format!("{}.{:02}", hundredths / 100, hundredths % 100);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text} {unit}")
}

/// How long ago an RFC 3339 instant was.
pub(crate) fn age(now: Timestamp, at: &str) -> String {
    apart(at, now, |at| now.as_millisecond() - at)
}

/// How long it is until an RFC 3339 instant.
pub(crate) fn left(now: Timestamp, until: &str) -> String {
    apart(until, now, |until| until - now.as_millisecond())
}

fn apart(text: &str, now: Timestamp, millis: impl Fn(i64) -> i64) -> String {
    let at = text.parse::<Timestamp>().unwrap_or(now);
    let millis = u64::try_from(millis(at.as_millisecond())).unwrap_or(0);
    // Nobody wants to know the milliseconds of an age.
    Humane::from_millis(millis / 1000 * 1000).to_string()
}

/// An RFC 3339 instant without its fraction of a second: `2026-11-22 06:30:00 UTC`.
pub(crate) fn instant(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Text without what a terminal would obey.
pub(crate) fn harmless(text: &str) -> String {
    let mut harmless = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            harmless.extend(c.escape_default());
        } else {
            harmless.push(c);
        }
    }
    harmless
}

/// Rows under a header, every column as wide as its widest cell.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(crate) fn new(header: &[&str]) -> Self {
        let header = header.iter().map(|&name| name.to_owned()).collect();
        Self { rows: vec![header] }
    }

    /// Properties of one thing, one a line.
    pub(crate) fn of_properties<'a>(
        properties: impl IntoIterator<Item = (&'a str, String)>,
    ) -> Self {
        let rows = properties.into_iter();
        Self {
            rows: rows
                .map(|(name, value)| vec![name.to_owned(), harmless(&value)])
                .collect(),
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = String>) {
        let cells = row.into_iter();
        self.rows.push(cells.map(|cell| harmless(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let padding = width - cell.chars().count() + COLUMN_GAP;
                line.extend(std::iter::repeat_n(' ', padding));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Says on a terminal how far a transfer is, once it takes longer than a second.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    begun: Instant,
    shown: Option<Instant>,
    is_wanted: bool,
    bytes: u64,
    /// Of how many, if that is known.
    total: Option<u64>,
}

impl Progress {
    /// A transfer begins.
    pub(crate) fn begin(what: &'static str, total: Option<u64>) -> Self {
        Self {
            what,
            begun: Instant::now(),
            shown: None,
            is_wanted: io::stderr().is_terminal(),
            bytes: 0,
            total,
        }
    }

    /// So many bytes more have gone.
    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let last = self.shown.unwrap_or(self.begun);
        if self.is_wanted && last.elapsed() >= PROGRESS_EVERY {
            self.shown = Some(Instant::now());
            self.show();
        }
    }

    fn show(&self) {
        let seconds = self.begun.elapsed().as_secs().max(1);
        let of = match self.total {
            Some(total) if total > 0 => format!(
                " of {} ({} %)",
                size(total),
                u128::from(self.bytes) * 100 / u128::from(total)
            ),
            _ => String::new(),
        };
        let line = format!(
            "{}: {}{of}, {}/s",
            self.what,
            size(self.bytes),
            size(self.bytes / seconds)
        );
        // Back to the start of the line, and the rest of the old one away.
        let _ = write!(io::stderr().lock(), "\r{line}\x1b[K");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            self.show();
            let _ = writeln!(io::stderr().lock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (bytes, text) in [
            (0, "0 Bytes"),
            (1023, "1023 Bytes"),
            (1024, "1 KiB"),
            (8_797_184, "8.39 MiB"),
            (227_593_421, "217.05 MiB"),
            (1_000_000_000, "953.67 MiB"),
            (10 << 30, "10 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times() {
        let now: Timestamp = "2026-11-22T06:30:00Z".parse().unwrap();
        assert_eq!(age(now, "2026-11-22T06:29:18.5Z"), "41s");
        assert_eq!(age(now, "2026-11-20T05:30:00Z"), "2d 1h");
        assert_eq!(age(now, "2026-11-22T06:31:00Z"), "0s", "a clock ahead");
        assert_eq!(left(now, "2026-11-23T06:29:00Z"), "23h 59m");
        assert_eq!(left(now, "nonsense"), "0s");
        assert_eq!(instant("2026-11-22T06:29:18.5Z"), "2026-11-22 06:29:18 UTC");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["ID", "SLUG", "BASE"]);
        table.push(["vol_ord_x".to_owned(), "é".to_owned(), String::new()]);
        table.push(["v".to_owned(), "data".to_owned(), "tools".to_owned()]);
        assert_eq!(
            table.to_string(),
            "ID          SLUG   BASE\nvol_ord_x   é\nv           data   tools\n"
        );
    }

    #[test]
    fn what_a_tenant_names_does_not_reach_the_terminal_as_a_command() {
        let mut table = Table::new(&["NAME"]);
        table.push(["a\x1b[2Jb\n".to_owned()]);
        assert_eq!(table.to_string(), "NAME\na\\u{1b}[2Jb\\n\n");
    }
}
