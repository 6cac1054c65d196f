"""What databases, version control and package managers expect of a file system, on a volume."""

from __future__ import annotations

import contextlib

import pytest
import trees
from support import bash, python, volume


@pytest.fixture(scope="module")
def disk(shared):
    """A volume for all tests of this module."""
    with volume(shared, "4GB") as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(sdk, disk):
    """A sandbox that has it at `/v`."""
    with sdk.sandbox.create(volumes={"/v": disk["id"]}, memory_mb=2048) as sandbox:
        yield sandbox


@pytest.fixture
def place(sandbox, request):
    """A directory of the test's own on the volume."""
    path = f"/v/{request.node.name}"
    bash(sandbox, f"mkdir {path}")
    yield path
    bash(sandbox, f"sudo rm -rf {path}")


def ok(sandbox, script: str) -> str:
    """Runs a script that must succeed."""
    code, out, err = bash(sandbox, f"set -e; {script}")
    assert code == 0, err
    return out


SQLITE = """
import sqlite3
db = sqlite3.connect("/v/data.db", isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("pragma synchronous=full")
db.execute("create table if not exists rows(n integer primary key, text blob)")
n = db.execute("select coalesce(max(n) + 1, 0) from rows").fetchone()[0]
while True:
    db.execute("begin")
    db.execute("insert into rows values (?, randomblob(3000))", (n,))
    db.execute("insert into rows values (?, randomblob(3000))", (n + 1,))
    db.execute("commit")
    n += 2
    print(n, flush=True)
"""
SQLITE_CHECK = """
import sqlite3
db = sqlite3.connect("/v/data.db")
print(db.execute("pragma integrity_check").fetchone()[0])
print(*db.execute("select count(*), max(n) + 1 from rows").fetchone())
"""


def test_sqlite_with_a_log_survives_kills(shared, sdk):
    """The sandbox is killed in the middle of writing, three times."""
    with volume(shared) as made:
        acknowledged = 0
        for _ in range(3):
            manager = sdk.sandbox.create(volumes={"/v": made["id"]})
            sandbox = manager.__enter__()
            child = sandbox.spawn("python3", args=["-c", SQLITE], stdout="piped", stderr="inherit")
            for _ in range(50):
                acknowledged = int(child.stdout.readline())
            sandbox.kill()
            sandbox._async._processes.clear()
            with contextlib.suppress(Exception):
                manager.__exit__(None, None, None)
            with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
                said, rows, following = python(sandbox, SQLITE_CHECK).split()
                assert said == "ok"
                assert int(rows) == int(following) >= acknowledged
                assert int(rows) % 2 == 0, "a transaction is there in full or not at all"


def test_git(sandbox, place):
    out = ok(
        sandbox,
        f"""
        export GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example.com
        export GIT_COMMITTER_NAME=A GIT_COMMITTER_EMAIL=a@example.com
        cd {place}; git init -q one; cd one
        for commit in 1 2 3 4 5; do
            for n in $(seq 100); do echo $commit $n $RANDOM > file-$n; done
            git add -A; git commit -qm "commit $commit"
        done
        cd ..; git clone -q one two; git clone -q --no-hardlinks one three
        git -C one gc -q --aggressive --prune=now
        for copy in one two three; do
            git -C $copy fsck --full --strict 1>&2; git -C $copy rev-parse HEAD
        done
        echo more > two/file-1; git -C two commit -qam more; git -C one fetch -q ../two
        git -C one log --oneline FETCH_HEAD | wc -l
        """,
    ).split()
    assert len(set(out[:3])) == 1
    assert out[3] == "6"


def test_npm_install(sandbox, place):
    out = ok(
        sandbox,
        f"""
        cd {place}; npm init -y > /dev/null
        npm install --no-audit --no-fund express typescript > /dev/null
        node -e 'require("express")(); console.log("express")'
        npx tsc --version; ls -l node_modules/.bin/tsc | cut -c1
        """,
    ).split()
    assert out[:2] == ["express", "Version"]
    assert out[3] == "l"


LOCKS = """
import fcntl, os, subprocess, sys, time
path = sys.argv[1] + "/lock"
file = open(path, "w")
fcntl.flock(file, fcntl.LOCK_EX)
other = "import fcntl, sys; f = open(sys.argv[1], 'r+')\\n"
def attempt(call):
    code = other + f"try: {call}; print('got')\\nexcept OSError as error: print(error.errno)"
    command = [sys.executable, "-c", code, path]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
print(attempt("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"))
fcntl.flock(file, fcntl.LOCK_UN)
print(attempt("fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"))
fcntl.lockf(file, fcntl.LOCK_EX, 100, 0)
print(attempt("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 50)"))
print(attempt("fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 200)"))
# Waiting ends when the holder lets go.
code = other + "fcntl.lockf(f, fcntl.LOCK_EX); print('waited')"
command = [sys.executable, "-c", code, path]
waiter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
time.sleep(0.2)
assert waiter.poll() is None
fcntl.lockf(file, fcntl.LOCK_UN)
print(waiter.communicate(timeout=10)[0].strip())
"""


def test_locks_between_processes(sandbox, place):
    assert python(sandbox, LOCKS, place).split() == ["11", "got", "11", "got", "waited"]


