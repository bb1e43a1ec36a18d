"""Making a restore point: nothing of it is visible until all of it is there.

The order, in the VM's folder and under its lock:

1. ``<id>.json.partial``, empty: the mark that this point is being made;
2. ``disk-<key>.<id>.vmdk.partial`` and ``...map.json.partial``, written and flushed;
3. each of them is renamed to its name without ``.partial``;
4. the mark is filled with the manifest, flushed, and renamed to ``<id>.json``: the same step shows the point
   and takes its mark away.

So a folder with a mark in it holds a point that was never finished, and every file with that id may go; files
of a point without a mark are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from vdkit.backup import lock as locks
from vdkit.backup import manifest as manifests
from vdkit.backup import names
from vdkit.backup.lock import Lock, Notice
from vdkit.backup.manifest import Consistency, DiskRecord, Kind, Manifest, ParentRecord
from vdkit.backup.repository import Point, Repository
from vdkit.block.store import Store
from vdkit.errors import NotFound, UsageError, VixError
from vdkit.version import VERSION

Clock = Callable[[], datetime]


def _silent(_text: str) -> None:
    """A notice that nobody asked for."""


def _now() -> datetime:
    return datetime.now(UTC)


def recover(store: Store, notice: Notice = _silent) -> None:
    """Remove what interrupted runs left in a VM's folder. Only under its lock."""
    entries = store.list()
    present = set(entries)
    marks = [name for name in entries if _is_mark(name)]
    for mark in marks:
        point_id = mark.removesuffix(".json" + names.PARTIAL)
        if names.manifest_file(point_id) in present:
            # No run of ours leaves both; whoever did, the complete point is not touched.
            store.remove(mark)
            continue
        _remove_all(store, point_id, entries)
        notice(f"{store.name}: removed what an interrupted run left of point {point_id}")
    for name in store.list():
        ours = names.point_of_file(name) is not None or name.startswith(f"{names.LOCK_FILE}.")
        if ours and name.endswith(names.PARTIAL):
            store.remove(name)


def _is_mark(name: str) -> bool:
    point_id = name.removesuffix(".json" + names.PARTIAL)
    return point_id != name and names.is_point_id(point_id)


def _mark(point_id: str) -> str:
    return names.manifest_file(point_id) + names.PARTIAL


def _remove_all(store: Store, point_id: str, entries: list[str]) -> None:
    """Every file of a point that was never finished; the mark last, so that this can be interrupted too."""
    mark = _mark(point_id)
    for name in entries:
        if name != mark and names.point_of_file(name) == point_id:
            store.remove(name)
    store.remove(mark)


