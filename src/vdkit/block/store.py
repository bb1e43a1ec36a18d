"""A store is a folder of named byte objects, each of them a block device.

Names are relative, with ``/`` between parts. A store never leaves its own tree: absolute names, ``..``, empty
parts, NUL, symbolic links and anything that is not a regular file are refused with
:class:`~vdkit.errors.OutsideStore`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, runtime_checkable

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import VixError


@runtime_checkable
class Store(Protocol):
    """A folder of named byte objects."""

    @property
    def name(self) -> str:
        """What to call it in a message: a path, ``host:port [datastore1] vm``."""

    def open(self, name: str) -> BlockDevice:
        """Open an object for reading. Raises NotFound, OutsideStore, AccessDenied."""

    def open_writable(self, name: str) -> WritableDevice:
        """Open an existing object for reading and writing; it can be resized. Raises as :meth:`open`."""

    def create(self, name: str, size: int = 0) -> WritableDevice:
        """Make an object of ``size`` bytes, all zero, and open it. Raises AlreadyExists; never replaces."""

    def exists(self, name: str) -> bool: ...

    def list(self, folder: str = "") -> list[str]:
        """Names of the objects and folders in ``folder``, sorted; folders end with ``/``."""

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        """Atomic and durable. Raises AlreadyExists unless ``replace``."""

    def remove(self, name: str) -> None: ...

    def make_folder(self, name: str) -> None:
        """Make a folder (and its parents); one that exists is fine."""

    def substore(self, folder: str) -> Store:
        """The store of one folder of this store."""


@runtime_checkable
class HostStore(Store, Protocol):
    """A store whose files hosts also know by paths of their own."""

    def own_path(self, path: str) -> str | None:
        """An absolute path of a host as a name in this store; None if it is not in it."""


@contextmanager
def replacing(store: Store, name: str, beside: str) -> Iterator[None]:
    """The block makes the object ``beside``, which then takes the place of ``name`` as a whole.

    One that a killed run left is removed first, and none is left if the block or the renaming fails.
    """
    if store.exists(beside):
        store.remove(beside)
    try:
        yield
        store.rename(beside, name, replace=True)
    except BaseException:
        with suppress(VixError):  # the error that brought us here is the one to tell
            if store.exists(beside):
                store.remove(beside)
        raise
