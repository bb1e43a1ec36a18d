"""The files that make up a disk: listing and deleting them.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from vdkit.block.store import Store
from vdkit.errors import NotFound
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import ExtentLine
from vdkit.vmdk.inuse import refuse_locked
from vdkit.vmdk.kinds import is_on_device
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, extent_place
from vdkit.vmdk.open import open_disk


def list_files(store: Store, name: str, *, chain: bool = False, allow_paths: Sequence[str] = ()) -> list[str]:
    """Names in ``store`` of all files of a disk, its descriptor first.

    Of its own link only, or with ``chain`` of its parents too, leaf first; then all of them must open. A file
    that is named but missing is listed all the same.
    """
    if chain:
        with open_disk(store, name, allow_paths=allow_paths) as disk:
            return list(disk.info.files)
    return [place.name for place in _places(store, name, allow_paths)]


def delete_disk(store: Store, name: str, *, allow_paths: Sequence[str] = ()) -> None:
    """Remove the files of a disk, not those of its parents; files that are missing already are fine.

    The descriptor goes last, so that a deletion that was interrupted can be repeated. Raises FileLocked for
    a disk that a VMware product has in use.
    """
    refuse_locked(Place(store, name))
    for place in reversed(_places(store, name, allow_paths)):
        with suppress(NotFound):
            place.store.remove(place.name)


def _places(store: Store, name: str, allow_paths: Sequence[str]) -> list[Place]:
    place = Place(store, name)
    descriptor, header = read_descriptor(place)
    found = [place]
    if header is None:
        for line in descriptor.extents:
            if line.file_name is not None and not _is_device(descriptor, line):
                target = extent_place(place, line.file_name, allow_paths)
                if target not in found:
                    found.append(target)
    tracking = descriptor.get("changeTrackPath")
    if tracking:
        found.append(extent_place(place, tracking, allow_paths))
    return found


def _is_device(descriptor: Descriptor, line: ExtentLine) -> bool:
    """True for an extent that is a device, or an image in its place: the disk describes it only."""
    name = line.file_name or ""
    return line.type == "VMFSRAW" or (is_on_device(descriptor.create_type) and ("/" in name or "\\" in name))


def is_child(store: Store, name: str) -> bool:
    """True if the disk has a parent; only its descriptor is read."""
    return read_descriptor(Place(store, name))[0].parent_cid != NO_PARENT
