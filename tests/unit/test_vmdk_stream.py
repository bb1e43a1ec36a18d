"""streamOptimized: what the writer leaves in the file, and what the reader makes of damaged ones."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.copy import copy
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.errors import (
    AlreadyExists,
    CidMismatch,
    Closed,
    CorruptDisk,
    FormatError,
    NotADisk,
    NotSupported,
    UsageError,
)
from vdkit.vmdk import Codec, DiskType, StreamWriter, create_disk, open_disk
from vdkit.vmdk import codec as codecs
from vdkit.vmdk.codec import InflateError, compressor

GRAIN = 65536


def sample(capacity: int) -> bytes:
    rnd = random.Random(9)
    content = bytearray(capacity)
    for start, text in ((0, b"boot"), (GRAIN * 3 + 7, b"hello " * 30000), (capacity - 5, b"tail!")):
        content[start : start + len(text)] = text[: capacity - start]
    content[GRAIN * 8 : GRAIN * 10] = rnd.randbytes(2 * GRAIN)
    return bytes(content[:capacity])


def written(store: Store, content: bytes, name: str = "s.vmdk", **options: Any) -> StreamWriter:
    writer = StreamWriter(store, name, len(content), **options)
    copy(MemoryDevice.from_bytes(content), writer, target_is_zero="parent_cid" not in options)
    writer.finish()
    return writer


def contents(store: Store, name: str = "s.vmdk", **options: Any) -> bytes:
    with open_disk(store, name, **options) as disk:
        seen = bytearray(disk.capacity)
        disk.read_into(0, seen)
        return bytes(seen)


def raw(store: Store, name: str = "s.vmdk") -> bytes:
    with store.open(name) as file:
        data = bytearray(file.capacity)
        file.read_into(0, data)
        return bytes(data)


def replaced(data: bytes) -> MemoryStore:
    store = MemoryStore("changed")
    with store.create("s.vmdk", len(data)) as file:
        if data:
            file.write_from(0, data)
    return store


CONTENT = sample(40 * GRAIN + 512 * 3)


@pytest.fixture(scope="module")
def stream() -> bytes:
    store = MemoryStore("m")
    written(store, CONTENT)
    return raw(store)


def test_the_end_is_one_marker_in_the_last_sector(stream: bytes) -> None:
    assert len(stream) % 512 == 0
    assert not any(stream[-512:])
    assert stream[-1024:-1020] == b"KDMV"
    assert struct.unpack_from("<QII", stream, len(stream) - 1536) == (1, 0, 3)
    header = struct.unpack_from("<4sIIQQQQIQQQB4sH", stream)
    assert header[:3] == (b"KDMV", 3, 0x30001)
    assert header[9] == (1 << 64) - 1


def test_every_grain_is_full_ascending_and_zlib(stream: bytes) -> None:
    position, last, grains = 128 * 512, -1, 0
    while position < len(stream):
        lba, size, kind = struct.unpack_from("<QII", stream, position)
        if size:
            assert lba > last and stream[position + 12] == 0x78
            assert len(zlib.decompress(stream[position + 12 : position + 12 + size])) == GRAIN
            last, grains = lba, grains + 1
            position += -(-(12 + size) // 512) * 512
        else:
            position += 512 + lba * 512 if kind else 512
    assert position == len(stream)
    assert grains == len({i // GRAIN for i, b in enumerate(CONTENT) if b})


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("level", [None, 1, 3])
def test_round_trip(codec: Codec, level: int | None) -> None:
    store = MemoryStore("m")
    written(store, CONTENT, codec=codec, level=level)
    assert contents(store) == CONTENT


def test_reads_of_less_than_a_grain(stream: bytes) -> None:
    rnd = random.Random(3)
    with open_disk(replaced(stream), "s.vmdk") as disk:
        for _ in range(200):
            offset = rnd.randrange(len(CONTENT))
            length = rnd.randrange(1, min(3 * GRAIN, len(CONTENT) - offset) + 1)
            seen = bytearray(length)
            disk.read_into(offset, seen)
            assert seen == CONTENT[offset : offset + length]


def test_incompressible_grains_are_stored() -> None:
    compress = compressor(Codec.DENSE, None)
    noise = random.Random(1).randbytes(GRAIN)
    packed = compress(memoryview(noise))
    assert len(packed) <= GRAIN + 5 * 2 + 6 and zlib.decompress(packed) == noise


def test_finish_comes_before_it_is_a_disk() -> None:
    store = MemoryStore("m")
    writer = StreamWriter(store, "s.vmdk", 8 * GRAIN)
    writer.append(writer.encode(0, memoryview(b"x" * GRAIN)))
    with pytest.raises(NotADisk, match="never finished"):
        open_disk(store, "s.vmdk")
    with pytest.raises(AlreadyExists):
        StreamWriter(store, "s.vmdk", 8 * GRAIN)
    writer.abort()
    assert store.list() == []
    with pytest.raises(Closed):
        writer.finish()


def test_leaving_the_block_without_finishing_removes_it() -> None:
    store = MemoryStore("m")
    with StreamWriter(store, "s.vmdk", GRAIN):
        assert store.exists("s.vmdk")
    assert store.list() == []
    with pytest.raises(UsageError):
        StreamWriter(store, "s.vmdk", GRAIN, adapter="usb")
    assert store.list() == []


def test_order_and_units_are_checked() -> None:
    writer = StreamWriter(MemoryStore("m"), "s.vmdk", 8 * GRAIN + 512)
    one = writer.encode(GRAIN, memoryview(b"x" * GRAIN))
    writer.append(one)
    with pytest.raises(UsageError, match="comes after"):
        writer.append(one)
    for offset, length in ((512, GRAIN), (0, 512), (8 * GRAIN, 2 * GRAIN)):
        with pytest.raises(UsageError, match="whole grains"):
            writer.encode(offset, memoryview(bytes(length)))
    writer.abort()


def test_a_delta_stores_zeroes_and_knows_its_parent(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    base = written(store, b"a" * (6 * GRAIN), "base.vmdk")
    delta = StreamWriter(store, "d.vmdk", 6 * GRAIN, parent_cid=base.cid, parent_hint="base.vmdk")
    delta.append(delta.encode(GRAIN, memoryview(bytes(GRAIN) + b"b" * GRAIN)))
    delta.finish()
    assert contents(store, "d.vmdk") == b"a" * GRAIN + bytes(GRAIN) + b"b" * GRAIN + b"a" * 3 * GRAIN
    with open_disk(store, "d.vmdk", single_link=True) as link:
        assert list(link.extents()) == [
            Extent(0, GRAIN, ExtentKind.ABSENT),
            Extent(GRAIN, 2 * GRAIN, ExtentKind.DATA),
            Extent(3 * GRAIN, 3 * GRAIN, ExtentKind.ABSENT),
        ]
        with pytest.raises(UsageError, match="parent"):
            link.read_into(0, bytearray(10))
    other = StreamWriter(store, "e.vmdk", 6 * GRAIN, parent_cid=base.cid ^ 1, parent_hint="base.vmdk")
    other.finish()
    with pytest.raises(CidMismatch, match=f"{base.cid:08x}"):
        open_disk(store, "e.vmdk")
    with pytest.raises(UsageError, match="both"):
        StreamWriter(store, "f.vmdk", GRAIN, parent_hint="base.vmdk")


def test_cannot_be_written_in_place(stream: bytes) -> None:
    with pytest.raises(NotSupported, match="in place"):
        open_disk(replaced(stream), "s.vmdk", writable=True)
    with pytest.raises(NotSupported, match="one pass"):
        create_disk(MemoryStore("m"), "x.vmdk", GRAIN, disk_type=DiskType.STREAM_OPTIMIZED)


@pytest.mark.parametrize("padding", [512, 1024, 100_000 // 512 * 512, 3 << 20])
def test_zeroes_behind_the_end_do_not_matter(stream: bytes, padding: int) -> None:
    assert contents(replaced(stream + bytes(padding))) == CONTENT


@pytest.mark.parametrize("junk", [b"junk", b"junk" * 1000])
def test_junk_behind_the_end_leads_to_a_scan(stream: bytes, junk: bytes) -> None:
    store = replaced(stream + junk)
    assert contents(store) == CONTENT
    with open_disk(store, "s.vmdk") as disk:
        assert "no usable footer" in disk.info.notes[0] and "complete" in disk.info.notes[0]


def test_a_stream_that_breaks_off_is_refused_unless_asked_for(stream: bytes) -> None:
    """Every sector boundary in the first grains, and around the tables and the footer."""
    cuts = {*range(140), *range(len(stream) // 512 - 12, len(stream) // 512), len(stream) // 1024}
    for sectors in sorted(cuts):
        store = replaced(stream[: sectors * 512])
        try:
            seen = contents(store)
        except (CorruptDisk, NotADisk) as error:
            assert "s.vmdk" in str(error)
            continue
        assert seen == CONTENT, f"cut at sector {sectors}"
        assert sectors * 512 > len(stream) - 2560
    half = replaced(stream[: len(stream) // 2])
    with open_disk(half, "s.vmdk", recover=True) as disk:
        assert "data may be lost" in disk.info.notes[0]
        seen = bytearray(GRAIN)
        disk.read_into(0, seen)
        assert seen == CONTENT[:GRAIN]


@pytest.mark.parametrize(("field", "form"), [(4, "<I"), (8, "<I"), (12, "<Q"), (20, "<Q"), (28, "<Q")])
def test_a_footer_that_contradicts_the_header(stream: bytes, field: int, form: str) -> None:
    data = bytearray(stream)
    place = len(stream) - 1024 + field
    (value,) = struct.unpack_from(form, data, place)
    struct.pack_into(form, data, place, value * 2 if field != 8 else value & ~1)
    with pytest.raises(FormatError) as caught:
        open_disk(replaced(bytes(data)), "s.vmdk")
    assert "footer" in str(caught.value)
    assert contents(replaced(bytes(data)), recover=True) == CONTENT


def test_a_directory_outside_the_file(stream: bytes) -> None:
    data = bytearray(stream)
    struct.pack_into("<Q", data, len(stream) - 1024 + 56, 1 << 40)
    with pytest.raises(CorruptDisk, match="outside the file"):
        open_disk(replaced(bytes(data)), "s.vmdk")


def change_first_grain(stream: bytes, packed: bytes, *, lba: int = 0, size: int | None = None) -> MemoryStore:
    data = bytearray(stream)
    record = struct.pack("<QI", lba, len(packed) if size is None else size) + packed
    data[128 * 512 : 128 * 512 + len(record)] = record
    return replaced(bytes(data))


def test_damaged_grains(stream: bytes) -> None:
    bomb = zlib.compress(bytes(100 << 20), 9)[:400]
    short = zlib.compress(b"too short")
    for store, text in (
        (change_first_grain(stream, bomb), "damaged"),
        (change_first_grain(stream, short), "only 9 bytes"),
        (change_first_grain(stream, b"\x78\x9cjunk"), "damaged"),
        (change_first_grain(stream, short, lba=128), "marker"),
        (change_first_grain(stream, short, size=0), "marker"),
        (change_first_grain(stream, short, size=0xFFFFFFFF), "marker"),
    ):
        with pytest.raises(CorruptDisk, match=text):
            contents(store)


@pytest.mark.parametrize("which", [codecs.inflate, codecs._inflate_zlib])
def test_inflating_stops_at_the_limit(which: object) -> None:
    assert callable(which)
    plain = bytes(range(256)) * 16
    packed = zlib.compress(plain)
    assert which(packed, 4096) == plain
    assert which(packed, 5000) == plain
    assert which(packed + b"padding", 4096) == plain
    for data, size in (
        (packed, 4095),
        (packed[:-3], 4096),
        (packed[:-5] + b"xxxxx", 4096),
        (b"", 10),
        (plain, 10),
    ):
        with pytest.raises(InflateError):
            which(data, size)
