"""Finding the parent of a link: where the hint says, else by its content id.

A hint tells where the parent was when the child was made. Folders are moved and files renamed; then the
parent is the one disk beside the child, or in a folder that the caller allows, that has the content id which
the child recorded and the child's capacity. Two such disks are not chosen between.

Source of facts: VMware's "Virtual Disk Format 5.0" (content ids) and reports of moved chains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from vdkit.errors import MissingParent, OutsideStore, VixError
from vdkit.vmdk.cid import NO_PARENT, format_cid
from vdkit.vmdk.descriptor import looks_like_descriptor
from vdkit.vmdk.header import MAGIC
from vdkit.vmdk.link import Link, file_identity, read_descriptor
from vdkit.vmdk.names import Place, allowed_folders, base_name, parent_name, parent_place

#: Files that are looked at in a search.
MAX_SEARCHED = 4096
#: Bytes of each that are read to see whether it is a disk at all.
_PROBE = 4096

_REMEDY = "bring the parent's files back beside it, or name their folder in allow_paths"


class _Found(NamedTuple):
    place: Place
    identity: object


def find_parent(chain: Sequence[Link], allow_paths: Sequence[str]) -> Place:
    """The parent of the last link of ``chain``, which is leaf first; a note tells if its hint was wrong.

    Raises MissingParent (several that fit are none), OutsideStore (the hint leads out and no disk fits).
    """
    child = chain[-1]
    hint = child.descriptor.parent_hint
    name = None
    refused: VixError
    if hint is None:
        refused = MissingParent(
            f"{child.place}: it has a parent, of content id {format_cid(child.descriptor.parent_cid)}, "
            "but does not say where, and no disk nearby has that id",
            remedy=_REMEDY,
        )
    else:
        name = parent_name(child.place, hint)
        try:
            place = parent_place(child.place, hint, allow_paths)
            if place.store.exists(place.name):
                return place
            beside = child.place.beside(name)
            if name and beside.name != child.place.name and beside.store.exists(beside.name):
                child.notes.append(f"{child.place}: its parent {hint!r} was found beside it")
                return beside
            refused = MissingParent(f"{child.place}: its parent {place} does not exist", remedy=_REMEDY)
        except OutsideStore as error:
            refused = error
    found = _search(chain, allow_paths)
    if len(found) > 1:
        found = [one for one in found if base_name(one.place.name) == name] or found
    if not found:
        raise refused
    if len(found) > 1:
        names = ", ".join(str(one.place) for one in found)
        where = "it does not say where its parent is" if hint is None else f"its parent is not at {hint!r}"
        raise MissingParent(
            f"{child.place}: {where}, and may be one of several disks of content id "
            f"{format_cid(child.descriptor.parent_cid)}: {names}",
            remedy="correct its parentFileNameHint",
        )
    said = "it does not say where its parent is" if hint is None else f"its parent is not at {hint!r}"
    child.notes.append(f"{child.place}: {said}; {found[0].place} was found by its content id")
    return found[0].place


def _search(chain: Sequence[Link], allow_paths: Sequence[str]) -> list[_Found]:
    """Every disk nearby that has the content id and the capacity that the last link's parent must have."""
    child = chain[-1]
    wanted = child.descriptor.parent_cid
    known = {link.identity for link in chain}
    found: dict[object, _Found] = {}
    if wanted == NO_PARENT:
        return []
    for count, place in enumerate(_nearby(child.place, allow_paths)):
        if count == MAX_SEARCHED:
            raise MissingParent(
                f"{child.place}: its parent is not where it says, and more than {MAX_SEARCHED} files "
                "would have to be looked through for it",
                remedy="correct its parentFileNameHint",
            )
        with suppress(VixError):  # what cannot be read is not the parent
            identity = _probe(place)
            if identity is None or identity in known or identity in found:
                continue
            descriptor, _ = read_descriptor(place)
            if descriptor.cid == wanted and descriptor.sectors == child.descriptor.sectors:
                found[identity] = _Found(place, identity)
    return list(found.values())


def _nearby(child: Place, allow_paths: Sequence[str]) -> Iterator[Place]:
    yield from (child.beside(name) for name in _disks(child.store.list(child.folder)))
    for folder in allowed_folders(child, allow_paths):
        yield from (Place(folder, name) for name in _disks(folder.list()))


def _disks(names: list[str]) -> list[str]:
    return [name for name in names if name.casefold().endswith(".vmdk")]


def _probe(place: Place) -> object | None:
    """Identity of a file that may be a disk with a descriptor; None for any other."""
    with place.open() as file:
        data = bytearray(min(_PROBE, file.capacity))
        file.read_into(0, data)
        if data.startswith(MAGIC) or looks_like_descriptor(bytes(data)):
            return file_identity(file, place)
    return None
