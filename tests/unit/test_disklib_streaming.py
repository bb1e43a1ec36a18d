"""Disks through pipes, compared disks, and what can be said of disks that cannot be opened."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest

from vdkit.block.local import FolderStore, open_file
from vdkit.disklib.comparing import compare_disks
from vdkit.disklib.connection import connect
from vdkit.disklib.local import convert, describe
from vdkit.disklib.streaming import load_stream, save_stream
from vdkit.errors import (
    AlreadyExists,
    CorruptDisk,
    MissingParent,
    NotSupported,
    StoreError,
    UsageError,
    VixError,
)
from vdkit.testing.sesparse import write_sesparse
from vdkit.vmdk import create_child

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    with open(path, "wb") as file:
        file.write(random.Random(1).randbytes(3 * MIB + 100))
        file.seek(9 * MIB)
        file.write(random.Random(2).randbytes(MIB))
        file.truncate(12 * MIB + 512)
    return path


class OneWay(io.RawIOBase):
    """A pipe's end: it cannot seek, and takes and gives as much as it likes."""

    def __init__(self, content: bytes = b"") -> None:
        super().__init__()
        self.content = bytearray(content)
        self._at = 0

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)[:100_000]  # type: ignore[arg-type]
        self.content += view
        return len(view)

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self.content[self._at : self._at + min(len(view), 70_001)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)


def test_a_stream_goes_out_and_comes_in(raw: Path, tmp_path: Path) -> None:
    pipe = OneWay()
    with open_file(raw) as disk:
        save_stream(disk, pipe)  # type: ignore[arg-type]
    sent = tmp_path / "sent.vmdk"
    sent.write_bytes(pipe.content)
    assert compare_disks(raw, sent).same
    for kind in ("raw", "monolithicSparse", "vmfs"):
        target = tmp_path / f"{kind}.vmdk"
        result = load_stream(OneWay(bytes(pipe.content)), target, to=kind)  # type: ignore[arg-type]
        assert result.read == len(pipe.content)
        assert compare_disks(raw, target, second_format="raw" if kind == "raw" else "vmdk").same


def test_the_stream_is_what_a_file_gets(raw: Path, tmp_path: Path) -> None:
    """But for what is random: content ids and the uuid."""
    pipe = OneWay()
    with open_file(raw) as disk:
        save_stream(disk, pipe, name="file.vmdk")  # type: ignore[arg-type]
    convert(raw, tmp_path / "file.vmdk", to="streamOptimized")
    written = (tmp_path / "file.vmdk").read_bytes()
    assert len(pipe.content) == len(written)
    assert (pipe.content[:512], pipe.content[64 * 1024 :]) == (written[:512], written[64 * 1024 :])


def test_a_stream_that_breaks_off_leaves_nothing(raw: Path, tmp_path: Path) -> None:
    pipe = OneWay()
    with open_file(raw) as disk:
        save_stream(disk, pipe)  # type: ignore[arg-type]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptDisk):
        load_stream(OneWay(bytes(pipe.content[: 2 * MIB])), tmp_path / "x.vmdk", to="vmfs")  # type: ignore[arg-type]
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(AlreadyExists):
        load_stream(OneWay(bytes(pipe.content)), raw, to="raw")  # type: ignore[arg-type]
    with pytest.raises(NotSupported, match="already"):
        load_stream(OneWay(), tmp_path / "x.vmdk", to="streamOptimized")  # type: ignore[arg-type]


