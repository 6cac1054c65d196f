"""Every method of the Python SDK, synchronous and asynchronous, checked one by one."""

from __future__ import annotations

import asyncio
import contextlib

import conformance
import pytest
from conformance import CHECKS, LISTED, ROWS, Awaited, World
from support import BASE, BOOTABLE, new_slug

import conformance_files  # noqa: F401
import conformance_processes  # noqa: F401
import conformance_sandbox  # noqa: F401
import conformance_storage  # noqa: F401

KINDS = ["python", "python_async"]


@pytest.fixture(scope="module", params=KINDS)
def world(request, shared):
    """One of the two SDKs, with a sandbox, in an event loop that lasts for all its checks."""
    kind = request.param
    sdk = Awaited(shared.sdk()) if kind == "python" else shared.async_sdk()
    root = new_slug("conf")
    stack = contextlib.AsyncExitStack()

    async def build() -> World:
        await sdk.volumes.create(slug=root, region="ord", capacity=BOOTABLE, from_snapshot=BASE)
        await sdk.volumes.snapshot(root, slug=f"{root}-s")
        sandbox = await stack.enter_async_context(sdk.sandbox.create(labels={"suite": root}))
        return World(kind, shared, sdk, sandbox, root)

    with asyncio.Runner() as runner:
        try:
            yield runner, runner.run(build())
        finally:
            runner.run(stack.aclose())
            shared.request("DELETE", f"/api/v2/snapshots/{root}-s")
            shared.request("DELETE", f"/api/v2/volumes/{root}")


@pytest.mark.parametrize("method", CHECKS)
def test_conformance(method, world, shared):
    runner, w = world
    if w.kind in LISTED[method].get("absent", []):
        return
    try:
        runner.run(asyncio.wait_for(CHECKS[method](w), 60))
    except BaseException:
        conformance.record(w.kind, method, False)
        raise
    conformance.record(w.kind, method, True)


def members(prefix: str, kind: type) -> list[str]:
    """The names that users see on a class."""
    contexts = {"__enter__", "__exit__", "__aenter__", "__aexit__", "__aiter__", "__anext__"}
    return [
        f"{prefix}.{name}"
        for name in dir(kind)
        if (not name.startswith("_") or name in contexts) and name not in dir(object)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_conformance_lists_every_method(kind, shared):
    from deno_sandbox import process, rpc, sandbox
    from deno_sandbox.console import AsyncPaginatedList, PaginatedList
    from deno_sandbox.env import AsyncSandboxEnv, SandboxEnv
    from deno_sandbox.fs import AsyncFsFile, AsyncSandboxFs, FsFile, SandboxFs

    is_sync = kind == "python"
    sdk = shared.sdk() if is_sync else shared.async_sdk()
    found = []
    for space in ["apps", "revisions", "layers", "timelines", "sandbox", "snapshots", "volumes"]:
        found += members(f"sdk.{space}", type(getattr(sdk, space)))
    for prefix, kinds in {
        "sandbox": (sandbox.Sandbox, sandbox.AsyncSandbox),
        "sandbox.fs": (SandboxFs, AsyncSandboxFs),
        "sandbox.env": (SandboxEnv, AsyncSandboxEnv),
        "sandbox.deno": (sandbox.SandboxDeno, sandbox.AsyncSandboxDeno),
        "Build": (sandbox.Build, sandbox.AsyncBuild),
        "FsFile": (FsFile, AsyncFsFile),
        "PaginatedList": (PaginatedList, AsyncPaginatedList),
        "ChildProcess": (process.ChildProcess, process.AsyncChildProcess),
        "DenoProcess": (process.DenoProcess, process.AsyncDenoProcess),
        "DenoRepl": (process.DenoRepl, process.AsyncDenoRepl),
        "FetchResponse": (rpc.FetchResponse, rpc.AsyncFetchResponse),
    }.items():
        found += members(prefix, kinds[0 if is_sync else 1])
    if is_sync:
        found += members("StreamReader", process.SyncStreamReader)
    assert len(found) > 120

    listed = {name.split("(")[0] for name in LISTED}
    listed |= {name for row in ROWS for name in row.get("also", [])}
    # What a class inherits, or makes of a process, is listed where it comes from.
    inherited = {name.split(".")[1] for name in listed if name.startswith("ChildProcess.")}
    unknown = [
        name
        for name in found
        if name not in listed
        and not (name.split(".")[0] in ("DenoProcess", "DenoRepl") and name.split(".")[1] in inherited)
        # How the SDK makes its own processes.
        and not name.endswith("Process.create") and name != "DenoRepl.create"
    ]
    assert not unknown
    assert not [name for name in LISTED if name not in CHECKS]
