"""What the tests of the backup engine share: a store that fails on demand, points with made-up disks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from vdkit.backup import names
from vdkit.backup.diskmap import DiskMap, encode
from vdkit.backup.document import write_object
from vdkit.backup.manifest import DiskRecord, FileRecord, Kind
from vdkit.backup.names import VmIdentity
from vdkit.backup.writer import PointWriter
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import RangeSet
from vdkit.block.store import Store

VM = VmIdentity("web server", "5029c440-85ee-c2a1-e9dd-b63e39364603")


def clock_from(start: datetime = datetime(2026, 1, 31, 12, tzinfo=UTC)) -> Callable[[], datetime]:
    """A clock that moves on by a second each time it is read."""
    moment = start - timedelta(seconds=1)

    def read() -> datetime:
        nonlocal moment
        moment += timedelta(seconds=1)
        return moment

    return read


def add_fake_disk(
    writer: PointWriter, key: int = 2000, *, data: bytes = b"disk", parent: bool = False
) -> None:
    """A disk whose VMDK is just ``data``: enough for everything that does not open it."""
    capacity = 1 << 20
    disk_map = encode(DiskMap(capacity, RangeSet(), ()), point_id=writer.id, key=key)
    records = []
    for name, content in (
        (names.disk_file(key, writer.id), data),
        (names.map_file(key, writer.id), disk_map),
    ):
        write_object(writer.store, name + names.PARTIAL, content)
        records.append(FileRecord(name, len(content), hashlib.sha256(content).hexdigest()))
    writer.add(
        DiskRecord(
            key=key,
            label=f"Hard disk {key - 1999}",
            capacity=capacity,
            kind=Kind.INCREMENTAL if parent else Kind.FULL,
            reason="a test",
            cid=0x12345678,
            change_id="52 de c0 d9/7",
            file=records[0],
            map=records[1],
            changed=0,
            read=0,
            zero=0,
            seconds=0.25,
        )
    )


class SteppedStore:
    """Calls ``step(what)`` before every operation that changes the store or a device of it."""

    def __init__(self, store: Store, step: Callable[[str], None]) -> None:
        self._store = store
        self._step = step

    @property
    def name(self) -> str:
        return self._store.name

    def open(self, name: str) -> BlockDevice:
        return self._store.open(name)

    def open_writable(self, name: str) -> WritableDevice:
        self._step(f"open {name}")
        return _SteppedDevice(self._store.open_writable(name), self._step)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        self._step(f"create {name}")
        return _SteppedDevice(self._store.create(name, size), self._step)

    def exists(self, name: str) -> bool:
        return self._store.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._store.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._step(f"rename {old}")
        self._store.rename(old, new, replace=replace)
        self._step(f"renamed {old}")

    def remove(self, name: str) -> None:
        self._step(f"remove {name}")
        self._store.remove(name)

    def make_folder(self, name: str) -> None:
        self._step(f"make folder {name}")
        self._store.make_folder(name)

    def substore(self, folder: str) -> Store:
        return SteppedStore(self._store.substore(folder), self._step)


class _SteppedDevice(BaseWritableDevice):
    def __init__(self, device: WritableDevice, step: Callable[[str], None]) -> None:
        super().__init__(name=device.name, capacity=device.capacity, sector_size=1, writable=True)
        self._device = device
        self._step = step

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._step(f"write {self.name}")
        # In two halves: a process that ends between them leaves a torn write.
        half = len(view) // 2
        self._device.write_from(offset, view[:half])
        self._step(f"write on {self.name}")
        self._device.write_from(offset + half, view[half:])

    def _flush(self) -> None:
        self._step(f"flush {self.name}")
        self._device.flush()

    def _resize(self, capacity: int) -> None:
        self._step(f"resize {self.name}")
        self._device.resize(capacity)

    def _close(self) -> None:
        self._device.close()
