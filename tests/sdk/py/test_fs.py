"""Everything of `sandbox.fs` beyond reading and writing whole files, through the Python SDK."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re

import pytest
from support import MIB, bash


@pytest.fixture(scope="module")
def sandbox(sdk):
    with sdk.sandbox.create() as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def fs(sandbox):
    return sandbox.fs


def refused(code: str):
    """The SDK has no classes for errors: the code is in the text."""
    return pytest.raises(Exception, match=f"'code': '{code}'")


def test_names_and_links(fs):
    fs.write_text_file("one", "content")
    fs.rename("one", "two")
    with refused("ENOENT"):
        fs.rename("one", "two")
    fs.copy_file("two", "three")
    fs.link("two", "four")
    assert fs.stat("two")["nlink"] == 2
    fs.symlink("./two", "five", type="file")
    assert fs.read_link("five") == "./two"
    assert fs.real_path("five") == "/home/app/two"
    assert fs.read_text_file("five") == "content"
    with refused("EEXIST"):
        fs.symlink("x", "five")
    with refused("EINVAL"):
        fs.read_link("two")


def test_size_mode_owner_times(fs):
    fs.write_file("file", b"0123456789", mode=0o640)
    assert fs.stat("file")["mode"] & 0o7777 == 0o640
    fs.truncate("file", 4)
    assert fs.read_file("file") == b"0123"
    fs.truncate("file")
    assert fs.stat("file")["size"] == 0
    fs.chmod("file", 0o600)
    assert fs.stat("file")["mode"] & 0o7777 == 0o600
    fs.chown("file", uid=1000)
    fs.chown("file")
    with refused("EPERM"):
        fs.chown("file", uid=0)
    for time, told in [
        (1_700_000_000, "2023-11-14T22:13:20.000Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250Z"),
        ("2001-02-03T04:05:06.789Z", "2001-02-03T04:05:06.789Z"),
        ("2001-02-03T04:05:06", "2001-02-03T04:05:06.000Z"),
    ]:
        fs.utime("file", time, time)
        assert fs.stat("file")["mtime"] == told
    with pytest.raises(Exception, match="date"):
        fs.utime("file", "yesterday", "today")


def test_umask_and_temporary_files(fs):
    assert fs.umask() == 0o022
    assert fs.umask(0o077) == 0o022
    fs.mkdir("private")
    assert fs.umask(0o022) == 0o077
    assert fs.stat("private")["mode"] & 0o777 == 0o700
    assert re.fullmatch(r"/tmp/[0-9a-f]{8}", fs.make_temp_dir())
    file = fs.make_temp_file(dir="/home/app", prefix="a-", suffix=".txt")
    assert re.fullmatch(r"/home/app/a-[0-9a-f]{8}\.txt", file)


def test_writing_as_deno_does(fs):
    with refused("ENOENT"):
        fs.write_file("fresh", b"", create=False)
    fs.write_file("fresh", b"one", create_new=True)
    with refused("EEXIST"):
        fs.write_file("fresh", b"", create_new=True)
    fs.write_file("fresh", b" two", append=True)
    fs.write_text_file("fresh", " three", append=True, mode=0o600)
    assert fs.read_text_file("fresh") == "one two three"
    assert fs.stat("fresh")["mode"] & 0o777 == 0o600
    with refused("EISDIR"):
        fs.write_file("/home/app", b"")
    with refused("ENOTDIR"):
        fs.write_file("fresh/below", b"")


def test_open_files(fs):
    with fs.create("open") as file:
        assert file.write(b"0123456789") == 10
        assert file.read(5) == b""
        assert file.seek(-4, 2) == 6
        assert file.seek(2, 0) == 2
        assert file.read(3) == b"234"
        file.truncate(4)
        file.sync()
        file.sync_data()
        file.utime(1, 2.5)
        assert file.stat()["size"] == 4
        assert file.stat()["mtime"] == "1970-01-01T00:00:02.500Z"
        file.truncate(None)
        file.lock(True)
        file.unlock()
    with refused("EBADF"):
        file.stat()
    with refused("EINVAL"):
        fs.open("open", read=True, create=True)
    with fs.open("open", append=True) as file:
        file.write(b"end")
    assert fs.read_file("open") == b"end"


def test_a_large_file(fs):
    """Up as a stream; down through an open file, in answers that this SDK can take."""
    chunk = os.urandom(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()

    def source():
        for number in range(100):
            piece = number.to_bytes(4) + chunk[4:]
            sent.update(piece)
            yield piece[: MIB // 2]
            yield piece[MIB // 2 :]

    fs.write_file("huge", source())
    with fs.open("huge", read=True) as file:
        assert file.stat()["size"] == 100 * MIB
        while data := file.read(MIB):
            received.update(data)
    assert received.hexdigest() == sent.hexdigest()
    fs.remove("huge")


def test_locks_between_two_clients(sandbox, shared):
    async def scenario():
        async with shared.async_sdk().sandbox.connect(sandbox.id) as one:
            async with shared.async_sdk().sandbox.connect(sandbox.id) as two:
                first = await one.fs.open("lock", read=True, write=True, create=True)
                second = await two.fs.open("lock", read=True)
                await first.lock(True)
                waits = asyncio.create_task(second.lock(False))
                assert await second._rpc.call("readDir", {"path": "."})
                assert not waits.done()
                await first.unlock()
                await asyncio.wait_for(waits, 10)
                waits = asyncio.create_task(first.lock(True))
                await asyncio.sleep(0.05)
                assert not waits.done()
            # The end of a session gives up its locks.
            await asyncio.wait_for(waits, 10)

    asyncio.run(scenario())


def test_walk_and_glob_are_lists(sandbox, fs):
    code, _, err = bash(
        sandbox, "mkdir -p tree/a/b && cd tree && touch one.py a/two.py a/b/three.txt && ln -s a to-a && mkfifo fifo"
    )
    assert (code, err) == (0, "")
    kinds = {entry["path"]: [key for key in entry if key.startswith("is_") and entry[key]] for entry in fs.walk("tree")}
    assert kinds == {
        "tree": ["is_directory"],
        "tree/a": ["is_directory"],
        "tree/a/b": ["is_directory"],
        "tree/a/b/three.txt": ["is_file"],
        "tree/a/two.py": ["is_file"],
        "tree/fifo": [],
        "tree/one.py": ["is_file"],
        "tree/to-a": ["is_symlink"],
    }

    def walked(**options):
        return sorted(entry["path"] for entry in fs.walk("tree", **options))

    assert walked(max_depth=1, include_dirs=False, include_symlinks=False) == ["tree/fifo", "tree/one.py"]
    assert walked(exts=["py"]) == ["tree/a/two.py", "tree/one.py"]
    assert walked(include_files=False, include_symlinks=False) == ["tree", "tree/a", "tree/a/b"]
    top = "/home/app/tree"
    assert "tree/to-a/two.py" in walked(follow_symlinks=True, canonicalize=False)
    assert f"{top}/a/two.py" in walked(follow_symlinks=True)
    assert fs.expand_glob("tree/**/*.py") == [f"{top}/a/two.py", f"{top}/one.py"]
    assert fs.expand_glob("*", root="tree/a", include_dirs=False) == [f"{top}/a/two.py"]
    assert fs.expand_glob("tree/ONE.*", case_insensitive=True, exclude=["tree/a"]) == [f"{top}/one.py"]
    assert fs.expand_glob("none/*") == []
    with refused("ENOENT"):
        fs.walk("none")
    # Trap 7: the list must fit into one message.
    with refused("EMSGSIZE"):
        fs.walk("/usr")


def test_a_tree_goes_up(sandbox, fs, tmp_path):
    source = tmp_path / "source"
    (source / "deep" / "empty").mkdir(parents=True)
    data = os.urandom(200_000)
    (source / "deep" / "data").write_bytes(data)
    (source / "link").symlink_to("deep/data")
    (source / "dangling").symlink_to("nowhere")
    fs.upload(str(source), "up/here")
    assert fs.read_file("up/here/deep/data") == data
    assert fs.read_link("up/here/link") == "deep/data"
    assert fs.read_link("up/here/dangling") == "nowhere"
    assert fs.read_dir("up/here/deep/empty") == []
    # What the SDK's download asks for is no method of any server: it would be about local files.
    with pytest.raises(Exception):
        fs.download("up/here", str(tmp_path / "down"))
    assert not (tmp_path / "down").exists()
