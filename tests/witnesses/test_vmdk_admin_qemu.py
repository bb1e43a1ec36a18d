"""After every operation other readers must still see the same disk: qemu, dissect.hypervisor, libvmdk."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from vdkit.block.copy import copy
from vdkit.block.local import FolderStore, open_file
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.admin import (
    attach_disk,
    defragment_disk,
    grow_disk,
    rename_disk,
    shrink_disk,
    write_metadata,
)
from vdkit.vmdk.sparse import grain_tables, read_header

pytestmark = pytest.mark.witness("qemu-img")

GRAIN = 65536
MIB = 1 << 20
#: A short last grain: what follows it must be zeroes after growing.
SIZE = 40 * MIB + 3 * 512
FORMS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def sample(folder: Path, size: int = SIZE) -> None:
    rnd = random.Random(size)
    with (folder / "raw").open("wb") as file:
        file.truncate(size)
        for _ in range(60):
            os.pwrite(
                file.fileno(), rnd.randbytes(rnd.randrange(1, 3 * GRAIN)), rnd.randrange(size - 3 * GRAIN)
            )
        os.pwrite(file.fileno(), b"end", size - 3)


def make(folder: Path, form: str, maker: str) -> None:
    sample(folder)
    if maker == "qemu":
        run(
            folder,
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            f"subformat={form}",
            "raw",
            "d.vmdk",
        )
        return
    with (
        open_file(folder / "raw") as source,
        create_disk(FolderStore(folder), "d.vmdk", SIZE, disk_type=DiskType.named(form)) as disk,
    ):
        copy(source, disk, target_is_zero=True)


def agrees(folder: Path, name: str, capacity: int) -> None:
    """qemu finds nothing wrong, the right size, and the bytes of ``raw``."""
    with (folder / "raw").open("r+b") as file:
        file.truncate(capacity)
    info = json.loads(run(folder, "qemu-img", "info", "--output=json", name))
    assert info["virtual-size"] == capacity
    run(folder, "qemu-img", "check", name)
    run(folder, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", "raw", name)


def copies_agree(path: Path) -> None:
    """Both copies of all tables are there and the same."""
    with open_file(path) as file:
        header = read_header(file)
        assert header.redundant
        primary, second = (
            grain_tables(file, header, place) for place in (header.directory, header.redundant_directory)
        )
        for index in range(header.tables):
            assert primary.table(index) is not None
            assert primary.table(index) == second.table(index)


@pytest.mark.parametrize("capacity", [SIZE + 512, 64 * MIB, 3 * 1024 * MIB + 512])
@pytest.mark.parametrize("maker", ["qemu", "vdkit"])
@pytest.mark.parametrize("form", FORMS)
def test_grown_disks(tmp_path: Path, form: str, maker: str, capacity: int) -> None:
    make(tmp_path, form, maker)
    store = FolderStore(tmp_path)
    grow_disk(store, "d.vmdk", capacity)
    agrees(tmp_path, "d.vmdk", capacity)
    if form == "monolithicSparse":
        copies_agree(tmp_path / "d.vmdk")
    # And it is an ordinary disk again: what is new can be written.
    with open_disk(store, "d.vmdk", writable=True) as disk:
        assert disk.capacity == capacity
        disk.write_from(capacity - 512, b"n" * 512)
        disk.write_from(SIZE - 3, b"END and more")
    with (tmp_path / "raw").open("r+b") as file:
        os.pwrite(file.fileno(), b"n" * 512, capacity - 512)
        os.pwrite(file.fileno(), b"END and more"[: capacity - SIZE + 3], SIZE - 3)
    if capacity > SIZE + 512:
        agrees(tmp_path, "d.vmdk", capacity)


@pytest.mark.witness("dissect.hypervisor", "pyvmdk")
@pytest.mark.parametrize("maker", ["qemu", "vdkit"])
def test_other_readers_read_grown_disks(tmp_path: Path, maker: str) -> None:
    import pyvmdk
    from dissect.hypervisor.disk.vmdk import VMDK

    make(tmp_path, "monolithicSparse", maker)
    capacity = 300 * MIB
    grow_disk(FolderStore(tmp_path), "d.vmdk", capacity)
    expected = (tmp_path / "raw").read_bytes().ljust(capacity, b"\0")
    with (tmp_path / "d.vmdk").open("rb") as file:
        assert VMDK(file).read(capacity) == expected
    handle = pyvmdk.handle()
    handle.open(str(tmp_path / "d.vmdk"))
    handle.open_extent_data_files()
    assert handle.get_media_size() == capacity
    assert handle.read_buffer_at_offset(capacity, 0) == expected
    handle.close()


@pytest.mark.parametrize("maker", ["qemu", "vdkit"])
@pytest.mark.parametrize("form", FORMS)
def test_shrunk_defragmented_and_renamed_disks(tmp_path: Path, form: str, maker: str) -> None:
    make(tmp_path, form, maker)
    store = FolderStore(tmp_path)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        zero = bytes(9 * MIB)
        disk.write_from(GRAIN, zero)
        disk.write_from(20 * MIB, b"x" * MIB)
    with (tmp_path / "raw").open("r+b") as file:
        os.pwrite(file.fileno(), zero, GRAIN)
        os.pwrite(file.fileno(), b"x" * MIB, 20 * MIB)
    agrees(tmp_path, "d.vmdk", SIZE)
    result = defragment_disk(store, "d.vmdk")
    agrees(tmp_path, "d.vmdk", SIZE)
    if "Sparse" in form:
        assert result.after <= result.before + 8 * MIB
        shrunk = shrink_disk(store, "d.vmdk")
        assert shrunk.after <= result.after - 8 * MIB
        agrees(tmp_path, "d.vmdk", SIZE)
    with open_disk(store, "d.vmdk", writable=True) as disk:
        write_metadata(disk, "toolsVersion", "12345")
    rename_disk(store, "d.vmdk", "another name.vmdk")
    agrees(tmp_path, "another name.vmdk", SIZE)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("d")]


@pytest.mark.parametrize("child", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE])
def test_attached_and_compacted_children(tmp_path: Path, child: DiskType) -> None:
    make(tmp_path, "monolithicSparse", "vdkit")
    store = FolderStore(tmp_path)
    create_child(store, "d.vmdk", "child.vmdk", disk_type=child)
    with (tmp_path / "raw").open("r+b") as file, open_disk(store, "child.vmdk", writable=True) as disk:
        for offset, data in ((5 * GRAIN + 7, b"child" * 40000), (30 * MIB, bytes(4 * MIB))):
            disk.write_from(offset, data)
            os.pwrite(file.fileno(), data, offset)
    agrees(tmp_path, "child.vmdk", SIZE)
    rename_disk(store, "d.vmdk", "moved.vmdk", force=True)
    assert attach_disk(store, "moved.vmdk", "child.vmdk") == ()
    agrees(tmp_path, "child.vmdk", SIZE)
    for act in (defragment_disk, shrink_disk):
        act(store, "child.vmdk")
        agrees(tmp_path, "child.vmdk", SIZE)
