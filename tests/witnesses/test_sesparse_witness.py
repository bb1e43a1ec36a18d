"""qemu and dissect read seSparse deltas too: on our fixtures all three must see the same bytes."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest

from vdkit.block.local import FolderStore
from vdkit.disklib.local import convert
from vdkit.testing.sesparse import GRAIN, Hollow, write_sesparse
from vdkit.vmdk import DiskType, create_child, create_disk, open_disk
from vdkit.vmdk.template import Parent

CAPACITY = 36 << 20


def run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def chain(folder: Path, *, unmapped: bool) -> Path:
    """vmfs base, seSparse delta, vmfsSparse delta, seSparse leaf: all that ESXi mixes."""
    store = FolderStore(folder)
    dice = random.Random(8)
    with create_disk(store, "vm.vmdk", CAPACITY, disk_type=DiskType.VMFS_THIN) as disk:
        for _ in range(20):
            disk.write_from(dice.randrange(CAPACITY - 99999), dice.randbytes(99999))
        cid = disk.info.cid
    hollow = list(Hollow) if unmapped else [Hollow.ZERO]

    def grains() -> dict[int, bytes | Hollow]:
        numbers = dice.sample(range(CAPACITY // GRAIN), 900)
        return {n: dice.choice(hollow) if dice.random() < 0.3 else dice.randbytes(GRAIN) for n in numbers}

    write_sesparse(store, "vm-000001.vmdk", CAPACITY, grains(), parent=Parent(cid, "vm.vmdk"), cid=77, seed=1)
    create_child(store, "vm-000001.vmdk", "vm-000002.vmdk", disk_type=DiskType.VMFS_SPARSE)
    with open_disk(store, "vm-000002.vmdk", writable=True) as disk:
        for _ in range(20):
            disk.write_from(dice.randrange(CAPACITY - 9999), dice.randbytes(9999))
        cid = disk.info.cid
    write_sesparse(store, "vm-000003.vmdk", CAPACITY, grains(), parent=Parent(cid, "vm-000002.vmdk"), seed=2)
    return folder / "vm-000003.vmdk"


@pytest.mark.witness("qemu-img")
def test_qemu_sees_the_same_bytes(tmp_path: Path) -> None:
    leaf = chain(tmp_path, unmapped=True)
    convert(leaf, tmp_path / "d.raw", to="raw")
    run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", tmp_path / "d.raw", leaf)


@pytest.mark.witness("qemu-img")
def test_qemu_sees_the_same_map(tmp_path: Path) -> None:
    write_sesparse(
        FolderStore(tmp_path),
        "d.vmdk",
        CAPACITY,
        {0: b"x" * GRAIN, 1: b"y" * GRAIN, 2: Hollow.ZERO, 9: Hollow.UNMAPPED, 5000: b"z" * GRAIN},
    )
    theirs = json.loads(run("qemu-img", "map", "--output=json", "-f", "vmdk", tmp_path / "d.vmdk"))
    data = {
        n for run in theirs if run["data"] for n in range(run["start"], run["start"] + run["length"], GRAIN)
    }
    with open_disk(FolderStore(tmp_path), "d.vmdk") as disk:
        ours = {n for e in disk.extents() if e.kind.value == "data" for n in range(e.offset, e.end, GRAIN)}
    assert ours == data == {0, GRAIN, 5000 * GRAIN}


@pytest.mark.witness("qemu-img")
def test_qemu_refuses_a_waiting_journal_too(tmp_path: Path) -> None:
    write_sesparse(FolderStore(tmp_path), "d.vmdk", CAPACITY, {}, journal_waits=True)
    done = subprocess.run(
        ["qemu-img", "info", str(tmp_path / "d.vmdk")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0 and "journal" in done.stderr


@pytest.mark.witness("dissect.hypervisor")
def test_dissect_sees_the_same_bytes(tmp_path: Path) -> None:
    """Without unmapped grains: there dissect shows what is below, where a guest sees zeroes."""
    from dissect.hypervisor.disk.vmdk import VMDK

    leaf = chain(tmp_path, unmapped=False)
    convert(leaf, tmp_path / "d.raw", to="raw")
    theirs = VMDK(leaf)
    assert theirs.size == CAPACITY
    theirs.seek(0)
    assert theirs.read(CAPACITY) == (tmp_path / "d.raw").read_bytes()
