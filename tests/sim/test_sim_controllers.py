"""Disks on every kind of controller, and in every mode: keys, files, snapshots, tracking, the data port."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_helpers import MIB, new_inventory
from pyVmomi import vim
from simclients import disks, done, find_vm
from simclients import logged_in as pyvmomi_login
from simulated_login import logged_in, the_machine

from vdkit.disklib.remote import open_remote
from vdkit.errors import FormatError
from vdkit.sim.controllers import BUSES, KINDS, PLAIN, Controller, DiskOptions, Slot
from vdkit.sim.faults import InvalidDeviceSpec, SnapshotFault
from vdkit.sim.snapshot import DiskSpec
from vdkit.testing.fixtures import HostFactory
from vdkit.vsphere.model import Backing, ControllerKind, Tracking

#: Controller, key of a disk at its first unit, and what our client calls it.
PLACES = [
    (Controller("pvscsi"), 2000, ControllerKind.PVSCSI),
    (Controller("lsilogic", 1), 2016, ControllerKind.LSILOGIC),
    (Controller("lsisas", 2), 2032, ControllerKind.LSISAS),
    (Controller("buslogic", 3), 2048, ControllerKind.BUSLOGIC),
    (Controller("ahci"), 16000, ControllerKind.SATA),
    (Controller("nvme", 1), 32015, ControllerKind.NVME),
    (Controller("ide", 1), 3002, ControllerKind.IDE),
]
ALL = [DiskSpec(MIB, controller=controller) for controller, _, _ in PLACES]


def test_every_slot_has_a_key_a_node_and_a_label_of_its_own() -> None:
    slots = [
        Slot(bus.name, number, unit)
        for bus in BUSES.values()
        for number in range(bus.controllers)
        for unit in bus.units
    ]
    assert len(slots) == 4 * 15 + 4 * 30 + 4 * 15 + 2 * 2
    for facts in ("key", "node", "label"):
        assert len({getattr(slot, facts) for slot in slots}) == len(slots)
    assert all(Slot.parse(slot.node) == slot for slot in slots)
    assert Slot.parse("scsi0:7") is None
    assert Slot.parse("scsi4:0") is None
    assert Slot.parse("floppy0") is None


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_disks_of_every_controller_are_seen_tracked_and_read(
    simulated_host_factory: HostFactory, personality: str
) -> None:
    host = simulated_host_factory(personality=personality)
    machine = host.inventory.create_machine("zoo", "datastore1", ALL)
    machine.set_change_tracking(True)
    machine.power_on()
    for number, (_, key, _) in enumerate(PLACES):
        with machine.disk(key).guest() as guest:
            guest.write_from(64 << 10, bytes([number + 1]) * 512)
    with logged_in(host) as session:
        vm = the_machine(session, "zoo")
        seen = {disk.key: disk for disk in vm.disks}
        assert {key: kind for _, key, kind in PLACES} == {
            key: disk.controller.kind for key, disk in seen.items() if disk.controller
        }
        assert all(disk.tracking.tracking is Tracking.ACTIVE for disk in vm.disks)
        snapshot = machine.create_snapshot("s")
        for number, (_, key, _) in enumerate(PLACES):
            with open_remote(session, vm, seen[key].file) as disk:
                found = bytearray(512)
                disk.read_into(64 << 10, found)
                assert found == bytes([number + 1]) * 512
            areas = machine.changed_areas(key, 0, f"{snapshot.disks[key].change_id}", snapshot)
            assert areas.areas == []
    assert host.internal_errors == []


def test_controllers_and_options_outlive_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "ds"
    inventory = new_inventory(folder)
    shared = DiskSpec(MIB, controller=Controller("lsilogic", 2, "physicalSharing"))
    options = DiskOptions("independent_persistent", "sharingMultiWriter", "virtualMode", "key-1")
    machine = inventory.create_machine("vm", "ds", [*ALL, shared, DiskSpec(MIB, options=options)])
    before = {key: (disk.slot, disk.options) for key, disk in machine.disks.items()}
    controllers = dict(machine.controllers)
    assert before[2001] == (Slot("scsi", 0, 1), options)
    inventory.close()
    again = new_inventory(folder)
    assert again.skipped == []
    loaded = again.find("vm")
    assert {key: (disk.slot, disk.options) for key, disk in loaded.disks.items()} == before
    assert loaded.controllers == controllers
    loaded.set_disk_options(2001, PLAIN)
    loaded.remove_disk(2016)
    again.close()
    third = new_inventory(folder).find("vm")
    assert third.disk(2001).options == PLAIN
    assert 2016 not in third.disks


@pytest.mark.parametrize(
    "line",
    [
        'scsi0.virtualDev = "adaptec"',
        'scsi0.sharedBus = "sometimes"',
        'scsi0:0.mode = "shy"',
        'scsi0:7.fileName = "vm.vmdk"',
        'nvme4:0.fileName = "vm.vmdk"',
    ],
)
def test_a_vmx_with_devices_that_there_are_not_is_told(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "ds"
    inventory = new_inventory(folder)
    inventory.create_machine("vm", "ds", [DiskSpec(MIB)])
    inventory.close()
    vmx = folder / "vm" / "vm.vmx"
    key = line.partition(" ")[0]
    kept = [old for old in vmx.read_text().splitlines() if not old.startswith(f"{key} ")]
    vmx.write_text("\n".join([*kept, line, ""]))
    again = new_inventory(folder)
    assert again.machines == []
    ((where, error),) = again.skipped
    assert where == "[ds] vm/"
    assert isinstance(error, FormatError)
    assert key.partition(".")[0] in str(error)


def test_what_is_no_part_of_snapshots_is_left_alone_by_them(tmp_path: Path) -> None:
    inventory = new_inventory(tmp_path / "ds")
    independent = DiskOptions(mode="independent_persistent")
    physical = DiskOptions(mapping="physicalMode")
    machine = inventory.create_machine(
        "vm", "ds", [DiskSpec(MIB), DiskSpec(MIB, options=independent), DiskSpec(MIB, options=physical)]
    )
    machine.set_change_tracking(True)
    machine.power_on()
    assert machine.tracking_active
    assert [disk.tracker is not None for disk in machine.disks.values()] == [True, False, False]
    snapshot = machine.create_snapshot("s")
    assert set(snapshot.disks) == {2000}
    assert [bool(disk.facts.parents) for disk in machine.disks.values()] == [True, False, False]
    with machine.disk(2000).guest() as kept, machine.disk(2001).guest() as free:
        kept.write_from(0, b"a" * 512)
        free.write_from(0, b"b" * 512)
    machine.revert_to_snapshot(snapshot)
    machine.power_on()
    found = bytearray(512)
    with machine.disk(2000).guest() as kept:
        kept.read_into(0, found)
        assert found == bytes(512)
    with machine.disk(2001).guest() as free:
        free.read_into(0, found)
        assert found == b"b" * 512
    machine.remove_all_snapshots()


@pytest.mark.parametrize(
    "spec",
    [
        DiskSpec(MIB, options=DiskOptions(sharing="sharingMultiWriter")),
        DiskSpec(MIB, controller=Controller("lsisas", 1, "virtualSharing")),
    ],
)
def test_shared_disks_stop_snapshots_and_are_not_tracked(tmp_path: Path, spec: DiskSpec) -> None:
    inventory = new_inventory(tmp_path / "ds")
    machine = inventory.create_machine("vm", "ds", [DiskSpec(MIB), spec])
    machine.set_change_tracking(True)
    assert [disk.tracker is not None for disk in machine.disks.values()] == [True, False]
    with pytest.raises(SnapshotFault, match="no snapshot can be made"):
        machine.create_snapshot("s")
    assert machine.snapshot_roots == []


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    inventory = new_inventory(tmp_path / "ds")
    machine = inventory.create_machine("vm", "ds", [DiskSpec(MIB, controller=Controller("ide"))])
    machine.add_disk(MIB, controller=Controller("ide"))
    with pytest.raises(InvalidDeviceSpec, match="no free unit"):
        machine.add_disk(MIB, controller=Controller("ide"))
    with pytest.raises(InvalidDeviceSpec, match="not free"):
        machine.add_disk(MIB, unit=7)
    for wrong in (("pvscsi", 4, "noSharing"), ("floppy", 0, "noSharing"), ("nvme", 0, "virtualSharing")):
        with pytest.raises(InvalidDeviceSpec):
            Controller(*wrong)
    with pytest.raises(InvalidDeviceSpec):
        DiskOptions(mode="shy")
    assert set(KINDS) == {kind for kind, *_ in ((c.kind,) for c, _, _ in PLACES)}


def test_pyvmomi_adds_controllers_and_disks_and_changes_their_mode(
    simulated_host_factory: HostFactory,
) -> None:
    host = simulated_host_factory()
    device = vim.vm.device
    spec, backing = device.VirtualDeviceSpec, device.VirtualDisk.FlatVer2BackingInfo
    with pyvmomi_login(host) as service:
        vm = find_vm(service)
        added = [
            spec(operation="add", device=device.VirtualNVMEController(key=-1, busNumber=0)),
            spec(
                operation="add",
                device=device.VirtualLsiLogicSASController(key=-2, busNumber=1, sharedBus="virtualSharing"),
            ),
            *(
                spec(
                    operation="add",
                    fileOperation="create",
                    device=device.VirtualDisk(
                        key=-10 - number,
                        controllerKey=controller,
                        unitNumber=0,
                        capacityInKB=1024,
                        backing=backing(fileName="", diskMode="persistent", thinProvisioned=True),
                    ),
                )
                for number, controller in enumerate((-1, -2, 200))
            ),
        ]
        done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=added)))
        seen = {disk.key: disk for disk in disks(vm)}
        assert set(seen) == {2000, 2016, 3000, 32000}
        by_key = {one.key: one for one in vm.config.hardware.device}
        assert isinstance(by_key[31000], device.VirtualNVMEController)
        assert (by_key[1001].sharedBus, list(by_key[1001].device)) == ("virtualSharing", [2016])
        assert by_key[200].device == [3000]
        disk = seen[32000]
        disk.backing.diskMode = "independent_persistent"
        edit = [spec(operation="edit", device=disk)]
        done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=edit)))
        assert {d.key: d.backing.diskMode for d in disks(vm)}[32000] == "independent_persistent"
        wrong = device.VirtualDisk(
            key=-1, controllerKey=1003, capacityInKB=1024, backing=backing(fileName="", diskMode="persistent")
        )
        task = [spec(operation="add", fileOperation="create", device=wrong)]
        with pytest.raises(vim.fault.InvalidDeviceSpec):
            done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=task)))
    assert host.internal_errors == []


def test_pyvmomi_reads_mappings_keys_and_sharing(simulated_host_factory: HostFactory) -> None:
    host = simulated_host_factory(personality="vcenter")
    made = [
        DiskSpec(MIB, options=DiskOptions(mapping="physicalMode")),
        DiskSpec(MIB, options=DiskOptions(mapping="virtualMode")),
        DiskSpec(MIB, options=DiskOptions(sharing="sharingMultiWriter", key_id="k")),
    ]
    host.inventory.create_machine("zoo", "datastore1", made)
    with pyvmomi_login(host) as service:
        physical, virtual, shared = disks(find_vm(service, "zoo"))
        mapping = vim.vm.device.VirtualDisk.RawDiskMappingVer1BackingInfo
        assert isinstance(physical.backing, mapping)
        assert physical.backing.compatibilityMode == "physicalMode"
        assert virtual.backing.compatibilityMode == "virtualMode"
        assert shared.backing.sharing == "sharingMultiWriter"
        assert shared.backing.keyId.keyId == "k"
    with logged_in(host) as session:
        found = the_machine(session, "zoo").disks
    assert [disk.backing for disk in found] == [
        Backing.RAW_MAPPING_PHYSICAL,
        Backing.RAW_MAPPING,
        Backing.FLAT,
    ]
    assert [disk.encrypted for disk in found] == [False, False, True]
    assert [disk.shared for disk in found] == [False, False, True]
    assert [disk.in_snapshots for disk in found] == [False, True, True]
