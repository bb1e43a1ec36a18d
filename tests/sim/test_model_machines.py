"""Machines: made, found in a folder, changed, kept over a restart, destroyed."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import MIB, Shadow, areas, content, new_inventory, new_machine, qemu_same

from vdkit.errors import VixError
from vdkit.sim import diskaccess
from vdkit.sim.faults import (
    DuplicateName,
    FileAlreadyExists,
    FileFault,
    FileLocked,
    FileNotFound,
    GenericVmConfigFault,
    InvalidArgument,
    InvalidDeviceSpec,
    InvalidName,
    InvalidPowerState,
    ManagedObjectNotFound,
    NotSupported,
    TaskInProgress,
)
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import DiskSpec
from vdkit.sim.tracking import GRANULARITY as G
from vdkit.sim.vmx import VmxText
from vdkit.vmdk import DiskType, create_disk

KEY = 2000


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return new_inventory(tmp_path / "ds")


def restart(inventory: Inventory, folder: Path) -> Inventory:
    inventory.close()
    again = new_inventory(folder)
    assert again.skipped == []
    return again


# -- making and finding ------------------------------------------------------------------------------


def test_a_machine_has_ids_of_its_kind_of_host_and_real_files(tmp_path: Path) -> None:
    for personality, moref in (("esx", "1"), ("vcenter", "vm-42")):
        folder = tmp_path / personality
        machine = new_machine(new_inventory(folder, personality=personality), "web 1", 4, 2)
        assert machine.moref == moref
        assert [(d.key, d.unit, d.capacity) for d in machine.disks.values()] == [
            (2000, 0, 4 * MIB),
            (2001, 1, 2 * MIB),
        ]
        text = VmxText.parse((folder / "web 1" / "web 1.vmx").read_bytes(), "x")
        assert text["scsi0:1.fileName"] == "web 1_1.vmdk"
        assert text["displayName"] == "web 1"
        assert text["uuid.bios"].startswith("56 4d ")
        state = machine.disk(KEY).state()
        assert state.uuid.startswith("6000C29")
        assert state.label == "Hard disk 1"
        assert state.thin
        assert state.change_id is None


def test_all_names_of_a_host_are_different(inventory: Inventory) -> None:
    new_machine(inventory)
    ids = [entity.moref for entity in inventory.entities] + [inventory.datastores[0].moref]
    assert len(set(ids)) == len(ids)
    with pytest.raises(ManagedObjectNotFound):
        inventory.machine("99")


def test_names_are_checked(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    with pytest.raises(DuplicateName) as caught:
        new_machine(inventory)
    assert caught.value.moref == machine.moref
    for name in ("", " ", "a\nb", "x" * 81):
        with pytest.raises(InvalidName):
            machine.rename(name)
    machine.rename("other")
    assert inventory.find("other") is machine
    assert new_machine(inventory, "vm").vmx_path == "[ds] vm_1/vm.vmx"


def test_a_machine_that_cannot_be_made_leaves_nothing(inventory: Inventory, tmp_path: Path) -> None:
    with pytest.raises(InvalidDeviceSpec):
        inventory.create_machine("vm", "ds", [DiskSpec(MIB), DiskSpec(MIB + 1)])
    assert inventory.machines == []
    assert list((tmp_path / "ds").iterdir()) == []


def test_a_disk_without_a_machine_gets_one(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    (folder / "found").mkdir(parents=True)
    from vdkit.block.local import FolderStore

    create_disk(FolderStore(folder), "found/found.vmdk", MIB, disk_type=DiskType.VMFS_THIN).close()
    inventory = new_inventory(folder)
    machine = inventory.find("found")
    assert machine.disk(KEY).file == "[ds] found/found.vmdk"
    assert (folder / "found" / "found.vmx").exists()
    assert restart(inventory, folder).find("found").config.bios_uuid == machine.config.bios_uuid


def test_a_vmx_as_people_have_them_is_understood(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    (folder / "web").mkdir(parents=True)
    from vdkit.block.local import FolderStore

    create_disk(FolderStore(folder), "web/data.vmdk", MIB, disk_type=DiskType.VMFS_FLAT).close()
    (folder / "web" / "web.vmx").write_text(
        """.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "17"
