"""For tests of operations on disks: a store that writes down what is done to it, and what a crash leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.errors import StoreError
from vdkit.vmdk import DiskType, create_disk, open_disk, sparse
from vdkit.vmdk.cid import new_cid
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.template import base_ddb, new_descriptor

SMALL_GRAIN = 8 * SECTOR

Files = Mapping[str, bytes]


class Step(NamedTuple):
    """One change: ``create``, ``write``, ``resize``, ``flush``, ``rename`` or ``remove``."""

    act: str
    name: str
    at: int = 0
    data: bytes = b""
    other: str = ""


class Refused(StoreError):
    """The failure that :class:`RecordingStore` was told to make."""


class RecordingStore:
    """A store over another that records every change; the change of number ``fails_at`` is refused."""

    def __init__(self, inner: Store, *, fails_at: int | None = None) -> None:
        self._inner = inner
        self._fails_at = fails_at
        self.steps: list[Step] = []

    def record(self, step: Step) -> None:
        self.steps.append(step)
        if self._fails_at is not None and len(self.steps) - 1 == self._fails_at:
            raise Refused(f"step {self._fails_at}, {step.act} {step.name}: refused by the test")

    @property
    def name(self) -> str:
        return self._inner.name

    def open(self, name: str) -> BlockDevice:
        return self._inner.open(name)

    def open_writable(self, name: str) -> WritableDevice:
        return _RecordingDevice(self._inner.open_writable(name), name, self)

    def create(self, name: str, size: int = 0) -> WritableDevice:
        self.record(Step("create", name, size))
        return _RecordingDevice(self._inner.create(name, size), name, self)

    def exists(self, name: str) -> bool:
        return self._inner.exists(name)

    def list(self, folder: str = "") -> list[str]:
        return self._inner.list(folder)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self.record(Step("rename", old, other=new))
        self._inner.rename(old, new, replace=replace)

    def remove(self, name: str) -> None:
        self.record(Step("remove", name))
        self._inner.remove(name)

    def make_folder(self, name: str) -> None:
        self._inner.make_folder(name)

    def substore(self, folder: str) -> Store:
        raise NotImplementedError(folder)


class _RecordingDevice(BaseWritableDevice):
    def __init__(self, inner: WritableDevice, name: str, store: RecordingStore) -> None:
        super().__init__(name=inner.name, capacity=inner.capacity, sector_size=1, writable=True)
        self._inner = inner
        self._file = name
        self._store = store

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._inner.read_into(offset, view)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._inner.extents(offset, length)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._store.record(Step("write", self._file, offset, bytes(view)))
        self._inner.write_from(offset, view)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._store.record(Step("write", self._file, offset, bytes(length)))
        self._inner.write_zeroes(offset, length)

    def _flush(self) -> None:
        self._store.record(Step("flush", self._file))
        self._inner.flush()

    def _resize(self, capacity: int) -> None:
        self._store.record(Step("resize", self._file, capacity))
        self._inner.resize(capacity)

    def _close(self) -> None:
        self._inner.close()


class _File:
    """What is durable, and what may or may not be."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.pending: list[Step] = []

    def settle(self, luck: random.Random | None) -> None:
        """Apply what is pending: all of it, or of each write the sectors that were lucky."""
        for step in self.pending:
            if step.act == "resize":
                if luck is None or luck.random() < 0.5:
                    self._resize(step.at)
                continue
            for at in range(0, len(step.data), SECTOR):
                if luck is None or luck.random() < 0.5:
                    self._put(step.at + at, step.data[at : at + SECTOR])
        self.pending = []

    def _resize(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def _put(self, at: int, data: bytes) -> None:
        if at + len(data) > len(self.data):
            self._resize(at + len(data))
        self.data[at : at + len(data)] = data


def after_crash(before: Files, steps: list[Step], luck: random.Random) -> MemoryStore:
    """The files after a crash behind the last of ``steps``: flushed bytes are there, others may be."""
    files = {name: _File(data) for name, data in before.items()}
    for step in steps:
        match step.act:
            case "create":
                files[step.name] = _File(bytes(step.at))
            case "write" | "resize":
                files[step.name].pending.append(step)
            case "flush":
                files[step.name].settle(None)
            case "rename":
                moved = files.pop(step.name)
                moved.settle(None)
                files[step.other] = moved
            case "remove":
                del files[step.name]
            case _:
                raise AssertionError(step.act)
    for file in files.values():
        file.settle(luck)
    return store_of({name: bytes(file.data) for name, file in files.items()})


def store_of(files: Files) -> MemoryStore:
    store = MemoryStore("m")
    for name, data in files.items():
        if "/" in name:
            store.make_folder(name.rpartition("/")[0])
        with store.create(name, len(data)) as file:
            for at in range(0, len(data), 1 << 16):
                if any(data[at : at + (1 << 16)]):
                    file.write_from(at, data[at : at + (1 << 16)])
    return store


def files_of(store: Store, folder: str = "") -> dict[str, bytes]:
    found = {}
    for entry in store.list(folder):
        name = f"{folder}/{entry}" if folder else entry
        if entry.endswith("/"):
            found.update(files_of(store, name[:-1]))
            continue
        with store.open(name) as file:
            data = bytearray(file.capacity)
            file.read_into(0, data)
            found[name] = bytes(data)
    return found


def content(store: Store, name: str, **options: object) -> bytes:
    with open_disk(store, name, **options) as disk:  # type: ignore[arg-type]
        data = bytearray(disk.capacity)
        disk.read_into(0, data)
        return bytes(data)


def make_small(store: Store, name: str, capacity: int, *, grain: int = SMALL_GRAIN) -> None:
    """A monolithicSparse disk with small grains, so that few bytes need many tables."""
    sectors, cid = capacity // SECTOR, new_cid()
    descriptor = new_descriptor(
        where=name,
        create_type=DiskType.MONOLITHIC_SPARSE.value,
        extents=[ExtentLine(Access.RW, sectors, "SPARSE", name)],
        cid=cid,
        ddb=base_ddb(sectors, "lsilogic", cid),
    )
    with store.create(name) as file:
        sparse.write_new(
            file, sparse.new_header(sectors, grain=grain // SECTOR), descriptor.to_bytes(), durable=True
        )


def make_split(store: Store, name: str, sizes: list[int], *, grain: int = SMALL_GRAIN) -> None:
    """A twoGbMaxExtentSparse disk of pieces of any sizes, in bytes."""
    stem = name.removesuffix(".vmdk")
    cid = new_cid()
    lines = []
    for number, size in enumerate(sizes, 1):
        piece = f"{stem}-s{number:03d}.vmdk"
        lines.append(ExtentLine(Access.RW, size // SECTOR, "SPARSE", piece))
        with store.create(piece) as file:
            header = sparse.new_header(size // SECTOR, grain=grain // SECTOR, descriptor_sectors=0)
            sparse.write_new(file, header, durable=True)
    sectors = sum(sizes) // SECTOR
    descriptor = new_descriptor(
        where=name,
        create_type="twoGbMaxExtentSparse",
        extents=lines,
        cid=cid,
        ddb=base_ddb(sectors, "lsilogic", cid),
    )
    put_text(store, name, descriptor.to_bytes())


def make_split_flat(store: Store, name: str, sizes: list[int]) -> None:
    stem = name.removesuffix(".vmdk")
    cid = new_cid()
    lines = []
    for number, size in enumerate(sizes, 1):
        piece = f"{stem}-f{number:03d}.vmdk"
        lines.append(ExtentLine(Access.RW, size // SECTOR, "FLAT", piece, 0))
        store.create(piece, size).close()
    descriptor = new_descriptor(
        where=name,
        create_type="twoGbMaxExtentFlat",
        extents=lines,
        cid=cid,
        ddb=base_ddb(sum(sizes) // SECTOR, "lsilogic", cid),
    )
    put_text(store, name, descriptor.to_bytes())


def make_flat(store: Store, name: str, capacity: int) -> None:
    create_disk(store, name, capacity, disk_type=DiskType.MONOLITHIC_FLAT).close()


def put_text(store: Store, name: str, data: bytes) -> None:
    with store.create(name, len(data)) as file:
        file.write_from(0, data)


def fill(store: Store, name: str, *, seed: int, pieces: int = 40, longest: int = 3 * SMALL_GRAIN) -> bytes:
    """Write at random; returns what the disk then holds."""
    rnd = random.Random(seed)
    with open_disk(store, name, writable=True) as disk:
        model = bytearray(disk.capacity)
        disk.read_into(0, model)
        for _ in range(pieces):
            start = rnd.randrange(len(model))
            data = rnd.randbytes(min(len(model) - start, rnd.randrange(1, longest)))
            disk.write_from(start, data)
            model[start : start + len(data)] = data
        last = len(model) - 1
        disk.write_from(last, b"e")
        model[last] = ord("e")
    return bytes(model)


def crashes(
    before: Files, act: Callable[[Store], object], check: Callable[[MemoryStore], None], *, lucks: int = 3
) -> int:
    """Run ``act`` once, then ``check`` what a crash behind each of its steps leaves; how many steps."""
    recorded = RecordingStore(store_of(before))
    act(recorded)
    assert recorded.steps
    for count in range(len(recorded.steps) + 1):
        for luck in range(lucks):
            check(after_crash(before, recorded.steps[:count], random.Random(1000 * count + luck)))
    return len(recorded.steps)


def failures(before: Files, act: Callable[[Store], object], check: Callable[[MemoryStore], None]) -> None:
    """Run ``act`` with each of its steps refused in turn, then ``check``."""
    at = 0
    while True:
        inner = store_of(before)
        try:
            act(RecordingStore(inner, fails_at=at))
        except Refused:
            check(inner)
            at += 1
            continue
        check(inner)
        assert at
        return
