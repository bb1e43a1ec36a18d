"""Machines moved between datastores: bytes, snapshots and change tracking, and who is kept from it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim
from simclients import disks, done, find_vm, logged_in

from vdkit.disklib.remote import open_remote
from vdkit.errors import NotFound, VixError
from vdkit.sim import relocation
from vdkit.sim.certificates import Certificate
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import CannotAccessFile, FileLocked, ModelFault
from vdkit.sim.host import SimulatedHost
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory

MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("no_leaks")


def two_datastores(tmp_path: Path) -> tuple[Inventory, Datastore]:
    inventory = Inventory(personality="vcenter")
    for name in ("datastore1", "datastore2"):
        (tmp_path / name).mkdir()
        inventory.add_folder(tmp_path / name, name)
    inventory.create_machine("vm1", "datastore1", [DiskSpec(16 * MIB), DiskSpec(8 * MIB, thin=False)])
    return inventory, inventory.datastore("datastore2")


def write(machine: Machine, offset: int, data: bytes, key: int = 2000) -> None:
    with machine.disk(key).guest() as guest:
        guest.write_from(offset, data)


def read(machine: Machine, key: int = 2000) -> bytes:
    with machine.disk(key).guest() as guest:
        data = bytearray(guest.capacity)
        guest.read_into(0, data)
    return bytes(data)


def files(datastore: Datastore) -> list[str]:
    assert datastore.folder is not None
    return sorted(str(path.relative_to(datastore.folder)) for path in datastore.folder.rglob("*"))


def test_a_running_machine_moves_with_its_snapshots_and_its_change_ids(tmp_path: Path) -> None:
    inventory, target = two_datastores(tmp_path)
    machine = inventory.find("vm1")
    machine.set_change_tracking(True)
    machine.power_on()
    write(machine, 3 * MIB, b"\xa5" * 70_000)
    first = machine.create_snapshot("one")
    saved = first.disks[2000].change_id
    write(machine, 5 * MIB, b"\x5a" * 70_000)
    with machine.disk(2000).guest() as device:
        before = read(machine)
        relocation.relocate(machine, target)
        # The guest's own device goes on without noticing.
        device.write_from(9 * MIB, b"later")
    assert files(inventory.datastore("datastore1")) == []
    assert {path.partition("]")[0] for path in machine.files()} == {"[datastore2"}
    assert machine.vmx_path == "[datastore2] vm1/vm1.vmx"
    content = bytearray(before)
    content[9 * MIB : 9 * MIB + 5] = b"later"
    assert read(machine) == content
    assert saved is not None
    second = machine.create_snapshot("two")
    areas = machine.changed_areas(2000, 0, saved, second).areas
    assert [offset // MIB for offset, _ in areas] == [5, 9]
    machine.remove_all_snapshots()
    assert read(machine) == content
    inventory.close()


def test_what_moved_is_found_after_a_restart(tmp_path: Path) -> None:
    inventory, target = two_datastores(tmp_path)
    machine = inventory.find("vm1")
    machine.power_on()
    write(machine, MIB, b"kept")
    machine.create_snapshot("one")
    relocation.relocate(machine, target)
    content = read(machine)
    inventory.close()
    again = Inventory(personality="vcenter")
    for name in ("datastore1", "datastore2"):
        again.add_folder(tmp_path / name, name)
    assert again.skipped == []
    found = again.find("vm1")
    assert [snapshot.name for snapshot in found.snapshots()] == ["one"]
    assert read(found) == content
    again.close()


def test_a_failure_in_the_middle_leaves_the_machine_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory, target = two_datastores(tmp_path)
    machine = inventory.find("vm1")
    machine.power_on()
    write(machine, MIB, b"kept")
    content, names = read(machine), files(inventory.datastore("datastore1"))
    real, made = target.store.create, []

    def create(name: str, size: int = 0) -> Any:
        made.append(name)
        if len(made) == 4:
            raise CannotAccessFile(target.path(name))
        return real(name, size)

    monkeypatch.setattr(target.store, "create", create)
    with pytest.raises(ModelFault):
        relocation.relocate(machine, target)
    assert files(target) == []
    assert files(inventory.datastore("datastore1")) == names
    assert read(machine) == content
    monkeypatch.undo()
    relocation.relocate(machine, target)
    assert read(machine) == content
    inventory.close()


def test_a_disk_that_the_data_port_writes_to_does_not_move(tmp_path: Path) -> None:
    from vdkit.sim import diskaccess

    inventory, target = two_datastores(tmp_path)
    machine = inventory.find("vm1")
    with (
        diskaccess.open_for_writing(machine, inventory.datastore("datastore1"), "vm1/vm1.vmdk"),
        pytest.raises(FileLocked),
    ):
        relocation.relocate(machine, target)
    assert files(target) == []


@pytest.fixture
def center(tmp_path: Path, simulated_host_factory: HostFactory) -> SimulatedHost:
    host = simulated_host_factory(personality="vcenter")
    (tmp_path / "second").mkdir()
    host.inventory.add_folder(tmp_path / "second", "datastore2")
    return host


def spec_for(host: SimulatedHost) -> Any:
    return vim.vm.RelocateSpec(datastore=vim.Datastore(host.inventory.datastore("datastore2").moref))


def test_pyvmomi_relocates_a_machine_and_sees_the_task(center: SimulatedHost) -> None:
    with logged_in(center) as service:
        vm = find_vm(service)
        done(vm.RelocateVM_Task(spec_for(center)))
        assert disks(vm)[0].backing.fileName == "[datastore2] vm1/vm1.vmdk"
        assert [store.name for store in vm.datastore] == ["datastore2"]
        center.scenario.relocating = frozenset({"vm1"})
        (task,) = vm.recentTask
        assert (task.info.state, task.info.descriptionId) == ("running", "VirtualMachine.relocate")
        with pytest.raises(vim.fault.TaskInProgress):
            vm.CreateSnapshot_Task("s", "", False, False)
        center.scenario.relocating = frozenset()
        assert vm.recentTask == []
        assert task.info.state == "success"
    assert center.internal_errors == []


def test_a_session_that_reads_survives_the_move(center: SimulatedHost) -> None:
    """The open file is read to its end; its path leads nowhere from then on."""
    from simulated_login import logged_in as session_with
    from simulated_login import the_machine

    center.power_on_all()
    machine = center.machine("vm1")
    for offset in range(0, 64 * MIB, 4 * MIB):
        write(machine, offset, offset.to_bytes(8, "big") * 512)
    frozen = read(machine)
    machine.create_snapshot("frozen")
    write(machine, 2 * MIB, b"after the snapshot")
    with session_with(center) as session:
        vm = the_machine(session)
        with open_remote(session, vm, vm.disks[0].parents[0]) as disk:
            data = bytearray(disk.capacity)
            moved = threading.Thread(
                target=relocation.relocate, args=(machine, center.inventory.datastore("datastore2"))
            )
            for offset in range(0, len(data), MIB):
                if offset == 8 * MIB:
                    moved.start()
                if offset == 32 * MIB:
                    moved.join()
                disk.read_into(offset, memoryview(data)[offset : offset + MIB])
            assert bytes(data) == frozen
            assert disk.reopened == 0
        assert machine.disk(2000).file.startswith("[datastore2]")
        with pytest.raises((NotFound, VixError)), open_remote(session, vm, vm.disks[0].parents[0]):
            pass
    assert read(machine)[2 * MIB : 2 * MIB + 18] == b"after the snapshot"
    assert center.internal_errors == []


def test_a_machine_changes_its_host_and_keeps_its_files(
    tmp_path: Path, simulated_certificate: Certificate
) -> None:
    inventory = Inventory(personality="vcenter", host_names=("esx1", "esx2"))
    inventory.add_folder(tmp_path, "datastore1")
    inventory.create_machine("vm1", "datastore1", [DiskSpec(16 * MIB)])
    first, second = (host.moref for host in inventory.places.hosts)
    with SimulatedHost(inventory, certificate=simulated_certificate) as host, logged_in(host) as service:
        vm = find_vm(service)
        # What a backup disables is no obstacle: the files stay.
        assert host.world is not None
        host.world.disabled.disable(("VirtualMachine", vm._moId), ["RelocateVM_Task"], "a backup", None)
        done(vm.MigrateVM_Task(None, vim.HostSystem(second), "defaultPriority"))
        assert vm.runtime.host._moId == second
        with pytest.raises(vim.fault.MethodDisabled):
            vm.RelocateVM_Task(vim.vm.RelocateSpec(host=vim.HostSystem(first)))
        host.world.disabled.enable(("VirtualMachine", vm._moId), ["RelocateVM_Task"], "a backup")
        done(vm.RelocateVM_Task(vim.vm.RelocateSpec(host=vim.HostSystem(first))))
        assert vm.runtime.host._moId == first
        assert disks(vm)[0].backing.fileName == "[datastore1] vm1/vm1.vmdk"
        assert host.internal_errors == []
