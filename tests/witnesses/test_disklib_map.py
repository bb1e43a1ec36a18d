"""The allocation map against qemu-img's, run for run: depth, data, zeroes, and where the bytes lie."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vdkit.block.local import FolderStore
from vdkit.disklib.local import allocation_map, convert
from vdkit.vmdk import DiskType, create_child, open_disk

pytestmark = pytest.mark.witness("qemu-img")
MIB = 1 << 20
#: What each byte of the disk is, by grain.
STEP = 65536


def theirs(path: Path, kind: str) -> list[dict[str, Any]]:
    command = ["qemu-img", "map", "--output=json", "-f", kind, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def points(entries: list[Any]) -> list[tuple[int, int, bool, bool, int | None]]:
    """``(offset, depth, zero, data, offset in the file)`` of every step: how runs are joined is nobody's
    business."""
    found = []
    for entry in entries:
        for position in range(entry["start"], entry["start"] + entry["length"], STEP):
            place = entry.get("offset")
            if place is not None:
                place += position - entry["start"]
            found.append(
                (position, entry["depth"], entry["zero"], entry["data"], place if entry["data"] else None)
            )
    return found


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "source.raw"
    with open(path, "wb") as file:
        for start in (0, 3, 4, 40, 90):
            file.seek(start * MIB)
            file.write(random.Random(start).randbytes(MIB))
        file.truncate(96 * MIB)
    return path


@pytest.mark.parametrize(
    "kind",
    ["raw", "monolithicSparse", "monolithicFlat", "vmfs", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"],
)
def test_every_type_maps_as_qemu_maps_it(raw: Path, tmp_path: Path, kind: str) -> None:
    path = raw
    if kind != "raw":
        path = tmp_path / "disk.vmdk"
        split = 32 * MIB if kind.startswith("twoGb") else None
        convert(raw, path, to=kind, split=split)
    ours = allocation_map(path)
    assert points(ours) == points(theirs(path, "raw" if kind == "raw" else "vmdk"))
    assert sum(entry["length"] for entry in ours) == 96 * MIB
    named = {Path(entry["filename"]).name for entry in ours if "filename" in entry}
    assert all((tmp_path / name).exists() for name in named)
    content = raw.read_bytes()
    for entry in ours:
        if entry["data"]:
            with open(entry["filename"], "rb") as file:
                file.seek(entry["offset"])
                start = entry["start"]
                assert file.read(entry["length"]) == content[start : start + entry["length"]]


def test_a_stream_is_compressed(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    convert(raw, path, to="streamOptimized")
    ours = allocation_map(path)
    assert points([{**entry, "offset": None} for entry in ours]) == points(
        [{**entry, "offset": None} for entry in theirs(path, "vmdk")]
    )
    assert {entry["compressed"] for entry in ours if entry["data"]} == {True}
    assert all("offset" not in entry for entry in ours)


@pytest.mark.parametrize("base", ["monolithicSparse", "vmfs", "twoGbMaxExtentFlat", "streamOptimized"])
@pytest.mark.parametrize("child", [DiskType.MONOLITHIC_SPARSE, DiskType.VMFS_SPARSE])
def test_a_chain_of_three_links(raw: Path, tmp_path: Path, child: DiskType, base: str) -> None:
    store = FolderStore(tmp_path)
    convert(raw, tmp_path / "base.vmdk", to=base, split=32 * MIB if base.startswith("twoGb") else None)
    parent = "base.vmdk"
    for number in (1, 2):
        name = f"child{number}.vmdk"
        create_child(store, parent, name, disk_type=child)
        with open_disk(store, name, writable=True) as disk:
            disk.write_from((number * 4) * MIB, random.Random(number).randbytes(2 * MIB))
            disk.write_from(50 * MIB, random.Random(number + 7).randbytes(MIB))
        parent = name
    ours = allocation_map(tmp_path / "child2.vmdk")
    assert {entry["depth"] for entry in ours} == {0, 1, 2}
    assert points(ours) == points(theirs(tmp_path / "child2.vmdk", "vmdk"))
