"""Check and repair of streams, deltas, flat disks, descriptors and chains."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import pytest

from checktools import (
    CONTENT,
    GRAIN,
    HELD,
    SECTOR,
    SIZE,
    contents,
    files,
    get,
    good_sparse,
    good_stream,
    good_stream_tables_first,
    put,
)
from vdkit.block.memory import MemoryStore
from vdkit.errors import CorruptDisk, NotADisk, NotFound, NotSupported
from vdkit.testing.sesparse import Hollow, write_sesparse
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.check import CheckReport, Severity, Verdict, check_disk, repair_disk, undo_repair
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.header import GD_AT_END, SparseHeader
from vdkit.vmdk.sesparse import SeSparseHeader
from vdkit.vmdk.template import Parent


def without(*numbers: int) -> bytes:
    made = bytearray(CONTENT)
    for number in numbers:
        end = min(SIZE, (number + 1) * GRAIN)
        made[number * GRAIN : end] = bytes(end - number * GRAIN)
    return bytes(made)


def grain_at(data: bytes, number: int) -> int:
    """Offset of a grain's marker."""
    position = 128 * SECTOR
    while True:
        lba, size = struct.unpack_from("<QI", data, position)
        if size and lba == number * 128:
            return position
        if size:
            position += -(-(size + 12) // SECTOR) * SECTOR
        else:
            position += SECTOR * (1 + lba)


Damage = Callable[[bytearray], bytes | bytearray]


def _clobber(number: int, inside: int = 3000) -> Damage:
    def damage(data: bytearray) -> bytearray:
        at = grain_at(bytes(data), number) + inside
        data[at : at + 64] = bytes(64)
        return data

    return damage


def _spoil_footer(data: bytearray) -> bytearray:
    data[-SECTOR - 100 - 400] ^= 0xFF
    data[-2 * SECTOR + 12] ^= 1  # the capacity in the footer
    return data


def _wrong_entry(data: bytearray) -> bytearray:
    """In the table of the last group: grain 1100 at grain 1099's place."""
    table = data.rindex(struct.pack("<QII", 4, 0, 1)) + SECTOR
    (right,) = struct.unpack_from("<I", data, table + 4 * (1099 - 1024))
    struct.pack_into("<I", data, table + 4 * (1100 - 1024), right)
    return data


STREAMS: list[tuple[str, str, Damage, tuple[int, ...]]] = [
    ("end missing", "stream-end", lambda d: d[:-SECTOR], ()),
    ("zero tail", "stream-end", lambda d: d + bytes(5 * SECTOR), ()),
    ("junk tail", "footer", lambda d: d + b"junk" * 300, ()),
    ("footer cut off", "footer", lambda d: d[: -3 * SECTOR], ()),
    ("footer contradicts", "footer", _spoil_footer, ()),
    ("grain data", "grain-damaged", _clobber(512), (512,)),
    ("wrong entry", "grain-entry", _wrong_entry, ()),
    ("header gone", "header-magic", lambda d: bytearray(bytes(SECTOR) + d[SECTOR:]), ()),
]


@pytest.mark.parametrize(("name", "kind", "damage", "lost"), STREAMS, ids=[case[0] for case in STREAMS])
def test_streams(name: str, kind: str, damage: Damage, lost: tuple[int, ...]) -> None:
    store = MemoryStore()
    good_stream(store)
    assert check_disk(store, "disk.vmdk", deep=True).findings == ()
    put(store, "disk.vmdk", bytes(damage(bytearray(get(store, "disk.vmdk")))))
    bad = files(store)
    report = check_disk(store, "disk.vmdk", deep=True)
    assert report.counts.get(kind), report.counts
    assert report.verdict is Verdict.CORRUPT
    done = repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert contents(store, "new.vmdk") == without(*lost)
    assert {start // GRAIN for start, _ in done.lost} == set(lost)
    assert check_disk(store, "new.vmdk", deep=True).errors == 0
    data = get(store, "new.vmdk")
    assert data[-SECTOR:] == bytes(SECTOR)
    assert any(data[-2 * SECTOR : -SECTOR])
    store.remove("new.vmdk")
    repair_disk(store, "disk.vmdk", in_place=True)
    assert contents(store, "disk.vmdk") == without(*lost)
    undo_repair(store, "disk.vmdk.undo")
    assert files(store) == bad


def test_a_stream_that_breaks_off_needs_consent() -> None:
    store = MemoryStore()
    good_stream(store)
    data = get(store, "disk.vmdk")
    cut = grain_at(data, 1024) + 1000
    put(store, "disk.vmdk", data[:cut])
    with pytest.raises(CorruptDisk, match="accept_loss"):
        repair_disk(store, "disk.vmdk", target="new.vmdk")
    done = repair_disk(store, "disk.vmdk", target="new.vmdk", accept_loss=True)
    assert contents(store, "new.vmdk") == without(1024, 1099, 1100)
    assert done.lost == ((701 * GRAIN, SIZE - 701 * GRAIN),)


def test_streams_with_tables_first() -> None:
    store = MemoryStore()
    good_stream_tables_first(store)
    assert contents(store, "disk.vmdk") == CONTENT
    assert check_disk(store, "disk.vmdk", deep=True).findings == ()
    good = get(store, "disk.vmdk")
    put(store, "disk.vmdk", good + bytes(7 * SECTOR))
    report = check_disk(store, "disk.vmdk")
    assert [(f.kind, f.severity) for f in report.findings] == [("stream-end", Severity.NOTE)]
    assert not repair_disk(store, "disk.vmdk", in_place=True).is_changed
    assert repair_disk(store, "disk.vmdk", target="tidy.vmdk", tidy=True).is_changed
    assert len(get(store, "tidy.vmdk")) == len(good)
    bad = bytearray(good)
    struct.pack_into("<I", bad, 22 * SECTOR + 4 * 2, 7)  # grain 2
    struct.pack_into("<I", bad, 22 * SECTOR + 4 * 9, 1 << 30)  # a grain that is not there
    put(store, "disk.vmdk", bytes(bad))
    assert check_disk(store, "disk.vmdk").counts["grain-entry"] == 2
    done = repair_disk(store, "disk.vmdk", target="new.vmdk")
    assert done.lost == ((9 * GRAIN, GRAIN),)
    assert contents(store, "new.vmdk") == CONTENT
    bad = bytearray(good)
    bad[21 * SECTOR : 22 * SECTOR] = struct.pack("<I", 1 << 30) * 128
    put(store, "disk.vmdk", bytes(bad))
    assert check_disk(store, "disk.vmdk").counts["directory-entry"]
    repair_disk(store, "disk.vmdk", target="again.vmdk")
    assert contents(store, "again.vmdk") == CONTENT
    header = SparseHeader.parse(get(store, "again.vmdk")[:SECTOR], "again")
    assert header.directory == GD_AT_END


# -- deltas ----------------------------------------------------------------------------------------


@pytest.fixture
def delta() -> MemoryStore:
    store = MemoryStore()
    good_sparse(store, "base.vmdk")
    create_child(store, "base.vmdk", "disk.vmdk")
    with open_disk(store, "disk.vmdk", writable=True) as disk:
        for number in (3, 511, 900):
            disk.write_from(number * GRAIN, bytes([number % 251]) * GRAIN)
    return store


def changed() -> bytes:
    made = bytearray(CONTENT)
    for number in (3, 511, 900):
        made[number * GRAIN : (number + 1) * GRAIN] = bytes([number % 251]) * GRAIN
    return bytes(made)


@pytest.mark.parametrize(
    ("offset", "value", "kind"),
    [
        (28, 100, "free-sector"),
        (28, 1 << 30, "free-sector"),
        (0, 0, "header-magic"),
        (8, 0xF0, "header-flags"),
        (12, 16, "header-capacity"),
        (16, 3, "header-grain"),
        (24, 1, "header-tables"),
        (1648, 1, "unclean"),
    ],
)
def test_delta_headers(delta: MemoryStore, offset: int, value: int, kind: str) -> None:
    assert check_disk(delta, "disk.vmdk").findings == ()
    with delta.open_writable("disk-delta.vmdk") as file:
        file.write_from(offset, struct.pack("<I", value))
    bad = files(delta)
    report = check_disk(delta, "disk.vmdk")
    assert report.counts.get(kind) == 1, report.counts
    if report.verdict is Verdict.LEAKS:
        return
    repair_disk(delta, "disk.vmdk", target="new.vmdk")
    assert contents(delta, "new.vmdk") == changed()
    assert check_disk(delta, "new.vmdk").findings == ()
    delta.remove("new.vmdk")
    delta.remove("new-delta.vmdk")
    repair_disk(delta, "disk.vmdk", in_place=True)
    assert contents(delta, "disk.vmdk") == changed()
    undo_repair(delta, "disk.vmdk.undo")
    assert files(delta) == bad


def test_delta_tables(delta: MemoryStore) -> None:
    with delta.open_writable("disk-delta.vmdk") as file:
        data = bytearray(file.capacity)
        file.read_into(0, data)
        tables = [(i, s) for i, s in enumerate(struct.unpack_from("<128I", data, 2048)) if s]
        first, second = tables[0][1] * SECTOR, tables[1][1] * SECTOR
        one = next(i for i in range(4096) if struct.unpack_from("<I", data, first + 4 * i)[0])
        entry = struct.unpack_from("<I", data, first + 4 * one)[0]
        file.write_from(first + 4 * (one + 1), struct.pack("<I", entry))  # shared
        file.write_from(first + 4 * (one + 2), struct.pack("<I", 1 << 31))  # outside
        file.write_from(second + 4 * 4095, struct.pack("<I", tables[0][1] + 3))  # in a table
    report = check_disk(delta, "disk.vmdk")
    assert report.counts["grain-shared"] == 1
    assert report.counts["grain-outside-file"] == 1
    assert report.counts["grain-in-metadata"] == 1
    done = repair_disk(delta, "disk.vmdk", target="new.vmdk")
    assert done.after.errors == 0
    start = tables[0][0] * 4096 + one
    model = bytearray(changed())
    model[(start + 1) * SECTOR : (start + 2) * SECTOR] = model[start * SECTOR : (start + 1) * SECTOR]
    spot = (start + 2) * SECTOR
    model[spot : spot + SECTOR] = CONTENT[spot : spot + SECTOR]
    last = (tables[1][0] * 4096 + 4095) * SECTOR
    model[last : last + SECTOR] = CONTENT[last : last + SECTOR]
    assert contents(delta, "new.vmdk") == bytes(model)
    assert (last, SECTOR) in done.lost
    assert (spot, SECTOR) in done.lost
    assert check_disk(delta, "new.vmdk").errors == 0


# -- flat disks and descriptors --------------------------------------------------------------------


def test_flat_files() -> None:
    store = MemoryStore()
    with create_disk(store, "f.vmdk", 10 * GRAIN, disk_type=DiskType.VMFS_FLAT) as disk:
        disk.write_from(0, b"a" * 10 * GRAIN)
    assert check_disk(store, "f.vmdk").findings == ()
    with store.open_writable("f-flat.vmdk") as file:
        file.resize(9 * GRAIN)
    report = check_disk(store, "f.vmdk")
    (found,) = report.findings
    assert (found.kind, found.start, found.length) == ("flat-short", 9 * GRAIN, GRAIN)
    done = repair_disk(store, "f.vmdk", target="g.vmdk")
    assert done.lost == ((9 * GRAIN, GRAIN),)
    assert contents(store, "g.vmdk") == b"a" * 9 * GRAIN + bytes(GRAIN)
    assert get(store, "f-flat.vmdk") == b"a" * 9 * GRAIN
    with store.open_writable("f-flat.vmdk") as file:
        file.resize(11 * GRAIN)
    assert check_disk(store, "f.vmdk").verdict is Verdict.LEAKS
    store.remove("f-flat.vmdk")
    assert check_disk(store, "f.vmdk").counts == {"extent-missing": 1}


@pytest.mark.parametrize(
    "kind", [DiskType.VMFS_FLAT, DiskType.MONOLITHIC_FLAT, DiskType.SPLIT_FLAT, DiskType.SPLIT_SPARSE]
)
@pytest.mark.parametrize("left", ["nothing", "empty", "zeroes"])
def test_lost_descriptors(kind: DiskType, left: str) -> None:
    store = MemoryStore()
    split = 16 * GRAIN if kind in (DiskType.SPLIT_FLAT, DiskType.SPLIT_SPARSE) else None
    with create_disk(store, "vm.vmdk", 40 * GRAIN, disk_type=kind, split=split) as disk:
        disk.write_from(15 * GRAIN, b"x" * 3 * GRAIN)
    store.remove("vm.vmdk")
    if left != "nothing":
        put(store, "vm.vmdk", bytes(512 if left == "zeroes" else 0))
    assert check_disk(store, "vm.vmdk").counts == {"descriptor-lost": 1}
    done = repair_disk(store, "vm.vmdk", in_place=True)
    assert done.inferred
    data = contents(store, "vm.vmdk")
    assert len(data) == 40 * GRAIN
    assert data[15 * GRAIN : 18 * GRAIN] == b"x" * 3 * GRAIN
    assert check_disk(store, "vm.vmdk").findings == ()
    undo_repair(store, "vm.vmdk.undo")
    assert store.exists("vm.vmdk") == (left != "nothing")


def test_the_lost_descriptor_of_a_delta_needs_its_parent(delta: MemoryStore) -> None:
    cid = Descriptor.parse(get(delta, "disk.vmdk"), "x").parent_cid
    delta.remove("disk.vmdk")
    with pytest.raises(CorruptDisk, match="parent"):
        repair_disk(delta, "disk.vmdk", in_place=True)
    repair_disk(delta, "disk.vmdk", in_place=True, parent_name="base.vmdk", parent_cid=cid)
    assert contents(delta, "disk.vmdk") == changed()


def test_nothing_is_made_of_nothing() -> None:
    store = MemoryStore()
    with pytest.raises(NotFound):
        check_disk(store, "no.vmdk")
    for data in (b"", bytes(4096), b"\x1f\x8b" + bytes(1000), b"a raw disk" * 1000, b"COWD" + bytes(4000)):
        put(store, "raw.vmdk", data)
        with pytest.raises(NotADisk):
            check_disk(store, "raw.vmdk")


def text(store: MemoryStore, edit: Callable[[str], str], name: str = "t.vmdk") -> CheckReport:
    with create_disk(store, "t.vmdk", 4 * GRAIN, disk_type=DiskType.MONOLITHIC_FLAT):
        pass
    put(store, name, edit(get(store, "t.vmdk").decode()).encode())
    return check_disk(store, name)


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ('"t-flat.vmdk"', '"/etc/passwd"', "extent-outside"),
        ('"t-flat.vmdk"', '"../t-flat.vmdk"', "extent-outside"),
        ('"t-flat.vmdk"', '"t.vmdk"', "extent-itself"),
        ('"t-flat.vmdk"', '"json:{}"', "extent-outside"),
        ("RW 512", "RW 0", "extent-empty"),
        ("RW 512", "RW 99999999999999999999999", "descriptor-line"),
    ],
)
def test_hostile_descriptors(old: str, new: str, kind: str) -> None:
    report = text(MemoryStore(), lambda t: t.replace(old, new))
    assert report.counts.get(kind), report.counts
    assert report.verdict is Verdict.CORRUPT


