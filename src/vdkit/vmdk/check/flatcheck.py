"""Checks of extents without tables of ours: flat files, and seSparse, which is looked at only.

Source of facts: VMware's "Virtual Disk Format 5.0"; for seSparse see :mod:`vdkit.vmdk.sesparse`.
"""

from __future__ import annotations

from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.errors import FormatError
from vdkit.vmdk.check.context import Context
from vdkit.vmdk.check.report import FileReport, Severity
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.sesparse import SeSparseExtent, SeSparseHeader


def check_flat(ctx: Context, file: BlockDevice, *, needed: int, start: int) -> None:
    """``needed``: bytes up to the end of the last extent in this file; ``start``: where in the disk."""
    where = file.name
    ctx.reporter.files.append(FileReport(where, file.capacity))
    if file.capacity < needed:
        missing = needed - file.capacity
        ctx.error(
            "D1",
            "flat-short",
            where,
            f"the file has {file.capacity} bytes, its descriptor needs {needed}",
            offset=file.capacity,
            expected=needed,
            found=file.capacity,
            repair="extend the file with zeroes; what it held there is lost",
            start=start + needed - missing,
            length=missing,
        )
    elif file.capacity > needed:
        ctx.error(
            "D1",
            "flat-long",
            where,
            f"the file has {file.capacity} bytes, its descriptor uses {needed}",
            offset=needed,
            expected=needed,
            found=file.capacity,
            severity=Severity.LEAK,
        )


def check_sesparse(ctx: Context, file: BlockDevice, *, sectors: int, start: int) -> None:
    """Headers, directory and tables, read once. There is no repair: the write side is not public."""
    where = file.name
    ctx.reporter.files.append(FileReport(where, file.capacity))
    try:
        header = SeSparseHeader.read(file)
    except FormatError as error:
        ctx.error("H1", "sesparse-header", where, error.message, offset=0)
        return
    if header.journal_waits:
        ctx.error(
            "U1",
            "sesparse-journal",
            where,
            "the journal waits to be replayed: the tables may not be the latest",
            offset=header.areas["volatile header"][0] * SECTOR + 24,
            repair="none here: let the host replay it (open the disk on it)",
        )
    if sectors > header.capacity:
        ctx.error(
            "H3",
            "header-capacity",
            where,
            f"the descriptor gives this extent {sectors} sectors, its header only {header.capacity}",
            offset=16,
        )
        return
    try:
        extent = SeSparseExtent(file, capacity=sectors * SECTOR, has_parent=True, ignore_journal=True)
        step = 1 << 34
        for offset in range(0, sectors * SECTOR, step):
            for _ in _data(extent, offset, min(step, sectors * SECTOR - offset)):
                ctx.step(where, offset, sectors * SECTOR)
    except FormatError as error:
        ctx.error("T1", "sesparse-table", where, error.message, start=start)


def _data(extent: SeSparseExtent, offset: int, length: int) -> list[int]:
    return [run.length for run in extent.extents(offset, length) if run.kind is ExtentKind.DATA]
