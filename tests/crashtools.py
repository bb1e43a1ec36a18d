"""What a crash can leave: a store that records every change, and replays of any prefix of the record.

The rules are those of a disk cache and a journalling file system, taken at their worst. Up to a flush of a
file all its changes are there. After it any subset of them is, in any order, a write perhaps in part (cut
between sectors); only cutting a file off keeps its place among them. A new name is there from the first
flush on, before that perhaps. A rename is atomic and durable, with what it names; a removal may be lost.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vdkit.block.device import BaseWritableDevice, BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store

SECTOR = 512


@dataclass(frozen=True)
class Op:
    """``file`` is a number that a file keeps under all its names. ``size``: length or new size."""

    kind: str
    file: int
    name: str = ""
    offset: int = 0
    data: bytes = b""
    size: int = 0


class RecordingStore:
    """A :class:`MemoryStore` that notes what is done to it; ``log`` may be read at any time."""

    def __init__(self, name: str = "crash") -> None:
        self._store = MemoryStore(name)
        self.name = name
        self.log: list[Op] = []
        self._files: dict[str, int] = {}
        self._count = 0

    def open(self, name: str) -> BlockDevice:
        return self._store.open(name)

    def open_writable(self, name: str) -> RecordingDevice:
        return RecordingDevice(self._store.open_writable(name), self.log, self._files[name])

    def create(self, name: str, size: int = 0) -> RecordingDevice:
        made = self._store.create(name, size)
        self._count += 1
        self._files[name] = self._count
        self.log.append(Op("create", self._count, name, size=size))
        return RecordingDevice(made, self.log, self._count)

    def exists(self, name: str) -> bool:
        return self._store.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._store.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._store.rename(old, new, replace=replace)
        file = self._files.pop(old)
        self._files[new] = file
        self.log.append(Op("rename", file, new))

    def remove(self, name: str) -> None:
        self._store.remove(name)
        self.log.append(Op("remove", self._files.pop(name)))

    def make_folder(self, name: str) -> None:
        self._store.make_folder(name)

    def substore(self, folder: str) -> Store:
        raise NotImplementedError


class RecordingDevice(BaseWritableDevice):
    def __init__(self, device: MemoryDevice, log: list[Op], file: int) -> None:
        super().__init__(name=device.name, capacity=device.capacity, writable=True, sector_size=1)
        self._device = device
        self._log = log
        self._file = file

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._device.extents(offset, length)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._log.append(Op("write", self._file, offset=offset, data=bytes(view)))
        self._device.write_from(offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._log.append(Op("zero", self._file, offset=offset, size=length))
        self._device.write_zeroes(offset, length)

    def _resize(self, capacity: int) -> None:
        self._log.append(Op("resize", self._file, size=capacity))
        self._device.resize(capacity)

    def _flush(self) -> None:
        self._log.append(Op("flush", self._file))

    def _close(self) -> None:
        self._device.close()


class _File:
    """One file's durable bytes, and what has been done since its last flush."""

    def __init__(self, name: str, size: int) -> None:
        self.device = MemoryDevice(size)
        self.name = name
        self.named = False
        self.removed = False
        self.pending: list[Op] = []

    def settle(self) -> None:
        self.named = True
        for op in self.pending:
            _apply(self.device, op)
        self.pending = []


def _apply(device: MemoryDevice, op: Op) -> None:
    if op.kind == "resize":
        device.resize(op.size)
        return
    length = len(op.data) if op.kind == "write" else op.size
    if op.offset + length > device.capacity:
        device.resize(op.offset + length)
    if op.kind == "write":
        device.write_from(op.offset, op.data)
    else:
        device.write_zeroes(op.offset, length)