def test_the_same_extent_twice() -> None:
    def twice(t: str) -> str:
        line = next(line for line in t.splitlines() if line.startswith("RW "))
        return t.replace(line, f"{line}\n{line}")

    report = text(MemoryStore(), twice)
    assert report.counts == {"extent-twice": 1}


def test_pieces_of_one_file_are_fine() -> None:
    def pieces(t: str) -> str:
        line = next(line for line in t.splitlines() if line.startswith("RW "))
        return t.replace(line, 'RW 256 FLAT "t-flat.vmdk" 256\nRW 256 FLAT "t-flat.vmdk" 0')

    assert text(MemoryStore(), pieces).findings == ()


@pytest.mark.parametrize("create_type", ["vmfsRawDeviceMap", "vsanSparse", "fullDevice"])
def test_what_cannot_be_checked(create_type: str) -> None:
    with pytest.raises(NotSupported):
        text(MemoryStore(), lambda t: t.replace("monolithicFlat", create_type))


def test_ids_in_other_forms_are_noted() -> None:
    report = text(MemoryStore(), lambda t: t.replace("parentCID=ffffffff", "parentCID=FFFFFFFF"))
    assert [(f.kind, f.severity) for f in report.findings] == [("cid-form", Severity.NOTE)]


# -- seSparse --------------------------------------------------------------------------------------


