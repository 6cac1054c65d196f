"""One slice of work on a directory: `workload.py KIND DIRECTORY SECONDS MEGABYTES FILES`.

The same program runs on the host, in a container and in a sandbox, from the same root file system,
so only the file system below the directory differs. Prints operations, bytes or files per second.
"""

import io
import json
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time

KIND, DIRECTORY = sys.argv[1:3]
SECONDS, MEGABYTES, FILES = float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
MIB = 1 << 20
DATA = os.path.join(DIRECTORY, "data")
OTHER = os.path.join(DIRECTORY, "other")
clock = time.perf_counter


def aligned(size):
    """Memory as direct I/O wants it, with content that nothing can shorten."""
    memory = mmap.mmap(-1, size)
    memory.write(os.urandom(size))
    return memory


def fill(path, megabytes):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    rest = memoryview(os.urandom(MIB))[8:]
    for at in range(megabytes):
        # A different block each time, at the price of a few bytes.
        os.pwritev(fd, [at.to_bytes(8, "big"), rest], at * MIB)
    os.fsync(fd)
    os.close(fd)


def repeat(step, scale=1):
    """Calls `step(n)` until the time is over; returns how often a second."""
    begun, count = clock(), 0
    while True:
        step(count)
        count += 1
        now = clock() - begun
        if now >= SECONDS:
            return count * scale / now


def prepare():
    fill(DATA, MEGABYTES)
    fill(OTHER, 64)
    database().executescript("create table t (n integer primary key, text text)")
    return 1


def scatter():
    """Writes every second block of a file anew."""
    fd = os.open(DATA, os.O_WRONLY)
    block = os.urandom(4096)
    for at in range(0, MEGABYTES * MIB, 8192):
        os.pwrite(fd, block, at)
    os.fsync(fd)
    return 1


def write_fsync():
    fd = os.open(OTHER, os.O_WRONLY)
    block = os.urandom(4096)

    def step(_):
        os.pwrite(fd, block, random.randrange(64 * 256) * 4096)
        os.fsync(fd)

    return repeat(step)


def random_read():
    fd, memory = os.open(DATA, os.O_RDONLY | os.O_DIRECT), aligned(4096)
    return repeat(lambda _: os.preadv(fd, [memory], random.randrange(MEGABYTES * 256) * 4096))


def read_direct():
    fd, memory = os.open(DATA, os.O_RDONLY | os.O_DIRECT), aligned(MIB)
    start = random.randrange(MEGABYTES)
    return repeat(lambda n: os.preadv(fd, [memory], (start + n) % MEGABYTES * MIB), MIB)


def write_direct():
    fd, memory = os.open(DATA, os.O_WRONLY | os.O_DIRECT), aligned(MIB)
    start = random.randrange(MEGABYTES)
    return repeat(lambda n: os.pwritev(fd, [memory], (start + n) % MEGABYTES * MIB), MIB)


def read_buffered():
    fd = os.open(DATA, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    begun = clock()
    for at in range(MEGABYTES):
        os.pread(fd, MIB, at * MIB)
    return MEGABYTES * MIB / (clock() - begun)


def write_buffered():
    path = os.path.join(DIRECTORY, "new")
    begun = clock()
    fill(path, MEGABYTES // 4)
    seconds = clock() - begun
    os.unlink(path)
    return MEGABYTES // 4 * MIB / seconds


def database():
    connection = sqlite3.connect(os.path.join(DIRECTORY, "db"), isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    connection.execute("pragma synchronous = full")
    return connection


def sqlite_wal():
    connection, text = database(), "x" * 100

    def step(_):
        connection.execute("begin immediate")
        connection.executemany("insert into t (text) values (?)", [(text,)] * 5)
        connection.execute("commit")

    return repeat(step)


def untar():
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for number in range(FILES):
            entry = tarfile.TarInfo(f"{number % 100}/{number}")
            entry.size = 200 + number * 37 % 8000
            archive.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    tree = os.path.join(DIRECTORY, "tree")
    shutil.rmtree(tree, ignore_errors=True)
    os.mkdir(tree)
    begun = clock()
    subprocess.run(["tar", "-x", "-f", "-", "-C", tree], input=memory.getbuffer(), check=True)
    subprocess.run(["sync", "-f", tree], check=True)
    seconds = clock() - begun
    shutil.rmtree(tree)
    return FILES / seconds


print(json.dumps({"rate": globals()[KIND]()}))
