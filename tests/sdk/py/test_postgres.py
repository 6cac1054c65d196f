"""PostgreSQL from Debian on a volume, snapshots under load, and a fork that another one starts from."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from support import bash, bootable, new_slug, snapshot, volume

pytestmark = pytest.mark.timeout(300)

SECONDS = 20
BIN = "/usr/lib/postgresql/17/bin"
SERVER = f"{BIN}/pg_ctl -D /data/pg -w -t 60 -l /tmp/log -o '-k /tmp -c listen_addresses=' "
PSQL = "psql -h /tmp -d postgres -v ON_ERROR_STOP=1 -Atc "
# Every transaction of pgbench adds the same amount to all four.
SUMS = (
    "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),"
    " (select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)"
)


def ok(sandbox, script: str) -> str:
    """Runs a script that must succeed."""
    code, out, err = bash(sandbox, script)
    assert code == 0, f"{script}: {out} {err}\n{bash(sandbox, 'tail -30 /tmp/log')[1]}"
    return out


@pytest.fixture(scope="module")
def system(shared, sdk):
    """A snapshot with PostgreSQL installed: the product's own way to install once."""
    with bootable(shared, "2GB") as made:
        with sdk.sandbox.create(root=made["id"], memory_mb=2048) as sandbox:
            ok(
                sandbox,
                # The cluster that the package would make is not needed.
                "set -e; cd /etc; sudo mkdir -p postgresql-common;"
                " echo 'create_main_cluster = false' | sudo tee postgresql-common/createcluster.conf;"
                " export DEBIAN_FRONTEND=noninteractive;"
                " sudo -E apt-get update -qq; sudo -E apt-get install -y -qq postgresql;"
                f" test -x {BIN}/initdb; sudo apt-get clean",
            )
        with snapshot(shared, made["id"]) as taken:
            yield taken


def test_recovers_from_a_snapshot_under_load(shared, sdk, system):
    with volume(shared, "2GB") as data, contextlib.ExitStack() as cleanup:
        options = {"root": system["id"], "memory_mb": 2048}
        with sdk.sandbox.create(volumes={"/data": data["id"]}, **options) as first:
            ok(first, f"{BIN}/initdb -D /data/pg -A trust --locale=C.UTF-8 >/dev/null && {SERVER} start")
            ok(first, f"{BIN}/pgbench -h /tmp -i -s 5 -q postgres 2>/dev/null")
            ok(first, f"{PSQL} 'create extension amcheck; create table acknowledged(at timestamptz default now())'")
            load = first.spawn(
                "bash", args=["-c", f"{BIN}/pgbench -h /tmp -c 4 -j 2 -T {SECONDS} postgres"],
                stdout="piped", stderr="piped",
            )  # fmt: skip
            begun = time.monotonic()
            snapshots = []
            for moment in (0.3, 0.6):
                time.sleep(max(0.0, begun + moment * SECONDS - time.monotonic()))
                ok(first, f"{PSQL} 'insert into acknowledged default values'")
                least = int(ok(first, f"{PSQL} 'select count(*) from pgbench_history'"))
                taken = cleanup.enter_context(snapshot(shared, data["id"]))
                most = int(ok(first, f"{PSQL} 'select count(*) from pgbench_history'"))
                snapshots.append((taken, least, most))
                assert taken["consistency"] == "filesystem", taken
                assert taken["write_stall_us"] < 2_500_000
            forked = shared.own("POST", f"/volumes/{data['id']}/fork", {"slug": new_slug()})
            cleanup.callback(sdk.volumes.delete, forked["id"])
            out = load.stdout.read(-1).decode()
            assert load.wait()["success"], load.stderr.read(-1)
            assert "number of failed transactions: 0 (" in out, out
            assert int(re.search(r"actually processed: (\d+)", out)[1]) > 100
            # The database that was snapshotted never noticed.
            assert "FATAL" not in (log := ok(first, "cat /tmp/log")), log
            assert "PANIC" not in log
            check(first)
            ok(first, f"{SERVER} stop -m fast")
        forks = [
            (cleanup.enter_context(volume(shared, "2GB", from_snapshot=one["id"])), least, most)
            for one, least, most in snapshots
        ]
        for fork, least, most in [*forks, (forked, snapshots[-1][1], None)]:
            with sdk.sandbox.create(volumes={"/data": fork["id"]}, **options) as second:
                ok(second, f"{SERVER} start")
                log = ok(second, "cat /tmp/log")
                assert "not properly shut down" in log, log
                assert "ready to accept connections" in log, log
                count = int(ok(second, f"{PSQL} 'select count(*) from pgbench_history'"))
                assert count >= least, "what was committed before the snapshot is there"
                assert most is None or count <= most, "and nothing from after it"
                check(second)
                # It is a database like any other.
                ok(second, f"{BIN}/pgbench -h /tmp -c 2 -t 20 postgres && {SERVER} stop -m fast")


def check(sandbox) -> None:
    """The sums of all transactions agree, everything can be read, and the indexes are sound."""
    assert len(set(ok(sandbox, f'{PSQL} "{SUMS}"').strip().split("|"))) == 1
    ok(sandbox, "pg_dumpall -h /tmp | tail -3 | grep -q 'cluster dump complete'")
    ok(sandbox, f"{BIN}/pg_amcheck -h /tmp --heapallindexed postgres")
