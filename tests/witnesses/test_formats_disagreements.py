"""Where the witnesses do not agree: what each does, and what we do, pinned.

When one of these fails, a witness has changed its mind: docs/explanation/formats.md is then out of date.
"""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

import pytest

import smallimages
from smallimages import SECTOR
from vdkit.block.local import FolderStore
from vdkit.errors import CidMismatch, CorruptDisk, VixError
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vmdkreaders import READERS, Refused

ALL = ("qemu-img", "7z", "pyvmdk", "dissect.hypervisor")
pytestmark = pytest.mark.witness(*ALL)


def ours(path: Path) -> bytes:
    try:
        with open_disk(FolderStore(path.parent), path.name) as disk:
            seen = bytearray(disk.capacity)
            disk.read_into(0, seen)
            return bytes(seen)
    except VixError as error:
        raise Refused(str(error)) from error


def answers(path: Path, data: bytes) -> dict[str, str]:
    """``same``, ``refuses``, or how it differs, for every reader and us."""
    told = {}
    for name, read in [("vdkit", ours), *((reader, READERS[reader]) for reader in ALL)]:
        try:
            seen = read(path)
        except Refused:
            told[name] = "refuses"
        else:
            told[name] = (
                "same"
                if seen == data
                else f"{len(seen) - len(data):+d} bytes"
                if len(seen) != len(data)
                else "other bytes"
            )
    return told


def described(tmp_path: Path, kind: str, *lines: str) -> Path:
    """A descriptor in VMware's own form: libvmdk wants the comments."""
    path = tmp_path / "d.vmdk"
    head, extents = smallimages.text(kind, *lines).decode().split("\n" + lines[0], 1)
    text = f"{head}\n\n# Extent description\n{lines[0]}{extents}\n# The Disk Data Base \n#DDB\n\n"
    path.write_text(text + 'ddb.adapterType = "ide"\n')
    return path


def test_an_offset_in_a_flat_file(tmp_path: Path) -> None:
    """Some ignore it, without an error."""
    (tmp_path / "f").write_bytes(b"a" * 32 * SECTOR + b"b" * 32 * SECTOR)
    path = described(tmp_path, "monolithicFlat", 'RW 32 FLAT "f" 32')
    assert answers(path, b"b" * 32 * SECTOR) == {
        "vdkit": "same",
        "qemu-img": "same",
        "7z": "same",
        "pyvmdk": "other bytes",
        "dissect.hypervisor": "other bytes",
    }


def test_a_flat_file_that_is_too_short(tmp_path: Path) -> None:
    """To us that is damage; some read on in zeroes."""
    (tmp_path / "f").write_bytes(b"a" * 16 * SECTOR)
    path = described(tmp_path, "monolithicFlat", 'RW 32 FLAT "f" 0')
    told = answers(path, b"a" * 16 * SECTOR + bytes(16 * SECTOR))
    assert told["vdkit"] == "refuses"
    assert told["qemu-img"] == "same"
    assert told["pyvmdk"] == told["7z"] == "refuses"


def test_zero_extents(tmp_path: Path) -> None:
    """qemu skips them: the disk shrinks and what follows moves."""
    (tmp_path / "f").write_bytes(b"a" * 16 * SECTOR)
    path = described(tmp_path, "custom", "RW 16 ZERO", 'RW 16 FLAT "f" 0')
    told = answers(path, bytes(16 * SECTOR) + b"a" * 16 * SECTOR)
    assert told["vdkit"] == "same"
    assert told["qemu-img"] == told["pyvmdk"] == "refuses"
    path = described(tmp_path, "twoGbMaxExtentFlat", "RW 16 ZERO", 'RW 16 FLAT "f" 0')
    assert answers(path, bytes(16 * SECTOR) + b"a" * 16 * SECTOR)["qemu-img"] == f"-{16 * SECTOR} bytes"


def test_a_header_larger_than_the_extent_line(tmp_path: Path) -> None:
    """VirtualBox rounds the header's capacity up. The line is the truth; most go by the header."""
    image = bytearray(smallimages.sparse())
    image[SECTOR : 2 * SECTOR] = smallimages.sector(
        smallimages.text("monolithicSparse", 'RW 13 SPARSE "d.vmdk"')
    )
    path = tmp_path / "d.vmdk"
    path.write_bytes(image)
    data = ours(path)
    assert len(data) == 13 * SECTOR
    told = answers(path, data)
    assert told["qemu-img"] == told["dissect.hypervisor"] == f"+{3 * SECTOR} bytes"


