"""Power cuts: only what was flushed is there afterwards, and it is enough."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from backuptools import VM
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
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import RangeSet
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.errors import VixError

GRAIN = 1 << 16
SIZE = 5 * GRAIN
KEY = 2000


class PowerCut(Exception):
    """Not an error that anybody handles: everything stops here."""


class Power:
    """Goes off after ``steps`` steps."""

    def __init__(self) -> None:
        self.steps = 10**9

    def __call__(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise PowerCut


class CutStore:
    """Two stores: what programs see, and what would be there after a power cut.

    A write is durable once its object was flushed; so is a new name. A rename is durable by contract, but
    carries only the bytes that were. A removal may (``removals``) or may not be durable.
    """

    def __init__(self, live: Store, durable: Store, step: Callable[[], None], *, removals: bool) -> None:
        self._live = live
        self._durable = durable
        self._step = step
        self._removals = removals

    @property
    def name(self) -> str:
        return self._live.name

    def open(self, name: str) -> BlockDevice:
        return self._live.open(name)

    def open_writable(self, name: str) -> WritableDevice:
        return _CutDevice(self._live.open_writable(name), self._durable, name, self._step)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        self._step()
        return _CutDevice(self._live.create(name, size), self._durable, name, self._step)

    def exists(self, name: str) -> bool:
        return self._live.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._live.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._step()
        self._live.rename(old, new, replace=replace)
        if self._durable.exists(new):  # removed, but not durably
            self._durable.remove(new)
        if self._durable.exists(old):
            self._durable.rename(old, new)
        else:
            self._durable.create(new).close()
        self._step()

    def remove(self, name: str) -> None:
        self._step()
        self._live.remove(name)
        if self._removals and self._durable.exists(name):
            self._durable.remove(name)

    def make_folder(self, name: str) -> None:
        self._step()
        self._live.make_folder(name)
        self._durable.make_folder(name)

    def substore(self, folder: str) -> Store:
        return CutStore(
            self._live.substore(folder),
            self._durable.substore(folder),
            self._step,
            removals=self._removals,
        )


class _CutDevice(BaseWritableDevice):
    def __init__(self, device: WritableDevice, durable: Store, name: str, step: Callable[[], None]) -> None:
        super().__init__(name=device.name, capacity=device.capacity, sector_size=1, writable=True)
        self._device = device
        self._durable = durable
        self._short_name = name
        self._step = step

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._step()
        self._device.write_from(offset, view)

    def _flush(self) -> None:
        self._step()
        data = bytearray(self.capacity)
        self._device.read_into(0, data)
        if self._durable.exists(self._short_name):
            self._durable.remove(self._short_name)
        with self._durable.create(self._short_name, len(data)) as copy:
            copy.write_from(0, data)
        self._step()

    def _resize(self, capacity: int) -> None:
        self._device.resize(capacity)

    def _close(self) -> None:
        self._device.close()


def run(store: Store, disk: MemoryDevice) -> Point:
    with begin_point(Repository.open(store), VM) as writer:
        first = writer.previous is None
        backup_disk(
            disk,
            writer,
            key=KEY,
            label="d",
            decision=Decision(Method.FULL if first else Method.CHANGES, "test"),
            ranges=None if first else RangeSet([(0, GRAIN)]),
        )
        return writer.commit()


def content(disk: BlockDevice) -> bytes:
    data = bytearray(SIZE)
    disk.read_into(0, data)
    return bytes(data)


def check(store: Store, expected: dict[str, bytes]) -> list[str]:
    repository = Repository.open(store)
    assert verify(repository).ok
    for point in repository.points():
        with open_point(repository, point, KEY) as device:
            assert content(device) == expected.setdefault(point.id, content(device))
    return [point.id for point in repository.points()]


@pytest.mark.parametrize("removals", [True, False])
@pytest.mark.parametrize("remains", [False, True])
def test_a_power_cut_at_any_step(removals: bool, remains: bool) -> None:
    """``remains``: the run that is cut has an interrupted run's files to tidy up first."""
    for at in range(1, 500):
        live, durable, power = MemoryStore("live"), MemoryStore("durable"), Power()
        store = CutStore(live, durable, power, removals=removals)
        disk = MemoryDevice(SIZE)
        disk.write_from(0, random.Random(1).randbytes(2 * GRAIN))
        Repository.create(durable)
        Repository.create(live)
        expected: dict[str, bytes] = {}
        if remains:
            _leave_remains(store, live, durable)
        power.steps = at
        done = False
        try:
            expected[run(store, disk).id] = content(disk)
            done = True
        except (PowerCut, VixError):
            pass
        before = check(durable, expected)
        assert len(before) <= 1
        assert not done or len(before) == 1
        _forget_lock(durable)
        disk.write_from(0, b"changed")
        point = run(durable, disk)
        expected[point.id] = content(disk)
        assert check(durable, expected) == [*before, point.id]
        if done:
            return
    pytest.fail("the run never got through")


def _leave_remains(store: CutStore, live: Store, durable: Store) -> None:
    """A run that died with one file renamed and one not."""
    disk = MemoryDevice(SIZE)
    point = run(store, disk)
    for side in (live, durable):
        inner = side.substore(point.folder)
        inner.rename(f"{point.id}.json", f"{point.id}.json.partial")
        vmdk = point.disk(KEY).file.name
        inner.rename(vmdk, f"{vmdk}.partial")


def _forget_lock(store: Store) -> None:
    """The machine was restarted; in this test it was not, so the lock's holder looks alive."""
    for folder in Repository.open(store).folders():
        if store.substore(folder).exists(LOCK_FILE):
            store.substore(folder).remove(LOCK_FILE)
