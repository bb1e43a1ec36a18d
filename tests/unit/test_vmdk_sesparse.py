"""seSparse: what is read, what the map says, and every rule of its headers."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.disklib.local import allocation_map, convert
from vdkit.errors import (
    CorruptDisk,
    FormatError,
    LimitExceeded,
    NotADisk,
    NotSupported,
    UnsupportedVersion,
    UsageError,
)
from vdkit.testing.devices import DeviceConformance
from vdkit.testing.sesparse import GRAIN, Hollow, entry, layout, write_sesparse
from vdkit.vmdk import DiskType, create_disk, list_files, open_disk
from vdkit.vmdk.sesparse import ENTRIES_PER_TABLE
from vdkit.vmdk.template import Parent

CAPACITY = 40 * GRAIN
DATA = {0: b"a" * GRAIN, 3: b"b" * GRAIN, 4: b"c" * GRAIN, 39: b"z" * GRAIN}
HOLLOW = {7: Hollow.ZERO, 8: Hollow.UNMAPPED, 20: Hollow.UNMAPPED}


def chain(
    store: Store, grains: Mapping[int, bytes | Hollow], content: bytes, name: str = "vm-000001.vmdk"
) -> None:
    """A delta over a flat base that holds ``content``."""
    with create_disk(store, "vm.vmdk", len(content), disk_type=DiskType.VMFS_FLAT) as disk:
        copy(MemoryDevice.from_bytes(content), disk, target_is_zero=True)
        cid = disk.info.cid
    write_sesparse(store, name, len(content), grains, parent=Parent(cid, "vm.vmdk"))


def contents(store: Store, name: str, **options: bool) -> bytes:
    with open_disk(store, name, **options) as disk:
        seen = bytearray(disk.capacity)
        disk.read_into(0, seen)
        return bytes(seen)


def expected(grains: Mapping[int, bytes | Hollow], below: bytes) -> bytes:
    made = bytearray(below)
    for number, grain in grains.items():
        size = min(GRAIN, len(below) - number * GRAIN)
        made[number * GRAIN : number * GRAIN + size] = (
            bytes(size) if isinstance(grain, Hollow) else grain[:size]
        )
    return bytes(made)


def test_a_delta_over_a_flat_base() -> None:
    store = MemoryStore("m")
    below = random.Random(4).randbytes(CAPACITY)
    chain(store, {**DATA, **HOLLOW}, below)
    assert contents(store, "vm-000001.vmdk") == expected({**DATA, **HOLLOW}, below)
    with open_disk(store, "vm-000001.vmdk") as disk:
        assert [link.create_type for link in disk.info.links] == ["seSparse", "vmfs"]
        assert disk.info.notes == () and disk.info.adapter == "lsilogic" and not disk.info.unclean
    assert list_files(store, "vm-000001.vmdk") == ["vm-000001.vmdk", "vm-000001-sesparse.vmdk"]


def test_the_map_of_one_link_is_exact() -> None:
    store = MemoryStore("m")
    chain(store, {**DATA, **HOLLOW}, bytes(CAPACITY))
    with open_disk(store, "vm-000001.vmdk", single_link=True) as link:
        kinds = {"a": ExtentKind.ABSENT, "d": ExtentKind.DATA, "z": ExtentKind.ZERO}
        pattern = ["a"] * 40
        for number in DATA:
            pattern[number] = "d"
        for number in HOLLOW:
            pattern[number] = "z"
        for number, letter in enumerate(pattern):
            assert list(link.extents(number * GRAIN, GRAIN)) == [Extent(number * GRAIN, GRAIN, kinds[letter])]
        runs = list(link.extents())
        assert [run.kind for run in runs] == [
            kinds[letter]
            for number, letter in enumerate(pattern)
            if not number or letter != pattern[number - 1]
        ]
        link.read_into(3 * GRAIN, bytearray(2 * GRAIN))
        with pytest.raises(UsageError, match="in its parent"):
            link.read_into(0, bytearray(2 * GRAIN))


def test_without_a_parent_what_is_absent_is_zero(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    write_sesparse(store, "d.vmdk", CAPACITY - 512, {**DATA, **HOLLOW})
    below = bytes(CAPACITY - 512)
    assert contents(store, "d.vmdk") == expected({**DATA, **HOLLOW}, below)
    convert(tmp_path / "d.vmdk", tmp_path / "d.raw", to="raw")
    assert (tmp_path / "d.raw").read_bytes() == expected(DATA, below)
    entries = allocation_map(tmp_path / "d.vmdk")
    found = {at for e in entries if e["data"] for at in range(e["start"], e["start"] + e["length"], GRAIN)}
    assert found == {number * GRAIN for number in DATA}


class TestSeSparseChild(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        store = FolderStore(folder)
        grains: dict[int, bytes | Hollow] = {}
        below = bytearray(content)
        for number in range(0, -(-len(content) // GRAIN), 2):
            part = content[number * GRAIN : (number + 1) * GRAIN]
            grains[number] = part if any(part) else Hollow.ZERO
            below[number * GRAIN : number * GRAIN + len(part)] = b"\xee" * len(part)
        chain(store, grains, bytes(below))
        return open_disk(store, "vm-000001.vmdk")


def test_the_extent_alone_and_writing_are_refused() -> None:
    store = MemoryStore("m")
    chain(store, DATA, bytes(CAPACITY))
    with pytest.raises(NotADisk, match="seSparse extent of a snapshot's delta; open the delta's descriptor"):
        open_disk(store, "vm-000001-sesparse.vmdk")
    with pytest.raises(NotSupported, match="seSparse extent cannot be changed in place"):
        open_disk(store, "vm-000001.vmdk", writable=True)


def test_a_waiting_journal_must_be_allowed_by_name() -> None:
    store = MemoryStore("m")
    write_sesparse(store, "d.vmdk", CAPACITY, DATA, journal_waits=True)
    with pytest.raises(NotSupported, match=r"journal has not been replayed.*--ignore-journal"):
        open_disk(store, "d.vmdk")
    assert contents(store, "d.vmdk", ignore_journal=True) == expected(DATA, bytes(CAPACITY))
    with open_disk(store, "d.vmdk", ignore_journal=True) as disk:
        assert disk.info.unclean and "journal has not been replayed" in disk.info.notes[0]


def changed(offset: int, data: bytes, *, cut: int | None = None) -> MemoryStore:
    """A delta whose extent file has other bytes at ``offset``, or ends at ``cut``."""
    store = MemoryStore("m")
    write_sesparse(store, "d.vmdk", CAPACITY, DATA, seed=1)
    with store.open_writable("d-sesparse.vmdk") as file:
        file.write_from(offset, data)
        if cut is not None:
            file.resize(cut)
    return store


AREAS = layout(CAPACITY // 512).areas
VOLATILE = AREAS["volatile header"][0] * 512
DIRECTORY = AREAS["grain directory"][0] * 512
TABLE = AREAS["grain tables"][0] * 512


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


@pytest.mark.parametrize(
    ("offset", "data", "error", "text"),
    [
        (8, u64(0x0000000200000002), UnsupportedVersion, r"version 2\.2"),
        (16, u64(0), LimitExceeded, "capacity of 0"),
        (16, u64((1 << 37) + 1), LimitExceeded, "capacity of 137438953473"),
        (16, u64(CAPACITY // 512 - 1), CorruptDisk, "its header only 319"),
        (16, u64(1 << 36), CorruptDisk, "grain directory of 2048 sectors, 32768 are needed"),
        (24, u64(16), UnsupportedVersion, "grains of 16"),
        (32, u64(128), UnsupportedVersion, "tables of 128"),
        (40, u64(1), UnsupportedVersion, "flags 0x1"),
        (72, u64(1), UnsupportedVersion, "fields"),
        (511, b"\1", UnsupportedVersion, "behind its header"),
        (80, u64(0), CorruptDisk, "volatile header at sector 0"),
        (80, u64(1 << 60), CorruptDisk, "volatile header at sector"),
        (88, u64(0), CorruptDisk, "has 0 sectors"),
        (112, u64(1), CorruptDisk, "overlaps"),
        (128, u64(2048), CorruptDisk, "overlaps"),
        (128, u64(1 << 40), CorruptDisk, "ends past the file"),
        (136, u64(1 << 53), CorruptDisk, "overlaps"),
        (200, u64(1 << 54), CorruptDisk, "the grains at sector"),
        (VOLATILE, u64(0xCAFEBABE), CorruptDisk, "no volatile header at sector 1"),
        (VOLATILE + 40, b"\1", UnsupportedVersion, "behind the volatile header"),
    ],
)
def test_headers_are_checked(offset: int, data: bytes, error: type[FormatError], text: str) -> None:
    with pytest.raises(error, match=text):
        open_disk(changed(offset, data), "d.vmdk")


@pytest.mark.parametrize(
    ("offset", "number", "text"),
    [
        (DIRECTORY, 0x2000000000000000, "entry 0 of the grain directory is 0x2000000000000000"),
        (DIRECTORY, 0x1000000000000020, "entry 0 of the grain directory"),
        (DIRECTORY, 0x1000000100000000, "entry 0 of the grain directory"),
        (TABLE + 5 * 8, 0x4000000000000000, "entry 5 of grain table 0 is 0x4000000000000000"),
        (TABLE + 5 * 8, 5, "entry 5 of grain table 0 is 0x5"),
        (TABLE + 5 * 8, entry(3, CAPACITY // GRAIN), "entry 5 of grain table 0"),
        (TABLE + 5 * 8, entry(3, 39), "grain at sector .* is outside the grains"),
    ],
)
def test_entries_are_checked_when_they_are_met(offset: int, number: int, text: str) -> None:
    store = changed(offset, u64(number))
    with open_disk(store, "d.vmdk") as disk, pytest.raises(CorruptDisk, match=text):
        disk.read_into(0, bytearray(CAPACITY))


def test_a_table_past_the_end_of_the_file() -> None:
    store = changed(DIRECTORY, u64(0x100000000000001F), cut=TABLE + 0x1F * 32768)
    with open_disk(store, "d.vmdk") as disk, pytest.raises(CorruptDisk, match="grain table 0 at sector"):
        disk.read_into(0, bytearray(CAPACITY))


@pytest.mark.parametrize("cut", [0, 100, 512, 1023, DIRECTORY, DIRECTORY + 511, TABLE, TABLE + 512])
def test_cut_files_are_refused(cut: int) -> None:
    with pytest.raises(FormatError):
        contents(changed(0, b"", cut=cut), "d.vmdk")


def test_indexes_of_every_size_survive_their_encoding() -> None:
    for index in (0, 1, 0xFFF, 0x1000, 0x12345678, (1 << 34) - 1):
        stored = entry(3, index)
        assert stored >> 60 == 3 and (stored >> 48 & 0xFFF) | (stored & 0xFFFFFFFFFFFF) << 12 == index


class Counting(MemoryStore):
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        super().__init__("counting")
        self.read = 0

    def open(self, name: str) -> MemoryDevice:
        device = super().open(name)
        plain = device._read_into

        def counted(offset: int, view: memoryview) -> None:
            self.read += len(view)
            plain(offset, view)

        device._read_into = counted  # type: ignore[method-assign]
        return device


def test_a_disk_of_64_tib_is_read_a_piece_at_a_time() -> None:
    store = Counting()
    capacity = 64 << 40
    last = capacity // GRAIN - 1
    middle = last // 2 // ENTRIES_PER_TABLE * ENTRIES_PER_TABLE
    write_sesparse(store, "d.vmdk", capacity, {0: b"a" * GRAIN, middle: b"m" * GRAIN, last: b"z" * GRAIN})
    store.read = 0
    with open_disk(store, "d.vmdk") as disk:
        seen = bytearray(GRAIN)
        for number, letter in ((0, b"a"), (middle, b"m"), (last, b"z")):
            disk.read_into(number * GRAIN, seen)
            assert seen == letter * GRAIN
        assert store.read < 1 << 20
        assert [e.offset // GRAIN for e in disk.extents() if e.kind is ExtentKind.DATA] == [0, middle, last]
    with pytest.raises(LimitExceeded):
        write_sesparse(store, "e.vmdk", capacity + (1 << 30), {})
        open_disk(store, "e.vmdk")
