"""A server that exposes others with a certificate of the operator's, and limits their answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import server_of_its_own
from support import exposed, setting, wait_until

LIMIT_S = 2


def make_certificate(directory, name: str) -> None:
    """A self-signed pair for `sandbox.localhost`, in `name.pem` and `name-key.pem`."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", f"/CN={name}", "-days", "2", "-addext", "subjectAltName=DNS:*.sandbox.localhost",
         "-keyout", directory / f"{name}-key.pem", "-out", directory / f"{name}.pem"],
        capture_output=True, check=True, timeout=30,
    )  # fmt: skip


@pytest.fixture(scope="module")
def files():
    directory = Path(tempfile.mkdtemp(prefix="certificates-", dir=setting("SCRATCH")))
    for name in ("first", "second"):
        make_certificate(directory, name)
    install(directory, "first")
    yield directory
    shutil.rmtree(directory)


def install(directory, name: str) -> None:
    """Puts a pair into use. Its times say nothing: the server would notice them by itself."""
    for end in ("", "-key"):
        target = directory / f"tls{end}.pem"
        target.write_bytes((directory / f"{name}{end}.pem").read_bytes())
        os.utime(target, (1, 1))


@pytest.fixture(scope="module")
def server(files):
    with server_of_its_own(
        "--tls-cert", str(files / "tls.pem"), "--tls-key", str(files / "tls-key.pem"),
        "--answer-limit", f"{LIMIT_S}s",
    ) as server:  # fmt: skip
        yield server.start()


def served(server) -> bytes:
    """The certificate that clients get."""
    host, _, port = (server.data / "expose-address").read_text().strip().rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), 10) as raw:
        with context.wrap_socket(raw, server_hostname="x.sandbox.localhost") as secured:
            return secured.getpeercert(binary_form=True)


def der(directory, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((directory / f"{name}.pem").read_text())


def hang_up(server, logged: str) -> None:
    """SIGHUP, and waits for what the log says of it."""
    before = server.log.read_text().count(logged)
    server.process.send_signal(signal.SIGHUP)
    wait_until(logged, lambda: server.log.read_text().count(logged) > before)


def test_sighup_reads_a_renewed_certificate_and_keeps_what_works(server, files):
    assert served(server) == der(files, "first")
    with server.sdk().sandbox.create() as sandbox:
        install(files, "second")
        hang_up(server, "the certificate of exposed servers was replaced")
        assert served(server) == der(files, "second")
        (files / "tls.pem").write_text("nonsense")
        hang_up(server, "cannot replace the certificate of exposed servers")
        assert served(server) == der(files, "second")
        install(files, "first")
        hang_up(server, "the certificate of exposed servers was replaced")
        assert served(server) == der(files, "first")
        # Nothing else has changed.
        assert sandbox.fs.read_text_file("/etc/hostname")


def test_sighup_without_a_file_is_ignored():
    with server_of_its_own() as server:
        server.start()
        before = served(server)
        hang_up(server, "no certificate to read again")
        assert served(server) == before


# One that accepts and says nothing, and one that does not accept: its queue is full.
STUCK = """
import socket, time
silent = socket.create_server(("127.0.0.1", 8001))
full = socket.create_server(("127.0.0.1", 8002), backlog=0)
held = []
for _ in range(8):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("127.0.0.1", 8002))
    held.append(one)
time.sleep(0.5)
open("/tmp/ready", "w").close()
while True:
    held.append(silent.accept())
"""


def test_a_server_that_is_stuck_is_a_gateway_timeout(server, files):
    with server.sdk().sandbox.create() as sandbox:
        sandbox.fs.write_text_file("/tmp/stuck.py", STUCK)
        sandbox.spawn("python3", args=["/tmp/stuck.py"], stdout="null", stderr="null")
        wait_until("it is stuck", lambda: "ready" in [e["name"] for e in sandbox.fs.read_dir("/tmp")])
        cases = [
            (8001, "did not begin an answer within 2 s", "It accepted the connection", LIMIT_S),
            (8002, "did not accept a connection in time", "too busy to accept", 4),
        ]
        for port, message, hint, seconds in cases:
            url = sandbox.expose_http(port=port)
            start = time.monotonic()
            answer = exposed(url, ca=files / "first.pem")
            assert answer.status_code == 504, answer.text
            assert time.monotonic() - start >= seconds
            body = json.loads(answer.text)
            assert body["code"] == "TIMED_OUT"
            assert message in body["message"] and f"port {port}" in body["message"]
            # Whoever knows a name may ask; what is behind it is nobody's business.
            assert sandbox.id not in answer.text
            assert hint in body["hint"]
