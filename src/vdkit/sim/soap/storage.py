"""Datastores, their browsers, and the managers of files and of virtual disks."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit import vmdk
from vdkit.errors import VixError
from vdkit.sim.datastore import Datastore as ModelDatastore
from vdkit.sim.faults import FileNotFound, NotSupported, from_store_error
from vdkit.sim.locks import Locked, LockMode
from vdkit.sim.places import Entity
from vdkit.sim.soap.entities import ManagedEntity
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, Managed, call, prop

if TYPE_CHECKING:
    from collections.abc import Callable

    from vdkit.sim.soap.world import World

_HOLDER = "a call of the file manager"
_MAX_FILES = 10_000
_DISK_TYPES = {
    "thin": vmdk.DiskType.VMFS_THIN,
    "preallocated": vmdk.DiskType.VMFS_FLAT,
    "thick": vmdk.DiskType.VMFS_FLAT,
    "eagerZeroedThick": vmdk.DiskType.VMFS_FLAT,
}


class Datastore(ManagedEntity):
    kind = "Datastore"

    def __init__(self, world: World, datastore: ModelDatastore) -> None:
        folder = world.inventory.datastore_folder
        super().__init__(world, Entity("Datastore", datastore.moref, datastore.name, folder))
        self.datastore = datastore

    @prop("summary")
    def summary(self) -> Any:
        capacity, free = self.datastore.space()
        return vim.Datastore.Summary(
            datastore=self.ref,
            name=self.datastore.name,
            url=self.datastore.url,
            capacity=capacity,
            freeSpace=free,
            accessible=True,
            multipleHostAccess=len(self.world.inventory.places.hosts) > 1,
            type=self.datastore.kind,
            maintenanceMode="normal",
        )

    @prop("info")
    def info(self) -> Any:
        _, free = self.datastore.space()
        return vim.Datastore.Info(
            name=self.datastore.name,
            url=self.datastore.url,
            freeSpace=free,
            maxFileSize=1 << 46,
            maxMemoryFileSize=1 << 46,
            timestamp=self.world.clock.now(),
        )

    @prop("capability")
    def capability(self) -> Any:
        return vim.Datastore.Capability(
            directoryHierarchySupported=True,
            perFileThinProvisioningSupported=True,
            topLevelDirectoryCreateSupported=True,
            vmfsSparseSupported=True,
        )

    @prop("host")
    def hosts(self) -> list[Any]:
        mount = vim.host.MountInfo(
            path=f"/vmfs/volumes/{self.datastore.name}", accessMode="readWrite", mounted=True, accessible=True
        )
        hosts = [vim.HostSystem(host.moref) for host in self.world.inventory.places.hosts]
        return [vim.Datastore.HostMount(key=host, mountInfo=mount) for host in hosts]

    @prop("vm")
    def machines(self) -> list[Any]:
        return [
            vim.VirtualMachine(machine.moref)
            for machine in self.world.inventory.machines
            if machine.datastore is self.datastore
            or any(disk.datastore is self.datastore for disk in list(machine.disks.values()))
        ]

    @prop("browser")
    def browser(self) -> Any:
        return vim.host.DatastoreBrowser(f"{self.moid}-browser")


class DatastoreBrowser(Managed):
    kind = "HostDatastoreBrowser"

    def __init__(self, world: World, datastore: ModelDatastore) -> None:
        super().__init__(f"{datastore.moref}-browser")
        self._world = world
        self._datastore = datastore

    @prop("datastore")
    def datastores(self) -> list[Any]:
        return [vim.Datastore(self._datastore.moref)]

    @call("SearchDatastore_Task")
    def search(self, call: Call) -> Any:
        path, spec = call.datastorePath, call.searchSpec
        entity = Datastore(self._world, self._datastore)
        return self._world.tasks.start(
            "SearchDatastore_Task",
            entity,
            call.session.user,
            lambda _task: self._search(path, spec),
            exclusive=False,
        )

    def _search(self, path: str, spec: Any) -> Any:
        datastore, folder = self._world.inventory.resolve(path)
        patterns = list(spec.matchPattern) if spec is not None else []
        folder = folder.strip("/")
        if folder and not datastore.exists(folder):
            raise FileNotFound(path)
        files = []
        for name in datastore.files(folder)[:_MAX_FILES]:
            plain = name.rstrip("/")
            if patterns and not any(fnmatch.fnmatchcase(plain, pattern) for pattern in patterns):
                continue
            files.append(self._file(datastore, f"{folder}/{plain}" if folder else plain, name))
        return vim.host.DatastoreBrowser.SearchResults(
            datastore=vim.Datastore(datastore.moref), folderPath=path, file=files
        )

    def _file(self, datastore: ModelDatastore, path: str, name: str) -> Any:
        info = vim.host.DatastoreBrowser
        if name.endswith("/"):
            return info.FolderInfo(path=name.rstrip("/"))
        with datastore.store.open(path) as device:
            size = device.capacity
        kind = info.VmDiskInfo if name.endswith(".vmdk") else info.FileInfo
        return kind(path=name, fileSize=size, modification=self._world.clock.now())


class _Files(Managed):
    """What both managers need: a path of a call, and tasks that turn the store's errors into faults."""

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    def _place(self, name: str | None) -> tuple[ModelDatastore, str]:
        datastore, path = self._world.inventory.resolve(name or "")
        if not path:
            raise invalid_argument("name")
        return datastore, path

    def _task(self, call: Call, method: str, work: Callable[[], Any], path: str) -> Any:
        def guarded(_task: object) -> Any:
            try:
                return work()
            except VixError as error:
                raise from_store_error(error, path) from error

        return self._world.tasks.start(method, self, call.session.user, guarded, exclusive=False)


