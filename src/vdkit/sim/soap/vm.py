"""Virtual machines and their snapshots as managed objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.faults import InvalidArgument
from vdkit.sim.machine import Machine
from vdkit.sim.places import Entity
from vdkit.sim.snapshot import Snapshot
from vdkit.sim.soap import reconfigure, vmconfig
from vdkit.sim.soap.cloning import Clonable
from vdkit.sim.soap.objects import Call, Managed, call, prop
from vdkit.sim.soap.world import fault_named

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World


class VirtualMachine(Clonable):
    """A view of the model's machine; it holds nothing itself, so a new one is made for every look."""

    kind = "VirtualMachine"

    def __init__(self, world: World, machine: Machine) -> None:
        folder = world.inventory.places.folder_of(machine)
        super().__init__(world, Entity("VirtualMachine", machine.moref, machine.name, folder))
        self.machine = machine

    @property
    def _inventory(self) -> Any:
        return self.world.inventory

    def _task(self, call: Call, method: str, work: Callable[[], Any]) -> Any:
        return self.world.tasks.start(method, self, call.session.user, lambda _task: work())

    # -- properties ------------------------------------------------------------------------------

    @prop("config")
    def config(self) -> Any:
        return vmconfig.config_info(self._inventory, self.machine)

    @prop("runtime")
    def runtime(self) -> Any:
        return vmconfig.runtime_info(self._inventory, self.machine)

    @prop("summary")
    def summary(self) -> Any:
        return vmconfig.summary(self._inventory, self.machine, self.ref)

    @prop("layoutEx")
    def layout_ex(self) -> Any:
        return vmconfig.layout_ex(self._inventory, self.machine)

    @prop("capability")
    def capability(self) -> Any:
        return vim.vm.Capability(
            snapshotOperationsSupported=True,
            multipleSnapshotsSupported=True,
            snapshotConfigSupported=True,
            poweredOffSnapshotsSupported=True,
            revertToSnapshotSupported=True,
            quiescedSnapshotsSupported=True,
            changeTrackingSupported=self.machine.config.hardware_version >= 7,
            diskSharesSupported=True,
        )

    @prop("guest")
    def guest(self) -> Any:
        return vim.vm.GuestInfo(
            guestState="running" if self.machine.powered_on else "notRunning",
            toolsStatus="toolsNotInstalled",
            toolsRunningStatus="guestToolsNotRunning",
        )

    @prop("guestHeartbeatStatus")
    def heartbeat(self) -> str:
        return "gray"

    @prop("datastore")
    def datastores(self) -> list[Any]:
        found = {self.machine.datastore.moref: None}
        found.update({disk.datastore.moref: None for disk in list(self.machine.disks.values())})
        return [vim.Datastore(moref) for moref in found]

    @prop("network")
    def networks(self) -> list[Any]:
        return self.refs_of(self.world.inventory.network)

    @prop("resourcePool")
    def pool(self) -> Any:
        if self.machine.config.template:
            return None
        return vim.ResourcePool(self.world.inventory.pool.moref)

    @prop("snapshot")
    def snapshot(self) -> Any:
        machine = self.machine
        if not machine.snapshot_roots:
            return None
        current = machine.current_snapshot
        return vim.vm.SnapshotInfo(
            currentSnapshot=None if current is None else vim.vm.Snapshot(current.moref),
            rootSnapshotList=[self._tree(root) for root in list(machine.snapshot_roots)],
        )

    @prop("rootSnapshot")
    def roots(self) -> list[Any]:
        return [vim.vm.Snapshot(root.moref) for root in list(self.machine.snapshot_roots)]

    def _tree(self, snapshot: Snapshot) -> Any:
        return vim.vm.SnapshotTree(
            snapshot=vim.vm.Snapshot(snapshot.moref),
            vm=self.ref,
            name=snapshot.name,
            description=snapshot.description,
            id=snapshot.uid,
            createTime=snapshot.created,
            state="poweredOn" if snapshot.powered_on and snapshot.memory else "poweredOff",
            quiesced=snapshot.quiesced,
            backupManifest="" if snapshot.quiesced else None,
            childSnapshotList=[self._tree(child) for child in list(snapshot.children)],
            replaySupported=False,
        )

    # -- power and configuration -----------------------------------------------------------------

    @call("PowerOnVM_Task")
    def power_on(self, call: Call) -> Any:
        self.world.check_host(self._inventory.places.host_of(self.machine))
        return self._task(call, "PowerOnVM_Task", self.machine.power_on)

    @call("PowerOffVM_Task")
    def power_off(self, call: Call) -> Any:
        return self._task(call, "PowerOffVM_Task", self.machine.power_off)

    @call("ReconfigVM_Task")
    def reconfigure(self, call: Call) -> Any:
        spec = call.spec

        def work() -> None:
            for step in reconfigure.steps(self.machine, spec):
                step()

        return self._task(call, "ReconfigVM_Task", work)

    @call("Rename_Task")
    def rename(self, call: Call) -> Any:
        name = call.newName
        return self._task(call, "Rename_Task", lambda: self.machine.rename(name))

    @call("Destroy_Task")
    def destroy(self, call: Call) -> Any:
        return self._task(call, "Destroy_Task", self.machine.destroy)

    @call("UnregisterVM")
    def unregister(self, _call: Call) -> None:
        self.machine.unregister()

    # -- snapshots -------------------------------------------------------------------------------

    def _create(self, call: Call, method: str, quiesce: bool) -> Any:
        name, description, memory = call.name, call.description or "", bool(call.memory)

        def work() -> Any:
            if quiesce and self.machine.powered_on and self.world.scenario.quiesce_fails:
                raise vim.fault.ApplicationQuiesceFault(
                    msg="An error occurred while quiescing the virtual machine. "
                    "See the virtual machine's event log for details."
                )
            made = self.machine.create_snapshot(name, description, memory=memory, quiesce=quiesce)
            return vim.vm.Snapshot(made.moref)

        return self._task(call, method, work)

    @call("CreateSnapshot_Task")
    def create_snapshot(self, call: Call) -> Any:
        return self._create(call, "CreateSnapshot_Task", bool(call.quiesce))

    @call("CreateSnapshotEx_Task")
    def create_snapshot_ex(self, call: Call) -> Any:
        return self._create(call, "CreateSnapshotEx_Task", call.quiesceSpec is not None)

    @call("RemoveAllSnapshots_Task")
    def remove_all(self, call: Call) -> Any:
        consolidate = call.consolidate is not False
        return self._task(
            call,
            "RemoveAllSnapshots_Task",
            lambda: self.machine.remove_all_snapshots(consolidate=consolidate),
        )

    @call("RevertToCurrentSnapshot_Task")
    def revert_to_current(self, call: Call) -> Any:
        suppress = bool(call.suppressPowerOn)

        def work() -> None:
            current = self.machine.current_snapshot
            if current is None:
                raise vim.fault.NotFound(msg="The virtual machine has no current snapshot.")
            self.machine.revert_to_snapshot(current, suppress_power_on=suppress)

        return self._task(call, "RevertToCurrentSnapshot_Task", work)

    @call("ConsolidateVMDisks_Task")
    def consolidate(self, call: Call) -> Any:
        return self._task(call, "ConsolidateVMDisks_Task", self.machine.consolidate)

    # -- change tracking -------------------------------------------------------------------------

    @call("QueryChangedDiskAreas")
    def query_changed_disk_areas(self, call: Call) -> Any:
        scenario = self.world.scenario
        start = call.startOffset
        if scenario.cbt_error is not None and start >= scenario.cbt_error_offset:
            raise fault_named(scenario.cbt_error)
        if scenario.areas_per_page is not None:
            self.world.inventory.areas_per_page = scenario.areas_per_page
        snapshot = None
        if call.snapshot is not None:
            owner, snapshot = self.world.snapshot_of(call.snapshot)
            if owner is not self.machine:
                raise InvalidArgument("snapshot")
        found = self.machine.changed_areas(call.deviceKey, start, call.changeId or "", snapshot)
        tracker = self.machine.disk(call.deviceKey).tracker
        end = tracker.grown_past if tracker is not None and scenario.cbt_growth_fault else None
        area = vim.VirtualMachine.DiskChangeInfo.DiskChangeExtent
        return vim.VirtualMachine.DiskChangeInfo(
            startOffset=found.start,
            length=found.length,
            changedArea=[
                area(start=offset, length=length if end is None else min(length, end - offset))
                for offset, length in found.areas
                if end is None or offset < end
            ],
        )


