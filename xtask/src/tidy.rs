//! The rules that no compiler checks: who may depend on whom, where `unsafe` may be, how long a
//! file may get, and words that do not belong in the repository.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::conformance;
use crate::run::{cargo, command, output, root};

/// Which of our crates each of our crates may use.
const ALLOWED: [(&str, &[&str]); 14] = [
    ("sandstone-api", &[]),
    ("sandstone-authority", &[]),
    ("sandstone-core", &["sandstone-api"]),
    ("sandstone-crash", &[]),
    (
        "sandstone-egress",
        &["sandstone-api", "sandstone-authority", "sandstone-core"],
    ),
    ("sandstone-protocol", &[]),
    ("sandstone-storage", &["sandstone-crash"]),
    ("sandstone-runtime", &[]),
    ("sandstone-agent", &["sandstone-protocol"]),
    ("sandstone-store", &["sandstone-api", "sandstone-core"]),
    (
        "sandstone-node-api",
        &["sandstone-api", "sandstone-core", "sandstone-protocol"],
    ),
    (
        "sandstone-server",
        &[
            "sandstone-api",
            "sandstone-authority",
            "sandstone-core",
            "sandstone-crash",
            "sandstone-node-api",
            "sandstone-protocol",
            "sandstone-store",
        ],
    ),
    (
        "sandstone-node",
        &[
            "sandstone-api",
            "sandstone-authority",
            "sandstone-core",
            "sandstone-crash",
            "sandstone-egress",
            "sandstone-node-api",
            "sandstone-protocol",
            "sandstone-runtime",
            "sandstone-storage",
        ],
    ),
    (
        "sandstone",
        &[
            "sandstone-api",
            "sandstone-authority",
            "sandstone-core",
            "sandstone-crash",
            "sandstone-egress",
            "sandstone-node",
            "sandstone-node-api",
            "sandstone-protocol",
            "sandstone-runtime",
            "sandstone-server",
            "sandstone-storage",
            "sandstone-store",
        ],
    ),
];

/// `(crate, what it must not link, not even through others)`.
const NEVER_LINKED: [(&str, &str); 7] = [
    ("sandstone-server", "sandstone-storage"),
    ("sandstone-server", "sandstone-runtime"),
    ("sandstone-core", "tokio"),
    ("sandstone-crash", "tokio"),
    ("sandstone-protocol", "tokio"),
    ("sandstone-agent", "tokio"),
    ("sandstone-api", "tokio"),
];

/// Packages in the agent's tree: it is in every sandbox, and every one of them is trusted there.
const AGENT_PACKAGES_MAX: usize = 40;
/// Crates whose `sys` module, and whose tests of the kernel, may hold `unsafe`.
const UNSAFE_CRATES: [&str; 3] = ["sandstone-agent", "sandstone-runtime", "sandstone-storage"];
/// Lines of a source file: said, and refused.
const LINES_WARN: usize = 600;
const LINES_MAX: usize = 1000;
/// Text that does not belong here, in two halves so that this file does not hold it itself.
const BANNED: [(&str, &str, &str); 7] = [
    (
        "TO",
        "DO",
        "finish it, or say what is missing in the documentation",
    ),
    ("FIX", "ME", "fix it"),
    ("XX", "X:", "say it in a sentence"),
    (
        "deb.debian",
        ".org",
        "mirrors come from the host's own settings",
    ),
    (
        "registry.npmjs",
        ".org",
        "registries come from the host's own settings",
    ),
    (
        "pypi",
        ".org",
        "registries come from the host's own settings",
    ),
    (
        "static.crates",
        ".io",
        "registries come from the host's own settings",
    ),
];

/// Checks everything and reports every breach at once.
pub(crate) fn check() -> Result<()> {
    let mut breaches = Vec::new();
    check_dependencies(&mut breaches)?;
    check_files(&mut breaches)?;
    conformance::check_traps(&mut breaches)?;
    if !breaches.is_empty() {
        bail!(
            "{} breaches:\n  - {}",
            breaches.len(),
            breaches.join("\n  - ")
        );
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
    workspace_members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDependency>,
}

#[derive(Debug, Deserialize)]
struct NodeDependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// `None` is an ordinary dependency; else `dev` or `build`.
    kind: Option<String>,
}

/// What a package links: its name to the ids of its ordinary dependencies, transitively.
struct Graph {
    names: BTreeMap<String, String>,
    edges: BTreeMap<String, Vec<String>>,
}

impl Graph {
    fn new(metadata: &Metadata) -> Self {
        let names = metadata
            .packages
            .iter()
            .map(|package| (package.id.clone(), package.name.clone()))
            .collect();
        let edges = metadata
            .resolve
            .nodes
            .iter()
            .map(|node| {
                let linked = node
                    .deps
                    .iter()
                    .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()))
                    .map(|dep| dep.pkg.clone())
                    .collect();
                (node.id.clone(), linked)
            })
            .collect();
        Self { names, edges }
    }

    fn linked_by(&self, id: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            for next in self.edges.get(id).into_iter().flatten() {
                if found.insert(next.as_str()) {
                    open.push(next);
                }
            }
        }
        found
            .into_iter()
            .filter_map(|id| self.names.get(id).map(String::as_str))
            .collect()
    }
}

