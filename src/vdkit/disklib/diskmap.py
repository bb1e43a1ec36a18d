"""The allocation map of a disk, run by run in the words of ``qemu-img map``, with the link that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypedDict

from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.vmdk import Disk


class MapEntry(TypedDict):
    """One run, in bytes. ``depth`` counts links down from the leaf; what no link holds is not ``present``
    and has the depth of the base.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool


class Layer(NamedTuple):
    """A run and the link that answers for it."""

    extent: Extent
    depth: int
    present: bool


def map_entries(disk: BlockDevice) -> Iterator[MapEntry]:
    """Ascending, covering all of the disk, neighbours joined; made one by one, however many there are."""
    for (start, length, kind), depth, present in map_layers(disk):
        yield MapEntry(
            start=start,
            length=length,
            depth=depth,
            present=present,
            zero=kind is not ExtentKind.DATA,
            data=kind is ExtentKind.DATA,
        )


def map_layers(disk: BlockDevice) -> Iterator[Layer]:
    """The runs of a disk, neighbours of one kind and depth joined."""
    if not isinstance(disk, Disk):
        # A hole of a raw image is part of the file.
        yield from (Layer(extent, 0, True) for extent in disk.extents())
        return
    links = disk.info.links
    base = len(links) - 1
    # Where the base is made of grains, zeroes without a link that holds them were never allocated.
    name = links[-1].create_type.casefold()
    grains = "sparse" in name or "stream" in name
    last: Layer | None = None
    for extent, depth in disk.layers():
        kind = extent.kind
        present = kind is ExtentKind.DATA or (kind is ExtentKind.ZERO and (depth < base or not grains))
        if last is None:
            last = Layer(extent, depth, present)
        elif last.extent.kind is kind and last.depth == depth and last.present == present:
            last = Layer(Extent(last.extent.offset, last.extent.length + extent.length, kind), depth, present)
        else:
            yield last
            last = Layer(extent, depth, present)
    if last is not None:
        yield last
