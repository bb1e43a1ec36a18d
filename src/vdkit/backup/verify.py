"""Verification: read every stored byte again and compare it with what the manifests say.

Each link of each chain is checked once: its VMDK against the manifest's SHA-256, its map, whether the chain
opens with the parents that the manifests name, and, window by window, what the disk reads as. So a damaged,
missing, cut or exchanged file is found, and the first bad range of the virtual disk is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vdkit.backup import diskmap, names
from vdkit.backup.diskmap import BLOCK, GRAIN, DiskMap, WindowHasher
from vdkit.backup.document import read_object
from vdkit.backup.hashing import NullWriter, object_sha256
from vdkit.backup.manifest import FileRecord
from vdkit.backup.repository import Link, Point, Repository
from vdkit.backup.restore import open_point
from vdkit.backup.source import FilledDevice
from vdkit.block.copy import CopyProgress, copy
from vdkit.block.device import BlockDevice
from vdkit.block.extent import RangeSet
from vdkit.block.workers import CancelToken
from vdkit.errors import BackupError, FormatError, StoreError, VerifyFailed

#: What reading may fail with when stored bytes are not what they were.
_DAMAGED = (FormatError, StoreError, BackupError)


#: Folder, point and disk.
_Key = tuple[str, str, int]
#: Offset, length, and what is wrong there.
_Bad = tuple[int, int, str]


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was stored; ``offset`` and ``length`` are bytes of the virtual disk."""

    point: str
    key: int | None
    file: str
    offset: int
    length: int
    what: str

    def __str__(self) -> str:
        disk = "" if self.key is None else f", disk {self.key}, {self.length} bytes at offset {self.offset}"
        return f"point {self.point}{disk}: {self.file}: {self.what}"


@dataclass(frozen=True)
class VerifyReport:
    """``files`` VMDKs of ``points`` points were read.

    ``stored`` counts bytes of files, ``checked`` bytes of virtual disks; ``affected`` are the ids of points
    that a damage makes unfit, because they hold it or stand on it.
    """

    points: int
    files: int
    stored: int
    checked: int
    seconds: float
    damages: tuple[Damage, ...]
    affected: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.damages

    def check(self) -> None:
        """Raise VerifyFailed, naming the first bad range, if there is one."""
        if self.damages:
            more = f" (and {len(self.damages) - 1} more)" if len(self.damages) > 1 else ""
            raise VerifyFailed(
                f"{self.damages[0]}{more}", remedy="restore from another point, and take a full backup now"
            )


class VerifyProgress(NamedTuple):
    """How far a verification is: ``done`` of ``total`` bytes, each VMDK counted twice."""

    point: str
    key: int
    done: int
    total: int


def verify(
    repository: Repository,
    points: Iterable[Point] | None = None,
    *,
    progress: Callable[[VerifyProgress], None] | None = None,
    cancel: CancelToken | None = None,
) -> VerifyReport:
    """Verify ``points``, and everything they stand on; all points by default."""
    began = time.monotonic()
    check = _Verification(repository, progress, cancel)
    chosen = check.all_points() if points is None else list(points)
    links = check.collect(chosen)
    for link in links:
        check.verify_link(link)
    return VerifyReport(
        points=len(chosen),
        files=len(links),
        stored=check.stored,
        checked=check.checked,
        seconds=time.monotonic() - began,
        damages=tuple(check.damages),
        affected=check.affected_of(chosen),
    )