displayName = "Web server"
guestOS = "debian11-64"
memSize = "4096"
numvcpus = "2"
firmware = "efi"
uuid.bios = "56 4d 01 02 03 04 05 06-07 08 09 0a 0b 0c 0d 0e"
scsi0.virtualDev = "pvscsi"
scsi0:3.present = "TRUE"
scsi0:3.deviceType = "scsi-hardDisk"
scsi0:3.fileName = "data.vmdk"
ide1:0.fileName = "cd.iso"
sched.cpu.shares = "normal"
ctkEnabled = "TRUE"
"""
    )
    machine = new_inventory(folder).find("Web server")
    config = machine.config
    assert (config.version, config.guest_id, config.memory_mib, config.cpus, config.firmware) == (
        "vmx-17",
        "debian1164Guest",
        4096,
        2,
        "efi",
    )
    assert config.bios_uuid == "564d0102-0304-0506-0708-090a0b0c0d0e"
    assert machine.disk(2003).unit == 3
    assert machine.tracking_active
    saved = VmxText.parse((folder / "web" / "web.vmx").read_bytes(), "x")
    assert saved["sched.cpu.shares"] == "normal"
    assert saved["guestOS"] == "debian11-64"
    assert saved["scsi0.virtualDev"] == "pvscsi"


@pytest.mark.parametrize(
    "line",
    ['scsi0:0.fileName = "missing.vmdk"', 'sata0:0.fileName = "x.vmdk"', 'memSize = "many"', "rubbish"],
)
def test_a_machine_that_cannot_be_understood_is_told_and_not_registered(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "ds"
    (folder / "bad").mkdir(parents=True)
    (folder / "bad" / "bad.vmx").write_text(f'displayName = "bad"\n{line}\n')
    inventory = new_inventory(folder)
    assert inventory.machines == []
    assert len(inventory.skipped) == 1
    assert isinstance(inventory.skipped[0][1], VixError)


# -- restart -----------------------------------------------------------------------------------------


@pytest.mark.witness("qemu-img")
def test_everything_but_change_ids_survives_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    inventory = new_inventory(folder)
    machine = new_machine(inventory, "vm", 4)
    machine.set_change_tracking(True)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(10)
    frozen = disk.frozen()
    snapshot = machine.create_snapshot('first "one"', "with | text\nin two lines", quiesce=True)
    disk.scribble(10)
    machine.create_snapshot("second")
    machine.revert_to_snapshot(snapshot)
    machine.power_on()
    guest = machine.disk(KEY).guest()
    guest.write_from(0, b"after" + bytes(507))
    old_id = machine.disk(KEY).change_id
    assert old_id is not None

    again = restart(inventory, folder).find("vm")
    assert again.powered_on
    first, second = again.snapshots()
    assert (first.name, first.description, first.quiesced) == (
        'first "one"',
        "with | text\nin two lines",
        True,
    )
    assert first.created == snapshot.created
    assert second.parent is first
    assert again.current_snapshot is first
    assert first.disks[KEY].change_id is None
    assert again.config == machine.config
    assert content(again.disk(KEY).guest())[:5] == b"after"
    qemu_same(folder / "vm" / "vm.vmdk", frozen, tmp_path)
    third = again.create_snapshot("third")
    with pytest.raises(FileFault):
        again.changed_areas(KEY, 0, old_id, third)
    again.remove_all_snapshots()
    assert again.disk(KEY).file == "[ds] vm/vm.vmdk"
    assert content(again.disk(KEY).guest()) == b"after" + bytes(507) + frozen[512:]


def test_links_left_by_a_failed_consolidation_are_known_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    inventory = new_inventory(folder)
    machine = new_machine(inventory)
    machine.create_snapshot("a")
    first = machine.current_snapshot
    assert first is not None
    machine.create_snapshot("b")
    machine.revert_to_snapshot(first)
    branch = first.children[0]

    def failing(event: str, _machine: Machine) -> None:
        if event == "consolidate":
            raise GenericVmConfigFault("no")

    inventory.hook = failing
    with pytest.raises(GenericVmConfigFault):
        machine.remove_snapshot(branch)
    again = restart(inventory, folder).find("vm")
    assert again.consolidation_needed
    again.remove_all_snapshots()
    assert sorted(path.name for path in (folder / "vm").glob("*.vmdk")) == ["vm-flat.vmdk", "vm.vmdk"]


# -- changing ----------------------------------------------------------------------------------------


def test_disks_come_and_go(inventory: Inventory, tmp_path: Path) -> None:
    machine = new_machine(inventory)
    machine.power_on()
    added = machine.add_disk(2 * MIB)
    assert (added.key, added.unit, added.file) == (2001, 1, "[ds] vm/vm_1.vmdk")
    added.guest().write_from(0, b"here" * 128)
    with pytest.raises(InvalidDeviceSpec):
        machine.add_disk(MIB, unit=7)
    with pytest.raises(FileAlreadyExists):
        machine.add_disk(MIB, path="[ds] vm/vm_1.vmdk")
    machine.remove_disk(2001)
    assert (tmp_path / "ds" / "vm" / "vm_1.vmdk").exists()
    with pytest.raises(FileNotFound):
        machine.attach_disk("[ds] vm/none.vmdk")
    again = machine.attach_disk("[ds] vm/vm_1.vmdk", unit=5)
    assert content(again.guest())[:4] == b"here"
    machine.remove_disk(again.key, destroy_files=True)
    assert not list((tmp_path / "ds" / "vm").glob("vm_1*"))
    with pytest.raises(InvalidArgument):
        machine.disk(2001)


def test_a_disk_in_use_by_another_machine_cannot_be_attached_to_a_running_one(inventory: Inventory) -> None:
    one, two = new_machine(inventory, "one"), new_machine(inventory, "two")
    one.power_on()
    two.power_on()
    with pytest.raises(FileLocked):
        two.attach_disk("[ds] one/one.vmdk")
    assert list(two.disks) == [2000]


def test_a_disk_of_a_snapshot_stays(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    machine.create_snapshot("s")
    with pytest.raises(GenericVmConfigFault):
        machine.remove_disk(KEY)
    with pytest.raises(GenericVmConfigFault):
        machine.grow_disk(KEY, 32 * MIB)


@pytest.mark.witness("qemu-img")
@pytest.mark.parametrize("running", [True, False])
def test_a_disk_grows_and_keeps_its_content(inventory: Inventory, tmp_path: Path, running: bool) -> None:
    machine = new_machine(inventory)
    machine.set_change_tracking(True)
    machine.power_on()
    disk = Shadow(machine.disk(KEY).guest())
    disk.scribble(5)
    snapshot = machine.create_snapshot("s")
    machine.remove_snapshot(snapshot)
    saved = snapshot.disks[KEY].change_id
    assert saved is not None
    if not running:
        machine.power_off()
    machine.grow_disk(KEY, 6 * MIB)
    with pytest.raises(InvalidDeviceSpec):
        machine.grow_disk(KEY, MIB)
    if not running:
        machine.power_on()
    guest = machine.disk(KEY).guest()
    assert guest.capacity == 6 * MIB
    guest.write_from(5 * MIB, b"z" * 512)
    assert list(areas(machine, KEY, saved, machine.create_snapshot("t"))) == [(5 * MIB, G)]
    expected = disk.frozen() + bytes(MIB) + b"z" * 512 + bytes(MIB - 512)
    qemu_same(tmp_path / "ds" / "vm" / "vm.vmdk", expected, tmp_path)


def test_a_sparse_disk_grows_over_128_gib_and_reports_the_right_areas(inventory: Inventory) -> None:
    gib = 1 << 30
    machine = inventory.create_machine("big", "ds", [DiskSpec(127 * gib)])
    machine.set_change_tracking(True)
    machine.grow_disk(KEY, 130 * gib)
    machine.power_on()
    first = machine.create_snapshot("one")
    guest = machine.disk(KEY).guest()
    for offset in (127 * gib, 128 * gib - 512, 128 * gib, 130 * gib - 512):
        guest.write_from(offset, b"q" * 512)
    saved = first.disks[KEY].change_id
    assert saved is not None
    wanted = [(127 * gib, G), (128 * gib - G, 2 * G), (130 * gib - G, G)]
    assert list(areas(machine, KEY, saved, machine.create_snapshot("two"))) == wanted
    machine.remove_all_snapshots()
    assert content_at(machine, 128 * gib) == b"q" * 512


def content_at(machine: Machine, offset: int) -> bytes:
    data = bytearray(512)
    machine.disk(KEY).guest().read_into(offset, data)
    return bytes(data)


def test_power_states_are_minded(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    with pytest.raises(InvalidPowerState):
        machine.power_off()
    machine.power_on()
    with pytest.raises(InvalidPowerState) as caught:
        machine.power_on()
    assert caught.value.fields == {"requestedState": "poweredOn", "existingState": "poweredOn"}
    with pytest.raises(InvalidPowerState):
        machine.destroy()


def test_one_operation_at_a_time_and_observers_are_told(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    told: list[str] = []
    undo = inventory.subscribe(lambda changed: told.append(changed.power_state))
    seen: list[type[Exception]] = []

    def meddling(event: str, other: Machine) -> None:
        if event == "powerOn":
            try:
                other.create_snapshot("now")
            except TaskInProgress as error:
                seen.append(type(error))

    inventory.hook = meddling
    machine.power_on()
    assert seen == [TaskInProgress]
    assert told == ["poweredOn"]
    undo()
    machine.power_off()
    assert told == ["poweredOn"]


def test_a_destroyed_machine_leaves_no_file_and_is_gone(inventory: Inventory, tmp_path: Path) -> None:
    machine = new_machine(inventory, "vm", 1, 1)
    machine.create_snapshot("s")
    assert all("[ds] vm/" in path for path in machine.files())
    reader = diskaccess.open_for_reading(machine, machine.datastore, "vm/vm.vmdk")
    with pytest.raises(FileLocked):
        machine.destroy()
    reader.close()
    assert machine.disk(KEY).capacity == MIB
    machine.destroy()
    assert list((tmp_path / "ds").iterdir()) == []
    assert inventory.machines == []
    with pytest.raises(ManagedObjectNotFound):
        machine.power_on()


# -- change tracking ---------------------------------------------------------------------------------


def test_tracking_begins_with_a_stun_on_a_running_machine(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    machine.power_on()
    guest = machine.disk(KEY).guest()
    guest.write_from(MIB, b"old" + bytes(509))
    machine.set_change_tracking(True)
    assert machine.disk(KEY).change_id is None
    first = machine.create_snapshot("stun")
    with pytest.raises(NotSupported):
        machine.changed_areas(KEY, 0, "*", first)
    machine.remove_snapshot(first)
    start = machine.disk(KEY).change_id
    assert start is not None
    guest.write_from(2 * MIB, b"new" + bytes(509))
    second = machine.create_snapshot("backup")
    assert list(areas(machine, KEY, start, second)) == [(MIB, G), (2 * MIB, G)]
    assert list(areas(machine, KEY, "*", second)) == [(MIB, G), (2 * MIB, G)]
    with pytest.raises(InvalidArgument, match="startOffset"):
        machine.changed_areas(KEY, 4 * MIB, "*", second)
    with pytest.raises(InvalidArgument, match="deviceKey"):
        machine.changed_areas(2005, 0, "*", second)
    with pytest.raises(FileFault):
        machine.changed_areas(KEY, 0, start)


def test_a_machine_that_is_off_answers_at_once_and_without_a_snapshot(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    with pytest.raises(NotSupported):
        machine.changed_areas(KEY, 0, "*")
    machine.set_change_tracking(True)
    assert machine.disk(KEY).change_id is not None
    assert list(areas(machine, KEY, "*")) == []


def test_only_vmfs_tells_what_is_in_use(tmp_path: Path) -> None:
    inventory = Inventory()
    (tmp_path / "nfs").mkdir()
    inventory.add_folder(tmp_path / "nfs", "ds", kind="NFS")
    machine = new_machine(inventory)
    machine.set_change_tracking(True)
    assert list(areas(machine, KEY, "*")) == [(0, 4 * MIB)]


def test_a_write_from_outside_to_a_machine_that_is_off_is_tracked(inventory: Inventory) -> None:
    machine = new_machine(inventory)
    machine.set_change_tracking(True)
    start = machine.disk(KEY).change_id
    assert start is not None
    with diskaccess.open_for_writing(machine, machine.datastore, "vm/vm.vmdk") as device:
        device.write_from(3 * G, b"r" * 1024)
        with pytest.raises(FileLocked):
            machine.power_on()
        with pytest.raises(FileLocked):
            machine.create_snapshot("s")
    assert list(areas(machine, KEY, start)) == [(3 * G, G)]
    machine.power_on()
    assert content_at(machine, 3 * G) == b"r" * 512