def test_a_parent_that_was_changed(tmp_path: Path) -> None:
    """We and libvmdk refuse at once, qemu when a read falls through, dissect never."""
    store = FolderStore(tmp_path)
    create_disk(store, "base.vmdk", 1 << 20, disk_type=DiskType.MONOLITHIC_SPARSE).close()
    create_child(store, "base.vmdk", "d.vmdk", disk_type=DiskType.MONOLITHIC_SPARSE)
    with open_disk(store, "base.vmdk", writable=True) as disk:
        disk.write_from(0, b"p" * 65536)
    with pytest.raises(CidMismatch):
        open_disk(store, "d.vmdk")
    data = b"p" * 65536 + bytes((1 << 20) - 65536)
    assert answers(tmp_path / "d.vmdk", data) == {
        "vdkit": "refuses",
        "qemu-img": "refuses",
        "7z": "refuses",
        "pyvmdk": "refuses",
        "dissect.hypervisor": "same",
    }


def test_grains_that_are_raw_deflate(tmp_path: Path) -> None:
    """The specification says RFC 1951; everybody means RFC 1950, and so do we."""
    maker = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = maker.compress(b"D" * 8 * SECTOR) + maker.flush()
    record = smallimages.sector(bytes(8) + len(packed).to_bytes(4, "little") + packed)
    image = bytearray(smallimages.stream(at_end=False, grains=(0,)))
    image[7 * SECTOR : 8 * SECTOR] = record
    (tmp_path / "d.vmdk").write_bytes(image)
    with open_disk(FolderStore(tmp_path), "d.vmdk") as disk, pytest.raises(CorruptDisk):
        disk.read_into(0, bytearray(SECTOR))
    told = answers(tmp_path / "d.vmdk", b"D" * 8 * SECTOR + bytes(24 * SECTOR))
    assert "same" not in told.values()


def test_a_single_trailing_sector_behind_a_stream(tmp_path: Path) -> None:
    """Download tools pad. We look back over zeroes for the footer; the others see no disk or no data."""
    data = os.urandom(1 << 16) + bytes(1 << 20)
    writer = StreamWriter(FolderStore(tmp_path), "d.vmdk", len(data))
    writer.append(writer.encode(0, memoryview(data)))
    writer.finish()
    assert set(answers(tmp_path / "d.vmdk", data).values()) == {"same"}
    with (tmp_path / "d.vmdk").open("ab") as file:
        file.write(bytes(SECTOR))
    told = answers(tmp_path / "d.vmdk", data)
    assert told.pop("vdkit") == "same"
    assert "same" not in told.values(), told


def test_tables_up_front(tmp_path: Path) -> None:
    """As VMware Workstation and qemu write streams; 7-Zip reads only those with a footer."""
    raw = tmp_path / "s.raw"
    raw.write_bytes(os.urandom(1 << 16) + bytes(1 << 20))
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*command, raw, tmp_path / "d.vmdk"], check=True, capture_output=True, timeout=60)
    told = answers(tmp_path / "d.vmdk", raw.read_bytes())
    assert told.pop("7z") == "refuses"
    assert set(told.values()) == {"same"}


def test_spellings(tmp_path: Path) -> None:
    """Lower case and double blanks: we read them, and never write them."""
    (tmp_path / "f").write_bytes(b"a" * 32 * SECTOR)
    text = described(tmp_path, "monolithicFlat", 'RW 32 FLAT "f" 0').read_bytes()
    path = tmp_path / "d.vmdk"
    path.write_bytes(text.replace(b"RW 32 FLAT", b"RW  32\tFLAT"))
    told = answers(path, b"a" * 32 * SECTOR)
    assert (told["vdkit"], told["qemu-img"], told["7z"], told["pyvmdk"]) == (
        "same",
        "same",
        "same",
        "refuses",
    )
    path.write_bytes(text.lower())
    told = answers(path, b"a" * 32 * SECTOR)
    assert told.pop("vdkit") == "same"
    assert set(told.values()) == {"refuses"}
