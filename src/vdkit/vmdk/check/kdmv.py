"""Check of a hosted sparse extent without compression.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.device import BlockDevice
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.directory import Area, Directory, examine, read_directory
from vdkit.vmdk.check.shape import Shape
from vdkit.vmdk.check.tablecheck import check_tables
from vdkit.vmdk.header import ENTRIES_PER_TABLE, SparseHeader
from vdkit.vmdk.kinds import SECTOR


def shape_of(file: BlockDevice, header: SparseHeader, start: int) -> Shape:
    return Shape(
        where=file.name,
        entries=ENTRIES_PER_TABLE,
        grain=header.grain,
        capacity=header.capacity,
        lowest=header.overhead,
        file_bytes=file.capacity,
        zero_entries=header.zero_grains,
        start=start,
    )


def areas_of(header: SparseHeader) -> list[Area]:
    """What no table and no grain may lie in."""
    areas = [
        Area(0, 1, "header"),
        Area(header.directory, header.directory + header.directory_sectors, "grain directory"),
    ]
    if header.descriptor:
        areas.append(Area(header.descriptor, header.descriptor + header.descriptor_sectors, "descriptor"))
    if header.redundant:
        start = header.redundant_directory
        areas.append(Area(start, start + header.directory_sectors, "redundant grain directory"))
    return areas


def read_directories(file: BlockDevice, header: SparseHeader, shape: Shape) -> list[Directory]:
    """Read and examined, the primary one first."""
    copies = [read_directory(file, shape, "grain directory", header.directory)]
    if header.redundant:
        copies.append(read_directory(file, shape, "redundant grain directory", header.redundant_directory))
    examine(file, shape, copies, areas_of(header))
    return copies


def check_kdmv(
    ctx: Context, file: BlockDevice, header: SparseHeader, *, start: int, has_parent: bool
) -> Sequence[Directory]:
    """``header`` has been looked at, and corrected if it had to be."""
    shape = shape_of(file, header, start)
    if header.unclean:
        ctx.note(
            "U1",
            "unclean",
            file.name,
            "the disk was not closed when it was last written",
            offset=72,
            repair="clear the mark once everything else is right",
        )
    if file.capacity % SECTOR:
        ctx.note("H5", "odd-size", file.name, f"the file's {file.capacity} bytes are no whole sectors")
    copies = read_directories(file, header, shape)
    check_tables(ctx, file, shape, copies, has_parent=has_parent)
    return copies
