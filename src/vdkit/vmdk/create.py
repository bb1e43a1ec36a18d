"""Creating disks and children of disks. Nothing that exists is replaced; a failure leaves nothing behind.

File names, create types and the first content id of a child: the same sources as in
:mod:`~vdkit.vmdk.template`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from vdkit.block.device import WritableDevice
from vdkit.block.store import Store
from vdkit.errors import NotSupported, UsageError, VixError
from vdkit.vmdk import cowd, sparse
from vdkit.vmdk.cid import new_cid, new_long_id
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.disk import Disk
from vdkit.vmdk.extentline import MAX_SECTORS, Access, ExtentLine, check_text
from vdkit.vmdk.kinds import SECTOR, DiskType, geometry_for
from vdkit.vmdk.names import Place, base_name, hint_for, stem
from vdkit.vmdk.open import open_created, open_disk
from vdkit.vmdk.template import Parent, base_ddb, new_descriptor
from vdkit.vmdk.textfile import write_text


def create_disk(
    store: Store,
    name: str,
    capacity: int,
    *,
    disk_type: DiskType,
    adapter: str = "lsilogic",
    durable: bool = True,
) -> Disk:
    """Make an empty disk of ``capacity`` bytes and open it for writing.

    Raises AlreadyExists if one of its files exists, LimitExceeded before anything is written if the type
    cannot hold it, NotSupported for types that are written another way.
    """
    place = Place(store, name)
    sectors = _sectors(capacity, str(place))
    check_text(name, "disk name")
    geometry_for(sectors, adapter)
    cid = new_cid()
    match disk_type:
        case DiskType.MONOLITHIC_SPARSE:
            sparse.check_creatable(sectors, str(place))
            descriptor = _sparse_descriptor(place, sectors, cid, base_ddb(sectors, adapter, cid), None)
            with _making(store) as made:
                _make_sparse(made, place, sectors, descriptor, durable=durable)
        case DiskType.MONOLITHIC_FLAT | DiskType.VMFS_FLAT | DiskType.VMFS_THIN:
            thin = disk_type is DiskType.VMFS_THIN
            ddb = base_ddb(sectors, adapter, cid, thin=thin)
            with _making(store) as made:
                _make_flat(made, place, sectors, disk_type, cid, ddb, durable=durable)
        case DiskType.STREAM_OPTIMIZED:
            raise NotSupported(
                f"{place}: a streamOptimized disk is written in one pass", remedy="use StreamWriter"
            )
        case DiskType.VMFS_SPARSE:
            raise NotSupported(
                f"{place}: a vmfsSparse disk is the child of another", remedy="use create_child"
            )
    return open_created(place, durable=durable)


def create_child(
    store: Store,
    parent_name: str,
    child_name: str,
    *,
    disk_type: DiskType = DiskType.VMFS_SPARSE,
    child_store: Store | None = None,
    allow_paths: Sequence[str] = (),
    durable: bool = True,
    any_size: bool = False,
) -> None:
    """Make an empty child of a disk: a snapshot's delta.

    As VMware does, the child starts with its parent's content id and gets its own at its first write. A
    child in another folder names its parent by a relative path, and opens only with that folder in
    ``allow_paths``. ``any_size`` makes a monolithicSparse child over VMware's own limit of 2 TiB too, which
    the format can hold but VMware's products do not open.
    """
    parent = Place(store, parent_name)
    child = Place(store if child_store is None else child_store, child_name)
    check_text(child_name, "disk name")
    with open_disk(store, parent_name, allow_paths=allow_paths) as disk:
        sectors = disk.capacity // SECTOR
        cid = disk.descriptor.cid
        long_id = disk.descriptor.get("ddb.longContentID") or new_long_id(cid)
    link = Parent(cid, hint_for(child, parent))
    ddb = {"longContentID": long_id}
    match disk_type:
        case DiskType.VMFS_SPARSE:
            cowd.check_creatable(sectors, str(child))
            with _making(child.store) as made:
                _make_cowd(made, child, sectors, cid, ddb, link, durable=durable)
        case DiskType.MONOLITHIC_SPARSE:
            if not any_size:
                sparse.check_creatable(sectors, str(child))
            descriptor = _sparse_descriptor(child, sectors, cid, ddb, link)
            with _making(child.store) as made:
                _make_sparse(made, child, sectors, descriptor, durable=durable)
        case _:
            raise NotSupported(
                f"{child}: a child of type {disk_type.value} cannot be made",
                remedy="use vmfsSparse or monolithicSparse, or StreamWriter for a streamOptimized delta",
            )


def _sectors(capacity: int, where: str) -> int:
    sectors = capacity // SECTOR
    if capacity % SECTOR or not 0 < sectors <= MAX_SECTORS:
        raise UsageError(f"{where}: a capacity of {capacity} bytes is not a positive multiple of {SECTOR}")
    return sectors


class _Made:
    """The files made so far, newest last."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.names: list[str] = []

    def create(self, name: str, size: int = 0) -> WritableDevice:
        file = self.store.create(name, size)
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


