"""Every point is a disk to other people's tools: qemu-img and dissect read what we restore."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from pathlib import Path

import pytest

from backuptools import VM
from vdkit.backup import (
    Decision,
    Method,
    Point,
    Repository,
    backup_disk,
    begin_point,
    content_sha256,
    open_point,
)
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore, open_file
from vdkit.block.memory import MemoryDevice

MIB = 1 << 20
GRAIN = 1 << 16
KEY = 2000
#: Not whole grains; whole units of 8 KiB, because dissect cannot read the tail of other sizes.
SIZE = 96 * MIB + 3 * 8192


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, list[tuple[Point, str]]]:
    """A chain of a full point and three incrementals, and the SHA-256 of the disk at each."""
    repository = Repository.create(FolderStore(tmp_path_factory.mktemp("repository")))
    disk = MemoryDevice(SIZE)
    noise = random.Random(11)
    for offset in range(0, SIZE - 3 * GRAIN, 7 * GRAIN):
        disk.write_from(offset, noise.randbytes(GRAIN) + b"text " * 5000)
    changes: list[RangeSet | None] = [
        None,
        RangeSet([(0, 3 * GRAIN), (SIZE - 512, 512)]),
        RangeSet((offset, 4096) for offset in range(0, SIZE - 4096, 31 * GRAIN)),
        RangeSet(),
    ]
    points = []
    for ranges in changes:
        for number, (offset, length) in enumerate(ranges or ()):
            if number % 3 == 0:
                disk.write_zeroes(offset, length)
            else:
                disk.write_from(offset, noise.randbytes(length))
        method = Method.FULL if ranges is None else Method.CHANGES
        with begin_point(repository, VM) as writer:
            backup_disk(disk, writer, key=KEY, label="d", decision=Decision(method, "test"), ranges=ranges)
            points.append((writer.commit(), content_sha256(disk)))
    return repository, points


def path_of(repository: Repository, point: Point) -> Path:
    return Path(repository.name) / point.folder / point.disk(KEY).file.name


@pytest.mark.witness("qemu-img")
def test_qemu_img_reads_every_point_with_its_parents(
    made: tuple[Repository, list[tuple[Point, str]]], tmp_path: Path
) -> None:
    repository, points = made
    for point, sha256 in points:
        raw = tmp_path / f"{point.id}.raw"
        subprocess.run(
            ["qemu-img", "convert", "-O", "raw", path_of(repository, point), raw], check=True, timeout=120
        )
        with open_file(raw) as device:
            assert device.capacity == SIZE
            assert content_sha256(device) == sha256
        with open_point(repository, point, KEY) as device:
            assert content_sha256(device) == sha256
        raw.unlink()


@pytest.mark.witness("qemu-img")
def test_qemu_img_sees_the_chain_by_plain_names(made: tuple[Repository, list[tuple[Point, str]]]) -> None:
    repository, points = made
    answer = subprocess.run(
        ["qemu-img", "info", "--output=json", "--backing-chain", path_of(repository, points[-1][0])],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    chain = json.loads(answer.stdout)
    assert len(chain) == len(points)
    for info, (point, _) in zip(reversed(chain), points, strict=True):
        assert Path(info["filename"]).name == point.disk(KEY).file.name
        assert info["format-specific"]["data"]["create-type"] == "streamOptimized"
        extent = info["format-specific"]["data"]["extents"][0]
        assert extent["compressed"]
    hints = [info["backing-filename"] for info in chain[:-1]]
    assert all("/" not in hint for hint in hints)


@pytest.mark.witness("dissect.hypervisor")
def test_dissect_reads_every_point(made: tuple[Repository, list[tuple[Point, str]]]) -> None:
    from dissect.hypervisor.disk.vmdk import VMDK

    repository, points = made
    for point, sha256 in points:
        disk = VMDK(path_of(repository, point))
        assert hashlib.sha256(disk.read(SIZE)).hexdigest() == sha256


@pytest.mark.witness("sha256sum")
def test_the_manifest_gives_what_sha256sum_gives(made: tuple[Repository, list[tuple[Point, str]]]) -> None:
    repository, points = made
    for point, _ in points:
        folder = Path(repository.name) / point.folder
        for disk in json.loads((folder / f"{point.id}.json").read_text())["disks"]:
            lines = "".join(f"{disk[f]['sha256']}  {disk[f]['name']}\n" for f in ("file", "map"))
            subprocess.run(
                ["sha256sum", "--check", "--strict"],
                cwd=folder,
                input=lines,
                text=True,
                check=True,
                timeout=60,
                capture_output=True,
            )
