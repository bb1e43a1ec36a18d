"""Taking files apart: every header field and entry as it stands, and what is wrong with it."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.local import FolderStore
from vdkit.errors import NotFound, OutOfRange
from vdkit.testing.sesparse import Hollow, write_sesparse
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.inspect import Inspection, Section, inspect_file, locate

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def sparse(store: FolderStore, name: str = "d.vmdk") -> bytes:
    """A sparse disk of 64 MiB with a mebibyte of data at its second mebibyte."""
    data = os.urandom(MIB)
    with create_disk(store, name, 64 * MIB, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(MIB, data)
    return data


def edit(store: FolderStore, name: str, offset: int, data: bytes) -> None:
    path = Path(store.name, name)
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    path.write_bytes(whole)


def values(section: Section) -> dict[str, Any]:
    return {field.name: field.value for field in section.fields}


def test_a_sparse_disk(store: FolderStore) -> None:
    sparse(store)
    found = inspect_file(store, "d.vmdk", tables=True)
    assert (found.form, found.sound, found.problems) == ("sparse", True, ())
    (header,) = found.sections
    shown = values(header)
    assert (shown["magicNumber"], shown["capacity"], shown["grainSize"]) == ("KDMV", 131072, 128)
    assert {field.offset for field in header.fields} >= {0, 4, 8, 12, 20, 48, 56, 64, 72, 77}
    primary, redundant = found.tables
    assert (primary.name, redundant.name) == ("primary", "redundant")
    assert (primary.tables, primary.present, primary.grains_data, primary.grains_absent) == (2, 2, 16, 1008)
    assert primary.lowest is not None and primary.highest == primary.lowest + 15 * 128
    assert found.descriptor is not None
    assert [line.number for line in found.descriptor.lines][:3] == [1, 2, 3]
    kinds = {line.text: line.kind for line in found.descriptor.lines}
    assert kinds['RW 131072 SPARSE "d.vmdk"'] == "extent"
    assert kinds['ddb.adapterType = "lsilogic"'] == "database"


@pytest.mark.parametrize(
    ("offset", "data", "field"),
    [
        (0, b"kdmv", "magicNumber"),
        (4, struct.pack("<I", 9), "version"),
        (8, struct.pack("<I", 0x80000003), "flags"),
        (12, struct.pack("<Q", 0), "capacity"),
        (20, struct.pack("<Q", 100), "grainSize"),
        (44, struct.pack("<I", 1024), "numGTEsPerGT"),
        (56, struct.pack("<Q", 1 << 40), "gdOffset"),
        (72, b"\1", "uncleanShutdown"),
        (73, b"\r\n \n", "newlineTest"),
        (77, struct.pack("<H", 7), "compressAlgorithm"),
    ],
)
def test_the_damaged_field_is_named(store: FolderStore, offset: int, data: bytes, field: str) -> None:
    sparse(store)
    edit(store, "d.vmdk", offset, data)
    found = inspect_file(store, "d.vmdk", tables=True)
    assert field in [one.name for section in found.sections for one in section.fields if one.problem]
    assert not found.sound
    assert found.descriptor is not None and len(found.descriptor.lines) > 10


def test_a_lost_magic_is_seen_through(store: FolderStore) -> None:
    sparse(store)
    edit(store, "d.vmdk", 0, bytes(4))
    found = inspect_file(store, "d.vmdk", tables=True)
    assert (found.form, found.tables[0].grains_data) == ("sparse", 16)


def test_every_length_of_a_file_that_is_cut(store: FolderStore) -> None:
    sparse(store)
    whole = Path(store.name, "d.vmdk").read_bytes()
    for length in (0, 1, 3, 40, 511, 512, 600, 10752, 12000, 76800, 100_000, len(whole) - 1):
        Path(store.name, "cut.vmdk").write_bytes(whole[:length])
        found = inspect_file(store, "cut.vmdk", tables=True)
        assert isinstance(found, Inspection)
        assert not found.sound, length
        for offset in (0, MIB, 63 * MIB):
            for spot in locate(store, "cut.vmdk", offset):
                assert spot.kind in ("data", "zero", "absent", "unknown")


def test_bad_lines_are_shown_and_marked(store: FolderStore) -> None:
    Path(store.name, "d.vmdk").write_bytes(
        b'# Disk DescriptorFile\nversion=1\nCID=1234567\nfooled\nRW x FLAT "d-flat.vmdk" 0\n'
        b'RW 100 FLAT "d-flat.vmdk" 0\nRW 5 FLAT "/etc/passwd" 0\nRW 7 ZERO\n'
    )
    Path(store.name, "d-flat.vmdk").write_bytes(bytes(512))
    found = inspect_file(store, "d.vmdk")
    assert found.descriptor is not None
    assert [line.number for line in found.descriptor.lines if line.problem] == [4, 5]
    flat, escaped, zero = found.extents
    assert (flat.size, flat.problem) == (512, f"{99 * 512} bytes short")
    assert escaped.size is None and "allow_paths" in escaped.problem
    assert (zero.type, zero.problem) == ("ZERO", "")


def test_copies_that_differ(store: FolderStore) -> None:
    sparse(store)
    first = inspect_file(store, "d.vmdk").sections[0]
    data = Path(store.name, "d.vmdk").read_bytes()
    (table,) = struct.unpack_from("<I", data, values(first)["rgdOffset"] * 512)
    edit(store, "d.vmdk", table * 512 + 20 * 4, struct.pack("<I", 0))
    found = inspect_file(store, "d.vmdk", tables=True)
    (difference,) = found.differences
    assert (found.differing, difference.table, difference.entry, difference.redundant) == (1, 0, 20, 0)
    assert difference.primary > 1
    (spot,) = locate(store, "d.vmdk", MIB + 4 * 65536)
    assert (spot.kind, spot.redundant) == ("data", 0)
    assert "redundant" in spot.problem


def test_a_stream_marker_by_marker(store: FolderStore) -> None:
    with StreamWriter(store, "s.vmdk", 64 * MIB) as writer:
        writer.append(writer.encode(0, memoryview(os.urandom(3 * 65536))))
        writer.append(writer.encode(40 * MIB, memoryview(os.urandom(65536))))
        writer.finish()
    found = inspect_file(store, "s.vmdk", tables=True)
    assert (found.form, found.sound) == ("stream", True)
    assert [section.name for section in found.sections] == ["KDMV header", "KDMV footer"]
    assert found.stream is not None
    kinds = [marker.kind for marker in found.stream.markers]
    assert kinds == ["grain", "grain", "GT", "grain", "GT", "GD", "FOOTER", "EOS"]
    assert (found.stream.grains, found.stream.complete) == (4, True)
    (spot,) = locate(store, "s.vmdk", 65536 + 5)
    assert (spot.kind, spot.grain) == ("compressed", 1)
    assert spot.file_offset is not None and spot.packed is not None
    raw = Path(store.name, "s.vmdk").read_bytes()
    assert struct.unpack_from("<QI", raw, spot.file_offset) == (128, spot.packed)
    Path(store.name, "t.vmdk").write_bytes(raw[: len(raw) - 2048])
    cut = inspect_file(store, "t.vmdk", tables=True)
    assert any("no footer" in problem for problem in cut.problems)
    assert cut.stream is not None and cut.stream.grains == 4


def test_other_formats(store: FolderStore) -> None:
    create_disk(store, "base.vmdk", 16 * MIB, disk_type=DiskType.VMFS_THIN).close()
    create_child(store, "base.vmdk", "child.vmdk")
    with open_disk(store, "child.vmdk", writable=True) as disk:
        disk.write_from(4 * MIB, b"x" * 512)
    found = inspect_file(store, "child-delta.vmdk", tables=True)
    assert (found.form, found.sound, found.tables[0].grains_data) == ("cowd", True, 1)
    assert values(found.sections[0])["numSectors"] == 32768
    here, *rest = locate(store, "child.vmdk", 4 * MIB)
    assert (rest, here.kind) == ([], "data")
    raw = Path(store.name, "child-delta.vmdk").read_bytes()
    assert here.file_offset is not None and raw[here.file_offset :][:512] == b"x" * 512
    assert [spot.kind for spot in locate(store, "child.vmdk", 0)] == ["absent", "zero"]
    grains = {5: b"a" * 4096, 4100: b"b" * 4096, 7: Hollow.ZERO}
    write_sesparse(store, "se.vmdk", 32 * MIB, grains, seed=3)
    name = next(p.name for p in Path(store.name).iterdir() if p.name.endswith("-sesparse.vmdk"))
    found = inspect_file(store, name, tables=True)
    assert (found.form, found.sound) == ("sesparse", True)
    assert [section.name for section in found.sections] == ["seSparse header", "seSparse volatile header"]
    assert (found.tables[0].grains_data, found.tables[0].grains_zero) == (2, 1)
    raw = Path(store.name, name).read_bytes()
    for number, letter in ((5, b"a"), (4100, b"b")):
        spot = locate(store, "se.vmdk", number * 4096 + 10)[-1]
        assert spot.kind == "data" and spot.file_offset is not None
        assert raw[spot.file_offset :][:16] == letter * 16
    assert locate(store, "se.vmdk", 7 * 4096)[-1].kind == "zero"


def test_places_through_a_chain_hold_the_bytes(store: FolderStore) -> None:
    data = sparse(store, "base.vmdk")
    create_child(store, "base.vmdk", "c.vmdk", disk_type=DiskType.SPLIT_SPARSE, split=16 * MIB)
    with open_disk(store, "c.vmdk", writable=True) as disk:
        disk.write_from(20 * MIB, b"own!" * 16384)
    for offset, expected in ((MIB + 7, data[7:23]), (20 * MIB + 4, b"own!" * 4)):
        spot = locate(store, "c.vmdk", offset)[-1]
        assert spot.file is not None and spot.file_offset is not None
        assert Path(spot.file).read_bytes()[spot.file_offset :][:16] == expected
    assert locate(store, "c-s002.vmdk", 4 * MIB)[-1].problem.startswith("without its descriptor")


def test_what_is_refused(store: FolderStore) -> None:
    sparse(store)
    with pytest.raises(NotFound):
        inspect_file(store, "gone.vmdk")
    with pytest.raises(OutOfRange, match="67108864"):
        locate(store, "d.vmdk", 64 * MIB)
    Path(store.name, "noise").write_bytes(b"\xff" * 5000)
    assert inspect_file(store, "noise").form == "unknown"
