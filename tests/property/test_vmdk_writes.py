"""Random writes to every kind of disk against a bytearray, over reopenings; qemu checks the result."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.vmdk import Disk, DiskType, create_child, create_disk, open_disk

GRAIN = 65536
CAPACITY = 6 * GRAIN + 3 * 512

#: What to do: write at, length, a byte to fill with (0: write zeroes), then flush / reopen / snapshot.
STEPS = st.lists(
    st.tuples(
        st.integers(0, CAPACITY - 1),
        st.one_of(st.integers(1, 2000), st.integers(1, 3 * GRAIN)),
        st.integers(0, 255),
        st.sampled_from(["", "", "", "flush", "reopen", "snapshot"]),
    ),
    max_size=12,
)


def check(disk: Disk, model: bytearray) -> None:
    seen = bytearray(CAPACITY)
    disk.read_into(0, seen)
    assert seen == model
    position = 0
    for extent in disk.extents():
        assert extent.offset == position
        position = extent.end
        assert extent.kind is not ExtentKind.ABSENT
        if extent.kind is ExtentKind.ZERO:
            assert not any(model[extent.offset : extent.end])
    assert position == CAPACITY


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("child", [DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE])
@pytest.mark.parametrize(
    "base",
    [
        DiskType.MONOLITHIC_SPARSE,
        DiskType.MONOLITHIC_FLAT,
        DiskType.SPLIT_SPARSE,
        DiskType.SPLIT_FLAT,
        DiskType.VMFS_FLAT,
        DiskType.VMFS_THIN,
    ],
)
@settings(max_examples=6)
@given(steps=STEPS)
def test_disks_hold_what_was_written(
    base: DiskType, child: DiskType, steps: list[tuple[int, int, int, str]]
) -> None:
    model = bytearray(CAPACITY)
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(folder)
        name, number = "d.vmdk", 0
        disk = create_disk(store, name, CAPACITY, disk_type=base, split=pieces(base))
        for offset, wanted, value, then in steps:
            length = min(wanted, CAPACITY - offset)
            if value:
                disk.write_from(offset, bytes([value]) * length)
            else:
                disk.write_zeroes(offset, length)
            model[offset : offset + length] = bytes([value]) * length
            if then == "flush":
                disk.flush()
            elif then:
                disk.close()
                if then == "snapshot" and number < 3:
                    number += 1
                    create_child(store, name, f"d-{number}.vmdk", disk_type=child, split=pieces(child))
                    name = f"d-{number}.vmdk"
                disk = open_disk(store, name, writable=True)
        check(disk, model)
        disk.close()
        with open_disk(store, name) as again:
            check(again, model)
        qemu_agrees(Path(folder), name, model)


def pieces(kind: DiskType) -> int | None:
    return 2 * GRAIN if kind in (DiskType.SPLIT_SPARSE, DiskType.SPLIT_FLAT) else None


def qemu_agrees(folder: Path, name: str, model: bytearray) -> None:
    (folder / "model.raw").write_bytes(model)
    for command in (
        ["qemu-img", "check", name],
        ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", "model.raw", name],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
