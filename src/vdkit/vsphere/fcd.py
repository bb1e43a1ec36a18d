"""First-class disks: virtual disks with an id of their own, attached to a machine or to none.

Source: the vSphere Web Services API reference (VcenterVStorageObjectManager, HostVStorageObjectManager,
VStorageObject).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pyVmomi import vim

from vdkit.errors import Ambiguous, NotSupported, ObjectNotFound, ProtocolError, UsageError
from vdkit.vsphere.inventory import get_machine
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.properties import of_all
from vdkit.vsphere.session import Session

_ID: Final = re.compile(r"[0-9A-Za-z-]{1,128}")
_DISK_CONSUMPTION: Final = "disk"


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """VixDiskLib's ``vStorageObjSpec``: the disk's id, its datastore (an id, or a name), one of its snapshots
    by id.
    """

    id: str
    datastore: str
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class FirstClassDisk:
    """A disk as the host described it at one moment."""

    id: str
    name: str
    capacity: int
    """Bytes."""
    file: str
    """Datastore path of its current link, or of the snapshot's that was asked for."""
    datastore: str
    """The datastore's id."""
    consumers: tuple[str, ...] = ()
    """Instance UUIDs of the machines that it is attached to."""
    snapshot: str | None = None


def get_disk(session: Session, spec: DiskSpec) -> FirstClassDisk:
    """Raises ObjectNotFound, NotSupported where the host knows no such disks, UsageError."""
    for text, name in ((spec.id, "id of a first-class disk"), (spec.snapshot or "x", "id of its snapshot")):
        if not _ID.fullmatch(text):
            raise UsageError(f"{text[:80]!r} cannot be the {name}")
    what = f"look at first-class disk {spec.id}"
    datastore = _datastore(session, spec.datastore)
    manager = _manager(session, what)
    call = manager.RetrieveVStorageObject if session.about.is_vcenter else manager.HostRetrieveVStorageObject
    found: Any = session.read(what, partial(call, id=vim.vslm.ID(id=spec.id), datastore=datastore))
    config = found.config
    file = getattr(config.backing, "filePath", None) or ""
    if not file or (config.consumptionType and _DISK_CONSUMPTION not in config.consumptionType):
        raise NotSupported(f"{session.where}: {what}: it is not a disk in a file of a datastore")
    if spec.snapshot is not None:
        file = _snapshot_file(session, manager, spec, datastore)
    return FirstClassDisk(
        id=spec.id,
        name=config.name or "",
        capacity=(config.capacityInMB or 0) << 20,
        file=file,
        datastore=datastore._GetMoId(),
        consumers=tuple(one.id for one in config.consumerId or ()),
        snapshot=spec.snapshot,
    )


def list_disks(session: Session, datastore: str) -> list[str]:
    """The ids of the disks on a datastore, given by its id or name."""
    what = f"list the first-class disks of datastore {datastore}"
    manager = _manager(session, what)
    ref = _datastore(session, datastore)
    call = manager.ListVStorageObject if session.about.is_vcenter else manager.HostListVStorageObject
    return sorted(one.id for one in session.read(what, lambda: call(datastore=ref)) or ())


def machine_of(session: Session, disk: FirstClassDisk) -> VirtualMachine | None:
    """The machine that the disk is attached to; None for one that lies in its datastore for itself."""
    index = session.content.searchIndex
    for uuid in disk.consumers:
        what = f"find the machine {uuid} that first-class disk {disk.id} is attached to"
        found = session.read(what, partial(index.FindByUuid, None, uuid, True, True))
        if found is not None:
            return get_machine(session, found._GetMoId())
    if disk.consumers:
        raise ObjectNotFound(
            f"{session.where}: first-class disk {disk.id} is attached to {', '.join(disk.consumers)}, "
            "which this account does not see",
            remedy="check the account's role on that machine",
        )
    return None


def _manager(session: Session, what: str) -> Any:
    manager = getattr(session.content, "vStorageObjectManager", None)
    if manager is None:
        raise NotSupported(
            f"{session.where}: {what}: the host has no first-class disks ({session.about.full_name})",
            remedy="they came with vSphere 6.5",
        )
    return manager


def _datastore(session: Session, text: str) -> Any:
    rows = of_all(session, {vim.Datastore: ("name",)}, f"find datastore {text!r}")
    found = [row for row in rows if row.moref == text] or [row for row in rows if row.get("name") == text]
    if not found:
        known = ", ".join(sorted(f"{row.moref} ({row.get('name')})" for row in rows)[:10]) or "none"
        raise ObjectNotFound(f"{session.where}: there is no datastore {text!r}", remedy=f"known are: {known}")
    if len(found) > 1:
        raise Ambiguous(
            f"{session.where}: {len(found)} datastores are called {text!r}: "
            f"{', '.join(row.moref for row in found)}",
            remedy="name it by its id",
        )
    return session.managed(vim.Datastore, found[0].moref)


def _snapshot_file(session: Session, manager: Any, spec: DiskSpec, datastore: Any) -> str:
    what = f"look at snapshot {spec.snapshot} of first-class disk {spec.id}"
    if not session.about.is_vcenter:
        raise NotSupported(
            f"{session.where}: {what}: an ESXi host does not tell the file of a snapshot",
            remedy="connect to the vCenter that manages it",
        )
    details: Any = session.read(
        what,
        partial(
            manager.RetrieveSnapshotDetails,
            id=vim.vslm.ID(id=spec.id),
            datastore=datastore,
            snapshotId=vim.vslm.ID(id=spec.snapshot),
        ),
    )
    path = getattr(details, "path", None) or ""
    if not path.startswith("["):
        raise ProtocolError(f"{session.where}: {what}: the host names no file")
    return str(path)
