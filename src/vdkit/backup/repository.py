"""A repository: restore points of VMs in a store, as plain VMDKs beside JSON manifests.

Reading needs no lock: nothing that is visible ever changes. ``docs/reference/repository.md`` has the layout.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from vdkit.backup import manifest as manifests
from vdkit.backup import names
from vdkit.backup.document import Fields, format_time, parse, read_object, write_object
from vdkit.backup.manifest import DiskRecord, FileRecord, Kind, Manifest
from vdkit.block.chain import MAX_LINKS
from vdkit.block.store import Store
from vdkit.errors import (
    AlreadyExists,
    FormatError,
    LimitExceeded,
    NotFound,
    PointInvalid,
    PointNotFound,
    RepositoryMissing,
    UnsupportedVersion,
    UsageError,
    VixError,
)

FORMAT = "vdkit-backup-repository"
VERSION = 1
_MAX_MARK = 4096
_ID_BYTES = 8
_ID = re.compile(r"[0-9a-f]{16}")
#: Characters of a point's id that must be given to find it.
_MIN_PREFIX = 4


@dataclass(frozen=True)
class Point:
    """A complete restore point: its manifest, that manifest's digest and the folder it lies in."""

    folder: str
    manifest: Manifest
    digest: str

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    @property
    def stored(self) -> int:
        """Bytes of the point's VMDKs and maps."""
        return sum(d.file.size + d.map.size for d in self.manifest.disks)

    def disk(self, key: int) -> DiskRecord:
        """Raises PointNotFound if the point does not hold that disk."""
        record = self.manifest.disk(key)
        if record is None:
            held = ", ".join(str(d.key) for d in self.manifest.disks)
            raise PointNotFound(f"point {self.id} holds no disk {key}", remedy=f"it holds {held}")
        return record


@dataclass(frozen=True)
class Link:
    """One disk in one point: a member of the chain that a later point's disk stands on."""

    point: Point
    disk: DiskRecord


