"""VStorageObjectManager: first-class disks made, registered, listed, looked at, frozen and deleted.

A vCenter and a stand-alone host have the same calls under different names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from pyVmomi import vim

from vdkit.sim.datastore import Datastore as ModelDatastore
from vdkit.sim.faults import InvalidDatastorePath, NotSupported
from vdkit.sim.firstclass import FirstClassDisk
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, Managed, call

if TYPE_CHECKING:
    from vdkit.sim.soap.tasks import Task
    from vdkit.sim.soap.world import World

_PROVISIONING = {None: True, "": True, "thin": True, "lazyZeroedThick": False, "eagerZeroedThick": False}


class _Manager(Managed):
    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    def _datastore(self, ref: Any) -> ModelDatastore:
        found = next((one for one in self._world.inventory.datastores if one.moref == ref._moId), None)
        if found is None:
            raise invalid_argument("datastore")
        return found

    def _disk(self, call: Call) -> FirstClassDisk:
        return self._world.first_class_disks.get(self._datastore(call.datastore), call.id.id)

    def _task(self, call: Call, method: str, work: Callable[[], Any]) -> Any:
        def run(_task: Task) -> Any:
            return work()

        return self._world.tasks.start(method, self, call.session.user, run, exclusive=False)

    def _describe(self, disk: FirstClassDisk) -> Any:
        known = self._world.first_class_disks
        users = [vim.vslm.ID(id=machine.config.instance_uuid) for machine in known.consumers(disk)]
        return vim.vslm.VStorageObject(
            config=vim.vslm.VStorageObject.ConfigInfo(
                id=vim.vslm.ID(id=disk.id),
                name=disk.name,
                createTime=disk.created,
                keepAfterDeleteVm=True,
                backing=vim.vslm.BaseConfigInfo.DiskFileBackingInfo(
                    datastore=vim.Datastore(disk.datastore.moref),
                    filePath=disk.path,
                    provisioningType="thin",
                ),
                capacityInMB=disk.capacity >> 20,
                consumptionType=["disk"],
                consumerId=users,
            )
        )

    def _create(self, call: Call, method: str) -> Any:
        spec = call.spec
        if not isinstance(spec.backingSpec, vim.vslm.CreateSpec.DiskFileBackingSpec):
            raise invalid_argument("spec.backingSpec")
        if spec.backingSpec.provisioningType not in _PROVISIONING:
            raise invalid_argument("spec.backingSpec.provisioningType")
        if spec.capacityInMB <= 0:
            raise invalid_argument("spec.capacityInMB")
        datastore = self._datastore(spec.backingSpec.datastore)
        thin = _PROVISIONING[spec.backingSpec.provisioningType]

        def work() -> Any:
            made = self._world.first_class_disks.create(
                datastore, spec.name, spec.capacityInMB << 20, thin=thin
            )
            return self._describe(made)

        return self._task(call, method, work)

    def _register(self, call: Call) -> Any:
        datastore, file = self._place(call.path)
        made = self._world.first_class_disks.register(datastore, file, call.name or file)
        return self._describe(made)

    def _place(self, text: str) -> tuple[ModelDatastore, str]:
        """``https://host/folder/vm/disk.vmdk?dcPath=...&dsName=...``, or a datastore path."""
        if text.startswith("["):
            return self._world.inventory.resolve(text)
        url = urlsplit(text)
        store = parse_qs(url.query).get("dsName", [""])[0]
        if not url.path.startswith("/folder/") or not store:
            raise InvalidDatastorePath(text[:200])
        return self._world.inventory.datastore(store), unquote(url.path.removeprefix("/folder/"))

    def _snapshot(self, call: Call, method: str) -> Any:
        disk, description = self._disk(call), call.description or ""

        def work() -> Any:
            return vim.vslm.ID(id=self._world.first_class_disks.snapshot(disk, description).id)

        return self._task(call, method, work)

    def _snapshots(self, call: Call) -> Any:
        info = vim.vslm.VStorageObjectSnapshotInfo
        return info(
            snapshots=[
                info.VStorageObjectSnapshot(
                    id=vim.vslm.ID(id=one.id), createTime=one.created, description=one.description
                )
                for one in self._disk(call).snapshots
            ]
        )

    def _list(self, call: Call) -> list[Any]:
        ids = self._world.first_class_disks.ids(self._datastore(call.datastore))
        return [vim.vslm.ID(id=one) for one in ids]

    def _delete(self, call: Call, method: str) -> Any:
        disk = self._disk(call)
        return self._task(call, method, lambda: self._world.first_class_disks.delete(disk))


class VcenterVStorageObjectManager(_Manager):
    kind = "VcenterVStorageObjectManager"

    @call("CreateDisk_Task")
    def create(self, call: Call) -> Any:
        return self._create(call, "CreateDisk_Task")

    @call("RegisterDisk")
    def register(self, call: Call) -> Any:
        return self._register(call)

    @call("RetrieveVStorageObject")
    def retrieve(self, call: Call) -> Any:
        return self._describe(self._disk(call))

    @call("ListVStorageObject")
    def listed(self, call: Call) -> list[Any]:
        return self._list(call)

    @call("VStorageObjectCreateSnapshot_Task")
    def create_snapshot(self, call: Call) -> Any:
        return self._snapshot(call, "VStorageObjectCreateSnapshot_Task")

    @call("RetrieveSnapshotInfo")
    def snapshots(self, call: Call) -> Any:
        return self._snapshots(call)

    @call("RetrieveSnapshotDetails")
    def snapshot_details(self, call: Call) -> Any:
        disk = self._disk(call)
        frozen = disk.snapshot(call.snapshotId.id)
        return vim.vslm.VStorageObjectSnapshotDetails(path=disk.datastore.path(frozen.file))

    @call("DeleteVStorageObject_Task")
    def delete(self, call: Call) -> Any:
        return self._delete(call, "DeleteVStorageObject_Task")

    @call("DeleteSnapshot_Task")
    def delete_snapshot(self, _call: Call) -> Any:
        raise NotSupported("Snapshots of first-class disks are not removed here.")


class HostVStorageObjectManager(_Manager):
    kind = "HostVStorageObjectManager"

    @call("HostCreateDisk_Task")
    def create(self, call: Call) -> Any:
        return self._create(call, "HostCreateDisk_Task")

    @call("HostRegisterDisk")
    def register(self, call: Call) -> Any:
        return self._register(call)

    @call("HostRetrieveVStorageObject")
    def retrieve(self, call: Call) -> Any:
        return self._describe(self._disk(call))

    @call("HostListVStorageObject")
    def listed(self, call: Call) -> list[Any]:
        return self._list(call)

    @call("HostVStorageObjectCreateSnapshot_Task")
    def create_snapshot(self, call: Call) -> Any:
        return self._snapshot(call, "HostVStorageObjectCreateSnapshot_Task")

    @call("HostVStorageObjectRetrieveSnapshotInfo")
    def snapshots(self, call: Call) -> Any:
        return self._snapshots(call)

    @call("HostDeleteVStorageObject_Task")
    def delete(self, call: Call) -> Any:
        return self._delete(call, "HostDeleteVStorageObject_Task")
