"""What can be done with a disk in local files: describe it, map it, convert it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.workers import CancelToken
from vdkit.disklib.diskmap import MapEntry, map_entries
from vdkit.disklib.opening import detect, open_local
from vdkit.disklib.publish import local_files, publishing
from vdkit.errors import ChainError, FormatError, NotFound, NotSupported, UsageError, VixError
from vdkit.vmdk import (
    Codec,
    Disk,
    DiskInfo,
    DiskType,
    Geometry,
    StreamWriter,
    create_disk,
    delete_disk,
    describe_only,
)

RAW: Final = "raw"
#: VMDKs are whole sectors; a raw image that is not is padded with zeroes.
SECTOR: Final = 512


def allocation_map(
    path: str | Path, *, source_format: str | None = None, allow_paths: Sequence[str] = ()
) -> list[MapEntry]:
    """The runs of a disk, ascending, covering all of it."""
    with open_local(path, source_format=source_format, allow_paths=allow_paths) as disk:
        return list(map_entries(disk))


def describe(
    path: str | Path,
    *,
    source_format: str | None = None,
    allow_paths: Sequence[str] = (),
    allocation: bool = False,
) -> dict[str, Any]:
    """The facts of a disk as data that JSON can hold; sizes in bytes. Facts that are unknown are left out.

    A disk that cannot be opened here, a raw device mapping for instance, is described from its descriptor,
    and ``notes`` say why. ``stored`` is what its files, the parents' too, take of the file system.
    ``allocation``: count what is allocated as well, for which the whole map is read; a disk whose map is
    damaged is described without.
    """
    try:
        disk = open_local(path, source_format=source_format, allow_paths=allow_paths)
    except (NotSupported, ChainError, NotFound) as error:
        return _described_only(Path(path), source_format, error)
    with disk:
        allocated = _allocated(disk) if allocation else None
        if not isinstance(disk, Disk):
            facts = {
                "path": str(path),
                "format": RAW,
                "capacity": disk.capacity,
                "allocated": allocated,
                "stored": _stored([Path(path)]),
                "sector_size": disk.sector_size,
            }
            return {key: value for key, value in facts.items() if value is not None}
        return _facts(path, disk.info, allocated)


def _allocated(disk: BlockDevice) -> int | None:
    try:
        return sum(e.length for e in disk.extents() if e.kind is ExtentKind.DATA)
    except FormatError:
        return None


def _stored(files: Sequence[Path]) -> int:
    """Bytes that files take; what is not there takes none."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.lstat().st_blocks * 512
    return total


def _described_only(path: Path, source_format: str | None, error: VixError) -> dict[str, Any]:
    """From the descriptor alone; raises ``error`` where there is none that can be read."""
    info: DiskInfo | None = None
    with suppress(VixError):
        if (source_format or detect(path)) == "vmdk":
            info = describe_only(FolderStore(path.parent), path.name)
    if info is None:
        raise error
    facts = _facts(path, info, None)
    if not facts.get("notes"):  # what is missing is not in its own link
        facts["notes"] = [f"cannot be opened: {error}"]
    return facts


