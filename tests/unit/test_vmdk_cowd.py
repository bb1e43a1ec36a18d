"""COWD deltas: headers, the discipline of the free sector, damage."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.errors import CorruptDisk, UnsupportedVersion, UsageError, VixError
from vdkit.vmdk.cowd import CowdExtent, write_new

SECTORS = 20000
CAPACITY = SECTORS * 512


def fresh() -> MemoryDevice:
    file = MemoryDevice(0, name="d-delta.vmdk")
    write_new(file, SECTORS)
    return file


def field(file: MemoryDevice, offset: int) -> int:
    data = bytearray(4)
    file.read_into(offset, data)
    return int.from_bytes(data, "little")


class Kept(MemoryDevice):
    """Survives the closing of the extent over it."""

    def _close(self) -> None:
        return


def test_a_new_delta() -> None:
    file = fresh()
    assert file.capacity == 5 * 512
    data = bytearray(2048)
    file.read_into(0, data)
    assert struct.unpack_from("<4s7I", data) == (b"COWD", 1, 3, SECTORS, 1, 4, 5, 5)
    with CowdExtent(file, capacity=CAPACITY) as extent:
        assert list(extent.extents()) == [Extent(0, CAPACITY, ExtentKind.ABSENT)]
        assert extent.write_unit == 512


def test_free_sector_is_written_before_what_it_covers(tmp_path: Path) -> None:
    log: list[tuple[str, int, int]] = []

    class Recorder(MemoryDevice):
        def _write_from(self, offset: int, view: memoryview) -> None:
            log.append(("write", offset, len(view)))
            super()._write_from(offset, view)

        def _flush(self) -> None:
            log.append(("flush", 0, 0))

    file = Recorder(0, name="d-delta.vmdk")
    write_new(file, SECTORS)
    extent = CowdExtent(file, capacity=CAPACITY)
    log.clear()
    extent.write_from(4096 * 512, b"x" * 1024)
    table, grain = 5 * 512, (5 + 32) * 512
    assert log == [("write", 1648, 4), ("flush", 0, 0), ("write", grain, 1024)]
    log.clear()
    extent.flush()
    assert log == [
        ("flush", 0, 0),
        ("write", 28, 4),
        ("flush", 0, 0),
        ("write", table, 16384),
        ("flush", 0, 0),
        ("write", 2048 + 4, 4),
        ("flush", 0, 0),
    ]
    assert field(file, 28) == 5 + 32 + 2
    assert field(file, 1648) == 1
    extent.close()


def test_every_reference_lies_below_the_free_sector(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with store.create("d") as file:
        write_new(file, SECTORS)
    for start in (0, 9_000_000, 100_000, 4096 * 512 - 512):
        with CowdExtent(store.open_writable("d"), capacity=CAPACITY) as extent:
            extent.write_from(start // 512 * 512, bytes([start % 251 + 1]) * 2048)
    data = (tmp_path / "d").read_bytes()
    free, unclean = struct.unpack_from("<I", data, 28)[0], struct.unpack_from("<I", data, 1648)[0]
    assert len(data) == free * 512 and unclean == 0
    used = set()
    for table in struct.unpack_from("<5I", data, 2048):
        if table:
            assert table >= 5 and table + 32 <= free
            used |= set(range(table, table + 32))
            for entry in struct.unpack_from("<4096I", data, table * 512):
                if entry:
                    assert 5 <= entry < free and entry not in used
                    used.add(entry)
    assert used == set(range(5, free)), "no hole, nothing twice"


def test_a_free_sector_that_was_set_back_overwrites_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with store.create("d") as file:
        write_new(file, SECTORS)
    with CowdExtent(store.open_writable("d"), capacity=CAPACITY) as extent:
        extent.write_from(0, b"a" * 4096)
    with store.open_writable("d") as file:
        file.write_from(28, struct.pack("<I", 5))
    with CowdExtent(store.open_writable("d"), capacity=CAPACITY) as extent:
        extent.write_from(8192, b"b" * 4096)
        seen = bytearray(4096)
        extent.read_into(0, seen)
        assert seen == b"a" * 4096


def test_part_of_an_absent_grain_is_refused() -> None:
    with CowdExtent(fresh(), capacity=CAPACITY) as extent:
        with pytest.raises(UsageError, match="through the chain"):
            extent.write_from(100, b"x")
        with pytest.raises(UsageError, match="parent"):
            extent.read_into(0, bytearray(1))
        extent.write_from(0, b"x" * 512)
        extent.write_from(100, b"y")


def test_an_entry_of_one_is_zeroes() -> None:
    file = Kept(0, name="d-delta.vmdk")
    write_new(file, SECTORS)
    with CowdExtent(file, capacity=CAPACITY) as extent:
        extent.write_from(0, b"x" * 1024)
    file = Kept.from_bytes(bytes(_all(file)), name="d-delta.vmdk")
    file.write_from(5 * 512, struct.pack("<I", 1))
    with CowdExtent(file, capacity=CAPACITY) as extent:
        seen = bytearray(b"?" * 1024)
        extent.read_into(0, seen)
        assert seen == bytes(512) + b"x" * 512


def _all(file: MemoryDevice) -> bytearray:
    again = Kept._on(file._content, name="again", writable=False)
    data = bytearray(again.capacity)
    again.read_into(0, data)
    return data


@pytest.mark.parametrize(
    ("offset", "value", "error", "text"),
    [
        (4, 2, UnsupportedVersion, "version 2"),
        (8, 7, UnsupportedVersion, "flags 0x7"),
        (16, 0, CorruptDisk, "power of two"),
        (16, 3, CorruptDisk, "power of two"),
        (16, 4096, CorruptDisk, "power of two"),
        (12, 0, CorruptDisk, "capacity of 0"),
        (12, 100, CorruptDisk, "header only 100"),
        (12, 0xFFFFFFFF, CorruptDisk, "are needed"),
        (20, 0, CorruptDisk, "outside the file"),
        (20, 0xFFFFFFFF, CorruptDisk, "outside the file"),
        (24, 1, CorruptDisk, "5 are needed"),
        (24, 0xFFFFFFFF, CorruptDisk, "outside the file"),
    ],
)
def test_bad_headers_are_refused_by_name(offset: int, value: int, error: type[VixError], text: str) -> None:
    file = fresh()
    file.write_from(offset, struct.pack("<I", value))
    with pytest.raises(error, match=text):
        CowdExtent(file, capacity=CAPACITY)


@pytest.mark.parametrize("entry", [2, 4, 1 << 20, 0xFFFFFFFF])
def test_tables_and_grains_outside_the_file(entry: int) -> None:
    file = fresh()
    file.write_from(2048, struct.pack("<I", entry))
    with pytest.raises(CorruptDisk, match="grain table 0"), CowdExtent(file, capacity=CAPACITY) as extent:
        extent.read_into(0, bytearray(512))
