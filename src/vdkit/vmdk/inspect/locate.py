"""Where a byte of the disk lies: in which link, which file, at which offset, and which entries lead there.

Nothing needs to be sound for it except the way itself: content ids are not compared, other grains are not
looked at.

Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vdkit.block.chain import MAX_LINKS
from vdkit.block.device import BlockDevice
from vdkit.block.extent import ExtentKind
from vdkit.block.store import Store
from vdkit.errors import FormatError, NotSupported, OutOfRange, VixError
from vdkit.vmdk import markers
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import ExtentLine
from vdkit.vmdk.inspect.file import form_of, grid_of
from vdkit.vmdk.inspect.grid import Grid
from vdkit.vmdk.inspect.headers import peek
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.link import read_descriptor
from vdkit.vmdk.names import Place, extent_place, parent_place


@dataclass(frozen=True, slots=True)
class Location:
    """What one link says about an offset.

    ``kind`` is data, compressed, zero, absent (the parent's to say, in a base zeroes) or unknown.
    ``file_offset`` is that of the byte itself; of a compressed grain, that of its marker. ``entry_offset``
    is where the grain table's entry lies in the file, ``redundant`` the entry of the other copy.
    """

    depth: int
    link: str
    file: str | None
    kind: str
    file_offset: int | None = None
    grain: int | None = None
    table: int | None = None
    entry: int | None = None
    entry_offset: int | None = None
    value: int | None = None
    redundant: int | None = None
    packed: int | None = None
    problem: str = ""


def locate(store: Store, name: str, offset: int, *, allow_paths: Sequence[str] = ()) -> list[Location]:
    """Follow byte ``offset`` of a disk from the leaf down to the link that answers for it, which comes last.

    ``name`` may also be an extent file without a descriptor; the offset then counts in it. Raises OutOfRange,
    and what opening raises where a file on the way is missing.
    """
    found: list[Location] = []
    place = Place(store, name)
    for depth in range(MAX_LINKS):
        try:
            descriptor, embedded = read_descriptor(place)
        except (FormatError, NotSupported) as error:
            alone = _in_sparse(place, place, offset, depth)
            return [*found, replace(alone, problem=alone.problem or f"without its descriptor: {error}")]
        location = _in_link(place, descriptor, offset, depth, allow_paths, alone=embedded is not None)
        has_parent = descriptor.parent_cid != NO_PARENT
        if location.kind != "absent" or not has_parent:
            return [*found, location]
        hint = descriptor.parent_hint
        if hint is None:
            return [*found, replace(location, problem="it has a parent, but does not name it")]
        found.append(location)
        place = parent_place(place, hint, allow_paths)
    return found


def grain_bytes(store: Store, name: str) -> int:
    """Size of the grains of an extent file. Raises NotSupported for a file without any."""
    with store.open(name) as file:
        grid = grid_of(file)
        if grid is None:
            raise NotSupported(f"{file.name}: it has no grains that could be numbered")
        return grid.grain


def _in_link(
    place: Place, descriptor: Descriptor, offset: int, depth: int, allow_paths: Sequence[str], *, alone: bool
) -> Location:
    line, inside = _line_at(descriptor, offset, str(place))
    if line.type == "ZERO":
        return Location(depth, str(place), None, "zero")
    if alone:
        return _in_sparse(place, place, inside, depth)
    if line.file_name is None:
        return Location(depth, str(place), None, "unknown", problem=f"a {line.type} extent without a file")
    target = extent_place(place, line.file_name, allow_paths)
    if line.type in ("FLAT", "VMFS"):
        return _in_flat(place, target, line, inside, depth)
    return _in_sparse(place, target, inside, depth)


def _line_at(descriptor: Descriptor, offset: int, where: str) -> tuple[ExtentLine, int]:
    start = 0
    for line in descriptor.extents:
        if offset < start + line.sectors * SECTOR:
            return line, offset - start
        start += line.sectors * SECTOR
    raise OutOfRange(f"{where}: offset {offset} is outside its {start} bytes")


def _in_flat(place: Place, target: Place, line: ExtentLine, inside: int, depth: int) -> Location:
    position = (line.offset_sectors or 0) * SECTOR + inside
    try:
        with target.open() as file:
            if position >= file.capacity:
                problem = f"past the end of the file of {file.capacity} bytes"
                return Location(depth, str(place), str(target), "unknown", position, problem=problem)
            hole = next(file.extents(position, 1)).kind is ExtentKind.ZERO
    except VixError as error:
        return Location(depth, str(place), str(target), "unknown", position, problem=str(error))
    return Location(depth, str(place), str(target), "zero" if hole else "data", position)


def _in_sparse(place: Place, target: Place, inside: int, depth: int) -> Location:
    blank = Location(depth, str(place), str(target), "unknown")
    try:
        with target.open() as file:
            grid = grid_of(file)
            if grid is None:
                return replace(blank, problem="no tables that lead anywhere")
            return _through_tables(file, grid, inside, blank)
    except VixError as error:
        return replace(blank, problem=str(error))


def _through_tables(file: BlockDevice, grid: Grid, inside: int, blank: Location) -> Location:
    grain = inside // grid.grain
    table, entry = divmod(grain, grid.entries)
    here = replace(blank, grain=grain, table=table, entry=entry)
    if table >= grid.tables:
        return replace(here, problem=f"outside the {grid.tables} tables of the extent")
    if grid.redundant is not None:
        here = replace(here, redundant=_entry(file, grid.redundant, table, entry)[0])
    value, entry_offset, problem = _entry(file, grid, table, entry)
    if value is None:
        return replace(here, problem=problem)
    here = replace(here, value=value, entry_offset=entry_offset)
    kind, sector = grid.meaning_of(value)
    if here.redundant is not None and here.redundant != value:
        here = replace(here, problem=f"the redundant copy says {here.redundant}")
    if kind != "data":
        return replace(here, kind=kind)
    start = sector * SECTOR
    if form_of(file) == "stream":
        return _compressed(file, here, start, grain * (grid.grain // SECTOR))
    position = start + inside % grid.grain
    if sector < grid.lowest or position >= file.capacity:
        return replace(here, file_offset=position, problem="the grain lies outside the file's grains")
    return replace(here, kind="data", file_offset=position)


def _entry(file: BlockDevice, grid: Grid, table: int, entry: int) -> tuple[int | None, int | None, str]:
    """An entry of a grain table, where it lies, and what is wrong; without a table it is 0."""
    found = grid.directory_piece(file, table, 1)
    if not found:
        return None, None, "the directory breaks off before it: the file ends"
    if found[0] == 0:
        return 0, None, ""
    place = grid.place_of(found[0]) + entry * grid.width
    data = peek(file, place, grid.width) if place >= SECTOR else b""
    if len(data) < grid.width:
        return None, None, f"its grain table (directory entry {found[0]:#x}) lies outside the file"
    return grid.numbers(data)[0], place, ""


def _compressed(file: BlockDevice, here: Location, start: int, lba: int) -> Location:
    data = peek(file, start, 16)
    if len(data) < 16:
        return replace(here, file_offset=start, problem="the grain lies outside the file")
    marker = markers.parse(data)
    here = replace(here, kind="compressed", file_offset=start, packed=marker.size)
    if not marker.size or marker.value != lba:
        return replace(here, kind="unknown", problem=f"its marker says sector {marker.value}, not {lba}")
    return here