MMAP = """
import mmap, os, subprocess, sys
path = sys.argv[1] + "/mapped"
with open(path, "wb") as file:
    file.truncate(8 << 20)
with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    for page in range(0, len(memory), 4096):
        memory[page : page + 8] = page.to_bytes(8, "big")
    memory[5 << 20 : (5 << 20) + 6] = b"shared"
    # Another process sees it before anything is flushed, through a mapping and through read.
    other = (
        "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0);"
        "f.seek(5 << 20); print(m[5 << 20:(5 << 20) + 6] == f.read(6)); m[0:4] = b'back'"
    )
    subprocess.run([sys.executable, "-c", other, path], check=True)
    print(bytes(memory[0:4]).decode())
    memory.flush()
    file.seek(4096)
    print(file.read(8) == (4096).to_bytes(8, "big"))
"""


def test_shared_mappings(sandbox, place):
    assert python(sandbox, MMAP, place).split() == ["True", "back", "True"]


CALLS = """
import errno, fcntl, mmap, os, sys, tempfile
os.chdir(sys.argv[1])
def fails(number, call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        assert error.errno == number, (call, error)
    else:
        raise AssertionError(call)
# Rename replaces in one step, open files live on.
open("a", "w").write("old"); held = open("a"); open("b", "w").write("new")
os.rename("b", "a")
assert (held.read(), open("a").read()) == ("old", "new")
os.mkdir("d"); open("d/x", "w").close()
fails(errno.ENOTEMPTY, os.rmdir, "d"); fails(errno.EISDIR, os.unlink, "d")
fails(errno.EEXIST, os.mkdir, "d"); fails(errno.ENAMETOOLONG, os.mkdir, "n" * 256)
# Room that is reserved, taken back in the middle, and written around the cache.
handle = os.open("direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
os.posix_fallocate(handle, 0, 4 << 20)
assert os.fstat(handle).st_blocks * 512 >= 4 << 20
page = mmap.mmap(-1, 4096); page[:] = b"x" * 4096
assert os.pwrite(handle, page, 8192) == 4096
assert os.preadv(handle, [page], 0) == 4096 and bytes(page) == bytes(4096)
os.close(handle)
# Holes.
with open("sparse", "wb") as file:
    file.truncate(1 << 30); file.seek(512 << 20); file.write(b"x")
info = os.stat("sparse")
assert info.st_size == 1 << 30 and info.st_blocks * 512 < 1 << 20
with open("sparse", "rb") as file:
    assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 512 << 20
    assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 0
    assert file.read(4096) == bytes(4096)
# Files without a name, and times to the nanosecond.
with tempfile.TemporaryFile(dir=".") as file:
    file.write(b"x")
os.utime("a", ns=(1, 1_700_000_000_123_456_789))
assert os.stat("a").st_mtime_ns == 1_700_000_000_123_456_789
os.setxattr("a", "user.note", b"v"); assert os.getxattr("a", "user.note") == b"v"
fails(errno.EEXIST, os.setxattr, "a", "user.note", b"w", os.XATTR_CREATE)
os.removexattr("a", "user.note"); fails(errno.ENODATA, os.getxattr, "a", "user.note")
os.link("a", "hard"); assert os.stat("a").st_nlink == 2 and os.path.samefile("a", "hard")
print("done")
"""


def test_calls(sandbox, place):
    assert python(sandbox, CALLS, place) == "done\n"
    sizes = ok(sandbox, f"ls -l {place}/sparse | cut -d' ' -f5; du -k {place}/sparse | cut -f1").split()
    assert int(sizes[0]) == 1 << 30
    assert int(sizes[1]) < 1024


TREE = """
import os, shutil, sys, time
root = sys.argv[1] + "/tree"
for directory in range(200):
    path = f"{root}/{directory % 10}/{directory}"
    os.makedirs(path)
    for number in range(500):
        os.close(os.open(f"{path}/{number}", os.O_CREAT | os.O_WRONLY))
count = sum(len(files) for _, _, files in os.walk(root))
os.sync()
shutil.rmtree(root)
print(count, os.path.exists(root))
"""


def test_a_hundred_thousand_files(sandbox, place):
    inodes = "import os; print(os.statvfs('/v').f_ffree)"
    before = int(python(sandbox, inodes))
    assert before > 100_000
    assert python(sandbox, TREE, place) == "100000 False\n"
    assert int(python(sandbox, inodes)) == before


def test_everything_that_a_tree_holds_is_there_after_a_kill(shared, sdk):
    """Owners, links, holes, attributes, names and times, seen by the next sandbox elsewhere."""
    with volume(shared) as made:
        with sdk.sandbox.create(volumes={"/v": made["id"]}) as sandbox:
            trees.build(sandbox, "/v")
            before = trees.describe(sandbox, "/v")
            sandbox.kill()
        assert len(before) == trees.ENTRIES
        with sdk.sandbox.create(volumes={"/deep/er": made["id"]}) as sandbox:
            assert trees.describe(sandbox, "/deep/er") == before
            # Left behind by us, harmless to the sandbox: its own root may change all of it.
            assert bash(sandbox, "sudo chown -R app /deep/er && rm -rf /deep/er/* && ls /deep/er")[0] == 0
