"""One sparse extent file and the new one that is to take its place: same kind, same size, same fields.

Source of facts: VMware's "Virtual Disk Format 5.0", and those of :mod:`~vdkit.vmdk.cowd`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.errors import NotSupported
from vdkit.vmdk import cowd, sparse
from vdkit.vmdk.admin.sparsegrow import laid_out
from vdkit.vmdk.admin.subject import Subject
from vdkit.vmdk.cowd import CowdExtent, CowdHeader
from vdkit.vmdk.embedded import home_header
from vdkit.vmdk.extentline import ExtentLine
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.kinds import SECTOR
from vdkit.vmdk.names import Place
from vdkit.vmdk.sparse import SparseExtent, grain_tables
from vdkit.vmdk.tables import runs

F = TypeVar("F", bound=BlockDevice)
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """``grain`` in bytes; ``header`` is the old one of a hosted extent, None for COWD."""

    place: Place
    grain: int
    has_parent: bool
    header: SparseHeader | None
    open_old: Callable[[], BlockDevice]
    make_new: Callable[[str], WritableDevice]


def rewrite_of(subject: Subject, line: ExtentLine, place: Place) -> Rewrite:
    """Raises NotSupported for what cannot be rewritten in place."""
    with place.open() as file:
        head = bytearray(min(cowd.HEADER_SECTORS * SECTOR, file.capacity))
        file.read_into(0, head)
        if head[:4] == cowd.MAGIC:
            return _of_cowd(subject, line, place, bytes(head), file.capacity)
        header = sparse.read_header(file)
        if header.compressed:
            raise NotSupported(
                f"{place}: a streamOptimized disk cannot be changed in place",
                remedy="convert it to a new disk, which leaves zeroes out",
            )
        _refuse_unclean(place, unclean=header.unclean)
        home = home_header(file, header)
    made = laid_out(home, home.capacity)
    text = b"" if subject.header is None else subject.descriptor.to_bytes()
    capacity = line.sectors * SECTOR

    def open_old() -> BlockDevice:
        return _owned(place.open(), lambda f: SparseExtent(f, header, capacity=capacity, has_parent=parent))

    def make_new(name: str) -> WritableDevice:
        def opened(file: WritableDevice) -> SparseExtent:
            sparse.write_new(file, made, text)
            return SparseExtent(file, made, capacity=capacity, has_parent=parent)

        return _owned(place.store.create(name), opened)

    parent = subject.has_parent
    return Rewrite(place, header.grain * SECTOR, parent, home, open_old, make_new)


def _of_cowd(subject: Subject, line: ExtentLine, place: Place, head: bytes, size: int) -> Rewrite:
    header = CowdHeader.parse(head, size, str(place))
    _refuse_unclean(place, unclean=header.unclean)
    capacity = line.sectors * SECTOR

    def open_old() -> BlockDevice:
        return _owned(place.open(), lambda f: CowdExtent(f, capacity=capacity, has_parent=parent))

    def make_new(name: str) -> WritableDevice:
        def opened(file: WritableDevice) -> CowdExtent:
            cowd.write_new(file, header.capacity, grain=header.grain)
            # What else the header says (generations, names) is kept.
            file.write_from(_COWD_FIELDS, head[_COWD_FIELDS:])
            return CowdExtent(file, capacity=capacity, has_parent=parent)

        return _owned(place.store.create(name), opened)

    parent = subject.has_parent
    return Rewrite(place, header.grain * SECTOR, parent, None, open_old, make_new)


#: Where the fields of a COWD header begin that say nothing of its layout.
_COWD_FIELDS = 32


def _refuse_unclean(place: Place, *, unclean: bool) -> None:
    if unclean:
        raise NotSupported(
            f"{place}: it was not closed properly when it was last written",
            remedy="check and repair it first",
        )


def _owned(file: F, opened: Callable[[F], E]) -> E:
    try:
        return opened(file)
    except BaseException:
        file.close()
        raise


def is_packed(rewrite: Rewrite) -> bool:
    """True if a hosted extent is laid out as it would be made anew: tables in front, grains ascending."""
    header = rewrite.header
    if header is None or header != laid_out(header, header.capacity):
        return False
    expected = header.overhead
    with rewrite.place.open() as file:
        tables = grain_tables(file, header, header.directory)
        for index in tables.present(0, header.tables):
            table = tables.table(index)
            if table is None:
                continue
            for _, count, entry in runs(table, 0, len(table), header.grain):
                if entry > 1:
                    if entry != expected:
                        return False
                    expected += count * header.grain
        return file.capacity == expected * SECTOR
