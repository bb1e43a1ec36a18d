"""Damaged disks: whatever the bytes, only our own errors come out, in bounded memory."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Iterator

import pytest

from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryStore
from vdkit.errors import VixError
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, delete_disk, list_files, open_disk
from vdkit.vmdk.descriptor import Descriptor

GRAIN = 65536
CAPACITY = 12 * GRAIN
ROUNDS = 250
#: Memory that looking at a damaged disk of some hundred KiB may take.
MAX_MEMORY = 48 << 20

#: Numbers that break bounds.
EVIL = (0, 1, 2, 3, 127, 128, 511, 512, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
EVIL_64 = (*EVIL, 1 << 32, 1 << 52, (1 << 53) - 1, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

Files = dict[str, bytes]


def files_of(store: MemoryStore) -> Files:
    found: Files = {}
    for name in store.list():
        with store.open(name) as file:
            data = bytearray(file.capacity)
            if data:
                file.read_into(0, data)
            found[name] = bytes(data)
    return found


def sparse() -> tuple[Files, str, str]:
    store = MemoryStore("m")
    with create_disk(store, "d.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(GRAIN, b"data" * GRAIN)
    return files_of(store), "d.vmdk", "d.vmdk"


def stream() -> tuple[Files, str, str]:
    store = MemoryStore("m")
    writer = StreamWriter(store, "d.vmdk", CAPACITY)
    noise = random.Random(1).randbytes(GRAIN)
    writer.append(writer.encode(0, memoryview(noise + b"text" * (GRAIN // 4) + bytes(GRAIN) + noise)))
    writer.finish()
    return files_of(store), "d.vmdk", "d.vmdk"


def cowd() -> tuple[Files, str, str]:
    store = MemoryStore("m")
    create_disk(store, "d.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    create_child(store, "d.vmdk", "c.vmdk")
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_from(GRAIN, b"delta" * 1000)
    return files_of(store), "c.vmdk", "c-delta.vmdk"


def rebuilt(files: Files) -> MemoryStore:
    store = MemoryStore("damaged")
    for name, data in files.items():
        with store.create(name, len(data)) as file:
            if data:
                file.write_from(0, data)
    return store


def regions(data: bytes, kind: str) -> list[tuple[int, int]]:
    """Where the bytes are that decide something."""
    if kind == "sparse":
        return [(0, 79), (512, 1200), (21 * 512, 33 * 512)]
    if kind == "cowd":
        return [(0, 40), (1640, 1660), (2048, 2048 + 512 * 40)]
    tail = len(data) - 8 * 512
    return [(0, 79), (512, 1200), (GRAIN, GRAIN + 30), (tail, len(data)), (len(data) - 1536, len(data) - 900)]


def damaged(data: bytes, kind: str, rnd: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rnd.choice((1, 1, 1, 2, 5))):
        low, high = rnd.choice(regions(data, kind))
        place = rnd.randrange(low, min(high, len(changed)) if len(changed) > low else low + 1)
        if place + 8 > len(changed):
            continue
        match rnd.randrange(6):
            case 0:
                changed[place] = rnd.randrange(256)
            case 1:
                struct.pack_into("<I", changed, place & ~3, rnd.choice(EVIL))
            case 2:
                struct.pack_into("<Q", changed, place & ~3, rnd.choice(EVIL_64))
            case 3:
                changed[place : place + 16] = rnd.randbytes(16)
            case 4:
                del changed[rnd.randrange(len(changed)) :]
            case _:
                sector = place // 512 * 512
                changed[sector : sector + 512] = changed[:512]
    return bytes(changed)


def exercise(store: MemoryStore, name: str, *, recover: bool, writable: bool) -> None:
    """Everything a user may do with a disk; a little of it where it says it is huge."""
    with open_disk(store, name, recover=recover, writable=writable) as disk:
        assert disk.info.links
        for count, extent in enumerate(disk.extents(0, min(disk.capacity, 1 << 44))):
            if extent.kind is ExtentKind.DATA and count < 8:
                disk.read_into(extent.offset, bytearray(min(extent.length, 4 * GRAIN)))
        disk.read_into(0, bytearray(min(disk.capacity, CAPACITY)))
        if writable:
            disk.write_from(0, b"x" * min(disk.capacity, 3000))
            disk.flush()


def attempts(rounds: int) -> Iterator[tuple[int, random.Random]]:
    for number in range(rounds):
        yield number, random.Random(number)


@pytest.mark.parametrize("make", [sparse, stream, cowd])
def test_damaged_files_raise_our_errors_only(make: object) -> None:
    assert callable(make)
    files, name, victim = make()
    kind = make.__name__
    tracemalloc.start()
    refused = 0
    for number, rnd in attempts(ROUNDS):
        store = rebuilt({**files, victim: damaged(files[victim], kind, rnd)})
        try:
            exercise(store, name, recover=number % 2 == 1, writable=kind != "stream" and number % 3 == 0)
        except VixError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY, f"round {number}"
        tracemalloc.reset_peak()
    tracemalloc.stop()
    assert refused > ROUNDS // 5, "the damage is real"


WORDS = (
    "version=1",
    "version=3",
    'encoding="GBK"',
    'encoding="utf-16"',
    "CID=ffffffff",
    "CID=zz",
    "parentCID=12345678",
    'createType="custom"',
    'parentFileNameHint="d.vmdk"',
    'parentFileNameHint="../x"',
    'RW 1 FLAT "d-flat.vmdk" 0',
    'RW 99999999999 FLAT "d-flat.vmdk" 0',
    "RW 1 ZERO",
    'RW 1 SPARSE "d.vmdk"',
    'RW 1 FLAT "/etc/passwd" 0',
    'RDONLY 2 FLAT "d-flat.vmdk" 9007199254740992',
    "RW",
    "=",
    '"',
    "ddb.",
    "ddb.x = ",
    "#",
    "\r",
    "\0",
    "\ufeff",
    'changeTrackPath="/dev/null"',
    "\x85",
    "\u2028",
    'RW 1 FLAT "a\nRW 1 ZERO',
)


def test_damaged_descriptors_raise_our_errors_only() -> None:
    store = MemoryStore("m")
    create_disk(store, "d.vmdk", CAPACITY, disk_type=DiskType.MONOLITHIC_FLAT).close()
    files = files_of(store)
    for _, rnd in attempts(4 * ROUNDS):
        lines = files["d.vmdk"].split(b"\n")
        for _ in range(rnd.randrange(1, 4)):
            place = rnd.randrange(len(lines))
            match rnd.randrange(4):
                case 0:
                    lines[place] = rnd.choice(WORDS).encode()
                case 1:
                    lines.insert(place, rnd.choice(WORDS).encode())
                case 2:
                    del lines[place]
                case _:
                    lines[place] = bytes(b ^ (rnd.random() < 0.1) * rnd.randrange(256) for b in lines[place])
            if not lines:
                break
        data = rnd.choice((b"\n", b"\n", b"\r\n", b"\r")).join(lines)
        broken = rebuilt({**files, "d.vmdk": data})
        for act in (
            lambda s=broken: exercise(s, "d.vmdk", recover=False, writable=True),
            lambda s=broken: list_files(s, "d.vmdk"),
            lambda s=broken: delete_disk(s, "d.vmdk"),
        ):
            try:
                act()
            except VixError as error:
                assert "\n" not in str(error)


def test_editing_a_damaged_descriptor_keeps_it_readable() -> None:
    for _, rnd in attempts(ROUNDS):
        lines = [rnd.choice(WORDS) for _ in range(rnd.randrange(12))]
        try:
            made = Descriptor.parse("\n".join(["version=1", *lines]).encode(), "fuzz")
            made.set("ddb.comment", "added")
            made.set_cid(7)
            again = Descriptor.parse(made.to_bytes(), "fuzz")
        except VixError:
            continue
        assert (again.cid, again.get("ddb.comment"), again.extents) == (7, "added", made.extents)
