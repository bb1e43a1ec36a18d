"""Creating disks and children of disks. Nothing that exists is replaced; a failure leaves nothing behind.

File names, create types and the first content id of a child: the same sources as in
:mod:`~vdkit.vmdk.template`. The bytes that make a file a disk (the header, the first sector of a descriptor)
are written once everything else is durable, so that a crash on the way leaves no half disk either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol, runtime_checkable

from vdkit.block.device import WritableDevice
from vdkit.block.store import Store
from vdkit.errors import ChainError, LimitExceeded, NotSupported, UsageError, VixError
from vdkit.vmdk import cowd, sparse
from vdkit.vmdk.cid import NO_PARENT, new_cid, new_long_id
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import Disk
from vdkit.vmdk.extentline import Access, ExtentLine, check_text
from vdkit.vmdk.header import SparseHeader
from vdkit.vmdk.kinds import SECTOR, DiskType
from vdkit.vmdk.names import Place, base_name, hint_for, stem
from vdkit.vmdk.open import open_created, open_disk
from vdkit.vmdk.split import Piece, piece_sectors, pieces
from vdkit.vmdk.template import Parent, base_ddb, disk_sectors, new_descriptor
from vdkit.vmdk.textfile import write_text

_FLAT = (DiskType.MONOLITHIC_FLAT, DiskType.SPLIT_FLAT, DiskType.VMFS_FLAT, DiskType.VMFS_THIN)
_SPLIT = (DiskType.SPLIT_SPARSE, DiskType.SPLIT_FLAT)


def create_disk(
    store: Store,
    name: str,
    capacity: int,
    *,
    disk_type: DiskType,
    adapter: str = "lsilogic",
    hardware_version: int | None = None,
    split: int | None = None,
    grain: int | None = None,
    sector_size: int = SECTOR,
    preallocate: bool = False,
    durable: bool = True,
) -> Disk:
    """Make an empty disk of ``capacity`` bytes and open it for writing.

    ``split`` is the size of the pieces of a split disk, ``grain`` that of the grains of a sparse one, both in
    bytes. ``sector_size`` 4096 makes a 4Kn disk. ``preallocate`` reserves all the space of a thick disk, as
    far as the store can; without it the files are sparse.

    Raises AlreadyExists if one of its files exists, LimitExceeded before anything is written if the type
    cannot hold it, NotSupported for types that are written another way.
    """
    place = Place(store, name)
    sectors = disk_sectors(capacity, str(place))
    check_text(name, "disk name")
    _check_options(place, disk_type, split=split, grain=grain, preallocate=preallocate)
    if disk_type is DiskType.VMFS_SPARSE:
        raise NotSupported(f"{place}: a vmfsSparse disk is the child of another", remedy="use create_child")
    cid = new_cid()
    ddb = base_ddb(
        sectors,
        adapter,
        cid,
        hardware_version=hardware_version,
        sector_size=sector_size,
        thin=disk_type is DiskType.VMFS_THIN,
    )
    plan = _plan(place, sectors, disk_type, split=split, grain=grain)
    descriptor = _described(place, disk_type, plan, cid, ddb)
    with _making(store) as made:
        _make(made, place, plan, descriptor, preallocate=preallocate, durable=durable)
        return open_created(place, durable=durable)


def create_child(
    store: Store,
    parent_name: str,
    child_name: str,
    *,
    disk_type: DiskType = DiskType.VMFS_SPARSE,
    child_store: Store | None = None,
    split: int | None = None,
    grain: int | None = None,
    allow_paths: Sequence[str] = (),
    durable: bool = True,
    any_size: bool = False,
) -> None:
    """Make an empty child of a disk: a snapshot's delta.

    As VMware does, the child starts with its parent's content id and gets its own at its first write. A
    child in another folder names its parent by a relative path, and opens only with that folder in
    ``allow_paths``. ``any_size`` makes a monolithicSparse child over VMware's own limit of 2 TiB too, which
    the format can hold but VMware's products do not open. ``split`` and ``grain`` as in :func:`create_disk`.
    """
    parent = Place(store, parent_name)
    child = Place(store if child_store is None else child_store, child_name)
    check_text(child_name, "disk name")
    with open_disk(store, parent_name, allow_paths=allow_paths) as disk:
        sectors = disk.capacity // SECTOR
        cid = disk.descriptor.cid
        long_id = disk.descriptor.get("ddb.longContentID") or new_long_id(cid)
    if cid == NO_PARENT:
        raise ChainError(
            f"{parent}: its content id is the one that means 'no parent', so that it can have no child",
            remedy="write to it once: that gives it another content id",
        )
    if disk_type not in (DiskType.VMFS_SPARSE, DiskType.MONOLITHIC_SPARSE, DiskType.SPLIT_SPARSE):
        raise NotSupported(
            f"{child}: a child of type {disk_type.value} cannot be made",
            remedy="use vmfsSparse, monolithicSparse or twoGbMaxExtentSparse, "
            "or StreamWriter for a streamOptimized delta",
        )
    link = Parent(cid, hint_for(child, parent))
    _check_options(child, disk_type, split=split, grain=grain, preallocate=False)
    plan = _plan(child, sectors, disk_type, split=split, grain=grain, any_size=any_size)
    descriptor = _described(child, disk_type, plan, cid, {"longContentID": long_id}, link)
    with _making(child.store) as made:
        _make(made, child, plan, descriptor, preallocate=False, durable=durable)


def _check_options(
    place: Place, disk_type: DiskType, *, split: int | None, grain: int | None, preallocate: bool
) -> None:
    """Refuse an option that the type has no use for: it would be silently lost."""
    if split is not None and disk_type not in _SPLIT:
        raise UsageError(f"{place}: a {disk_type.value} disk is not split into pieces")
    if grain is not None and disk_type in _FLAT:
        raise UsageError(f"{place}: a {disk_type.value} disk has no grains")
    if preallocate and (disk_type not in _FLAT or disk_type is DiskType.VMFS_THIN):
        raise UsageError(f"{place}: the space of a {disk_type.value} disk cannot be reserved beforehand")


@runtime_checkable
class Reserving(Protocol):
    """A file whose space can be reserved beforehand."""

    def reserve(self) -> None:
        """Return once all of the file's space is its own. Raises DiskFull."""