def _torn(op: Op, rnd: random.Random) -> list[Op]:
    """Some of the sectors of a write."""
    pieces: list[Op] = []
    position = op.offset
    end = op.offset + len(op.data)
    while position < end:
        stop = min(end, (position // SECTOR + 1) * SECTOR)
        if rnd.random() < 0.5:
            pieces.append(
                Op("write", op.file, offset=position, data=op.data[position - op.offset : stop - op.offset])
            )
        position = stop
    return pieces


def _survivors(pending: Sequence[Op], size: int, rnd: random.Random) -> list[Op]:
    """What of the changes after a flush reaches the disk, in the order in which it does."""
    kept: list[Op] = []
    stretch: list[Op] = []
    share = rnd.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    for op in pending:
        shrinks = op.kind == "resize" and op.size < size
        size = op.size if op.kind == "resize" else max(size, op.offset + max(len(op.data), op.size))
        if shrinks:
            kept += _mixed(stretch, rnd)
            stretch = []
        if rnd.random() < share:
            torn = op.kind == "write" and len(op.data) > SECTOR and rnd.random() < 0.5
            (kept if shrinks else stretch).extend(_torn(op, rnd) if torn else [op])
    return kept + _mixed(stretch, rnd)


def _mixed(ops: list[Op], rnd: random.Random) -> list[Op]:
    """In any order, except that of two changes of one place the later one wins."""
    order = list(range(len(ops)))
    rnd.shuffle(order)
    mixed = [ops[i] for i in order]
    for i, first in enumerate(mixed):
        for j in range(i + 1, len(mixed)):
            if order[j] < order[i] and _overlap(first, mixed[j]):
                return ops
    return mixed


def _overlap(one: Op, other: Op) -> bool:
    if "resize" in (one.kind, other.kind):
        return one.kind == other.kind
    return one.offset < other.offset + max(len(other.data), other.size) and other.offset < one.offset + max(
        len(one.data), one.size
    )


def after_crash(log: Sequence[Op], cut: int, seed: int, name: str = "crash") -> MemoryStore:
    """What is there when everything stops after the first ``cut`` entries of ``log``."""
    rnd = random.Random(seed)
    files: dict[int, _File] = {}
    for op in log[:cut]:
        match op.kind:
            case "create":
                files[op.file] = _File(op.name, op.size)
            case "flush":
                files[op.file].settle()
            case "rename":
                files[op.file].settle()
                for number in [n for n, other in files.items() if other.name == op.name and n != op.file]:
                    del files[number]
                files[op.file].name = op.name
            case "remove":
                files[op.file].removed = True
            case _:
                files[op.file].pending.append(op)
    store = MemoryStore(name)
    for file in files.values():
        if file.removed and rnd.random() < 0.5:
            continue
        if not file.named and rnd.random() < 0.3:
            continue
        if store.exists(file.name):  # removed and made again
            if file.removed:
                continue
            store.remove(file.name)
        for op in _survivors(file.pending, file.device.capacity, rnd):
            _apply(file.device, op)
        with store.create(file.name, file.device.capacity) as made:
            for run in file.device.extents():
                if run.kind is ExtentKind.DATA:
                    data = bytearray(run.length)
                    file.device.read_into(run.offset, data)
                    made.write_from(run.offset, data)
    return store


class Versions:
    """What each sector of a disk may hold: what it held at the last flush, or anything written since."""

    def __init__(self, capacity: int) -> None:
        self.now = bytearray(capacity)
        self._flushed: list[tuple[int, bytes]] = [(0, bytes(capacity))]
        self._writes: list[tuple[int, int, bytes]] = []

    def write(self, log_length: int, offset: int, data: bytes) -> None:
        """To be told before the disk is."""
        self.now[offset : offset + len(data)] = data
        self._writes.append((log_length, offset, data))

    def flushed(self, log_length: int) -> None:
        """After the disk said so."""
        self._flushed.append((log_length, bytes(self.now)))

    def check(self, cut: int, seen: bytes | bytearray) -> bytes:
        """Raises AssertionError at the first sector that holds what it cannot; returns what was flushed."""
        at, base = next((pos, data) for pos, data in reversed(self._flushed) if pos <= cut)
        if seen == base:
            return base
        since = [write for write in self._writes if at <= write[0] < cut]
        for sector in range(0, len(base), SECTOR):
            found = seen[sector : sector + SECTOR]
            if found == base[sector : sector + SECTOR]:
                continue
            allowed = [
                data[sector - offset : sector - offset + SECTOR]
                for _, offset, data in since
                if offset <= sector < offset + len(data)
            ]
            assert found in allowed, (
                f"crash after {cut}: sector {sector // SECTOR} holds {bytes(found[:16])!r}, flushed were "
                f"{base[sector : sector + 16]!r}, written since {[bytes(a[:16]) for a in allowed]!r}"
            )
        return base


def cuts(length: int, count: int, seed: int, first: int = 0) -> list[int]:
    """Some of the moments after the first ``first`` entries of a record, its end among them."""
    every = range(first, length + 1)
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    return sorted({*chosen, length})


def contents(device: BlockDevice) -> bytearray:
    seen = bytearray(device.capacity)
    device.read_into(0, seen)
    return seen
