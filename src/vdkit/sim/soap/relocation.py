"""Machines moved to another host or datastore, and those that move for as long as the scenario says."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim import relocation
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import NotFound, NotSupported
from vdkit.sim.machine import Machine
from vdkit.sim.soap.entities import ManagedEntity
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, Managed, call

if TYPE_CHECKING:
    from vdkit.sim.soap.tasks import Task
    from vdkit.sim.soap.world import World

METHOD = "RelocateVM_Task"
#: Who asks for the moves that nobody asked for.
_SYSTEM_USER = "System"


class Relocatable(ManagedEntity):
    """What a virtual machine has of it."""

    machine: Machine

    @call(METHOD)
    def relocate(self, call: Call) -> Any:
        spec, world, machine = call.spec, self.world, self.machine
        if not world.is_vcenter:
            raise NotSupported("A stand-alone host relocates no machine.")
        host = self._host(call, spec.host, "spec.host")
        target = None if spec.datastore is None else _datastore(world, spec.datastore)
        for locator in spec.disk or ():
            if locator.diskId not in machine.disks:
                raise invalid_argument("spec.disk.diskId")
            if _datastore(world, locator.datastore) is not (target or machine.datastore):
                raise NotSupported("All disks of a machine are relocated to one datastore.")

        def work(_task: Task) -> None:
            if target is not None:
                relocation.relocate(machine, target)
            if host is not None:
                world.inventory.move(machine, host)

        return world.tasks.start(METHOD, self, call.session.user, work)

    @call("MigrateVM_Task")
    def migrate(self, call: Call) -> Any:
        """To another host; the files stay where they are."""
        world, machine = self.world, self.machine
        host = self._host(call, call.host, "host")
        if host is None or not world.is_vcenter:
            raise NotSupported("A machine is migrated by a vCenter, to a host that is named.")

        def work(_task: Task) -> None:
            world.inventory.move(machine, host)

        return world.tasks.start("MigrateVM_Task", self, call.session.user, work)

    def _host(self, call: Call, ref: Any, parameter: str) -> str | None:
        """The id of a host that a call names."""
        if ref is None:
            return None
        if self.world.find(ref, call.session) is None:
            raise invalid_argument(parameter)
        moref: str = ref._moId
        return moref


def _datastore(world: World, ref: Any) -> Datastore:
    found = next((one for one in world.inventory.datastores if one.moref == ref._moId), None)
    if found is None:
        raise invalid_argument("spec.datastore")
    return found


class Relocations:
    """Holds a running task for every machine that ``Scenario.relocating`` names.

    The scenario may change at any time, and holds from the next call on: every call comes by here first.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()
        self._held: dict[str, Task] = {}

    def follow(self) -> None:
        wanted = self._world.scenario.relocating
        if not wanted and not self._held:
            return
        with self._lock:
            for name in [name for name in self._held if name not in wanted]:
                self._held.pop(name).end()
            for name in sorted(wanted - self._held.keys()):
                entity = self._entity(name)
                task = None if entity is None else self._world.tasks.hold(METHOD, entity, _SYSTEM_USER)
                if task is not None:
                    self._held[name] = task

    def _entity(self, name: str) -> Managed | None:
        try:
            machine = self._world.inventory.find(name)
        except NotFound:
            return None
        return self._world.find(vim.VirtualMachine(machine.moref))
