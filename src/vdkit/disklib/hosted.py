"""What a local connection does with whole disks, by path: create, clone, grow, rename, remove, attach, check.

The functions behind the methods of :class:`~vdkit.disklib.connection.Connection`.

Source of the shape: the published VDDK programming guide.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vdkit.block.copy import CopyResult
from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore
from vdkit.block.workers import CancelToken
from vdkit.disklib.constants import SECTOR_SIZE, AdapterType, DiskType, HwVersion
from vdkit.disklib.handle import DiskHandle, Origin, Progress
from vdkit.disklib.local import save
from vdkit.disklib.publish import publishing
from vdkit.errors import ChainError, CorruptDisk, NotSupported, UsageError, VixError
from vdkit.vmdk import Disk, StreamWriter, create_disk, delete_disk
from vdkit.vmdk import DiskType as VmdkType
from vdkit.vmdk import create_child as make_child

if TYPE_CHECKING:
    from vdkit.vmdk.check import CheckReport


@dataclass(frozen=True, slots=True)
class CreateParams:
    """What disk to make. A clone takes its capacity from the source, and may be ``raw``."""

    disk_type: DiskType | Literal["raw"] = DiskType.MONOLITHIC_SPARSE
    adapter_type: AdapterType = AdapterType.SCSI_LSILOGIC
    hw_version: int = HwVersion.CURRENT
    capacity_sectors: int = 0
    logical_sector_size: int = SECTOR_SIZE
    physical_sector_size: int = 0
    """0: the logical one."""


def split_path(path: str | Path) -> tuple[FolderStore, str]:
    """The folder of a disk and its name there. Raises UsageError, NotFound."""
    place = Path(path)
    if not place.name:
        raise UsageError(f"{path}: not the path of a disk")
    return FolderStore(place.parent), place.name


def create(path: str | Path, params: CreateParams, progress: Progress | None = None) -> None:
    """Make an empty disk. Raises AlreadyExists, LimitExceeded, NotSupported, UsageError."""
    if params.disk_type == "raw":
        raise NotSupported(f"{path}: a raw image is made by cloning, or with any tool that makes a file")
    kind = params.disk_type.vmdk
    capacity = params.capacity_sectors * SECTOR_SIZE
    place = Path(path)
    with publishing(place) as store:
        if kind is VmdkType.STREAM_OPTIMIZED:
            with StreamWriter(
                store,
                place.name,
                capacity,
                adapter=params.adapter_type.text,
                hardware_version=int(params.hw_version),
                sector_size=params.logical_sector_size,
            ) as writer:
                writer.finish()
        else:
            with create_disk(
                store,
                place.name,
                capacity,
                disk_type=kind,
                adapter=params.adapter_type.text,
                hardware_version=int(params.hw_version),
                sector_size=params.logical_sector_size,
            ) as disk:
                _set_physical(disk, params)
    if progress is not None:
        progress(capacity, capacity)


def _set_physical(disk: Disk, params: CreateParams) -> None:
    size = params.physical_sector_size or params.logical_sector_size
    if size == params.logical_sector_size:
        return
    if size != 4096 or params.logical_sector_size != SECTOR_SIZE:
        raise UsageError(
            f"{disk.name}: physical sectors of {size} bytes do not go with logical ones of "
            f"{params.logical_sector_size}",
            remedy="use 512 and 512, 512 and 4096, or 4096 and 4096",
        )
    from vdkit.vmdk.admin import write_metadata

    write_metadata(disk, "physicalSectorSize", str(size))


def create_child(parent: DiskHandle, path: str | Path, disk_type: DiskType) -> None:
    """Make an empty child of an open disk, which must not be written to any more."""
    origin = local_origin(parent, "make a child of")
    place = Path(path)
    with publishing(place) as store:
        make_child(
            origin.store,
            origin.name,
            place.name,
            disk_type=disk_type.vmdk,
            child_store=store,
            allow_paths=origin.allow_paths,
        )


def clone(
    source: BlockDevice,
    path: str | Path,
    params: CreateParams,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy an open disk, all its links as one, to a new local one."""
    return save(
        source,
        path,
        to="raw" if params.disk_type == "raw" else params.disk_type.vmdk,
        adapter=params.adapter_type.text,
        hardware_version=int(params.hw_version),
        overwrite=overwrite,
        progress=progress,
        cancel=cancel,
    )