def _sparse_descriptor(
    place: Place, sectors: int, cid: int, ddb: dict[str, str], parent: Parent | None
) -> Descriptor:
    return new_descriptor(
        where=str(place),
        create_type=DiskType.MONOLITHIC_SPARSE.value,
        extents=[ExtentLine(Access.RW, sectors, "SPARSE", base_name(place.name))],
        cid=cid,
        ddb=ddb,
        parent=parent,
    )


def _make_sparse(made: _Made, place: Place, sectors: int, descriptor: Descriptor, *, durable: bool) -> None:
    with made.create(place.name) as file:
        sparse.write_new(file, sparse.new_header(sectors), descriptor.to_bytes())
        if durable:
            file.flush()


def _make_flat(
    made: _Made,
    place: Place,
    sectors: int,
    disk_type: DiskType,
    cid: int,
    ddb: dict[str, str],
    *,
    durable: bool,
) -> None:
    data_name = f"{stem(place.name)}-flat.vmdk"
    hosted = disk_type is DiskType.MONOLITHIC_FLAT
    # ESXi calls thick and thin alike "vmfs"; other readers refuse an offset behind a VMFS extent.
    line = ExtentLine(
        Access.RW, sectors, "FLAT" if hosted else "VMFS", base_name(data_name), 0 if hosted else None
    )
    descriptor = new_descriptor(
        where=str(place),
        create_type=DiskType.MONOLITHIC_FLAT.value if hosted else DiskType.VMFS_FLAT.value,
        extents=[line],
        cid=cid,
        ddb=ddb,
    )
    _make_described(made, place, descriptor, data_name, sectors * SECTOR, durable=durable)


def _make_cowd(
    made: _Made, place: Place, sectors: int, cid: int, ddb: dict[str, str], parent: Parent, *, durable: bool
) -> None:
    data_name = f"{stem(place.name)}-delta.vmdk"
    descriptor = new_descriptor(
        where=str(place),
        create_type=DiskType.VMFS_SPARSE.value,
        extents=[ExtentLine(Access.RW, sectors, "VMFSSPARSE", base_name(data_name))],
        cid=cid,
        ddb=ddb,
        parent=parent,
    )
    _make_described(made, place, descriptor, data_name, None, sectors=sectors, durable=durable)


def _make_described(
    made: _Made,
    place: Place,
    descriptor: Descriptor,
    data_name: str,
    size: int | None,
    *,
    durable: bool,
    sectors: int = 0,
) -> None:
    """A data file (flat of ``size`` bytes, or a delta) and its descriptor, which is filled last."""
    with made.create(place.name) as text, made.create(data_name, size or 0) as data:
        if size is None:
            cowd.write_new(data, sectors)
        if durable:
            data.flush()
        write_text(text, descriptor.to_bytes())
        if durable:
            text.flush()