class _Verification:
    def __init__(
        self,
        repository: Repository,
        progress: Callable[[VerifyProgress], None] | None,
        cancel: CancelToken | None,
    ) -> None:
        self._repository = repository
        self._progress = progress
        self._cancel = cancel
        self._done = self._total = 0
        self._needed_by: dict[_Key, list[str]] = {}
        self.damages: list[Damage] = []
        self.affected: set[str] = set()
        self.stored = self.checked = 0

    def all_points(self) -> list[Point]:
        found: list[Point] = []
        for folder in self._repository.folders():
            for point_id in self._repository.ids(folder):
                try:
                    found.append(self._repository.load(folder, point_id))
                except _DAMAGED as error:
                    self._add_manifest(point_id, error.message)
            for point_id in self._repository.lost_ids(folder):
                self._add_manifest(
                    point_id, f"the manifest is missing in {folder}, its other files are there"
                )
        return sorted(found, key=lambda point: (point.folder, point.manifest.sequence, point.id))

    def collect(self, points: list[Point]) -> list[Link]:
        """Every link that the points need, once, each after the one below it."""
        found: dict[_Key, Link] = {}
        for point in points:
            for disk in point.manifest.disks:
                try:
                    chain = self._repository.chain(point, disk.key)
                except _DAMAGED as error:
                    file = names.manifest_file(point.id)
                    self._add(Link(point, disk), file, 0, disk.capacity, error.message)
                    chain = [Link(point, disk)]
                for link in reversed(chain):
                    key = _key(link)
                    found.setdefault(key, link)
                    self._needed_by.setdefault(key, []).append(point.id)
        self._total = 2 * sum(link.disk.file.size for link in found.values())
        return list(found.values())

    def affected_of(self, points: list[Point]) -> tuple[str, ...]:
        """In the order of ``points``; what is not among them (it could not be read) last."""
        known = [point.id for point in points if point.id in self.affected]
        return (*known, *sorted(self.affected.difference(known)))

    def verify_link(self, link: Link) -> None:
        size = link.disk.file.size
        start = self._done
        self._tell(link, start)
        file_damage = self._file_damage(link, link.disk.file)
        self._tell(link, start + size)
        disk_map = self._read_map(link)
        bad = [] if disk_map is None else self._bad_ranges(link, disk_map, start + size)
        for offset, length, what in bad:
            self._add(link, link.disk.file.name, offset, length, what)
        if file_damage is not None and not bad:
            # Nothing in the disk's content shows it, or the content could not be compared.
            self._add(link, link.disk.file.name, 0, link.disk.capacity, file_damage)
        self._tell(link, start + 2 * size)

    def _tell(self, link: Link, done: int) -> None:
        self._done = done
        if self._cancel is not None:
            self._cancel.check()
        if self._progress is not None:
            self._progress(VerifyProgress(link.point.id, link.disk.key, done, self._total))

    def _add(self, link: Link, file: str, offset: int, length: int, what: str) -> None:
        self.damages.append(Damage(link.point.id, link.disk.key, file, offset, length, what))
        self.affected.update(self._needed_by.get(_key(link), [link.point.id]))

    def _add_manifest(self, point_id: str, what: str) -> None:
        self.damages.append(Damage(point_id, None, names.manifest_file(point_id), 0, 0, what))
        self.affected.add(point_id)

    def _file_damage(self, link: Link, record: FileRecord) -> str | None:
        store = self._repository.folder_store(link.point.folder)
        try:
            size, sha256 = object_sha256(store, record.name, cancel=self._cancel)
        except _DAMAGED as error:
            return error.message
        self.stored += size
        if size != record.size:
            return f"the file has {size} bytes, the manifest says {record.size}"
        if sha256 != record.sha256:
            return "the file's SHA-256 is not the one in the manifest"
        return None

    def _read_map(self, link: Link) -> DiskMap | None:
        record, disk = link.disk.map, link.disk
        store = self._repository.folder_store(link.point.folder)
        damage = self._file_damage(link, record)
        if damage is None:
            try:
                data = read_object(store, record.name, diskmap.MAX_MAP)
                where = f"{store.name}/{record.name}"
                return diskmap.decode(
                    data, where, point_id=link.point.id, key=disk.key, capacity=disk.capacity
                )
            except _DAMAGED as error:
                damage = error.message
        self._add(link, record.name, 0, disk.capacity, damage)
        return None

    def _bad_ranges(self, link: Link, disk_map: DiskMap, start: int) -> list[_Bad]:
        """Ranges in which the disk, at this point, does not read as it was stored."""
        size = link.disk.file.size

        def tell(state: CopyProgress) -> None:
            if state.total:
                self._tell(link, start + size * state.done // state.total)

        try:
            device = open_point(self._repository, link.point, link.disk.key)
        except _DAMAGED as error:
            return [(0, link.disk.capacity, error.message)]
        with device:
            self.checked += disk_map.ranges.total
            if _all_right(device, disk_map, tell, self._cancel):
                return []
            return list(_find_bad(device, disk_map, self._cancel))


def _key(link: Link) -> _Key:
    return link.point.folder, link.point.id, link.disk.key


def _all_right(
    device: BlockDevice,
    disk_map: DiskMap,
    progress: Callable[[CopyProgress], None],
    cancel: CancelToken | None,
) -> bool:
    """The fast way: all windows at full speed, and one answer for all of them."""
    hasher = WindowHasher(disk_map.ranges, device.capacity)
    try:
        copy(
            FilledDevice(device, disk_map.ranges),
            NullWriter(device.name, device.capacity, GRAIN),
            ranges=disk_map.ranges,
            block=BLOCK,
            skip_zeroes=False,
            observe=hasher.observe,
            progress=progress,
            cancel=cancel,
        )
    except _DAMAGED:
        return False
    return hasher.finish().hashes == disk_map.hashes


def _find_bad(device: BlockDevice, disk_map: DiskMap, cancel: CancelToken | None) -> Iterator[_Bad]:
    """The slow way, once it is known that something is wrong: window by window."""
    buffer = bytearray(BLOCK)
    for covered, expected in disk_map.windows():
        if cancel is not None:
            cancel.check()
        hasher = WindowHasher(covered, device.capacity)
        try:
            for offset, length in covered.split(BLOCK):
                view = memoryview(buffer)[:length]
                device.read_into(offset, view)
                hasher.observe(offset, view)
        except _DAMAGED:
            yield from _unreadable(device, covered)
            continue
        if hasher.finish().hashes != (expected,):
            first = next(iter(covered))[0]
            yield first, covered.end - first, "the content's SHA-256 is not the one in the map"


def _unreadable(device: BlockDevice, covered: RangeSet) -> Iterator[_Bad]:
    """The grains of a window that cannot be read."""
    buffer = bytearray(GRAIN)
    for offset, length in covered.split(GRAIN):
        try:
            device.read_into(offset, memoryview(buffer)[:length])
        except _DAMAGED as error:
            yield offset, length, error.message
