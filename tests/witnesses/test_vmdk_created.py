"""Others read every type that is made here, of whole and odd sizes, and write into them; we into theirs."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from diskchanges import change
from vdkit.block.copy import copy
from vdkit.block.local import FolderStore, open_file
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk
from vdkit.vmdk.check import Verdict, check_disk

GRAIN = 65536
MIB = 1 << 20
#: Bytes: whole grains, an odd last grain, one sector, more than one grain table of a piece.
SIZES = [4 * MIB, 3 * MIB + 77 * 512, 512, 37 * MIB + 8192]
KINDS = {
    "monolithicSparse": {"disk_type": DiskType.MONOLITHIC_SPARSE},
    "grain of 8 KiB": {"disk_type": DiskType.MONOLITHIC_SPARSE, "grain": 8192},
    "monolithicFlat": {"disk_type": DiskType.MONOLITHIC_FLAT},
    "twoGbMaxExtentSparse": {"disk_type": DiskType.SPLIT_SPARSE, "split": MIB},
    "twoGbMaxExtentSparse, one": {"disk_type": DiskType.SPLIT_SPARSE},
    "twoGbMaxExtentFlat": {"disk_type": DiskType.SPLIT_FLAT, "split": MIB + 512},
    "vmfs": {"disk_type": DiskType.VMFS_FLAT, "adapter": "ide"},
    "vmfsThin": {"disk_type": DiskType.VMFS_THIN, "adapter": "buslogic"},
}


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sample(size: int, seed: int) -> bytearray:
    """Holes, noise across the ends of pieces, a written tail."""
    rnd = random.Random(seed)
    content = bytearray(size)
    starts = [rnd.randrange(size) for _ in range(8)] + [at for at in (MIB - 700, 2 * MIB - 1) if at < size]
    for start in starts:
        data = rnd.randbytes(min(size - start, rnd.randrange(1, 3 * GRAIN)))
        content[start : start + len(data)] = data
    content[-3:] = b"end"
    return content


def make(folder: Path, name: str, content: bytes, **options: object) -> None:
    raw = folder / "content.raw"
    raw.write_bytes(content)
    store = FolderStore(folder)
    with open_file(raw) as source:
        if options.get("disk_type") is DiskType.STREAM_OPTIMIZED:
            with StreamWriter(store, name, len(content)) as writer:
                copy(source, writer, target_is_zero=True)
                writer.finish()
            return
        with create_disk(store, name, len(content), **options) as disk:  # type: ignore[arg-type]
            copy(source, disk, target_is_zero=True)


def same_for_qemu(folder: Path, name: str, content: bytes) -> None:
    raw = folder / "same.raw"
    raw.write_bytes(content)
    run("qemu-img", "check", folder / name)
    info = json.loads(run("qemu-img", "info", "--output=json", folder / name))
    assert info["virtual-size"] == len(content)
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, folder / name)


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_qemu_reads_them(tmp_path: Path, kind: str, size: int) -> None:
    content = sample(size, 1)
    make(tmp_path, "our.vmdk", content, **KINDS[kind])
    same_for_qemu(tmp_path, "our.vmdk", content)


@pytest.mark.witness("pyvmdk")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [*KINDS, "streamOptimized"])
def test_libvmdk_reads_them(tmp_path: Path, kind: str, size: int) -> None:
    import pyvmdk

    content = sample(size, 2)
    make(tmp_path, "our.vmdk", content, **KINDS.get(kind, {"disk_type": DiskType.STREAM_OPTIMIZED}))
    handle = pyvmdk.handle()
    handle.open(str(tmp_path / "our.vmdk"))
    handle.open_extent_data_files()
    assert handle.get_media_size() == size
    assert handle.read_buffer_at_offset(size, 0) == content
    handle.close()


@pytest.mark.witness("dissect.hypervisor")
@pytest.mark.parametrize("size", [size for size in SIZES if size % 8192 == 0])
@pytest.mark.parametrize("kind", [*KINDS, "streamOptimized"])
def test_dissect_reads_them(tmp_path: Path, kind: str, size: int) -> None:
    from dissect.hypervisor.disk.vmdk import VMDK

    content = sample(size, 3)
    make(tmp_path, "our.vmdk", content, **KINDS.get(kind, {"disk_type": DiskType.STREAM_OPTIMIZED}))
    disk = VMDK(tmp_path / "our.vmdk")
    assert disk.size == size
    disk.seek(0)
    assert disk.read(size) == content


@pytest.mark.witness("7z")
@pytest.mark.parametrize("size", [4 * MIB, 3 * MIB + 77 * 512])
@pytest.mark.parametrize("kind", [*KINDS, "streamOptimized"])
def test_7zip_reads_them(tmp_path: Path, kind: str, size: int) -> None:
    content = sample(size, 4)
    make(tmp_path, "our.vmdk", content, **KINDS.get(kind, {"disk_type": DiskType.STREAM_OPTIMIZED}))
    unpacked = subprocess.run(
        ["7z", "e", "-so", "-tvmdk", str(tmp_path / "our.vmdk")], capture_output=True, timeout=60, check=False
    )
    assert unpacked.returncode == 0, unpacked.stderr
    assert unpacked.stdout == content


@pytest.mark.witness("qemu-img", "qemu-io")
@pytest.mark.parametrize("kind", list(KINDS))
def test_qemu_writes_into_them_and_into_a_child(tmp_path: Path, kind: str) -> None:
    size = 4 * MIB
    model = sample(size, 5)
    make(tmp_path, "our.vmdk", model, **KINDS[kind])
    qemu_writes(tmp_path / "our.vmdk", model)
    store = FolderStore(tmp_path)
    create = ("qemu-img", "create", "-q", "-f", "vmdk", "-b", "our.vmdk", "-F", "vmdk")
    run(*create, tmp_path / "child.vmdk")
    qemu_writes(tmp_path / "child.vmdk", model, at=MIB)
    with open_disk(store, "child.vmdk", writable=True) as disk:
        change(disk, model, seed=6, times=20)
    same_for_qemu(tmp_path, "child.vmdk", model)
    with open_disk(store, "child.vmdk") as disk:
        seen = bytearray(size)
        disk.read_into(0, seen)
    assert seen == model


def qemu_writes(path: Path, model: bytearray, at: int = 0, *, whole: bool = False) -> None:
    """``whole``: grains only. Elsewhere than in the first piece of a split child qemu fills the rest of a
    new grain from the wrong place of the parent: it takes the offset in the piece for that in the disk.
    """
    low, high = (128, 448) if whole else (100, 400)
    around = GRAIN if whole else 4096
    for value, start, stop in (
        (0x33, at + low * 1024, at + high * 1024),
        (0x44, MIB - around, MIB + around),
    ):
        run("qemu-io", "-f", "vmdk", "-c", f"write -P {value} {start} {stop - start}", path)
        model[start:stop] = bytes([value]) * (stop - start)


@pytest.mark.witness("qemu-img", "qemu-io")
@pytest.mark.parametrize("parent", ["monolithicSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "vmfs"])
@pytest.mark.parametrize("kind", [DiskType.SPLIT_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.VMFS_SPARSE])
def test_qemu_reads_and_writes_our_children(tmp_path: Path, kind: DiskType, parent: str) -> None:
    size = 3 * MIB + 77 * 512
    model = sample(size, 7)
    make(tmp_path, "vm.vmdk", model, **KINDS[parent])
    store = FolderStore(tmp_path)
    split = {"split": MIB} if kind is DiskType.SPLIT_SPARSE else {}
    create_child(store, "vm.vmdk", "vm-000001.vmdk", disk_type=kind, **split)
    same_for_qemu(tmp_path, "vm-000001.vmdk", model)
    with open_disk(store, "vm-000001.vmdk", writable=True) as disk:
        change(disk, model, seed=8, times=20)
    same_for_qemu(tmp_path, "vm-000001.vmdk", model)
    if kind is DiskType.VMFS_SPARSE:  # qemu only reads those
        return
    qemu_writes(tmp_path / "vm-000001.vmdk", model, whole=kind is DiskType.SPLIT_SPARSE)
    same_for_qemu(tmp_path, "vm-000001.vmdk", model)
    with open_disk(store, "vm-000001.vmdk", writable=True) as disk:
        change(disk, model, seed=9, times=20)
    same_for_qemu(tmp_path, "vm-000001.vmdk", model)
    assert check_disk(store, "vm-000001.vmdk").verdict is Verdict.CLEAN


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("size", [5 * MIB, 4 * MIB + 512])
@pytest.mark.parametrize(
    "options",
    [
        "subformat=monolithicSparse",
        "subformat=monolithicSparse,zeroed_grain=on",
        "subformat=monolithicFlat",
        "subformat=twoGbMaxExtentSparse",
        "subformat=twoGbMaxExtentFlat",
        "subformat=monolithicSparse,adapter_type=ide,compat6",
    ],
)
def test_we_write_into_disks_of_qemu(tmp_path: Path, options: str, size: int) -> None:
    model = sample(size, 10)
    (tmp_path / "content.raw").write_bytes(model)
    convert = ("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", options)
    run(*convert, tmp_path / "content.raw", tmp_path / "q.vmdk")
    for seed in (11, 12):
        with open_disk(FolderStore(tmp_path), "q.vmdk", writable=True) as disk:
            change(disk, model, seed, times=20)
        same_for_qemu(tmp_path, "q.vmdk", model)


@pytest.mark.witness("qemu-img", "qemu-io")
def test_zero_entries_of_qemu_are_overwritten_and_written(tmp_path: Path) -> None:
    """A version 2 child: our zeroes become entries too, and take no space."""
    store = FolderStore(tmp_path)
    model = bytearray(b"p" * (4 * MIB))
    make(tmp_path, "base.vmdk", model, disk_type=DiskType.MONOLITHIC_SPARSE)
    create = ("qemu-img", "create", "-q", "-f", "vmdk", "-o", "zeroed_grain=on", "-b", "base.vmdk")
    run(*create, "-F", "vmdk", tmp_path / "z.vmdk")
    run("qemu-io", "-f", "vmdk", "-c", "write -z 64k 128k", tmp_path / "z.vmdk")
    model[GRAIN : 3 * GRAIN] = bytes(2 * GRAIN)
    before = (tmp_path / "z.vmdk").stat().st_size
    with open_disk(store, "z.vmdk", writable=True) as disk:
        disk.write_zeroes(MIB, 2 * MIB)
    model[MIB : 3 * MIB] = bytes(2 * MIB)
    assert (tmp_path / "z.vmdk").stat().st_size == before
    same_for_qemu(tmp_path, "z.vmdk", model)
    with open_disk(store, "z.vmdk", writable=True) as disk:
        disk.write_from(GRAIN + 1000, b"new")
        disk.write_from(MIB + 5 * GRAIN, b"n" * GRAIN)
    model[GRAIN + 1000 : GRAIN + 1003] = b"new"
    model[MIB + 5 * GRAIN : MIB + 6 * GRAIN] = b"n" * GRAIN
    same_for_qemu(tmp_path, "z.vmdk", model)