def test_sesparse_is_looked_at_and_never_changed() -> None:
    store = MemoryStore()
    good_sparse(store, "base.vmdk")
    cid = Descriptor.parse(get(store, "base.vmdk")[SECTOR : 21 * SECTOR], "base").cid
    held = {3: b"s" * 4096, 9000: Hollow.ZERO}
    write_sesparse(store, "se.vmdk", SIZE, held, parent=Parent(cid, "base.vmdk"))
    assert check_disk(store, "se.vmdk").findings == ()
    write_sesparse(store, "wet.vmdk", SIZE, held, parent=Parent(cid, "base.vmdk"), journal_waits=True)
    before = files(store)
    assert check_disk(store, "wet.vmdk").counts == {"sesparse-journal": 1}
    with pytest.raises(NotSupported, match="seSparse"):
        repair_disk(store, "wet.vmdk", in_place=True)
    assert files(store) == before
    extent = next(name for name in store.list() if name.startswith("se-"))
    with store.open_writable(extent) as file:
        header = SeSparseHeader.read(file)
        file.write_from(header.areas["grain directory"][0] * SECTOR, b"\xff" * 8)
    assert check_disk(store, "se.vmdk").counts == {"sesparse-table": 1}
    with store.open_writable(extent) as file:
        file.write_from(24, b"\xff" * 8)
    assert check_disk(store, "se.vmdk").counts == {"sesparse-header": 1}


