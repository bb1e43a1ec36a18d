"""Any sequence of guest writes and backups: each point restores to what the disk was, by a model of bytes."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backuptools import VM
from vdkit.backup import (
    Decision,
    Method,
    Point,
    Repository,
    backup_disk,
    begin_point,
    open_point,
    restore_disk,
    verify,
)
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store

GRAIN = 1 << 16
SECTOR = 512
KEY = 2000


@dataclass
class Write:
    """A guest's write: ``fill`` 0 is zeroes as data, -1 a discard."""

    sector: int
    sectors: int
    fill: int


@dataclass
class Backup:
    """A point; ``extra`` widens the changes that tracking tells by so many sectors."""

    method: Method
    extra: int


writes = st.builds(Write, sector=st.integers(0, 2400), sectors=st.integers(1, 600), fill=st.integers(-1, 255))
backups = st.builds(
    Backup,
    method=st.sampled_from([Method.FULL, Method.CHANGES, Method.CHANGES, Method.CHANGES, Method.SCAN]),
    extra=st.sampled_from([0, 0, 1, 7, 300]),
)
sizes = st.sampled_from([SECTOR, GRAIN, 5 * GRAIN + SECTOR, 2400 * SECTOR])


class Lab:
    """A disk, a model of its bytes, and what it was at each point."""

    def __init__(self, store: Store, size: int) -> None:
        self.repository = Repository.create(store)
        self.disk = MemoryDevice(size)
        self.model = bytearray(size)
        self.changed: list[tuple[int, int]] = []
        self.points: list[tuple[Point, bytes]] = []

    def write(self, step: Write) -> None:
        start = step.sector * SECTOR
        length = min(step.sectors * SECTOR, len(self.model) - start)
        if length <= 0:
            return
        data = bytes(length) if step.fill <= 0 else bytes([step.fill]) * length
        if step.fill < 0:
            self.disk.write_zeroes(start, length)
        else:
            self.disk.write_from(start, data)
        self.model[start : start + length] = data
        self.changed.append((start, length))

    def backup(self, step: Backup) -> None:
        method = step.method if self.points else Method.FULL
        ranges = None
        if method is Method.CHANGES:
            wide = step.extra * SECTOR
            ranges = RangeSet((max(0, o - wide), n + 2 * wide) for o, n in self.changed).clip(
                0, len(self.model)
            )
        with begin_point(self.repository, VM) as writer:
            decision = Decision(method, "test")
            backup_disk(self.disk, writer, key=KEY, label="d", decision=decision, ranges=ranges)
            self.points.append((writer.commit(), bytes(self.model)))
        self.changed.clear()


@given(size=sizes, steps=st.lists(st.one_of(writes, writes, backups), max_size=12))
def test_every_point_restores_to_the_model(size: int, steps: list[Write | Backup]) -> None:
    lab = Lab(MemoryStore(), size)
    for step in steps:
        if isinstance(step, Write):
            lab.write(step)
        else:
            lab.backup(step)
    assert lab.repository.points() == [point for point, _ in lab.points]
    for point, expected in lab.points:
        target = MemoryDevice(size)
        target.write_from(0, b"\xee" * size)
        restore_disk(lab.repository, point, KEY, target)
        found = bytearray(size)
        target.read_into(0, found)
        assert found == expected
        with open_point(lab.repository, point, KEY) as device:
            # The map may not promise zeroes that are none.
            for extent in device.extents():
                if extent.kind.value == "zero":
                    assert not any(expected[extent.offset : extent.end])
    report = verify(lab.repository)
    assert report.ok, report.damages
    assert report.files == len(lab.points)


@pytest.mark.witness("qemu-img")
@settings(max_examples=12)
@given(size=sizes, steps=st.lists(st.one_of(writes, backups), min_size=4, max_size=12))
def test_qemu_img_restores_every_point_to_the_model(size: int, steps: list[Write | Backup]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(FolderStore(folder), size)
        for step in steps:
            if isinstance(step, Write):
                lab.write(step)
            else:
                lab.backup(step)
        for point, expected in lab.points:
            vmdk = Path(folder) / point.folder / point.disk(KEY).file.name
            raw = Path(folder) / "restored.raw"
            subprocess.run(["qemu-img", "convert", "-O", "raw", vmdk, raw], check=True, timeout=60)
            assert raw.read_bytes() == expected
