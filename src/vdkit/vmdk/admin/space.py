"""How much room a clone needs, told from the allocation map alone.

Source of facts: VMware's "Virtual Disk Format 5.0", and those of the modules that write each type.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.errors import NotSupported
from vdkit.vmdk import cowd, sparse, stream_writer
from vdkit.vmdk.disk import Disk
from vdkit.vmdk.header import ENTRIES_PER_TABLE, TABLE_SECTORS
from vdkit.vmdk.kinds import SECTOR, DiskType
from vdkit.vmdk.split import piece_sectors

#: Bytes for a descriptor in a file of its own, and for each line of a split disk with a long name.
_DESCRIPTOR = 2048
_LINE = 300
#: What incompressible data grows by in a stream: the head of a grain, and what deflate adds to stored blocks.
_GRAIN_MARKER = 12
_STORED = 128

_SAME = {
    "monolithicsparse": DiskType.MONOLITHIC_SPARSE,
    "monolithicflat": DiskType.MONOLITHIC_FLAT,
    "twogbmaxextentsparse": DiskType.SPLIT_SPARSE,
    "2gbmaxextentsparse": DiskType.SPLIT_SPARSE,
    "twogbmaxextentflat": DiskType.SPLIT_FLAT,
    "2gbmaxextentflat": DiskType.SPLIT_FLAT,
    "streamoptimized": DiskType.STREAM_OPTIMIZED,
    "vmfs": DiskType.VMFS_FLAT,
    "vmfspreallocated": DiskType.VMFS_FLAT,
    "vmfseagerzeroedthick": DiskType.VMFS_FLAT,
    "vmfsthick": DiskType.VMFS_FLAT,
    "vmfsthin": DiskType.VMFS_THIN,
    "vmfssparse": DiskType.VMFS_SPARSE,
}


def space_needed(disk: BlockDevice, disk_type: DiskType | None = None) -> int:
    """Bytes that a copy of a whole disk, all its links as one, takes at most as ``disk_type``.

    None means the disk's own type. What the map calls data counts, zeroes inside it too; for streamOptimized
    nothing is taken to be compressible.
    """
    kind = _own_type(disk) if disk_type is None else disk_type
    sectors = -(-disk.capacity // SECTOR)
    match kind:
        case DiskType.MONOLITHIC_FLAT | DiskType.VMFS_FLAT:
            return sectors * SECTOR + _DESCRIPTOR
        case DiskType.SPLIT_FLAT:
            whole = piece_sectors(sectors, None, flat=True, unit=1, where=disk.name)
            return sectors * SECTOR + _DESCRIPTOR + _LINE * -(-sectors // whole)
        case DiskType.VMFS_THIN:
            return _granules(disk, _GRAIN) * _GRAIN + _DESCRIPTOR
        case DiskType.MONOLITHIC_SPARSE:
            header = sparse.new_header(sectors)
            return header.overhead * SECTOR + _granules(disk, _GRAIN) * _GRAIN
        case DiskType.SPLIT_SPARSE:
            return _split_sparse(disk, sectors)
        case DiskType.VMFS_SPARSE:
            return _cowd(disk, sectors)
        case DiskType.STREAM_OPTIMIZED:
            return _stream(disk, sectors)


_GRAIN = sparse.GRAIN_SECTORS * SECTOR


def _own_type(disk: BlockDevice) -> DiskType:
    if not isinstance(disk, Disk):
        raise NotSupported(
            f"{disk.name}: a raw image has no type of its own", remedy="name the type of the copy"
        )
    info = disk.info
    kind = _SAME.get(info.create_type.casefold())
    if kind is None:
        raise NotSupported(
            f"{disk.name}: disks of type {info.create_type!r} cannot be made",
            remedy="name the type of the copy",
        )
    return DiskType.VMFS_THIN if kind is DiskType.VMFS_FLAT and info.thin else kind


def _data(disk: BlockDevice) -> Iterator[tuple[int, int]]:
    return ((run.offset, run.end) for run in disk.extents() if run.kind is ExtentKind.DATA)


def _granules(disk: BlockDevice, size: int) -> int:
    return sum(high - low for low, high in _touched(_data(disk), size))


def _touched(runs: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Ranges ``[low, high)`` of the pieces of ``size`` bytes that hold some of the runs, each piece once."""
    done = 0
    for start, end in runs:
        low, high = max(done, start // size), -(-end // size)
        if high > low:
            yield low, high
            done = high


def _split_sparse(disk: BlockDevice, sectors: int) -> int:
    whole = piece_sectors(sectors, None, flat=False, unit=sparse.GRAIN_SECTORS, where=disk.name)
    count, rest = divmod(sectors, whole)
    total = count * sparse.new_header(whole, descriptor_sectors=0).overhead * SECTOR
    if rest:
        total += sparse.new_header(rest, descriptor_sectors=0).overhead * SECTOR
    # Pieces begin at whole grains, so that a grain is a grain wherever it falls.
    return total + _granules(disk, _GRAIN) * _GRAIN + _DESCRIPTOR + _LINE * (count + 1)


def _cowd(disk: BlockDevice, sectors: int) -> int:
    tables = cowd.tables_for(sectors, cowd.GRAIN_SECTORS)
    head = cowd.HEADER_SECTORS + -(-tables * 4 // SECTOR)
    used = _granules(disk, cowd.ENTRIES_PER_TABLE * cowd.GRAIN_SECTORS * SECTOR)
    return (head + used * cowd.TABLE_SECTORS + _granules(disk, SECTOR)) * SECTOR + _DESCRIPTOR


def _stream(disk: BlockDevice, sectors: int) -> int:
    grain = stream_writer.GRAIN
    record = -(-(_GRAIN_MARKER + grain + _STORED) // SECTOR)
    used = _granules(disk, ENTRIES_PER_TABLE * grain)
    tables = -(-sectors // (ENTRIES_PER_TABLE * stream_writer.GRAIN_SECTORS))
    # A marker in front of every table, of the directory and of the footer, and one at the end.
    closing = 1 + -(-tables * 4 // SECTOR) + 1 + 1 + 1
    blocks = (
        stream_writer.GRAIN_SECTORS + _granules(disk, grain) * record + used * (1 + TABLE_SECTORS) + closing
    )
    return blocks * SECTOR
