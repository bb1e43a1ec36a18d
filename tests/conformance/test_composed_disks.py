"""Disks that are put together from others keep the contract too: a guest's, a ticket's, a restore point."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import pytest

from vdkit.backup import Decision, Method, Repository, VmIdentity, backup_disk, begin_point, open_point
from vdkit.backup.source import FilledDevice
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryDevice
from vdkit.net.trust import Trust
from vdkit.sim.clock import ManualClock
from vdkit.sim.datastore import Datastore, split_path
from vdkit.sim.diskaccess import open_for_reading, open_for_writing
from vdkit.sim.guest_door import GuestDoor
from vdkit.sim.host import SimulatedHost
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.devices import DeviceConformance
from vdkit.testing.fixtures import HostFactory
from vdkit.vmdk import open_disk

KEY = 2000


def machine_with(folder: Path, content: bytes) -> tuple[Machine, Datastore]:
    """A running machine whose disk holds ``content``: half in the base, half in a snapshot's delta."""
    inventory = Inventory(clock=ManualClock())
    datastore = inventory.add_datastore(Datastore.from_folder("ds", folder), load=False)
    machine = inventory.create_machine("vm", "ds", [DiskSpec(len(content))])
    machine.power_on()
    half = len(content) // 2 // 512 * 512
    with machine.disk(KEY).guest() as guest:
        guest.write_from(0, content[:half])
        machine.create_snapshot("half")
        guest.write_from(half, content[half:])
    return machine, datastore


class TestGuestDevice(DeviceConformance):
    examples = 8

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        return machine_with(folder, content)[0].disk(KEY).guest()


class TestHeldForWriting(DeviceConformance):
    examples = 8

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        machine, datastore = machine_with(folder, content)
        machine.power_off()
        return open_for_writing(machine, datastore, split_path(machine.disk(KEY).file)[1])


class TestHeldForReading(DeviceConformance):
    writable = False
    examples = 8

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        machine, datastore = machine_with(folder, content)
        frozen = machine.disk(KEY).file
        machine.create_snapshot("all")
        return open_for_reading(machine, datastore, split_path(frozen)[1])


class TestRestorePoint(DeviceConformance):
    """An incremental point over a full one."""

    writable = False
    examples = 8

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        repository = Repository.create(FolderStore(folder))
        half = len(content) // 2 // 65536 * 65536
        vm = VmIdentity("vm", "5029c440-85ee-c2a1-e9dd-b63e39364603")
        before = content[:half] + bytes(b ^ 255 for b in content[half:])
        changed = RangeSet([(half, len(content) - half)])
        for disk, method, ranges in ((before, Method.FULL, None), (content, Method.CHANGES, changed)):
            with begin_point(repository, vm, clock=lambda: datetime(2026, 1, 31, tzinfo=UTC)) as writer:
                backup_disk(
                    MemoryDevice.from_bytes(disk),
                    writer,
                    key=KEY,
                    label="Hard disk 1",
                    decision=Decision(method, "a test"),
                    ranges=ranges,
                    change_id=None,
                )
                point = writer.commit()
        return open_point(repository, point, KEY)


class TestFilledDevice(DeviceConformance):
    writable = False

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        blocks = range(0, len(content), 512)
        data = RangeSet((at, 512) for at in blocks if any(content[at : at + 512]))
        junk = bytearray(b"\xee" * len(content))
        for offset, length in data:
            junk[offset : offset + length] = content[offset : offset + length]
        # Where it is not told to read, something else lies.
        return FilledDevice(MemoryDevice.from_bytes(bytes(junk)), data)


class TestSeveralExtentFiles(DeviceConformance):
    """Three extent files, one of which is used from its middle on."""

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        a, b = len(content) // 3 // 512 * 512, len(content) * 5 // 6 // 512 * 512
        for name, part in (
            ("a.bin", content[:a]),
            ("b.bin", b"\xee" * 4096 + content[a:b]),
            ("c.bin", content[b:]),
        ):
            (folder / name).write_bytes(part)
        lines = [
            f'RW {a // 512} FLAT "a.bin" 0',
            f'RW {(b - a) // 512} FLAT "b.bin" 8',
            f'RW {(len(content) - b) // 512} FLAT "c.bin" 0',
        ]
        (folder / "disk.vmdk").write_text(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
            'createType="twoGbMaxExtentFlat"\n' + "\n".join(lines) + "\n"
        )
        return open_disk(FolderStore(folder), "disk.vmdk", writable=True)


class TestGuestDoor(DeviceConformance):
    """The guest's disk over HTTPS; the disk is the host's, so each device is the same one."""

    examples = 4
    host: ClassVar[SimulatedHost]

    @pytest.fixture(autouse=True)
    def _host(self, simulated_host_factory: HostFactory) -> Iterator[None]:
        host = simulated_host_factory(machines=0)
        host.inventory.create_machine("vm", "datastore1", [DiskSpec(self.capacity)])
        host.power_on_all()
        type(self).host = host
        yield

    def make(self, folder: Path, content: bytes) -> BlockDevice:
        host = self.host
        door = GuestDoor(
            host.host,
            host.port,
            host.machine("vm").moref,
            KEY,
            user=host.user,
            password=host.password,
            trust=Trust(sha256=host.thumbprint_sha256),
        )
        door.write_from(0, content)
        return door
