"""A restore never says that it went well when a stored file is not what was stored."""

from __future__ import annotations

import random
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
    open_point,
    restore_disk,
    verify,
)
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.errors import AlreadyExists, PointInvalid, VerifyFailed
from vdkit.jobs.observer import SilentObserver
from vdkit.jobs.restore import restore_file
from vdkit.vmdk import markers

SIZE = 4 << 20
SECTOR = 512


def _two_points(folder: Path) -> tuple[Repository, list[Point]]:
    folder.mkdir()
    repository = Repository.create(FolderStore(folder))
    disk = MemoryDevice(SIZE)
    made: list[Point] = []
    for number, length in enumerate((SIZE, SIZE // 2)):
        disk.write_from(0, random.Random(number).randbytes(length))
        with begin_point(repository, VM) as writer:
            method = Method.CHANGES if made else Method.FULL
            backup_disk(
                disk,
                writer,
                key=2000,
                label="Hard disk 1",
                decision=Decision(method, "a test"),
                ranges=RangeSet([(0, length)]) if made else None,
            )
            made.append(writer.commit())
    return repository, made


def _lose_a_sector_of_the_grain_table(folder: Path, point: Point) -> None:
    """What a disk that loses a write leaves: zeroes, which the format takes for grains that are not there."""
    path = next(folder.glob(f"*/disk-2000.{point.id}.vmdk"))
    data = bytearray(path.read_bytes())
    for start in range(0, len(data), SECTOR):
        marker = markers.parse(memoryview(data)[start : start + SECTOR])
        if (marker.size, marker.kind, marker.value) == (0, markers.GT, 4):
            data[start + SECTOR : start + 2 * SECTOR] = bytes(SECTOR)
    path.write_bytes(data)


@pytest.mark.parametrize("which", [0, 1])
def test_a_lost_sector_of_a_grain_table_is_not_restored_as_zeroes_or_as_older_data(
    tmp_path: Path, which: int
) -> None:
    repository, points = _two_points(tmp_path / "repo")
    _lose_a_sector_of_the_grain_table(tmp_path / "repo", points[which])
    assert not verify(repository).ok
    with pytest.raises(VerifyFailed, match=points[which].id):
        restore_disk(repository, points[1], 2000, MemoryDevice(SIZE))
    for to in ("raw", "monolithicFlat", "streamOptimized"):
        with pytest.raises(VerifyFailed, match=points[which].id):
            restore_file(repository, points[1], 2000, tmp_path / f"{to}.vmdk", SilentObserver(), to=to)
    assert list(tmp_path.iterdir()) == [tmp_path / "repo"]


def test_a_target_that_was_there_before_survives_the_restore_that_it_stops(tmp_path: Path) -> None:
    repository, points = _two_points(tmp_path / "repo")
    _lose_a_sector_of_the_grain_table(tmp_path / "repo", points[0])
    target = tmp_path / "mine.raw"
    target.write_bytes(b"mine")
    with pytest.raises((AlreadyExists, VerifyFailed)):
        restore_file(repository, points[1], 2000, target, SilentObserver(), to="raw")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("start", [b"\xbe\xba\xfe\xca", b"COWD", b"\0\0\0\0"])
def test_a_file_that_begins_like_another_kind_is_a_damage_and_not_the_end_of_a_verification(
    tmp_path: Path, start: bytes
) -> None:
    repository, points = _two_points(tmp_path / "repo")
    path = next((tmp_path / "repo").glob(f"*/disk-2000.{points[1].id}.vmdk"))
    path.write_bytes(start + path.read_bytes()[len(start) :])
    report = verify(repository)
    assert report.affected == (points[1].id,)
    with pytest.raises(PointInvalid):
        open_point(repository, points[1], 2000)


def test_points_of_a_machine_are_found_by_its_uuid_in_either_case(tmp_path: Path) -> None:
    repository, points = _two_points(tmp_path / "repo")
    for text in (VM.uuid, VM.uuid.upper(), VM.name):
        assert [point.id for point in repository.points(text)] == [point.id for point in points]
