//! The program that works on the files, run on this host with a directory in the place of
//! `/mnt/image`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use sandstone_api::DirectoryEntry;
use tempfile::TempDir;

use super::{Found, PROGRAM};

/// A tree that belongs to user 1000.
fn tree() -> TempDir {
    let tree = tempfile::tempdir().unwrap();
    let owner = fs::metadata(tree.path()).unwrap().uid();
    assert_eq!(owner, 0, "changing the root needs root");
    chown(tree.path(), Some(1000), Some(1000)).unwrap();
    tree
}

fn run(tree: &Path, verb: &str, path: &str, input: &[u8]) -> Output {
    let program = PROGRAM.replace("/mnt/image", tree.to_str().unwrap());
    let mut child = Command::new("python3")
        .args(["-I", "-S", "-X", "utf8", "-c", &program, verb, path])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It need not read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The name of the error; empty if there is none.
fn error_of(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), text.is_empty(), "{text}");
    let name = text.trim_end().strip_prefix("error ").unwrap_or(&text);
    name.to_owned()
}

fn pieces(content: &[u8]) -> Vec<u8> {
    let mut framed = Vec::new();
    for piece in content.chunks(3) {
        framed.extend_from_slice(&(piece.len() as u32).to_be_bytes());
        framed.extend_from_slice(piece);
    }
    [framed, vec![0; 4]].concat()
}

fn write(tree: &Path, path: &str, content: &[u8]) -> String {
    error_of(&run(tree, "write", path, &pieces(content)))
}

fn read(tree: &Path, path: &str) -> Result<Vec<u8>, String> {
    let output = run(tree, "read", path, b"");
    match error_of(&output).as_str() {
        "" => Ok(output.stdout.strip_prefix(b"\"file\"\n").unwrap().to_vec()),
        error => Err(error.to_owned()),
    }
}

fn list(tree: &Path, path: &str) -> Vec<DirectoryEntry> {
    let output = run(tree, "read", path, b"");
    assert_eq!(error_of(&output), "");
    match serde_json::from_slice(&output.stdout).unwrap() {
        Found::Directory(entries) => entries,
        Found::File => panic!("{path} is a file"),
    }
}

#[test]
fn files_are_written_and_read() {
    let tree = tree();
    let top = tree.path();
    let content: Vec<u8> = (0..=255).collect();
    assert_eq!(write(top, "/a/b/ü", &content), "");
    assert_eq!(read(top, "/a/b/ü").unwrap(), content);
    assert_eq!(write(top, "/a/empty", b""), "");
    assert_eq!(read(top, "/a/empty").unwrap(), b"");
    for (path, mode) in [("a", 0o755), ("a/b", 0o755), ("a/b/ü", 0o644)] {
        let made = fs::metadata(top.join(path)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 1000), "{path}");
        assert_eq!(made.mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(list(top, "/a").len(), 2, "and nothing else");
}

#[test]
fn a_file_that_is_replaced_keeps_owner_and_mode() {
    let tree = tree();
    let file = tree.path().join("secret");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    chown(&file, Some(33), Some(44)).unwrap();
    let before = fs::metadata(&file).unwrap();
    assert_eq!(write(tree.path(), "/secret", b"new"), "");
    let after = fs::metadata(&file).unwrap();
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (33, 44, before.mode())
    );
    assert_ne!(after.ino(), before.ino(), "replaced at once");
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(list(tree.path(), "/").len(), 1);
}

#[test]
fn what_was_not_sent_to_its_end_is_not_written() {
    let tree = tree();
    fs::write(tree.path().join("kept"), "old").unwrap();
    let whole = pieces(b"new content");
    // Nothing, half a length, half a piece, all pieces, half an end.
    for length in [0, 2, 6, whole.len() - 4, whole.len() - 1] {
        for path in ["/kept", "/new"] {
            let output = run(tree.path(), "write", path, &whole[..length]);
            assert_eq!(error_of(&output), "ECANCELED", "{length}");
        }
    }
    assert_eq!(read(tree.path(), "/kept").unwrap(), b"old");
    assert_eq!(list(tree.path(), "/").len(), 1);
}

