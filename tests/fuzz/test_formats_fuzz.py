"""Damaged seSparse deltas and damaged streams on a pipe: only our errors come out, in bounded memory."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc

from streamlayouts import GRAIN, behind, front
from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.errors import VixError
from vdkit.testing.sesparse import Hollow, layout, write_sesparse
from vdkit.vmdk import StreamReader, describe_only, open_disk, receive_stream

ROUNDS = 400
MAX_MEMORY = 64 << 20
EVIL = (
    0,
    1,
    2,
    7,
    8,
    0xFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 52,
    1 << 60,
    3 << 60,
    5 << 60,
    (1 << 63) - 1,
    (1 << 64) - 1,
)

SMALL = 4096
CAPACITY = 50 * SMALL
AREAS = layout(CAPACITY // 512).areas
#: Where the bytes are that decide something.
PLACES = [
    (0, 512),
    (AREAS["volatile header"][0] * 512, AREAS["volatile header"][0] * 512 + 64),
    (AREAS["grain directory"][0] * 512, AREAS["grain directory"][0] * 512 + 32),
    (AREAS["grain tables"][0] * 512, AREAS["grain tables"][0] * 512 + 64 * 8),
]


def mutated(data: bytes, places: list[tuple[int, int]], dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        low, high = dice.choice(places)
        if low + 8 >= len(changed):
            continue
        at = dice.randrange(low, min(high, len(changed) - 8))
        match dice.randrange(5):
            case 0:
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                struct.pack_into("<Q", changed, at & ~7, dice.choice(EVIL))
            case 2:
                struct.pack_into("<I", changed, at & ~3, dice.choice(EVIL) & 0xFFFFFFFF)
            case 3:
                changed[at : at + 8] = dice.randbytes(8)
            case _:
                del changed[dice.randrange(len(changed)) :]
    return bytes(changed)


def put(store: MemoryStore, name: str, data: bytes) -> None:
    with store.create(name, len(data)) as file:
        if data:
            file.write_from(0, data)


def test_damaged_sesparse_deltas() -> None:
    made = MemoryStore("m")
    grains: dict[int, bytes | Hollow] = {n: bytes([n + 1]) * SMALL for n in range(0, 50, 3)}
    write_sesparse(made, "d.vmdk", CAPACITY, {**grains, 1: Hollow.ZERO, 2: Hollow.UNMAPPED}, seed=5)
    files = {}
    for name in made.list():
        with made.open(name) as file:
            data = bytearray(file.capacity)
            file.read_into(0, data)
            files[name] = bytes(data)
    refused = 0
    tracemalloc.start()
    for number in range(ROUNDS):
        dice = random.Random(number)
        store = MemoryStore("damaged")
        put(store, "d.vmdk", files["d.vmdk"])
        put(store, "d-sesparse.vmdk", mutated(files["d-sesparse.vmdk"], PLACES, dice))
        assert describe_only(store, "d.vmdk").capacity == CAPACITY
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        try:
            with open_disk(store, "d.vmdk", ignore_journal=number % 2 == 0) as disk:
                for extent in disk.extents():
                    if extent.kind is ExtentKind.DATA:
                        disk.read_into(extent.offset, bytearray(extent.length))
                disk.read_into(0, bytearray(CAPACITY))
        except VixError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] - before < MAX_MEMORY, f"round {number}"
    tracemalloc.stop()
    assert refused > ROUNDS // 3, "the damage is real"


SECTORS = 600 * 128 + 5


def test_damaged_streams_on_a_pipe() -> None:
    """What is taken as whole has every grain; what is refused has handed out nothing but true grains."""
    grains = {n: (b"grain %d " % n * GRAIN)[:GRAIN] for n in (0, 1, 7, 300, 511, 512, 600)}
    truth = {n * GRAIN: data for n, data in grains.items()}
    streams = [
        behind(grains, SECTORS),
        behind(grains, SECTORS, values=False, twice=True),
        front(grains, SECTORS),
        front(grains, SECTORS, redundant=True, end=b""),
    ]
    refused = 0
    tracemalloc.start()
    for number in range(ROUNDS):
        dice = random.Random(number)
        data = streams[number % len(streams)]
        first = 128 * 512 if number % 4 < 2 else 21 * 512
        places = [(0, 79), (512, 900), (first, first + 64), (first, len(data)), (len(data) - 4096, len(data))]
        broken = mutated(data, places, dice)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        seen: dict[int, bytes] = {}
        try:
            reader = StreamReader(io.BytesIO(broken), ordered=number % 3 == 0)
            for offset, part in reader:
                assert offset not in seen and 0 < len(part) <= reader.grain
                seen[offset] = bytes(part)
            assert reader.summary is not None and reader.summary.grains == len(seen)
        except VixError as error:
            refused += 1
            assert str(error) and "\n" not in str(error)
        for offset in seen.keys() & truth.keys():
            if len(seen[offset]) == GRAIN:
                assert seen[offset] == truth[offset], "the checksum of a grain was not looked at"
        assert tracemalloc.get_traced_memory()[1] - before < MAX_MEMORY, f"round {number}"
    tracemalloc.stop()
    assert refused > ROUNDS // 4, "the damage is real"


def test_damaged_streams_are_received_or_refused() -> None:
    data = behind({n: (b"%d " % n * GRAIN)[:GRAIN] for n in range(40)}, SECTORS)
    for number in range(60):
        broken = mutated(data, [(128 * 512, len(data))], random.Random(number))
        try:
            summary = receive_stream(io.BytesIO(broken), lambda reader: MemoryDevice(reader.capacity))
        except VixError as error:
            assert "\n" not in str(error)
        else:
            assert summary.grains > 0