def grow(
    path: str | Path,
    capacity_sectors: int,
    *,
    update_geometry: bool,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    allow_paths: Sequence[str] = (),
) -> None:
    from vdkit.vmdk.admin import grow_disk

    store, name = split_path(path)
    grow_disk(
        store,
        name,
        capacity_sectors * SECTOR_SIZE,
        update_geometry=update_geometry,
        allow_paths=allow_paths,
        progress=progress,
        cancel=cancel,
    )


def rename(
    source: str | Path, target: str | Path, *, force: bool = False, allow_paths: Sequence[str] = ()
) -> None:
    """Rename a disk's files, or move them to another folder; nothing is replaced."""
    from vdkit.vmdk.admin import rename_disk

    old_store, old = split_path(source)
    new_store, new = split_path(target)
    same = Path(old_store.name).samefile(new_store.name)
    rename_disk(
        old_store,
        old,
        new,
        target_store=None if same else new_store,
        force=force,
        allow_paths=allow_paths,
    )


def unlink(path: str | Path) -> None:
    """Remove the files of a disk, not those of its parents. Raises NotFound, and NotADisk for other files."""
    store, name = split_path(path)
    delete_disk(store, name)


def check_attach(parent: DiskHandle, child: DiskHandle) -> None:
    """Raises why the child cannot be put on the parent."""
    from vdkit.vmdk import admin

    admin.check_attach(_disk_of(parent), _disk_of(child))


def attach(parent: DiskHandle, child: DiskHandle) -> None:
    """Put the parent's chain under the child. The parent's handle is closed, on failure too."""
    from vdkit.vmdk.admin import attach_disk

    try:
        leaf, base = local_origin(child, "attach"), local_origin(parent, "attach to")
        check_attach(parent, child)
        with child.set_aside("attach", writing=False):
            parent.close()
            attach_disk(
                leaf.store, base.name, leaf.name, parent_store=base.store, allow_paths=leaf.allow_paths
            )
    finally:
        with suppress(VixError):
            parent.close()


def check_repair(
    path: str | Path,
    *,
    repair: bool,
    allow_paths: Sequence[str] = (),
    cancel: CancelToken | None = None,
) -> CheckReport:
    """Check a disk's own structures; with ``repair`` mend them in place, keeping an undo file beside it.

    Returns the findings of a good disk, or of one that was mended. Raises CorruptDisk for one that is
    damaged, or still is.
    """
    from vdkit.vmdk.check import check_disk, repair_disk

    store, name = split_path(path)
    report = check_disk(store, name, allow_paths=allow_paths, cancel=cancel)
    if report.verdict.value == "clean":
        return report
    if repair:
        repair_disk(store, name, in_place=True, allow_paths=allow_paths, cancel=cancel)
        report = check_disk(store, name, allow_paths=allow_paths, cancel=cancel)
    if report.verdict.value == "corrupt":
        first = next(f for f in report.findings if f.severity.value == "error")
        raise CorruptDisk(
            f"{path}: {len(report.findings)} findings, the first: {first.message}",
            remedy="mend it: repair=True, or vdkit check --repair --in-place"
            if not repair
            else "this damage cannot be mended in place",
        )
    return report


def local_origin(handle: DiskHandle, what: str) -> Origin:
    if handle.origin is None:
        raise NotSupported(f"{handle.name}: cannot {what} what is not a local VMDK")
    return handle.origin


def _disk_of(handle: DiskHandle) -> Disk:
    device = handle.inner
    if not isinstance(device, Disk):
        raise ChainError(f"{handle.name}: not a local VMDK, so it has neither parent nor child")
    return device
