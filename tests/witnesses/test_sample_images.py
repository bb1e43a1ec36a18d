"""Images that other people's products made: what is in them, by two witnesses."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from samples import sample
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.errors import VixError
from vdkit.vmdk import StreamReader, open_disk
from vdkit.vmdk.check import Verdict, check_disk
from vmdkreaders import run

#: Of the data that the ESXi export holds: what the map calls data, one run after the other.
MEBIBYTE = 1 << 20


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A disk of 16 GiB that an ESXi host exported as an OVF."""
    return Path(shutil.copy(sample("iotest-version3.vmdk"), tmp_path / "d.vmdk"))


def test_an_export_of_esxi_is_what_it_says(exported: Path) -> None:
    with open_disk(FolderStore(exported.parent), "d.vmdk") as disk:
        info = disk.info
        assert disk.capacity == 16 << 30
        assert (info.create_type, info.adapter) == ("streamOptimized", "lsilogic")
        assert info.links[0].files == ("d.vmdk",) and info.parent_cid is None
        assert info.notes == ()
        header = disk.links[0].header
        assert header is not None
        assert (header.version, header.flags, header.grain) == (3, 0x30001, 128)


@pytest.mark.witness("qemu-img", "dissect.hypervisor")
def test_an_export_of_esxi_by_two_witnesses(exported: Path) -> None:
    """Its data, as we, qemu and dissect see it, at random and in one pass."""
    with open_disk(FolderStore(exported.parent), "d.vmdk") as disk:
        runs = [(e.offset, e.length) for e in disk.extents() if e.kind is ExtentKind.DATA]
        assert runs
        ours = {}
        for start, length in runs:
            data = bytearray(length)
            disk.read_into(start, data)
            ours[start] = bytes(data)
    assert any(any(data) for data in ours.values())
    raw = exported.with_suffix(".raw")
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", exported, raw)
    assert raw.stat().st_size == 16 << 30
    with raw.open("rb") as file:
        for start, data in ours.items():
            file.seek(start)
            assert hashlib.sha256(file.read(len(data))).digest() == hashlib.sha256(data).digest()
    from dissect.hypervisor.disk.vmdk import VMDK

    theirs = VMDK(exported)
    for start, data in ours.items():
        theirs.seek(start)
        assert theirs.read(len(data)) == data
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, exported)
    with exported.open("rb") as pipe:
        for offset, grain in StreamReader(pipe):
            start = max(start for start in ours if start <= offset)
            assert ours[start][offset - start :][: len(grain)] == grain


def test_an_export_of_esxi_is_sound(exported: Path) -> None:
    report = check_disk(FolderStore(exported.parent), "d.vmdk", deep=True)
    assert report.verdict is Verdict.CLEAN, [finding.message for finding in report.findings]


def test_afl9_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """A header from a fuzzer: other readers allocate the directory it asks for."""
    import tracemalloc

    shutil.copy(sample("afl9.vmdk"), tmp_path / "d.vmdk")
    store = FolderStore(tmp_path)
    tracemalloc.start()
    try:
        for act in (open_disk, check_disk):
            try:
                act(store, "d.vmdk")
            except VixError as error:
                assert str(error)
            else:
                assert act is check_disk, "it opened"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
