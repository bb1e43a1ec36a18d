"""Errors at every single step: complete points survive, no half point is seen, the next run works."""

from __future__ import annotations

import random
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
    open_point,
    verify,
)
from vdkit.backup.names import LOCK_FILE
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.errors import DiskFull, StoreError, VixError

GRAIN = 1 << 16
SIZE = 6 * GRAIN
KEYS = (2000, 2001)


class Countdown:
    """Fails at the ``at``-th step, and from then on if ``for_good``."""

    def __init__(self, at: int, error: type[VixError], *, for_good: bool) -> None:
        self.at = at
        self.count = 0
        self._error = error
        self._for_good = for_good

    def __call__(self, what: str) -> None:
        self.count += 1
        if self.count == self.at or (self._for_good and self.count > self.at):
            # What gives space back works on a full disk.
            if self._error is DiskFull and what.startswith("remove"):
                return
            raise self._error(f"planned failure at step {self.count}: {what}")


def make_disks(seed: int) -> dict[int, MemoryDevice]:
    noise = random.Random(seed)
    disks = {key: MemoryDevice(SIZE) for key in KEYS}
    for disk in disks.values():
        disk.write_from(0, noise.randbytes(GRAIN + 512))
    return disks


def run(store: Store, disks: dict[int, MemoryDevice], ranges: RangeSet | None) -> Point:
    method = Method.FULL if ranges is None else Method.CHANGES
    with begin_point(Repository.open(store), VM) as writer:
        for key, disk in disks.items():
            decision = Decision(method, "test")
            backup_disk(disk, writer, key=key, label="d", decision=decision, ranges=ranges)
        return writer.commit()


def content(disks: dict[int, MemoryDevice]) -> dict[int, bytes]:
    found = {}
    for key, disk in disks.items():
        data = bytearray(SIZE)
        disk.read_into(0, data)
        found[key] = bytes(data)
    return found


def check_all(repository: Repository, expected: dict[str, dict[int, bytes]]) -> None:
    """The visible points are the expected ones, byte for byte."""
    points = {point.id: point for point in repository.points()}
    assert set(points) == set(expected)
    for point_id, disks in expected.items():
        for key, data in disks.items():
            found = bytearray(SIZE)
            with open_point(repository, points[point_id], key) as device:
                device.read_into(0, found)
            assert found == data
    assert verify(repository).ok


@pytest.mark.parametrize("error", [StoreError, DiskFull])
@pytest.mark.parametrize("for_good", [False, True])
def test_a_failure_at_every_step_of_an_incremental(error: type[VixError], for_good: bool) -> None:
    """A store that fails once may leave remains to be tidied up; one that stays broken surely does."""
    for at in range(1, 1000):
        store = MemoryStore()
        disks = make_disks(7)
        Repository.create(store)
        expected = {run(store, disks, None).id: content(disks)}
        for disk in disks.values():
            disk.write_from(GRAIN, b"changed" * 100)
        countdown = Countdown(at, error, for_good=for_good)
        shown: Point | None = None
        try:
            shown = run(SteppedStore(store, countdown), disks, RangeSet([(GRAIN, 700)]))
        except error:
            repository = Repository.open(store)
            # A failure after the last rename leaves the point complete: both are allowed, half is not.
            late = [p for p in repository.points() if p.id not in expected]
            assert len(late) <= 1
            expected |= {p.id: content(disks) for p in late}
        else:
            expected[shown.id] = content(disks)
        check_all(Repository.open(store), expected)
        _break_lock(store)
        expected[run(store, disks, RangeSet([(GRAIN, 700)])).id] = content(disks)
        check_all(Repository.open(store), expected)
        _nothing_left(store)
        if countdown.count < at:
            return
    pytest.fail("the run never got through")


def _break_lock(store: Store) -> None:
    """The lock of this process, which is alive: what removing it by hand does after a failed release."""
    for folder in Repository.open(store).folders():
        inner = store.substore(folder)
        if inner.exists(LOCK_FILE):
            inner.remove(LOCK_FILE)


def _nothing_left(store: Store) -> None:
    repository = Repository.open(store)
    (folder,) = repository.folders()
    files = {f for p in repository.points() for d in p.manifest.disks for f in (d.file.name, d.map.name)}
    files |= {f"{p.id}.json" for p in repository.points()}
    assert set(store.substore(folder).list()) - {LOCK_FILE} == files


def test_a_full_disk_is_named_and_leaves_the_earlier_points(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    Repository.create(store)
    disks = make_disks(3)
    expected = {run(store, disks, None).id: content(disks)}

    def full(what: str) -> None:
        if what.startswith("write on") and ".vmdk" in what:
            raise DiskFull("no space left on device")

    with pytest.raises(DiskFull):
        run(SteppedStore(store, full), disks, RangeSet([(0, SIZE)]))
    repository = Repository.open(store)
    check_all(repository, expected)
    _nothing_left(store)


def test_a_source_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    from vdkit.errors import ConnectionLost

    class Cut(MemoryDevice):
        def _read_into(self, offset: int, view: memoryview) -> None:
            raise ConnectionLost("127.0.0.1:902: the host closed the connection while reading")

    store = FolderStore(tmp_path)
    Repository.create(store)
    source = Cut(SIZE)
    source.write_from(0, b"x" * SIZE)
    with pytest.raises(ConnectionLost):
        run(store, {2000: source}, None)
    assert Repository.open(store).points() == []
    _nothing_left(store)
