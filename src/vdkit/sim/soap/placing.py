"""The folder of machines, where new ones are made and existing ones registered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.datastore import split_path
from vdkit.sim.faults import InvalidName, NotSupported
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import MachineConfig
from vdkit.sim.soap import reconfigure
from vdkit.sim.soap.entities import Folder
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, call

if TYPE_CHECKING:
    from vdkit.sim.soap.tasks import Task

_HARDWARE = range(4, 23)


class MachineFolder(Folder):
    @call("CreateVM_Task")
    def create(self, call: Call) -> Any:
        spec = call.config
        if call.pool is None or self.world.find(call.pool) is None:
            raise invalid_argument("pool")
        if not spec.name:
            raise InvalidName(spec.name or "")
        if spec.files is None or not spec.files.vmPathName:
            raise invalid_argument("config.files")
        inventory = self.world.inventory
        path = spec.files.vmPathName
        datastore, rest = split_path(path)
        inventory.datastore(datastore)
        host = self._host(call)

        def work(_task: Task) -> Any:
            machine = inventory.create_machine(
                spec.name,
                datastore,
                reconfigure.disk_specs(spec),
                config=_config_of(spec),
                vmx_path=path if rest else None,
            )
            self._settle(machine, host)
            return vim.VirtualMachine(machine.moref)

        return self.world.tasks.start("CreateVM_Task", self, call.session.user, work, exclusive=False)

    @call("RegisterVM_Task")
    def register(self, call: Call) -> Any:
        path, name, host = call.path, call.name, self._host(call)
        if bool(call.asTemplate) != path.lower().endswith(".vmtx"):
            raise NotSupported("A template is registered by its .vmtx file, any other machine by its .vmx.")

        def work(_task: Task) -> Any:
            machine = self.world.inventory.register_machine(path, name)
            self._settle(machine, host)
            return vim.VirtualMachine(machine.moref)

        return self.world.tasks.start("RegisterVM_Task", self, call.session.user, work, exclusive=False)

    def _host(self, call: Call) -> str | None:
        """The id of the host that the call names. Raises InvalidArgument."""
        if call.host is None:
            return None
        if self.world.find(call.host) is None:
            raise invalid_argument("host")
        moref: str = call.host._moId
        return moref

    def _settle(self, machine: Machine, host: str | None) -> None:
        self.world.inventory.places.put(machine, self.entity)
        if host is not None:
            self.world.inventory.move(machine, host)


def _config_of(spec: Any) -> MachineConfig:
    fresh = MachineConfig.new(spec.name)
    hardware = fresh.hardware_version
    if spec.version:
        text = spec.version.removeprefix("vmx-")
        if not text.isdigit() or int(text) not in _HARDWARE:
            raise invalid_argument("config.version")
        hardware = int(text)
    return replace(
        fresh,
        bios_uuid=spec.uuid or fresh.bios_uuid,
        instance_uuid=spec.instanceUuid or fresh.instance_uuid,
        guest_id=spec.guestId or fresh.guest_id,
        memory_mib=spec.memoryMB or fresh.memory_mib,
        cpus=spec.numCPUs or fresh.cpus,
        firmware=spec.firmware or fresh.firmware,
        hardware_version=hardware,
        change_tracking=bool(spec.changeTrackingEnabled),
        annotation=spec.annotation or "",
    )
