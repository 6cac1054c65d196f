"""Fixtures. `shared` is the server that `cargo xtask test` started; the others are the tests' own."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from support import Api, Server, setting, wait_until

import host


@pytest.fixture(scope="session")
def shared() -> Api:
    """The shared server, which runs with the host's trust."""
    return Api(os.environ["DENO_SANDBOX_ENDPOINT"], os.environ["DENO_DEPLOY_TOKEN"])


@pytest.fixture(scope="session")
def sdk(shared):
    """The synchronous SDK on the shared server."""
    return shared.sdk()


@pytest.fixture(autouse=True)
def nothing_left_running(request):
    """A test that leaves a sandbox behind on the shared server fails here, not in its neighbour."""
    if "shared" not in request.fixturenames:
        yield
        return
    api = request.getfixturevalue("shared")
    before = {sandbox["id"] for sandbox in api.running()}
    yield

    def extra():
        return [sandbox["id"] for sandbox in api.running() if sandbox["id"] not in before]

    # A session that has just been closed may still be on its way out.
    with contextlib.suppress(AssertionError):
        wait_until("all have ended", lambda: not extra(), 5)
    left = extra()
    for sandbox_id in left:
        api.end(sandbox_id)
    assert not left, f"left running: {left}"


@contextlib.contextmanager
def server_of_its_own(*arguments: str, pool: str = "4GiB"):
    """A server, not started yet; at the end nothing of it may be left on the host."""
    directory = Path(tempfile.mkdtemp(prefix="own-", dir=setting("SCRATCH")))
    server = Server(directory, pool, *arguments)
    try:
        yield server
    finally:
        if server.process is None:
            server.start()  # it cleans up after a crash
        server.stop()
        left = host.mounts_of(directory) + host.loops_of(directory)
        left += [f"process {pid}" for pid in host.processes_with(str(directory))]
        assert not left, f"left after SIGTERM: {left}"
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def own_server():
    """A server of the module's own."""
    with server_of_its_own() as server:
        yield server


@pytest.fixture
def own(own_server) -> Server:
    """The module's own server, running."""
    if own_server.process is None:
        own_server.start()
    return own_server


@pytest.fixture(scope="session")
def hasty() -> Server:
    """A server that removes the data of what was deleted after a second, and measures often."""
    with server_of_its_own(
        "--deletion-grace", "1s", "--purge-every", "200ms", "--measure-every", "500ms"
    ) as server:
        yield server.start()


@pytest.fixture(scope="session")
def small_pool() -> Server:
    """A server whose pool one volume can fill."""
    with server_of_its_own(
        "--deletion-grace", "1s", "--purge-every", "200ms", pool="2560MiB"
    ) as server:
        yield server.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Shows what a server answered: the SDKs' errors do not print the body."""
    report = yield
    response = getattr(call.excinfo.value, "response", None) if call.excinfo else None
    body = getattr(response, "body", None) or getattr(response, "content", None)
    if body:
        report.sections.append(("the server's answer", bytes(body).decode(errors="replace")))
    return report