# -- chains ----------------------------------------------------------------------------------------


def test_a_parent_that_was_changed(delta: MemoryStore) -> None:
    with open_disk(delta, "base.vmdk", writable=True) as disk:
        disk.write_from(0, b"changed")
    assert check_disk(delta, "disk.vmdk").counts == {"cid-mismatch": 1}
    assert check_disk(delta, "disk.vmdk", single_link=True).findings == ()
    with pytest.raises(CorruptDisk, match="content id"):
        repair_disk(delta, "disk.vmdk", in_place=True)
    done = repair_disk(delta, "disk.vmdk", in_place=True, fix_cid=True)
    assert any("file systems" in line for line in done.inferred)
    assert contents(delta, "disk.vmdk")[:7] == b"changed"


def test_a_parent_that_is_missing_or_damaged(delta: MemoryStore) -> None:
    with delta.open_writable("base.vmdk") as file:
        file.write_from(21 * SECTOR, struct.pack("<I", 1 << 31))
    report = check_disk(delta, "disk.vmdk")
    assert [(f.kind, f.place) for f in report.findings] == [("directory-entry", "memory/base.vmdk")]
    delta.remove("base.vmdk")
    assert check_disk(delta, "disk.vmdk").counts == {"parent-missing": 1}


def test_a_loop(delta: MemoryStore) -> None:
    data = get(delta, "disk.vmdk").replace(b"base.vmdk", b"disk.vmdk")
    put(delta, "disk.vmdk", data)
    assert check_disk(delta, "disk.vmdk").counts == {"chain-loop": 1}