#[test]
fn links_never_lead_out() {
    let tree = tree();
    let top = tree.path();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "outside").unwrap();
    let outside_secret = outside.path().join("secret");
    symlink(&outside_secret, top.join("absolute")).unwrap();
    symlink(
        "../".repeat(40) + outside_secret.to_str().unwrap(),
        top.join("upwards"),
    )
    .unwrap();
    symlink(outside.path(), top.join("directory")).unwrap();
    symlink("/", top.join("root")).unwrap();
    for path in ["/absolute", "/upwards", "/directory/secret"] {
        assert_eq!(read(top, path), Err("ENOENT".to_owned()), "{path}");
    }
    // Where they lead inside is made.
    assert_eq!(write(top, "/absolute", b"inside"), "");
    let inside = top.join(outside_secret.strip_prefix("/").unwrap());
    assert_eq!(fs::read(&inside).unwrap(), b"inside");
    assert_eq!(read(top, "/upwards").unwrap(), b"inside");
    assert_eq!(read(top, "/root/directory/secret").unwrap(), b"inside");
    assert_eq!(fs::read(&outside_secret).unwrap(), b"outside");
    // Removing removes the link.
    for path in ["/absolute", "/directory", "/root"] {
        assert_eq!(error_of(&run(top, "remove", path, b"")), "");
    }
    assert!(inside.exists() && outside_secret.exists());
    assert_eq!(write(top, "/upwards/x", b"x"), "ENOTDIR");
    symlink("loop", top.join("loop")).unwrap();
    assert_eq!(read(top, "/loop"), Err("ELOOP".to_owned()));
    assert_ne!(write(top, "/loop", b"x"), "");
    assert_ne!(write(top, "/loop/x", b"x"), "");
}

#[test]
fn modules_of_the_tree_are_not_imported() {
    let tree = tree();
    let library = Command::new("python3")
        .args(["-c", "import os; print(os.path.dirname(os.__file__))"])
        .output()
        .unwrap();
    let library = String::from_utf8(library.stdout).unwrap();
    let inside = tree.path().join(library.trim().trim_start_matches('/'));
    fs::create_dir_all(&inside).unwrap();
    for module in ["fnmatch", "glob", "traceback", "linecache", "random"] {
        let trap = "open('/trapped', 'w')\n";
        fs::write(inside.join(format!("{module}.py")), trap).unwrap();
    }
    fs::create_dir_all(tree.path().join("deep/er")).unwrap();
    assert_eq!(write(tree.path(), "/file", b"x"), "");
    assert_eq!(read(tree.path(), "/nothing"), Err("ENOENT".to_owned()));
    assert_eq!(error_of(&run(tree.path(), "remove", "/deep", b"")), "");
    assert!(!tree.path().join("trapped").exists());
}

#[test]
fn directories_are_listed_in_order() {
    let tree = tree();
    let top = tree.path();
    fs::write(top.join("b"), "12345").unwrap();
    fs::create_dir(top.join("a")).unwrap();
    symlink("b", top.join("c")).unwrap();
    let fifo = Command::new("mkfifo").arg(top.join("d")).status();
    assert!(fifo.unwrap().success());
    let odd = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"e\xff\n");
    fs::write(top.join(odd), "").unwrap();
    let shown: Vec<_> = list(top, "/")
        .into_iter()
        .map(|entry| (entry.name, entry.kind, entry.size))
        .collect();
    let expected = [
        ("a", "directory", 0),
        ("b", "file", 5),
        ("c", "symlink", 0),
        ("d", "other", 0),
        ("e\u{fffd}\n", "file", 0),
    ];
    let expected = expected.map(|(name, kind, size)| (name.to_owned(), kind.to_owned(), size));
    assert_eq!(shown, expected);
    // A link to a directory is one.
    symlink("a", top.join("f")).unwrap();
    assert!(list(top, "/f").is_empty());
}

#[test]
fn everything_else_is_an_error_with_a_name() {
    let tree = tree();
    let top = tree.path();
    fs::write(top.join("file"), "x").unwrap();
    fs::create_dir_all(top.join("full/inner")).unwrap();
    let fifo = Command::new("mkfifo").arg(top.join("fifo")).status();
    assert!(fifo.unwrap().success());
    assert_eq!(read(top, "/file/x"), Err("ENOTDIR".to_owned()));
    assert_eq!(read(top, "/fifo"), Err("EINVAL".to_owned()));
    let long = format!("/{}", "n".repeat(256));
    assert_eq!(read(top, &long), Err("ENAMETOOLONG".to_owned()));
    assert_eq!(write(top, &long, b"x"), "ENAMETOOLONG");
    assert_eq!(write(top, "/full", b"x"), "EISDIR");
    assert_eq!(write(top, "/fifo", b"x"), "EINVAL");
    assert_eq!(write(top, "/file/x", b"x"), "ENOTDIR");
    assert_eq!(error_of(&run(top, "remove", "/nothing", b"")), "ENOENT");
    assert_eq!(error_of(&run(top, "remove", "/full", b"")), "");
    assert_eq!(error_of(&run(top, "remove", "/fifo", b"")), "");
    assert_eq!(list(top, "/").len(), 1);
}
