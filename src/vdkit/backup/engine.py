"""Backing up one disk into a point: choose the ranges, copy, hash, describe."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from enum import Enum
from functools import partial

from vdkit.backup import diskmap, names
from vdkit.backup.diskmap import BLOCK, GRAIN, WindowHasher
from vdkit.backup.document import write_object
from vdkit.backup.level import Decision, Method, PreviousDisk
from vdkit.backup.manifest import MAX_CAPACITY, DiskRecord, FileRecord, Kind
from vdkit.backup.partial import PartialStore
from vdkit.backup.repository import Point, Repository
from vdkit.backup.restore import open_point
from vdkit.backup.scan import changed_ranges
from vdkit.backup.source import FilledDevice
from vdkit.backup.writer import PointWriter
from vdkit.block.chain import MAX_LINKS
from vdkit.block.copy import CopyProgress, CopyResult, copy
from vdkit.block.copyplan import planned_extents
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken
from vdkit.errors import UsageError
from vdkit.vmdk import Codec, StreamWriter

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
    codec: Codec = Codec.FAST,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> DiskRecord:
    """Store one disk in the point that ``writer`` makes.

    ``decision`` comes from :func:`~vdkit.backup.level.choose_level`. A full backup stores what is not zero.
    For ``Method.CHANGES``, ``ranges`` must hold every byte that may have changed since ``writer.previous``
    (more does no harm). ``change_id`` is what the next backup asks for its changes with; it is kept as it is.

    After an error nothing of the disk is left, and it can be tried again in the same point.
    """
    writer.check_open(key)
    names.check_text(f"the label of disk {key}", label)
    if change_id is not None:
        names.check_text(f"the change id of disk {key}", change_id)
    parent = _check(source, writer, key, decision.method, ranges)
    began = time.monotonic()
    try:
        compared = 0
        if parent is not None and ranges is None:
            ranges, compared = _compare(source, writer.repository, parent, key, progress, cancel)
        job = _DiskJob(source, writer, key, ranges, None if parent is None else parent.disk(key))
        result = job.copy(codec, None if progress is None else partial(progress, Phase.COPY), cancel)
        record = DiskRecord(
            key=key,
            label=label,
            capacity=source.capacity,
            kind=Kind.FULL if parent is None else Kind.INCREMENTAL,
            reason=decision.reason,
            cid=job.cid,
            change_id=change_id,
            file=job.file_record(),
            map=job.write_map(),
            changed=job.changed,
            read=job.data.total + compared,
            zero=result.skipped + result.zeroed,
            seconds=time.monotonic() - began,
        )
        writer.add(record)
    except BaseException:
        writer.discard(key)
        raise
    return record


def _check(
    source: BlockDevice, writer: PointWriter, key: int, method: Method, ranges: RangeSet | None
) -> Point | None:
    """Refuse what cannot work before anything is read. The point that an incremental continues."""
    what = f"{source.name}, disk {key}"
    size = source.capacity
    if size % _SECTOR or not 0 < size <= MAX_CAPACITY:
        raise UsageError(f"{what}: its {size} bytes are not a multiple of {_SECTOR} up to {MAX_CAPACITY}")
    if (ranges is None) == (method is Method.CHANGES):
        raise UsageError(f"{what}: changed ranges belong to a backup of changes, and only there")
    if ranges is not None and ranges.end > size:
        raise UsageError(f"{what}: the changed ranges reach to {ranges.end}, beyond its {size} bytes")
    if method is Method.FULL:
        return None
    previous = previous_disk(writer.repository, writer.previous, key)
    if previous is None:
        raise UsageError(f"{what}: there is no complete restore point to continue")
    if previous.disk.capacity != size or previous.links >= MAX_LINKS:
        raise UsageError(
            f"{what}: {previous.point_id} cannot be continued: another size, or too long a chain"
        )
    return writer.previous


def _compare(
    source: BlockDevice,
    repository: Repository,
    parent: Point,
    key: int,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> tuple[RangeSet, int]:
    with open_point(repository, parent, key) as before:
        return changed_ranges(
            source,
            before,
            progress=None if progress is None else partial(progress, Phase.COMPARE),
            cancel=cancel,
        )


class _DiskJob:
    """One disk on its way into a point: a full one without ``ranges``, else a delta on ``parent``."""

    def __init__(
        self,
        source: BlockDevice,
        writer: PointWriter,
        key: int,
        ranges: RangeSet | None,
        parent: DiskRecord | None,
    ) -> None:
        self._source = source
        self._writer = writer
        self._key = key
        self._parent = parent
        self._file = names.disk_file(key, writer.id)
        self._store = PartialStore(writer.store)
        capacity = source.capacity
        if ranges is None:
            self.data = RangeSet.from_extents(source.extents()).aligned(GRAIN, capacity)
            self.changed = self.data.total
            self._covered = diskmap.covering(self.data, capacity)
        else:
            self.changed = ranges.total
            self._covered = diskmap.covering(ranges, capacity)
            self.data = RangeSet.from_extents(planned_extents(source, self._covered, GRAIN))
        self._hasher = WindowHasher(self._covered, capacity)
        self.cid = 0

    def copy(
        self,
        codec: Codec,
        progress: Callable[[CopyProgress], None] | None,
        cancel: CancelToken | None,
    ) -> CopyResult:
        parent = self._parent
        with StreamWriter(
            self._store,
            self._file,
            self._source.capacity,
            codec=codec,
            parent_cid=None if parent is None else parent.cid,
            parent_hint=None if parent is None else parent.file.name,
        ) as stream:
            result = copy(
                FilledDevice(self._source, self.data),
                stream,
                ranges=self._covered,
                block=BLOCK,
                # A grain of a delta that has become zero must be stored, or the parent's would show.
                target_is_zero=parent is None,
                observe=self._hasher.observe,
                progress=progress,
                cancel=cancel,
            )
            stream.finish()
        self.cid = stream.cid
        return result

    def file_record(self) -> FileRecord:
        return FileRecord(self._file, *self._store.sha256(self._file))

    def write_map(self) -> FileRecord:
        name = names.map_file(self._key, self._writer.id)
        data = diskmap.encode(self._hasher.finish(), point_id=self._writer.id, key=self._key)
        write_object(self._writer.store, name + names.PARTIAL, data)
        return FileRecord(name, len(data), hashlib.sha256(data).hexdigest())
