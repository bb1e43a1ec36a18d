"""One link of a disk as a check sees it: its descriptor and extent files, damaged or not.

Names in descriptors are followed by the same rule as everywhere: plain names in the same folder, or folders
that the caller allows. Source of facts: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field

from vdkit.block.device import BlockDevice
from vdkit.errors import NotADisk, NotFound, NotSupported, OutsideStore, VixError
from vdkit.vmdk import cowd, sesparse
from vdkit.vmdk.check.context import Context, read
from vdkit.vmdk.check.headercheck import HeaderView, look_at_header
from vdkit.vmdk.check.lenient import Reading, read_leniently
from vdkit.vmdk.cid import NO_PARENT
from vdkit.vmdk.descriptor import MAX_DESCRIPTOR, Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.header import MAGIC, UNFINISHED_MAGIC
from vdkit.vmdk.kinds import SECTOR, ExtentForm, check_create_type, extent_form, is_on_device
from vdkit.vmdk.names import Place, base_name, extent_place, stem

#: Where an embedded descriptor is looked for if the header does not say.
_USUAL_ROOM = (1, 20)
_GZIP = b"\x1f\x8b"


@dataclass(slots=True)
class ExtentView:
    """``start`` in bytes of the disk. ``place`` None: no file, or a name that is not followed."""

    line: ExtentLine
    start: int
    form: ExtentForm
    place: Place | None = None
    missing: bool = False


@dataclass(slots=True)
class Subject:
    """``embedded``: offset and room of the descriptor inside the one extent file. ``lost``: there is none."""

    place: Place
    reading: Reading
    embedded: tuple[int, int] | None = None
    header: HeaderView | None = None
    lost: bool = False
    extents: list[ExtentView] = field(default_factory=list)

    @property
    def descriptor(self) -> Descriptor | None:
        return self.reading.descriptor

    @property
    def has_parent(self) -> bool:
        return self.descriptor is not None and self.descriptor.parent_cid != NO_PARENT

    @property
    def create_type(self) -> str:
        return "" if self.descriptor is None else self.descriptor.create_type

    @property
    def capacity(self) -> int:
        return sum(extent.line.sectors for extent in self.extents) * SECTOR


def look_at_link(ctx: Context, place: Place) -> Subject:
    """Read the descriptor, report on it, find the extents. Raises NotADisk, NotFound, NotSupported."""
    subject = _read_subject(ctx, place)
    where = str(place)
    for kind, message in subject.reading.problems:
        ctx.error(
            "D1", kind, where, message, offset=subject.embedded[0] if subject.embedded else 0,
            repair="drop or complete the line",
        )  # fmt: skip
    for kind, message in subject.reading.notes:
        ctx.note("D1", kind, where, message)
    descriptor = subject.descriptor
    if descriptor is None:
        _report_lost(ctx, subject)
        return subject
    _refuse(descriptor, where)
    _find_extents(ctx, subject, descriptor)
    return subject


def _read_subject(ctx: Context, place: Place) -> Subject:
    try:
        file = ctx.files.open(place)
    except NotFound:
        if lost_extents(place):
            return Subject(place, Reading(None, b""), lost=True)
        raise
    with file:
        magic = bytes(read(file, 0, 8))
        if magic[:4] == UNFINISHED_MAGIC:
            raise NotADisk(f"{place}: this VMDK was never finished", remedy="make it again")
        if magic[:4] in (cowd.MAGIC, sesparse.MAGIC[:4]):
            raise NotADisk(
                f"{place}: the extent of a snapshot's delta", remedy="check the delta's descriptor"
            )
        if magic[:2] == _GZIP:
            raise NotADisk(f"{place}: compressed with gzip", remedy="unpack it first")
        if magic[:4] == MAGIC or _has_embedded(file):
            return _embedded(ctx, file, place)
        if file.capacity <= MAX_DESCRIPTOR:
            data = bytes(read(file, 0, file.capacity))
            reading = read_leniently(data, str(place))
            if reading.descriptor is not None or reading.problems:
                return Subject(place, reading)
            if not data.strip(b"\0") and lost_extents(place):
                return Subject(place, reading, lost=True)
        if not file.capacity:
            raise NotADisk(
                f"{place}: an empty file", remedy="check the path; what was to make it did not finish"
            )
        raise NotADisk(
            f"{place}: no VMDK (it starts with {magic[:4]!r})",
            remedy="check the disk's descriptor, not its data file",
        )


def _has_embedded(file: BlockDevice) -> bool:
    """The header is damaged, but where it usually is there is a descriptor."""
    offset, room = (number * SECTOR for number in _USUAL_ROOM)
    data = bytes(read(file, offset, room))
    return file.capacity > room and read_leniently(data, file.name).descriptor is not None


def _embedded(ctx: Context, file: BlockDevice, place: Place) -> Subject:
    said = read(file, 28, 16)
    offset, room = (int.from_bytes(said[i : i + 8], "little") for i in (0, 8))
    fits = 0 < offset < 1 << 32 and 0 < room <= MAX_DESCRIPTOR // SECTOR
    reading = Reading(None, b"")
    if fits:
        reading = read_leniently(bytes(read(file, offset * SECTOR, room * SECTOR)), str(place))
    if reading.descriptor is None and (offset, room) != _USUAL_ROOM:
        usual = read_leniently(
            bytes(read(file, _USUAL_ROOM[0] * SECTOR, _USUAL_ROOM[1] * SECTOR)), str(place)
        )
        if usual.descriptor is not None:
            reading, (offset, room) = usual, _USUAL_ROOM
    sectors, compressed = None, None
    if reading.descriptor is not None:
        sectors = reading.descriptor.sectors or None
        folded = reading.descriptor.create_type.casefold()
        compressed = {"streamoptimized": True, "monolithicsparse": False}.get(folded)
    found = None if reading.descriptor is None else (offset, room)
    view = look_at_header(ctx, file, sectors=sectors, compressed=compressed, room=found)
    if view.header is not None and view.header.descriptor:
        offset, room = view.header.descriptor, view.header.descriptor_sectors
    elif view.header is not None and reading.descriptor is None:
        raise NotADisk(
            f"{place}: this sparse extent has no descriptor of its own",
            remedy="it is one piece of a disk: check the disk's descriptor file",
        )
    return Subject(
        place,
        reading,
        embedded=(offset * SECTOR, room * SECTOR),
        header=view,
        lost=reading.descriptor is None,
    )


def _report_lost(ctx: Context, subject: Subject) -> None:
    if subject.header is not None and subject.header.mangled:
        return
    what = "the descriptor is missing or empty"
    if not subject.lost:
        what = "nothing of the descriptor can be read"
    ctx.error(
        "D1", "descriptor-lost", str(subject.place), what,
        offset=subject.embedded[0] if subject.embedded else None,
        repair="write a new one from the extent files; a child's parent must be named",
    )  # fmt: skip


def _refuse(descriptor: Descriptor, where: str) -> None:
    """What cannot be checked at all."""
    if descriptor.get("encryptionKeys") is not None or descriptor.get("encryption.keySafe") is not None:
        raise NotSupported(
            f"{where}: the disk is encrypted", remedy="decrypt it with the product that made it"
        )
    check_create_type(descriptor.create_type, where)
    if is_on_device(descriptor.create_type):
        raise NotSupported(
            f"{where}: a disk on a device has nothing to check", remedy="check the device itself"
        )


def _find_extents(ctx: Context, subject: Subject, descriptor: Descriptor) -> None:
    where = str(subject.place)
    lines = descriptor.extents
    if not lines:
        ctx.error(
            "D1", "extents-missing", where, "the descriptor names no extents",
            repair="write the lines from the extent files",
        )  # fmt: skip
    if subject.embedded is not None and len(lines) > 1:
        ctx.error("D1", "extents-embedded", where, "an embedded descriptor names more than its own extent")
        lines = lines[:1]
    start = 0
    for line in lines:
        view = ExtentView(line, start, extent_form(line.type, where))
        if line.sectors == 0:
            ctx.error("D1", "extent-empty", where, f"extent {line.file_name!r} has no sectors")
        if line.access is Access.NOACCESS:
            ctx.note("D1", "extent-noaccess", where, f"extent {line.file_name!r} is marked NOACCESS")
        if subject.embedded is not None:
            view.place = subject.place
            if view.form is not ExtentForm.SPARSE:
                ctx.error("D1", "extents-embedded", where, f"the extent's type is {line.type!r}, not SPARSE")
                view.form = ExtentForm.SPARSE
        elif view.form is not ExtentForm.ZERO:
            _locate(ctx, subject, view)
        subject.extents.append(view)
        start += line.sectors * SECTOR
    _report_aliases(ctx, subject)


def _locate(ctx: Context, subject: Subject, view: ExtentView) -> None:
    where, line = str(subject.place), view.line
    if line.file_name is None:
        ctx.error("D1", "extent-unnamed", where, f"an extent of type {line.type} needs a file name")
        return
    try:
        place = extent_place(subject.place, line.file_name, ctx.allow_paths)
        exists = ctx.files.exists(place)
    except OutsideStore as error:
        ctx.error("D1", "extent-outside", where, error.message, found=line.file_name)
        return
    if place == subject.place:
        ctx.error("D1", "extent-itself", where, "the descriptor names itself as one of its extents")
        return
    view.place = place
    view.missing = not exists
    if not exists:
        ctx.error(
            "D1",
            "extent-missing",
            str(place),
            "the extent file does not exist",
            repair="bring it back; only if its loss is accepted, put an empty one in its place",
            start=view.start,
            length=line.sectors * SECTOR,
        )


def _report_aliases(ctx: Context, subject: Subject) -> None:
    """The same file, or the same part of a flat one, twice."""
    seen: dict[Place, list[ExtentView]] = {}
    for view in subject.extents:
        if view.place is not None:
            seen.setdefault(view.place, []).append(view)
    for place, views in seen.items():
        if len(views) < 2:
            continue
        ranges = sorted((v.line.offset_sectors or 0, v.line.sectors) for v in views)
        flat = all(view.form is ExtentForm.FLAT for view in views)
        overlap = any(a[0] + a[1] > b[0] for a, b in itertools.pairwise(ranges))
        if not flat or overlap:
            ctx.error(
                "D1", "extent-twice", str(subject.place), f"{place.name} is named {len(views)} times",
                start=views[1].start, length=views[1].line.sectors * SECTOR,
            )  # fmt: skip


#: Data files of a disk whose descriptor is lost, by what follows the disk's name.
_DATA = re.compile(r"-(?:(flat)|(s|f)([0-9]{3,})|(delta)|(sesparse))\.vmdk", re.IGNORECASE)


def lost_extents(place: Place) -> list[tuple[str, str]]:
    """``(kind, name)`` of the data files that go with a descriptor's name, in order."""
    try:
        names = place.store.list(place.folder)
    except VixError:
        return []
    start = stem(base_name(place.name))
    found: list[tuple[str, int, str]] = []
    for name in names:
        if not name.startswith(start):
            continue
        match = _DATA.fullmatch(name[len(start) :])
        if match is not None:
            kind = next(group for group in (match[1], match[2], match[4], match[5]) if group).lower()
            found.append((kind, int(match[3] or 0), name))
    return [(kind, name) for kind, _, name in sorted(found)]
