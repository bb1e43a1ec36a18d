"""Folders, datacenter, compute resource, pool, host, network: what machines and datastores hang in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pyVmomi import vim

from vdkit.sim.places import Entity
from vdkit.sim.soap.authorization import as_methods
from vdkit.sim.soap.faults import reference
from vdkit.sim.soap.objects import Managed, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

GIB = 1 << 30


class ManagedEntity(Managed):
    """What every object of the tree has."""

    def __init__(self, world: World, entity: Entity) -> None:
        super().__init__(entity.moref)
        self.world = world
        self.entity = entity

    @prop("name")
    def name(self) -> str:
        return self.entity.name

    @prop("parent")
    def parent(self) -> Any:
        parent = self.entity.parent
        return None if parent is None else reference(parent.kind, parent.moref)

    @prop("overallStatus", "configStatus")
    def status(self) -> str:
        return "green"

    @prop("recentTask")
    def recent_task(self) -> list[Any]:
        return self.world.tasks.recent_of(self)

    @prop("disabledMethod")
    def disabled_methods(self) -> list[Any]:
        return as_methods(self.world.disabled.of(self.key))

    @prop("effectiveRole")
    def effective_role(self) -> list[int]:
        return [-1]

    @prop("alarmActionsEnabled")
    def alarm_actions(self) -> bool:
        return True

    def refs_of(self, *entities: Entity) -> list[Any]:
        return [reference(one.kind, one.moref) for one in entities]

    def machine_refs(self) -> list[Any]:
        return [vim.VirtualMachine(machine.moref) for machine in self.world.inventory.machines]

    def datastore_refs(self) -> list[Any]:
        return [vim.Datastore(datastore.moref) for datastore in self.world.inventory.datastores]


class Folder(ManagedEntity):
    kind = "Folder"
    #: What may be in a folder, by the folder's place in the tree.
    _TYPES: ClassVar[dict[str, tuple[str, ...]]] = {
        "root_folder": ("Folder", "Datacenter"),
        "vm_folder": ("Folder", "VirtualMachine", "VirtualApp"),
        "host_folder": ("Folder", "ComputeResource"),
        "datastore_folder": ("Folder", "Datastore", "StoragePod"),
        "network_folder": ("Folder", "Network"),
    }

    def _place(self) -> str:
        inventory = self.world.inventory
        for place in self._TYPES:
            if getattr(inventory, place).moref == self.moid:
                return place
        return "vm_folder"

    @prop("childType")
    def child_type(self) -> list[Any]:
        return [getattr(vim, name) for name in self._TYPES[self._place()]]

    @prop("childEntity")
    def children(self) -> list[Any]:
        inventory = self.world.inventory
        match self._place():
            case "root_folder":
                return self.refs_of(inventory.datacenter)
            case "vm_folder":
                places = inventory.places
                below = [one for one in places.folders if one.parent == self.entity]
                inside = [one for one in inventory.machines if places.folder_of(one) == self.entity]
                return self.refs_of(*below) + [vim.VirtualMachine(one.moref) for one in inside]
            case "host_folder":
                return self.refs_of(inventory.compute)
            case "datastore_folder":
                return self.datastore_refs()
            case _:
                return self.refs_of(inventory.network)


class Datacenter(ManagedEntity):
    kind = "Datacenter"

    @prop("vmFolder")
    def vm_folder(self) -> Any:
        return vim.Folder(self.world.inventory.vm_folder.moref)

    @prop("hostFolder")
    def host_folder(self) -> Any:
        return vim.Folder(self.world.inventory.host_folder.moref)

    @prop("datastoreFolder")
    def datastore_folder(self) -> Any:
        return vim.Folder(self.world.inventory.datastore_folder.moref)

    @prop("networkFolder")
    def network_folder(self) -> Any:
        return vim.Folder(self.world.inventory.network_folder.moref)

    @prop("datastore")
    def datastores(self) -> list[Any]:
        return self.datastore_refs()

    @prop("network")
    def networks(self) -> list[Any]:
        return self.refs_of(self.world.inventory.network)


class ComputeResource(ManagedEntity):
    kind = "ComputeResource"

    @prop("host")
    def hosts(self) -> list[Any]:
        return self.refs_of(*self.world.inventory.places.hosts)

    @prop("resourcePool")
    def pool(self) -> Any:
        return vim.ResourcePool(self.world.inventory.pool.moref)

    @prop("datastore")
    def datastores(self) -> list[Any]:
        return self.datastore_refs()

    @prop("network")
    def networks(self) -> list[Any]:
        return self.refs_of(self.world.inventory.network)

    @prop("summary")
    def summary(self) -> Any:
        return vim.ComputeResource.Summary(
            totalCpu=8000,
            totalMemory=32 * GIB,
            numCpuCores=4,
            numCpuThreads=8,
            effectiveCpu=8000,
            effectiveMemory=32 * 1024,
            numHosts=len(self.world.inventory.places.hosts),
            numEffectiveHosts=len(self.world.inventory.places.hosts),
            overallStatus="green",
        )


class ClusterComputeResource(ComputeResource):
    kind = "ClusterComputeResource"


class ResourcePool(ManagedEntity):
    kind = "ResourcePool"

    @prop("owner")
    def owner(self) -> Any:
        compute = self.world.inventory.compute
        return reference(compute.kind, compute.moref)

    @prop("resourcePool")
    def pools(self) -> list[Any]:
        return []

    @prop("vm")
    def machines(self) -> list[Any]:
        return self.machine_refs()


class HostSystem(ManagedEntity):
    kind = "HostSystem"

    @prop("vm")
    def machines(self) -> list[Any]:
        places = self.world.inventory.places
        here = [one for one in self.world.inventory.machines if places.host_of(one) == self.entity]
        return [vim.VirtualMachine(one.moref) for one in here]

    @prop("datastore")
    def datastores(self) -> list[Any]:
        return self.datastore_refs()

    @prop("network")
    def networks(self) -> list[Any]:
        return self.refs_of(self.world.inventory.network)

    @prop("runtime")
    def runtime(self) -> Any:
        scenario = self.world.scenario
        lost = self.entity.name in scenario.hosts_disconnected
        return vim.host.RuntimeInfo(
            connectionState="notResponding" if lost else "connected",
            powerState="unknown" if lost else "poweredOn",
            inMaintenanceMode=self.entity.name in scenario.hosts_in_maintenance,
        )

    @prop("summary")
    def summary(self) -> Any:
        return vim.host.Summary(
            host=self.ref,
            runtime=self.runtime(),
            config=vim.host.Summary.ConfigSummary(
                name=self.entity.name,
                port=443,
                sslThumbprint=self.world.data_ports[self.moid].thumbprint,
                vmotionEnabled=False,
                product=self._product(),
            ),
            quickStats=vim.host.Summary.QuickStats(),
            overallStatus="green",
            rebootRequired=False,
        )

    def _product(self) -> Any:
        version = ".".join(self.world.scenario.api_version.split(".")[:3])
        return vim.AboutInfo(
            name="VMware ESXi",
            fullName=f"VMware ESXi {version}",
            vendor="VMware, Inc.",
            version=version,
            build="24022510",
            osType="vmnix-x86",
            productLineId="embeddedEsx",
            apiType="HostAgent",
            apiVersion=self.world.scenario.api_version,
        )


class Network(ManagedEntity):
    kind = "Network"

    @prop("host")
    def hosts(self) -> list[Any]:
        return self.refs_of(*self.world.inventory.places.hosts)

    @prop("vm")
    def machines(self) -> list[Any]:
        return self.machine_refs()

    @prop("summary")
    def summary(self) -> Any:
        return vim.Network.Summary(network=self.ref, name=self.entity.name, accessible=True, ipPoolName="")


BY_KIND: dict[str, type[ManagedEntity]] = {
    one.kind: one
    for one in (Datacenter, ComputeResource, ClusterComputeResource, ResourcePool, HostSystem, Network)
}
