"""Backing up one disk into a point: choose the ranges, copy, hash, describe."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from vdkit.backup import diskmap, names
from vdkit.backup.diskmap import BLOCK, GRAIN, WindowHasher
from vdkit.backup.document import write_object
from vdkit.backup.hashing import HashedStore
from vdkit.backup.level import Decision, Method, PreviousDisk
from vdkit.backup.manifest import MAX_CAPACITY, DiskRecord, FileRecord, Kind
from vdkit.backup.repository import Point, Repository
from vdkit.backup.restore import open_point
from vdkit.backup.scan import changed_ranges
from vdkit.backup.source import FilledDevice
from vdkit.backup.writer import PointWriter
from vdkit.block.copy import CopyProgress, copy
from vdkit.block.copyplan import planned_extents
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken
from vdkit.errors import UsageError
from vdkit.vmdk import StreamWriter

_SECTOR = 512


class Phase(Enum):
    """What the progress of a backup is about."""

    COMPARE = "compare"
    COPY = "copy"


Progress = Callable[[Phase, CopyProgress], None]


def previous_disk(repository: Repository, point: Point | None, key: int) -> PreviousDisk | None:
    """What :func:`~vdkit.backup.level.choose_level` must know about a disk in the previous point."""
    if point is None or point.manifest.disk(key) is None:
        return None
    return PreviousDisk(point.id, point.disk(key), len(repository.chain(point, key)))


def backup_disk(
    source: BlockDevice,
    writer: PointWriter,
    *,
    key: int,
    label: str,
    decision: Decision,
    ranges: RangeSet | None = None,
    change_id: str | None = None,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> DiskRecord:
    """Store one disk in the point that ``writer`` makes.

    ``decision`` comes from :func:`~vdkit.backup.level.choose_level`. A full backup stores what is not zero. For
    ``Method.CHANGES``, ``ranges`` must hold every byte that may have changed since ``writer.previous`` (more does
    no harm). ``change_id`` is what the next backup asks its changes with; it is kept as it is.

    After an error nothing of the disk is left, and it can be tried again in the same point.
    """
    writer.check_open(key)
    _check(source, writer, key, label, decision, ranges, change_id)
    began = time.monotonic()
    try:
        compared = 0
        if decision.method is Method.SCAN:
            ranges, compared = _compare(source, writer, key, progress, cancel)
        job = _DiskJob(source, writer, key, decision.method, ranges)
        result = job.run(progress, cancel)
        record = DiskRecord(
            key=key,
            label=label,
            capacity=source.capacity,
            kind=Kind.FULL if decision.method is Method.FULL else Kind.INCREMENTAL,
            reason=decision.reason,
            cid=job.cid,
            change_id=change_id,
            file=job.file_record(),
            map=job.write_map(),
            changed=job.changed.total,
            read=job.data.total + compared,
            zero=result.skipped + result.zeroed,
            seconds=time.monotonic() - began,
        )
        writer.add(record)
    except BaseException:
        writer.discard(key)
        raise
    return record
