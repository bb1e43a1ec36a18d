"""One function per parser: any bytes in, nothing out but an error of ours.

Each runs under atheris (``scripts/fuzz``) and, with the committed corpus, in every test run. A target raises
AssertionError when a promise is broken: only VixError may come out of the package, what is read must be
bounded, and what was accepted must be consistent.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np  # noqa: F401  now, so that its memory is not taken for an input's

import smallimages
import vmfsfixtures
from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.errors import VixError
from vdkit.vmdk import Disk, StreamReader, list_files, open_disk
from vdkit.vmdk.check import check_disk, repair_disk
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.encoding import codec, decode, detect, encode
from vdkit.vmdk.extentline import is_extent_line, parse_extent_line
from vdkit.vmdk.names import Place, extent_place, parent_place
from vdkit.vmfs import FileType, check_file, open_volume
from vdkit.wire.nfc import codecs

#: Largest input: what is longer is no more interesting.
MAX_INPUT = 48 << 10
#: Reads that looking at a file of at most MAX_INPUT may cost. Many entries may name one table, so that a walk
#: meets it many times: it is cut after MAX_RUNS runs of the map.
MAX_READS = 100_000
MAX_RUNS = 2048
#: Bytes of one disk that are read.
MAX_READ = 1 << 18


class CountingStore(MemoryStore):
    """Counts what is read; a hang shows as too many reads, on a machine of any speed."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__("fuzz")
        self.reads = 0
        for name, data in files.items():
            with self.create(name, len(data)) as file:
                if data:
                    file.write_from(0, data)

    def _open(self, name: str, *, writable: bool) -> MemoryDevice:
        device = super()._open(name, writable=writable)
        plain = device._read_into

        def counted(offset: int, view: memoryview) -> None:
            self.reads += 1
            assert self.reads < MAX_READS, f"{self.reads} reads"
            plain(offset, view)

        device._read_into = counted  # type: ignore[method-assign]
        return device


