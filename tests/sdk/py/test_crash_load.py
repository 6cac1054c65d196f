"""A mixed load, and a server that is killed again and again."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import crash_load
import pytest
from crash_model import Broken, Tree
from support import setting

import host

SEED = 20260801
KILLS = 60


@pytest.mark.timeout(400)
def test_killed_at_random_moments():
    directory = Path(tempfile.mkdtemp(prefix="load-", dir=setting("SCRATCH")))
    print(crash_load.run(KILLS, SEED, directory))
    left = host.mounts_of(directory) + host.loops_of(directory)
    assert not left, f"left after SIGTERM: {left}"
    shutil.rmtree(directory)


def test_the_model_notices_what_is_wrong():
    tree = Tree()
    tree.begin_write(1)
    tree.written(1, "a")
    tree.begin_write(2)
    tree.check("as written", {1: "a"}, {1})
    tree.check("the second one made it", {1: "a", 2: "b"}, {1, 2})
    for files, log in [
        ({}, {1}), ({1: "b"}, {1}), ({1: "a"}, set()), ({1: "a", 3: "c"}, {1}), ({1: "a"}, {1, 3}),
    ]:  # fmt: skip
        with pytest.raises(Broken):
            tree.check("broken", files, log)


def test_the_model_of_a_copy():
    tree = Tree()
    for number in (1, 2):
        tree.begin_write(number)
        tree.written(number, f"{number}")
    before = tree.copy()
    tree.begin_write(3)
    tree.written(3, "3")
    tree.begin_remove(1)
    tree.removed(1)
    copy = before.seen_through(tree)
    for there in ({1: "1", 2: "2"}, {2: "2"}, {2: "2", 3: "3"}, {1: "1", 2: "2", 3: "3"}):
        copy.check("any moment", there, {1, 2})
    for wrong in ({1: "1"}, {2: "2", 3: "x"}):
        with pytest.raises(Broken):
            copy.check("no moment", wrong, {1, 2})
