"""A point's disk as a device, and writing it back."""

from __future__ import annotations

from collections.abc import Callable

from vdkit.backup.repository import Link, Point, Repository, check_size
from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken
from vdkit.errors import FormatError, PointInvalid, UsageError
from vdkit.vmdk import Disk, open_disk


def open_point(repository: Repository, point: Point, key: int) -> BlockDevice:
    """The whole content of disk ``key`` as it was at ``point``, from all the links it stands on.

    The files must be those that the manifests name, with the sizes and content ids written there; hashes are
    checked by :func:`~vdkit.backup.verify.verify`. Raises PointNotFound, PointInvalid.
    """
    links = repository.chain(point, key)
    store = repository.folder_store(point.folder)
    for link in links:
        check_size(store, link.disk.file)
    name = links[0].disk.file.name
    try:
        disk = open_disk(store, name)
    except FormatError as error:
        raise PointInvalid(f"point {point.id}, disk {key}: {error.message}", remedy=error.remedy) from error
    try:
        _check_links(disk, links)
    except BaseException:
        disk.close()
        raise
    return disk
