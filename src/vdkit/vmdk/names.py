"""File names inside descriptors: where they may lead.

A descriptor is written by somebody else, and the names in it open files. So a name is a plain one in the
folder of its descriptor (a parent may also be in a folder below it), unless the caller allows a folder, or
that very file, by name. Devices are opened only in that way.

Source of facts: published vulnerabilities of programs that followed such names.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from vdkit.block.device import BlockDevice
from vdkit.block.local import FolderStore
from vdkit.block.store import HostStore, Store
from vdkit.errors import OutsideStore

_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.\-]*://|json:|nbd:)", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
DEVICE_REMEDY = "name it in allow_paths (on the command line: --allow-path DEVICE) if you trust this disk"
REMEDY = "name its folder in allow_paths (on the command line: --allow-path FOLDER) if you trust this disk"


class Place(NamedTuple):
    """A name in a store; ``str()`` is what to call it in a message."""

    store: Store
    name: str

    def __str__(self) -> str:
        return f"{self.store.name}/{self.name}"

    @property
    def folder(self) -> str:
        return posixpath.dirname(self.name)

    def beside(self, name: str) -> Place:
        """Another name in the same folder."""
        return Place(self.store, posixpath.join(self.folder, name))

    def open(self) -> BlockDevice:
        return self.store.open(self.name)


def base_name(name: str) -> str:
    return posixpath.basename(name)


def stem(name: str) -> str:
    """The name without ``.vmdk``."""
    return name[:-5] if name.casefold().endswith(".vmdk") else name


def _parts(text: str, what: str) -> str:
    """The name with ``/`` between its parts; refuses what is no file name at all."""
    if not text or any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise OutsideStore(f"{what} {text!r} is no file name")
    if _URL.match(text):
        raise OutsideStore(
            f"{what} {text!r} is a URL, not a file", remedy="fetch the file and put it beside the disk"
        )
    return text.replace("\\", "/")


def extent_place(descriptor: Place, text: str, allow_paths: Sequence[str], *, devices: bool = False) -> Place:
    """Where an extent file is: in the descriptor's folder, or in an allowed one.

    ``devices``: what is allowed by its path may be a block device.
    """
    what = f"{descriptor}: {'device' if devices else 'extent file'}"
    name = _parts(text, what)
    if "/" not in name and name not in (".", ".."):
        return descriptor.beside(name)
    allowed = _allowed(descriptor, name, allow_paths, devices=devices)
    if allowed is None:
        raise OutsideStore(
            f"{what} {text!r} is not in the folder of the descriptor",
            remedy=DEVICE_REMEDY if devices else REMEDY,
        )
    return allowed


def parent_name(child: Place, text: str) -> str:
    """The base name of a parent hint; refuses what is no file name at all."""
    return base_name(_parts(text, f"{child}: parent"))


def parent_place(child: Place, text: str, allow_paths: Sequence[str]) -> Place:
    """Where a parent is: below the child's folder, in an allowed folder, or of that name beside the child."""
    what = f"{child}: parent"
    name = _parts(text, what)
    if not _leads_out(name):
        return child.beside(posixpath.normpath(name))
    allowed = _allowed(child, name, allow_paths)
    if allowed is not None:
        return allowed
    # A folder that was copied as a whole: the hint still names the place it came from.
    beside = child.beside(base_name(name))
    if (
        base_name(name) not in ("", ".", "..")
        and beside.name != child.name
        and beside.store.exists(beside.name)
    ):
        return beside
    raise OutsideStore(f"{what} {text!r} is outside the folder of the disk", remedy=REMEDY)


def _leads_out(name: str) -> bool:
    return name.startswith("/") or _DRIVE.match(name) is not None or ".." in name.split("/")


def allowed_folders(place: Place, allow_paths: Sequence[str]) -> list[FolderStore]:
    """The folders that the caller named, for a disk that is itself in a local folder."""
    if not isinstance(place.store, FolderStore):
        return []
    roots = dict.fromkeys(os.path.realpath(allowed) for allowed in allow_paths)
    return [FolderStore(root) for root in roots if os.path.isdir(root)]  # noqa: PTH112  realpath's str


def _allowed(place: Place, name: str, allow_paths: Sequence[str], *, devices: bool = False) -> Place | None:
    """A file that the caller named, or one in a folder that the caller named, or below one."""
    if isinstance(place.store, HostStore) and allow_paths:
        return _allowed_on_host(place.store, place, name, allow_paths)
    if not isinstance(place.store, FolderStore) or not allow_paths or _DRIVE.match(name):
        return None
    path = os.path.join(place.store.name, place.folder, name)  # noqa: PTH118  text of a descriptor, not a path yet
    folder = os.path.realpath(posixpath.dirname(path))
    for allowed in allow_paths:
        root = os.path.realpath(allowed)
        if os.path.isdir(root):  # noqa: PTH112  realpath's str
            if os.path.commonpath((root, folder)) == root and os.path.isdir(folder):  # noqa: PTH112
                return Place(FolderStore(folder, devices=devices), base_name(path))
        elif os.path.realpath(path) == root:
            # The caller named this very file, so links on the way to it are the caller's too.
            return Place(FolderStore(posixpath.dirname(root), devices=devices), base_name(root))
    return None


def _allowed_on_host(store: HostStore, place: Place, name: str, allow_paths: Sequence[str]) -> Place | None:
    """The same in a datastore: folders and files are named as in it, or by a host's absolute path."""
    path = store.own_path(name) if name.startswith("/") else posixpath.join(place.folder, name)
    if path is None:
        return None
    path = posixpath.normpath(path)
    for allowed in allow_paths:
        root = store.own_path(f"{allowed.rstrip('/')}/") if allowed.startswith("/") else allowed
        if root is None or path.startswith("../"):
            continue
        root = posixpath.normpath(root)
        if root == "." or path == root or path.startswith(f"{root}/"):
            return Place(store, path)
    return None


def hint_for(child: Place, parent: Place) -> str:
    """What a child records of where its parent is: relative to the child's folder."""
    if child.store is parent.store or child.store.name == parent.store.name:
        return posixpath.relpath(parent.name, child.folder or ".")
    if isinstance(child.store, FolderStore) and isinstance(parent.store, FolderStore):
        start = os.path.realpath(posixpath.join(child.store.name, child.folder))
        return os.path.relpath(os.path.realpath(posixpath.join(parent.store.name, parent.name)), start)
    raise OutsideStore(f"{child}: its parent {parent} is in a store that a descriptor cannot name")