class VirtualMachineSnapshot(Managed):
    kind = "VirtualMachineSnapshot"

    def __init__(self, world: World, machine: Machine, snapshot: Snapshot) -> None:
        super().__init__(snapshot.moref)
        self._world = world
        self._machine = machine
        self._snapshot = snapshot

    @prop("config")
    def config(self) -> Any:
        snapshot = self._snapshot
        disks = list(snapshot.disks.values())
        return vmconfig.frozen_config(self._world.inventory, self._machine, snapshot.config, disks)

    @prop("childSnapshot")
    def children(self) -> list[Any]:
        return [vim.vm.Snapshot(child.moref) for child in list(self._snapshot.children)]

    @prop("vm")
    def machine(self) -> Any:
        return vim.VirtualMachine(self._machine.moref)

    def _task(self, call: Call, method: str, work: Callable[[], Any]) -> Any:
        # The task is the machine's: another operation on it has to wait.
        entity = VirtualMachine(self._world, self._machine)
        return self._world.tasks.start(method, entity, call.session.user, lambda _task: work())

    @call("RemoveSnapshot_Task")
    def remove(self, call: Call) -> Any:
        children, consolidate = bool(call.removeChildren), call.consolidate is not False
        return self._task(
            call,
            "RemoveSnapshot_Task",
            lambda: self._machine.remove_snapshot(self._snapshot, children=children, consolidate=consolidate),
        )

    @call("RevertToSnapshot_Task")
    def revert(self, call: Call) -> Any:
        suppress = bool(call.suppressPowerOn)
        return self._task(
            call,
            "RevertToSnapshot_Task",
            lambda: self._machine.revert_to_snapshot(self._snapshot, suppress_power_on=suppress),
        )

    @call("RenameSnapshot")
    def rename(self, call: Call) -> None:
        self._machine.rename_snapshot(self._snapshot, call.name, call.description)
