"""The disk that an operation is about: its files, and what forbids touching them.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vdkit.errors import NotSupported
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import ExtentLine
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.inuse import children_of, refuse_in_use
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, extent_place

#: Added to the name of a file that is not complete yet; one that is found was left by a run that was killed.
BESIDE = ".vdkit-new"

#: Told the bytes done and the bytes in all.
Progress = Callable[[int, int], None]


class AdminResult(NamedTuple):
    """Sizes of the extent files in bytes, before and after."""

    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Subject:
    """One link: ``places`` go with the extent lines, None where a line names no file."""

    place: Place
    descriptor: Descriptor
    header: SparseHeader | None
    places: tuple[Place | None, ...]

    @property
    def lines(self) -> tuple[ExtentLine, ...]:
        return self.descriptor.extents

    @property
    def has_parent(self) -> bool:
        return self.descriptor.parent_cid != NO_PARENT

    @property
    def files(self) -> tuple[Place, ...]:
        """The descriptor first."""
        return tuple(dict.fromkeys([self.place, *(place for place in self.places if place is not None)]))

    def extent_bytes(self) -> int:
        total = 0
        for place in dict.fromkeys(place for place in self.places if place is not None):
            with place.open() as file:
                total += file.capacity
        return total


def read_subject(place: Place, allow_paths: Sequence[str]) -> Subject:
    descriptor, header = read_descriptor(place)
    places: list[Place | None] = []
    for line in descriptor.extents:
        if header is not None:
            places.append(place)
        else:
            places.append(
                None if line.file_name is None else extent_place(place, line.file_name, allow_paths)
            )
    return Subject(place, descriptor, header, tuple(places))


def refuse_locked(subject: Subject) -> None:
    """Raises FileLocked if somebody has one of the files open for writing."""
    refuse_in_use(subject.files)


def refuse_tracked(subject: Subject) -> None:
    if subject.descriptor.get("changeTrackPath") is not None:
        raise NotSupported(
            f"{subject.place}: the disk is under change tracking, whose map would no longer fit it",
            remedy="turn change tracking off first",
        )


def refuse_parent(subject: Subject, what: str) -> None:
    children = children_of(subject.place, subject.descriptor.cid)
    if children:
        raise NotSupported(
            f"{subject.place}: it is the parent of {', '.join(children)}, {what}",
            remedy="consolidate the children first, or force it",
        )
