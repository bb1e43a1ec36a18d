"""Growing a disk: more of the same, in place. What is in the disk stays, and so does its content id.

The extent files become larger first and the descriptor names what is new last, so that a crash leaves the
old disk or the new one.

Source of facts: VMware's "Virtual Disk Format 5.0" and the published VixDiskLib functions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from vdkit.block.store import Store
from vdkit.block.workers import CancelToken
from vdkit.errors import FormatError, LimitExceeded, NotSupported, UsageError
from vdkit.vmdk import sparse
from vdkit.vmdk.admin.pieces import NewPieces, split_size
from vdkit.vmdk.admin.sparsegrow import SparseGrowth
from vdkit.vmdk.admin.subject import (
    Progress,
    Subject,
    read_subject,
    refuse_locked,
    refuse_parent,
    refuse_tracked,
)
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.extentline import Access, ExtentLine
from vdkit.vmdk.kinds import (
    ADAPTERS,
    BASE_TYPES,
    MAX_DISK_SECTORS,
    SECTOR,
    ExtentForm,
    extent_form,
    geometry_for,
)
from vdkit.vmdk.names import Place
from vdkit.vmdk.textfile import rewrite_text

_SPLIT = re.compile(r"(twoGb|2Gb)MaxExtent(Sparse|Flat)", re.IGNORECASE)


def grow_disk(
    store: Store,
    name: str,
    capacity: int,
    *,
    update_geometry: bool = True,
    force: bool = False,
    allow_paths: Sequence[str] = (),
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
) -> None:
    """Make a disk larger, to ``capacity`` bytes; what is new reads as zeroes.

    ``update_geometry`` computes cylinders, heads and sectors anew. ``force`` grows a disk even if it is the
    parent of others in its folder, which then no longer open. Raises UsageError if the disk is not smaller,
    LimitExceeded, NotSupported and FileLocked, all before anything is written.
    """
    place = Place(store, name)
    subject = read_subject(place, allow_paths)
    sectors = _checked(subject, capacity)
    refuse_tracked(subject)
    refuse_locked(subject)
    if not force:
        refuse_parent(subject, "which would no longer fit it")
    line, target = subject.lines[-1], subject.places[-1]
    if target is None or line.access is not Access.RW:
        raise NotSupported(f"{place}: its last extent is not one that can be written")
    more = sectors - subject.descriptor.sectors
    if _SPLIT.fullmatch(subject.descriptor.create_type):
        room = max(0, split_size(subject, sectors) - line.sectors)
        grown = replace(line, sectors=line.sectors + min(more, room))
        more -= min(more, room)
    else:
        grown, more = replace(line, sectors=line.sectors + more), 0
    pieces = NewPieces(subject, more, sectors)
    lines = [*subject.lines[:-1], grown, *pieces.lines]
    text = _text(subject, lines, sectors, geometry=update_geometry)
    if extent_form(line.type, str(place)) is ExtentForm.SPARSE:
        _grow_sparse(subject, target, grown, text, pieces, progress, cancel)
    else:
        _grow_flat(subject, target, grown, pieces)
    if subject.header is None:
        rewrite_text(place, text)


def _checked(subject: Subject, capacity: int) -> int:
    """The new size in sectors; refuses what cannot be grown, or not that far."""
    place, descriptor = subject.place, subject.descriptor
    old = descriptor.sectors
    if not subject.lines:
        raise FormatError(f"{place}: the descriptor names no extents")
    if subject.has_parent:
        raise NotSupported(
            f"{place}: a child has the size of its parent",
            remedy="consolidate the snapshots, then grow the disk",
        )
    if descriptor.create_type.casefold() not in BASE_TYPES or (
        subject.header is not None and subject.header.compressed
    ):
        raise NotSupported(
            f"{place}: a disk of type {descriptor.create_type!r} cannot be grown in place",
            remedy="convert it to monolithicSparse or monolithicFlat first",
        )
    if capacity % SECTOR:
        raise UsageError(f"{place}: a capacity of {capacity} bytes is not a multiple of {SECTOR}")
    sectors = capacity // SECTOR
    if sectors <= old:
        raise UsageError(
            f"{place}: it has {old * SECTOR} bytes already, not less than {capacity}",
            remedy="a disk can only be made larger; copy it to make it smaller",
        )
    if extent_form(subject.lines[-1].type, str(place)) is ExtentForm.SPARSE:
        sparse.check_creatable(sectors, str(place))
    if sectors > MAX_DISK_SECTORS:
        raise LimitExceeded(f"{place}: a disk of {capacity} bytes is over the limit of 62 TiB")
    return sectors


def _text(subject: Subject, lines: list[ExtentLine], sectors: int, *, geometry: bool) -> bytes:
    """The descriptor of the larger disk."""
    made = Descriptor.parse(subject.descriptor.to_bytes(), str(subject.place))
    made.replace_extents(lines)
    if geometry:
        adapter = made.get("ddb.adapterType") or ""
        shape = geometry_for(sectors, adapter if adapter in ADAPTERS else "lsilogic")
        made.set("ddb.geometry.cylinders", str(shape.cylinders))
        made.set("ddb.geometry.heads", str(shape.heads))
        made.set("ddb.geometry.sectors", str(shape.sectors))
    return made.to_bytes()


def _grow_sparse(
    subject: Subject,
    target: Place,
    grown: ExtentLine,
    text: bytes,
    pieces: NewPieces,
    progress: Progress | None,
    cancel: CancelToken | None,
) -> None:
    used = subject.lines[-1].sectors
    with target.store.open_writable(target.name) as file:
        growth = SparseGrowth(
            file,
            used=used,
            capacity=grown.sectors,
            descriptor=None if subject.header is None else text,
        )
        pieces.make_sparse(growth.header)
        if grown.sectors > used:
            growth.run(progress, cancel)


def _grow_flat(subject: Subject, target: Place, grown: ExtentLine, pieces: NewPieces) -> None:
    if subject.places.count(target) > 1:
        raise NotSupported(f"{target}: several extents of the disk share it, so that the last cannot grow")
    old_end = (grown.offset_sectors or 0) * SECTOR + subject.lines[-1].sectors * SECTOR
    end = (grown.offset_sectors or 0) * SECTOR + grown.sectors * SECTOR
    with target.store.open_writable(target.name) as file:
        if file.capacity < old_end:
            raise FormatError(
                f"{target}: the file has {file.capacity} bytes, its descriptor needs {old_end}",
                remedy="check and repair the disk first",
            )
        pieces.make_flat()
        # Whatever follows the extent in its file would come into view.
        over = min(file.capacity, end) - old_end
        if over > 0:
            file.write_zeroes(old_end, over)
        if file.capacity < end:
            file.resize(end)
        file.flush()
