//! Walks and globs.

use std::time::{Duration, Instant};

use sandstone_protocol::frame::FrameKind;
use sandstone_protocol::message::{
    Answer, Failure, GlobOptions, Pattern, Request, WalkEntry, WalkOptions, decode,
};

use crate::harness::{Host, Sandbox};

/// A tree with all that a walk tells apart.
const TREE: &str = "mkdir -p t/a/b t/empty && cd t && touch one.ts a/two.js a/b/three.ts &&
    ln -s a/b link && ln -s ../one.ts a/up.ts && mkfifo fifo";

/// More entries than a stream's window holds.
const MANY: &str = "mkdir many; cd many; seq 30000 | sed s/^/a-rather-long-name-/ | xargs touch";

fn entries(bytes: &[u8]) -> Vec<WalkEntry> {
    let mut rest = bytes;
    let mut entries = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let (entry, tail) = tail.split_at(u32::from_le_bytes(*length) as usize);
        entries.push(decode("walk entry", entry).unwrap());
        rest = tail;
    }
    entries
}

fn paths(host: &mut Host, request: impl FnOnce(u32) -> Request) -> Vec<String> {
    let sink = host.fresh_id();
    assert_eq!(host.call(request(sink)), Ok(Answer::Done));
    let all = host.collect(sink);
    entries(&all).into_iter().map(|entry| entry.path).collect()
}

fn walk(path: &str, options: WalkOptions) -> impl FnOnce(u32) -> Request {
    let path = path.to_owned();
    move |sink| Request::Walk {
        path,
        options,
        sink,
    }
}

fn glob(glob: &str, options: GlobOptions) -> impl FnOnce(u32) -> Request {
    let glob = glob.to_owned();
    move |sink| Request::ExpandGlob {
        glob,
        options,
        sink,
    }
}

fn pattern(source: &str) -> Pattern {
    Pattern {
        source: source.to_owned(),
        flags: "i".to_owned(),
    }
}

#[test]
fn trees_are_walked() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell(TREE);
    let mut walked = |options| {
        let mut paths = paths(&mut host, walk("./t", options));
        paths.sort();
        paths.join(" ")
    };
    let options = WalkOptions::default;
    assert_eq!(
        walked(options()),
        "t t/a t/a/b t/a/b/three.ts t/a/two.js t/a/up.ts t/empty t/fifo t/link t/one.ts"
    );
    assert_eq!(
        walked(WalkOptions {
            max_depth: Some(1),
            include_directories: false,
            ..options()
        }),
        "t/fifo t/link t/one.ts"
    );
    assert_eq!(
        walked(WalkOptions {
            extensions: Some(vec!["ts".into()]),
            skip: vec![pattern("^T/A/B$")],
            ..options()
        }),
        "t/a/up.ts t/one.ts"
    );
    assert_eq!(
        walked(WalkOptions {
            matches: Some(vec![pattern("(?<=a/)t\\w+")]),
            ..options()
        }),
        "t/a/two.js"
    );
    assert_eq!(
        walked(WalkOptions {
            follow_symlinks: true,
            canonicalize: false,
            include_directories: false,
            ..options()
        }),
        "/mnt/home/work/t/one.ts t/a/b/three.ts t/a/two.js t/fifo t/link/three.ts t/one.ts"
    );
}

#[test]
fn globs_are_expanded_and_sorted() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell(TREE);
    let top = "/mnt/home/work/t";
    let mut expanded = |text: &str, options: GlobOptions| {
        let options = GlobOptions {
            root: Some("t".into()),
            ..options
        };
        let all = paths(&mut host, glob(text, options)).join(" ");
        all.replace(&format!("{top}/"), "").replace(top, ".")
    };
    let options = GlobOptions::default;
    assert_eq!(
        expanded("**/*.ts", options()),
        "a/b/three.ts a/up.ts one.ts"
    );
    assert_eq!(expanded("*/", options()), "a empty");
    assert_eq!(expanded("a/*/..", options()), "a");
    assert_eq!(expanded("", options()), ".");
    assert_eq!(expanded("none/*", options()), "");
    let without = GlobOptions {
        exclude: vec!["a/b".into()],
        include_directories: false,
        ..options()
    };
    assert_eq!(expanded("a/**", without), "a/two.js a/up.ts");
}

