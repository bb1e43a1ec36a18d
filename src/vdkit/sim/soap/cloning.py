"""CloneVM_Task, templates, and first-class disks attached to a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim import cloning
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import NotFound, NotSupported
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, call
from vdkit.sim.soap.relocation import Relocatable

if TYPE_CHECKING:
    from vdkit.sim.soap.tasks import Task

#: Device key of the first SCSI controller.
CONTROLLER_KEY = 1000
_LINKED = "createNewChildDiskBacking"
_FULL = (None, "", "moveAllDiskBackingsAndDisallowSharing", "moveAllDiskBackingsAndConsolidate")


class Clonable(Relocatable):
    """What a virtual machine has of it."""

    def _vcenter_only(self, method: str) -> None:
        if not self.world.is_vcenter:
            raise NotSupported(f"A stand-alone host does not offer {method}.")

    def _datastore(self, ref: Any, name: str) -> Datastore:
        found = next((one for one in self.world.inventory.datastores if one.moref == ref._moId), None)
        if found is None:
            raise invalid_argument(name)
        return found

    @call("CloneVM_Task")
    def clone(self, call: Call) -> Any:
        self._vcenter_only("CloneVM_Task")
        spec, name, world = call.spec, call.name, self.world
        folder = world.find(call.folder)
        if folder is None or folder.kind != "Folder":
            raise invalid_argument("folder")
        move = spec.location.diskMoveType
        if move not in (*_FULL, _LINKED):
            raise NotSupported(f"The disk move type {move} is not simulated.")
        if spec.location.pool is not None and world.find(spec.location.pool) is None:
            raise invalid_argument("spec.location.pool")
        if self.machine.config.template and not spec.template and spec.location.pool is None:
            raise invalid_argument("spec.location.pool")
        if spec.customization is not None or spec.location.disk or spec.location.deviceChange:
            raise NotSupported("Clones that differ from their original are not simulated.")
        snapshot = None
        if spec.snapshot is not None:
            owner, snapshot = world.snapshot_of(spec.snapshot)
            if owner is not self.machine:
                raise invalid_argument("spec.snapshot")
        target = self.machine.datastore
        if spec.location.datastore is not None:
            target = self._datastore(spec.location.datastore, "spec.location.datastore")

        def work(_task: Task) -> Any:
            made = cloning.clone(
                world.inventory,
                self.machine,
                name,
                target,
                snapshot=snapshot,
                linked=move == _LINKED,
                template=bool(spec.template),
            )
            place = world.inventory.places.folder(folder.moid)
            if place is not None:
                world.inventory.places.put(made, place)
            if spec.powerOn and not spec.template:
                made.power_on()
            return vim.VirtualMachine(made.moref)

        return world.tasks.start("CloneVM_Task", self, call.session.user, work)

    @call("MarkAsTemplate")
    def mark_as_template(self, _call: Call) -> None:
        self._vcenter_only("MarkAsTemplate")
        self.machine.set_template(True)

    @call("MarkAsVirtualMachine")
    def mark_as_machine(self, call: Call) -> None:
        self._vcenter_only("MarkAsVirtualMachine")
        if call.pool is None or self.world.find(call.pool) is None:
            raise invalid_argument("pool")
        self.machine.set_template(False)

    @call("AttachDisk_Task")
    def attach_disk(self, call: Call) -> Any:
        store = self._datastore(call.datastore, "datastore")
        disk = self.world.first_class_disks.get(store, call.diskId.id)
        unit = call.unitNumber
        if call.controllerKey not in (None, 0, CONTROLLER_KEY):
            raise NotSupported("First-class disks are attached to the first SCSI controller here.")

        def work(_task: Task) -> None:
            self.machine.attach_disk(disk.path, unit=unit)

        return self.world.tasks.start("AttachDisk_Task", self, call.session.user, work)

    @call("DetachDisk_Task")
    def detach_disk(self, call: Call) -> Any:
        wanted = call.diskId.id

        def work(_task: Task) -> None:
            for disk in self.machine.disks.values():
                known = self.world.first_class_disks.find(disk.datastore, wanted)
                if known is not None and known.path in (disk.file, *disk.state().parents):
                    self.machine.remove_disk(disk.key)
                    return
            raise NotFound(f"{self.machine.name}: disk {wanted} is not attached to it")

        return self.world.tasks.start("DetachDisk_Task", self, call.session.user, work)
