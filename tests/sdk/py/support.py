"""What the tests share: the harness's settings, a server under the test's control, raw requests."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import uuid
from pathlib import Path

import httpx
import pytest
from deno_sandbox import AsyncDenoDeploy, DenoDeploy
from deno_sandbox.errors import HTTPStatusError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as ws_connect

SMALL = "300MB"
MIB = 1 << 20
# What a bootable volume is made of, and the least that it needs.
BASE = "builtin:debian-13"
BOOTABLE = "1GB"


def setting(name: str) -> str:
    """A setting from the harness (`cargo xtask test` gives them all)."""
    value = os.environ.get(f"SANDSTONE_TEST_{name}")
    if not value:
        raise RuntimeError(f"SANDSTONE_TEST_{name} is not set: run `cargo xtask test --only sdk`")
    return value


def new_slug(prefix: str = "t") -> str:
    """A slug that no other test uses."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


def wait_until(what: str, condition, seconds: float = 15.0, interval: float = 0.05):
    """Polls until `condition()` is true, and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(interval)


class Api:
    """One server's address and token, with both kinds of client."""

    def __init__(self, url: str, token: str):
        self.url = url
        self.token = token

    def _construct(self, kind, token):
        # The SDK takes its endpoints from the environment only, when it is constructed.
        names = ("DENO_DEPLOY_TOKEN", "DENO_DEPLOY_ENDPOINT", "DENO_SANDBOX_ENDPOINT")
        before = {name: os.environ.get(name) for name in names}
        os.environ.update(
            DENO_DEPLOY_TOKEN=token or self.token,
            DENO_DEPLOY_ENDPOINT=self.url,
            DENO_SANDBOX_ENDPOINT=self.url,
        )
        try:
            return kind()
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def sdk(self, token: str | None = None) -> DenoDeploy:
        """The official client, synchronous."""
        return self._construct(DenoDeploy, token)

    def async_sdk(self, token: str | None = None) -> AsyncDenoDeploy:
        """The official client, asynchronous."""
        return self._construct(AsyncDenoDeploy, token)

    def environment(self) -> dict[str, str]:
        """For a client in a process of its own."""
        return dict(
            os.environ,
            DENO_DEPLOY_TOKEN=self.token,
            DENO_DEPLOY_ENDPOINT=self.url,
            DENO_SANDBOX_ENDPOINT=self.url,
        )

    def request(
        self, method: str, path: str, body=None, headers=None, token: str | None = None,
        content: bytes | None = None, seconds: float = 30.0,
    ):  # fmt: skip
        """A plain HTTP request; returns the response, whatever its status."""
        all_headers = {"Authorization": f"Bearer {token or self.token}"} | (headers or {})
        return httpx.request(
            method, self.url + path, json=body, content=content, headers=all_headers,
            # Plain HTTP: without this, each call loads all certificate authorities.
            timeout=seconds, trust_env=False, verify=False,
        )  # fmt: skip

    def own(self, method: str, path: str, body=None, **options):
        """A call of our own API that must succeed; returns its JSON."""
        response = self.request(method, f"/v1{path}", body, **options)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    def refuses(self, method: str, path: str, expected: tuple[int, str], *texts: str, **options):
        """A call of our own API that is refused with this status and code, naming these texts."""
        response = self.request(method, f"/v1{path}", **options)
        _check((response.status_code, response.json()), expected, texts)

    def refuses_sandbox(self, config: dict, expected: tuple[int, str], *texts: str) -> None:
        """A sandbox that is refused."""
        status, error, socket = self.create_raw(config)
        if socket is not None:
            socket.close()
        _check((status, error), expected, texts)

    def sandstone(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess:
        """The command line, told of this server."""
        done = subprocess.run(
            [setting("BINARY"), *arguments], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=60, check=False,
            env=dict(os.environ, SANDSTONE_URL=self.url, SANDSTONE_TOKEN=self.token),
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.returncode} {done.stderr.decode()}"
        return done

    def create_raw(self, config, host: str | None = None, token: str | None = None):
        """A sandbox straight over the WebSocket, for what the SDK would not send.

        Returns `(101, {}, websocket)`, or the status and the JSON body of a refusal.
        """
        text = config if isinstance(config, str) else base64.b64encode(
            json.dumps(config).encode()
        ).decode()
        address = self.url.removeprefix("http://")
        uri = f"ws://{host or address}/api/v3/sandboxes/create"
        ip, port = address.rsplit(":", 1)
        try:
            websocket = ws_connect(
                uri,
                # The name in the URI may be that of a region; the address is this one.
                sock=socket.create_connection((ip, int(port)), 10),
                additional_headers={
                    "Authorization": f"Bearer {token or self.token}",
                    "x-deno-sandbox-config": text,
                },
                open_timeout=30,
                legacy=True,
            )
        except InvalidStatus as refused:
            return refused.response.status_code, json.loads(refused.response.body), None
        return 101, {}, websocket

    def running(self, **labels: str) -> list[dict]:
        """The running sandboxes, as plain JSON."""
        params = "&".join(f"labels%5B{key}%5D={value}" for key, value in labels.items())
        response = self.request("GET", f"/api/v2/sandboxes?{params}")
        assert response.status_code == 200, response.text
        return [sandbox for sandbox in response.json() if sandbox["status"] == "running"]

    def is_running(self, sandbox_id: str) -> bool:
        """Whether the sandbox is listed as running."""
        return any(sandbox["id"] == sandbox_id for sandbox in self.running())

    def end(self, sandbox_id: str) -> None:
        """Kills a sandbox by its id."""
        response = self.request("DELETE", f"/api/v3/sandboxes/{sandbox_id}")
        assert response.status_code in (200, 204, 404), response.text


def _check(answer: tuple[int, dict], expected: tuple[int, str], texts: tuple[str, ...]) -> None:
    status, error = answer
    assert (status, error.get("code")) == expected, error
    for text in texts:
        assert text in error["message"], error


@contextlib.contextmanager
def refused(expected: tuple[int, str], *texts: str):
    """A call of the SDK that is refused with this status and code, naming these texts."""
    with pytest.raises(HTTPStatusError) as refusal:
        yield
    error = refusal.value
    _check((error.status_code, {"code": error.code, "message": error.message}), expected, texts)


class Server(Api):
    """A `sandstone serve` of the test's own, to stop, kill and restart."""

    def __init__(self, directory: Path, pool: str = "4GiB", *arguments: str):
        self.data = directory / "data"
        self.log = directory / "server.log"
        self.pool = pool
        self.arguments = arguments
        self.process: subprocess.Popen | None = None
        self._listen = "127.0.0.1:0"
        super().__init__("", "")

    def command(self) -> list[str]:
        """The command line."""
        # The default is for people; tests run more at once.
        many = () if "--sandboxes-max" in self.arguments else ("--sandboxes-max", "100")
        return [
            setting("BINARY"), "serve", *many,
            "--data-dir", str(self.data),
            "--listen", self._listen,
            "--ssh-listen", "127.0.0.1:0",
            "--expose-listen", "127.0.0.1:0",
            "--pool-size", self.pool,
            "--image-cache", setting("IMAGE_CACHE"),
            *self.arguments,
        ]  # fmt: skip

    def spawn(self) -> None:
        """Starts the process, without waiting for it."""
        assert self.process is None
        (self.data / "listen-address").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def start(self, seconds: float = 90.0) -> Server:
        """Starts the server and waits until sandboxes can be created."""
        self.spawn()

        def healthy():
            assert self.process is not None
            status = self.process.poll()
            assert status is None, f"the server ended with {status}:\n{self.tail()}"
            with contextlib.suppress(OSError, httpx.HTTPError):
                address = (self.data / "listen-address").read_text().strip()
                self.url = f"http://{address}"
                return httpx.get(f"{self.url}/healthz", trust_env=False, verify=False).status_code == 200
            return False

        try:
            wait_until("the server is healthy", healthy, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        # The same port again after a restart, as a real deployment has it.
        self._listen = self.url.removeprefix("http://")
        self.token = (self.data / "admin-token").read_text().strip()
        return self

    def stop(self, seconds: float = 120.0) -> None:
        """SIGTERM; the server must end by itself, with status 0. It allows itself 60 s for sandboxes
        and their clean-up, and some more for its clients."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end the server:\n{self.tail()}") from None
        self.process = None
        assert status == 0, f"the server ended with {status}:\n{self.tail()}"

    def kill(self) -> None:
        """SIGKILL to the server process alone; its sandboxes are left as they are."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait(30)
        self.process = None

    def tail(self, lines: int = 40) -> str:
        """The end of the log, for a failure's message."""
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def bash(sandbox, script: str, **options) -> tuple[int, str, str]:
    """Runs a script in a sandbox of the synchronous SDK; returns code, stdout, stderr."""
    child = sandbox.spawn("bash", args=["-c", script], stdout="piped", stderr="piped", **options)
    out = child.stdout.read(-1)
    err = child.stderr.read(-1)
    status = child.wait()
    return status["code"], out.decode(errors="replace"), err.decode(errors="replace")


def read_bytes(sandbox, path: str) -> bytes:
    """A file of any size; the SDK's `read_file` takes at most one message of 1 MiB."""
    child = sandbox.spawn("cat", args=[path], stdout="piped", stderr="piped")
    data = child.stdout.read(-1)
    assert child.wait()["success"]
    return data


def python(sandbox, script: str, *arguments: str, sudo: bool = False) -> str:
    """Runs a Python program in a sandbox, which must succeed; returns what it printed."""
    command = ["sudo", "python3"] if sudo else ["python3"]
    child = sandbox.spawn(
        command[0], args=[*command[1:], "-c", script, *arguments], stdout="piped", stderr="piped"
    )
    out, err = child.stdout.read(-1), child.stderr.read(-1)
    assert child.wait()["success"], err.decode(errors="replace")
    return out.decode()


async def async_bash(sandbox, script: str) -> str:
    """Runs a script in a sandbox of the asynchronous SDK, which must succeed."""
    child = await sandbox.spawn("bash", args=["-c", script], stdout="piped", stderr="piped")
    out, err = await child.stdout.read(-1), await child.stderr.read(-1)
    assert (await child.wait())["success"], err.decode(errors="replace")
    return out.decode()


def removed(api: Api, kind: str, name: str) -> None:
    """Deletes a volume or a snapshot, if it exists."""
    path = f"/api/v2/{kind}/{name}"
    response = api.request("DELETE", path)
    if response.status_code == 409:
        # A test that failed may have left a sandbox that holds it.
        for sandbox in api.running():
            if sandbox["id"] in response.text:
                api.end(sandbox["id"])
        response = api.request("DELETE", path)
    assert response.status_code in (200, 204, 404), response.text


@contextlib.contextmanager
def volume(api: Api, capacity: str = SMALL, region: str = "ord", **options):
    """A volume for one test."""
    sdk = api.sdk()
    made = sdk.volumes.create(slug=new_slug(), region=region, capacity=capacity, **options)
    try:
        yield made
    finally:
        removed(api, "volumes", made["id"])


@contextlib.contextmanager
def bootable(api: Api, capacity: str = BOOTABLE):
    """A volume with the base image's system on it, for one test."""
    with volume(api, capacity, from_snapshot=BASE) as made:
        yield made


@contextlib.contextmanager
def snapshot(api: Api, of: str):
    """A snapshot of a volume, for one test, as our own API shows it."""
    made = api.own("POST", f"/volumes/{of}/snapshot", {"slug": new_slug()})
    try:
        yield made
    finally:
        removed(api, "snapshots", made["id"])


def exposed(url: str, headers: dict[str, str] | None = None, ca: Path | None = None) -> httpx.Response:
    """What an exposed name answers, from outside of the sandbox. No resolver knows the name, and
    the certificate comes from the server's own authority: that of the shared server, or `ca`."""
    parts = httpx.URL(url)
    trust = ssl.create_default_context(cafile=ca or setting("EXPOSE_CA"))
    with httpx.Client(verify=trust, trust_env=False, timeout=15) as client:
        return client.get(
            parts.copy_with(host="127.0.0.1"),
            headers={"Host": parts.netloc.decode()} | (headers or {}),
            extensions={"sni_hostname": parts.host},
        )


def ssh_once(access: dict, script: str) -> str:
    """Runs a script over SSH, as the credentials of `expose_ssh` allow."""
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    command = ["ssh", "-F", "none", *(part for option in options for part in ("-o", option))]
    command += ["-p", str(access["port"]), f"{access['username']}@127.0.0.1", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
