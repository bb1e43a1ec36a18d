"""Making empty disks by path: of every type that can be made, raw images too, and children."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vdkit.block.local import FolderStore
from vdkit.disklib.local import RAW, SECTOR, kind_of
from vdkit.disklib.publish import publishing
from vdkit.errors import UsageError
from vdkit.vmdk import DiskType, StreamWriter, create_child, create_disk, open_disk


class Made(NamedTuple):
    kind: str
    capacity: int


def make_disk(
    path: str | Path,
    capacity: int,
    *,
    kind: str,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    split: int | None = None,
    grain: int | None = None,
    sector_size: int = SECTOR,
    preallocate: bool = False,
) -> Made:
    """Make an empty disk; see :func:`vdkit.vmdk.create_disk`. Nothing is replaced."""
    place = Path(path)
    disk_type = kind_of(kind)
    with publishing(place) as store:
        match disk_type:
            case None | DiskType.STREAM_OPTIMIZED:
                if split is not None or grain is not None or preallocate or sector_size != SECTOR:
                    name = RAW if disk_type is None else disk_type.value
                    raise UsageError(f"{path}: a {name} disk has no pieces, grains or sectors to choose")
                if disk_type is None:
                    store.create(place.name, capacity).close()
                else:
                    with StreamWriter(
                        store, place.name, capacity, adapter=adapter, hardware_version=hardware_version
                    ) as writer:
                        writer.finish()
            case _:
                create_disk(
                    store,
                    place.name,
                    capacity,
                    disk_type=disk_type,
                    adapter=adapter,
                    hardware_version=hardware_version,
                    split=split,
                    grain=grain,
                    sector_size=sector_size,
                    preallocate=preallocate,
                ).close()
    return Made(RAW if disk_type is None else disk_type.value, capacity)


def make_child(
    parent: str | Path,
    path: str | Path,
    *,
    kind: str | None = None,
    split: int | None = None,
    grain: int | None = None,
    allow_paths: Sequence[str] = (),
) -> Made:
    """Make an empty child; without ``kind`` it is of the family of its parent, as a snapshot's is."""
    above, place = Path(parent), Path(path)
    store = FolderStore(above.parent)
    with open_disk(store, above.name, allow_paths=allow_paths) as disk:
        capacity = disk.capacity
        disk_type = _family(disk.info.create_type) if kind is None else DiskType.named(kind)
    with publishing(place) as target:
        create_child(
            store,
            above.name,
            place.name,
            disk_type=disk_type,
            child_store=target,
            split=split,
            grain=grain,
            allow_paths=allow_paths,
        )
    return Made(disk_type.value, capacity)


def _family(create_type: str) -> DiskType:
    """What VMware's products make of a snapshot of such a disk: ESXi a delta, the others a sparse disk."""
    folded = create_type.casefold()
    if folded.startswith("vmfs"):
        return DiskType.VMFS_SPARSE
    return DiskType.SPLIT_SPARSE if "gbmaxextent" in folded else DiskType.MONOLITHIC_SPARSE
