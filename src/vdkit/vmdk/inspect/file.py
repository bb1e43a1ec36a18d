"""One file of a disk, taken apart as far as it goes.

Source of facts: VMware's "Virtual Disk Format 5.0" and the modules that this one calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from vdkit.block.device import BlockDevice
from vdkit.block.store import Store
from vdkit.errors import VixError
from vdkit.vmdk import cowd, header, markers
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, SIGNATURE, looks_like_descriptor
from vdkit.vmdk.extentline import ExtentLine, parse_extent_line
from vdkit.vmdk.inspect import headers
from vdkit.vmdk.inspect.grid import Grid, cowd_grid, sesparse_grid, sparse_grid
from vdkit.vmdk.inspect.headers import peek
from vdkit.vmdk.inspect.model import DescriptorDump, ExtentFile, Inspection, Section
from vdkit.vmdk.inspect.stream import dump_stream
from vdkit.vmdk.inspect.tables import differences, dump_tables
from vdkit.vmdk.inspect.text import dump_text
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place, extent_place

#: Bytes at the end of a stream in which its footer is looked for.
FOOTER_REACH = 1 << 20
_SESPARSE = headers.SESPARSE_MAGIC.to_bytes(8, "little")


def inspect_file(
    store: Store, name: str, *, tables: bool = False, allow_paths: Sequence[str] = ()
) -> Inspection:
    """Take the file ``name`` apart: a descriptor, or an extent of any sparse type.

    ``tables`` reads the grain tables too, compares their two copies and walks the markers of a stream, which
    takes as long as reading them does. Of the files that a descriptor names only their sizes are asked.
    Raises NotFound and what reading the file raises; what is wrong inside is part of the answer.
    """
    place = Place(store, name)
    with place.open() as file:
        form = form_of(file)
        match form:
            case "sparse" | "stream":
                return _sparse(file, form, deep=tables)
            case "cowd":
                section = headers.cowd_section(peek(file, 0, cowd.HEADER_SECTORS * SECTOR), file.capacity)
                return _with_tables(file, form, (section,), cowd_grid(section), deep=tables)
            case "sesparse":
                return _sesparse(file, deep=tables)
            case "descriptor":
                dump = dump_text(peek(file, 0, MAX_DESCRIPTOR), file.name)
                extents = _extent_files(place, dump, allow_paths)
                return Inspection(file.name, file.capacity, form, descriptor=dump, extents=extents)
            case _:
                start = peek(file, 0, 16)
                problem = f"neither a descriptor nor an extent with a header; it starts with {start!r}"
                return Inspection(file.name, file.capacity, "unknown", problems=(problem,))


def form_of(file: BlockDevice) -> str:
    """What the file is; a hosted sparse extent is known by its descriptor too, if its magic is damaged."""
    head = peek(file, 0, SECTOR)
    if head[:4] == cowd.MAGIC:
        return "cowd"
    if head[:8] == _SESPARSE:
        return "sesparse"
    embedded = peek(file, SECTOR, len(SIGNATURE)) == SIGNATURE.encode()
    newlines = head[73:77] == header.NEWLINES and b"\0" in head[:SECTOR]
    if head[:4] in (header.MAGIC, header.UNFINISHED_MAGIC) or embedded or newlines:
        section = headers.sparse_section(head, "header", 0, file.capacity)
        compressed = (section.value("flags") or 0) & header.FLAG_COMPRESSED
        return "stream" if compressed else "sparse"
    if head.startswith(SIGNATURE.encode()) or looks_like_descriptor(peek(file, 0, 1 << 14)):
        return "descriptor"
    return "unknown"


def header_section(file: BlockDevice) -> Section:
    return headers.sparse_section(peek(file, 0, SECTOR), "KDMV header", 0, file.capacity)


def footer_section(file: BlockDevice) -> Section | None:
    """The footer: the last sector near the end that is not all zero, if a marker in front of it says so."""
    start = max(0, (file.capacity - FOOTER_REACH) // SECTOR * SECTOR)
    used = len(peek(file, start, file.capacity - start).rstrip(b"\0"))
    position = (start + used - 1) // SECTOR * SECTOR
    data = peek(file, position - SECTOR, 2 * SECTOR)
    if len(data) < 2 * SECTOR or markers.parse(data).kind != markers.FOOTER or markers.parse(data).size:
        return None
    return headers.sparse_section(data[SECTOR:], "KDMV footer", position, file.capacity)


def grid_of(file: BlockDevice) -> Grid | None:
    """The tables of an extent of any sparse form; None if its header does not lead to any."""
    match form_of(file):
        case "sparse" | "stream":
            section = header_section(file)
            if section.value("gdOffset") == header.GD_AT_END:
                footer = footer_section(file)
                return None if footer is None else sparse_grid(footer)
            return sparse_grid(section)
        case "cowd":
            return cowd_grid(headers.cowd_section(peek(file, 0, cowd.HEADER_SECTORS * SECTOR), file.capacity))
        case "sesparse":
            return sesparse_grid(headers.sesparse_section(peek(file, 0, SECTOR), file.capacity))
        case _:
            return None


def _sparse(file: BlockDevice, form: str, *, deep: bool) -> Inspection:
    first = header_section(file)
    sections = [first]
    problems: list[str] = []
    used = first
    if first.value("gdOffset") == header.GD_AT_END:
        footer = footer_section(file)
        if footer is None:
            problems.append("the header says that the tables are at the end, but there is no footer")
        else:
            used = footer
            sections.append(footer)
            problems += _contradictions(first, footer)
    descriptor = _embedded(file, first)
    if descriptor is None and (first.value("descriptorOffset") or 0):
        problems.append("the embedded descriptor lies outside the file")
    walk = dump_stream(file, first) if deep and form == "stream" else None
    made = _with_tables(file, form, tuple(sections), sparse_grid(used), deep=deep)
    return Inspection(
        made.name,
        made.size,
        form,
        made.sections,
        descriptor,
        (),
        made.tables,
        made.differences,
        made.differing,
        walk,
        (*problems, *made.problems),
    )


def _contradictions(first: Section, footer: Section) -> list[str]:
    moved = {"gdOffset", "rgdOffset", "overHead", "uncleanShutdown"}
    theirs = {field.name: field.value for field in footer.fields}
    return [
        f"header and footer disagree about {field.name}: {field.value} and {theirs.get(field.name)}"
        for field in first.fields
        if field.name not in moved and theirs.get(field.name) != field.value
    ]


def _embedded(file: BlockDevice, section: Section) -> DescriptorDump | None:
    start, sectors = section.value("descriptorOffset"), section.value("descriptorSize")
    if not start or not sectors:
        return None
    data = peek(file, start * SECTOR, min(sectors * SECTOR, MAX_DESCRIPTOR))
    # VMware's own split extents and qemu's keep an empty area.
    return dump_text(data, file.name, offset=start * SECTOR) if data.strip(b"\0") else None


def _sesparse(file: BlockDevice, *, deep: bool) -> Inspection:
    section = headers.sesparse_section(peek(file, 0, SECTOR), file.capacity)
    offset = (section.value("volatileHeaderOffset") or 0) * SECTOR
    volatile = headers.sesparse_volatile(peek(file, offset, SECTOR) if offset else b"", offset, file.capacity)
    return _with_tables(file, "sesparse", (section, volatile), sesparse_grid(section), deep=deep)


def _with_tables(
    file: BlockDevice, form: str, sections: tuple[Section, ...], grid: Grid | None, *, deep: bool
) -> Inspection:
    if grid is None:
        problem = "its header does not lead to any tables"
        return Inspection(file.name, file.capacity, form, sections, problems=(problem,))
    dumps = [dump_tables(file, grid, deep=deep)]
    found, total = differences(file, grid, deep=deep)
    if grid.redundant is not None:
        dumps.append(dump_tables(file, grid.redundant, deep=deep, name="redundant"))
    return Inspection(
        file.name,
        file.capacity,
        form,
        sections,
        tables=tuple(dumps),
        differences=tuple(found),
        differing=total,
    )


def _extent_files(place: Place, dump: DescriptorDump, allow_paths: Sequence[str]) -> tuple[ExtentFile, ...]:
    made = []
    for line in dump.lines:
        # A line that cannot be read has said so itself.
        if line.kind == "extent" and not line.problem:
            parsed = parse_extent_line(line.text, f"line {line.number}")
            made.append(_extent_file(place, parsed, allow_paths))
    return tuple(made)


def _extent_file(place: Place, line: ExtentLine, allow_paths: Sequence[str]) -> ExtentFile:
    if line.file_name is None:
        return ExtentFile("", line.type, line.sectors, None)
    try:
        with extent_place(place, line.file_name, allow_paths).open() as file:
            size = file.capacity
    except VixError as error:
        return ExtentFile(line.file_name, line.type, line.sectors, None, str(error))
    end = ((line.offset_sectors or 0) + line.sectors) * SECTOR
    flat = line.type in ("FLAT", "VMFS")
    problem = f"{end - size} bytes short" if flat and size < end else ""
    return ExtentFile(line.file_name, line.type, line.sectors, size, problem)