def look(disk: BlockDevice) -> None:
    """The map, and what it says is there; a little of it where the disk says it is huge."""
    position, told = 0, []
    for count, extent in enumerate(disk.extents()):
        assert extent.offset == position and extent.length > 0, "the map has a gap"
        position = extent.end
        if count < 16:
            told.append(extent)
        if count == MAX_RUNS:
            break
    else:
        assert position == disk.capacity, "the map ends early"
    for extent in told:
        if extent.kind is not ExtentKind.ABSENT:
            seen = bytearray(min(extent.length, MAX_READ // 16))
            disk.read_into(extent.offset, seen)
            if extent.kind is ExtentKind.ZERO:
                assert not any(seen), "what the map calls zero is not"
    disk.read_into(max(0, disk.capacity - 512), bytearray(min(disk.capacity, 512)))


def opened(store: MemoryStore, name: str, *, write: bool = False, recover: bool = False) -> None:
    """Everything a user may do with a disk."""
    with open_disk(store, name, writable=write, recover=recover) as disk:
        assert disk.info.links
        look(disk)
        if write:
            rewrite(disk)


def rewrite(disk: Disk) -> None:
    """What was written is there, also after the disk was closed and opened again."""
    end = disk.capacity
    middle = end // 2 // 512 * 512
    disk.write_from(middle, b"x" * 512)
    disk.write_zeroes(max(0, end - 1024), min(end, 512))
    disk.flush()
    seen = bytearray(512)
    disk.read_into(middle, seen)
    if not max(0, end - 1024) <= middle < max(0, end - 1024) + min(end, 512):
        assert seen == b"x" * 512, "a write was lost"


def descriptor(data: bytes) -> None:
    try:
        made = Descriptor.parse(data, "fuzz")
        extents, pairs = made.extents, list(made.items())
        assert made.sectors == sum(extent.sectors for extent in extents) and len(pairs) >= 1
        _ = made.cid, made.parent_cid, made.create_type, made.version, made.parent_hint
        assert Descriptor.parse(made.to_bytes(), "fuzz").extents == extents
        made.set("ddb.comment", "added")
        made.set_cid(7)
        again = Descriptor.parse(made.to_bytes(), "fuzz")
        assert (again.cid, again.get("ddb.comment"), again.extents) == (7, "added", extents)
    except VixError:
        return


def extent_line(data: bytes) -> None:
    line = data.decode("utf-8", "replace")
    try:
        found = parse_extent_line(line, "fuzz")
    except VixError:
        return
    assert is_extent_line(line)
    try:
        spelled = str(found)
    except VixError:
        return
    assert parse_extent_line(spelled, "fuzz") == found, "an extent line changes when it is written again"


def names(data: bytes) -> None:
    """No text leads to a place outside the store's folder."""
    label, _, raw = data.partition(b"\0")
    try:
        charset = codec(label.decode("latin-1"), "fuzz")
    except VixError:
        charset = "utf-8"
    name = raw.decode(charset, "replace")
    try:
        decoded = decode(raw, detect(raw.splitlines()), "fuzz")
        assert encode(decoded, detect(raw.splitlines()), "fuzz") is not None
    except VixError:
        pass
    store = MemoryStore("m")
    store.make_folder("a/b")
    place = Place(store, "a/b/d.vmdk")
    for find in (extent_place, parent_place):
        try:
            found = find(place, name, ())
        except VixError:
            continue
        assert found.store is store
        assert found.name.startswith("a/b/") and ".." not in found.name.split("/"), found.name


def _run(act: Callable[[], object]) -> None:
    try:
        act()
    except VixError as error:
        assert str(error) and "\n" not in str(error) and "\r" not in str(error)


def sparse(data: bytes) -> None:
    """The file as a disk of its own, and as one piece of a split disk."""
    _run(lambda: opened(CountingStore({"d.vmdk": data}), "d.vmdk"))
    split = smallimages.text("twoGbMaxExtentSparse", 'RW 16 SPARSE "s.vmdk"', "RW 3 ZERO")
    _run(lambda: opened(CountingStore({"d.vmdk": split, "s.vmdk": data}), "d.vmdk"))


def sparse_write(data: bytes) -> None:
    store = CountingStore({"d.vmdk": data})
    _run(lambda: opened(store, "d.vmdk", write=True))
    # Writing may have been refused or have failed; the disk must still be one that is looked at in peace.
    _run(lambda: opened(store, "d.vmdk"))


def stream(data: bytes) -> None:
    _run(lambda: opened(CountingStore({"d.vmdk": data}), "d.vmdk"))


def recover(data: bytes) -> None:
    """The stream without its end."""
    cut = data[: len(data) // 2 * 2 - len(data) % 7 * 512] if data else data
    for piece in (data, cut):
        _run(lambda piece=piece: opened(CountingStore({"d.vmdk": piece}), "d.vmdk", recover=True))


def cowd(data: bytes) -> None:
    files = {
        "d.vmdk": smallimages.sparse(),
        "c.vmdk": smallimages.text(
            "vmfsSparse", 'RW 16 VMFSSPARSE "c-delta.vmdk"', parent="0000abcd", hint="d.vmdk"
        ),
        "c-delta.vmdk": data,
    }
    _run(lambda: opened(CountingStore(files), "c.vmdk"))
    store = CountingStore(files)
    _run(lambda: opened(store, "c.vmdk", write=True))
    _run(lambda: opened(store, "c.vmdk"))


def sesparse(data: bytes) -> None:
    files = {
        "d.vmdk": smallimages.sparse(),
        "c.vmdk": smallimages.text(
            "seSparse", 'RW 16 SESPARSE "c-sesparse.vmdk"', parent="0000abcd", hint="d.vmdk"
        ),
        "c-sesparse.vmdk": data,
    }
    _run(lambda: opened(CountingStore(files), "c.vmdk"))
    _run(lambda: opened(CountingStore(files), "c.vmdk", write=True))

    def despite_the_journal() -> None:
        with open_disk(CountingStore(files), "c.vmdk", ignore_journal=True) as disk:
            look(disk)

    _run(despite_the_journal)


def pipe(data: bytes) -> None:
    """In one pass, a few bytes at a time; what the tables name is the same in random access."""
    seen: dict[int, bytes] = {}

    def read() -> None:
        for offset, grain in StreamReader(Trickle(data), name="pipe"):
            assert len(grain) > 0 and offset not in seen
            seen[offset] = bytes(grain)

    try:
        read()
    except VixError as error:
        assert str(error) and "\n" not in str(error)
        return
    try:
        with open_disk(CountingStore({"d.vmdk": data}), "d.vmdk") as disk:
            for offset, grain in seen.items():
                if next(disk.extents(offset, len(grain))).kind is not ExtentKind.DATA:
                    continue
                there = bytearray(len(grain))
                disk.read_into(offset, there)
                assert there == grain, "one pass and random access disagree"
    except VixError:
        return


class Trickle(io.RawIOBase):
    """A pipe that gives as little as it likes."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._count += 1
        step = min(len(view), len(self._data), (1, 7, 500, 1 << 20)[self._count % 4])
        view[:step] = self._data[:step]
        self._data = self._data[step:]
        return step


def check(data: bytes) -> None:
    """As a disk of its own, as the extent of a delta, and as a set of descriptors."""
    for files, name in (
        ({"d.vmdk": data}, "d.vmdk"),
        (
            {
                "d.vmdk": smallimages.sparse(),
                "c.vmdk": smallimages.text(
                    "custom", 'RW 16 VMFSSPARSE "x"', parent="0000abcd", hint="d.vmdk"
                ),
                "x": data,
            },
            "c.vmdk",
        ),
        (chain_files(data), "0.vmdk"),
    ):
        store = CountingStore(files)
        _run(lambda store=store, name=name: check_disk(store, name, deep=True))
        assert contents(store) == files, "a check changed something"


def repair(data: bytes) -> None:
    """A repair to a new name leaves the disk alone, and what it makes is sound."""
    store = CountingStore({"d.vmdk": data})
    rebuild = len(data) % 2 == 1

    def mend() -> None:
        report = repair_disk(store, "d.vmdk", target="n.vmdk", accept_loss=True, rebuild_header=rebuild)
        if not store.exists("n.vmdk"):
            return
        assert report.after.errors <= report.before.errors, "a repair made errors"
        if report.after.errors:
            return
        with open_disk(store, "n.vmdk") as disk:
            look(disk)

    _run(mend)
    left = contents(store)
    assert left.pop("d.vmdk") == data, "a repair to a new name changed the old disk"
    assert left.keys() <= {"n.vmdk"}, "a repair left something behind"


def contents(store: MemoryStore) -> dict[str, bytes]:
    found = {}
    for name in store.list():
        with MemoryStore._open(store, name, writable=False) as file:
            data = bytearray(file.capacity)
            if data:
                MemoryDevice.read_into(file, 0, data)
            found[name] = bytes(data)
    return found


#: Between the files of a chain in one input.
SEPARATOR = b"\n--\n"


def chain_files(data: bytes) -> dict[str, bytes]:
    """Up to four files ``0.vmdk`` to ``3.vmdk``."""
    parts = data.split(SEPARATOR, 3)
    return {f"{number}.vmdk": part for number, part in enumerate(parts)} | {"flat.vmdk": bytes(8192)}


def chain(data: bytes) -> None:
    """Descriptors that name each other: parents, extents, loops."""
    files = chain_files(data)
    _run(lambda: opened(CountingStore(files), "0.vmdk"))
    _run(lambda: opened(CountingStore(files), "0.vmdk", write=True))
    _run(lambda: list_files(CountingStore(files), "0.vmdk"))


Target = Callable[[bytes], None]


def compressed(data: bytes) -> None:
    """A chunk of NFC: a byte for the codec, two for the size that was announced, then what came."""
    code, size = data[0] % 4 if data else 0, int.from_bytes(data[1:3], "little") + 1
    plain = bytearray(size)
    try:
        codecs.decode_into(code, memoryview(data)[3:], memoryview(plain))
    except VixError:
        return
    used, packed = codecs.encode(code, memoryview(plain))
    again = bytearray(size)
    codecs.decode_into(used, packed, memoryview(again))
    assert again == plain, "what was written is read otherwise"


def vmfs(data: bytes) -> None:
    """A byte for the version, then patches on a volume of ours: see :func:`vmfsfixtures.patched`."""
    device = vmfsfixtures.patched(data)
    reads = 0
    plain = device._read_into

    def counted(offset: int, view: memoryview) -> None:
        nonlocal reads
        reads += 1
        assert reads < MAX_READS, f"{reads} reads"
        plain(offset, view)

    device._read_into = counted  # type: ignore[method-assign]
    try:
        volume = open_volume([device])
    except VixError:
        return
    with volume:
        _run(lambda: volume.resolve("link", follow=True))
        walked: list[Any] = []
        _run(lambda: walked.extend(itertools.islice(volume.walk(), 64)))
        for path, found in walked:
            if found.type is not FileType.DIRECTORY and found.length <= 1 << 33:
                _run(lambda p=path, d=found: check_file(volume, d, p))  # type: ignore[misc]
            _run(lambda p=path, d=found: look(volume.file(d, p)))  # type: ignore[misc]


TARGETS: dict[str, Target] = {
    "descriptor": descriptor,
    "extent_line": extent_line,
    "names": names,
    "sparse": sparse,
    "sparse_write": sparse_write,
    "stream": stream,
    "recover": recover,
    "cowd": cowd,
    "chain": chain,
    "sesparse": sesparse,
    "pipe": pipe,
    "check": check,
    "repair": repair,
    "compressed": compressed,
    "vmfs": vmfs,
}


def seeds() -> dict[str, Sequence[bytes]]:
    """What a fuzzer starts from when there is no corpus yet."""
    text = smallimages.text
    sparse_images = [
        smallimages.sparse(),
        smallimages.sparse(zero_grains=True),
        smallimages.sparse(parent="0000abcd", hint="p.vmdk"),
    ]
    streams = [
        smallimages.stream(),
        smallimages.stream(at_end=False),
        smallimages.stream(closed=False),
        smallimages.stream()[:-1536] + bytes(2048),
    ]
    flat = 'RW 16 FLAT "flat.vmdk" 0'
    base = text("monolithicFlat", flat, cid="00000001")
    child = smallimages.sparse(parent="00000001", hint="1.vmdk")
    return {
        "descriptor": [
            text(),
            text("custom", flat, "RDONLY 9 ZERO", 'RW 7 SPARSE "x y.vmdk"'),
            b'#x\r\nversion = 3\r\nencoding="GBK"\r\nCID=1\r\nddb.a = "b"\r\nchangeTrackPath="c"\r\n',
            b"\xef\xbb\xbfversion=1\rCID=fffffffe\rparentCID=4294967295\r"
            b'ddb.longContentID = "0123456789abcdef"\r',
        ],
        "extent_line": [
            b'RW 4192256 SPARSE "disk-s001.vmdk"',
            b'RDONLY 63 FLAT "\\\\.\\PhysicalDrive0" 126 partitionUUID x y',
            b"NOACCESS 9 ZERO",
        ],
        "names": [b"UTF-8\0disk-flat.vmdk", b"GBK\0..\\x", b"\0/etc/passwd", b"\0a/../../b", b"\0json:{}"],
        "sparse": sparse_images,
        "sparse_write": sparse_images,
        "stream": streams,
        "recover": streams,
        "cowd": [smallimages.cowd(), smallimages.cowd({1: 1, 2: 37})],
        "sesparse": [
            smallimages.sesparse(),
            smallimages.sesparse({0: 2 << 60, 1: 1 << 60}),
            smallimages.sesparse(replay=1),
        ],
        "pipe": streams,
        "check": [*sparse_images[:2], *streams, smallimages.cowd(), smallimages.sesparse(), text()],
        "repair": [*sparse_images[:2], *streams],
        "compressed": [
            bytes([code]) + (len(plain) - 1).to_bytes(2, "little") + codecs.encode(code, memoryview(plain))[1]
            for code in range(4)
            for plain in (bytes(600), b"fast and simple " * 40 + bytes(range(256)) + bytes(9000))
        ],
        "vmfs": vmfsfixtures.patch_seeds(),
        "chain": [
            SEPARATOR.join([child, base]),
            SEPARATOR.join([text("custom", flat, 'RW 16 SPARSE "1.vmdk"'), smallimages.sparse()]),
            text("monolithicFlat", 'RW 16 FLAT "0.vmdk" 0'),
        ],
    }