#[test]
fn walks_fail_as_they_should() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell(&format!("{TREE}; mkdir loop; ln -s .. loop/up"));
    let mut refused = |path: &str, options| {
        let sink = host.fresh_id();
        host.refused(walk(path, options)(sink))
    };
    let (errno, message) = refused("none", WalkOptions::default());
    assert_eq!(errno, libc::ENOENT);
    assert_eq!(
        message,
        "No such file or directory (os error 2): walk 'none'"
    );
    assert_eq!(refused("t/one.ts", WalkOptions::default()).0, libc::ENOTDIR);
    let broken = WalkOptions {
        skip: vec![pattern("(")],
        ..WalkOptions::default()
    };
    assert_eq!(refused("t", broken).0, libc::EINVAL);
    let long = WalkOptions {
        skip: vec![pattern(&"x".repeat(70_000))],
        ..WalkOptions::default()
    };
    assert_eq!(refused("t", long).0, libc::E2BIG);
    // Nesting that would exhaust a small stack is refused, not crashed on.
    let deep = WalkOptions {
        skip: vec![pattern(&format!(
            "{}{}",
            "(".repeat(20_000),
            ")".repeat(20_000)
        ))],
        ..WalkOptions::default()
    };
    assert_eq!(refused("t", deep).0, libc::EINVAL);

    // A link to a directory above is found out on the way.
    let sink = host.fresh_id();
    let follow = WalkOptions {
        follow_symlinks: true,
        ..WalkOptions::default()
    };
    assert_eq!(
        host.call(walk("t", follow)(sink)),
        Ok(Answer::Done),
        "the root is fine"
    );
    let end = loop {
        let frame = host.next_for(sink);
        if frame.kind != FrameKind::Data {
            break frame;
        }
    };
    assert_eq!(end.kind, FrameKind::Reset);
    let failure: Failure = decode("reset", &end.payload).unwrap();
    assert_eq!(failure.errno, Some(libc::ELOOP));
}

#[test]
fn a_hostile_pattern_holds_nothing_up_and_a_walk_stops_when_given_up() {
    let (_sandbox, mut host) = Sandbox::start();
    host.shell(&format!("mkdir -p t; touch t/{}", "a".repeat(60)));
    let hostile = || WalkOptions {
        matches: Some(vec![pattern("^t/(a+)+$b")]),
        ..WalkOptions::default()
    };
    let sinks: Vec<u32> = (0..10).map(|_| host.fresh_id()).collect();
    for sink in &sinks {
        let id = host.fresh_id();
        host.send_request(id, &walk("t", hostile())(*sink));
        assert_eq!(host.reply(id), Ok(Answer::Done));
    }
    // More of them than there are threads for files.
    host.write_file("quick", b"1", Default::default()).unwrap();
    assert_eq!(host.read_file("quick").unwrap(), b"1");

    // One that waits for credit ends with its stream.
    host.shell(MANY);
    let walks = "grep -l walk /proc/1/task/*/comm | wc -l";
    let before = host.shell(walks);
    let sink = host.fresh_id();
    host.call(walk("many", WalkOptions::default())(sink))
        .unwrap();
    assert_ne!(host.shell(walks), before);
    host.send(FrameKind::Reset, sink, &[]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while host.shell(walks) != before {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn a_large_directory_takes_little_memory() {
    let (sandbox, mut host) = Sandbox::start();
    host.shell(MANY);
    let sink = host.fresh_id();
    host.call(walk("many", WalkOptions::default())(sink))
        .unwrap();
    // It stops after a window until somebody reads.
    std::thread::sleep(Duration::from_millis(200));
    let before = sandbox.resident_bytes();
    assert!(before < 32 << 20, "{before}");
    assert_eq!(entries(&host.collect(sink)).len(), 30_001);
}
