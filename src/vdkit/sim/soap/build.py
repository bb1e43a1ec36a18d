"""Puts the managed objects of a host into its world."""

from __future__ import annotations

from vdkit.sim.faults import ManagedObjectNotFound
from vdkit.sim.soap.authorization import AuthorizationManager
from vdkit.sim.soap.entities import BY_KIND, Folder
from vdkit.sim.soap.fcd import HostVStorageObjectManager, VcenterVStorageObjectManager
from vdkit.sim.soap.licences import LicenseManager
from vdkit.sim.soap.objects import Managed
from vdkit.sim.soap.placing import MachineFolder
from vdkit.sim.soap.search import SearchIndex
from vdkit.sim.soap.service import MANAGERS, NfcService, ServiceInstance
from vdkit.sim.soap.storage import Datastore, DatastoreBrowser, FileManager, VirtualDiskManager
from vdkit.sim.soap.views import ViewManager
from vdkit.sim.soap.vm import VirtualMachine, VirtualMachineSnapshot
from vdkit.sim.soap.world import World
from vdkit.wire.vim import internal


def populate(world: World) -> None:
    """The lasting objects, and resolvers for those that come and go with the model."""
    internal.register()
    inventory = world.inventory

    def named(manager: str) -> str:
        return world.manager_id(*MANAGERS[manager])

    world.add(ServiceInstance(world))
    world.add(ViewManager(named("viewManager"), world))
    world.add(SearchIndex(named("searchIndex"), world))
    world.add(FileManager(named("fileManager"), world))
    world.add(AuthorizationManager(named("authorizationManager"), world))
    world.add(LicenseManager(named("licenseManager"), world))
    world.add(VirtualDiskManager(named("virtualDiskManager"), world))
    world.add(NfcService(named("nfcService"), world))
    storage = VcenterVStorageObjectManager if world.is_vcenter else HostVStorageObjectManager
    world.add(storage(named("vStorageObjectManager"), world))
    for entity in inventory.entities:
        if entity.kind == "Folder":
            kind = MachineFolder if entity is inventory.vm_folder else Folder
            world.add(kind(world, entity))
        else:
            world.add(BY_KIND[entity.kind](world, entity))

    def machine(moid: str) -> Managed | None:
        try:
            return VirtualMachine(world, inventory.machine(moid))
        except ManagedObjectNotFound:
            return None

    def snapshot(moid: str) -> Managed | None:
        try:
            return VirtualMachineSnapshot(world, *inventory.snapshot(moid))
        except ManagedObjectNotFound:
            return None

    def datastore(moid: str) -> Managed | None:
        return next((Datastore(world, one) for one in inventory.datastores if one.moref == moid), None)

    def browser(moid: str) -> Managed | None:
        made = (DatastoreBrowser(world, one) for one in inventory.datastores)
        return next((one for one in made if one.moid == moid), None)

    def folder(moid: str) -> Managed | None:
        found = inventory.places.folder(moid)
        return None if found is None else MachineFolder(world, found)

    world.resolve_with("Folder", folder)
    world.resolve_with("VirtualMachine", machine)
    world.resolve_with("VirtualMachineSnapshot", snapshot)
    world.resolve_with("Datastore", datastore)
    world.resolve_with("HostDatastoreBrowser", browser)
