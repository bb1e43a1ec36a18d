"""What can be done with a disk in local files: describe it, map it, convert it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.store import Store
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
#: Standard input or output in the place of a path.
PIPE: Final = "-"
#: VMDKs are whole sectors; a raw image that is not is padded with zeroes.
SECTOR: Final = 512


def allocation_map(
    path: str | Path,
    *,
    source_format: str | None = None,
    allow_paths: Sequence[str] = (),
    ignore_journal: bool = False,
) -> list[MapEntry]:
    """The runs of a disk, ascending, covering all of it."""
    with open_local(
        path, source_format=source_format, allow_paths=allow_paths, ignore_journal=ignore_journal
    ) as disk:
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
    ignore_journal: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancel: CancelToken | None = None,
) -> CopyResult:
    """Copy a disk, all its links as one, to a new disk of another type. See :func:`save`.

    The source ``-`` is a streamOptimized disk from standard input, the target ``-`` one to standard output.
    """
    if str(source) == PIPE:
        return _convert_input(
            target,
            to=to,
            adapter=adapter,
            hardware_version=hardware_version,
            split=split,
            overwrite=overwrite,
            workers=workers,
            progress=progress,
            cancel=cancel,
        )
    with open_local(
        source, source_format=source_format, allow_paths=allow_paths, ignore_journal=ignore_journal
    ) as disk:
        if str(target) == PIPE:
            return _convert_to_output(
                disk,
                to,
                adapter=adapter,
                hardware_version=hardware_version,
                fast=fast,
                workers=workers,
                progress=progress,
                cancel=cancel,
            )
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


def _convert_input(target: str | Path, **options: Any) -> CopyResult:
    from vdkit.disklib.streaming import load_stream

    if str(target) == PIPE:
        raise UsageError("from standard input to standard output there is nothing to convert")
    return load_stream(sys.stdin.buffer, target, **options)


def _convert_to_output(disk: BlockDevice, to: str | DiskType, **options: Any) -> CopyResult:
    from vdkit.disklib.streaming import save_stream

    if kind_of(to) is not DiskType.STREAM_OPTIMIZED:
        raise UsageError("only a streamOptimized disk can be written to standard output", remedy="use it")
    return save_stream(disk, sys.stdout.buffer, **options)


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
    kind = kind_of(to)
    place = Path(target)

    def tell(state: CopyProgress) -> None:
        if progress is not None:
            progress(state.done, state.total)

    with publishing(place, overwrite=overwrite, source=disk) as store:
        if kind is DiskType.STREAM_OPTIMIZED:
            return copy_to_stream(
                disk,
                store,
                place.name,
                adapter=adapter,
                hardware_version=hardware_version,
                fast=fast,
                workers=workers,
                progress=tell,
                cancel=cancel,
            )
        with new_disk(
            store,
            place.name,
            disk.capacity,
            kind,
            adapter=adapter,
            hardware_version=hardware_version,
            split=split,
        ) as made:
            result = copy(disk, made, workers=workers, progress=tell, cancel=cancel, target_is_zero=True)
            made.flush()
            return result


def copy_to_stream(
    disk: BlockDevice,
    store: Store,
    name: str,
    *,
    adapter: str,
    hardware_version: int | None,
    fast: bool,
    workers: int | None,
    progress: Callable[[CopyProgress], None],
    cancel: CancelToken | None,
    durable: bool = True,
) -> CopyResult:
    """A new streamOptimized disk with the content of an open device."""
    with StreamWriter(
        store,
        name,
        whole_sectors(disk),
        codec=Codec.FAST if fast else Codec.DENSE,
        adapter=adapter,
        hardware_version=hardware_version,
        durable=durable,
    ) as writer:
        result = copy(disk, writer, workers=workers, progress=progress, cancel=cancel, target_is_zero=True)
        writer.finish()
        return result


def new_disk(
    store: Store,
    name: str,
    capacity: int,
    kind: DiskType | None,
    *,
    adapter: str,
    hardware_version: int | None,
    split: int | None,
) -> WritableDevice:
    """An empty disk, or raw image if ``kind`` is None, of at least ``capacity`` bytes."""
    if kind is None:
        return store.create(name, capacity)
    return create_disk(
        store,
        name,
        -(-capacity // SECTOR) * SECTOR,
        disk_type=kind,
        adapter=adapter,
        hardware_version=hardware_version,
        split=split,
    )


def kind_of(to: str | DiskType) -> DiskType | None:
    """What to make; None is a raw image. Raises UsageError that lists what can be made."""
    if to is DiskType.VMFS_SPARSE or (isinstance(to, str) and to.casefold() == "vmfssparse"):
        raise UsageError("a vmfsSparse disk is a delta and cannot hold a whole disk")
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


def whole_sectors(disk: BlockDevice) -> int:
    return -(-disk.capacity // SECTOR) * SECTOR


def _joined(geometry: Geometry | None) -> str | None:
    """``cylinders/heads/sectors``"""
    return None if geometry is None else f"{geometry.cylinders}/{geometry.heads}/{geometry.sectors}"