def test_a_reader_that_goes_away_is_an_error(raw: Path) -> None:
    class Broken(OneWay):
        def write(self, data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    with open_file(raw) as disk, pytest.raises(StoreError, match="Broken pipe"):
        save_stream(disk, Broken())  # type: ignore[arg-type]


def test_dashes_are_standard_input_and_output(raw: Path, tmp_path: Path) -> None:
    code = "import sys; from vdkit.disklib.local import convert as c; c(*sys.argv[1:3], to=sys.argv[3])"
    sent = tmp_path / "sent.vmdk"
    back = tmp_path / "back.raw"
    with open(sent, "wb") as out:
        command = [sys.executable, "-c", code, str(raw), "-", "streamOptimized"]
        subprocess.run(command, stdout=out, check=True, timeout=60)
    with open(sent, "rb") as file:
        command = [sys.executable, "-c", code, "-", str(back), "raw"]
        subprocess.run(command, stdin=file, check=True, timeout=60)
    assert back.read_bytes() == raw.read_bytes()
    for source, target, kind in (("-", "-", "raw"), (str(raw), "-", "raw")):
        with pytest.raises(UsageError):
            convert(source, target, to=kind)


def test_comparing(raw: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.vmdk"
    convert(raw, copy, to="monolithicSparse")
    same = compare_disks(raw, copy)
    assert (same.same, same.exit_code, same.compared) == (True, 0, 12 * MIB + 512)
    changed = bytearray(raw.read_bytes())
    changed[9 * MIB + 77] ^= 1
    other = tmp_path / "other.raw"
    other.write_bytes(changed)
    result = compare_disks(copy, other)
    assert (result.first_difference, result.exit_code, result.same_size) == (9 * MIB + 77, 1, True)
    # What one has beyond the other's end is equal where it is zero, but not in strict mode.
    other.write_bytes(raw.read_bytes() + bytes(3 * MIB))
    for pair in ((raw, other), (other, raw)):
        assert compare_disks(*pair).same
        strict = compare_disks(*pair, strict=True)
        assert (strict.same, strict.exit_code, strict.first_difference) == (False, 1, None)
    other.write_bytes(raw.read_bytes() + bytes(2 * MIB) + b"\0\1")
    assert compare_disks(raw, other).first_difference == 14 * MIB + 513
    # Strict mode also compares what is allocated.
    other.write_bytes(raw.read_bytes())
    assert compare_disks(raw, other).same
    assert compare_disks(raw, other, strict=True).allocation_difference is not None


def test_a_disk_that_cannot_be_opened_is_described(raw: Path, tmp_path: Path) -> None:
    rdm = tmp_path / "rdm.vmdk"
    rdm.write_text(
        '# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType="vmfsRawDeviceMap"\n'
        'RW 20480 VMFSRDM "rdm-rdm.vmdk"\nddb.adapterType = "lsilogic"\n'
    )
    facts = describe(rdm)
    assert (facts["type"], facts["capacity"], facts["adapter"]) == ("vmfsRawDeviceMap", 10 * MIB, "lsilogic")
    assert any("cannot be opened" in note for note in facts["notes"])
    convert(raw, tmp_path / "base.vmdk", to="monolithicSparse")
    create_child(FolderStore(tmp_path), "base.vmdk", "child.vmdk")
    (tmp_path / "base.vmdk").rename(tmp_path / "gone")
    facts = describe(tmp_path / "child.vmdk")
    assert any("parent" in note for note in facts["notes"])
    with pytest.raises(MissingParent):
        convert(tmp_path / "child.vmdk", tmp_path / "x.raw", to="raw")


def test_a_description_counts_only_when_asked(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    convert(raw, path, to="monolithicSparse")
    assert "allocated" not in describe(path)
    assert describe(path)["stored"] >= 4 * MIB
    assert describe(path, allocation=True)["allocated"] == 4 * MIB + 65536
    assert describe(raw)["stored"] >= 4 * MIB


def test_a_sesparse_delta_is_converted_and_a_waiting_journal_refused(raw: Path, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    data = random.Random(9).randbytes(4096)
    for name, waits in (("clean.vmdk", False), ("waiting.vmdk", True)):
        write_sesparse(store, name, 16 * MIB, {0: data, 77: data}, journal_waits=waits)
    target = tmp_path / "target.raw"
    convert(tmp_path / "clean.vmdk", target, to="raw")
    wanted = data + bytes(76 * 4096) + data
    assert target.read_bytes() == wanted + bytes(16 * MIB - len(wanted))
    waiting = tmp_path / "waiting.vmdk"
    with pytest.raises(VixError, match="journal"):
        convert(waiting, target, to="raw", overwrite=True)
    assert target.read_bytes().startswith(wanted)
    convert(waiting, target, to="raw", overwrite=True, ignore_journal=True)
    assert target.read_bytes().startswith(data)
    with connect() as connection:
        with pytest.raises(VixError, match="journal"):
            connection.open(waiting)
        with connection.open(waiting, ignore_journal=True) as disk:
            assert disk.read(77 * 8, 8) == data
    # The data of a delta is never taken for a raw image, whatever its name.
    extent = next(path for path in tmp_path.iterdir() if path.name.endswith("-sesparse.vmdk"))
    renamed = extent.rename(tmp_path / "delta.img")
    with pytest.raises(VixError):
        convert(renamed, tmp_path / "x.raw", to="raw")
