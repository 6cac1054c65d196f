"""A directory tree with everything that a file system can hold, and its complete description.

Both are programs that run in a sandbox: nothing here ever looks at a sandbox's files on the host.
"""

from __future__ import annotations

import json

from support import python

_BUILD = r"""
import os, socket, sys
os.chdir(sys.argv[1])
def write(path, data, mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
os.makedirs("a/b/c/empty")
write("a/program", b"#!/bin/sh\necho ran\n", 0o755)
write("a/secret", os.urandom(100_000), 0o600)
write("nothing", b"")
write("a/größe 日本 😀.txt", "ü".encode())
write(b"not-utf8-\xff\xfe", b"bytes")
write("n" * 255, b"long")
write("line\nbreak", b"newline")
write("-rf", b"looks like an option")
for name in ("a/link-1", "a/b/link-2", "link-3"):
    os.link("a/secret", name)
os.symlink("a/secret", "relative")
os.symlink("/etc/passwd", "absolute")
os.symlink("nowhere/at/all", "dangling")
os.symlink("../../../../..", "a/up")
with open("sparse", "wb") as file:
    for offset in (0, 64 << 20, 200 << 20):
        file.seek(offset)
        file.write(os.urandom(10_000))
    file.truncate(256 << 20)
os.setxattr("a/program", "user.origin", "größe".encode())
os.setxattr("a/b", "user.binary", bytes(range(256)))
os.mkfifo("fifo", 0o640)
os.chown("a/b/c", 33, 34)
os.chown("a/program", 1234, 5678)
os.lchown("relative", 33, 33)
os.chmod("a/b/c/empty", 0o1777)
write("setuid", b"", 0o4755)
os.utime("a/secret", ns=(10**18 + 1, 10**18 + 123_456_789))
os.utime("a", ns=(10**18, 10**18 + 5))
os.sync()
"""

# What that makes, the directory itself included.
ENTRIES = 23

_DESCRIBE = r"""
import hashlib, json, os, stat, sys
os.chdir(sys.argv[1])
skipped, as_digest = set(json.loads(sys.argv[2])), sys.argv[3] == "digest"
entries, first = [], {}
def describe(path):
    info = os.lstat(path)
    kind = stat.S_IFMT(info.st_mode)
    entry = {"path": os.fsencode(path).decode("latin-1"), "mode": oct(info.st_mode)}
    entry["owner"] = [info.st_uid, info.st_gid]
    names = os.listxattr(path, follow_symlinks=False)
    entry["xattrs"] = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        entry["size"] = info.st_size
        entry["is_sparse"] = info.st_size > 1 << 20 and info.st_blocks * 512 < info.st_size // 2
        if info.st_nlink > 1:
            entry["same_as"] = first.setdefault((info.st_dev, info.st_ino), entry["path"])
    elif kind == stat.S_IFLNK:
        entry["target"] = os.readlink(path)
    if kind in (stat.S_IFREG, stat.S_IFDIR) and not as_digest:
        entry["modified"] = info.st_mtime_ns
    entries.append(entry)
describe(".")
for directory, names, files in os.walk("."):
    def is_wanted(name):
        path = os.path.join(directory, name)
        return path not in skipped and not os.path.ismount(path)
    names[:] = sorted(filter(is_wanted, names))
    for name in sorted(filter(is_wanted, names + files)):
        describe(os.path.join(directory, name))
text = json.dumps(sorted(entries, key=lambda entry: entry["path"]), sort_keys=True)
print(hashlib.sha256(text.encode()).hexdigest() if as_digest else text)
"""

# What the node writes into the root of each sandbox, and what programs leave by themselves.
OF_THE_NODE = (
    "./etc/hostname", "./etc/hosts", "./etc/resolv.conf", "./tmp", "./run", "./var/tmp",
    "./root/.cache", "./home/app/.cache",
)  # fmt: skip


def build(sandbox, directory: str) -> None:
    """Fills an empty directory; about 130 kB."""
    python(sandbox, _BUILD, directory, sudo=True)


def describe(sandbox, directory: str) -> list[dict]:
    """Everything about every entry below a directory: content, owners, links, holes, attributes."""
    return json.loads(python(sandbox, _DESCRIBE, directory, "[]", "", sudo=True))


def digest(sandbox, directory: str = "/", skip: tuple[str, ...] = OF_THE_NODE) -> str:
    """A checksum of the same, without times. Other mounts are left out."""
    return python(sandbox, *digest_command(directory, skip), sudo=True).strip()


def digest_command(directory: str = "/", skip: tuple[str, ...] = OF_THE_NODE) -> tuple[str, ...]:
    """The program that prints the checksum, and its arguments."""
    return _DESCRIBE, directory, json.dumps(skip), "digest"
