"""The allocation map of a disk, run by run in the words of ``qemu-img map``, with the link that holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, NotRequired, TypedDict

from vdkit.block.device import BlockDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.file import FileDevice
from vdkit.block.forward import Forwarding
from vdkit.block.merge import Placement, placer
from vdkit.vmdk import Disk


class MapEntry(TypedDict):
    """One run, in bytes. ``depth`` counts links down from the leaf; what no link holds is not ``present``
    and has the depth of the base. Where the bytes lie in a file as they are, ``offset`` and ``filename`` say
    where.
    """

    start: int
    length: int
    depth: int
    present: bool
    zero: bool
    data: bool
    compressed: bool
    offset: NotRequired[int]
    filename: NotRequired[str]


class Layer(NamedTuple):
    """A run and the link that answers for it."""

    extent: Extent
    depth: int
    present: bool


def map_entries(disk: BlockDevice) -> Iterator[MapEntry]:
    """Ascending, covering all of the disk, neighbours that go on in the file joined; made one by one."""
    while isinstance(disk, Forwarding):
        disk = disk.inner
    last: MapEntry | None = None
    for layer in _layers(disk):
        for place in _placed(disk, layer):
            entry = _entry(layer, place)
            if last is None:
                last = entry
            elif _goes_on(last, entry):
                last["length"] += entry["length"]
            else:
                yield last
                last = entry
    if last is not None:
        yield last


class _Run(NamedTuple):
    """A run and the link that answers for it; its place in a file is known or has still to be asked for."""

    placed: Placement
    depth: int
    present: bool


def _placed(disk: BlockDevice, run: _Run) -> Iterator[Placement]:
    """Where the bytes of a run lie, piece by piece."""
    placed = run.placed
    if not isinstance(disk, Disk) or not run.present:
        yield placed
    elif placed.file is None:
        yield from placer(disk.links[run.depth].device)(placed.offset, placed.length)
    else:
        # A hole of a flat extent is data that is zero, in qemu's words; one of a raw image is not data.
        yield placed._replace(kind=ExtentKind.DATA)


def _entry(run: _Run, place: Placement) -> MapEntry:
    zero = run.placed.kind is not ExtentKind.DATA
    data = place.kind is ExtentKind.DATA
    entry = MapEntry(
        start=place.offset,
        length=place.length,
        depth=run.depth,
        present=run.present,
        zero=zero,
        data=data,
        compressed=data and place.file is None,
    )
    if place.file is not None:
        entry["offset"] = place.position
        entry["filename"] = place.file.name
    return entry


def _goes_on(last: MapEntry, entry: MapEntry) -> bool:
    for key in ("depth", "present", "zero", "data", "compressed"):
        if last[key] != entry[key]:
            return False
    if "offset" not in last or "offset" not in entry:
        return "offset" not in last and "offset" not in entry
    return last["offset"] + last["length"] == entry["offset"] and last["filename"] == entry["filename"]


def map_layers(disk: BlockDevice) -> Iterator[Layer]:
    """The runs of a disk, neighbours of one kind and depth joined."""
    last: Layer | None = None
    for (offset, length, kind, _, _), depth, present in _layers(disk):
        if last is None:
            last = Layer(Extent(offset, length, kind), depth, present)
        elif last.extent.kind is kind and last.depth == depth and last.present == present:
            last = Layer(Extent(last.extent.offset, last.extent.length + length, kind), depth, present)
        else:
            yield last
            last = Layer(Extent(offset, length, kind), depth, present)
    if last is not None:
        yield last


def _layers(disk: BlockDevice) -> Iterator[_Run]:
    if not isinstance(disk, Disk):
        # A hole of a raw image is part of the file.
        file = disk if isinstance(disk, FileDevice) else None
        yield from (_Run(Placement(*extent, file, extent.offset), 0, True) for extent in disk.extents())
        return
    links = disk.info.links
    base = len(links) - 1
    # Where the base is made of grains, zeroes without a link that holds them were never allocated.
    name = links[-1].create_type.casefold()
    grains = "sparse" in name or "stream" in name
    for placed, depth in disk.layers():
        kind = placed.kind
        present = kind is ExtentKind.DATA or (kind is ExtentKind.ZERO and (depth < base or not grains))
        yield _Run(placed, depth, present)
