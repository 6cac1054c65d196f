"""An internet of the tests' own, and a server that lives in it.

Two network name spaces: one with the internet's servers (`internet_servers`), one as the server's
host. The tests reach the server's API over a link of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from support import Server, wait_until

HERE = Path(__file__).parent
# Where `ip netns` keeps name spaces.
NAMESPACES = "/run/netns"
# The host's own addresses: towards the internet, and towards the tests.
HOST = "203.0.113.1"
GOOD, EVIL, PRIVATE, METADATA = "203.0.113.10", "203.0.113.20", "10.99.0.5", "169.254.169.254"
NAMES = {
    "good.test": [GOOD],
    "api.good.test": [GOOD],
    "other.test": [GOOD],
    "evil.test": [EVIL],
    "private.test": [PRIVATE],
    "metadata.test": [METADATA],
    "loopback.test": ["127.0.0.1"],
    "mapped.test": ["::ffff:10.99.0.5"],
    "host.test": [HOST],
    "both.test": [PRIVATE, GOOD],
}


def run(*command: str, **options) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, **options
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Internet:
    """Use as a context manager; nothing is left afterwards."""

    def __init__(self, directory: Path):
        self.directory = directory
        name = uuid.uuid4().hex[:6]
        self.outside, self.host = f"sdnet{name}", f"sdhost{name}"
        self.link = f"sdt{name}"
        # A /30 for the tests and the server; tests that run at once have different ones.
        third, fourth = int(name[:2], 16), (int(name[2:4], 16) & ~3)
        self.tests_address = f"10.213.{third}.{fourth + 1}"
        self.server_address = f"10.213.{third}.{fourth + 2}"
        self.process: subprocess.Popen | None = None
        self.had_namespaces = os.path.ismount(NAMESPACES)

    def __enter__(self) -> Internet:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        for namespace in (self.host, self.outside):
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.link], capture_output=True, check=False)
        if not self.had_namespaces:
            # `ip netns add` mounts it, and nothing takes it away.
            subprocess.run(["umount", NAMESPACES], capture_output=True, check=False)

    def _make(self) -> None:
        for namespace in (self.outside, self.host):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
        run("ip", "link", "add", "net0", "netns", self.host, "type", "veth",
            "peer", "name", "net0", "netns", self.outside)  # fmt: skip
        run("ip", "link", "add", self.link, "type", "veth",
            "peer", "name", "tests", "netns", self.host)  # fmt: skip
        run("ip", "address", "add", f"{self.tests_address}/30", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        run("ip", "-n", self.host, "address", "add", f"{self.server_address}/30", "dev", "tests")
        run("ip", "-n", self.host, "address", "add", f"{HOST}/24", "dev", "net0")
        for link in ("tests", "net0"):
            run("ip", "-n", self.host, "link", "set", link, "up")
        run("ip", "-n", self.outside, "link", "set", "net0", "up")
        for address in (GOOD, EVIL, "203.0.113.53", METADATA, PRIVATE):
            run("ip", "-n", self.outside, "address", "add", f"{address}/24", "dev", "net0")
        # The host reaches them all, so that only the policy keeps the sandbox from them.
        for address in (METADATA, PRIVATE):
            run("ip", "-n", self.host, "route", "add", f"{address}/32", "dev", "net0")
        run("ip", "-n", self.host, "route", "add", "default", "via", GOOD)
        self._certificates()
        (self.directory / "names").write_text(json.dumps(NAMES))
        (self.directory / "seen").touch()
        (self.directory / "resolv.conf").write_text("nameserver 203.0.113.53\n")
        (self.directory / "served").mkdir()
        with (self.directory / "servers.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.outside}", sys.executable,
                 str(HERE / "internet_servers.py"), str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until("the internet is there", (self.directory / "ready").exists)

    def _certificates(self) -> None:
        at = self.directory
        names = ",".join(f"DNS:{name}" for name in [*NAMES, "*.good.test"])
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run("openssl", "req", "-x509", *key, "-subj", "/CN=The tests' internet", "-days", "2",
            "-keyout", str(at / "ca-key.pem"), "-out", str(at / "ca.pem"))  # fmt: skip
        run("openssl", "req", *key, "-subj", "/CN=site", "-keyout", str(at / "site-key.pem"),
            "-out", str(at / "site.csr"))  # fmt: skip
        (at / "extensions").write_text(
            f"subjectAltName={names},IP:{GOOD}\nbasicConstraints=CA:FALSE\n"
        )
        run("openssl", "x509", "-req", "-in", str(at / "site.csr"), "-CA", str(at / "ca.pem"),
            "-CAkey", str(at / "ca-key.pem"), "-days", "2", "-extfile", str(at / "extensions"),
            "-out", str(at / "site.pem"))  # fmt: skip

    def seen(self, **what) -> list[dict]:
        """What the servers have seen of this."""
        lines = (self.directory / "seen").read_text().splitlines()
        return [
            one for one in map(json.loads, lines)
            if all(one.get(key) == value for key, value in what.items())
        ]  # fmt: skip

    def forget(self) -> None:
        """Forgets what was seen."""
        os.truncate(self.directory / "seen", 0)

    def serve_repository(self) -> None:
        """Puts a git repository with one commit at `/repo.git`."""
        work, bare = self.directory / "work", self.directory / "served" / "repo.git"
        identity = ["-c", "user.name=t", "-c", "user.email=t@good.test"]
        run("git", "init", "-q", str(work))
        (work / "file").write_text("from git\n")
        run("git", "-C", str(work), "add", "file")
        run("git", "-C", str(work), *identity, "commit", "-qm", "one")
        run("git", "clone", "-q", "--bare", str(work), str(bare))
        run("git", "-C", str(bare), "update-server-info")
        shutil.rmtree(work)


class InternetServer(Server):
    """A server that lives in the internet's host."""

    def __init__(self, internet: Internet, directory: Path, *arguments: str):
        super().__init__(directory, "2560MiB", *arguments)
        self.internet = internet
        self._listen = f"{internet.server_address}:0"

    def command(self) -> list[str]:
        """In the host's network, with its resolver and its authorities; the pid stays."""
        at = self.internet.directory
        enter = (
            f"mount --bind {at}/resolv.conf /etc/resolv.conf && "
            f"exec nsenter --net=/run/netns/{self.internet.host} env -u SSL_CERT_DIR "
            f'SSL_CERT_FILE={at}/ca.pem "$@"'
        )
        return ["unshare", "--mount", "sh", "-c", enter, "sh", *super().command()]

    def refusals(self, *texts: str) -> list[str]:
        """Lines of the log that tell of a refusal and hold all of these texts."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))
        return [
            line for line in plain.splitlines()
            if " refused" in line and all(text in line for text in texts)
        ]  # fmt: skip