class PointWriter:
    """A point in the making. ``with`` it: leaving without :meth:`commit` removes all that was written."""

    def __init__(
        self,
        repository: Repository,
        vm: names.VmIdentity,
        folder: str,
        lock: Lock,
        notice: Notice,
        clock: Clock,
    ) -> None:
        """Not for callers: see :func:`begin_point`. Takes over ``lock``."""
        self._repository = repository
        self._vm = vm
        self._folder = folder
        self._lock = lock
        self._notice = notice
        self._clock = clock
        self._disks: dict[int, DiskRecord] = {}
        self._ended = False
        self.store = repository.folder_store(folder)
        recover(self.store, notice)
        points = repository.points_of_folder(folder, invalid=lambda error: notice(str(error)))
        self.previous = self._newest_complete(points)
        self._sequence = max((p.manifest.sequence for p in points), default=0) + 1
        self.created = clock()
        self.id = names.new_point_id(self.created)
        with self.store.create(_mark(self.id)) as mark:
            mark.flush()

    def _newest_complete(self, points: list[Point]) -> Point | None:
        for point in reversed(points):
            damage = self._repository.missing_file(point)
            if damage is None:
                return point
            self._notice(f"point {point.id} cannot be continued: {damage}")
        return None

    @property
    def repository(self) -> Repository:
        return self._repository

    @property
    def vm(self) -> names.VmIdentity:
        return self._vm

    @property
    def disks(self) -> tuple[DiskRecord, ...]:
        """What has been added so far."""
        return tuple(self._disks.values())

    def notice(self, text: str) -> None:
        self._notice(text)

    def check_open(self, key: int) -> None:
        """Raises UsageError if a disk ``key`` cannot be added."""
        if self._ended:
            raise UsageError(f"point {self.id} has been finished or given up")
        if key in self._disks:
            raise UsageError(f"point {self.id} holds disk {key} already")
        if len(self._disks) == manifests.MAX_DISKS:
            raise UsageError(f"point {self.id} holds {manifests.MAX_DISKS} disks already")
        if not 0 <= key <= names.MAX_KEY:
            raise UsageError(f"the disk's key {key} is not between 0 and {names.MAX_KEY}")

    def discard(self, key: int) -> None:
        """Remove what was written of a disk that failed, so that it can be tried again."""
        for name in (names.disk_file(key, self.id), names.map_file(key, self.id)):
            try:
                self.store.remove(name + names.PARTIAL)
            except NotFound:
                continue

    def add(self, disk: DiskRecord) -> None:
        """Take in a disk whose files lie, complete and flushed, under their partial names."""
        self.check_open(disk.key)
        self._disks[disk.key] = disk

    def commit(
        self, *, hardware: Mapping[str, object] | None = None, consistency: Consistency = Consistency.CRASH
    ) -> Point:
        """Show the point. ``hardware`` are plain facts of the VM, kept as they are."""
        if self._ended:
            raise UsageError(f"point {self.id} has been finished or given up")
        if not self._disks:
            raise UsageError(f"point {self.id} holds no disk")
        manifest = Manifest(
            id=self.id,
            sequence=self._sequence,
            vm=self._vm,
            created=self.created,
            finished=max(self._clock(), self.created),
            consistency=consistency,
            parent=self._parent(),
            hardware=manifests.check_hardware(hardware or {}),
            writer=f"vdkit {VERSION}",
            disks=tuple(replace(d, seconds=round(d.seconds, 3)) for d in self._disks.values()),
        )
        data = manifests.encode(manifest)
        # What the reader would refuse must fail now, not on the day of the restore.
        manifest, digest = manifests.decode(data, self.id, point_id=self.id, vm_uuid=self._vm.uuid)
        for disk in manifest.disks:
            for record in (disk.file, disk.map):
                self.store.rename(record.name + names.PARTIAL, record.name)
        with self.store.open_writable(_mark(self.id)) as mark:
            mark.resize(len(data))
            mark.write_from(0, data)
            mark.flush()
        self.store.rename(_mark(self.id), names.manifest_file(self.id))
        self._ended = True
        self._release()
        return Point(self._folder, manifest, digest)

    def _parent(self) -> ParentRecord | None:
        if not any(d.kind is Kind.INCREMENTAL for d in self._disks.values()):
            return None
        if self.previous is None:
            raise UsageError(f"point {self.id} holds an incremental disk, but there is no point before it")
        return ParentRecord(self.previous.id, self.previous.digest)

    def abort(self) -> None:
        """Give up: remove what was written and let go of the lock. After :meth:`commit` it does nothing.

        What cannot be removed now is told to ``notice`` and removed by the next run.
        """
        if self._ended:
            return
        self._ended = True
        try:
            entries = self.store.list()
            # A rename that failed late may have shown the point after all; then it is complete, and stays.
            if names.manifest_file(self.id) not in entries:
                _remove_all(self.store, self.id, entries)
        except VixError as error:
            self._notice(
                f"{self.store.name}: point {self.id} was given up, the next run will tidy up: {error}"
            )
        finally:
            self._release()

    def _release(self) -> None:
        """A lock that cannot be let go must hide neither a finished point nor the error before it."""
        try:
            self._lock.release()
        except VixError as error:
            self._notice(f"{self.store.name}: the lock could not be released: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def begin_point(
    repository: Repository, vm: names.VmIdentity, *, notice: Notice = _silent, clock: Clock = _now
) -> PointWriter:
    """Lock the VM's folder (made if need be), remove what an interrupted run left, and start a point.

    The writer's ``previous`` is the newest point that an incremental can continue. ``notice`` hears what a
    person should know: a lock taken over, remains removed, damaged points. Raises RepositoryLocked.
    """
    folder = repository.folder_of(vm.uuid)
    if folder is None:
        folder = names.folder_name(vm)
        repository.store.make_folder(folder)
    lock = locks.acquire(repository.folder_store(folder), notice)
    try:
        return PointWriter(repository, vm, folder, lock, notice, clock)
    except BaseException:
        lock.release()
        raise