def _facts(path: str | Path, info: DiskInfo, allocated: int | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "path": str(path),
        "format": "vmdk",
        "type": info.create_type,
        "capacity": info.capacity,
        "allocated": allocated,
        "stored": _stored(local_files(info)),
        "sector_size": info.sector_size,
        "thin": info.thin,
        "adapter": info.adapter,
        "geometry": _joined(info.geometry),
        "bios_geometry": _joined(info.bios_geometry),
        "cid": f"{info.cid:08x}",
        "parent_cid": None if info.parent_cid is None else f"{info.parent_cid:08x}",
        "parent": info.parent,
        "uuid": info.uuid,
        "long_content_id": info.long_content_id,
        "hardware_version": info.hardware_version,
        "encoding": info.encoding,
        "change_tracking": info.change_tracking,
        "unclean": info.unclean,
        "links": [f"{link.name} ({link.create_type}, CID {link.cid:08x})" for link in info.links],
        "files": list(info.files),
        "notes": list(info.notes),
    }
    return {key: value for key, value in facts.items() if value is not None and value != []}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str | DiskType,
    source_format: str | None = None,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    split: int | None = None,
    fast: bool = False,
    allow_paths: Sequence[str] = (),
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy a disk, all its links as one, to a new disk of another type. See :func:`save`."""
    with open_local(source, source_format=source_format, allow_paths=allow_paths) as disk:
        return save(
            disk,
            target,
            to=to,
            adapter=adapter,
            hardware_version=hardware_version,
            split=split,
            fast=fast,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
            cancel=cancel,
        )


def save(
    disk: BlockDevice,
    target: str | Path,
    *,
    to: str | DiskType,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    split: int | None = None,
    fast: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy an open device to a new disk in a local file.

    ``to`` is a :class:`DiskType`, its value, or ``raw``. ``split`` is the size in bytes of an extent of a
    split disk. ``fast`` makes a streamOptimized disk quicker and a little larger. ``progress`` gets the bytes
    done and the bytes in all. The disk has its name only once it is complete
    (:mod:`vdkit.disklib.publish`): whatever ends it early leaves no half disk. Nothing is replaced unless
    ``overwrite`` asks for it. Raises AlreadyExists, and what opening, reading and writing raise.
    """
    kind = _kind(to)
    if kind is DiskType.VMFS_SPARSE:
        raise UsageError(f"{target}: a vmfsSparse disk is a delta and cannot hold a whole disk")
    place = Path(target)

    def tell(state: CopyProgress) -> None:
        if progress is not None:
            progress(state.done, state.total)

    with publishing(place, overwrite=overwrite, source=disk) as store:
        if kind is DiskType.STREAM_OPTIMIZED:
            codec = Codec.FAST if fast else Codec.DENSE
            capacity = whole_sectors(disk)
            with StreamWriter(
                store,
                place.name,
                capacity,
                codec=codec,
                adapter=adapter,
                ddb=hardware_ddb(hardware_version),
            ) as writer:
                result = copy(
                    disk, writer, workers=workers, progress=tell, cancel=cancel, target_is_zero=True
                )
                writer.finish()
                return result
        if kind is None:
            made: Any = store.create(place.name, disk.capacity)
        else:
            made = create_disk(
                store,
                place.name,
                whole_sectors(disk),
                disk_type=kind,
                adapter=adapter,
                hardware_version=hardware_version,
                split=split,
            )
        with made:
            result = copy(disk, made, workers=workers, progress=tell, cancel=cancel, target_is_zero=True)
            made.flush()
            return result


def _kind(to: str | DiskType) -> DiskType | None:
    """What to make; None is a raw image. Raises UsageError that lists what can be made."""
    if isinstance(to, DiskType):
        return to
    if to.casefold() == RAW:
        return None
    try:
        return DiskType.named(to)
    except UsageError as error:
        whole = [RAW, *(kind.value for kind in DiskType if kind is not DiskType.VMFS_SPARSE)]
        raise UsageError(error.message, remedy=f"choose one of {', '.join(whole)}") from error


def unsave(target: str | Path, *, to: str | DiskType) -> None:
    """Remove, as far as possible, what :func:`save` made with the same ``to``."""
    place = Path(target)
    store = FolderStore(place.parent)
    with suppress(VixError):
        if not isinstance(to, DiskType) and to.casefold() == RAW:
            store.remove(place.name)
        else:
            delete_disk(store, place.name)


def hardware_ddb(version: int | None) -> dict[str, str]:
    return {} if version is None else {"virtualHWVersion": str(int(version))}


def whole_sectors(disk: BlockDevice) -> int:
    return -(-disk.capacity // SECTOR) * SECTOR


def _joined(geometry: Geometry | None) -> str | None:
    """``cylinders/heads/sectors``"""
    return None if geometry is None else f"{geometry.cylinders}/{geometry.heads}/{geometry.sectors}"
