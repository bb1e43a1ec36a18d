"""Defects of the simulated host's disks that a review found."""

from __future__ import annotations

from pathlib import Path

from model_helpers import MIB, new_inventory, new_machine

from vdkit.sim import diskaccess
from vdkit.sim.links import open_frozen
from vdkit.sim.machine import Machine
from vdkit.sim.ports import Refusal


def test_a_disk_cannot_be_opened_for_writing_while_a_snapshot_freezes_it(tmp_path: Path) -> None:
    """Else the data port goes on writing to the link that the snapshot has just promised to keep."""
    inventory = new_inventory(tmp_path / "ds")
    machine = new_machine(inventory)
    refused: list[Refusal] = []

    def meddle(event: str, _machine: Machine) -> None:
        if event != "stun":
            return
        try:
            opened.append(diskaccess.open_for_writing(machine, machine.datastore, "vm/vm.vmdk"))
        except Refusal as refusal:
            refused.append(refusal)

    opened: list[object] = []
    inventory.hook = meddle
    snapshot = machine.create_snapshot("one")
    assert refused and not opened
    with diskaccess.open_for_writing(machine, machine.datastore, machine.disk(2000).leaf) as device:
        device.write_from(0, b"\1" * MIB)
    frozen = snapshot.disks[2000].file.split("] ")[1]
    found = bytearray(MIB)
    with open_frozen(machine.datastore, frozen) as device:
        device.read_into(0, found)
    assert not any(found)