class _Plan(NamedTuple):
    """The extent files of a disk, how their lines look, and ``fill``: it lays out one empty extent of so many
    sectors in an empty file. ``embedded``: the descriptor lies in the only file, behind this header.
    """

    pieces: tuple[Piece, ...]
    extent_type: str
    offset: int | None
    fill: Callable[[WritableDevice, int], None]
    embedded: SparseHeader | None = None


def _fill_flat(file: WritableDevice, sectors: int) -> None:
    file.resize(sectors * SECTOR)


def _plan(
    place: Place,
    sectors: int,
    disk_type: DiskType,
    *,
    split: int | None,
    grain: int | None,
    any_size: bool = False,
) -> _Plan:
    """What to make; raises before anything is written."""
    where, name = str(place), place.name
    match disk_type:
        case DiskType.MONOLITHIC_SPARSE:
            if not any_size:
                sparse.check_creatable(sectors, where)
            header = sparse.new_header(sectors, grain=sparse.grain_sectors(grain, where))
            return _Plan((Piece(name, sectors),), "SPARSE", None, _fill_flat, header)
        case DiskType.SPLIT_SPARSE:
            unit = sparse.grain_sectors(grain, where)
            size = piece_sectors(sectors, split, flat=False, unit=unit, where=where)
            sparse.check_creatable(min(size, sectors), where)

            def fill(file: WritableDevice, length: int) -> None:
                sparse.write_new(file, sparse.new_header(length, grain=unit, descriptor_sectors=0))

            return _Plan(tuple(pieces(name, sectors, size, flat=False)), "SPARSE", None, fill)
        case DiskType.SPLIT_FLAT:
            size = piece_sectors(sectors, split, flat=True, unit=1, where=where)
            return _Plan(tuple(pieces(name, sectors, size, flat=True)), "FLAT", 0, _fill_flat)
        case DiskType.MONOLITHIC_FLAT:
            return _Plan((Piece(f"{stem(name)}-flat.vmdk", sectors),), "FLAT", 0, _fill_flat)
        case DiskType.VMFS_FLAT | DiskType.VMFS_THIN:
            # Other readers refuse an offset behind a VMFS extent.
            return _Plan((Piece(f"{stem(name)}-flat.vmdk", sectors),), "VMFS", None, _fill_flat)
        case DiskType.VMFS_SPARSE:
            cowd.check_creatable(sectors, where)
            unit = cowd.grain_sectors(grain, where)

            def fill_delta(file: WritableDevice, length: int) -> None:
                cowd.write_new(file, length, grain=unit)

            return _Plan((Piece(f"{stem(name)}-delta.vmdk", sectors),), "VMFSSPARSE", None, fill_delta)
        case DiskType.STREAM_OPTIMIZED:
            raise NotSupported(
                f"{where}: a streamOptimized disk is written in one pass", remedy="use StreamWriter"
            )


def _described(
    place: Place,
    disk_type: DiskType,
    plan: _Plan,
    cid: int,
    ddb: Mapping[str, str],
    parent: Parent | None = None,
) -> Descriptor:
    # ESXi calls thick and thin alike "vmfs".
    written = DiskType.VMFS_FLAT if disk_type is DiskType.VMFS_THIN else disk_type
    lines = [
        ExtentLine(Access.RW, piece.sectors, plan.extent_type, base_name(piece.file_name), plan.offset)
        for piece in plan.pieces
    ]
    try:
        return new_descriptor(
            where=str(place), create_type=written.value, extents=lines, cid=cid, ddb=ddb, parent=parent
        )
    except LimitExceeded as error:
        if len(lines) == 1:
            raise
        raise LimitExceeded(error.message, remedy="use larger pieces or a shorter name") from error


class _Made:
    """The files made so far, newest last."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names: list[str] = []

    def create(self, name: str) -> WritableDevice:
        file = self.store.create(name)
        self.names.append(name)
        return file


@contextmanager
def _making(store: Store) -> Iterator[_Made]:
    made = _Made(store)
    try:
        yield made
    except BaseException:
        for name in reversed(made.names):
            with suppress(VixError):  # the error that brought us here is the one to tell
                store.remove(name)
        raise


def _make(
    made: _Made, place: Place, plan: _Plan, descriptor: Descriptor, *, preallocate: bool, durable: bool
) -> None:
    text = descriptor.to_bytes()
    if plan.embedded is not None:
        with made.create(place.name) as file:
            sparse.write_new(file, plan.embedded, text, durable=durable)
            if durable:
                file.flush()
        return
    # The name is taken first, and the text written last: until then it is an empty file, not a disk.
    with made.create(place.name) as file:
        for piece in plan.pieces:
            with made.create(piece.file_name) as extent:
                plan.fill(extent, piece.sectors)
                if preallocate:
                    _reserve(extent)
                if durable:
                    extent.flush()
        write_text(file, text, durable=durable)


def _reserve(file: WritableDevice) -> None:
    if not isinstance(file, Reserving):
        raise NotSupported(f"{file.name}: this store cannot reserve space", remedy="leave out preallocate")
    file.reserve()
