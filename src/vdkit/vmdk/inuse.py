"""What stands in the way of changing a disk: who has it open, and whose parent it is.

Source of facts: the ``.lck`` files and folders that VMware's hosted products put beside a disk in use, and
VMware's "Virtual Disk Format 5.0". Programs that lock the files themselves are the store's to see.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from vdkit.errors import FileLocked, VixError
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, base_name, parent_name, parent_place


def refuse_locked(place: Place) -> None:
    """Raises FileLocked if a product of VMware has marked the file as in use."""
    lock = f"{base_name(place.name)}.lck"
    names = place.store.list(place.folder)
    inside = f"{lock}/" in names and place.store.list(place.beside(lock).name)
    if lock in names or inside:
        raise FileLocked(
            f"{place}: in use, says {lock}",
            remedy=f"close the machine or program that uses it; if there is none, remove {lock}",
        )


def refuse_in_use(places: Iterable[Place]) -> None:
    """Raises FileLocked if somebody has one of the files open for writing."""
    for place in places:
        refuse_locked(place)
        is_written = getattr(place.store, "is_written", None)  # a local folder can tell
        # What is missing nobody writes: a descriptor that a repair is to make anew.
        if is_written is not None and place.store.exists(place.name) and is_written(place.name):
            raise FileLocked(
                f"{place}: a program has it open for writing",
                remedy="close the machine or program that uses it",
            )


def children_of(place: Place, cid: int | None) -> list[str]:
    """Names of the disks in the same folder that have this one, of content id ``cid``, as their parent.

    By the hint; where that leads nowhere, by the content id.
    """
    found = []
    for entry in place.store.list(place.folder):
        other = place.beside(entry)
        if entry.endswith("/") or other.name == place.name:
            continue
        with suppress(VixError):  # no descriptor, or none that can be read
            descriptor = read_descriptor(other)[0]
            if descriptor.parent_cid != NO_PARENT and _is_parent(place, cid, other, descriptor):
                found.append(other.name)
    return found


def _is_parent(place: Place, cid: int | None, other: Place, descriptor: Descriptor) -> bool:
    hint = descriptor.parent_hint
    if hint is not None:
        with suppress(VixError):
            named = parent_place(other, hint, ())
            if named.name == place.name:
                return True
            if named.store.exists(named.name):
                return False
        with suppress(VixError):
            if parent_name(other, hint) == base_name(place.name):
                return True
    return descriptor.parent_cid == cid
