"""A point's disk as a device, and writing it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vdkit.backup.repository import Link, Point, Repository, check_size
from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.errors import FormatError, PointInvalid, UsageError
from vdkit.vmdk import Disk, DiskType, open_disk


def open_point(repository: Repository, point: Point, key: int) -> BlockDevice:
    """The whole content of disk ``key`` as it was at ``point``, from all the links it stands on.

    The files must be those that the manifests name, with the sizes and content ids written there; their
    hashes are what :func:`~vdkit.backup.verify.verify` checks. Raises PointNotFound, PointInvalid.
    """
    links = repository.chain(point, key)
    store = repository.folder_store(point.folder)
    for link in links:
        check_size(store, link.disk.file)
    where = f"point {point.id}, disk {key}"
    try:
        disk = open_disk(store, links[0].disk.file.name)
    except FormatError as error:
        raise PointInvalid(f"{where}: {error.message}", remedy=error.remedy) from error
    try:
        _check_links(disk, links, where)
    except BaseException:
        disk.close()
        raise
    return disk


def _check_links(disk: Disk, links: Sequence[Link], where: str) -> None:
    """The chain that opened must be the one that the manifests describe, link by link."""
    found = disk.info.links
    for link, info in zip(links, found, strict=False):
        record = link.disk
        if info.files != (record.file.name,) or info.create_type != DiskType.STREAM_OPTIMIZED.value:
            raise PointInvalid(f"{where}: {info.name} is not {record.file.name}, which the manifest names")
        if info.cid != record.cid:
            raise PointInvalid(
                f"{where}: {info.name} has content id {info.cid:08x}, the manifest says {record.cid:08x}"
            )
    if len(found) != len(links):
        raise PointInvalid(f"{where}: {len(found)} links, the manifests say {len(links)}")
    if disk.capacity != links[0].disk.capacity:
        raise PointInvalid(
            f"{where}: {disk.capacity} bytes, the manifest says {links[0].disk.capacity}",
            remedy="verify the repository",
        )


def restore_disk(
    repository: Repository,
    point: Point,
    key: int,
    target: WritableDevice,
    *,
    target_is_zero: bool = False,
    progress: Callable[[CopyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Write disk ``key`` of ``point`` to ``target``, and flush it.

    ``target_is_zero`` says that the target is new and reads as zero: zeroes are then not written. The target
    must be at least as large as the disk; what it has beyond is left alone.
    """
    capacity = point.disk(key).capacity
    if target.capacity < capacity:
        raise UsageError(
            f"{target.name} has {target.capacity} bytes, disk {key} of point {point.id} has {capacity}",
            remedy="make the target at least as large",
        )
    with open_point(repository, point, key) as source:
        result = copy(source, target, target_is_zero=target_is_zero, progress=progress, cancel=cancel)
    target.flush()
    return result
