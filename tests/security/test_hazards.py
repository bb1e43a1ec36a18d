"""A guard for each hazard of untrusted VMDKs: sizes, loops, lines, injections; bombs are in test_bombs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bounds import bounded_memory, run_bounded

import smallimages
from smallimages import SECTOR, stored
from vdkit.block.local import FolderStore
from vdkit.errors import (
    AlreadyExists,
    BadEncoding,
    ChainError,
    CorruptDisk,
    FormatError,
    LimitExceeded,
    OutsideStore,
    UsageError,
    VixError,
)
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.descriptor import MAX_EXTENTS, MAX_LINE, Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine


def with_header(image: bytes, **fields: int) -> bytes:
    return smallimages.header(**fields) + image[SECTOR:]


# -- sizes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"grain": 0},
        {"grain": 3},
        {"grain": 1 << 22},
        {"grain": 1 << 63},
        {"entries": 0},
        {"entries": 1},
        {"entries": 0xFFFFFFFF},
        {"capacity": 0},
        {"capacity": 1 << 54},
        {"capacity": (1 << 64) - 1},
        {"directory": (1 << 64) - 2},
        {"directory": 1 << 55},
        {"directory": 0},
        {"directory": 1},
        {"descriptor": (1 << 64) - 1},
        {"descriptor": 0},
        {"descriptor_sectors": (1 << 64) - 1},
        {"descriptor_sectors": 2},
        {"redundant": (1 << 64) - 1, "flags": 3},
        {"redundant": 2, "flags": 3},
        {"overhead": (1 << 64) - 1},
        {"overhead": 0},
        {"version": 0},
        {"version": 4},
        {"version": 0xFFFFFFFF},
        {"flags": 0x40001},
        {"flags": 0x10001},
        {"compression": 1},
        {"compression": 9},
        {"newlines": int.from_bytes(b"\n \n\n", "little")},
    ],
    ids=str,
)
def test_header_fields_that_lie(fields: dict[str, int]) -> None:
    parts = [smallimages.sector(smallimages.text()), smallimages.sector(smallimages.numbers(3))]
    image = b"".join([bytes(SECTOR), *parts, smallimages.table({0: 7}), b"a" * SECTOR])
    with open_disk(stored({"d.vmdk": with_header(image)}), "d.vmdk") as disk:
        seen = bytearray(SECTOR)
        disk.read_into(0, seen)
        assert seen == b"a" * SECTOR, "without the lie it is a disk"
    with bounded_memory(1 << 20), pytest.raises(FormatError):
        open_disk(stored({"d.vmdk": with_header(image, **fields)}), "d.vmdk")


def test_sectors_times_512_stay_below_2_to_the_63() -> None:
    """Everything that is handed to the operating system fits a signed offset."""
    for line in (
        "RW 9223372036854775807 ZERO",
        'RW 1 FLAT "f" 36028797018963968',
        'RW 1 FLAT "f" 18446744073709551615',
        "RW 99999999999999999999999999 ZERO",
    ):
        files = {"d.vmdk": smallimages.text("custom", line), "f": bytes(SECTOR)}
        with pytest.raises(VixError):
            open_disk(stored(files), "d.vmdk")
    many = ["RW 9007199254740992 ZERO"] * 1025
    with pytest.raises(VixError):
        open_disk(stored({"d.vmdk": smallimages.text("custom", *many)}), "d.vmdk")


# -- header and footer -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field", ["capacity", "grain", "flags", "version", "descriptor", "descriptor_sectors"]
)
def test_a_footer_that_is_not_its_header(field: str) -> None:
    image = bytearray(smallimages.stream())
    start = len(image) - 2 * SECTOR
    honest = {
        "version": 3, "flags": 0x30001, "capacity": 32, "grain": 8, "compression": 1, "overhead": 2,
        "directory": int.from_bytes(image[start + 56 : start + 64], "little"),
        "descriptor": 1, "descriptor_sectors": 1,
    }  # fmt: skip
    assert smallimages.header(**honest) == image[start : start + SECTOR]
    lies = {"capacity": 64, "grain": 16, "flags": 0x30005, "version": 2, "descriptor": 2}
    image[start : start + SECTOR] = smallimages.header(**{**honest, field: lies.get(field, 3)})
    with pytest.raises(CorruptDisk, match="footer"):
        open_disk(stored({"d.vmdk": bytes(image)}), "d.vmdk")


def test_a_descriptor_that_changes_after_it_was_read(tmp_path: Path) -> None:
    """What was checked is what is used: the file is not read a second time for its names."""
    (tmp_path / "a").write_bytes(b"a" * SECTOR)
    (tmp_path / "d.vmdk").write_bytes(smallimages.text("vmfs", 'RW 1 VMFS "a"'))
    with open_disk(FolderStore(tmp_path), "d.vmdk") as disk:
        (tmp_path / "d.vmdk").write_bytes(smallimages.text("vmfs", 'RW 1 VMFS "/etc/passwd"'))
        (tmp_path / "a").rename(tmp_path / "old")
        (tmp_path / "a").symlink_to("/etc/passwd")
        seen = bytearray(SECTOR)
        disk.read_into(0, seen)
        assert seen == b"a" * SECTOR
        assert disk.descriptor.extents[0].file_name == "a"


# -- pieces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lines",
    [
        ('RW 8 FLAT "f" 0', 'RW 8 FLAT "f" 4'),
        ('RW 8 FLAT "f" 0', 'RW 8 FLAT "f" 0'),
        ('RW 8 FLAT "f" 4', 'RW 8 FLAT "f"'),
        ('RW 8 VMFS "f"', 'RW 1 FLAT "g" 0', 'RDONLY 2 FLAT "f" 7'),
        ('RW 16 SPARSE "s"', 'RW 16 SPARSE "s"'),
    ],
    ids=str,
)
def test_extents_that_overlap(lines: tuple[str, ...]) -> None:
    """Two pieces of a disk on the same bytes: many lines would make a huge disk of a small file, and a write
    to one piece would change another.
    """
    files = {"d.vmdk": smallimages.text("custom", *lines), "f": bytes(16 * SECTOR), "g": bytes(SECTOR)}
    with pytest.raises(FormatError):
        open_disk(stored({**files, "s": smallimages.sparse()}), "d.vmdk")


def test_pieces_of_one_file_side_by_side(tmp_path: Path) -> None:
    """What other products do write: one flat file, cut up by offsets, in any order."""
    files = {
        "d.vmdk": smallimages.text("custom", 'RW 1 FLAT "f" 1', 'RW 1 FLAT "f" 0'),
        "f": b"a" * SECTOR + b"b" * SECTOR,
    }
    with open_disk(stored(files), "d.vmdk") as disk:
        seen = bytearray(2 * SECTOR)
        disk.read_into(0, seen)
        assert seen == b"b" * SECTOR + b"a" * SECTOR


# -- loops -------------------------------------------------------------------------------------------


def test_loops() -> None:
    itself = smallimages.sparse(parent="0000abcd", hint="d.vmdk")
    with pytest.raises(ChainError, match="loop"):
        open_disk(stored({"d.vmdk": itself}), "d.vmdk")
    pair = {name: smallimages.sparse(parent="0000abcd", hint=f"{other}") for name, other in ("ab", "ba")}
    with pytest.raises(ChainError, match="loop"):
        open_disk(stored(pair), "a")
    for spelled in ("./d.vmdk", "sub/../d.vmdk", ".\\d.vmdk", "x//..//d.vmdk"):
        with pytest.raises(VixError):
            open_disk(stored({"d.vmdk": smallimages.sparse(parent="0000abcd", hint=spelled)}), "d.vmdk")


def test_a_loop_through_another_name_of_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "d.vmdk").write_bytes(smallimages.sparse(parent="0000abcd", hint="same.vmdk"))
    os.link(tmp_path / "d.vmdk", tmp_path / "same.vmdk")
    with pytest.raises(ChainError):
        open_disk(FolderStore(tmp_path), "d.vmdk")


@pytest.mark.parametrize("kind", ["FLAT", "SPARSE", "VMFS"])
def test_a_descriptor_that_is_its_own_extent(tmp_path: Path, kind: str) -> None:
    offset = " 0" if kind == "FLAT" else ""
    (tmp_path / "d.vmdk").write_bytes(
        smallimages.text("custom", f'RW 1 {kind} "d.vmdk"{offset}').ljust(SECTOR)
    )
    with pytest.raises(VixError):
        open_disk(FolderStore(tmp_path), "d.vmdk")


def test_a_hard_link_is_a_file_of_the_folder(tmp_path: Path) -> None:
    """Cannot be told from any other file, and only who may read the file can have made it: it opens."""
    (tmp_path / "elsewhere").write_bytes(b"e" * SECTOR)
    folder = tmp_path / "disk"
    folder.mkdir()
    os.link(tmp_path / "elsewhere", folder / "f")
    (folder / "d.vmdk").write_bytes(smallimages.text("vmfs", 'RW 1 VMFS "f"'))
    with open_disk(FolderStore(folder), "d.vmdk") as disk:
        seen = bytearray(SECTOR)
        disk.read_into(0, seen)
        assert seen == b"e" * SECTOR


# -- text --------------------------------------------------------------------------------------------


def test_lines_and_counts_are_bounded() -> None:
    start = b"# Disk DescriptorFile\nversion=1\n"
    with bounded_memory(48 << 20):
        for bad in (
            start + b"x=" + b"y" * MAX_LINE,
            start + b"#" * (MAX_LINE + 1),
            start + b"RW 1 ZERO\n" * (MAX_EXTENTS + 1),
            start + b"a=b\n" * (1 << 18) + b"#" * (1 << 20),
            start + b"\n" * ((1 << 20) - 100),
            start + b"\r" * ((1 << 20) - 100),
        ):
            with pytest.raises(LimitExceeded):
                Descriptor.parse(bad, "d")


@pytest.mark.parametrize(
    "line",
    [
        b"RW" + b" " * 60000 + b"x",
        b" \t" * 30000,
        b"RW 1 FLAT " + b'"' * 60000,
        b"encoding" + b" " * 60000 + b"x",
        b"encoding=" + b'"' * 60000,
        b"version" + b" " * 60000,
        b"=" * 60000,
        b"RW " + b"9" * 60000,
        b'RW 1 FLAT "' + b" " * 60000,
        b"ddb." + b"." * 60000,
    ],
    ids=lambda line: repr(line[:12]),
)
def test_no_line_takes_more_than_linear_work(line: bytes) -> None:
    """Sixteen of the longest: with quadratic matching they would outlast the processor time allowed."""
    code = f"""
