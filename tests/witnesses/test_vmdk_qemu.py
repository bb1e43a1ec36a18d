"""qemu must read what we write, and we what qemu writes: every type, odd sizes, chains of parents."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from diskchanges import change
from vdkit.block.copy import copy
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore, open_file
from vdkit.vmdk import Codec, Disk, DiskType, StreamWriter, create_child, create_disk, open_disk

pytestmark = pytest.mark.witness("qemu-img", "qemu-io")

GRAIN = 65536
#: Bytes: whole grains, a short last grain, less than one grain, more than one grain table, one sector.
SIZES = [40 * GRAIN, 40 * GRAIN + 5 * 512, 7 * 512, 513 * GRAIN + 512, 512]
WRITABLE = [DiskType.MONOLITHIC_SPARSE, DiskType.MONOLITHIC_FLAT, DiskType.VMFS_FLAT, DiskType.VMFS_THIN]


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sample(folder: Path, size: int, seed: int = 1, name: str = "disk.raw") -> Path:
    """A raw image with holes, text, noise and a written tail."""
    rnd = random.Random(seed)
    path = folder / name
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(12):
            start = rnd.randrange(size)
            length = min(size - start, rnd.randrange(1, 3 * GRAIN))
            data = rnd.randbytes(length) if rnd.random() < 0.5 else (b"text %d " % start * length)[:length]
            os.pwrite(file.fileno(), data, start)
        os.pwrite(file.fileno(), b"end", size - 3)
    return path


def contents(disk: Disk) -> bytes:
    seen = bytearray(disk.capacity)
    for start in range(0, disk.capacity, 1 << 20):
        disk.read_into(start, memoryview(seen)[start : start + (1 << 20)])
    return bytes(seen)


def same(raw: Path, vmdk: Path) -> None:
    info = json.loads(run("qemu-img", "info", "--output=json", vmdk))
    assert info["virtual-size"] == raw.stat().st_size
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, vmdk)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", WRITABLE)
def test_qemu_reads_our_disks(tmp_path: Path, kind: DiskType, size: int) -> None:
    raw = sample(tmp_path, size)
    with (
        open_file(raw) as source,
        create_disk(FolderStore(tmp_path), "our.vmdk", size, disk_type=kind) as disk,
    ):
        copy(source, disk, target_is_zero=True)
    run("qemu-img", "check", tmp_path / "our.vmdk")
    same(raw, tmp_path / "our.vmdk")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("codec", list(Codec))
def test_qemu_reads_our_streams(tmp_path: Path, codec: Codec, size: int) -> None:
    raw = sample(tmp_path, size)
    writer = StreamWriter(FolderStore(tmp_path), "our.vmdk", size, codec=codec)
    with open_file(raw) as source:
        copy(source, writer, target_is_zero=True)
    writer.finish()
    run("qemu-img", "check", tmp_path / "our.vmdk")
    same(raw, tmp_path / "our.vmdk")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "form",
    ["monolithicSparse", "monolithicFlat", "streamOptimized", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"],
)
def test_we_read_disks_of_qemu(tmp_path: Path, form: str, size: int) -> None:
    raw = sample(tmp_path, size)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, tmp_path / "q.vmdk")
    with open_disk(FolderStore(tmp_path), "q.vmdk") as disk:
        assert disk.capacity == size
        assert disk.info.create_type == form
        assert contents(disk) == raw.read_bytes()


def test_our_map_agrees_with_qemu(tmp_path: Path) -> None:
    raw = sample(tmp_path, 40 * GRAIN)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", raw, tmp_path / "q.vmdk")
    told = json.loads(run("qemu-img", "map", "--output=json", tmp_path / "q.vmdk"))
    theirs = {
        start
        for run_ in told
        if run_["data"]
        for start in range(run_["start"], run_["start"] + run_["length"], GRAIN)
    }
    with open_disk(FolderStore(tmp_path), "q.vmdk") as disk:
        ours = {
            start
            for extent in disk.extents()
            if extent.kind is ExtentKind.DATA
            for start in range(extent.offset, extent.end, GRAIN)
        }
    assert ours == theirs


@pytest.mark.parametrize("form", ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse"])
def test_we_change_disks_of_qemu(tmp_path: Path, form: str) -> None:
    size = 40 * GRAIN + 512
    raw = sample(tmp_path, size)
    run("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", raw, tmp_path / "q.vmdk")
    model = bytearray(raw.read_bytes())
    with open_disk(FolderStore(tmp_path), "q.vmdk", writable=True) as disk:
        change(disk, model, seed=4, times=30)
    raw.write_bytes(model)
    run("qemu-img", "check", tmp_path / "q.vmdk")
    same(raw, tmp_path / "q.vmdk")


@pytest.mark.parametrize("size", [40 * GRAIN, 40 * GRAIN + 5 * 512])
@pytest.mark.parametrize("child", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
@pytest.mark.parametrize("base", [DiskType.MONOLITHIC_SPARSE, DiskType.VMFS_THIN])
def test_qemu_reads_our_chains(tmp_path: Path, base: DiskType, child: DiskType, size: int) -> None:
    store = FolderStore(tmp_path)
    raw = sample(tmp_path, size)
    with open_file(raw) as source, create_disk(store, "vm.vmdk", size, disk_type=base) as disk:
        copy(source, disk, target_is_zero=True)
    model = bytearray(raw.read_bytes())
    name = "vm.vmdk"
    for i in (1, 2):
        create_child(store, name, f"vm-00000{i}.vmdk", disk_type=child)
        name = f"vm-00000{i}.vmdk"
        with open_disk(store, name, writable=True) as disk:
            change(disk, model, seed=i, times=30)
    raw.write_bytes(model)
    with open_disk(store, name) as disk:
        assert contents(disk) == model
    # qemu takes a chain by its content ids, and answers with an error where they do not match.
    same(raw, tmp_path / name)
    run("qemu-img", "check", tmp_path / name)


def test_qemu_writes_a_child_of_our_disk(tmp_path: Path) -> None:
    size = 40 * GRAIN
    raw = sample(tmp_path, size)
    store = FolderStore(tmp_path)
    with (
        open_file(raw) as source,
        create_disk(store, "base.vmdk", size, disk_type=DiskType.MONOLITHIC_SPARSE) as disk,
    ):
        copy(source, disk, target_is_zero=True)
    run("qemu-img", "create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", tmp_path / "child.vmdk")
    run("qemu-io", "-f", "vmdk", "-c", "write -P 0x5a 70000 3000", tmp_path / "child.vmdk")
    model = bytearray(raw.read_bytes())
    model[70000:73000] = b"\x5a" * 3000
    with open_disk(store, "child.vmdk") as disk:
        assert len(disk.info.links) == 2
        assert contents(disk) == model
    with open_disk(store, "child.vmdk", writable=True) as disk:
        change(disk, model, seed=8, times=30)
    raw.write_bytes(model)
    same(raw, tmp_path / "child.vmdk")


def test_qemu_writes_into_our_disks(tmp_path: Path) -> None:
    size = 40 * GRAIN
    raw = sample(tmp_path, size)
    store = FolderStore(tmp_path)
    for kind in WRITABLE:
        name = f"{kind.value}.vmdk"
        with open_file(raw) as source, create_disk(store, name, size, disk_type=kind) as disk:
            copy(source, disk, target_is_zero=True)
        run(
            "qemu-io", "-f", "vmdk", "-c", "write -P 0x33 100k 300k", "-c", "write -z 1M 64k", tmp_path / name
        )
        model = bytearray(raw.read_bytes())
        model[100 << 10 : 400 << 10] = b"\x33" * (300 << 10)
        model[1 << 20 : (1 << 20) + GRAIN] = bytes(GRAIN)
        with open_disk(store, name) as disk:
            assert contents(disk) == model


def test_qemu_zeroed_grains(tmp_path: Path) -> None:
    """Version 2: a table entry of 1 hides the parent."""
    size = 8 * GRAIN
    store = FolderStore(tmp_path)
    with create_disk(store, "base.vmdk", size, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        disk.write_from(0, b"b" * size)
    options = ["-o", "zeroed_grain=on"]
    run("qemu-img", "create", "-f", "vmdk", *options, "-b", "base.vmdk", "-F", "vmdk", tmp_path / "z.vmdk")
    run("qemu-io", "-f", "vmdk", "-c", f"write -z {GRAIN} {2 * GRAIN}", tmp_path / "z.vmdk")
    with open_disk(store, "z.vmdk") as disk:
        assert contents(disk) == b"b" * GRAIN + bytes(2 * GRAIN) + b"b" * 5 * GRAIN
        kinds = [(e.length // GRAIN, e.kind) for e in disk.extents()]
        assert kinds == [(1, ExtentKind.DATA), (2, ExtentKind.ZERO), (5, ExtentKind.DATA)]


def test_qemu_reads_our_stream_deltas(tmp_path: Path) -> None:
    size = 40 * GRAIN + 512
    store = FolderStore(tmp_path)
    raw = sample(tmp_path, size)
    base = StreamWriter(store, "full.vmdk", size)
    with open_file(raw) as source:
        copy(source, base, target_is_zero=True)
    base.finish()
    model = bytearray(raw.read_bytes())
    delta = StreamWriter(store, "inc.vmdk", size, parent_cid=base.cid, parent_hint="full.vmdk")
    for start, data in ((0, bytes(2 * GRAIN)), (5 * GRAIN, b"new" * GRAIN), (40 * GRAIN, b"t" * 512)):
        delta.append(delta.encode(start, memoryview(data)))
        model[start : start + len(data)] = data
    delta.finish()
    with open_disk(store, "inc.vmdk") as disk:
        assert contents(disk) == model
    run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", tmp_path / "inc.vmdk", tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == model
