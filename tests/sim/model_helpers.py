"""What the tests of the simulated host's model share."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import RangeSet
from vdkit.sim.clock import ManualClock
from vdkit.sim.datastore import Datastore
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import DiskSpec, Snapshot

MIB = 1 << 20


def new_inventory(folder: Path, *, personality: str = "esx") -> Inventory:
    """A host with one datastore, ``ds``, in ``folder``; its clock stands still."""
    folder.mkdir(exist_ok=True)
    inventory = Inventory(personality=personality, clock=ManualClock())
    # No test waits for a lock that nobody will give back.
    inventory.add_datastore(Datastore.from_folder("ds", folder), load=False).locks.patience = 0
    inventory.load(inventory.datastore("ds"))
    return inventory


def new_machine(inventory: Inventory, name: str = "vm", *sizes: int, thin: bool = True) -> Machine:
    """A machine that is off, with disks of these sizes in MiB (one of 4 by default)."""
    disks = [DiskSpec(size * MIB, thin=thin) for size in sizes or (4,)]
    return inventory.create_machine(name, "ds", disks)


class Shadow:
    """A disk and what it must hold: every write goes to both."""

    def __init__(self, device: WritableDevice, seed: int = 1) -> None:
        self.device = device
        self.content = bytearray(device.capacity)
        self.random = random.Random(seed)

    def write(self, offset: int, data: bytes) -> None:
        self.device.write_from(offset, data)
        self.content[offset : offset + len(data)] = data

    def scribble(self, count: int, *, longest: int = 60_000) -> None:
        """Random writes of random lengths, whole sectors."""
        for _ in range(count):
            length = 512 * self.random.randint(1, max(1, longest // 512))
            offset = 512 * self.random.randrange((len(self.content) - length) // 512 + 1)
            if self.random.random() < 0.2:
                self.device.write_zeroes(offset, length)
                self.content[offset : offset + length] = bytes(length)
            else:
                self.write(offset, self.random.randbytes(length))

    def frozen(self) -> bytes:
        return bytes(self.content)


def content(device: BlockDevice) -> bytes:
    data = bytearray(device.capacity)
    for offset in range(0, len(data), MIB):
        device.read_into(offset, memoryview(data)[offset : offset + MIB])
    return bytes(data)


def areas(machine: Machine, key: int, change_id: str, snapshot: Snapshot | None = None) -> RangeSet:
    """All pages of QueryChangedDiskAreas."""
    start, found = 0, []
    capacity = machine.disk(key).capacity if snapshot is None else snapshot.disks[key].capacity
    while start < capacity:
        answer = machine.changed_areas(key, start, change_id, snapshot)
        found += answer.areas
        start += answer.length
    return RangeSet(found)


def differing(old: bytes, new: bytes, unit: int = 512) -> RangeSet:
    """Where two contents differ, in whole sectors; what one lacks counts as zeroes."""
    size = max(len(old), len(new))
    old, new = old.ljust(size, b"\0"), new.ljust(size, b"\0")
    return RangeSet((at, unit) for at in range(0, size, unit) if old[at : at + unit] != new[at : at + unit])


def qemu_same(vmdk: Path, expected: bytes, scratch: Path) -> None:
    """``qemu-img compare`` of a VMDK (with its parents) and raw bytes."""
    raw = scratch / "expected.raw"
    raw.write_bytes(expected)
    done = subprocess.run(
        ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", str(vmdk), str(raw)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{vmdk.name}: {done.stdout} {done.stderr}"
