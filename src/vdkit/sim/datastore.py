"""Datastores: named stores with paths such as ``[datastore1] vm/vm.vmdk``, free space and file locks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from vdkit.block.local import FolderStore
from vdkit.block.store import Store, replacing
from vdkit.errors import AccessDenied, LimitExceeded, NotFound, OutsideStore
from vdkit.sim.faults import InvalidDatastorePath
from vdkit.sim.locks import LockTable

_PATH = re.compile(r"^\[(?P<datastore>[^\[\]]{1,80})\] ?(?P<path>[^\x00]*)$")
#: Longest datastore path that is looked at, in characters.
MAX_PATH_LENGTH = 2048
#: Largest small file, in bytes.
MAX_TEXT = 1 << 20
#: What a store without a folder (memory) claims to have, in bytes.
DEFAULT_CAPACITY = 1 << 44


def split_path(path: str) -> tuple[str, str]:
    """``[ds] a/b.vmdk`` to ``("ds", "a/b.vmdk")``. Raises InvalidDatastorePath."""
    match = _PATH.match(path) if len(path) <= MAX_PATH_LENGTH else None
    if match is None:
        raise InvalidDatastorePath(path[:MAX_PATH_LENGTH])
    return match["datastore"], match["path"]


class Datastore:
    """A store by its name. ``kind`` is its type (``VMFS``, ``NFS``, ``vsan``, ``VVOL``).

    Only on VMFS does ``*`` tell what is in use; elsewhere it reports whole disks.

    ``locks`` belongs to everybody who opens files here: running machines, the data port, downloads.
    """

    def __init__(self, name: str, store: Store, *, folder: Path | None = None, kind: str = "VMFS") -> None:
        self.name = name
        self.store = store
        self.folder = folder
        self.kind = kind
        self.locks = LockTable()
        self.moref = ""

    @classmethod
    def from_folder(cls, name: str, folder: str | Path, *, kind: str = "VMFS") -> Datastore:
        """The folder must exist."""
        return cls(name, FolderStore(str(folder)), folder=Path(folder), kind=kind)

    def __repr__(self) -> str:
        return f"<Datastore {self.name!r} {self.moref}>"

    @property
    def url(self) -> str:
        return f"ds:///vmfs/volumes/{self.name}/"

    def path(self, name: str) -> str:
        """The datastore path of a file here."""
        return f"[{self.name}] {name}"

    def space(self) -> tuple[int, int]:
        """Capacity and free space, in bytes."""
        if self.folder is None:
            return DEFAULT_CAPACITY, DEFAULT_CAPACITY
        usage = shutil.disk_usage(self.folder)
        return usage.total, usage.free

    def exists(self, name: str) -> bool:
        try:
            return self.store.exists(name)
        except OutsideStore:
            return False

    def read_text(self, name: str, limit: int) -> bytes:
        """A small file whole. Raises LimitExceeded above ``limit`` bytes, or as the store does."""
        with self.store.open(name) as device:
            if device.capacity > limit:
                raise LimitExceeded(f"{self.path(name)}: {device.capacity} bytes, at most {limit} are read")
            data = bytearray(device.capacity)
            device.read_into(0, data)
        return bytes(data)

    def write_text(self, name: str, data: bytes) -> None:
        """A small file, replaced as a whole: a crash leaves the old or the new one."""
        fresh = f"{name}~"
        if self.exists(name) and self.read_text(name, MAX_TEXT) == data:
            return
        with replacing(self.store, name, fresh), self.store.create(fresh, len(data)) as device:
            if data:
                device.write_from(0, data)

    def discard(self, name: str) -> None:
        """Remove a file if it is there."""
        try:
            self.store.remove(name)
        except NotFound:
            return

    def files(self, folder: str = "") -> list[str]:
        """Names in a folder, as :meth:`~vdkit.block.store.Store.list` gives them; none if unreadable."""
        try:
            return self.store.list(folder)
        except (AccessDenied, NotFound):
            return []
