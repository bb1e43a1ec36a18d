"""Disks of every size go through the whole pipeline: backup, increment, verification, restore."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from job_helpers import Listener, new_repository, open_point, session_of, snapshots_left

from vdkit.backup import Kind, verify
from vdkit.block.device import BlockDevice
from vdkit.disklib.opening import open_local
from vdkit.jobs.backup import backup_machine
from vdkit.jobs.restore import restore_file, restore_machine
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory

pytestmark = pytest.mark.usefixtures("no_leaks")

SECTOR = 512
GRAIN = 1 << 16
TIB = 1 << 40


def _places(capacity: int) -> list[int]:
    """Sectors at the borders of whatever counts in 4 GiB, 2 TiB, grains or tails."""
    wanted = [0, GRAIN - SECTOR, capacity // 2 // SECTOR * SECTOR, capacity - GRAIN, capacity - SECTOR]
    wanted += [border + shift for border in (1 << 32, 2 * TIB) for shift in (-SECTOR, 0)]
    return sorted({place for place in wanted if 0 <= place <= capacity - SECTOR})


def _check(disk: BlockDevice, content: dict[int, bytes]) -> None:
    """Every sector that was written, and its neighbours near and far, which were not."""
    found = bytearray(SECTOR)
    near = {place + shift for place in content for shift in (-GRAIN, -SECTOR, 0, SECTOR, GRAIN)}
    for place in sorted(p for p in near if 0 <= p <= disk.capacity - SECTOR):
        disk.read_into(place, found)
        assert bytes(found) == content.get(place, bytes(SECTOR)), place


@pytest.mark.parametrize(
    "capacity",
    [
        SECTOR,
        GRAIN + SECTOR,
        (1 << 32) + GRAIN - SECTOR,
        2 * TIB,  # one sector more than a vmfsSparse delta can hold
        3 * TIB + 7 * SECTOR,
    ],
)
def test_a_disk_of_any_size_comes_back(
    simulated_host_factory: HostFactory, tmp_path: Path, capacity: int
) -> None:
    host = simulated_host_factory()
    machine = host.inventory.create_machine("odd", "datastore1", [DiskSpec(capacity=capacity)])
    machine.power_on()
    guest = machine.disk(2000).guest()
    content: dict[int, bytes] = {}

    def write(place: int, data: bytes) -> None:
        guest.write_from(place, data)
        content[place] = data

    made = random.Random(capacity)
    for place in _places(capacity):
        write(place, made.randbytes(SECTOR))
    repository = new_repository(tmp_path / "repo")
    with session_of(host) as session:
        backup_machine(session, "odd", repository, Listener())
        for place in _places(capacity)[::2]:
            write(place, made.randbytes(SECTOR))
        write(_places(capacity)[-1], bytes(SECTOR))
        point = backup_machine(session, "odd", repository, Listener()).point
        assert point.kind is Kind.INCREMENTAL
        with open_point(repository, point, 2000) as disk:
            _check(disk, content)
        assert verify(repository).ok
        restore_machine(session, repository, point, "back", Listener(), verify=True)
    with open_local(tmp_path / "simulated-host-1" / "back" / "back.vmdk") as disk:
        assert disk.capacity == capacity
        _check(disk, content)
    restore_file(repository, point, 2000, tmp_path / "a.vmdk", Listener(), to="streamOptimized", verify=True)
    with open_local(tmp_path / "a.vmdk") as disk:
        _check(disk, content)
    assert snapshots_left(host, "odd") == []