# -- known attacks ---------------------------------------------------------------------------------


def header_of(**fields: int) -> bytes:
    usual = {
        "version": 1,
        "flags": 3,
        "capacity": 1 << 20,
        "grain": 128,
        "descriptor": 1,
        "descriptor_sectors": 20,
        "redundant_directory": 21,
        "directory": 26,
        "overhead": 128,
    }
    return SparseHeader(**{**usual, **fields}).pack()


@pytest.mark.parametrize(
    "fields",
    [
        {"capacity": (1 << 64) - 1},
        {"capacity": 1 << 52, "grain": 1},
        {"grain": 0},
        {"grain": (1 << 64) - 1},
        {"directory": (1 << 64) - 2},
        {"descriptor": (1 << 63), "descriptor_sectors": 1 << 63},
        {"overhead": (1 << 64) - 1},
        {"flags": 0x30003, "compression": 1, "directory": GD_AT_END},
    ],
    ids=str,
)
def test_hostile_headers_are_findings_not_crashes(fields: dict[str, int]) -> None:
    store = MemoryStore()
    good_sparse(store)
    data = bytearray(get(store, "disk.vmdk"))
    data[:SECTOR] = header_of(**fields)
    put(store, "disk.vmdk", bytes(data))
    report = check_disk(store, "disk.vmdk")
    assert report.verdict is Verdict.CORRUPT


def test_a_bomb_is_not_unpacked() -> None:
    store = MemoryStore()
    good_stream(store)
    data = bytearray(get(store, "disk.vmdk"))
    at = grain_at(bytes(data), HELD[0])
    size = struct.unpack_from("<I", data, at + 8)[0]
    bomb = zlib.compress(bytes(40 << 20), 9)
    assert len(bomb) < size
    data[at + 12 : at + 12 + size] = bomb.ljust(size, b"\0")
    put(store, "disk.vmdk", bytes(data))
    assert check_disk(store, "disk.vmdk", deep=True).counts == {"grain-damaged": 1}
