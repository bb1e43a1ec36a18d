"""A process that ends at any step, or is killed at any moment, loses nothing that was complete."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backuptools import VM, SteppedStore
from vdkit.backup import (
    Decision,
    Method,
    Point,
    Repository,
    backup_disk,
    begin_point,
    content_sha256,
    open_point,
    verify,
)
from vdkit.backup.names import LOCK_FILE
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.block.store import Store

GRAIN = 1 << 16
SIZE = 5 * GRAIN
KEY = 2000
#: An exit code that nothing else uses.
GONE = 77


def disk_at(number: int) -> MemoryDevice:
    """The disk before backup ``number``; from one to the next, grains 1 and 2 change."""
    disk = MemoryDevice(SIZE)
    disk.write_from(0, random.Random(0).randbytes(GRAIN))
    disk.write_from(GRAIN, random.Random(number).randbytes(GRAIN))
    if number % 2:
        disk.write_from(2 * GRAIN, b"x" * GRAIN)
    return disk


def run(store: Store, number: int, notices: list[str] | None = None) -> Point:
    """A backup whose label tells which one it was: after a kill that is all there is to know it by."""
    notice = (notices if notices is not None else []).append
    with begin_point(Repository.open(store), VM, notice=notice) as writer:
        first = writer.previous is None
        backup_disk(
            disk_at(number),
            writer,
            key=KEY,
            label=f"number {number}",
            decision=Decision(Method.FULL if first else Method.CHANGES, "test"),
            ranges=None if first else RangeSet([(GRAIN, 2 * GRAIN)]),
        )
        return writer.commit()


def check(store: Store) -> list[str]:
    """Every visible point is whole; the labels of the points."""
    repository = Repository.open(store)
    labels = []
    for point in repository.points():
        label = point.disk(KEY).label
        labels.append(label)
        with open_point(repository, point, KEY) as device:
            assert content_sha256(device) == content_sha256(disk_at(int(label.split()[1])))
    assert verify(repository).ok
    return labels


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends takes nothing out of the kernel's cache: flushing changes nothing here.

    ``test_backup_power`` is about what must be flushed, and in which order.
    """
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(os, "fdatasync", lambda _descriptor: None)


class End:
    """Ends the process at a step."""

    def __init__(self, at: int) -> None:
        self._left = at

    def __call__(self, _what: str) -> None:
        self._left -= 1
        if self._left == 0:
            os._exit(GONE)


def in_a_child(work: Callable[[Store, int], object], store: Store, number: int) -> int:
    """The exit code of a forked process that does ``work``."""
    pid = os.fork()
    if pid == 0:
        try:
            work(store, number)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def files(path: Path) -> dict[str, str]:
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in path.rglob("*")
        if f.is_file() and f.name != LOCK_FILE
    }


@pytest.mark.parametrize("existing", [0, 1])
def test_a_process_that_ends_at_any_step(tmp_path: Path, existing: int) -> None:
    start = tmp_path / "start"
    start.mkdir()
    Repository.create(FolderStore(start))
    for number in range(existing):
        run(FolderStore(start), number)
    before = files(start)
    for at in range(1, 500):
        path = Path(shutil.copytree(start, tmp_path / str(at)))
        store = FolderStore(path)
        code = in_a_child(run, SteppedStore(store, End(at)), existing)
        assert code in (0, GONE)
        assert files(path).items() >= before.items(), "what was complete is as it was"
        labels = check(store)
        assert labels[:existing] == [f"number {n}" for n in range(existing)]
        assert len(labels) <= existing + 1
        if code == GONE:
            run(store, existing + 1)
            assert check(store) == [*labels, f"number {existing + 1}"]
            assert not [name for name in files(path) if name.endswith(".partial")]
        else:
            assert len(labels) == existing + 1
            return
    pytest.fail("the run never got through")


def test_a_lock_left_by_a_process_that_ended_is_taken_over_with_a_notice(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    Repository.create(store)
    run(store, 0)

    def die(what: str) -> None:
        if what.startswith("flush") and ".vmdk" in what:
            os._exit(GONE)

    assert in_a_child(run, SteppedStore(store, die), 1) == GONE
    notices: list[str] = []
    run(store, 2, notices)
    assert any("taken over from process" in n for n in notices)
    assert any("interrupted run" in n for n in notices)
    assert check(store) == ["number 0", "number 2"]


_ENDLESS = """
import sys
sys.path[:0] = sys.argv[2:]
from test_backup_kill import run
from vdkit.block.local import FolderStore
store = FolderStore(sys.argv[1])
number = int(sys.stdin.readline())
print("ready", flush=True)
while True:
    run(store, number)
    number += 1
"""


def test_a_process_killed_at_random_moments(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    Repository.create(store)
    moments = random.Random(20)
    labels: list[str] = []
    folders = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    for _ in range(5):
        with subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(tmp_path), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{len(labels)}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "ready\n"
            time.sleep(moments.uniform(0.01, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
        now = check(store)
        assert now[: len(labels)] == labels, "what was complete stays"
        labels = now
    run(store, len(labels))
    assert len(check(store)) == len(labels) + 1
    assert not [name for name in files(tmp_path) if name.endswith(".partial")]
