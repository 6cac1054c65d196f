"""Reads, writes and removes files of the tree at /mnt/image, on behalf of the server.

Usage: python3 -I -S -X utf8 -c THIS VERB PATH, as root, with PATH absolute and normal.

read    Standard output: one line of JSON, {"directory": [...]} or "file"; then the file's
        content.
write   Standard input: pieces, each after its length in four bytes, most significant first; a
        piece without bytes means that the content is complete. Parents are made.
remove  Removes a file, a link, or a directory with everything in it.

The tree is the root directory while all this happens, so symbolic links lead where they led for
whoever had the tree as the root, and never out of it. Success is exit code 0; else standard error
has a line "error NAME", with the name of the system's error.
"""

import errno
import json
import os
import shutil
import stat
import sys

TREE = "/mnt/image"
ENTRIES_MAX = 100_000
CHUNK = 128 << 10

# File descriptors by number, also when the tree is the root.
DESCRIPTORS = os.open("/proc/self/fd", os.O_PATH)


def fail(number):
    raise OSError(number, os.strerror(number))


def read(path):
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    status = os.fstat(file)
    output = sys.stdout.buffer
    if stat.S_ISDIR(status.st_mode):
        entries = []
        for entry in os.scandir(file):
            entries.append(describe(entry))
            if len(entries) > ENTRIES_MAX:
                fail(errno.EOVERFLOW)
        entries.sort(key=lambda entry: entry["name"])
        output.write(json.dumps({"directory": entries}).encode() + b"\n")
    elif stat.S_ISREG(status.st_mode):
        output.write(b'"file"\n')
        while chunk := os.read(file, CHUNK):
            output.write(chunk)
    else:
        fail(errno.EINVAL)
    output.flush()


def describe(entry):
    status = entry.stat(follow_symlinks=False)
    kind = "other"
    if stat.S_ISREG(status.st_mode):
        kind = "file"
    elif stat.S_ISDIR(status.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(status.st_mode):
        kind = "symlink"
    name = os.fsencode(entry.name).decode(errors="replace")
    return {"name": name, "kind": kind, "size": status.st_size if kind == "file" else 0}


def write(path):
    # A link is written through, as by any other program.
    directory, name = os.path.split(os.path.realpath(path))
    if not name:
        fail(errno.EISDIR)
    make_directories(directory)
    parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        owner = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        owner, mode, is_new = os.fstat(parent), 0o644, True
    else:
        mode, is_new = stat.S_IMODE(owner.st_mode), False
        if stat.S_ISDIR(owner.st_mode):
            fail(errno.EISDIR)
        if not stat.S_ISREG(owner.st_mode):
            fail(errno.EINVAL)
    # Without a name, so that nothing is left of it when this ends early.
    file = os.open(".", os.O_WRONLY | os.O_TMPFILE, 0o600, dir_fd=parent)
    for chunk in content():
        view = memoryview(chunk)
        while view:
            view = view[os.write(file, view):]
    os.fchown(file, owner.st_uid, owner.st_gid)
    os.fchmod(file, mode)
    os.fsync(file)
    # A link cannot replace a file, a rename can.
    fresh = name if is_new else f".sandstone-{os.getpid()}-{os.fstat(file).st_ino}"
    os.link(str(file), fresh, src_dir_fd=DESCRIPTORS, dst_dir_fd=parent, follow_symlinks=True)
    if not is_new:
        os.rename(fresh, name, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)


def content():
    source = sys.stdin.buffer
    while True:
        length = source.read(4)
        if len(length) < 4:
            fail(errno.ECANCELED)
        left = int.from_bytes(length, "big")
        if left == 0:
            return
        while left > 0:
            chunk = source.read(min(left, CHUNK))
            if not chunk:
                fail(errno.ECANCELED)
            left -= len(chunk)
            yield chunk


def make_directories(path):
    """Makes what is missing; each belongs to whom the one above it belongs."""
    missing = []
    while not os.path.isdir(path):
        if os.path.lexists(path):
            fail(errno.ENOTDIR)
        missing.append(path)
        path = os.path.dirname(path)
    owner = os.stat(path)
    for path in reversed(missing):
        os.mkdir(path, 0o755)
        os.chown(path, owner.st_uid, owner.st_gid)


def remove(path):
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def main(verb, path):
    os.chroot(TREE)
    os.chdir("/")
    # What is imported from here on would be the tree's.
    sys.path.clear()
    sys.meta_path.clear()
    try:
        {"read": read, "write": write, "remove": remove}[verb](path)
    except OSError as error:
        number = error.errno or errno.EIO
    except MemoryError:
        number = errno.ENOMEM
    except RecursionError:
        number = errno.ELOOP
    else:
        return 0
    os.write(2, f"error {errno.errorcode.get(number, number)}\n".encode())
    return 1


if __name__ == "__main__":
    # Nothing is run or flushed at exit.
    os._exit(main(*sys.argv[1:3]))
