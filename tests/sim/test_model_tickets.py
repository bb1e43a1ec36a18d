"""Tickets: what they open, for whom, how often and how long, and how a refusal is worded."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import MIB, Shadow, content, new_inventory, new_machine

from vdkit.block.device import WritableDevice
from vdkit.errors import ReadOnly
from vdkit.sim.clock import ManualClock
from vdkit.sim.faults import InvalidArgument
from vdkit.sim.inventory import Inventory
from vdkit.sim.locks import LockMode
from vdkit.sim.machine import Machine
from vdkit.sim.ports import Grant, Refusal, TicketOffice
from vdkit.sim.tickets import Access, TicketBox

KEY = 2000
LEAF = "[ds] vm/vm.vmdk"
MULTIWRITER = "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode"
LOCKED = "DiskLib error 16392: Failed to lock the file"


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return new_inventory(tmp_path / "ds")


@pytest.fixture
def machine(inventory: Inventory) -> Machine:
    return new_machine(inventory, "vm", 4, 2)


@pytest.fixture
def box(inventory: Inventory) -> TicketBox:
    return TicketBox(inventory, lifetime=60)


def grant(box: TicketBox, machine: Machine, access: Access, key: int | None = KEY) -> Grant:
    found = box.redeem(box.issue(access, machine, key).reveal())
    assert found is not None
    return found


def refusal(found: Grant, path: str, *, writable: bool = False) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        found.open(path, writable=writable)
    return caught.value.code, caught.value.text


def test_a_ticket_is_used_once_and_not_after_its_time(
    inventory: Inventory, box: TicketBox, machine: Machine
) -> None:
    office: TicketOffice = box
    one, two, late = (box.issue(Access.MACHINE_FILES, machine) for _ in range(3))
    assert len({one.reveal(), two.reveal(), late.reveal()}) == 3
    assert office.redeem(one.reveal()) is not None
    assert office.redeem(one.reveal()) is None
    assert office.redeem("52000000-0000-0000-0000-000000000000") is None
    assert isinstance(inventory.clock, ManualClock)
    inventory.clock.advance(59)
    assert office.redeem(two.reveal()) is not None
    inventory.clock.advance(1)
    assert office.redeem(late.reveal()) is None
    assert one.reveal() not in repr(one)


def test_a_ticket_for_a_disk_needs_that_disk(box: TicketBox, machine: Machine) -> None:
    for key in (None, 2007):
        with pytest.raises(InvalidArgument, match="deviceKey"):
            box.issue(Access.READ_DISK, machine, key)


def test_a_read_only_ticket_does_not_write(box: TicketBox, machine: Machine) -> None:
    for access in (Access.MACHINE_FILES, Access.READ_DISK):
        code, text = refusal(grant(box, machine, access), LEAF, writable=True)
        assert (code, "permission check failed" in text) == (11, True)
    with grant(box, machine, Access.READ_DISK).open(LEAF, writable=False) as device:
        assert device.capacity == 4 * MIB
        assert isinstance(device, WritableDevice)
        with pytest.raises(ReadOnly):
            device.write_from(0, bytes(512))


def test_another_machines_disk_and_another_disk_are_refused(
    inventory: Inventory, box: TicketBox, machine: Machine
) -> None:
    new_machine(inventory, "other")
    code, text = refusal(grant(box, machine, Access.MACHINE_FILES), "[ds] other/other.vmdk")
    assert code == 11
    assert text == (
        "NfcAioProcessOpenFileMsg: permission check failed for file '[ds] other/other.vmdk', access = 1"
    )
    one_disk = grant(box, machine, Access.READ_DISK)
    assert refusal(one_disk, "[ds] vm/vm_1.vmdk")[0] == 11
    assert refusal(grant(box, machine, Access.WRITE_DISK), "[ds] vm/vm_1.vmdk", writable=True)[0] == 11
    with grant(box, machine, Access.MACHINE_FILES).open("[ds] vm/vm_1.vmdk", writable=False) as device:
        assert device.capacity == 2 * MIB


@pytest.mark.parametrize("path", ["[ds] vm/none.vmdk", "[other] vm/vm.vmdk", "nonsense", "[ds] ../x"])
def test_what_is_not_there_is_refused(box: TicketBox, machine: Machine, path: str) -> None:
    _, text = refusal(grant(box, machine, Access.MACHINE_FILES), path)
    assert path in text
    assert ("permission" if ".." in path else "cannot find") in text


def test_the_leaf_of_a_running_machine_is_refused_and_the_frozen_link_opens(
    box: TicketBox, machine: Machine
) -> None:
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(10)
    reader = grant(box, machine, Access.MACHINE_FILES)
    writer = grant(box, machine, Access.WRITE_DISK)
    assert MULTIWRITER in refusal(reader, LEAF)[1]
    assert MULTIWRITER in refusal(writer, LEAF, writable=True)[1]
    frozen = disk.frozen()
    machine.create_snapshot("one")
    disk.scribble(10)
    second = disk.frozen()
    machine.create_snapshot("two")
    disk.scribble(10)
    assert MULTIWRITER in refusal(reader, "[ds] vm/vm-000002.vmdk")[1]
    for path, expected in ((LEAF, frozen), ("[ds] vm/vm-000001.vmdk", second)):
        with reader.open(path, writable=False) as device:
            assert device.capacity == 4 * MIB
            assert content(device) == expected
        # Writing below somebody else's feet is refused, running or not.
        assert refusal(writer, path, writable=True)[0] == 11


def test_a_disk_that_is_off_is_written_alone(box: TicketBox, machine: Machine) -> None:
    writer = grant(box, machine, Access.WRITE_DISK)
    with writer.open(LEAF, writable=True) as device:
        assert isinstance(device, WritableDevice)
        device.write_many([(0, b"a" * 512), (MIB, b"b" * 512)])
        device.write_zeroes(512, 512)
        device.flush()
        assert LOCKED in refusal(grant(box, machine, Access.READ_DISK), LEAF)[1]
        assert LOCKED in refusal(writer, LEAF, writable=True)[1]
    with grant(box, machine, Access.READ_DISK).open(LEAF, writable=False) as device:
        assert content(device)[MIB : MIB + 512] == b"b" * 512
        assert LOCKED in refusal(writer, LEAF, writable=True)[1]
    machine.create_snapshot("s")
    with writer.open("[ds] vm/vm-000001.vmdk", writable=True) as device:
        assert isinstance(device, WritableDevice)
        device.write_from(0, b"c" * 512)
    with writer.open(LEAF, writable=False) as device:
        assert content(device)[:512] == b"a" * 512
    with writer.open("[ds] vm/vm-000001.vmdk", writable=False) as device:
        assert content(device)[:512] == b"c" * 512


def test_a_file_that_is_being_downloaded_does_not_open(box: TicketBox, machine: Machine) -> None:
    with machine.datastore.locks.acquire([("vm/vm.vmdk", LockMode.BROWSE)], "a download"):
        assert LOCKED in refusal(grant(box, machine, Access.READ_DISK), LEAF)[1]


def test_a_ticket_outlives_a_snapshot_and_closing_gives_the_files_back(
    box: TicketBox, machine: Machine
) -> None:
    found = grant(box, machine, Access.READ_DISK)
    machine.power_on()
    snapshot = machine.create_snapshot("s")
    device = found.open(LEAF, writable=False)
    assert machine.datastore.locks.holder("vm/vm.vmdk") is not None
    device.close()
    machine.remove_snapshot(snapshot)
    machine.power_off()
    assert machine.datastore.locks.holder("vm/vm.vmdk") is None


def test_the_disk_database_of_a_chain_is_told(box: TicketBox, machine: Machine) -> None:
    machine.create_snapshot("s")
    found = box.redeem(box.issue(Access.MACHINE_FILES, machine).reveal())
    from vdkit.sim.ports import DiskDatabase

    assert isinstance(found, DiskDatabase)
    database = found.disk_database("[ds] vm/vm-000001.vmdk")
    assert database["adapterType"] == "lsilogic"
    assert database["thinProvisioned"] == "1"
    with pytest.raises(Refusal):
        found.disk_database("[ds] other/x.vmdk")
