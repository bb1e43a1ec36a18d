"""dissect.hypervisor, a reader with no common ancestor, must see the same bytes in what we write."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from vdkit.block.local import FolderStore
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk

pytestmark = pytest.mark.witness("dissect.hypervisor")

GRAIN = 65536
#: dissect reads sizes that are multiples of 8 KiB only.
SIZE = 40 * GRAIN + 8192


def filled(seed: int = 2) -> bytearray:
    rnd = random.Random(seed)
    content = bytearray(SIZE)
    for _ in range(10):
        start = rnd.randrange(SIZE - 1000)
        data = rnd.randbytes(rnd.randrange(1, min(SIZE - start, 2 * GRAIN)))
        content[start : start + len(data)] = data
    content[-4:] = b"tail"
    return content


def seen_by_dissect(path: Path) -> bytes:
    from dissect.hypervisor.disk.vmdk import VMDK

    disk = VMDK(path)
    assert disk.size == SIZE
    disk.seek(0)
    data: bytes = disk.read(SIZE)
    return data


@pytest.mark.parametrize(
    "kind",
    [DiskType.MONOLITHIC_SPARSE, DiskType.MONOLITHIC_FLAT, DiskType.VMFS_FLAT, DiskType.VMFS_THIN],
)
def test_disks(tmp_path: Path, kind: DiskType) -> None:
    content = filled()
    with create_disk(FolderStore(tmp_path), "d.vmdk", SIZE, disk_type=kind) as disk:
        disk.write_from(0, content)
    assert seen_by_dissect(tmp_path / "d.vmdk") == content


def test_streams(tmp_path: Path) -> None:
    content = filled()
    writer = StreamWriter(FolderStore(tmp_path), "d.vmdk", SIZE)
    writer.append(writer.encode(0, memoryview(content)))
    writer.finish()
    assert seen_by_dissect(tmp_path / "d.vmdk") == content


@pytest.mark.parametrize("kind", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_chains(tmp_path: Path, kind: DiskType) -> None:
    store = FolderStore(tmp_path)
    content = filled()
    with create_disk(store, "vm.vmdk", SIZE, disk_type=DiskType.VMFS_FLAT) as disk:
        disk.write_from(0, content)
    name = "vm.vmdk"
    rnd = random.Random(7)
    for i in (1, 2):
        create_child(store, name, f"vm-00000{i}.vmdk", disk_type=kind)
        name = f"vm-00000{i}.vmdk"
        with open_disk(store, name, writable=True) as disk:
            for _ in range(20):
                start = rnd.randrange(SIZE - 1000)
                data = rnd.randbytes(rnd.randrange(1, min(SIZE - start, 5000)))
                disk.write_from(start, data)
                content[start : start + len(data)] = data
    assert seen_by_dissect(tmp_path / name) == content


@pytest.mark.witness("vmdkinfo")
def test_vmdkinfo_reads_our_descriptors(tmp_path: Path) -> None:
    with create_disk(FolderStore(tmp_path), "d.vmdk", SIZE, disk_type=DiskType.MONOLITHIC_SPARSE) as disk:
        cid = disk.info.cid
    done = subprocess.run(
        ["vmdkinfo", str(tmp_path / "d.vmdk")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{cid:08x}" in done.stdout.lower()
