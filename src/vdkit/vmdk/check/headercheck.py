"""The header of a hosted sparse extent: what is wrong with it, and what it must have said.

A header that contradicts itself or the file is compared with all headers that the known layouts allow; the
one whose grain directories are really where it says, with the fewest changes, is taken for what it was.

Source of facts: VMware's "Virtual Disk Format 5.0" and the layouts that VMware products, qemu and VirtualBox
write: descriptor of 20 sectors or none, redundant directory and tables, primary directory and tables, grains.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from vdkit.block.device import BlockDevice
from vdkit.errors import FormatError
from vdkit.vmdk import markers
from vdkit.vmdk.check.context import Context, read
from vdkit.vmdk.check.headerfit import (
    can_have_moved,
    directories_of,
    follows_layout,
    is_sound,
    metadata_end,
    with_overhead,
    worth_of,
)
from vdkit.vmdk.header import (
    COMPRESS_DEFLATE,
    COMPRESS_NONE,
    ENTRIES_PER_TABLE,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINES,
    FLAG_REDUNDANT,
    FLAG_ZERO_GRAINS,
    GD_AT_END,
    LAYOUT,
    MAGIC,
    NEWLINES,
    TABLE_SECTORS,
    SparseHeader,
)
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.sparse import DESCRIPTOR_SECTORS, GRAIN_SECTORS

_KNOWN = 0x7 | FLAG_COMPRESSED | FLAG_MARKERS
#: What the newline test becomes when every line feed gets a carriage return, and when pairs lose theirs.
CRLF_TEST = b"\r\n \r\r\n"
_LF = b"\n \n"

_CODES = {
    "version": "H1",
    "flags": "H1",
    "capacity": "H3",
    "grain": "H2",
    "descriptor": "H4",
    "descriptor_sectors": "H4",
    "redundant_directory": "H5",
    "directory": "H5",
    "overhead": "H5",
    "compression": "H6",
}
_OFFSETS = {
    "version": 4,
    "flags": 8,
    "capacity": 12,
    "grain": 20,
    "descriptor": 28,
    "descriptor_sectors": 36,
    "redundant_directory": 48,
    "directory": 56,
    "overhead": 64,
    "compression": 77,
}
_NAMES = {
    "grain": "grain size",
    "descriptor": "place of the descriptor",
    "descriptor_sectors": "size of the descriptor",
    "redundant_directory": "place of the redundant grain directory",
    "directory": "place of the grain directory",
    "overhead": "first sector of the grains",
    "compression": "compression algorithm",
}


@dataclass(slots=True)
class HeaderView:
    """``header`` is what it says or must have said; None if that cannot be told. ``changes`` says what a
    repair would write. ``consent``: it may be of a version that is not known here. ``mangled``: a transfer
    in text mode changed the file.
    """

    raw: bytes
    header: SparseHeader | None
    changes: list[str]
    consent: bool = False
    mangled: bool = False

    @property
    def is_right(self) -> bool:
        return self.header is not None and not self.changes

    def packed(self) -> bytes:
        """The sector as a repair would write it: what is behind the fields stays as it is."""
        assert self.header is not None
        return self.header.pack()[: LAYOUT.size] + self.raw[LAYOUT.size :].ljust(SECTOR - LAYOUT.size, b"\0")


def look_at_header(
    ctx: Context,
    file: BlockDevice,
    *,
    sectors: int | None,
    compressed: bool | None = None,
    room: tuple[int, int] | None = None,
) -> HeaderView:
    """Find and report. ``sectors``: what the descriptor says; ``compressed``: what its createType says;
    ``room``: first sector and size of the descriptor, if one was found inside.
    """
    view = diagnose(file, sectors, compressed, room)
    _report(ctx, file.name, view)
    return view


def diagnose(
    file: BlockDevice,
    sectors: int | None,
    compressed: bool | None = None,
    room: tuple[int, int] | None = None,
) -> HeaderView:
    raw = bytes(read(file, 0, SECTOR))
    if len(raw) < SECTOR:
        return HeaderView(raw.ljust(SECTOR, b"\0"), None, [])
    if raw[73:79] == CRLF_TEST or (raw[73:76] == _LF and raw[:4] == MAGIC):
        return HeaderView(raw, None, [], mangled=True)
    said = _said(raw)
    consent = raw[:4] == MAGIC and (said.version > 3 or bool(said.flags >> 16 << 16 & ~_KNOWN))
    right_room = room is None or room == (said.descriptor, said.descriptor_sectors)
    if right_room and is_sound(file, raw, sectors, embedded=room is not None):
        found: SparseHeader | None = with_overhead(file, said)
    else:
        found = _best(file, said, sectors, compressed, room, whole=raw[:4] != MAGIC)
    if found is None:
        return HeaderView(raw, None, [], consent)
    return HeaderView(raw, found, _changes(raw, said, found), consent)


def _said(raw: bytes) -> SparseHeader:
    """The fields, whatever they are."""
    _, version, flags, capacity, grain, desc, desc_sectors, _, redundant, directory, overhead, *rest = (
        LAYOUT.unpack_from(raw)
    )
    unclean, _, compression = rest
    return SparseHeader(
        version, flags, capacity, grain, desc, desc_sectors, redundant, directory, overhead, bool(unclean),
        compression,
    )  # fmt: skip


# -- what it must have said ------------------------------------------------------------------------


def _best(
    file: BlockDevice,
    said: SparseHeader,
    sectors: int | None,
    compressed: bool | None,
    room: tuple[int, int] | None,
    *,
    whole: bool,
) -> SparseHeader | None:
    if compressed is None:
        compressed = bool(said.flags & FLAG_COMPRESSED) or said.compression == COMPRESS_DEFLATE
    if compressed:
        return _best_stream(file, said, sectors, room)
    best: SparseHeader | None = None
    rank: tuple[int, int, int] = (0, 0, 0)
    for candidate in _candidates(file, said, sectors, room):
        worth = [worth_of(file, candidate, directory) for directory in directories_of(candidate)]
        # One copy may be destroyed itself; then the place of the other must be the layout's.
        if not any(worth) or (0 in worth and not follows_layout(candidate)) or (whole and max(worth) < 2):
            continue
        if not can_have_moved(said, candidate, worth):
            continue
        changed = len(_differing(said, candidate))
        # Exactly as many tables fit between the two directories as the capacity needs.
        fits = int(follows_layout(candidate))
        mine = (sum(worth) + fits, int(candidate.capacity == sectors), -changed)
        if mine > rank:
            best, rank = candidate, mine
    return best


def _candidates(
    file: BlockDevice, said: SparseHeader, sectors: int | None, room: tuple[int, int] | None
) -> Iterator[SparseHeader]:
    grains = _unique(said.grain if _is_grain(said.grain) else 0, GRAIN_SECTORS)
    capacities = _unique(said.capacity if said.capacity < 1 << 53 else 0, sectors or 0)
    descriptors = [(1, DESCRIPTOR_SECTORS), (0, 0)]
    if 0 < said.descriptor_sectors <= 2048 and 0 < said.descriptor < 2048:
        descriptors.insert(0, (said.descriptor, said.descriptor_sectors))
    if room is not None:
        descriptors = [room]
    flags = (FLAG_NEWLINES | FLAG_REDUNDANT) | (
        said.flags & FLAG_ZERO_GRAINS if said.version in (1, 2, 3) else 0
    )
    version = said.version if 1 <= said.version <= 3 else 2 if flags & FLAG_ZERO_GRAINS else 1
    for grain, capacity, (descriptor, length), redundant in itertools.product(
        grains, capacities, descriptors, (True, False)
    ):
        base = replace(
            said,
            version=version,
            flags=flags if redundant else flags & ~FLAG_REDUNDANT,
            capacity=capacity,
            grain=grain,
            descriptor=descriptor,
            descriptor_sectors=length,
            compression=COMPRESS_NONE,
        )
        if said.flags & ~_KNOWN == 0 and not said.flags & FLAG_NEWLINES and said.flags:
            base = replace(base, flags=base.flags & ~FLAG_NEWLINES)
        yield from _placed(file, base, said, max(1, descriptor + length))


def _placed(file: BlockDevice, base: SparseHeader, said: SparseHeader, first: int) -> Iterator[SparseHeader]:
    """With every plausible place of the directories."""
    if base.tables > 1 << 25:
        return
    area = base.directory_sectors + base.tables * TABLE_SECTORS
    if not base.redundant:
        for place in _unique(said.directory, first, first + area):
            yield from _finished(file, replace(base, directory=place, redundant_directory=0), said)
        return
    places = _unique(said.redundant_directory, first, said.directory - area if said.directory > area else 0)
    for redundant in places:
        for directory in _unique(said.directory, redundant + area):
            yield from _finished(
                file, replace(base, directory=directory, redundant_directory=redundant), said
            )


def _finished(file: BlockDevice, header: SparseHeader, said: SparseHeader) -> Iterator[SparseHeader]:
    if max(header.directory, header.redundant_directory) >= 1 << 53:
        return
    end = metadata_end(header)
    expected = -(-end // header.grain) * header.grain
    overhead = said.overhead if end <= said.overhead <= max(expected, 1) else expected
    if end <= said.overhead <= file.capacity // SECTOR and said.overhead >= expected:
        overhead = said.overhead
    made = replace(header, overhead=min(overhead, max(end, file.capacity // SECTOR)))
    try:
        SparseHeader.parse(made.pack(), file.name).check_layout(file.capacity, file.name)
    except (FormatError, struct.error):
        return
    yield with_overhead(file, made)


def _best_stream(
    file: BlockDevice, said: SparseHeader, sectors: int | None, room: tuple[int, int] | None
) -> SparseHeader | None:
    """The footer is a copy of the header, except for the place of the directory."""
    footer = _any_footer(file)
    if footer is not None and room in (None, (footer.descriptor, footer.descriptor_sectors)):
        return replace(footer, directory=GD_AT_END, redundant_directory=0)
    grain = said.grain if _is_grain(said.grain) and said.grain <= 1 << 15 else GRAIN_SECTORS
    capacity = sectors or said.capacity
    usual = 0 < said.descriptor < 2048 and 0 < said.descriptor_sectors <= 2048
    place, length = room or ((said.descriptor, said.descriptor_sectors) if usual else (1, DESCRIPTOR_SECTORS))
    at_end = not 0 < said.directory < file.capacity // SECTOR
    made = replace(
        said,
        version=said.version if 1 <= said.version <= 3 else 3,
        flags=FLAG_NEWLINES
        | FLAG_COMPRESSED
        | FLAG_MARKERS
        | (said.flags & FLAG_REDUNDANT if not at_end else 0),
        capacity=capacity,
        grain=grain,
        descriptor=place,
        descriptor_sectors=length,
        directory=GD_AT_END if at_end else said.directory,
        redundant_directory=0 if at_end else said.redundant_directory,
        overhead=said.overhead if 0 < said.overhead < file.capacity // SECTOR else 128,
        compression=COMPRESS_DEFLATE,
    )
    try:
        SparseHeader.parse(made.pack(), file.name).check_layout(file.capacity, file.name)
    except (FormatError, struct.error):
        return None
    return made


def _any_footer(file: BlockDevice) -> SparseHeader | None:
    data = bytes(read(file, max(0, file.capacity - 3 * SECTOR), 3 * SECTOR))
    if len(data) < 3 * SECTOR or data[SECTOR : SECTOR + 4] != MAGIC:
        return None
    marker = markers.parse(data)
    if marker.size or marker.kind != markers.FOOTER:
        return None
    try:
        return SparseHeader.parse(data[SECTOR:], f"{file.name}, footer")
    except FormatError:
        return None


def _is_grain(sectors: int) -> bool:
    return 0 < sectors <= 1 << 21 and sectors & (sectors - 1) == 0


def _unique(*values: int) -> list[int]:
    return [value for value in dict.fromkeys(values) if value > 0]


# -- saying it -------------------------------------------------------------------------------------


def _differing(said: SparseHeader, found: SparseHeader) -> list[str]:
    return [
        field.name
        for field in fields(SparseHeader)
        if field.name != "unclean" and getattr(said, field.name) != getattr(found, field.name)
    ]


def _changes(raw: bytes, said: SparseHeader, found: SparseHeader) -> list[str]:
    changed = _differing(said, found)
    if raw[:4] != MAGIC:
        changed.append("magic")
    if found.flags & FLAG_NEWLINES and raw[73:77] != NEWLINES:
        changed.append("newlines")
    if struct.unpack_from("<I", raw, 44)[0] != ENTRIES_PER_TABLE:
        changed.append("entries")
    return changed


def _report(ctx: Context, where: str, view: HeaderView) -> None:
    if view.mangled:
        ctx.error(
            "H1",
            "text-mode-transfer",
            where,
            "line ends were changed in this binary file: it was transferred in text mode",
            offset=73,
            expected=NEWLINES.hex(" "),
            found=view.raw[73:79].hex(" "),
            repair="undo the change of line ends in a copy; transfer it again in binary mode if that fails",
        )
        return
    if view.header is None:
        ctx.error(
            "H5",
            "header-unusable",
            where,
            "the header is damaged, and no known layout fits what is in the file",
            offset=0,
            found=view.raw[:80].hex(),
        )
        return
    remedy = "rebuild the header (rebuild_header: it may be of a version that is not known here)"
    said = _said(view.raw)
    for name in view.changes:
        repair = remedy if view.consent else "rewrite the header from the layout"
        code, offset = _CODES.get(name, "H1"), _OFFSETS.get(name)
        match name:
            case "magic":
                text, expected, found = "the magic number is wrong", repr(MAGIC), repr(view.raw[:4])
                offset = 0
            case "newlines":
                text, expected, found = (
                    "the newline test is wrong",
                    NEWLINES.hex(" "),
                    view.raw[73:77].hex(" "),
                )
                offset = 73
            case "entries":
                code, offset, text = "H2", 44, "the number of entries per grain table is wrong"
                expected, found = str(ENTRIES_PER_TABLE), str(struct.unpack_from("<I", view.raw, 44)[0])
            case _:
                now, right = getattr(said, name), getattr(view.header, name)
                text = (
                    f"{_NAMES.get(name, name)} is {now:#x}"
                    if name == "flags"
                    else f"{_NAMES.get(name, name)} is {now}"
                )
                text += ", which does not fit the file"
                expected, found = str(right), str(now)
        ctx.error(
            code, f"header-{name.replace('_', '-')}", where, text, offset=offset, expected=expected,
            found=found, repair=repair,
        )  # fmt: skip