from vdkit.errors import VixError
from vdkit.vmdk.descriptor import Descriptor
line = {line[:1024]!r} * ({len(line)} // 1024 + 1)
line = {line[:16]!r} + line[16 : {len(line)}]
for order in (0, 1):
    lines = [b"version=1"] + [line] * 15
    try:
        Descriptor.parse(b"\\n".join(lines[::-1] if order else lines), "d")
    except VixError:
        pass
print("done")
"""
    assert run_bounded(code, processor_seconds=20) == "done\n"


def test_text_in_no_charset() -> None:
    with pytest.raises(BadEncoding):
        Descriptor.parse(b'version=1\nencoding="UTF-8"\nCID=1\nx=\xff\n', "d")
    with pytest.raises(BadEncoding):
        Descriptor.parse(b'version=1\nencoding="UTF-16"\n', "d")
    with pytest.raises(BadEncoding):
        Descriptor.parse(b'version=1\nencoding="rot13"\n', "d")
    assert Descriptor.parse(b"version=1\nCID=1\nx=\xff\n", "d").get("x") == "\u00ff"


INJECTED = ['a"b', 'a" 0\nRW 1 FLAT "/etc/passwd', "a\r", "a\0", "a\x1b[2J", "a\u2028b", "a\u0085b", "\udc80"]


@pytest.mark.parametrize("name", INJECTED, ids=ascii)
def test_nothing_is_injected_into_a_descriptor(tmp_path: Path, name: str) -> None:
    store = FolderStore(tmp_path)
    with pytest.raises(VixError):
        create_disk(store, f"{name}.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_FLAT)
    with pytest.raises(UsageError):
        str(ExtentLine(Access.RW, 1, "FLAT", name, 0))
    made = Descriptor.parse(smallimages.text(), "d")
    for key in ("ddb.comment", "parentFileNameHint"):
        with pytest.raises(UsageError):
            made.set(key, name)
    with pytest.raises(UsageError):
        made.set(f"ddb.{name}", "x")
    assert made.to_bytes() == smallimages.text()
    create_disk(store, "base.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    with pytest.raises(VixError):
        create_child(store, "base.vmdk", f"{name}.vmdk")
    assert store.list() == ["base.vmdk"]


def test_messages_do_not_carry_control_characters(tmp_path: Path) -> None:
    """What a terminal would act on is escaped when a hostile name is told."""
    for name in ("\x1b[2Ja", "a\x07", "../\x1b]0;x\x07", "\u202eexe"):
        (tmp_path / "d.vmdk").write_bytes(smallimages.text("vmfs", f'RW 1 VMFS "{name}"'))
        with pytest.raises(VixError) as caught:
            open_disk(FolderStore(tmp_path), "d.vmdk")
        assert "\x1b" not in str(caught.value) and "\x07" not in str(caught.value)


# -- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", ["file", "link", "dangling", "pipe"])
@pytest.mark.parametrize("kind", [DiskType.MONOLITHIC_SPARSE, DiskType.MONOLITHIC_FLAT])
def test_output_replaces_nothing_and_follows_nothing(tmp_path: Path, kind: DiskType, planted: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    for name in ("d.vmdk", "d-flat.vmdk"):
        path = folder / name
        match planted:
            case "file":
                path.write_bytes(b"precious")
            case "link":
                path.symlink_to("../precious")
            case "dangling":
                path.symlink_to("../made")
            case _:
                os.mkfifo(path)
        with pytest.raises((AlreadyExists, OutsideStore)):
            create_disk(FolderStore(folder), "d.vmdk", 1 << 20, disk_type=kind)
            if name == "d-flat.vmdk" and kind is DiskType.MONOLITHIC_SPARSE:
                raise AlreadyExists("a sparse disk has no such file")
        with pytest.raises((AlreadyExists, OutsideStore)):
            StreamWriter(FolderStore(folder), name, 1 << 20)
        assert (tmp_path / "precious").read_bytes() == b"precious"
        assert not (tmp_path / "made").exists()
        for left in folder.iterdir():
            if left != path:
                left.unlink()
        path.unlink()


def test_disks_are_private_to_their_owner(tmp_path: Path) -> None:
    create_disk(FolderStore(tmp_path), "d.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_FLAT).close()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