fn check_dependencies(breaches: &mut Vec<String>) -> Result<()> {
    let text = output(cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading cargo's metadata")?;
    let graph = Graph::new(&metadata);
    for package in &metadata.packages {
        if !metadata.workspace_members.contains(&package.id) {
            continue;
        }
        let linked = graph.linked_by(&package.id);
        let name = package.name.as_str();
        if name != "xtask" {
            let Some((_, allowed)) = ALLOWED.iter().find(|(ours, _)| *ours == name) else {
                breaches.push(format!("{name} is not in tidy's table of crates; add it"));
                continue;
            };
            let ours = linked.iter().filter(|other| other.starts_with("sandstone"));
            for other in ours.filter(|other| !allowed.contains(other)) {
                breaches.push(format!("{name} must not use {other}"));
            }
        }
        for (_, never) in NEVER_LINKED.iter().filter(|(from, _)| *from == name) {
            if linked.contains(never) {
                breaches.push(format!("{name} must not link {never}"));
            }
        }
        if name == "sandstone-agent" && linked.len() > AGENT_PACKAGES_MAX {
            breaches.push(format!(
                "{name} links {} packages, at most {AGENT_PACKAGES_MAX} are allowed",
                linked.len()
            ));
        }
        let names_sql = package.dependencies.iter().any(|dep| dep.name == "sqlx");
        if names_sql && name != "sandstone-store" {
            breaches.push(format!("{name} names sqlx; only sandstone-store may"));
        }
    }
    Ok(())
}

fn check_files(breaches: &mut Vec<String>) -> Result<()> {
    let listed = output(command("git").args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // A file that was removed but is still in the index is not ours to judge.
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        for (first, second, instead) in BANNED {
            let banned = format!("{first}{second}");
            for (number, line) in text.lines().enumerate() {
                if line.contains(&banned) {
                    breaches.push(format!("{name}:{}: `{banned}`: {instead}", number + 1));
                }
            }
        }
        if Path::new(name).extension().is_some_and(|e| e == "rs") {
            check_rust(name, &text, breaches);
        }
    }
    Ok(())
}

fn check_rust(name: &str, text: &str, breaches: &mut Vec<String>) {
    let is_test = name.contains("/tests/");
    let lines = without_test_module(text).lines().count();
    if !is_test && lines > LINES_MAX {
        breaches.push(format!("{name} has {lines} lines, at most {LINES_MAX}"));
    } else if !is_test && lines > LINES_WARN {
        println!("{name} has {lines} lines; split it before it has {LINES_MAX}");
    }
    let may_be_unsafe = UNSAFE_CRATES.iter().any(|krate| {
        name.starts_with(&format!("crates/{krate}/"))
            && (name.contains("/sys/") || name.ends_with("/sys.rs") || is_test)
    });
    if may_be_unsafe {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        if has_unsafe(line) {
            breaches.push(format!(
                "{name}:{}: `unsafe` outside a `sys` module",
                number + 1
            ));
        }
    }
}

/// The text up to its unit tests: they count separately.
fn without_test_module(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or(text)
}

/// Whether a line of code uses the keyword. Comments, strings and longer words do not count.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    // What is between quotes has an odd place.
    let unquoted: Vec<&str> = code.split('"').step_by(2).collect();
    unquoted.iter().any(|part| {
        part.split(|c: char| !c.is_alphanumeric() && c != '_')
            .zip(
                part.split(|c: char| !c.is_alphanumeric() && c != '_')
                    .skip(1),
            )
            .any(|(word, next)| {
                word == "unsafe" && matches!(next, "" | "fn" | "impl" | "extern" | "trait")
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_is_found_in_code_only() {
        for line in [
            "let x = unsafe { read() };",
            "pub unsafe fn f() {",
            "unsafe extern \"C\" {",
            "unsafe impl Send for X {}",
        ] {
            assert!(has_unsafe(line), "{line}");
        }
        for line in [
            "// unsafe { }",
            "#![expect(unsafe_code, reason = \"...\")]",
            "let unsafely = 1;",
        ] {
            assert!(!has_unsafe(line), "{line}");
        }
    }

    #[test]
    fn a_graph_follows_ordinary_dependencies_only() {
        let text = r#"{"packages":[
            {"id":"a","name":"a","dependencies":[]},
            {"id":"b","name":"b","dependencies":[]},
            {"id":"c","name":"c","dependencies":[]},
            {"id":"d","name":"d","dependencies":[]}],
          "workspace_members":["a"],
          "resolve":{"nodes":[
            {"id":"a","deps":[{"pkg":"b","dep_kinds":[{"kind":null}]},
                              {"pkg":"d","dep_kinds":[{"kind":"dev"}]}]},
            {"id":"b","deps":[{"pkg":"c","dep_kinds":[{"kind":"build"},{"kind":null}]}]},
            {"id":"c","deps":[]},{"id":"d","deps":[]}]}}"#;
        let metadata: Metadata = serde_json::from_str(text).unwrap();
        let graph = Graph::new(&metadata);
        assert_eq!(graph.linked_by("a"), BTreeSet::from(["b", "c"]));
    }
}
