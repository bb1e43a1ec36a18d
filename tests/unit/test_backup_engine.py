"""Full, incremental and scanned backups of disks, restored and compared."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backuptools import VM
from vdkit.backup import (
    Decision,
    Method,
    Phase,
    Point,
    PointWriter,
    Repository,
    backup_disk,
    begin_point,
    content_sha256,
    open_point,
    restore_disk,
    verify,
)
from vdkit.block.compare import compare
from vdkit.block.copy import CopyProgress
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice, MemoryStore
from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.errors import Cancelled, UsageError

MIB = 1 << 20
GRAIN = 1 << 16
KEY = 2000


@pytest.fixture(params=["folder", "memory"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    store: Store = FolderStore(tmp_path) if request.param == "folder" else MemoryStore()
    return Repository.create(store)


def make_disk(size: int, seed: int = 1) -> MemoryDevice:
    """A disk with data, zeroes written as data, and holes."""
    disk = MemoryDevice(size, name=f"disk {seed}")
    noise = random.Random(seed)
    for start in range(0, size, 5 * GRAIN):
        disk.write_from(start, noise.randbytes(min(2 * GRAIN + 512, size - start)))
        if start + 3 * GRAIN < size:
            disk.write_from(start + 3 * GRAIN, bytes(512))
    return disk


def content(device: BlockDevice) -> bytes:
    data = bytearray(device.capacity)
    device.read_into(0, data)
    return bytes(data)


def backup(
    repository: Repository, disk: BlockDevice, method: Method, ranges: RangeSet | None = None
) -> Point:
    with begin_point(repository, VM) as writer:
        backup_disk(
            disk, writer, key=KEY, label="Hard disk 1", decision=Decision(method, "test"), ranges=ranges
        )
        return writer.commit()


def restored(repository: Repository, point: Point) -> bytes:
    target = MemoryDevice(point.disk(KEY).capacity)
    restore_disk(repository, point, KEY, target, target_is_zero=True)
    with open_point(repository, point, KEY) as device:
        assert content(device) == content(target)
    return content(target)


@pytest.mark.parametrize("size", [512, GRAIN, GRAIN + 512, 3 * MIB, 40 * MIB + 7 * 512])
def test_full_and_incremental_of_any_size(repository: Repository, size: int) -> None:
    disk = make_disk(size)
    first_content = content(disk)
    first = backup(repository, disk, Method.FULL)
    end = size // 512 * 512
    disk.write_from(end - 512, b"z" * 512)
    disk.write_zeroes(0, min(GRAIN, size - 512) // 512 * 512)
    second = backup(repository, disk, Method.CHANGES, RangeSet([(0, min(GRAIN, size)), (end - 512, 512)]))
    assert restored(repository, first) == first_content
    assert restored(repository, second) == content(disk)
    report = verify(repository)
    assert report.ok, report.damages
    assert (report.points, report.files) == (2, 2)


def test_an_empty_disk_and_an_empty_incremental_are_points(repository: Repository) -> None:
    disk = MemoryDevice(8 * MIB)
    first = backup(repository, disk, Method.FULL)
    second = backup(repository, disk, Method.CHANGES, RangeSet())
    third = backup(repository, disk, Method.SCAN)
    for point in (first, second, third):
        assert restored(repository, point) == bytes(8 * MIB)
        assert point.disk(KEY).read == 0
    assert verify(repository).ok


def test_what_became_zero_is_stored_as_zero(repository: Repository) -> None:
    disk = MemoryDevice(4 * MIB)
    disk.write_from(0, b"x" * (4 * MIB))
    backup(repository, disk, Method.FULL)
    disk.write_zeroes(MIB, MIB)  # a hole in the map
    disk.write_from(3 * MIB, bytes(GRAIN))  # zeroes as data
    second = backup(repository, disk, Method.CHANGES, RangeSet([(MIB, MIB), (3 * MIB, GRAIN)]))
    assert restored(repository, second) == content(disk)
    record = second.disk(KEY)
    assert record.changed == record.zero == MIB + GRAIN
    assert record.read < MIB + GRAIN, "holes are not read"


def test_a_scan_stores_exactly_what_differs(repository: Repository) -> None:
    disk = make_disk(16 * MIB)
    backup(repository, disk, Method.FULL)
    disk.write_from(5 * MIB + 100, b"new")
    disk.write_zeroes(0, GRAIN)
    phases: set[Phase] = set()
    with begin_point(repository, VM) as writer:
        record = backup_disk(
            disk,
            writer,
            key=KEY,
            label="Hard disk 1",
            decision=Decision(Method.SCAN, "test"),
            progress=lambda phase, _state: phases.add(phase),
        )
        point = writer.commit()
    assert record.changed == 2 * GRAIN
    assert phases == {Phase.COMPARE, Phase.COPY}
    assert restored(repository, point) == content(disk)
    assert verify(repository).ok


def test_bareos_2009_disks_beyond_two_tebibytes(repository: Repository) -> None:
    tebi = 1 << 40
    size = 3 * tebi + 512
    places = (0, tebi - 256, 2 * tebi - 512, 2 * tebi, 2 * tebi + (128 << 30), size - 512)
    disk = MemoryDevice(size)
    for place in places:
        disk.write_from(place, b"first" * 60)
    first = backup(repository, disk, Method.FULL)
    changed = RangeSet((place, 300) for place in places[1:])
    for place, _ in changed:
        disk.write_from(place, b"later" * 60)
    second = backup(repository, disk, Method.CHANGES, changed)
    third = backup(repository, disk, Method.SCAN)
    assert third.disk(KEY).changed == 0
    assert verify(repository).ok
    target = MemoryDevice(size)
    restore_disk(repository, second, KEY, target, target_is_zero=True)
    assert compare(target, disk) is None
    with open_point(repository, first, KEY) as before:
        assert compare(before, disk) == places[1]


def test_scattered_changes_and_several_disks_in_one_point(repository: Repository) -> None:
    disks = {2000: make_disk(8 * MIB, 1), 2001: make_disk(9 * MIB, 2)}

    def run(method: Method, ranges: RangeSet | None) -> Point:
        with begin_point(repository, VM) as writer:
            for key, disk in disks.items():
                decision = Decision(method, "test")
                backup_disk(disk, writer, key=key, label=f"d{key}", decision=decision, ranges=ranges)
            return writer.commit()

    run(Method.FULL, None)
    offsets = range(100, 8 * MIB, 3 * GRAIN)
    for disk in disks.values():
        for offset in offsets:
            disk.write_from(offset, b"changed")
    point = run(Method.CHANGES, RangeSet((offset, 7) for offset in offsets))
    for key, disk in disks.items():
        assert point.disk(key).changed == 7 * len(offsets)
        assert point.disk(key).read == GRAIN * len(offsets)
        with open_point(repository, point, key) as device:
            assert content(device) == content(disk)
    assert verify(repository).ok


def test_a_disk_that_failed_can_be_tried_again_in_the_same_point(repository: Repository) -> None:
    class Flaky(MemoryDevice):
        def _read_into(self, offset: int, view: memoryview) -> None:
            raise Cancelled("cut")

    good = make_disk(4 * MIB)
    bad = Flaky.from_bytes(content(good))
    with begin_point(repository, VM) as writer:
        decision = Decision(Method.FULL, "test")
        with pytest.raises(Cancelled):
            backup_disk(bad, writer, key=KEY, label="a", decision=decision)
        backup_disk(good, writer, key=KEY, label="a", decision=decision)
        point = writer.commit()
    assert restored(repository, point) == content(good)


def test_cancelling_leaves_no_point(repository: Repository) -> None:
    token = CancelToken()

    def stop(_phase: Phase, _state: CopyProgress) -> None:
        token.cancel()

    with pytest.raises(Cancelled), begin_point(repository, VM) as writer:
        token.cancel()
        backup_disk(
            make_disk(4 * MIB),
            writer,
            key=KEY,
            label="a",
            decision=Decision(Method.FULL, "test"),
            progress=stop,
            cancel=token,
        )
    assert repository.points() == []


def _refused(writer: PointWriter, disk: BlockDevice, method: Method, ranges: RangeSet | None) -> str:
    with pytest.raises(UsageError) as caught:
        backup_disk(disk, writer, key=KEY, label="a", decision=Decision(method, "t"), ranges=ranges)
    return str(caught.value)


def test_what_cannot_work_is_refused_before_anything_is_read(repository: Repository) -> None:
    disk = make_disk(2 * MIB)
    some = RangeSet([(0, 1)])
    with begin_point(repository, VM) as writer:
        assert "no complete restore point" in _refused(writer, disk, Method.CHANGES, some)
        assert "no complete restore point" in _refused(writer, disk, Method.SCAN, None)
        assert "changed ranges belong" in _refused(writer, disk, Method.FULL, some)
        assert "not a multiple" in _refused(writer, MemoryDevice(1000), Method.FULL, None)
        assert "not a multiple" in _refused(writer, MemoryDevice(0), Method.FULL, None)
    backup(repository, disk, Method.FULL)
    with begin_point(repository, VM) as writer:
        assert "changed ranges belong" in _refused(writer, disk, Method.CHANGES, None)
        assert "beyond its" in _refused(writer, disk, Method.CHANGES, RangeSet([(2 * MIB, 1)]))
        assert "another size" in _refused(writer, make_disk(4 * MIB), Method.CHANGES, some)


def test_a_target_that_is_too_small_is_refused_and_a_larger_one_keeps_its_tail(
    repository: Repository,
) -> None:
    disk = make_disk(2 * MIB)
    point = backup(repository, disk, Method.FULL)
    with pytest.raises(UsageError, match="at least as large"):
        restore_disk(repository, point, KEY, MemoryDevice(MIB))
    target = MemoryDevice(3 * MIB)
    target.write_from(0, b"\xff" * (3 * MIB))
    restore_disk(repository, point, KEY, target)
    assert content(target) == content(disk) + b"\xff" * MIB


def test_content_sha256_is_that_of_a_raw_copy() -> None:
    import hashlib

    for size in (0, 512, 3 * MIB + 512, 20 * MIB):
        disk = make_disk(size)
        assert content_sha256(disk) == hashlib.sha256(content(disk)).hexdigest()
    assert content_sha256(MemoryDevice(MIB)) == hashlib.sha256(bytes(MIB)).hexdigest()


def test_a_vmdk_is_hashed_on_its_way_and_not_read_again(repository: Repository) -> None:
    from vdkit.backup.partial import PartialStore

    seen: list[bool] = []
    original = PartialStore.sha256

    def spy(store: PartialStore, name: str) -> tuple[int, str]:
        seen.append(store._made[name].in_order)
        return original(store, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialStore, "sha256", spy)
        backup(repository, make_disk(40 * MIB), Method.FULL)
    assert seen == [True]
    assert verify(repository).ok
