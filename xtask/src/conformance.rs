//! The table of what each method of the official SDKs does here: `docs/conformance.md` against the
//! results that the suites left.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run::{command, output, root, target};

/// The list of methods, and the committed table.
const METHODS: &str = "tests/sdk/conformance/methods.json";
const TABLE: &str = "docs/conformance.md";
/// What stands around the part of the document that is made from the results.
const BEGIN: &str = "<!-- made from the results: begin -->\n";
const END: &str = "<!-- made from the results: end -->\n";

/// Each runner, with the heading of its column.
const RUNNERS: [(&str, &str); 4] = [
    ("deno", "JavaScript (Deno)"),
    ("node", "JavaScript (Node)"),
    ("python", "Python"),
    ("python_async", "Python async"),
];

/// A method; its names in both SDKs where they have it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    area: String,
    js: Option<String>,
    python: Option<String>,
    /// Runners whose variant of the SDK lacks it.
    #[serde(default)]
    absent: Vec<String>,
    /// By SDK or runner: what the SDK itself does wrong. The check asserts exactly that.
    #[serde(default)]
    broken: BTreeMap<String, String>,
    /// The answer, where the server does not offer it.
    refused: Option<String>,
    /// Names that the same check covers; the suites compare all names with the SDKs.
    #[serde(default)]
    #[expect(dead_code, reason = "read by the suites")]
    also: Vec<String>,
}

impl Row {
    /// The method's name for a runner, unless that SDK lacks it.
    fn method(&self, runner: &str) -> Option<&str> {
        if self.absent.iter().any(|absent| absent == runner) {
            return None;
        }
        let name = if is_python(runner) {
            &self.python
        } else {
            &self.js
        };
        name.as_deref()
    }

    fn why_broken(&self, runner: &str) -> Option<&str> {
        let sdk = if is_python(runner) { "python" } else { "js" };
        let why = self.broken.get(runner).or_else(|| self.broken.get(sdk));
        why.map(String::as_str)
    }

    fn name(&self) -> String {
        let both = [&self.js, &self.python];
        let names: Vec<String> = both
            .into_iter()
            .flatten()
            .map(|n| format!("`{n}`"))
            .collect();
        names.join(", ")
    }

    fn result(&self) -> String {
        let offered = match &self.refused {
            Some(answer) => format!("answers {answer}"),
            None => "works".to_owned(),
        };
        let is_whole = RUNNERS
            .iter()
            .any(|(runner, _)| self.method(runner).is_some() && self.why_broken(runner).is_none());
        let reasons: Vec<&str> = self.broken.values().map(String::as_str).collect();
        match (is_whole, reasons.is_empty()) {
            (_, true) => offered,
            (true, false) => format!("{offered}; in Python {}", reasons.join("; ")),
            (false, false) => format!("broken in the SDK: {}", reasons.join("; ")),
        }
    }
}

fn is_python(runner: &str) -> bool {
    runner.starts_with("python")
}

/// What one check found.
#[derive(Debug, Deserialize)]
struct Outcome {
    method: String,
    passed: bool,
}

/// By runner and method, whether the check passed.
type Outcomes = BTreeMap<(String, String), bool>;

/// Compares the committed table with what the suites left in `scratch`.
pub(crate) fn check(scratch: &Path) -> Result<()> {
    let text = fs::read_to_string(root().join(METHODS)).context("reading the list of methods")?;
    let rows: Vec<Row> = serde_json::from_str(&text).context("reading the list of methods")?;
    let mut outcomes = Outcomes::new();
    for (runner, _) in RUNNERS {
        let path = scratch.join(format!("conformance/{runner}.jsonl"));
        let lines = fs::read_to_string(&path)
            .with_context(|| format!("reading the results of {runner}"))?;
        for line in lines.lines() {
            let outcome: Outcome = serde_json::from_str(line).context("reading a result")?;
            outcomes.insert((runner.to_owned(), outcome.method), outcome.passed);
        }
    }
    let made = table(&rows, &outcomes)?;
    let committed = fs::read_to_string(root().join(TABLE)).context("reading the table")?;
    let whole = replaced(&committed, &made)?;
    if whole != committed {
        let path = target("conformance.md");
        fs::write(&path, whole)?;
        bail!(
            "{TABLE} is not what the suites found; compare it with {}",
            path.display()
        );
    }
    println!("{TABLE} is what the suites found");
    Ok(())
}

/// The document with `made` in place of what was made before.
fn replaced(document: &str, made: &str) -> Result<String> {
    let parts = document
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        bail!("{TABLE} lacks its markers");
    };
    Ok(format!("{before}{BEGIN}{made}{END}{after}"))
}

