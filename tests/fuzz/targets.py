"""One function per parser: any bytes in, nothing out but an error of ours.

Each runs under atheris (``scripts/fuzz``) and, with the committed corpus, in every test run. A target raises
AssertionError when a promise is broken: only VixError may come out of the package, what is read must be
bounded, and what was accepted must be consistent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import smallimages
from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.errors import VixError
from vdkit.vmdk import Disk, list_files, open_disk
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.encoding import codec, decode, detect, encode
from vdkit.vmdk.extentline import is_extent_line, parse_extent_line
from vdkit.vmdk.names import Place, extent_place, parent_place

#: Largest input: what is longer is no more interesting.
MAX_INPUT = 1 << 15
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
        "chain": [
            SEPARATOR.join([child, base]),
            SEPARATOR.join([text("custom", flat, 'RW 16 SPARSE "1.vmdk"'), smallimages.sparse()]),
            text("monolithicFlat", 'RW 16 FLAT "0.vmdk" 0'),
        ],
    }
