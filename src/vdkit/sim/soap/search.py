"""SearchIndex: finding machines and the rest of the tree by uuid, path or name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.machine import Machine
from vdkit.sim.soap.faults import invalid_argument, not_found
from vdkit.sim.soap.objects import Call, Managed, call

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

#: Where the named children of an entity are.
_CHILDREN = {
    "Folder": ("childEntity",),
    "Datacenter": ("vmFolder", "hostFolder", "datastoreFolder", "networkFolder"),
    "ComputeResource": ("host", "resourcePool"),
    "ClusterComputeResource": ("host", "resourcePool"),
    "ResourcePool": ("resourcePool",),
}


class SearchIndex(Managed):
    kind = "SearchIndex"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    def _machines_by_uuid(self, call: Call) -> Iterator[Machine]:
        if not call.vmSearch:
            return
        wanted = (call.uuid or "").lower()
        for machine in self._world.inventory.machines:
            config = machine.config
            if wanted == (config.instance_uuid if call.instanceUuid else config.bios_uuid).lower():
                yield machine

    @call("FindByUuid")
    def find_by_uuid(self, call: Call) -> Any:
        return next((vim.VirtualMachine(one.moref) for one in self._machines_by_uuid(call)), None)

    @call("FindAllByUuid")
    def find_all_by_uuid(self, call: Call) -> list[Any]:
        return [vim.VirtualMachine(one.moref) for one in self._machines_by_uuid(call)]

    @call("FindByDnsName", "FindByIp")
    def find_by_guest(self, _call: Call) -> None:
        """The simulated guests run no tools, so nobody knows their names and addresses."""

    @call("FindAllByDnsName", "FindAllByIp")
    def find_all_by_guest(self, _call: Call) -> list[Any]:
        return []

    @call("FindByDatastorePath")
    def find_by_datastore_path(self, call: Call) -> Any:
        datastore, name = self._world.inventory.resolve(call.path)
        for machine in self._world.inventory.machines:
            if machine.datastore is datastore and machine.vmx_name == name:
                return vim.VirtualMachine(machine.moref)
        return None

    @call("FindByInventoryPath")
    def find_by_inventory_path(self, call: Call) -> Any:
        """``ha-datacenter/vm/name``; a name that holds a slash has ``%2f`` there."""
        root = self._world.inventory.root_folder
        managed = self._world.find(vim.Folder(root.moref))
        for part in [part for part in call.inventoryPath.split("/") if part]:
            managed = self._child(managed, part) if managed is not None else None
        return None if managed is None else managed.ref

    @call("FindChild")
    def find_child(self, call: Call) -> Any:
        if call.entity is None:
            raise invalid_argument("entity")
        managed = self._world.find(call.entity)
        if managed is None:
            raise not_found(call.entity)
        child = self._child(managed, call.name)
        return None if child is None else child.ref

    def _child(self, managed: Managed, name: str) -> Managed | None:
        for path in _CHILDREN.get(managed.kind, ()):
            value = managed.read(path)
            for ref in value if isinstance(value, list) else [value]:
                child = self._world.find(ref)
                if child is not None and _escaped(child.read("name")) == _escaped(name):
                    return child
        return None


def _escaped(name: str) -> str:
    """Names as inventory paths write them; one that is written so already stays as it is."""
    return name.replace("/", "%2f").replace("\\", "%5c").replace("%2F", "%2f").replace("%5C", "%5c")
