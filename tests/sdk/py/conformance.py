"""What the checks of `../conformance/methods.json` share.

A check is written once, for the asynchronous SDK. For the synchronous one, `Awaited` makes calls
awaitable, each in a thread of its own, as a program would do it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import Api

ROWS = json.loads((Path(__file__).parent.parent / "conformance/methods.json").read_text())
LISTED = {row["python"]: row for row in ROWS if "python" in row}
CHECKS: dict[str, Any] = {}


def check(method: str):
    """Registers the check of one method; `method` is its name in the list."""
    assert method in LISTED, f"{method} is not in methods.json"

    def register(function):
        CHECKS[method] = function
        return function

    return register


def record(kind: str, method: str, passed: bool) -> None:
    """Leaves the result where the harness reads it."""
    scratch = os.environ.get("SANDSTONE_TEST_SCRATCH")
    if scratch:
        directory = Path(scratch) / "conformance"
        directory.mkdir(exist_ok=True)
        with (directory / f"{kind}.jsonl").open("a") as file:
            file.write(json.dumps({"method": method, "passed": passed}) + "\n")


class Call:
    """One call of the synchronous SDK: to be awaited, or entered if it makes a context."""

    def __init__(self, function, arguments, options):
        self._run = lambda: function(*arguments, **options)

    def __await__(self):
        return self._awaited().__await__()

    async def _awaited(self):
        return awaited(await asyncio.to_thread(self._run))

    async def __aenter__(self):
        self._context = self._run()
        return awaited(await asyncio.to_thread(self._context.__enter__))

    async def __aexit__(self, *error):
        return await asyncio.to_thread(self._context.__exit__, *error)


class Awaited:
    """An object of the synchronous SDK, with the interface of the asynchronous one."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        value = getattr(self._inner, name)
        if callable(value):
            return lambda *arguments, **options: Call(value, arguments, options)
        return awaited(value)

    async def __aenter__(self):
        return awaited(await asyncio.to_thread(self._inner.__enter__))

    async def __aexit__(self, *error):
        return await asyncio.to_thread(self._inner.__exit__, *error)


def awaited(value):
    """The SDK's own objects need the interface; plain values do not."""
    return Awaited(value) if type(value).__module__.startswith("deno_sandbox") else value


@dataclass
class World:
    """What a check works with."""

    kind: str
    api: Api
    sdk: Any
    # One sandbox for all checks that do not mind company.
    sandbox: Any
    root: str
    """The slug of a bootable volume; `root` + "-s" is a snapshot of it."""
    trees: int = 0

    async def bash(self, script: str, sandbox=None, **options):
        """Runs a script; returns code, stdout, stderr."""
        child = await (sandbox or self.sandbox).spawn(
            "bash", args=["-c", script], stdout="piped", stderr="piped", **options
        )
        out, err = await child.stdout.read(-1), await child.stderr.read(-1)
        return (await child.wait())["code"], out.decode(), err.decode()

    async def tree(self, files: dict[str, str] | None = None) -> str:
        """A directory of this check alone, with these files."""
        self.trees += 1
        root = f"/tmp/tree-{self.trees}"
        await self.sandbox.fs.mkdir(root)
        for name, text in (files or {}).items():
            if "/" in name:
                await self.sandbox.fs.mkdir(f"{root}/{name.rpartition('/')[0]}", recursive=True)
            await self.sandbox.fs.write_text_file(f"{root}/{name}", text)
        return root

    async def is_alive(self, pid: int) -> bool:
        """Whether a process of the shared sandbox runs."""
        return (await self.bash(f"kill -0 {pid}"))[0] == 0


@contextlib.contextmanager
def fails(name: str | None = None, code: str | None = None, text: str | None = None):
    """A call inside a sandbox that fails with this class, this code and this text."""
    with pytest.raises(Exception, match="Application Error") as failure:
        yield
    message = str(failure.value)
    if name:
        assert re.search(rf"'constructor_name': '{name}'", message), message
    if code:
        assert re.search(rf"'code': '{code}'", message), message
    if text:
        assert text in message


async def until(what: str, condition, seconds: float = 15.0):
    """Polls until `await condition()` is true."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.05)
