"""Every layout of a stream, at random and from a pipe; cut streams; plain extents with tables at the end."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from streamlayouts import GRAIN, SECTOR, behind, descriptor, front, header, marker, record
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.workers import CancelToken
from vdkit.errors import (
    Cancelled,
    CorruptDisk,
    FormatError,
    LimitExceeded,
    NotADisk,
    NotSupported,
    StoreError,
    UsageError,
)
from vdkit.vmdk import (
    DiskType,
    StreamReader,
    StreamSummary,
    StreamWriter,
    create_disk,
    open_disk,
    receive_stream,
)

#: Three tables, the last grain short.
SECTORS = 1100 * 128 + 3
CAPACITY = SECTORS * SECTOR
LAST = SECTORS // 128


def sample() -> dict[int, bytes]:
    dice = random.Random(12)
    grains = {n: b"grain %d " % n * 5000 for n in (0, 1, 5, 511, 512, 700, 1025)}
    grains = {n: data[:GRAIN].ljust(GRAIN, b".") for n, data in grains.items()}
    grains[6] = dice.randbytes(GRAIN)
    grains[LAST] = b"the end".ljust(3 * SECTOR, b"!").ljust(GRAIN, b"\0")
    return dict(sorted(grains.items()))


GRAINS = sample()


def plain(grains: dict[int, bytes]) -> bytes:
    made = bytearray(CAPACITY)
    for number, data in grains.items():
        end = min(CAPACITY, (number + 1) * GRAIN)
        made[number * GRAIN : end] = data[: end - number * GRAIN]
    return bytes(made)


CONTENT = plain(GRAINS)
EMPTY = bytes(CAPACITY)


def own(grains: dict[int, bytes]) -> bytes:
    store = MemoryStore("m")
    writer = StreamWriter(store, "s.vmdk", CAPACITY)
    for number, data in grains.items():
        writer.append(writer.encode(number * GRAIN, memoryview(data)[: CAPACITY - number * GRAIN]))
    writer.finish()
    with store.open("s.vmdk") as file:
        made = bytearray(file.capacity)
        file.read_into(0, made)
        return bytes(made)


LAYOUTS: dict[str, Callable[[dict[int, bytes]], bytes]] = {
    "own": own,
    "exported by ESXi": lambda grains: behind(grains, SECTORS),
    "markers without length": lambda grains: behind(grains, SECTORS, values=False),
    "Xen Orchestra": lambda grains: behind(grains, SECTORS, values=False, twice=True),
    "twice with lengths": lambda grains: behind(grains, SECTORS, twice=True),
    "open-vmdk": lambda grains: front(grains, SECTORS, pad=False),
    "Workstation": lambda grains: front(grains, SECTORS),
    "qemu": lambda grains: front(grains, SECTORS, redundant=True, end=bytes(SECTOR * 40)),
    "qemu without an end": lambda grains: front(grains, SECTORS, redundant=True, end=b""),
}


def stored(data: bytes) -> MemoryStore:
    store = MemoryStore("m")
    with store.create("s.vmdk", len(data)) as file:
        if data:
            file.write_from(0, data)
    return store


def at_random(data: bytes, **options: bool) -> tuple[bytes, tuple[str, ...]]:
    with open_disk(stored(data), "s.vmdk", **options) as disk:
        seen = bytearray(disk.capacity)
        disk.read_into(0, seen)
        return bytes(seen), disk.info.notes


def place_of(data: bytes, number: int) -> int:
    """Where the record of a grain is."""
    lba = struct.pack("<Q", number * 128)
    return next(
        at
        for at in range(21 * SECTOR, len(data), SECTOR)
        if data[at : at + 8] == lba and data[at + 12 : at + 13] == b"\x78"
    )


@contextmanager
def pipe(data: bytes) -> Iterator[BinaryIO]:
    """The reading end of a pipe into which another thread writes."""
    reading, writing = os.pipe()

    def write() -> None:
        try:
            with os.fdopen(writing, "wb") as end:
                end.write(data)
        except BrokenPipeError:
            pass  # the reader has had enough

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with os.fdopen(reading, "rb", buffering=0) as source:
            yield source
    finally:
        thread.join()


def piped(data: bytes, *, ordered: bool = False) -> tuple[bytes, StreamSummary]:
    with pipe(data) as source:
        reader = StreamReader(source, ordered=ordered)
        seen = bytearray(reader.capacity)
        for offset, part in reader:
            seen[offset : offset + len(part)] = part
        assert len(seen) == reader.capacity and reader.summary is not None
        return bytes(seen), reader.summary


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_at_random_and_from_a_pipe(layout: str) -> None:
    data = LAYOUTS[layout](GRAINS)
    seen, notes = at_random(data)
    assert seen == CONTENT
    assert ["no end marker" in note for note in notes] == [True] * (layout == "qemu without an end")
    seen, summary = piped(data, ordered=True)
    assert seen == CONTENT
    assert summary.grains == len(GRAINS) and summary.bytes_read == len(data)
    assert summary.end_marker is (layout != "qemu without an end")
    assert summary.trailing == (39 * SECTOR if layout == "qemu" else 0)
    assert len(summary.notes) == layout.startswith("qemu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_disks_in_every_layout(layout: str) -> None:
    data = LAYOUTS[layout]({})
    assert at_random(data)[0] == EMPTY
    assert piped(data)[0] == EMPTY


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stream_cut_anywhere_is_refused_or_whole(layout: str) -> None:
    """Whatever is accepted reads as the whole disk; every whole grain that came was handed out."""
    data = LAYOUTS[layout](GRAINS)
    cuts = [*range(0, len(data), 14999), *range(len(data) - 30 * SECTOR, len(data), 300)]
    last = place_of(data, LAST) + 32
    for cut in cuts:
        with pipe(data[:cut]) as source:
            came: list[int] = []
            try:
                reader = StreamReader(source)
                for offset, part in reader:
                    assert part == CONTENT[offset : offset + len(part)]
                    came.append(offset)
            except FormatError as error:
                assert f"{cut} bytes" in str(error) or cut < 40 * SECTOR, error
            else:
                assert len(came) == len(GRAINS) and cut > last
        with suppress(FormatError):
            assert at_random(data[:cut])[0] == CONTENT and cut > last


def test_what_is_left_of_a_cut_stream_with_its_tables_up_front() -> None:
    data = LAYOUTS["Workstation"](GRAINS)
    cut = data[: place_of(data, 512) + 14]
    with pytest.raises(CorruptDisk, match="breaks off: at least 4 of the grains"):
        open_disk(stored(cut), "s.vmdk")
    seen, notes = at_random(cut, recover=True)
    assert seen == plain({n: data for n, data in GRAINS.items() if n < 512})
    assert "at least 4 grains are lost" in notes[0]
    tables = data[: 24 * SECTOR]
    with pytest.raises(CorruptDisk):
        open_disk(stored(tables), "s.vmdk")
    assert at_random(tables, recover=True)[0] == EMPTY


def test_bytes_behind_the_end_marker_are_told() -> None:
    data = LAYOUTS["own"](GRAINS)
    for tail, text in ((bytes(1000), "1000 zero bytes"), (b"x" * 700, "700 bytes, not all of them zero")):
        seen, summary = piped(data + tail)
        assert seen == CONTENT and summary.trailing == len(tail)
        assert text in summary.notes[0]
    with pytest.raises(LimitExceeded, match="behind the end marker"):
        piped(data + bytes(17 << 20))


def test_grains_in_any_order_unless_order_is_asked_for() -> None:
    mixed = dict(random.Random(3).sample(list(GRAINS.items()), len(GRAINS)))
    for layout in ("exported by ESXi", "Workstation", "Xen Orchestra"):
        data = LAYOUTS[layout](mixed)
        assert piped(data)[0] == at_random(data)[0] == CONTENT
        with pytest.raises(CorruptDisk, match="comes after grain"):
            piped(data, ordered=True)


def inserted(data: bytes, extra: bytes, before: int) -> bytes:
    at = place_of(data, before)
    return data[:at] + extra + data[at:]


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (record(1, b"again" * 13108), "grain 1 .* comes a second time"),
        (record(9, b"short"), "only 5 bytes came out"),
        (struct.pack("<QI", 9 * 128, 40) + b"\x78\x9c" + b"\xff" * 498, "compressed data is damaged"),
        (record(9, bytes(GRAIN + 1)), "compressed data is damaged"),
        (struct.pack("<QI", 9 * 128 + 1, 40) + b"\x78\x9c" + bytes(498), "is no grain"),
        (struct.pack("<QI", SECTORS + 125, 40) + b"\x78\x9c" + bytes(498), "is no grain"),
        (struct.pack("<QI", 9 * 128, 1 << 31) + b"\x78\x9c" + bytes(498), "is no grain"),
        (struct.pack("<QI", 9 * 128, 40) + b"\x7a\x9c" + bytes(498), "is no grain"),
        (marker(9, 0), "no part of a stream"),
        (marker(1, 1 << 40), "no part of a stream"),
        (marker(3, 1) + bytes(SECTOR), "footer contradicts"),
        (bytes(SECTOR), "breaks off or lacks a part"),
    ],
)
def test_what_a_stream_must_not_hold(extra: bytes, text: str) -> None:
    data = inserted(LAYOUTS["exported by ESXi"](GRAINS), extra, 5)
    with pytest.raises(CorruptDisk, match=text):
        piped(data)


@pytest.mark.parametrize("layout", ["own", "exported by ESXi", "Workstation", "qemu"])
def test_a_grain_that_is_missing_in_the_middle_is_noticed(layout: str) -> None:
    data = LAYOUTS[layout](GRAINS)
    gone, following = place_of(data, 6), place_of(data, 511)
    with pytest.raises(CorruptDisk, match="lacks a part"):
        piped(data[:gone] + data[following:])


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (b"", NotADisk, "starts with b''"),
        (b"\x1f\x8b" + bytes(600), NotADisk, "gzip"),
        (b"# Disk DescriptorFile\nversion=1\n", NotADisk, "not a streamOptimized"),
        (b"KDMV", FormatError, "cut short"),
        (front(GRAINS, SECTORS)[: 10 * SECTOR], CorruptDisk, "in front of its grains"),
        (front(GRAINS, SECTORS)[: 22 * SECTOR], CorruptDisk, "in front of its grains"),
    ],
)
def test_what_is_no_stream(data: bytes, error: type[FormatError], text: str) -> None:
    with pytest.raises(error, match=text):
        piped(data)


def test_other_sparse_disks_and_deltas() -> None:
    store = MemoryStore("m")
    create_disk(store, "d.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    with store.open("d.vmdk") as file:
        data = bytearray(file.capacity)
        file.read_into(0, data)
    with pytest.raises(NotSupported, match="only streamOptimized"):
        piped(bytes(data))
    stream = front(GRAINS, SECTORS)
    delta = stream[:SECTOR] + descriptor(SECTORS, 20, parent="12345678") + stream[21 * SECTOR :]
    with pipe(delta) as source, pytest.raises(NotSupported, match="delta"):
        receive_stream(source, lambda reader: MemoryDevice(reader.capacity))
    with pipe(delta) as source:
        reader = StreamReader(source)
        assert reader.has_parent and sum(1 for _ in reader) == len(GRAINS)
        with pytest.raises(NotSupported, match="only once"):
            next(iter(reader))


def test_tables_that_overlap_in_front() -> None:
    data = bytearray(front(GRAINS, SECTORS))
    struct.pack_into("<I", data, 21 * SECTOR, 5)
    with pytest.raises(CorruptDisk, match="has come already"):
        piped(bytes(data))
    struct.pack_into("<I", data, 21 * SECTOR, 0xFFFFFFFF)
    with pytest.raises(CorruptDisk, match="too far away"):
        piped(bytes(data))


@pytest.mark.parametrize("entry", [0, 1, 4711])
def test_tables_behind_the_grains_that_do_not_name_them(entry: int) -> None:
    """Whoever reads at random goes by the tables: from a pipe the disk must not look otherwise."""
    data = bytearray(behind(GRAINS, SECTORS))
    named = struct.pack("<I", place_of(bytes(data), 700) // SECTOR)
    at = data.rindex(named)
    struct.pack_into("<I", data, at, entry)
    with pytest.raises(CorruptDisk, match="lacks a part"):
        piped(bytes(data))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_receiving(tmp_path: Path, layout: str, workers: int) -> None:
    store = FolderStore(tmp_path)
    told: list[tuple[int, int]] = []
    with pipe(LAYOUTS[layout](GRAINS)) as source:
        summary = receive_stream(
            source,
            lambda reader: store.create("d.raw", reader.capacity),
            workers=workers,
            progress=lambda done, total: told.append((done, total)),
        )
    assert summary.grains == len(GRAINS)
    assert (tmp_path / "d.raw").read_bytes() == CONTENT
    assert told[-1] == (CAPACITY, CAPACITY)


def test_receiving_into_another_disk() -> None:
    store = MemoryStore("m")

    def target(reader: StreamReader) -> MemoryDevice:
        return create_disk(store, "d.vmdk", reader.capacity, disk_type=DiskType.MONOLITHIC_SPARSE)  # type: ignore[return-value]

    with pipe(LAYOUTS["own"](GRAINS)) as source:
        receive_stream(source, target)
    with open_disk(store, "d.vmdk") as disk:
        seen = bytearray(CAPACITY)
        disk.read_into(0, seen)
    assert seen == CONTENT


@pytest.mark.usefixtures("no_leaks")
def test_receiving_what_breaks_off_keeps_what_came(tmp_path: Path) -> None:
    data = LAYOUTS["own"](GRAINS)
    store = FolderStore(tmp_path)
    cut = place_of(data, LAST) + 40
    with pipe(data[:cut]) as source, pytest.raises(CorruptDisk, match="breaks off"):
        receive_stream(source, lambda reader: store.create("d.raw", reader.capacity))
    assert (tmp_path / "d.raw").read_bytes() == plain({n: d for n, d in GRAINS.items() if n != LAST})


class Failing(MemoryDevice):
    def _write_from(self, offset: int, view: memoryview) -> None:
        raise StoreError("no room")


@pytest.mark.usefixtures("no_leaks")
def test_receiving_ends_when_writing_fails_or_somebody_cancels() -> None:
    many = behind(dict.fromkeys(range(800), GRAINS[0]), SECTORS)
    with pipe(many) as source, pytest.raises(StoreError, match="no room"):
        receive_stream(source, lambda reader: Failing(reader.capacity))
    with pipe(many) as source, pytest.raises(UsageError, match="too few"):
        receive_stream(source, lambda reader: MemoryDevice(512))
    token = CancelToken()
    with pipe(many) as source, pytest.raises(Cancelled):
        receive_stream(
            source,
            lambda reader: MemoryDevice(reader.capacity),
            cancel=token,
            progress=lambda done, total: token.cancel(),
        )


class Source:
    def __init__(self, *answers: bytes | OSError | None) -> None:
        self._answers = list(answers)

    def read(self, size: int) -> bytes | None:
        answer = self._answers.pop(0) if self._answers else b""
        if isinstance(answer, OSError):
            raise answer
        return answer


def test_sources_that_fail_or_do_not_wait() -> None:
    data = LAYOUTS["own"](GRAINS)
    with pytest.raises(StoreError, match="reading at byte"):
        list(StreamReader(Source(data[:70000], ConnectionResetError(104, "reset"))))
    with pytest.raises(UsageError, match="does not wait"):
        list(StreamReader(Source(data[:70000], None)))
    dribble = [data[i : i + 777] for i in range(0, len(data), 777)]
    assert sum(1 for _ in StreamReader(Source(*dribble))) == len(GRAINS)


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("tail", [b"text" * (GRAIN // 4), None])
def test_streams_of_qemu_through_cat(tmp_path: Path, tail: bytes | None) -> None:
    raw = CONTENT[: 1024 * GRAIN] + (random.Random(5).randbytes(GRAIN) if tail is None else tail)
    (tmp_path / "d.raw").write_bytes(raw)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized",
         tmp_path / "d.raw", tmp_path / "s.vmdk"],
        check=True, timeout=60,
    )  # fmt: skip
    store = FolderStore(tmp_path)
    with subprocess.Popen(["cat", tmp_path / "s.vmdk"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        summary = receive_stream(cat.stdout, lambda reader: store.create("o.raw", reader.capacity))
    assert (tmp_path / "o.raw").read_bytes() == raw
    assert len(summary.notes) == 1, "qemu never ends with exactly one end marker here"
    with open_disk(store, "s.vmdk") as disk:
        assert bool(disk.info.notes) is (tail is None)
    whole = (tmp_path / "s.vmdk").read_bytes().rstrip(b"\0")
    (tmp_path / "s.vmdk").write_bytes(whole[:-3000])
    with pytest.raises(CorruptDisk, match="breaks off"):
        open_disk(store, "s.vmdk")


def test_a_plain_extent_with_its_tables_at_its_end() -> None:
    grains = {0: b"a" * GRAIN, 3: b"d" * GRAIN}
    sectors = 5 * 128

    def head(gd: int) -> bytes:
        made = bytearray(header(sectors, flags=1, rgd=0, gd=gd, overhead=128, room=20, version=1))
        struct.pack_into("<H", made, 77, 0)
        return bytes(made)

    text = descriptor(sectors, 20).replace(b"streamOptimized", b"monolithicSparse")[: 20 * SECTOR]
    data = (head((1 << 64) - 1) + text).ljust(128 * SECTOR, b"\0")
    table = [0] * 512
    for number, grain in grains.items():
        table[number] = len(data) // SECTOR
        data += grain
    data += struct.pack("<512I", *table)
    data += struct.pack("<I", len(data) // SECTOR - 4).ljust(SECTOR, b"\0")
    whole = data + marker(3, 1) + head(len(data) // SECTOR - 1) + bytes(SECTOR)
    seen, _ = at_random(whole)
    assert seen == b"a" * GRAIN + bytes(2 * GRAIN) + b"d" * GRAIN + bytes(GRAIN)
    with pytest.raises(NotSupported, match="tables at its end"):
        open_disk(stored(whole), "s.vmdk", writable=True)
    with pytest.raises(CorruptDisk, match="no footer"):
        open_disk(stored(data), "s.vmdk")


@pytest.mark.parametrize("grain", [1, 2, 8, 16, 256, 1 << 21])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_grains_of_any_size_and_versions_of_the_header(grain: int, version: int) -> None:
    """Two tables; of version 2, with an entry that says zeroes."""
    sectors = 600 * grain - (grain > 1)
    zeroed = version == 2
    data = bytearray(
        header(sectors, flags=0x5 if zeroed else 0x1, rgd=0, gd=21, overhead=32, room=20, version=version)
    )
    struct.pack_into("<Q", data, 20, grain)
    struct.pack_into("<H", data, 77, 0)
    data += descriptor(sectors, 20).replace(b"streamOptimized", b"monolithicSparse")[: 20 * SECTOR]
    data += struct.pack("<II", 22, 26).ljust(SECTOR, b"\0")
    first = -(-32 // grain) * grain
    tables = [0] * 1024
    places = {0: first, 7: first + 2 * grain, 599: first + grain}
    for number, sector in places.items():
        tables[number] = sector
    tables[5] = 1 if zeroed else 0
    data += struct.pack("<1024I", *tables)
    store = MemoryStore("m")
    with store.create("d.vmdk", (first + 3 * grain) * SECTOR) as file:
        file.write_from(0, bytes(data))
        for number, sector in places.items():
            file.write_from(sector * SECTOR, b"%03d" % number)
    with open_disk(store, "d.vmdk") as disk:
        assert disk.capacity == sectors * SECTOR
        size = grain * SECTOR
        for number in range(600):
            seen = bytearray(3)
            disk.read_into(number * size, seen)
            assert bytes(seen) == (b"%03d" % number if number in places else bytes(3)), number
        covered = [e for e in disk.extents() if e.kind is ExtentKind.DATA]
        assert [(e.offset // size, -(-e.length // size)) for e in covered] == [(0, 1), (7, 1), (599, 1)]