class Repository:
    """See the module."""

    def __init__(self, store: Store, repository_id: str) -> None:
        """Not for callers: see :meth:`create` and :meth:`open`."""
        self._store = store
        self._id = repository_id

    @classmethod
    def create(cls, store: Store) -> Repository:
        """Mark ``store`` as a repository. Raises AlreadyExists if it is one."""
        new_id = secrets.token_hex(_ID_BYTES)
        mark = {
            "format": FORMAT,
            "version": VERSION,
            "id": new_id,
            "created": format_time(datetime.now(UTC)),
        }
        partial = f"{names.FORMAT_FILE}.{secrets.token_hex(8)}{names.PARTIAL}"
        try:
            write_object(store, partial, json.dumps(mark, indent=1).encode() + b"\n")
            store.rename(partial, names.FORMAT_FILE)
        except AlreadyExists as error:
            store.remove(partial)
            raise AlreadyExists(
                f"{store.name}: this is a repository already", remedy="use it as it is"
            ) from error
        for name in store.list():
            if _is_unfinished_mark(name):
                store.remove(name)
        return cls(store, new_id)

    @classmethod
    def open(cls, store: Store) -> Repository:
        """Raises RepositoryMissing, UnsupportedVersion."""
        where = f"{store.name}/{names.FORMAT_FILE}"
        try:
            data = read_object(store, names.FORMAT_FILE, _MAX_MARK)
        except NotFound as error:
            raise RepositoryMissing(
                f"{store.name}: there is no repository here ({names.FORMAT_FILE} is missing)",
                remedy="check the path; the first backup to a new folder makes one",
            ) from error
        return cls(store, _read_mark(data, where))

    @classmethod
    def open_or_create(cls, store: Store) -> Repository:
        """Open, or create in a store that holds nothing but what a killed creation left there.

        A mistyped path must not be filled with backups: anything else there raises RepositoryMissing.
        """
        try:
            return cls.open(store)
        except RepositoryMissing:
            if not all(_is_unfinished_mark(name) for name in store.list()):
                raise
        return cls.create(store)

    @property
    def id(self) -> str:
        """Random, made with the repository: tells whose a snapshot is that a killed run left behind."""
        return self._id

    @property
    def name(self) -> str:
        return self._store.name

    @property
    def store(self) -> Store:
        return self._store

    def folder_store(self, folder: str) -> Store:
        """The folder of one VM as a store."""
        return self._store.substore(folder)

    def folders(self) -> list[str]:
        """Folders of VMs."""
        entries = (name.removesuffix("/") for name in self._store.list() if name.endswith("/"))
        return [name for name in entries if names.folder_uuid(name) is not None]

    def folder_of(self, vm_uuid: str) -> str | None:
        return next((f for f in self.folders() if names.folder_uuid(f) == vm_uuid), None)

    def ids(self, folder: str) -> list[str]:
        """Ids of the complete points of one VM, whether their manifests can be read or not."""
        entries = self.folder_store(folder).list()
        return [p for p in map(names.point_of_manifest, entries) if p is not None]

    def lost_ids(self, folder: str) -> list[str]:
        """Ids of points that were complete once, because they have files, but whose manifest is gone."""
        store = self.folder_store(folder)
        entries = store.list()
        begun = {p for p in map(names.point_of_file, entries) if p is not None}
        known = {p for name in entries if (p := names.point_of_manifest(name.removesuffix(names.PARTIAL)))}
        # A run that ends just now may have slipped through the listing.
        return sorted(p for p in begun - known if not store.exists(names.manifest_file(p)))

    def points(
        self, vm: str | None = None, *, invalid: Callable[[VixError], None] | None = None
    ) -> list[Point]:
        """Complete points, by VM and then oldest first; ``vm`` is a name or a UUID.

        A manifest that cannot be read goes to ``invalid`` if given and is raised otherwise.
        """
        found: list[Point] = []
        for folder in self.folders():
            for point in self.points_of_folder(folder, invalid=invalid):
                if vm is None or vm == point.manifest.vm.name or vm.lower() == point.manifest.vm.uuid:
                    found.append(point)
        return found

    def points_of_folder(
        self, folder: str, *, invalid: Callable[[VixError], None] | None = None
    ) -> list[Point]:
        """Complete points of one VM, oldest first."""
        found: list[Point] = []
        for point_id in self.ids(folder):
            try:
                found.append(self.load(folder, point_id))
            except (PointInvalid, LimitExceeded) as error:
                if invalid is None:
                    raise
                invalid(error)
        return sorted(found, key=lambda point: (point.manifest.sequence, point.id))

    def load(self, folder: str, point_id: str) -> Point:
        """Read one manifest. Raises PointNotFound, PointInvalid."""
        uuid = names.folder_uuid(folder)
        if uuid is None or not names.is_point_id(point_id):
            raise UsageError(f"{folder}/{point_id}: not a restore point's name")
        store, name = self.folder_store(folder), names.manifest_file(point_id)
        where = f"{store.name}/{name}"
        try:
            data = read_object(store, name, manifests.MAX_MANIFEST)
        except NotFound as error:
            raise PointNotFound(f"{where}: there is no such restore point") from error
        manifest, digest = manifests.decode(data, where, point_id=point_id, vm_uuid=uuid)
        return Point(folder, manifest, digest)

    def find(self, text: str) -> Point:
        """The point with this id, or the only one whose id starts with ``text`` or ends with it."""
        if len(text) < _MIN_PREFIX:
            raise UsageError(f"{text!r}: give at least {_MIN_PREFIX} characters of a point's id")
        ids = [
            (folder, point_id)
            for folder in self.folders()
            for point_id in self.ids(folder)
            if point_id.startswith(text) or point_id.endswith(text)
        ]
        if not ids:
            raise PointNotFound(
                f"{self.name}: no restore point {text!r}", remedy="list them with: vdkit points"
            )
        if len(ids) > 1:
            raise UsageError(f"{text!r} is short for {len(ids)} restore points", remedy="give more of the id")
        return self.load(*ids[0])

    def chain(self, point: Point, key: int) -> list[Link]:
        """The disk's links, this point's first, down to the full one. Raises PointInvalid if broken."""
        links = [Link(point, point.disk(key))]
        while links[-1].disk.kind is Kind.INCREMENTAL:
            if len(links) == MAX_LINKS:
                raise PointInvalid(f"point {point.id}: disk {key} stands on more than {MAX_LINKS} points")
            links.append(self._parent(links[-1]))
        return links

    def _parent(self, link: Link) -> Link:
        child, key = link.point, link.disk.key
        recorded = child.manifest.parent
        where = f"{self.name}/{child.folder}: point {child.id}, disk {key}"
        if recorded is None:
            raise PointInvalid(f"{where}: incremental, but without a parent point")
        try:
            parent = self.load(child.folder, recorded.id)
        except PointNotFound as error:
            raise PointInvalid(f"{where}: its parent point {recorded.id} is missing") from error
        disk = parent.manifest.disk(key)
        if parent.digest != recorded.digest:
            raise PointInvalid(f"{where}: its parent point {recorded.id} is not the one it was made on")
        if parent.manifest.sequence >= child.manifest.sequence:
            raise PointInvalid(f"{where}: its parent point {recorded.id} is not older")
        if disk is None or disk.capacity != link.disk.capacity:
            raise PointInvalid(f"{where}: its parent point {recorded.id} holds no such disk of that size")
        return Link(parent, disk)

    def missing_file(self, point: Point) -> str | None:
        """What is wrong with the files that the point needs, by name and size alone; None if nothing is."""
        try:
            links = [link for disk in point.manifest.disks for link in self.chain(point, disk.key)]
            store = self.folder_store(point.folder)
            for link in links:
                for record in (link.disk.file, link.disk.map):
                    check_size(store, record)
        except VixError as error:
            return error.message
        return None


def _is_unfinished_mark(name: str) -> bool:
    return name.startswith(f"{names.FORMAT_FILE}.") and name.endswith(names.PARTIAL)


def _read_mark(data: bytes, where: str) -> str:
    """The id of the repository that the mark is of."""
    try:
        fields = Fields(parse(data, where), where)
        name, version = fields.text("format"), fields.integer("version")
        if name != FORMAT:
            raise FormatError(f"{where}: the format is {name!r}, not {FORMAT!r}")
        if version != VERSION:
            raise UnsupportedVersion(
                f"{where}: the repository has version {version}, this program knows {VERSION}",
                remedy="use a newer vdkit",
            )
        return fields.matching("id", lambda v: _ID.fullmatch(v) is not None, "a repository's id")
    except PointInvalid as error:
        raise FormatError(f"{error.message}: not the mark of a repository") from error


def check_size(store: Store, record: FileRecord) -> None:
    """Raises PointInvalid if the file is missing or has another size than the manifest says."""
    try:
        with store.open(record.name) as device:
            size = device.capacity
    except NotFound as error:
        raise PointInvalid(f"{store.name}/{record.name}: the file is missing") from error
    if size != record.size:
        raise PointInvalid(f"{store.name}/{record.name}: {size} bytes, the manifest says {record.size}")