fn table(rows: &[Row], outcomes: &Outcomes) -> Result<String> {
    let mut text = String::new();
    let mut used = BTreeSet::new();
    let mut area = "";
    for row in rows {
        if row.area != area {
            area = &row.area;
            let heads: Vec<&str> = RUNNERS.iter().map(|(_, head)| *head).collect();
            write!(
                text,
                "\n### {area}\n\n| Method | {} | Result |\n|---|---|---|---|---|---|\n",
                heads.join(" | ")
            )?;
        }
        write!(text, "| {} |", row.name())?;
        for (runner, _) in RUNNERS {
            let Some(method) = row.method(runner) else {
                text.push_str(" not in this SDK |");
                continue;
            };
            let key = (runner.to_owned(), method.to_owned());
            let cell = match (outcomes.get(&key), row.why_broken(runner), &row.refused) {
                (None, ..) => bail!("no check of `{method}` ran under {runner}"),
                (Some(false), ..) => "fails",
                (Some(true), Some(_), _) => "broken in the SDK",
                (Some(true), None, Some(_)) => "refused",
                (Some(true), None, None) => "works",
            };
            used.insert(key);
            write!(text, " {cell} |")?;
        }
        writeln!(text, " {} |", row.result())?;
    }
    if let Some((runner, method)) = outcomes.keys().find(|key| !used.contains(*key)) {
        bail!("the check of `{method}` under {runner} is in no row");
    }
    text.push('\n');
    Ok(text)
}

/// Every test that the table of traps names must exist.
pub(crate) fn check_traps(breaches: &mut Vec<String>) -> Result<()> {
    let document = fs::read_to_string(root().join(TABLE)).context("reading the table")?;
    let listed = output(command("git").args(["grep", "-hoE", "(fn|def) [a-z0-9_]+\\("]))?;
    let tests: BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.split([' ', '(']).nth(1))
        .collect();
    let mut numbers = BTreeSet::new();
    for line in document.lines() {
        // A line of that table begins with the trap's number.
        let mut cells = line.split('|').skip(1).map(str::trim);
        let Some(number) = cells.next().and_then(|cell| cell.parse::<u8>().ok()) else {
            continue;
        };
        numbers.insert(number);
        let named: Vec<&str> = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.starts_with("trap_") || name.starts_with("test_trap_"))
            .collect();
        if named.is_empty() {
            breaches.push(format!("{TABLE}: trap {number} has no test"));
        }
        for name in named.into_iter().filter(|name| !tests.contains(name)) {
            breaches.push(format!("{TABLE}: there is no test `{name}`"));
        }
    }
    if numbers != (1..=17).collect() {
        breaches.push(format!("{TABLE} does not list the traps 1 to 17"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let text = r#"[
            {"area": "A", "js": "one", "python": "uno"},
            {"area": "A", "python": "dos", "absent": ["python"],
             "broken": {"python_async": "it says so"}},
            {"area": "B", "js": "three", "refused": "501"}]"#;
        serde_json::from_str(text).unwrap()
    }

    fn outcomes() -> Outcomes {
        [
            ("deno", "one"),
            ("node", "one"),
            ("python", "uno"),
            ("python_async", "uno"),
            ("python_async", "dos"),
            ("deno", "three"),
            ("node", "three"),
        ]
        .map(|(runner, method)| ((runner.to_owned(), method.to_owned()), true))
        .into()
    }

    #[test]
    fn every_cell_says_what_was_found() {
        let mut outcomes = outcomes();
        outcomes.insert(("node".to_owned(), "one".to_owned()), false);
        let text = table(&rows(), &outcomes).unwrap();
        for line in [
            "| `one`, `uno` | works | fails | works | works | works |",
            "| `dos` | not in this SDK | not in this SDK | not in this SDK | broken in the SDK \
             | broken in the SDK: it says so |",
            "| `three` | refused | refused | not in this SDK | not in this SDK | answers 501 |",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn a_check_that_did_not_run_is_no_success() {
        let mut outcomes = outcomes();
        outcomes.remove(&("deno".to_owned(), "three".to_owned()));
        assert!(table(&rows(), &outcomes).is_err());
    }

    #[test]
    fn a_result_without_a_row_is_not_lost() {
        let mut outcomes = outcomes();
        outcomes.insert(("deno".to_owned(), "four".to_owned()), true);
        assert!(table(&rows(), &outcomes).is_err());
    }

    #[test]
    fn only_the_part_between_the_markers_changes() {
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(
            replaced(&document, "new\n").unwrap(),
            format!("before\n{BEGIN}new\n{END}after\n")
        );
        assert!(replaced("no markers", "new").is_err());
    }
}
