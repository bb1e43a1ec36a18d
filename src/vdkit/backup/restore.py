"""A point's disk as a device, and writing it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vdkit.backup.hashing import object_sha256
from vdkit.backup.repository import Link, Point, Repository, check_size
from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.workers import CancelToken, WorkerScope
from vdkit.errors import FormatError, NotSupported, PointInvalid, UsageError, VerifyFailed
from vdkit.vmdk import Disk, DiskType, open_disk


def open_point(repository: Repository, point: Point, key: int) -> BlockDevice:
    """The whole content of disk ``key`` as it was at ``point``, from all the links it stands on.

    The files must be those that the manifests name, with the sizes and content ids written there; their
    hashes are what :func:`open_checked` and :func:`~vdkit.backup.verify.verify` check. Raises
    PointNotFound, PointInvalid.
    """
    links = repository.chain(point, key)
    store = repository.folder_store(point.folder)
    for link in links:
        check_size(store, link.disk.file)
    where = f"point {point.id}, disk {key}"
    try:
        disk = open_disk(store, links[0].disk.file.name)
    except (FormatError, NotSupported) as error:  # a point is of one kind: of any other, it is damaged
        raise PointInvalid(f"{where}: {error.message}", remedy=error.remedy) from error
    try:
        _check_links(disk, links, where)
    except BaseException:
        disk.close()
        raise
    return disk


@contextmanager
def open_checked(
    repository: Repository, point: Point, key: int, *, cancel: CancelToken | None = None
) -> Iterator[tuple[BlockDevice, CancelToken]]:
    """As :func:`open_point`, for a block that reads all of the disk; its files are hashed meanwhile.

    A damaged grain does not open, but a damaged grain table reads as zeroes, or as what an older point holds.
    So what was read may be believed only when the block has been left without an error: leaving waits for the
    hashes, and raises VerifyFailed if one is not the manifest's. The token is cancelled as soon as that is
    known; ``cancel`` cancels it too.
    """
    with (
        open_point(repository, point, key) as device,
        WorkerScope("vdkit-check", cancel) as scope,
    ):
        scope.spawn(_check_hashes, repository, point, key, scope.token)
        yield device, scope.token


def _check_hashes(repository: Repository, point: Point, key: int, cancel: CancelToken) -> None:
    store = repository.folder_store(point.folder)
    for link in repository.chain(point, key):
        record = link.disk.file
        if object_sha256(store, record.name, cancel=cancel) != (record.size, record.sha256):
            raise VerifyFailed(
                f"{store.name}/{record.name}: its SHA-256 is not the one in the manifest of {link.point.id}",
                remedy="vdkit verify names the points that are good and the ranges that are not",
            )


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
    must be at least as large as the disk; what it has beyond is left alone. Raises what :func:`open_checked`
    raises; the target then holds nothing that can be relied on.
    """
    capacity = point.disk(key).capacity
    if target.capacity < capacity:
        raise UsageError(
            f"{target.name} has {target.capacity} bytes, disk {key} of point {point.id} has {capacity}",
            remedy="make the target at least as large",
        )
    with open_checked(repository, point, key, cancel=cancel) as (source, token):
        result = copy(source, target, target_is_zero=target_is_zero, progress=progress, cancel=token)
    target.flush()
    return result