class FileManager(_Files):
    kind = "FileManager"

    @call("MakeDirectory")
    def make_directory(self, call: Call) -> None:
        datastore, path = self._place(call.name)
        try:
            datastore.store.make_folder(path.rstrip("/"))
        except VixError as error:
            raise from_store_error(error, call.name) from error

    @call("DeleteDatastoreFile_Task")
    def delete(self, call: Call) -> Any:
        datastore, path = self._place(call.name)
        name = call.name

        def work() -> None:
            if not datastore.exists(path):
                raise FileNotFound(name)
            try:
                with datastore.locks.acquire([(path, LockMode.WRITE)], _HOLDER):
                    datastore.store.remove(path)
            except Locked as error:
                raise vim.fault.FileLocked(msg=str(error), file=name) from error

        return self._task(call, "DeleteDatastoreFile_Task", work, name)


class VirtualDiskManager(_Files):
    kind = "VirtualDiskManager"

    @call("CreateVirtualDisk_Task")
    def create(self, call: Call) -> Any:
        datastore, path = self._place(call.name)
        spec = call.spec
        kind = _DISK_TYPES.get(spec.diskType)
        if kind is None:
            raise NotSupported(f"disks of type {spec.diskType} are not simulated")
        capacity = getattr(spec, "capacityKb", 0) * 1024
        if capacity <= 0:
            raise invalid_argument("spec.capacityKb")

        def work() -> str:
            vmdk.create_disk(datastore.store, path, capacity, disk_type=kind).close()
            return datastore.path(path)

        return self._task(call, "CreateVirtualDisk_Task", work, call.name)

    @call("DeleteVirtualDisk_Task")
    def delete(self, call: Call) -> Any:
        datastore, path = self._place(call.name)
        name = call.name

        def work() -> None:
            try:
                with datastore.locks.acquire([(path, LockMode.WRITE)], _HOLDER):
                    vmdk.delete_disk(datastore.store, path)
            except Locked as error:
                raise vim.fault.FileLocked(msg=str(error), file=name) from error

        return self._task(call, "DeleteVirtualDisk_Task", work, name)
